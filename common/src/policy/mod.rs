//! Parts of an [`Account`](crate::auth_api::Account): permissions, access rules, shared folders, quota,
//! bandwidth.

mod permission;

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

pub use self::permission::{Permission, PermissionChanges, Permissions};

/// An access rule: permissions of a part of the tree. The first rule of a user that matches a path applies.
/// Without a matching rule the user's general permissions apply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectoryRule {
    /// Matches these paths and everything below them.
    pub path: TreePattern,
    #[serde(default)]
    pub permissions: PermissionChanges,
}

/// A pattern of paths in a user's tree: an absolute path whose parts may contain the wildcards `*`, `?` and
/// `[a-z]`. A part `**` stands for any number of directories, including none.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TreePattern(String);

/// An absolute path without wildcards. The context tells whether it is a virtual path or a path within the
/// storage.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TreePath(String);

/// A pattern of file names, with the wildcards `*`, `?` and `[a-z]`. It ignores case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NamePattern(String);

/// The text does not have the required form. The message describes the form.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidText(&'static str);

/// Implements the conversions of a checked text.
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
    is_absolute_path,
    "a pattern is an absolute path of at most 1024 bytes, without '.', '..' and control characters"
);
text!(
    TreePath,
    is_absolute_path,
    "the path must be absolute, with at most 1024 bytes, without '.', '..' and control characters"
);
text!(
    NamePattern,
    |text| !text.is_empty() && text.len() <= 255 && !text.contains('/') && !text.contains(char::is_control),
    "a pattern of file names has 1 to 255 bytes, without '/' and control characters"
);

fn is_absolute_path(text: &str) -> bool {
    text.starts_with('/')
        && text.len() <= 1024
        && !text.contains(char::is_control)
        && !text.split('/').any(|part| matches!(part, "." | ".."))
}

/// A shared folder: a directory outside the home that the user's tree shows at a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Folder {
    /// The virtual path of the folder.
    pub path: TreePath,
    /// The path of the directory within the storage.
    pub target: TreePath,
}

/// Limits of the usage of a user's home, in the whole cluster. `None` means no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quota {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Number of files and directories.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<u64>,
}

/// Bandwidth limits of a user in bytes per second. `None` means no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bandwidth {
    /// Uploads of all sessions of the user together, in the whole cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload: Option<NonZeroU64>,
    /// Downloads of all sessions of the user together, in the whole cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub download: Option<NonZeroU64>,
    /// Uploads of each session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_upload: Option<NonZeroU64>,
    /// Downloads of each session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_download: Option<NonZeroU64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_name_patterns_are_checked() {
        for path in ["/", "/a", "/a b/*", "/partners/**/out", "/..a"] {
            assert!(TreePattern::try_from(path.to_owned()).is_ok(), "{path:?}");
        }
        for path in ["", "a", "/a/../b", "/./a", "/..", "/a\nb"] {
            assert!(TreePath::try_from(path.to_owned()).is_err(), "{path:?}");
        }
        assert!(NamePattern::try_from("*.exe".to_owned()).is_ok());
        for name in ["", "a/b", "a\n"] {
            assert!(NamePattern::try_from(name.to_owned()).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_rule_changes_only_the_permissions_that_it_names() {
        let rule: DirectoryRule =
            serde_json::from_str(r#"{ "path": "/in", "permissions": { "upload": true, "list": false } }"#)
                .unwrap();
        let general = Permissions::default().without(&[Permission::Upload, Permission::Delete]);
        let expected = Permissions::default().without(&[Permission::List, Permission::Delete]);
        assert_eq!(rule.permissions.applied_to(general), expected);
    }
}
