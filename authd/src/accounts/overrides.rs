//! Overrides of declared users: an administrator disables a declared user through the API.
//!
//! An override applies at once and on all authd instances. It is kept in Redis, not in the users file, so
//! reading the file again does not change it.

use serde::{Deserialize, Serialize};

/// An override of a declared user. It can only disable the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserOverride {
    /// Always `false`.
    pub enabled: bool,
    /// Time at which the override was made, in seconds since the Unix epoch.
    pub since: u64,
}

impl UserOverride {
    /// An override that disables the user from `since` on, in seconds since the Unix epoch.
    pub fn disabled(since: u64) -> Self {
        Self { enabled: false, since }
    }

    /// Reads an override from Redis. An override that this version cannot read disables the user, because a
    /// restriction must not be ignored.
    pub fn from_stored(name: &str, json: &str) -> Self {
        serde_json::from_str(json).unwrap_or_else(|error| {
            log::error!(
                user = name, error:%; "cannot read the override of a user in Redis; the user is disabled"
            );
            Self::disabled(0)
        })
    }
}
