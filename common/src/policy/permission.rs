//! The permissions of a user, and their form in JSON and TOML.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, MapAccess, Visitor},
    ser::SerializeMap,
};

/// One permission. A new permission needs a variant, its place in [`Self::ALL`], its name in
/// [`Self::as_str`], a command that asks for it, and a line in authd's `openapi.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Permission {
    /// LIST, NLST, MLSD, MLST, STAT with a path, SIZE, MDTM.
    List,
    /// RETR and the checksum commands.
    Download,
    /// STOR, STOU, APPE and COMB under a name that does not exist yet.
    Upload,
    /// STOR, COMB and RNTO onto a file that exists.
    Overwrite,
    /// APPE to a file that exists, and STOR after REST.
    Append,
    /// RNFR, RNTO.
    Rename,
    /// DELE.
    Delete,
    /// MKD.
    Mkdir,
    /// RMD. RMDA needs [`Self::Delete`] too.
    Rmdir,
    /// SITE CHMOD, MFMT, SITE UTIME.
    Attributes,
}

impl Permission {
    /// All permissions, in the order in which they are serialised.
    pub const ALL: [Self; 10] = [
        Self::List,
        Self::Download,
        Self::Upload,
        Self::Overwrite,
        Self::Append,
        Self::Rename,
        Self::Delete,
        Self::Mkdir,
        Self::Rmdir,
        Self::Attributes,
    ];

    /// The field name in JSON and TOML.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Download => "download",
            Self::Upload => "upload",
            Self::Overwrite => "overwrite",
            Self::Append => "append",
            Self::Rename => "rename",
            Self::Delete => "delete",
            Self::Mkdir => "mkdir",
            Self::Rmdir => "rmdir",
            Self::Attributes => "attributes",
        }
    }

    const fn bit(self) -> u16 {
        1 << self as u16
    }
}

/// The names of [`Permission::ALL`], for the error about a field with another name.
const NAMES: [&str; Permission::ALL.len()] = {
    let mut names = [""; Permission::ALL.len()];
    let mut index = 0;
    while index < names.len() {
        // `ALL` lists the variants in the order of their declaration, and each has a bit.
        assert!(Permission::ALL[index] as usize == index && index < u16::BITS as usize);
        names[index] = Permission::ALL[index].as_str();
        index += 1;
    }
    names
};

impl<'de> Deserialize<'de> for Permission {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = Permission;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a permission")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Permission, E> {
                let mut all = Permission::ALL.into_iter();
                all.find(|permission| permission.as_str() == text)
                    .ok_or_else(|| E::unknown_field(text, &NAMES))
            }
        }
        deserializer.deserialize_identifier(Name)
    }
}

/// A set of permissions. In JSON and TOML it is a table with a boolean for each permission; a permission
/// that the table does not name is granted, because a home belongs to its user.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Permissions(u16);

impl Permissions {
    /// No permission at all.
    pub const NONE: Self = Self(0);

    /// Returns true if the set contains `permission`.
    pub const fn has(self, permission: Permission) -> bool {
        self.0 & permission.bit() != 0
    }

    /// Returns true if the set contains at least one of `permissions`.
    pub fn has_any(self, permissions: &[Permission]) -> bool {
        permissions.iter().any(|permission| self.has(*permission))
    }

    /// Returns true if the set contains each of `permissions`.
    pub fn has_all(self, permissions: &[Permission]) -> bool {
        permissions.iter().all(|permission| self.has(*permission))
    }

    /// The set with `permission` granted or not.
    #[must_use]
    pub const fn with(self, permission: Permission, is_granted: bool) -> Self {
        if is_granted { Self(self.0 | permission.bit()) } else { Self(self.0 & !permission.bit()) }
    }

    /// The set without `permissions`.
    #[must_use]
    pub fn without(self, permissions: &[Permission]) -> Self {
        permissions.iter().fold(self, |set, permission| set.with(*permission, false))
    }

    /// The granted permissions.
    pub fn iter(self) -> impl Iterator<Item = Permission> {
        Permission::ALL.into_iter().filter(move |permission| self.has(*permission))
    }
}

impl Default for Permissions {
    /// All permissions.
    fn default() -> Self {
        Permission::ALL.into_iter().collect()
    }
}

impl FromIterator<Permission> for Permissions {
    fn from_iter<I: IntoIterator<Item = Permission>>(permissions: I) -> Self {
        permissions.into_iter().fold(Self::NONE, |set, permission| set.with(permission, true))
    }
}

impl fmt::Debug for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl Serialize for Permissions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(Permission::ALL.len()))?;
        for permission in Permission::ALL {
            map.serialize_entry(permission.as_str(), &self.has(permission))?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Permissions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = deserializer.deserialize_map(PermissionFields::<bool>(PhantomData))?;
        let set = Self::default();
        Ok(fields.into_iter().fold(set, |set, (permission, is_granted)| set.with(permission, is_granted)))
    }
}

/// Permissions that differ from a user's general ones. In JSON and TOML it is a table with a boolean for each
/// permission that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PermissionChanges {
    /// Has no permission in common with `denied`.
    granted: Permissions,
    denied: Permissions,
}

impl PermissionChanges {
    /// Calls `change` for each permission. `None` leaves the permission as it is.
    pub fn from_fn(change: impl Fn(Permission) -> Option<bool>) -> Self {
        let changed_to = |value: bool| {
            Permission::ALL.into_iter().filter(|permission| change(*permission) == Some(value)).collect()
        };
        Self { granted: changed_to(true), denied: changed_to(false) }
    }

    /// The change of `permission`. `None`: it stays as it is.
    pub fn get(self, permission: Permission) -> Option<bool> {
        debug_assert!(self.granted.0 & self.denied.0 == 0);
        match (self.granted.has(permission), self.denied.has(permission)) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            (false, false) => None,
        }
    }

    /// The permissions `general` with these changes.
    #[must_use]
    pub fn applied_to(self, general: Permissions) -> Permissions {
        Permissions((general.0 | self.granted.0) & !self.denied.0)
    }

    /// These changes, and those of `other` to permissions that `self` leaves as they are.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self::from_fn(|permission| self.get(permission).or(other.get(permission)))
    }

    /// The denied permissions alone.
    #[must_use]
    pub fn only_denials(self) -> Self {
        Self { granted: Permissions::NONE, ..self }
    }
}

impl Default for PermissionChanges {
    /// No change.
    fn default() -> Self {
        Self { granted: Permissions::NONE, denied: Permissions::NONE }
    }
}

impl Serialize for PermissionChanges {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let changes = Permission::ALL.into_iter().filter_map(|it| Some((it.as_str(), self.get(it)?)));
        serializer.collect_map(changes)
    }
}

impl<'de> Deserialize<'de> for PermissionChanges {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = deserializer.deserialize_map(PermissionFields::<Option<bool>>(PhantomData))?;
        Ok(Self::from_fn(|permission| {
            fields.iter().find(|(named, _)| *named == permission).and_then(|(_, change)| *change)
        }))
    }
}

/// Reads a table of permissions. Refuses unknown names and names that occur twice.
struct PermissionFields<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for PermissionFields<V> {
    type Value = Vec<(Permission, V)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of permissions")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields: Self::Value = Vec::new();
        while let Some(permission) = map.next_key::<Permission>()? {
            if fields.iter().any(|(named, _)| *named == permission) {
                return Err(A::Error::duplicate_field(permission.as_str()));
            }
            fields.push((permission, map.next_value()?));
        }
        Ok(fields)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_names_every_permission_and_grants_those_it_does_not_name() {
        let all = json!({
            "list": true, "download": true, "upload": true, "overwrite": true, "append": true, "rename": true,
            "delete": true, "mkdir": true, "rmdir": true, "attributes": true,
        });
        assert_eq!(serde_json::to_value(Permissions::default()).unwrap(), all);
        let read: Permissions = serde_json::from_value(json!({ "mkdir": false, "list": true })).unwrap();
        assert_eq!(read, Permissions::default().without(&[Permission::Mkdir]));
        let written = serde_json::to_value(read).unwrap();
        assert_eq!(serde_json::from_value::<Permissions>(written).unwrap(), read);
    }

    #[test]
    fn changes_name_only_what_they_change() {
        for text in [r"{}", r#"{"list":true}"#, r#"{"download":false,"mkdir":true}"#] {
            let changes: PermissionChanges = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&changes).unwrap(), text);
        }
        let null: PermissionChanges = serde_json::from_str(r#"{"list":null}"#).unwrap();
        assert_eq!(null, PermissionChanges::default());
    }

    #[test]
    fn unknown_and_repeated_permissions_are_refused() {
        for (text, expected) in [
            (r#"{"fly":true}"#, "unknown field `fly`, expected one of `list`, `download`"),
            (r#"{"list":true,"list":true}"#, "duplicate field `list`"),
            (r#"{"list":1}"#, "invalid type: integer"),
            (r#"["list"]"#, "a table of permissions"),
        ] {
            let general = serde_json::from_str::<Permissions>(text).unwrap_err().to_string();
            let changes = serde_json::from_str::<PermissionChanges>(text).unwrap_err().to_string();
            assert!(general.contains(expected) && changes.contains(expected), "{general}; {changes}");
        }
    }

    #[test]
    fn the_first_of_two_changes_decides() {
        let changes = |text| serde_json::from_str::<PermissionChanges>(text).unwrap();
        let both = changes(r#"{"list":true,"append":false}"#).or(changes(r#"{"list":false,"mkdir":true}"#));
        assert_eq!(both, changes(r#"{"list":true,"append":false,"mkdir":true}"#));
        assert_eq!(both.only_denials(), changes(r#"{"append":false}"#));
        let expected = Permissions::NONE.with(Permission::List, true).with(Permission::Mkdir, true);
        assert_eq!(both.applied_to(Permissions::NONE), expected);
        assert!(expected.has_any(&[Permission::Append, Permission::List]));
        assert!(!expected.has_all(&[Permission::Append, Permission::List]));
    }
}
