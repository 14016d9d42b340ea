//! Slows down guessing of tokens at the page's login: failures are counted by client address.
//!
//! This is not the throttle of FTP logins: an administrator's name is no user's name, and an FTP client that
//! guesses must not keep an administrator out.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use common::client_network::network_of;

/// Failures of an address without a delay.
const FREE_FAILURES: u32 = 5;

/// The delay after the first failure beyond the free ones. Each further failure doubles it.
const FIRST_DELAY: Duration = Duration::from_secs(1);

const LONGEST_DELAY: Duration = Duration::from_secs(15 * 60);

/// Failures are forgotten this long after the last one.
const WINDOW: Duration = Duration::from_secs(3600);

/// Maximum number of addresses. A further one displaces the oldest.
const MAX_ADDRESSES: usize = 10_000;

/// The failures of each address; IPv6: of each /64 network.
#[derive(Default)]
pub(super) struct LoginLimiter(HashMap<Option<IpAddr>, PageFailures>);

#[derive(Clone, Copy)]
struct PageFailures {
    count: u32,
    last: Instant,
    /// No attempt is accepted until then.
    until: Instant,
}

impl LoginLimiter {
    /// # Errors
    /// The address has to wait this long.
    pub(super) fn check(&self, address: Option<IpAddr>) -> Result<(), Duration> {
        let failures = self.0.get(&key(address));
        let wait = failures.map(|failures| failures.until.saturating_duration_since(Instant::now()));
        match wait.filter(|wait| !wait.is_zero()) {
            Some(wait) => Err(wait),
            None => Ok(()),
        }
    }

    pub(super) fn failed(&mut self, address: Option<IpAddr>) {
        let (now, key) = (Instant::now(), key(address));
        let is_old = |failures: &PageFailures| now.duration_since(failures.last) >= WINDOW;
        let before = self.0.get(&key).filter(|failures| !is_old(failures)).map_or(0, |found| found.count);
        if !self.0.contains_key(&key) && self.0.len() >= MAX_ADDRESSES {
            self.0.retain(|_, failures| !is_old(failures));
            if self.0.len() >= MAX_ADDRESSES
                && let Some(oldest) = self.0.iter().min_by_key(|(_, failures)| failures.last)
            {
                let oldest = *oldest.0;
                self.0.remove(&oldest);
            }
        }
        let count = before.saturating_add(1);
        let delay = match count.saturating_sub(FREE_FAILURES) {
            0 => Duration::ZERO,
            over => FIRST_DELAY.saturating_mul(1 << (over - 1).min(16)).min(LONGEST_DELAY),
        };
        self.0.insert(key, PageFailures { count, last: now, until: now + delay });
    }

    pub(super) fn succeeded(&mut self, address: Option<IpAddr>) {
        self.0.remove(&key(address));
    }
}

fn key(address: Option<IpAddr>) -> Option<IpAddr> {
    address.map(|address| network_of(address.to_canonical()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(failures: u32) -> LoginLimiter {
        let mut limiter = LoginLimiter::default();
        (0..failures).for_each(|_| limiter.failed(address("192.0.2.1")));
        limiter
    }

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn delays_grow_to_the_longest_and_end_with_a_success() {
        assert_eq!(after(5).check(address("192.0.2.1")), Ok(()));
        let wait = |failures| after(failures).check(address("192.0.2.1")).unwrap_err().as_secs_f64().ceil();
        assert_eq!([wait(6), wait(7), wait(9), wait(40)], [1.0, 2.0, 8.0, 900.0]);
        let mut limiter = after(40);
        assert_eq!(limiter.check(address("192.0.2.2")), Ok(()));
        assert!(limiter.check(address("::ffff:192.0.2.1")).is_err());
        limiter.succeeded(address("192.0.2.1"));
        assert_eq!(limiter.check(address("192.0.2.1")), Ok(()));
    }

    #[test]
    fn memory_is_bounded() {
        let mut limiter = after(40);
        for number in 0..MAX_ADDRESSES as u32 + 10 {
            limiter.failed(Some(IpAddr::from((0x0a00_0000 + number).to_be_bytes())));
        }
        assert_eq!(limiter.0.len(), MAX_ADDRESSES);
    }
}
