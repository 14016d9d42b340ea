//! Users: their properties, and their form in the users file, in requests and in Redis.

use common::certificate::CertificateRule;
use serde::{
    Deserialize, Serialize, Serializer,
    de::{self, DeserializeOwned},
    ser,
};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{
    name::{GroupName, UserName},
    overrides::UserOverride,
    password::Phc,
    policy::{AccountPolicy, EffectivePolicy},
};

/// Path of a user's home: absolute within the shared storage, without `..`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HomePath(String);

/// The text is not a valid home.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a home is an absolute path of at most 1024 bytes without '..' and control characters")]
pub struct InvalidHomePath;

impl HomePath {
    /// The default home: `/NAME`.
    pub fn of(name: &UserName) -> Self {
        Self(format!("/{name}"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for HomePath {
    type Error = InvalidHomePath;

    fn try_from(text: String) -> Result<Self, InvalidHomePath> {
        let climbs = text.split('/').any(|part| part == "..");
        if !text.starts_with('/') || text.len() > 1024 || climbs || text.contains(char::is_control) {
            return Err(InvalidHomePath);
        }
        Ok(Self(text))
    }
}

impl From<HomePath> for String {
    fn from(home: HomePath) -> Self {
        home.0
    }
}

/// Proof that a client must give to log in as the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// The password that matches this hash.
    Hash(Phc),
    /// Any password: a demo user or the anonymous user. Never stored.
    AnyPassword,
}

impl Serialize for Credential {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Hash(phc) => phc.serialize(serializer),
            Self::AnyPassword => Err(ser::Error::custom("a user without a password is never stored")),
        }
    }
}

impl<'de> Deserialize<'de> for Credential {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Phc::deserialize(deserializer).map(Self::Hash)
    }
}

/// A user's properties, without the name. Redis contains the JSON form. An unknown field is an error, also
/// in Redis: a restriction that a newer authd wrote must not be ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    #[serde(rename = "password_hash")]
    pub credential: Credential,
    #[serde(default = "yes")]
    pub enabled: bool,
    pub home: HomePath,
    /// Client certificates that are accepted instead of the password.
    #[serde(default)]
    pub certificates: Vec<CertificateRule>,
    #[serde(default)]
    pub admin: bool,
    /// Ordered: the first group that sets a field takes precedence over later ones.
    #[serde(default)]
    pub groups: Vec<GroupName>,
    #[serde(flatten)]
    pub policy: AccountPolicy,
}

fn yes() -> bool {
    true
}

impl User {
    /// A user with default properties.
    pub fn new(name: &UserName, credential: Credential) -> Self {
        Self {
            credential,
            enabled: true,
            home: HomePath::of(name),
            certificates: Vec::new(),
            admin: false,
            groups: Vec::new(),
            policy: AccountPolicy::default(),
        }
    }

    /// A user from the fields of a request or of the users file: `password_hash`, and the fields that differ
    /// from [`new`](Self::new).
    ///
    /// # Errors
    /// A field is invalid.
    pub fn from_fields(name: &UserName, mut fields: Map<String, Value>) -> serde_json::Result<Self> {
        fields.retain(|_, value| !value.is_null());
        fields.entry("home").or_insert_with(|| HomePath::of(name).0.into());
        from_fields(fields)
    }

    /// The user with changed fields. `null` stands for the default.
    ///
    /// # Errors
    /// A field is invalid, or the user cannot be stored.
    pub fn with_fields(&self, name: &UserName, changes: Map<String, Value>) -> serde_json::Result<Self> {
        Self::from_fields(name, with_changes(self, changes)?)
    }

    /// Parses a record from Redis. Entries of `certificates` that do not parse are skipped: an older
    /// authd stored them, and they could match more than one subject. `name` is for the log.
    ///
    /// # Errors
    /// The record is malformed, or a newer version wrote it.
    pub fn from_stored(name: &str, json: &str) -> serde_json::Result<Self> {
        let mut fields: Map<String, Value> = serde_json::from_str(json)?;
        if let Some(Value::Array(entries)) = fields.get_mut("certificates") {
            entries.retain(|entry| match entry.as_str().map(str::parse::<CertificateRule>) {
                Some(Err(error)) => {
                    log::warn!(
                        user = name, error:%; "skipped an entry of the user's `certificates` in Redis"
                    );
                    false
                }
                _ => true,
            });
        }
        let has_groups = fields.contains_key("groups");
        let user: Self = serde_json::from_value(Value::Object(fields))?;
        Ok(if has_groups { user } else { Self { policy: user.policy.without_defaults(), ..user } })
    }

    /// The user's effective policy.
    ///
    /// # Errors
    /// One of the user's groups is missing, so its restrictions are unknown. Returns its name.
    pub fn effective(
        &self,
        group: impl Fn(&GroupName) -> Option<AccountPolicy>,
    ) -> Result<EffectivePolicy, GroupName> {
        let mut policy = self.policy.clone();
        for name in &self.groups {
            policy = policy.over(group(name).ok_or_else(|| name.clone())?);
        }
        Ok(policy.effective())
    }

    /// The user as administrators see it.
    pub fn view(
        &self,
        name: &UserName,
        source: AccountSource,
        effective: Option<EffectivePolicy>,
    ) -> UserView {
        UserView {
            name: name.to_string(),
            source,
            enabled: self.enabled,
            overridden: None,
            home: self.home.as_str().to_owned(),
            certificates: self.certificates.clone(),
            admin: self.admin,
            groups: self.groups.clone(),
            policy: self.policy.clone(),
            effective,
        }
    }
}

/// Identifies what a login was accepted by: the password, or the `certificate` rule. Changes with the
/// password in both cases. Nodes keep it; it does not reveal the hash.
pub fn version(user: &User, certificate: Option<&CertificateRule>) -> String {
    let mut digest = Sha256::new();
    match &user.credential {
        Credential::Hash(hash) => digest.update(hash.as_str()),
        Credential::AnyPassword => digest.update("any password"),
    }
    if let Some(certificate) = certificate {
        // Separates the parts: a hash contains no zero byte.
        digest.update(b"\0");
        digest.update(certificate.to_string());
    }
    digest.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Parses fields that a person wrote.
///
/// # Errors
/// A field is invalid. The message names the field; for most values, serde's own message does not.
pub fn from_fields<T: DeserializeOwned>(fields: Map<String, Value>) -> serde_json::Result<T> {
    let read = |fields: &Map<String, Value>| T::deserialize(Value::Object(fields.clone()));
    read(&fields).map_err(|error| {
        let error = error.to_string();
        let mut others = fields.clone();
        // The faulty field is the first whose removal, with the fields before it, changes the error.
        let is_about = |(key, value): &(&String, &Value)| {
            others.remove(*key);
            let other = read(&others).err().map(|other| other.to_string());
            if other.as_ref().is_some_and(|other| other.starts_with("missing field")) {
                others.insert((*key).clone(), (*value).clone());
                return false;
            }
            other.is_none_or(|other| other != error)
        };
        match fields.iter().find(is_about) {
            Some((key, _)) if !error.contains(&format!("`{key}`")) => {
                de::Error::custom(format!("{key}: {error}"))
            }
            _ => de::Error::custom(error),
        }
    })
}

/// The fields of an object, with some of them changed.
pub fn with_changes(
    of: &impl Serialize,
    changes: Map<String, Value>,
) -> serde_json::Result<Map<String, Value>> {
    let mut fields: Map<String, Value> = serde_json::from_value(serde_json::to_value(of)?)?;
    fields.extend(changes);
    Ok(fields)
}

/// A user in the response to `GET /v1/users`: everything except the password hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserView {
    pub name: String,
    pub source: AccountSource,
    /// True if the user may log in. An override of a declared user is taken into account.
    pub enabled: bool,
    /// The override of a declared user.
    #[serde(rename = "override", default, skip_serializing_if = "Option::is_none")]
    pub overridden: Option<UserOverride>,
    pub home: String,
    pub certificates: Vec<CertificateRule>,
    pub admin: bool,
    pub groups: Vec<GroupName>,
    /// The properties that the user itself sets.
    #[serde(flatten)]
    pub policy: AccountPolicy,
    /// The effective policy. Absent if one of the groups is missing or cannot be read; the user cannot log in
    /// then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effective: Option<EffectivePolicy>,
}

/// The place where a user or a group is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccountSource {
    /// The users file or the settings. The API cannot change it.
    Declarative,
    /// Redis. The API can change it.
    Registry,
}

#[cfg(test)]
mod tests {
    use common::policy::Permission;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn valid_homes_are_accepted_and_others_refused() {
        for home in ["/", "/demo", "/a/..b", "/teams/one/"] {
            assert!(HomePath::try_from(home.to_owned()).is_ok(), "{home:?}");
        }
        for home in ["", "demo", "/..", "/a/../b", "/a\nb", "../x"] {
            assert!(HomePath::try_from(home.to_owned()).is_err(), "{home:?}");
        }
    }

    #[test]
    fn demo_user_cannot_be_stored() {
        let name = "demo".parse().unwrap();
        assert!(serde_json::to_string(&User::new(&name, Credential::AnyPassword)).is_err());
    }

    const HASH: &str = "$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ$9OzPPD5NcFBCFBsPPUbMKr3/kZ2CpcUvYjPmEdjfYAM";

    #[test]
    fn defaults_in_a_user_record_from_before_groups_do_not_override_a_group() {
        let stored = serde_json::json!({
            "password_hash": HASH, "enabled": true, "home": "/ann", "limits": { "sessions": 3 },
            "admin": false,
            "permissions": { "list": true, "download": true, "upload": false, "delete": true },
            "uploads": "direct",
        });
        let user = User::from_stored("ann", &stored.to_string()).unwrap();
        assert!(user.groups.is_empty() && user.policy.limits.sessions == Some(3));
        let alone = user.effective(|_| None).unwrap();
        assert!(alone.permissions.has(Permission::Delete) && !alone.permissions.has(Permission::Upload));

        let mut change = Map::new();
        change.insert("groups".to_owned(), serde_json::json!(["partners"]));
        let member = user.with_fields(&"ann".parse().unwrap(), change).unwrap();
        let group = r#"{ "permissions": { "delete": false, "upload": true }, "uploads": "atomic" }"#;
        let effective = member.effective(|_| serde_json::from_str(group).ok()).unwrap();
        assert!(!effective.permissions.has_any(&[Permission::Delete, Permission::Upload]));
        assert_eq!(effective.uploads, common::auth_api::UploadMode::Atomic);
        assert_eq!(User::from_stored("ann", &serde_json::to_string(&member).unwrap()).unwrap(), member);
        // A record with `groups` is from a later version: its fields are set on purpose.
        let explicit = serde_json::json!({
            "password_hash": HASH, "home": "/ann", "groups": ["partners"], "permissions": { "delete": true },
        });
        let explicit = User::from_stored("ann", &explicit.to_string()).unwrap();
        assert!(
            explicit
                .effective(|_| serde_json::from_str(group).ok())
                .unwrap()
                .permissions
                .has(Permission::Delete)
        );
    }

    #[test]
    fn unknown_fields_are_errors_at_every_depth() {
        for (place, value) in [
            ("colour", serde_json::json!("red")),
            ("permissions", serde_json::json!({ "fly": true })),
            ("limits", serde_json::json!({ "logins": 1 })),
            ("quota", serde_json::json!({ "inodes": 1 })),
            ("bandwidth", serde_json::json!({ "both": 1 })),
            ("tls", serde_json::json!({ "all": true })),
            ("access", serde_json::json!({ "from": [] })),
            ("directories", serde_json::json!([{ "path": "/x", "mode": 1 }])),
            ("folders", serde_json::json!([{ "path": "/x" }])),
            ("groups", serde_json::json!(["a/b"])),
        ] {
            let mut stored = serde_json::json!({ "password_hash": HASH, "home": "/ann", "groups": [] });
            assert!(User::from_stored("ann", &stored.to_string()).is_ok());
            stored[place] = value;
            assert!(User::from_stored("ann", &stored.to_string()).is_err(), "{place}");
        }
    }

    #[test]
    fn unreadable_certificate_rules_in_redis_are_skipped_and_in_requests_refused() {
        let stored = serde_json::json!({
            "password_hash": HASH, "home": "/ann", "groups": [],
            "certificates": ["O=Acme, CN=scanner", "CN=a, b", "Email=ann@example.com"],
        });
        let user = User::from_stored("ann", &stored.to_string()).unwrap();
        let texts: Vec<_> = user.certificates.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["O=Acme,CN=scanner", "emailAddress=ann@example.com"]);
        let name = "ann".parse().unwrap();
        let changed = |certificates: Value| {
            user.with_fields(&name, [("certificates".to_owned(), certificates)].into_iter().collect())
        };
        let error = changed(serde_json::json!(["CN=a", "CN=a, b"])).unwrap_err().to_string();
        assert!(error.contains("certificates: ") && error.contains("CN=a, b"), "{error}");
    }

    #[test]
    fn user_with_a_missing_group_has_no_effective_policy() {
        let name = "ann".parse().unwrap();
        let user =
            User { groups: vec!["gone".parse().unwrap()], ..User::new(&name, Credential::AnyPassword) };
        assert_eq!(user.effective(|_| None).unwrap_err().as_str(), "gone");
    }

    proptest! {
        #[test]
        fn default_home_of_every_name_is_valid(name in "\\PC{1,64}") {
            if let Ok(name) = name.parse::<UserName>() {
                prop_assert!(HomePath::try_from(String::from(HomePath::of(&name))).is_ok());
            }
        }
    }
}
