//! Failed logins, by user name and by address, over all nodes and authd instances: after the free
//! failures each further one doubles the time before the next attempt.
//!
//! The counts are in Redis. While it is away each process counts for itself, within bounds.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use common::{
    keys::Keys,
    registry::{LinkError, RedisLink},
};
use redis::Script;

use crate::accounts::user::UserName;

/// When a login has to wait, and how long.
#[derive(Clone, Copy, Debug)]
pub struct ThrottleLimits {
    pub free_of_user: u32,
    pub free_of_address: u32,
    /// The wait after the first failure beyond the free ones.
    pub delay: Duration,
    pub max_delay: Duration,
    /// For how long failures are remembered.
    pub window: Duration,
    /// How many names and addresses this process counts for itself.
    pub memory: usize,
}

/// A login that has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Throttled {
    pub wait: Duration,
    pub by: By,
}

/// Whose failures make a login wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Address,
    User,
}

impl By {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::User => "user",
        }
    }
}

/// What happened, as the script names it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Check,
    Failed,
    Succeeded,
}

impl Step {
    fn as_str(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Failed => "failed",
            Self::Succeeded => "succeeded",
        }
    }
}

/// Who tries to log in. A name that no user can have is counted for its address alone.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    pub user: Option<&'a UserName>,
    pub address: IpAddr,
}

/// The throttle of a process.
pub struct Throttle {
    limits: ThrottleLimits,
    shared: Option<Shared>,
    own: Mutex<Memory>,
}

struct Shared {
    link: RedisLink,
    keys: Keys,
    script: Script,
}

impl Throttle {
    /// Without `redis` this process counts for itself.
    pub fn new(limits: ThrottleLimits, redis: Option<(RedisLink, Keys)>) -> Self {
        let script = || Script::new(include_str!("throttle.lua"));
        Self {
            limits,
            shared: redis.map(|(link, keys)| Shared { link, keys, script: script() }),
            own: Mutex::default(),
        }
    }

    /// Whether an attempt may be made now.
    ///
    /// # Errors
    /// Not yet.
    pub async fn check(&self, attempt: Attempt<'_>) -> Result<(), Throttled> {
        self.step(Step::Check, attempt).await
    }

    /// Counts a failure.
    ///
    /// # Errors
    /// Another attempt has closed the door meanwhile: the answer is the throttle's.
    pub async fn failed(&self, attempt: Attempt<'_>) -> Result<(), Throttled> {
        self.step(Step::Failed, attempt).await
    }

    /// Forgets the user's failures.
    ///
    /// # Errors
    /// As [`failed`](Self::failed): the login must be refused, although the password was right.
    pub async fn succeeded(&self, attempt: Attempt<'_>) -> Result<(), Throttled> {
        self.step(Step::Succeeded, attempt).await
    }

    async fn step(&self, step: Step, attempt: Attempt<'_>) -> Result<(), Throttled> {
        let attempt = Attempt { address: network(attempt.address), ..attempt };
        if let Some(shared) = &self.shared {
            match shared.step(step, attempt, &self.limits).await {
                Ok(result) => return result,
                // The link's log says when Redis goes away and comes back.
                Err(LinkError::Away) => {}
                Err(error @ LinkError::Reply(_)) => {
                    log::error!(error:? = error; "the throttle's step in Redis failed");
                }
            }
        }
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        own.step(step, attempt, &self.limits, Instant::now())
    }
}

impl Shared {
    async fn step(
        &self,
        step: Step,
        attempt: Attempt<'_>,
        limits: &ThrottleLimits,
    ) -> Result<Result<(), Throttled>, LinkError> {
        let mut call = self.script.key(self.keys.failures_of_address(attempt.address));
        if let Some(user) = attempt.user {
            call.key(self.keys.failures_of_user(user.as_str()));
        }
        call.arg(step.as_str());
        for time in [limits.delay, limits.max_delay, limits.window] {
            call.arg(milliseconds(time));
        }
        call.arg(limits.free_of_address).arg(limits.free_of_user);
        let (wait, by): (u64, u32) = self.link.script(&call).await?;
        Ok(match by {
            0 => Ok(()),
            1 => Err(Throttled { wait: Duration::from_millis(wait), by: By::Address }),
            _ => Err(Throttled { wait: Duration::from_millis(wait), by: By::User }),
        })
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// What of an address counts: a client with IPv6 has a whole /64 network (RFC 6177).
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address => address,
    }
}

/// The script's rules in this process.
#[derive(Default)]
struct Memory(HashMap<Key, Failures>);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Key {
    Address(IpAddr),
    User(UserName),
}

#[derive(Clone, Copy)]
struct Failures {
    number: u32,
    until: Instant,
    last: Instant,
}

impl Memory {
    fn step(
        &mut self,
        step: Step,
        attempt: Attempt<'_>,
        limits: &ThrottleLimits,
        now: Instant,
    ) -> Result<(), Throttled> {
        let address = (Key::Address(attempt.address), By::Address, limits.free_of_address);
        let user = attempt.user.map(|user| (Key::User(user.clone()), By::User, limits.free_of_user));
        let keys: Vec<_> = [Some(address), user].into_iter().flatten().collect();
        let waits = keys.iter().filter_map(|(key, by, _)| {
            let wait = self.0.get(key)?.until.saturating_duration_since(now);
            (!wait.is_zero()).then_some(Throttled { wait, by: *by })
        });
        if let Some(throttled) = waits.max_by_key(|throttled| throttled.wait) {
            return Err(throttled);
        }
        for (key, by, free) in keys {
            match step {
                Step::Failed => self.count(key, free, limits, now),
                Step::Succeeded if by == By::User => drop(self.0.remove(&key)),
                Step::Succeeded | Step::Check => {}
            }
        }
        Ok(())
    }

    fn count(&mut self, key: Key, free: u32, limits: &ThrottleLimits, now: Instant) {
        let is_old = |failures: &Failures| now.duration_since(failures.last) >= limits.window;
        let before = self.0.get(&key).filter(|failures| !is_old(failures)).map_or(0, |f| f.number);
        if !self.0.contains_key(&key) && self.0.len() >= limits.memory {
            self.0.retain(|_, failures| !is_old(failures));
            if self.0.len() >= limits.memory
                && let Some(oldest) = self.0.iter().min_by_key(|(_, failures)| failures.last)
            {
                let oldest = oldest.0.clone();
                self.0.remove(&oldest);
            }
        }
        let number = before.saturating_add(1);
        let delay = match number.saturating_sub(free) {
            0 => Duration::ZERO,
            over => limits.delay.saturating_mul(1 << (over - 1).min(30)).min(limits.max_delay),
        };
        self.0.insert(key, Failures { number, until: now + delay, last: now });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ThrottleLimits = ThrottleLimits {
        free_of_user: 2,
        free_of_address: 4,
        delay: Duration::from_secs(1),
        max_delay: Duration::from_secs(5),
        window: Duration::from_secs(100),
        memory: 100,
    };

    fn attempt(user: &UserName, last: u8) -> Attempt<'_> {
        Attempt { user: Some(user), address: [10, 0, 0, last].into() }
    }

    #[test]
    fn waits_double_up_to_the_longest_and_a_success_or_time_ends_them() {
        let (mut memory, mut now) = (Memory::default(), Instant::now());
        let ann: UserName = "ann".parse().unwrap();
        let mut waits = Vec::new();
        for i in 0..7 {
            // Each from another address, so that only the name counts.
            memory.step(Step::Failed, attempt(&ann, i), &LIMITS, now).unwrap();
            let wait = memory.step(Step::Check, attempt(&ann, i), &LIMITS, now).err();
            waits.push(wait.map_or(0, |throttled| throttled.wait.as_secs()));
            now += wait.map_or(Duration::ZERO, |throttled| throttled.wait);
        }
        assert_eq!(waits, [0, 0, 1, 2, 4, 5, 5]);
        memory.step(Step::Succeeded, attempt(&ann, 9), &LIMITS, now).unwrap();
        for _ in 0..2 {
            memory.step(Step::Failed, attempt(&ann, 20), &LIMITS, now).unwrap();
        }
        memory.step(Step::Check, attempt(&ann, 21), &LIMITS, now).unwrap();
        now += LIMITS.window;
        for _ in 0..2 {
            memory.step(Step::Failed, attempt(&ann, 22), &LIMITS, now).unwrap();
        }
        memory.step(Step::Check, attempt(&ann, 22), &LIMITS, now).unwrap();
    }

    #[test]
    fn an_address_counts_over_all_names_and_a_success_does_not_clear_it() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        let names: Vec<UserName> = (0..6).map(|i| format!("user{i}").parse().unwrap()).collect();
        for name in &names[..4] {
            memory.step(Step::Failed, attempt(name, 1), &LIMITS, now).unwrap();
        }
        memory.step(Step::Succeeded, attempt(&names[4], 1), &LIMITS, now).unwrap();
        memory.step(Step::Failed, Attempt { user: None, ..attempt(&names[5], 1) }, &LIMITS, now).unwrap();
        let throttled = memory.step(Step::Check, attempt(&names[5], 1), &LIMITS, now).unwrap_err();
        assert_eq!(throttled.by, By::Address);
        memory.step(Step::Check, attempt(&names[5], 2), &LIMITS, now).unwrap();
    }

    #[test]
    fn memory_is_bounded() {
        let limits = ThrottleLimits { memory: 3, ..LIMITS };
        let (mut memory, now) = (Memory::default(), Instant::now());
        for i in 0..100 {
            let name: UserName = format!("user{i}").parse().unwrap();
            let _ = memory.step(Step::Failed, attempt(&name, i), &limits, now);
            assert!(memory.0.len() <= limits.memory);
        }
    }

    #[test]
    fn ipv6_counts_by_network_and_ipv4_by_address_however_it_is_written() {
        let shown = |text: &str| network(text.parse().unwrap()).to_string();
        assert_eq!(shown("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(shown("192.0.2.7"), "192.0.2.7");
        assert_eq!(shown("::ffff:192.0.2.7"), "192.0.2.7");
    }
}
