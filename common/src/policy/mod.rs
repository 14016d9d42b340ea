//! What a user may do where in the tree, and how much: the parts of an [`Account`] that only some
//! users have.
//!
//! [`Account`]: crate::auth_api::Account

mod permission;

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

pub use self::permission::{Permission, PermissionChanges, Permissions};

/// Permissions of a part of the tree. The first rule of a user that fits a path decides; where none
/// does, the user's general permissions hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectoryRule {
    /// Fits what it matches, and everything below that.
    pub path: TreePattern,
    #[serde(default)]
    pub permissions: PermissionChanges,
}

/// A place in a user's tree: an absolute path, whose parts may hold the wildcards `*`, `?` and
/// `[a-z]`; a part `**` stands for any number of directories, also none.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TreePattern(String);

/// A path without wildcards: absolute, within the tree that the context names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TreePath(String);

/// A name that files may not get: no path, with the wildcards `*`, `?` and `[a-z]`. Case does not
/// matter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NamePattern(String);

/// The text is none of a kind. Says which texts are.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidText(&'static str);

/// The same methods for what is text of a certain form.
macro_rules! text {
    ($name:ident, $check:expr, $expected:literal) => {
        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidText;

            fn try_from(text: String) -> Result<Self, InvalidText> {
                let check: fn(&str) -> bool = $check;
                if check(&text) { Ok(Self(text)) } else { Err(InvalidText($expected)) }
            }
        }

        impl From<$name> for String {
            fn from(text: $name) -> Self {
                text.0
            }
        }
    };
}

text!(
    TreePattern,
    is_place,
    "a pattern is an absolute path of at most 1024 bytes without '.', '..' and control characters"
);
text!(
    TreePath,
    is_place,
    "a path here is absolute, of at most 1024 bytes, without '.', '..' and control characters"
);
text!(
    NamePattern,
    |text| !text.is_empty() && text.len() <= 255 && !text.contains('/') && !text.contains(char::is_control),
    "a pattern of names has 1 to 255 bytes, without '/' and control characters"
);

fn is_place(text: &str) -> bool {
    text.starts_with('/')
        && text.len() <= 1024
        && !text.contains(char::is_control)
        && !text.split('/').any(|part| matches!(part, "." | ".."))
}

/// A directory outside the home that the user's tree shows at a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Folder {
    /// Where the user sees it.
    pub path: TreePath,
    /// Where it is, within the shared storage.
    pub target: TreePath,
}

/// How much a user's files may take, over the whole cluster. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quota {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Files and directories.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<u64>,
}

/// How fast a user's transfers may be, in bytes a second. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bandwidth {
    /// Of all sessions of the user together, over the whole cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload: Option<NonZeroU64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub download: Option<NonZeroU64>,
    /// Of each session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_upload: Option<NonZeroU64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_download: Option<NonZeroU64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_names() {
        for place in ["/", "/a", "/a b/*", "/partners/**/out", "/..a"] {
            assert!(TreePattern::try_from(place.to_owned()).is_ok(), "{place:?}");
        }
        for place in ["", "a", "/a/../b", "/./a", "/..", "/a\nb"] {
            assert!(TreePath::try_from(place.to_owned()).is_err(), "{place:?}");
        }
        assert!(NamePattern::try_from("*.exe".to_owned()).is_ok());
        for name in ["", "a/b", "a\n"] {
            assert!(NamePattern::try_from(name.to_owned()).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_rule_changes_what_it_names_alone() {
        let rule: DirectoryRule =
            serde_json::from_str(r#"{ "path": "/in", "permissions": { "upload": true, "list": false } }"#)
                .unwrap();
        let general = Permissions::default().without(&[Permission::Upload, Permission::Delete]);
        let expected = Permissions::default().without(&[Permission::List, Permission::Delete]);
        assert_eq!(rule.permissions.of(general), expected);
    }
}
