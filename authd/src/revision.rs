//! The revision of the accounts in Redis: nodes that see another one ask which of their sessions may stay.
//!
//! It advances after each change that takes something from a user, when authd starts (the process before may
//! have ended between a change and this), and when there is another connection to Redis (a change may have
//! happened while Redis was away, and another Redis may not know the last revision).

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

/// Waits between attempts while Redis cannot be reached: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Advances the revision, for as long as it takes.
#[derive(Default)]
pub struct RevisionAdvancer {
    wanted: Notify,
    /// Users whose known addresses Redis has still to forget.
    to_forget: Mutex<BTreeSet<UserName>>,
}

impl RevisionAdvancer {
    /// Has the revision advanced soon, or when Redis is back. Of several calls at once, one advance is enough.
    pub fn advance(&self) {
        self.wanted.notify_one();
    }

    /// Has the user's known addresses forgotten when Redis is back.
    pub fn forget_addresses_later(&self, user: &UserName) {
        self.to_forget().insert(user.clone());
        self.advance();
    }

    /// Does what the other methods ask for. Never returns.
    pub async fn run(&self, registry: &RegistryView, throttle: &Throttle) {
        loop {
            self.wanted.notified().await;
            let mut pause = FIRST_PAUSE;
            while let Err(error) = self.catch_up(registry, throttle).await {
                if matches!(error, LinkError::Reply(_)) {
                    log::error!(error = chain(&error); "cannot tell the nodes that accounts have changed");
                }
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            log::debug!("the nodes ask which of their sessions may stay");
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
