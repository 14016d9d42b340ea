//! The script's rules in this process, for where there is no Redis and for while it is away.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    time::{Duration, Instant},
};

use common::clock::since_epoch;

use super::{Ban, BanKind, BanSubject, LoginAttempt, StepOutcome, ThrottleLimits, ThrottleStep, Throttled};
use crate::accounts::name::UserName;

/// What this process has counted.
#[derive(Default)]
pub struct LocalCounters {
    failures: HashMap<BanSubject, FailureCount>,
    /// When users last logged in from where.
    known: HashMap<(UserName, IpAddr), Instant>,
}

#[derive(Clone, Copy)]
struct FailureCount {
    number: u32,
    until: Instant,
    last: Instant,
}

impl LocalCounters {
    pub fn step(
        &mut self,
        step: ThrottleStep,
        attempt: LoginAttempt<'_>,
        limits: &ThrottleLimits,
        now: Instant,
    ) -> StepOutcome {
        let counted = attempt.user.filter(|user| !self.is_known(user, attempt.address, limits, now));
        let subjects = [Some(BanSubject::Address(attempt.address)), counted.cloned().map(BanSubject::User)];
        let waits = subjects.iter().flatten().filter_map(|subject| {
            let wait = self.failures.get(subject)?.until.saturating_duration_since(now);
            (!wait.is_zero()).then_some(Throttled { wait, by: subject.by() })
        });
        if let Some(throttled) = waits.max_by_key(|throttled| throttled.wait) {
            return StepOutcome { throttled: Some(throttled), ..StepOutcome::default() };
        }
        match step {
            ThrottleStep::Check => StepOutcome::default(),
            ThrottleStep::Failed => StepOutcome {
                throttled: None,
                began: subjects.map(|subject| self.count(subject?, limits, now)),
            },
            ThrottleStep::Succeeded => {
                if let [_, Some(user)] = &subjects {
                    self.failures.remove(user);
                }
                if let Some(user) = attempt.user.filter(|_| limits.known_addresses > 0) {
                    let is_old = |last: &Instant| now.duration_since(*last) >= limits.known_time;
                    let place = (user.clone(), attempt.address);
                    if !self.known.contains_key(&place) {
                        make_room(&mut self.known, limits.memory, is_old, |last| *last);
                    }
                    self.known.insert(place, now);
                }
                StepOutcome::default()
            }
        }
    }

    /// The bans that hold now.
    pub fn bans(&self, now: Instant) -> Vec<Ban> {
        let clock = since_epoch();
        let ban = |(subject, failures): (&BanSubject, &FailureCount)| {
            let left = failures.until.saturating_duration_since(now);
            // Milliseconds since 1970 fit.
            let until = (clock + left).as_millis() as u64;
            (!left.is_zero()).then(|| Ban { subject: subject.clone(), until })
        };
        self.failures.iter().filter_map(ban).collect()
    }

    /// Forgets failures; whether they made logins wait.
    pub fn lift(&mut self, subject: &BanSubject, now: Instant) -> bool {
        self.failures.remove(subject).is_some_and(|failures| failures.until > now)
    }

    pub fn forget_addresses(&mut self, user: &UserName) {
        self.known.retain(|(other, _), _| other != user);
    }

    fn is_known(&self, user: &UserName, address: IpAddr, limits: &ThrottleLimits, now: Instant) -> bool {
        let last = self.known.get(&(user.clone(), address));
        last.is_some_and(|last| now.duration_since(*last) < limits.known_time)
    }

    fn count(&mut self, subject: BanSubject, limits: &ThrottleLimits, now: Instant) -> Option<Duration> {
        let is_old = |failures: &FailureCount| now.duration_since(failures.last) >= limits.window;
        let before = self.failures.get(&subject).filter(|failures| !is_old(failures)).map_or(0, |f| f.number);
        if !self.failures.contains_key(&subject) {
            make_room(&mut self.failures, limits.memory, is_old, |failures| failures.last);
        }
        let free = match subject.by() {
            BanKind::Address => limits.free_of_address,
            BanKind::User => limits.free_of_user,
        };
        let number = before.saturating_add(1);
        let delay = match number.saturating_sub(free) {
            0 => Duration::ZERO,
            over => limits.delay.saturating_mul(1 << (over - 1).min(30)).min(limits.max_delay),
        };
        self.failures.insert(subject, FailureCount { number, until: now + delay, last: now });
        (!delay.is_zero()).then_some(delay)
    }
}

/// Makes place for one more: what is old goes, or else what is oldest.
fn make_room<K: Clone + Eq + Hash, V>(
    map: &mut HashMap<K, V>,
    size: usize,
    is_old: impl Fn(&V) -> bool,
    last: impl Fn(&V) -> Instant,
) {
    if map.len() < size {
        return;
    }
    map.retain(|_, value| !is_old(value));
    if map.len() >= size
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
    fn waits_double_up_to_the_longest_and_a_success_or_time_ends_them() {
        let (mut memory, mut now) = (LocalCounters::default(), Instant::now());
        let ann: UserName = "ann".parse().unwrap();
        let mut waits = Vec::new();
        for i in 0..7 {
            // Each from another address, so that only the name counts.
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
    fn an_address_counts_over_all_names_and_a_success_does_not_clear_it() {
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
        assert_eq!(throttled.by, BanKind::Address);
        step(&mut memory, ThrottleStep::Check, attempt(&names[5], 2), &LIMITS, now).unwrap();
    }

    #[test]
    fn memory_is_bounded() {
        let limits = ThrottleLimits { memory: 3, ..LIMITS };
        let (mut memory, now) = (LocalCounters::default(), Instant::now());
        for i in 0..100 {
            let name: UserName = format!("user{i}").parse().unwrap();
            let _ = step(&mut memory, ThrottleStep::Failed, attempt(&name, i), &limits, now);
            assert!(memory.failures.len() <= limits.memory);
        }
    }

    #[test]
    fn a_banned_name_is_not_banned_where_its_user_logged_in_of_late() {
        let (mut memory, now) = (LocalCounters::default(), Instant::now());
        let ann: UserName = "ann".parse().unwrap();
        step(&mut memory, ThrottleStep::Succeeded, attempt(&ann, 1), &LIMITS, now).unwrap();
        for i in 0..3 {
            step(&mut memory, ThrottleStep::Failed, attempt(&ann, 50 + i), &LIMITS, now).unwrap();
        }
        let banned = step(&mut memory, ThrottleStep::Check, attempt(&ann, 2), &LIMITS, now).unwrap_err();
        assert_eq!(banned.by, BanKind::User);
        step(&mut memory, ThrottleStep::Check, attempt(&ann, 1), &LIMITS, now).unwrap();
        // A success there tells nothing of the strangers.
        step(&mut memory, ThrottleStep::Succeeded, attempt(&ann, 1), &LIMITS, now).unwrap();
        step(&mut memory, ThrottleStep::Check, attempt(&ann, 2), &LIMITS, now).unwrap_err();
        // It is no place to guess from either.
        for _ in 0..5 {
            step(&mut memory, ThrottleStep::Failed, attempt(&ann, 1), &LIMITS, now).unwrap();
        }
        let banned = step(&mut memory, ThrottleStep::Check, attempt(&ann, 1), &LIMITS, now).unwrap_err();
        assert_eq!(banned.by, BanKind::Address);
        // Not for ever.
        let later = now + LIMITS.known_time;
        for i in 0..3 {
            step(&mut memory, ThrottleStep::Failed, attempt(&ann, 50 + i), &LIMITS, later).unwrap();
        }
        let banned = step(&mut memory, ThrottleStep::Check, attempt(&ann, 1), &LIMITS, later).unwrap_err();
        assert_eq!(banned.by, BanKind::User);
    }

    #[test]
    fn a_users_addresses_are_forgotten_and_nobody_elses() {
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
    fn bans_are_shown_and_lifted() {
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
    fn what_is_known_is_bounded_too() {
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
