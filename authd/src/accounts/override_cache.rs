//! The overrides that this process knew last, for the time when Redis cannot be reached.
//!
//! Each login of a declared user asks Redis for the user's override. While Redis cannot be reached, the last
//! known override applies.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
};

use common::{process::logging::chain, sync::lock};

use super::{
    name::UserName,
    overrides::UserOverride,
    stored::{StoredAccounts, StoredError},
};

/// The last known override of each user who has one.
#[derive(Default)]
pub(super) struct OverrideCache(Mutex<BTreeMap<UserName, UserOverride>>);

impl OverrideCache {
    /// Asks Redis for the current override of a declared user, or returns the last known one if Redis cannot
    /// be reached.
    pub(super) async fn fetch(
        &self,
        name: &UserName,
        stored: Option<&StoredAccounts>,
    ) -> Option<UserOverride> {
        match stored?.override_of(name).await {
            Ok(found) => {
                match found {
                    Some(found) => self.known().insert(name.clone(), found),
                    None => self.known().remove(name),
                };
                found
            }
            Err(error) => {
                log_error(&error);
                self.last_known(name)
            }
        }
    }

    /// Asks Redis for all overrides.
    pub(super) async fn refresh(&self, stored: &StoredAccounts) {
        match stored.overrides().await {
            Ok(all) => *self.known() = all,
            Err(error) => log_error(&error),
        }
    }

    /// The override of a declared user as of the last [`refresh`](Self::refresh) or [`fetch`](Self::fetch).
    pub(super) fn last_known(&self, name: &UserName) -> Option<UserOverride> {
        self.known().get(name).copied()
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<UserName, UserOverride>> {
        lock(&self.0)
    }
}

/// Logs an error, unless Redis cannot be reached: the Redis link logs that itself.
fn log_error(error: &StoredError) {
    if !error.is_unreachable() {
        log::error!(error = chain(error); "cannot read the overrides of declared users from Redis");
    }
}
