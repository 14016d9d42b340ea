//! The user that nobody has to be known for, where the settings want one: any password is right, the
//! home can be read, and one directory of it can be given new files.

use common::{
    auth_api::{AccountLimits, UploadMode},
    policy::{Bandwidth, DirectoryRule, Permission, PermissionChanges, Quota, TreePath, TreePattern},
};

use super::{
    name::UserName,
    policy::AccountPolicy,
    user::{Credential, HomePath, User},
};

/// The user's name, and another name for it.
pub const NAMES: [&str; 2] = ["anonymous", "ftp"];

/// What the settings say of the anonymous user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anonymous {
    pub home: HomePath,
    /// A directory of that home.
    pub drop_box: Option<DropBox>,
    pub limits: AccountLimits,
    /// Of the drop box.
    pub quota: Quota,
    pub bandwidth: Bandwidth,
}

/// A directory that takes new files, and shows and gives none: an absolute path within the home.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropBox(TreePattern);

/// The text cannot be a drop box.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a drop box is an absolute path below '/', without '..', control characters and wildcards")]
pub struct InvalidDropBox;

impl std::str::FromStr for DropBox {
    type Err = InvalidDropBox;

    fn from_str(text: &str) -> Result<Self, InvalidDropBox> {
        // The home as a whole could not be read any more.
        if text.trim_matches('/').is_empty() || text.contains(['*', '?', '[', ']', '\\']) {
            return Err(InvalidDropBox);
        }
        TreePattern::try_from(text.to_owned()).map(Self).map_err(|_| InvalidDropBox)
    }
}

impl Anonymous {
    /// The name under which the user's sessions are counted, whichever was used.
    pub fn name() -> UserName {
        // The literal is a name.
        NAMES[0].parse().expect("a user's name")
    }

    /// What the quota is of: the drop box, because the rest of the home is the operator's.
    pub fn quota_directory(&self) -> Option<TreePath> {
        let DropBox(path) = self.drop_box.as_ref()?;
        // A pattern without wildcards has the form of a path.
        TreePath::try_from(path.as_str().to_owned()).ok()
    }

    /// The user, as if it were declared.
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
            // An upload that broke off could be neither gone on with nor replaced.
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
    fn a_drop_box_is_one_directory_of_the_home() {
        for path in ["/incoming", "/in/coming/", "/in coming"] {
            assert!(path.parse::<DropBox>().is_ok(), "{path:?}");
        }
        for path in ["", "/", "//", "incoming", "/../x", "/in*", "/in[a]", "/a\nb"] {
            assert!(path.parse::<DropBox>().is_err(), "{path:?}");
        }
    }
}
