//! Increments the revision of the accounts in Redis. Nodes that see a new revision ask which of their
//! sessions may continue.
//!
//! The revision is incremented
//! - after each change that may revoke logins,
//! - when authd starts, because the previous process may have ended between a change and the increment,
//! - after each new connection to Redis, because a change may have happened while Redis could not be
//!   reached, and another Redis may not have the last revision.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use common::{
    process::logging::chain,
    registry::{LinkError, RegistryView},
    sync::lock,
};
use tokio::{sync::Notify, time::sleep};

use crate::{accounts::name::UserName, throttle::Throttle};

/// First pause between attempts while Redis cannot be reached. Each further pause is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
const _: () = assert!(FIRST_PAUSE.as_millis() <= LONGEST_PAUSE.as_millis());

/// Increments the revision on request, and retries until it succeeds.
#[derive(Default)]
pub(crate) struct RevisionAdvancer {
    requested: Notify,
    /// Users whose known addresses must still be removed from Redis.
    to_forget: Mutex<BTreeSet<UserName>>,
}

impl RevisionAdvancer {
    /// Requests an increment: soon, or when Redis can be reached again. Concurrent requests share one
    /// increment.
    pub(crate) fn advance(&self) {
        self.requested.notify_one();
    }

    /// Requests that the user's known addresses are forgotten when Redis can be reached again.
    pub(crate) fn forget_addresses_later(&self, user: &UserName) {
        self.to_forget().insert(user.clone());
        self.advance();
    }

    /// Carries out the requests of the other methods. Never returns.
    pub(crate) async fn run(&self, registry: &RegistryView, throttle: &Throttle) {
        loop {
            self.requested.notified().await;
            let mut pause = FIRST_PAUSE;
            while let Err(error) = self.catch_up(registry, throttle).await {
                if matches!(error, LinkError::Reply(_)) {
                    log::error!(
                        error = chain(&error); "cannot announce to the nodes that accounts have changed"
                    );
                }
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            log::debug!("announced to the nodes that accounts have changed");
        }
    }

    async fn catch_up(&self, registry: &RegistryView, throttle: &Throttle) -> Result<(), LinkError> {
        registry.advance_revision().await?;
        loop {
            let Some(user) = self.to_forget().first().cloned() else { return Ok(()) };
            throttle.forget_addresses(&user).await?;
            self.to_forget().remove(&user);
        }
    }

    fn to_forget(&self) -> MutexGuard<'_, BTreeSet<UserName>> {
        lock(&self.to_forget)
    }
}
