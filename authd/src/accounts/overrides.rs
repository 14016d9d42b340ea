//! OverrideCache of declared users: an administrator disables one through the API, at once and for all authds.
//!
//! They stand in Redis, beside the users file and not in it, so that reading the file again changes nothing
//! about them. Each login of a declared user asks Redis for the user's override; while Redis cannot be
//! asked, what this process knew last holds.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
};

use common::{process::logging::chain, sync::lock};
use serde::{Deserialize, Serialize};

use super::{
    name::UserName,
    stored::{StoredAccounts, StoredError},
};

/// What overrides a declared user. There is nothing else yet than that the user is disabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserOverride {
    /// Always `false`.
    pub enabled: bool,
    /// Seconds since the Unix epoch.
    pub since: u64,
}

impl UserOverride {
    pub fn disabled(since: u64) -> Self {
        Self { enabled: false, since }
    }

    /// Reads what Redis holds. What this version cannot read disables the user: a restriction must not
    /// be overlooked.
    pub fn from_stored(name: &str, json: &str) -> Self {
        serde_json::from_str(json).unwrap_or_else(|error| {
            log::error!(user = name, error:%; "an override in Redis cannot be read: the user is disabled");
            Self::disabled(0)
        })
    }
}

/// The overrides as this process knew them last.
#[derive(Default)]
pub struct OverrideCache(Mutex<BTreeMap<UserName, UserOverride>>);

impl OverrideCache {
    /// The override that holds for a declared user now.
    pub async fn of(&self, name: &UserName, stored: Option<&StoredAccounts>) -> Option<UserOverride> {
        let stored = stored?;
        match stored.override_of(name).await {
            Ok(found) => {
                match found {
                    Some(found) => self.known().insert(name.clone(), found),
                    None => self.known().remove(name),
                };
                found
            }
            Err(error) => {
                note(&error);
                self.known().get(name).copied()
            }
        }
    }

    /// Learns all overrides, to know them when Redis goes away.
    pub async fn learn(&self, stored: &StoredAccounts) {
        match stored.overrides().await {
            Ok(all) => *self.known() = all,
            Err(error) => note(&error),
        }
    }

    /// The override of a declared user as [`learn`](Self::learn) or a login learned it last.
    pub fn learned(&self, name: &UserName) -> Option<UserOverride> {
        self.known().get(name).copied()
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<UserName, UserOverride>> {
        lock(&self.0)
    }
}

/// That Redis is away is in the link's log.
fn note(error: &StoredError) {
    if !error.is_absence() {
        log::error!(error = chain(error); "cannot read the overrides of declared users");
    }
}
