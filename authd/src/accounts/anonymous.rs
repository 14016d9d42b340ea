//! The anonymous user, if the settings allow anonymous access. Any password is right. The home can be
//! read, and the optional drop box, a directory of the home, accepts new files.

use common::{
    auth_api::{AccountLimits, UploadMode},
    policy::{Bandwidth, DirectoryRule, Permission, PermissionChanges, Quota, TreePath, TreePattern},
};

use super::{
    name::UserName,
    policy::AccountPolicy,
    user::{Credential, HomePath, User},
};

/// The login names of the anonymous user. The first one is the canonical name.
pub const NAMES: [&str; 2] = ["anonymous", "ftp"];

/// Settings of the anonymous user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anonymous {
    pub home: HomePath,
    /// Directory of the home that accepts new files.
    pub drop_box: Option<DropBox>,
    pub limits: AccountLimits,
    /// Quota of the drop box.
    pub quota: Quota,
    pub bandwidth: Bandwidth,
}

/// A directory that accepts new files but can be neither listed nor read: an absolute path within the
/// home.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropBox(TreePattern);

/// The text is not a valid drop box.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a drop box is an absolute path below '/', without '..', control characters and wildcards")]
pub struct InvalidDropBox;

impl std::str::FromStr for DropBox {
    type Err = InvalidDropBox;

    fn from_str(text: &str) -> Result<Self, InvalidDropBox> {
        // A drop box at the root would make the whole home unreadable.
        if text.trim_matches('/').is_empty() || text.contains(['*', '?', '[', ']', '\\']) {
            return Err(InvalidDropBox);
        }
        TreePattern::try_from(text.to_owned()).map(Self).map_err(|_| InvalidDropBox)
    }
}

impl Anonymous {
    /// The canonical name. Sessions are counted under this name for both login names.
    pub fn name() -> UserName {
        NAMES[0].parse().expect("the anonymous user's name is valid")
    }

    /// The directory that the quota applies to: the drop box. The operator fills the rest of the home.
    pub fn quota_directory(&self) -> Option<TreePath> {
        let DropBox(path) = self.drop_box.as_ref()?;
        // A pattern without wildcards has the form of a path.
        TreePath::try_from(path.as_str().to_owned()).ok()
    }

    /// The user in the form of a declared one.
    pub fn user(&self) -> User {
        let may = |reads, adds| {
            PermissionChanges::from_fn(|permission| {
                Some(match permission {
                    Permission::List | Permission::Download => reads,
                    Permission::Upload => adds,
                    _ => false,
                })
            })
        };
        let drop_box =
            |DropBox(path): &DropBox| DirectoryRule { path: path.clone(), permissions: may(false, true) };
        let policy = AccountPolicy {
            permissions: may(true, false),
            directories: self.drop_box.iter().map(drop_box).collect(),
            limits: self.limits,
            quota: self.quota,
            bandwidth: self.bandwidth,
            // In direct mode, an interrupted upload could be neither continued nor replaced.
            uploads: Some(UploadMode::Atomic),
            ..AccountPolicy::default()
        };
        User { home: self.home.clone(), policy, ..User::new(&Self::name(), Credential::AnyPassword) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_box_must_be_one_directory_below_the_home() {
        for path in ["/incoming", "/in/coming/", "/in coming"] {
            assert!(path.parse::<DropBox>().is_ok(), "{path:?}");
        }
        for path in ["", "/", "//", "incoming", "/../x", "/in*", "/in[a]", "/a\nb"] {
            assert!(path.parse::<DropBox>().is_err(), "{path:?}");
        }
    }
}
