//! Users: their names, homes and properties, and how each source spells a change of them.

use std::{fmt, str::FromStr};

use common::{
    access::Access,
    auth_api::{Account, AccountLimits, Permissions, TlsRequirements, UploadMode, UserSource, UserView},
    secret::Secret,
};
use serde::{Deserialize, Serialize, Serializer, de, ser};

use super::password::Phc;

/// A user's name: 1 to 64 characters, none of them `/` or a control character, and not `.` or `..`,
/// so that the name can be that of a home directory and a part of a log line.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserName(String);

/// The text cannot name a user.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a user's name is 1 to 64 characters without '/' and control characters, and not '.' or '..'")]
pub struct InvalidUserName;

impl UserName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UserName {
    type Err = InvalidUserName;

    fn from_str(text: &str) -> Result<Self, InvalidUserName> {
        let forbidden = |c: char| c == '/' || c.is_control();
        // Bytes first: counting the characters of a long text takes long.
        let fits = !text.is_empty() && text.len() <= 64 * 4 && text.chars().count() <= 64;
        if !fits || text.contains(forbidden) || matches!(text, "." | "..") {
            return Err(InvalidUserName);
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for UserName {
    type Error = InvalidUserName;

    fn try_from(text: String) -> Result<Self, InvalidUserName> {
        text.parse()
    }
}

impl From<UserName> for String {
    fn from(name: UserName) -> Self {
        name.0
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A user's home: an absolute path within the shared storage, without `..`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Home(String);

/// The text cannot be a home.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a home is an absolute path of at most 1024 bytes without '..' and control characters")]
pub struct InvalidHome;

impl Home {
    /// The home of a user for whom none is named: `/NAME`.
    pub fn of(name: &UserName) -> Self {
        Self(format!("/{name}"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Home {
    type Error = InvalidHome;

    fn try_from(text: String) -> Result<Self, InvalidHome> {
        let climbs = text.split('/').any(|part| part == "..");
        if !text.starts_with('/') || text.len() > 1024 || climbs || text.contains(char::is_control) {
            return Err(InvalidHome);
        }
        Ok(Self(text))
    }
}

impl From<Home> for String {
    fn from(home: Home) -> Self {
        home.0
    }
}

/// What shows that a client is the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// The password with this hash.
    Hash(Phc),
    /// Any password: a demo user. Is never written anywhere.
    AnyPassword,
}

impl Serialize for Credential {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Hash(phc) => phc.serialize(serializer),
            Self::AnyPassword => Err(ser::Error::custom("a demo user is not stored")),
        }
    }
}

impl<'de> Deserialize<'de> for Credential {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Phc::deserialize(deserializer).map(Self::Hash)
    }
}

/// A user without the name. Its JSON form is what Redis holds. A field that this version does not
/// know is an error there too: a restriction that a newer authd wrote must not be overlooked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    #[serde(rename = "password_hash")]
    pub credential: Credential,
    pub enabled: bool,
    pub home: Home,
    pub permissions: Permissions,
    pub limits: AccountLimits,
    pub uploads: UploadMode,
    #[serde(default)]
    pub tls: TlsRequirements,
    /// Subjects of client certificates that stand in for the password.
    #[serde(default)]
    pub certificates: Vec<String>,
    #[serde(default)]
    pub access: Access,
    pub admin: bool,
}

impl User {
    /// A user of whom only the credential is known.
    pub fn new(name: &UserName, credential: Credential) -> Self {
        Self {
            credential,
            enabled: true,
            home: Home::of(name),
            permissions: Permissions::default(),
            limits: AccountLimits::default(),
            uploads: UploadMode::default(),
            tls: TlsRequirements::default(),
            certificates: Vec::new(),
            access: Access::default(),
            admin: false,
        }
    }

    /// What a node is told of the user after a login.
    pub fn account(&self, name: &UserName) -> Account {
        Account {
            user: name.to_string(),
            home: self.home.as_str().to_owned(),
            permissions: self.permissions,
            limits: self.limits,
            uploads: self.uploads,
            tls: self.tls,
            admin: self.admin,
            ..Account::default()
        }
    }

    /// What administrators see of the user.
    pub fn view(&self, name: &UserName, source: UserSource) -> UserView {
        UserView {
            name: name.to_string(),
            source,
            enabled: self.enabled,
            home: self.home.as_str().to_owned(),
            permissions: self.permissions,
            limits: self.limits,
            uploads: self.uploads,
            tls: self.tls,
            certificates: self.certificates.clone(),
            access: self.access.clone(),
            admin: self.admin,
        }
    }
}

/// What a body or a file says about a user: each field is there or left as it is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    pub password: Option<Secret>,
    pub password_hash: Option<Phc>,
    pub enabled: Option<bool>,
    pub home: Option<Home>,
    /// As a whole: a permission that is not named is granted.
    pub permissions: Option<Permissions>,
    /// As a whole: a limit that is not named is none.
    pub limits: Option<AccountLimits>,
    pub uploads: Option<UploadMode>,
    /// As a whole: a connection that is not named may be in the clear.
    pub tls: Option<TlsRequirements>,
    /// As a whole.
    pub certificates: Option<Vec<String>>,
    /// As a whole: a condition that is not named is none.
    pub access: Option<Access>,
    pub admin: Option<bool>,
}

impl Change {
    /// The user with everything that is named here, apart from the password, which has to be
    /// hashed first.
    pub fn apply(&self, user: &User) -> User {
        User {
            credential: user.credential.clone(),
            enabled: self.enabled.unwrap_or(user.enabled),
            home: self.home.as_ref().unwrap_or(&user.home).clone(),
            permissions: self.permissions.unwrap_or(user.permissions),
            limits: self.limits.unwrap_or(user.limits),
            uploads: self.uploads.unwrap_or(user.uploads),
            tls: self.tls.unwrap_or(user.tls),
            certificates: self.certificates.as_ref().unwrap_or(&user.certificates).clone(),
            access: self.access.as_ref().unwrap_or(&user.access).clone(),
            admin: self.admin.unwrap_or(user.admin),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names() {
        for name in ["demo", "Ann Smith", "müller@example.org", "日本", ".hidden", &"ü".repeat(64)] {
            assert!(name.parse::<UserName>().is_ok(), "{name:?}");
        }
        for name in ["", ".", "..", "a/b", "a\nb", "a\0", "\u{7f}", "\u{85}", &"x".repeat(65)] {
            assert!(name.parse::<UserName>().is_err(), "{name:?}");
        }
    }

    #[test]
    fn homes() {
        for home in ["/", "/demo", "/a/..b", "/teams/one/"] {
            assert!(Home::try_from(home.to_owned()).is_ok(), "{home:?}");
        }
        for home in ["", "demo", "/..", "/a/../b", "/a\nb", "../x"] {
            assert!(Home::try_from(home.to_owned()).is_err(), "{home:?}");
        }
    }

    #[test]
    fn a_demo_user_cannot_be_stored() {
        let name = "demo".parse().unwrap();
        assert!(serde_json::to_string(&User::new(&name, Credential::AnyPassword)).is_err());
    }

    proptest! {
        #[test]
        fn the_default_home_of_any_name_is_a_home(name in "\\PC{1,64}") {
            if let Ok(name) = name.parse::<UserName>() {
                prop_assert!(Home::try_from(String::from(Home::of(&name))).is_ok());
            }
        }
    }
}
