//! Names of users and groups.

use std::{fmt, str::FromStr};

use common::password::MAX_USER_NAME;
use serde::{Deserialize, Serialize};

/// A user's name: 1 to 64 characters without `/` and control characters, and not `.` or `..`. So the name
/// can also be the name of a home directory and a part of a log line.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserName(String);

/// A group's name. The rules are those of [`UserName`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GroupName(String);

/// The text is not a valid name of a user or a group.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a name is 1 to 64 characters without '/' and control characters, and not '.' or '..'")]
pub struct InvalidName;

fn check(text: &str) -> Result<String, InvalidName> {
    let forbidden = |c: char| c == '/' || c.is_control();
    // Checks the number of bytes first, because counting the characters of a long text is slow.
    let fits = !text.is_empty() && text.len() <= MAX_USER_NAME && text.chars().count() <= 64;
    if !fits || text.contains(forbidden) || matches!(text, "." | "..") {
        return Err(InvalidName);
    }
    Ok(text.to_owned())
}

/// Methods and traits of both kinds of names.
macro_rules! name {
    ($name:ident) => {
        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                check(text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(UserName);
name!(GroupName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_names_are_accepted_and_others_refused() {
        for name in ["demo", "Ann Smith", "müller@example.org", "日本", ".hidden", &"ü".repeat(64)] {
            assert!(name.parse::<UserName>().is_ok() && name.parse::<GroupName>().is_ok(), "{name:?}");
        }
        for name in ["", ".", "..", "a/b", "a\nb", "a\0", "\u{7f}", "\u{85}", &"x".repeat(65)] {
            assert!(name.parse::<UserName>().is_err() && name.parse::<GroupName>().is_err(), "{name:?}");
        }
    }
}
