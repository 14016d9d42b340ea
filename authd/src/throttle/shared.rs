//! The counters of the whole cluster in Redis. Each step is one script that uses Redis's clock.

use std::time::Duration;

use common::{
    keys::Keys,
    registry::{LinkError, RedisLink},
};
use redis::{Script, cmd};

use super::{
    ban::{Ban, BanKind, BanSubject},
    step::{LoginAttempt, StepOutcome, ThrottleLimits, ThrottleStep, Throttled},
};
use crate::accounts::name::UserName;

/// The counters of all authd instances together.
pub(super) struct SharedCounters {
    link: RedisLink,
    keys: Keys,
    step: Script,
    bans: Script,
    lift: Script,
}

impl SharedCounters {
    /// Counters in the Redis behind `link`.
    pub(super) fn new(link: RedisLink, keys: Keys) -> Self {
        Self {
            link,
            keys,
            step: Script::new(include_str!("step.lua")),
            bans: Script::new(include_str!("bans.lua")),
            lift: Script::new(include_str!("lift.lua")),
        }
    }

    /// Carries out a step. The attempt's address must be that of a [`BanSubject`].
    pub(super) async fn step(
        &self,
        step: ThrottleStep,
        attempt: LoginAttempt<'_>,
        limits: &ThrottleLimits,
    ) -> Result<StepOutcome, LinkError> {
        let mut call = self.step.key(self.keys.bans());
        call.key(self.keys.failures_of_address(attempt.address));
        let user = attempt.user.map_or("", |user| user.as_str());
        if attempt.user.is_some() {
            call.key(self.keys.failures_of_user(user)).key(self.keys.known_addresses(user));
        }
        call.arg(step.as_str());
        for time in [limits.delay, limits.max_delay, limits.window] {
            call.arg(milliseconds(time));
        }
        call.arg(limits.free_of_address).arg(limits.free_of_user);
        call.arg(milliseconds(limits.known_time)).arg(limits.known_addresses);
        call.arg(attempt.address.to_string()).arg(user);
        let (wait, kind, address, user): (u64, u32, u64, u64) = self.link.script(&call).await?;
        let kind = match kind {
            1 => Some(BanKind::Address),
            2 => Some(BanKind::User),
            _ => None,
        };
        Ok(StepOutcome {
            throttled: kind.map(|kind| Throttled { wait: Duration::from_millis(wait), kind }),
            began: [address, user].map(|time| (time > 0).then(|| Duration::from_millis(time))),
        })
    }

    /// The bans in effect. Malformed entries are skipped.
    pub(super) async fn bans(&self) -> Result<Vec<Ban>, LinkError> {
        let mut call = self.bans.prepare_invoke();
        let found: Vec<(Vec<u8>, f64)> = self.link.script(call.key(self.keys.bans())).await?;
        let ban = |(member, until): (Vec<u8>, f64)| {
            let member = String::from_utf8(member).ok()?;
            let subject = match member.split_once(':')? {
                ("address", address) => BanSubject::address(address).ok()?,
                ("user", name) => BanSubject::User(name.parse().ok()?),
                _ => return None,
            };
            // The scores that authd writes are exact. Another score saturates.
            Some(Ban { subject, until: until as u64 })
        };
        Ok(found.into_iter().filter_map(ban).collect())
    }

    /// Forgets the failures of a subject. Returns true if a ban was in effect.
    pub(super) async fn lift(&self, subject: &BanSubject) -> Result<bool, LinkError> {
        let (failures, member) = match subject {
            BanSubject::Address(address) => {
                (self.keys.failures_of_address(*address), format!("address:{address}"))
            }
            BanSubject::User(name) => (self.keys.failures_of_user(name.as_str()), format!("user:{name}")),
        };
        let mut call = self.lift.key(self.keys.bans());
        call.key(failures).arg(member);
        self.link.script(&call).await
    }

    /// Forgets the user's known addresses.
    pub(super) async fn forget_addresses(&self, user: &UserName) -> Result<(), LinkError> {
        self.link.query(cmd("DEL").arg(self.keys.known_addresses(user.as_str()))).await
    }
}

/// At least 1: Redis rejects an expiry of 0.
fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}
