//! Counters of this process: the same rules as `step.lua`, for use without Redis and while Redis cannot be
//! reached.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    time::{Duration, Instant},
};

use common::clock::since_epoch;

use super::{
    ban::{Ban, BanKind, BanSubject},
    step::{LoginAttempt, StepOutcome, ThrottleLimits, ThrottleStep, Throttled},
};
use crate::accounts::name::UserName;

/// The counters of this process.
#[derive(Default)]
pub(super) struct LocalCounters {
    failures: HashMap<BanSubject, FailureCount>,
    /// Time of each user's last login from each known address.
    known: HashMap<(UserName, IpAddr), Instant>,
}

#[derive(Clone, Copy)]
struct FailureCount {
    failures: u32,
    banned_until: Instant,
    last_failure: Instant,
}

impl LocalCounters {
    /// Carries out a step. A ban in effect takes precedence; the step then counts nothing.
    pub(super) fn step(
        &mut self,
        step: ThrottleStep,
        attempt: LoginAttempt<'_>,
        limits: &ThrottleLimits,
        now: Instant,
    ) -> StepOutcome {
        // From a known address, failures of the user name do not count.
        let is_known = attempt.user.is_some_and(|user| self.is_known(user, attempt.address, limits, now));
        let counted = LoginAttempt { user: attempt.user.filter(|_| !is_known), ..attempt };
        let subjects = counted.subjects();
        if let Some(throttled) = self.longest_ban(&subjects, now) {
            return StepOutcome { throttled: Some(throttled), ..StepOutcome::default() };
        }
        match step {
            ThrottleStep::Check => StepOutcome::default(),
            ThrottleStep::Failed => {
                let began = subjects.map(|subject| self.count(subject?, limits, now));
                StepOutcome { throttled: None, began }
            }
            ThrottleStep::Succeeded => {
                if let [_, Some(user)] = &subjects {
                    self.failures.remove(user);
                }
                if let Some(user) = attempt.user {
                    self.remember(user, attempt.address, limits, now);
                }
                StepOutcome::default()
            }
        }
    }

    /// The bans in effect.
    pub(super) fn bans(&self, now: Instant) -> Vec<Ban> {
        let clock = since_epoch();
        let ban = |(subject, count): (&BanSubject, &FailureCount)| {
            let left = count.banned_until.saturating_duration_since(now);
            // Milliseconds since 1970 fit into 64 bits.
            let until = (clock + left).as_millis() as u64;
            (!left.is_zero()).then(|| Ban { subject: subject.clone(), until })
        };
        self.failures.iter().filter_map(ban).collect()
    }

    /// Forgets the failures of a subject. Returns true if a ban was in effect.
    pub(super) fn lift(&mut self, subject: &BanSubject, now: Instant) -> bool {
        self.failures.remove(subject).is_some_and(|count| count.banned_until > now)
    }

    /// Forgets the user's known addresses.
    pub(super) fn forget_addresses(&mut self, user: &UserName) {
        self.known.retain(|(other, _), _| other != user);
    }

    /// The longest ban of any of the subjects.
    fn longest_ban(&self, subjects: &[Option<BanSubject>], now: Instant) -> Option<Throttled> {
        let bans = subjects.iter().flatten().filter_map(|subject| {
            let wait = self.failures.get(subject)?.banned_until.saturating_duration_since(now);
            (!wait.is_zero()).then_some(Throttled { wait, kind: subject.kind() })
        });
        bans.max_by_key(|throttled| throttled.wait)
    }

    /// Returns true if the user has logged in from the address within `known_time`.
    fn is_known(&self, user: &UserName, address: IpAddr, limits: &ThrottleLimits, now: Instant) -> bool {
        let last = self.known.get(&(user.clone(), address));
        last.is_some_and(|last| now.duration_since(*last) < limits.known_time)
    }

    /// Remembers the address as one of the user's known addresses.
    fn remember(&mut self, user: &UserName, address: IpAddr, limits: &ThrottleLimits, now: Instant) {
        if limits.known_addresses == 0 {
            return;
        }
        let is_old = |last: &Instant| now.duration_since(*last) >= limits.known_time;
        let key = (user.clone(), address);
        if !self.known.contains_key(&key) {
            make_room(&mut self.known, limits.memory, is_old, |last| *last);
        }
        self.known.insert(key, now);
    }

    /// Counts a failure. Returns the duration of the ban that begins with it, if any.
    fn count(&mut self, subject: BanSubject, limits: &ThrottleLimits, now: Instant) -> Option<Duration> {
        let is_old = |count: &FailureCount| now.duration_since(count.last_failure) >= limits.window;
        let before = self.failures.get(&subject).filter(|count| !is_old(count)).map_or(0, |c| c.failures);
        if !self.failures.contains_key(&subject) {
            make_room(&mut self.failures, limits.memory, is_old, |count| count.last_failure);
        }
        let free = match subject.kind() {
            BanKind::Address => limits.free_of_address,
            BanKind::User => limits.free_of_user,
        };
        let failures = before.saturating_add(1);
        let delay = match failures.saturating_sub(free) {
            0 => Duration::ZERO,
            over => limits.delay.saturating_mul(1 << (over - 1).min(30)).min(limits.max_delay),
        };
        let count = FailureCount { failures, banned_until: now + delay, last_failure: now };
        self.failures.insert(subject, count);
        (!delay.is_zero()).then_some(delay)
    }
}

/// Makes room for one more entry: removes old entries, or else the oldest one.
fn make_room<K: Clone + Eq + Hash, V>(
    map: &mut HashMap<K, V>,
    max_entries: usize,
    is_old: impl Fn(&V) -> bool,
    last: impl Fn(&V) -> Instant,
) {
    if map.len() < max_entries {
        return;
    }
    map.retain(|_, value| !is_old(value));
    if map.len() >= max_entries
        && let Some((oldest, _)) = map.iter().min_by_key(|(_, value)| last(value))
    {
        let oldest = oldest.clone();
        map.remove(&oldest);
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
        trusted: Vec::new(),
        known_addresses: 10,
        known_time: Duration::from_secs(1000),
    };

    fn step(
        memory: &mut LocalCounters,
        step: ThrottleStep,
        attempt: LoginAttempt<'_>,
        limits: &ThrottleLimits,
        now: Instant,
    ) -> Result<(), Throttled> {
        memory.step(step, attempt, limits, now).throttled.map_or(Ok(()), Err)
    }

    fn attempt(user: &UserName, last: u8) -> LoginAttempt<'_> {
        LoginAttempt { user: Some(user), address: [10, 0, 0, last].into() }
    }

    #[test]
    fn ban_doubles_up_to_the_maximum_and_success_or_time_clears_it() {
        let (mut memory, mut now) = (LocalCounters::default(), Instant::now());
        let ann: UserName = "ann".parse().unwrap();
        let mut waits = Vec::new();
        for i in 0..7 {
            // Each attempt comes from another address, so only the name is banned.
            step(&mut memory, ThrottleStep::Failed, attempt(&ann, i), &LIMITS, now).unwrap();
            let wait = step(&mut memory, ThrottleStep::Check, attempt(&ann, i), &LIMITS, now).err();
            waits.push(wait.map_or(0, |throttled| throttled.wait.as_secs()));
            now += wait.map_or(Duration::ZERO, |throttled| throttled.wait);
        }
        assert_eq!(waits, [0, 0, 1, 2, 4, 5, 5]);
        step(&mut memory, ThrottleStep::Succeeded, attempt(&ann, 9), &LIMITS, now).unwrap();
        for _ in 0..2 {
            step(&mut memory, ThrottleStep::Failed, attempt(&ann, 20), &LIMITS, now).unwrap();
        }
        step(&mut memory, ThrottleStep::Check, attempt(&ann, 21), &LIMITS, now).unwrap();
        now += LIMITS.window;
        for _ in 0..2 {
            step(&mut memory, ThrottleStep::Failed, attempt(&ann, 22), &LIMITS, now).unwrap();
        }
        step(&mut memory, ThrottleStep::Check, attempt(&ann, 22), &LIMITS, now).unwrap();
    }

    #[test]
    fn address_failures_count_over_all_names_and_success_does_not_clear_them() {
        let (mut memory, now) = (LocalCounters::default(), Instant::now());
        let names: Vec<UserName> = (0..6).map(|i| format!("user{i}").parse().unwrap()).collect();
        for name in &names[..4] {
            step(&mut memory, ThrottleStep::Failed, attempt(name, 1), &LIMITS, now).unwrap();
        }
        step(&mut memory, ThrottleStep::Succeeded, attempt(&names[4], 1), &LIMITS, now).unwrap();
        step(
            &mut memory,
            ThrottleStep::Failed,
            LoginAttempt { user: None, ..attempt(&names[5], 1) },
            &LIMITS,
            now,
        )
        .unwrap();
        let throttled =
            step(&mut memory, ThrottleStep::Check, attempt(&names[5], 1), &LIMITS, now).unwrap_err();
        assert_eq!(throttled.kind, BanKind::Address);
        step(&mut memory, ThrottleStep::Check, attempt(&names[5], 2), &LIMITS, now).unwrap();
    }

    #[test]
    fn number_of_failure_counts_is_bounded() {
        let limits = ThrottleLimits { memory: 3, ..LIMITS };
        let (mut memory, now) = (LocalCounters::default(), Instant::now());
        for i in 0..100 {
            let name: UserName = format!("user{i}").parse().unwrap();
            let _ = step(&mut memory, ThrottleStep::Failed, attempt(&name, i), &limits, now);
            assert!(memory.failures.len() <= limits.memory);
        }
    }

    #[test]
    fn ban_of_a_user_name_does_not_apply_to_known_addresses() {
        let (mut memory, now) = (LocalCounters::default(), Instant::now());
        let ann: UserName = "ann".parse().unwrap();
        step(&mut memory, ThrottleStep::Succeeded, attempt(&ann, 1), &LIMITS, now).unwrap();
        for i in 0..3 {
            step(&mut memory, ThrottleStep::Failed, attempt(&ann, 50 + i), &LIMITS, now).unwrap();
        }
        let banned = step(&mut memory, ThrottleStep::Check, attempt(&ann, 2), &LIMITS, now).unwrap_err();
        assert_eq!(banned.kind, BanKind::User);
        step(&mut memory, ThrottleStep::Check, attempt(&ann, 1), &LIMITS, now).unwrap();
        // A login from the known address does not lift the ban for other addresses.
        step(&mut memory, ThrottleStep::Succeeded, attempt(&ann, 1), &LIMITS, now).unwrap();
        step(&mut memory, ThrottleStep::Check, attempt(&ann, 2), &LIMITS, now).unwrap_err();
        // Guessing from the known address bans that address.
        for _ in 0..5 {
            step(&mut memory, ThrottleStep::Failed, attempt(&ann, 1), &LIMITS, now).unwrap();
        }
        let banned = step(&mut memory, ThrottleStep::Check, attempt(&ann, 1), &LIMITS, now).unwrap_err();
        assert_eq!(banned.kind, BanKind::Address);
        // After `known_time`, the address is not known any more.
        let later = now + LIMITS.known_time;
        for i in 0..3 {
            step(&mut memory, ThrottleStep::Failed, attempt(&ann, 50 + i), &LIMITS, later).unwrap();
        }
        let banned = step(&mut memory, ThrottleStep::Check, attempt(&ann, 1), &LIMITS, later).unwrap_err();
        assert_eq!(banned.kind, BanKind::User);
    }

    #[test]
    fn forget_addresses_affects_only_that_user() {
        let (mut memory, now) = (LocalCounters::default(), Instant::now());
        let names: [UserName; 2] = ["ann", "ben"].map(|name| name.parse().unwrap());
        for name in &names {
            step(&mut memory, ThrottleStep::Succeeded, attempt(name, 1), &LIMITS, now).unwrap();
        }
        memory.forget_addresses(&names[0]);
        for (name, is_known) in names.iter().zip([false, true]) {
            for i in 0..3 {
                step(&mut memory, ThrottleStep::Failed, attempt(name, 50 + i), &LIMITS, now).unwrap();
            }
            let free = step(&mut memory, ThrottleStep::Check, attempt(name, 1), &LIMITS, now).is_ok();
            assert_eq!(free, is_known, "{name}");
        }
    }

    #[test]
    fn bans_are_listed_and_lifted() {
        let (mut memory, now) = (LocalCounters::default(), Instant::now());
        let ann: UserName = "ann".parse().unwrap();
        let mut began = Vec::new();
        for i in 0..3 {
            began.extend(memory.step(ThrottleStep::Failed, attempt(&ann, i), &LIMITS, now).began);
        }
        assert_eq!(began.into_iter().flatten().collect::<Vec<_>>(), [LIMITS.delay]);
        let subject = BanSubject::User(ann.clone());
        assert_eq!(memory.bans(now).iter().map(|ban| &ban.subject).collect::<Vec<_>>(), [&subject]);
        assert!(memory.lift(&subject, now) && !memory.lift(&subject, now));
        assert_eq!(memory.bans(now), []);
        step(&mut memory, ThrottleStep::Check, attempt(&ann, 1), &LIMITS, now).unwrap();
    }

    #[test]
    fn number_of_known_addresses_is_bounded() {
        let limits = ThrottleLimits { memory: 3, ..LIMITS };
        let (mut memory, now) = (LocalCounters::default(), Instant::now());
        let ann: UserName = "ann".parse().unwrap();
        for i in 0..100 {
            step(&mut memory, ThrottleStep::Succeeded, attempt(&ann, i), &limits, now).unwrap();
            assert!(memory.known.len() <= limits.memory);
        }
        let none = ThrottleLimits { known_addresses: 0, ..LIMITS };
        let mut memory = LocalCounters::default();
        step(&mut memory, ThrottleStep::Succeeded, attempt(&ann, 1), &none, now).unwrap();
        assert!(memory.known.is_empty());
    }
}
