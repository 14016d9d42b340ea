//! The throttle: counts failed logins by user name and by address, over all nodes and authd instances.
//!
//! After a number of free failures, each further one bans the user name or the address for twice as long.
//! A ban of a user name does not apply to addresses from which the user has logged in recently, so an
//! attacker cannot lock a user out by failing on purpose. A ban of an address applies to all user names.
//!
//! The counts are in Redis. While Redis cannot be reached, each process counts for itself, with bounded
//! memory.

mod ban;
mod local;
mod shared;
mod step;

use std::{
    sync::{Mutex, MutexGuard},
    time::Instant,
};

use common::{
    client_network::network_of,
    keys::Keys,
    registry::{LinkError, RedisLink},
    sync::lock,
};

pub use self::{
    ban::{Ban, BanKind, BanSubject, InvalidAddress},
    step::{LoginAttempt, ThrottleLimits, Throttled},
};
use self::{
    local::LocalCounters,
    shared::SharedCounters,
    step::{StepOutcome, ThrottleStep},
};
use crate::{accounts::name::UserName, metrics};

/// The throttle of this process.
pub struct Throttle {
    limits: ThrottleLimits,
    /// Counters of the whole cluster. `None`: no Redis is configured.
    shared: Option<SharedCounters>,
    /// Counters of this process, used without Redis and while Redis cannot be reached.
    local: Mutex<LocalCounters>,
}

impl Throttle {
    /// Counts in `redis`, or only in this process if that is `None`.
    pub fn new(limits: ThrottleLimits, redis: Option<(RedisLink, Keys)>) -> Self {
        let shared = redis.map(|(link, keys)| SharedCounters::new(link, keys));
        Self { limits, shared, local: Mutex::default() }
    }

    /// Checks that no ban forbids the attempt.
    ///
    /// # Errors
    /// The user name or the address is banned.
    pub async fn check(&self, attempt: LoginAttempt<'_>) -> Result<(), Throttled> {
        self.step(ThrottleStep::Check, attempt).await
    }

    /// Counts a failure.
    ///
    /// # Errors
    /// A concurrent attempt has caused a ban in the meantime. The client gets the throttle's reply then.
    pub async fn failed(&self, attempt: LoginAttempt<'_>) -> Result<(), Throttled> {
        self.step(ThrottleStep::Failed, attempt).await
    }

    /// Forgets the user's failures, and remembers the address as one of the user's known addresses.
    ///
    /// # Errors
    /// A concurrent attempt has caused a ban in the meantime. The login must be refused although the
    /// password was right.
    pub async fn succeeded(&self, attempt: LoginAttempt<'_>) -> Result<(), Throttled> {
        self.step(ThrottleStep::Succeeded, attempt).await
    }

    /// The bans in effect, by the time of their end.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub async fn bans(&self) -> Result<Vec<Ban>, LinkError> {
        let mut bans = match &self.shared {
            Some(shared) => shared.bans().await?,
            None => self.local().bans(Instant::now()),
        };
        bans.sort_by_key(|ban| ban.until);
        Ok(bans)
    }

    /// Forgets the failures of a user or an address. Returns true if a ban was in effect.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub async fn lift(&self, subject: &BanSubject) -> Result<bool, LinkError> {
        // The local counters keep what was counted while Redis could not be reached. They apply again the
        // next time.
        let was_banned_locally = self.local().lift(subject, Instant::now());
        let was_banned = match &self.shared {
            Some(shared) => shared.lift(subject).await?,
            None => was_banned_locally,
        };
        if was_banned {
            metrics::ban_lifted(subject.kind().as_str());
            log::info!(by = subject.kind().as_str(), name:% = subject; "ban lifted");
        }
        Ok(was_banned)
    }

    /// Forgets the user's known addresses. After a password change they may belong to someone who knew
    /// the old password.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub async fn forget_addresses(&self, user: &UserName) -> Result<(), LinkError> {
        self.local().forget_addresses(user);
        match &self.shared {
            Some(shared) => shared.forget_addresses(user).await,
            None => Ok(()),
        }
    }

    async fn step(&self, step: ThrottleStep, attempt: LoginAttempt<'_>) -> Result<(), Throttled> {
        let address = attempt.address.to_canonical();
        if self.limits.trusted.iter().any(|network| network.contains(&address)) {
            return Ok(());
        }
        let attempt = LoginAttempt { address: network_of(address), ..attempt };
        let outcome = match self.shared_step(step, attempt).await {
            Some(outcome) => outcome,
            None => self.local().step(step, attempt, &self.limits, Instant::now()),
        };
        for (subject, duration) in attempt.subjects().into_iter().zip(outcome.began) {
            if let (Some(subject), Some(duration)) = (subject, duration) {
                metrics::ban_began(subject.kind().as_str());
                let wait = duration.as_secs_f64();
                log::warn!(by = subject.kind().as_str(), name:% = subject, wait; "ban begins");
            }
        }
        outcome.throttled.map_or(Ok(()), Err)
    }

    /// The step with the counters in Redis. `None`: Redis cannot be used now.
    async fn shared_step(&self, step: ThrottleStep, attempt: LoginAttempt<'_>) -> Option<StepOutcome> {
        match self.shared.as_ref()?.step(step, attempt, &self.limits).await {
            Ok(outcome) => Some(outcome),
            // The Redis link logs this itself.
            Err(LinkError::Away | LinkError::Denied | LinkError::Unwritable(_)) => None,
            Err(error @ LinkError::Reply(_)) => {
                log::error!(
                    error:? = error; "cannot count a login in Redis; this process counts it for itself"
                );
                None
            }
        }
    }

    fn local(&self) -> MutexGuard<'_, LocalCounters> {
        lock(&self.local)
    }
}
