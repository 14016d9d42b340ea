//! Account policies: permissions, limits and other properties that users and groups set, and their merging.
//!
//! **Precedence.** For each single field (the permission to delete, the limit of sessions, the quota of
//! bytes, the allowed networks) the first of these counts:
//! 1. the user's own value,
//! 2. the value of the first group that sets the field, in the order of the user's `groups`,
//! 3. the default, which allows everything and limits nothing.
//!
//! Lists of rules are joined in the same order, the user's first. `directories`: the first rule that
//! matches a path applies. `folders`: the first entry for a path applies. `denied_names`: all apply.
//! Limits, quota and bandwidth of a group apply to each member separately.

use common::{
    auth_api::{Account, AccountLimits, TlsRequirements, UploadMode},
    login_conditions::{Hours, LoginConditions},
    policy::{
        Bandwidth, DirectoryRule, Folder, NamePattern, PermissionChanges, Permissions, Quota, TreePath,
    },
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The properties that a user or a group sets. The JSON form, also used in Redis, contains only the
/// fields that are set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccountPolicy {
    #[serde(skip_serializing_if = "is_default")]
    pub permissions: PermissionChanges,
    #[serde(skip_serializing_if = "is_default")]
    pub directories: Vec<DirectoryRule>,
    #[serde(skip_serializing_if = "is_default")]
    pub denied_names: Vec<NamePattern>,
    #[serde(skip_serializing_if = "is_default")]
    pub folders: Vec<Folder>,
    #[serde(skip_serializing_if = "is_default")]
    pub limits: AccountLimits,
    #[serde(skip_serializing_if = "is_default")]
    pub quota: Quota,
    #[serde(skip_serializing_if = "is_default")]
    pub bandwidth: Bandwidth,
    #[serde(skip_serializing_if = "is_default")]
    pub uploads: Option<UploadMode>,
    #[serde(skip_serializing_if = "is_default")]
    pub tls: TlsChanges,
    #[serde(skip_serializing_if = "is_default")]
    pub access: LoginConditionChanges,
}

/// Changes of [`TlsRequirements`]. `None`: not set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsChanges {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub close_notify: Option<bool>,
}

/// Changes of [`LoginConditions`]. `None`: not set. An empty list is set, and removes a group's condition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoginConditionChanges {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_from: Option<Vec<IpNet>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deny_from: Option<Vec<IpNet>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hours: Option<Vec<Hours>>,
}

/// The effective policy of a user. Every field has a value, except limits that do not exist, and
/// `tls.close_notify`, which each node then decides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EffectivePolicy {
    pub permissions: Permissions,
    pub directories: Vec<DirectoryRule>,
    pub denied_names: Vec<NamePattern>,
    pub folders: Vec<Folder>,
    pub limits: AccountLimits,
    pub quota: Quota,
    pub bandwidth: Bandwidth,
    pub uploads: UploadMode,
    pub tls: TlsRequirements,
    pub access: LoginConditions,
}

/// For each named field: the value of the first, or else of the second.
macro_rules! first_of {
    ($type:ident, $first:expr, $second:expr; $($field:ident),+ $(,)?) => {
        $type { $($field: $first.$field.or($second.$field)),+ }
    };
}

impl AccountPolicy {
    /// Merges both. Where both set a field, the value of `self` counts.
    pub fn over(mut self, other: Self) -> Self {
        let (own, group) = (self.access, other.access);
        self.permissions = self.permissions.or(other.permissions);
        self.directories.extend(other.directories);
        for pattern in other.denied_names {
            if !self.denied_names.contains(&pattern) {
                self.denied_names.push(pattern);
            }
        }
        self.folders.extend(other.folders);
        self.limits = first_of!(AccountLimits, self.limits, other.limits;
            sessions, sessions_per_address, transfers);
        self.quota = first_of!(Quota, self.quota, other.quota; bytes, files);
        self.bandwidth = first_of!(Bandwidth, self.bandwidth, other.bandwidth;
            upload, download, session_upload, session_download);
        self.uploads = self.uploads.or(other.uploads);
        self.tls = first_of!(TlsChanges, self.tls, other.tls; control, data, close_notify);
        self.access = first_of!(LoginConditionChanges, own, group; allow_from, deny_from, hours);
        self
    }

    /// Replaces fields that are not set by their defaults.
    pub fn effective(self) -> EffectivePolicy {
        let (tls, access) = (TlsRequirements::default(), self.access);
        EffectivePolicy {
            permissions: self.permissions.applied_to(Permissions::default()),
            directories: self.directories,
            denied_names: self.denied_names,
            folders: first_of_each_path(self.folders),
            limits: self.limits,
            quota: self.quota,
            bandwidth: self.bandwidth,
            uploads: self.uploads.unwrap_or_default(),
            tls: TlsRequirements {
                control: self.tls.control.unwrap_or(tls.control),
                data: self.tls.data.unwrap_or(tls.data),
                close_notify: self.tls.close_notify,
            },
            access: LoginConditions {
                allow_from: access.allow_from.unwrap_or_default(),
                deny_from: access.deny_from.unwrap_or_default(),
                hours: access.hours.unwrap_or_default(),
            },
        }
    }

    /// Removes fields that are set to their defaults. Records of users from before groups existed contain
    /// all fields. Such a default must not override a group's restriction.
    pub fn without_defaults(mut self) -> Self {
        self.permissions = self.permissions.only_denials();
        for required in [&mut self.tls.control, &mut self.tls.data] {
            required.take_if(|required| !*required);
        }
        self.uploads.take_if(|mode| *mode == UploadMode::default());
        self.access.allow_from.take_if(|networks| networks.is_empty());
        self.access.deny_from.take_if(|networks| networks.is_empty());
        self.access.hours.take_if(|hours| hours.is_empty());
        self
    }
}

impl EffectivePolicy {
    /// The account that a node gets after a login. It does not contain the login conditions.
    pub fn account(self, user: String, home: String, admin: bool) -> Account {
        Account {
            user,
            groups: Vec::new(),
            home,
            permissions: self.permissions,
            directories: self.directories,
            denied_names: self.denied_names,
            folders: self.folders,
            limits: self.limits,
            quota: self.quota,
            quota_directory: None,
            bandwidth: self.bandwidth,
            uploads: self.uploads,
            tls: self.tls,
            admin,
            version: None,
        }
    }
}

fn first_of_each_path(folders: Vec<Folder>) -> Vec<Folder> {
    // Ignores repeated slashes.
    fn parts(path: &TreePath) -> impl Iterator<Item = &str> {
        path.as_str().split('/').filter(|part| !part.is_empty())
    }
    let mut first: Vec<Folder> = Vec::with_capacity(folders.len());
    for folder in folders {
        if !first.iter().any(|known| parts(&known.path).eq(parts(&folder.path))) {
            first.push(folder);
        }
    }
    first
}

/// Returns true if nothing is set.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use common::policy::Permission;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn policy(value: Value) -> AccountPolicy {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn each_field_comes_from_the_user_then_the_first_group_then_the_default() {
        let user = policy(json!({
            "permissions": { "delete": true }, "limits": { "sessions": 9, "transfers": 4 },
            "tls": { "control": false }, "access": { "hours": ["Mon-Fri 06:00-20:00"], "deny_from": [] },
        }));
        let first = policy(json!({
            "permissions": { "delete": false, "rename": false },
            "limits": { "sessions": 1, "sessions_per_address": 2 },
            "quota": { "bytes": 100 }, "uploads": "atomic",
            "tls": { "control": true, "data": true, "close_notify": false },
            "access": { "allow_from": ["192.0.2.0/24"], "deny_from": ["192.0.2.1/32"] },
        }));
        let second = policy(json!({
            "permissions": { "rename": true, "mkdir": false }, "uploads": "direct",
            "quota": { "bytes": 7, "files": 5 }, "bandwidth": { "upload": 1000 },
        }));
        let effective = user.over(first).over(second).effective();
        let expected = Permissions::default().without(&[Permission::Rename, Permission::Mkdir]);
        assert_eq!(effective.permissions, expected);
        assert_eq!(
            effective.limits,
            AccountLimits { sessions: Some(9), sessions_per_address: Some(2), transfers: Some(4) }
        );
        assert_eq!(effective.quota, Quota { bytes: Some(100), files: Some(5) });
        assert_eq!(effective.bandwidth.upload.map(u64::from), Some(1000));
        assert_eq!(effective.uploads, UploadMode::Atomic);
        assert_eq!(effective.tls, TlsRequirements { control: false, data: true, close_notify: Some(false) });
        assert_eq!(effective.access.allow_from.len(), 1);
        assert_eq!((effective.access.deny_from.len(), effective.access.hours.len()), (0, 1));
        assert_eq!(AccountPolicy::default().effective(), EffectivePolicy::default());
    }

    #[test]
    fn lists_are_joined_with_the_users_entries_first() {
        let user = policy(json!({
            "directories": [{ "path": "/in", "permissions": { "upload": true } }],
            "denied_names": ["*.exe"], "folders": [{ "path": "/shared", "target": "/mine" }],
        }));
        let group = policy(json!({
            "directories": [{ "path": "/in" }, { "path": "/out" }], "denied_names": ["*.exe", "*.bat"],
            "folders": [{ "path": "/shared/", "target": "/theirs" }, { "path": "/more", "target": "/x" }],
        }));
        let effective = serde_json::to_value(user.over(group).effective()).unwrap();
        let column = |list: &str, field: &str| -> Vec<String> {
            let items = effective[list].as_array().unwrap().iter();
            items.map(|item| item[field].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(column("directories", "path"), ["/in", "/in", "/out"]);
        assert_eq!(effective["directories"][0]["permissions"]["upload"], true);
        assert_eq!(effective["denied_names"], json!(["*.exe", "*.bat"]));
        assert_eq!(column("folders", "target"), ["/mine", "/x"]);
    }

    #[test]
    fn defaults_in_a_record_from_before_groups_are_removed() {
        let stored = policy(json!({
            "permissions": Permissions::default().without(&[Permission::Delete]), "limits": {},
            "uploads": "direct", "tls": { "control": false, "data": true },
            "access": { "allow_from": [], "deny_from": [], "hours": ["22:00-06:00"] },
        }));
        let meant = policy(json!({
            "permissions": { "delete": false }, "tls": { "data": true },
            "access": { "hours": ["22:00-06:00"] },
        }));
        assert_eq!(stored.clone().without_defaults(), meant);
        assert_eq!(stored.effective(), meant.effective());
    }

    fn switches<const N: usize>() -> impl Strategy<Value = [Option<bool>; N]> {
        proptest::array::uniform(proptest::option::of(any::<bool>()))
    }

    prop_compose! {
        fn policies()(
            permissions in switches::<{ Permission::ALL.len() }>(),
            [control, data, close_notify] in switches(),
            rules in proptest::collection::vec(0u8..4, 0..4),
            sessions in proptest::option::of(0u32..9),
            bytes in proptest::option::of(0u64..9),
            hours in proptest::option::of(Just(vec![])),
        ) -> AccountPolicy {
            let paths = || rules.iter().map(|rule| json!({ "path": format!("/{rule}"), "target": "/x" }));
            let names = || rules.iter().map(|rule| json!(format!("*.{rule}")));
            AccountPolicy {
                permissions: PermissionChanges::from_fn(|permission| permissions[permission as usize]),
                limits: AccountLimits { sessions, sessions_per_address: None, transfers: sessions },
                quota: Quota { bytes, files: sessions.map(u64::from) },
                uploads: permissions[0]
                    .map(|atomic| if atomic { UploadMode::Atomic } else { UploadMode::Direct }),
                tls: TlsChanges { control, data, close_notify },
                access: LoginConditionChanges { hours, ..LoginConditionChanges::default() },
                folders: serde_json::from_value(paths().collect()).unwrap(),
                denied_names: serde_json::from_value(names().collect()).unwrap(),
                ..AccountPolicy::default()
            }
        }
    }

    proptest! {
        #[test]
        fn merging_is_associative_and_an_empty_policy_changes_nothing(
            a in policies(), b in policies(), c in policies(),
        ) {
            prop_assert_eq!(a.clone().over(b.clone()).over(c.clone()), a.clone().over(b.clone().over(c)));
            prop_assert_eq!(a.clone().over(AccountPolicy::default()), a.clone());
        }

        #[test]
        fn stored_policy_is_read_as_written(a in policies()) {
            let json = serde_json::to_string(&a).unwrap();
            prop_assert_eq!(serde_json::from_str::<AccountPolicy>(&json).unwrap(), a);
        }
    }
}
