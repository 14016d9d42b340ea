//! Failed logins, by user name and by address, over all nodes and authd instances: after the free
//! failures each further one bans the name or the address for twice as long.
//!
//! A ban of a name does not hold for addresses from which the user logged in of late, so that nobody
//! can lock a user out by failing on purpose; a ban of an address holds for all names. The counts are
//! in Redis. While it is away each process counts for itself, within bounds.

mod local;
mod shared;

use std::{
    fmt,
    net::IpAddr,
    str::FromStr,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use common::{
    client_network::network_of,
    keys::Keys,
    registry::{LinkError, RedisLink},
    sync::lock,
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use self::{local::LocalCounters, shared::SharedCounters};
use crate::{accounts::name::UserName, metrics};

/// When a login has to wait, and how long.
#[derive(Clone, Debug)]
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
    /// Logins from here never wait, and their failures do not count.
    pub trusted: Vec<IpNet>,
    /// How many addresses of a user's logins are known.
    pub known_addresses: u32,
    /// For how long after the login.
    pub known_time: Duration,
}

/// A login that has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Throttled {
    pub wait: Duration,
    pub by: BanKind,
}

/// Whose failures make a login wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BanKind {
    Address,
    User,
}

impl BanKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::User => "user",
        }
    }
}

/// Whose failures are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum BanSubject {
    /// An IPv4 address, or the first address of an IPv6 /64 network.
    Address(IpAddr),
    User(UserName),
}

/// A ban that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ban {
    pub subject: BanSubject,
    /// In milliseconds since the Unix epoch.
    pub until: u64,
}

/// The text names no address, and no network of which failures are counted together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("neither an IP address nor an IPv6 /64 network")]
pub struct InvalidAddress;

impl BanSubject {
    /// What counts together with an address, or with a network as [`Display`](fmt::Display) shows it.
    ///
    /// # Errors
    /// The text is none of both.
    pub fn address(text: &str) -> Result<Self, InvalidAddress> {
        let address = match text.split_once('/') {
            None => IpAddr::from_str(text).map_err(|_| InvalidAddress)?,
            Some(_) => {
                let net = IpNet::from_str(text).map_err(|_| InvalidAddress)?;
                let whole = if net.addr().is_ipv4() { 32 } else { 64 };
                if net.prefix_len() == whole { net.addr() } else { return Err(InvalidAddress) }
            }
        };
        Ok(Self::Address(network_of(address)))
    }

    pub fn by(&self) -> BanKind {
        match self {
            Self::Address(_) => BanKind::Address,
            Self::User(_) => BanKind::User,
        }
    }
}

impl fmt::Display for BanSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(IpAddr::V6(network)) => write!(f, "{network}/64"),
            Self::Address(address) => address.fmt(f),
            Self::User(name) => name.fmt(f),
        }
    }
}

/// What happened, as the script names it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ThrottleStep {
    Check,
    Failed,
    Succeeded,
}

/// What came of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct StepOutcome {
    throttled: Option<Throttled>,
    /// How long the address, and the user, are banned from now on.
    began: [Option<Duration>; 2],
}

/// Who tries to log in. A name that no user can have is counted for its address alone.
#[derive(Clone, Copy, Debug)]
pub struct LoginAttempt<'a> {
    pub user: Option<&'a UserName>,
    pub address: IpAddr,
}

/// The throttle of a process.
pub struct Throttle {
    limits: ThrottleLimits,
    shared: Option<SharedCounters>,
    own: Mutex<LocalCounters>,
}

impl Throttle {
    /// Without `redis` this process counts for itself.
    pub fn new(limits: ThrottleLimits, redis: Option<(RedisLink, Keys)>) -> Self {
        let shared = redis.map(|(link, keys)| SharedCounters::new(link, keys));
        Self { limits, shared, own: Mutex::default() }
    }

    /// Whether an attempt may be made now.
    ///
    /// # Errors
    /// Not yet.
    pub async fn check(&self, attempt: LoginAttempt<'_>) -> Result<(), Throttled> {
        self.step(ThrottleStep::Check, attempt).await
    }

    /// Counts a failure.
    ///
    /// # Errors
    /// Another attempt has closed the door meanwhile: the answer is the throttle's.
    pub async fn failed(&self, attempt: LoginAttempt<'_>) -> Result<(), Throttled> {
        self.step(ThrottleStep::Failed, attempt).await
    }

    /// Forgets the user's failures, and remembers the address as one of the user's.
    ///
    /// # Errors
    /// As [`failed`](Self::failed): the login must be refused, although the password was right.
    pub async fn succeeded(&self, attempt: LoginAttempt<'_>) -> Result<(), Throttled> {
        self.step(ThrottleStep::Succeeded, attempt).await
    }

    /// The bans that hold now, those that end first at the beginning.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn bans(&self) -> Result<Vec<Ban>, LinkError> {
        let mut bans = match &self.shared {
            Some(shared) => shared.bans().await?,
            None => self.own().bans(Instant::now()),
        };
        bans.sort_by_key(|ban| ban.until);
        Ok(bans)
    }

    /// Forgets the failures of a user or an address; whether they made logins wait.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn lift(&self, subject: &BanSubject) -> Result<bool, LinkError> {
        // Counted here while Redis was away, and counting again when it is the next time.
        let own = self.own().lift(subject, Instant::now());
        let lifted = match &self.shared {
            Some(shared) => shared.lift(subject).await?,
            None => own,
        };
        if lifted {
            metrics::ban_lifted(subject.by());
            log::info!(by = subject.by().as_str(), name:% = subject; "ban lifted");
        }
        Ok(lifted)
    }

    /// From now on no address is one of the user's: those that were may be of whoever knew a password
    /// that is not right any more.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn forget_addresses(&self, user: &UserName) -> Result<(), LinkError> {
        self.own().forget_addresses(user);
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
            None => self.own().step(step, attempt, &self.limits, Instant::now()),
        };
        let subjects =
            [Some(BanSubject::Address(attempt.address)), attempt.user.cloned().map(BanSubject::User)];
        for (subject, time) in subjects.into_iter().zip(outcome.began) {
            if let (Some(subject), Some(time)) = (subject, time) {
                metrics::ban_began(subject.by());
                let wait = time.as_secs_f64();
                log::warn!(by = subject.by().as_str(), name:% = subject, wait; "ban begins");
            }
        }
        outcome.throttled.map_or(Ok(()), Err)
    }

    /// `None`: Redis cannot do it now.
    async fn shared_step(&self, step: ThrottleStep, attempt: LoginAttempt<'_>) -> Option<StepOutcome> {
        match self.shared.as_ref()?.step(step, attempt, &self.limits).await {
            Ok(outcome) => Some(outcome),
            // The link's log says when Redis goes away and comes back.
            Err(LinkError::Away | LinkError::Denied) => None,
            Err(error @ LinkError::Reply(_)) => {
                log::error!(error:? = error; "the throttle's step in Redis failed");
                None
            }
        }
    }

    fn own(&self) -> MutexGuard<'_, LocalCounters> {
        lock(&self.own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_counts_by_network_and_ipv4_by_address_however_it_is_written() {
        for (text, shown) in [
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("2001:db8:1:2::/64", "2001:db8:1:2::/64"),
            ("192.0.2.7", "192.0.2.7"),
            ("192.0.2.7/32", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
        ] {
            let subject = BanSubject::address(text).unwrap();
            assert_eq!(subject.to_string(), shown);
            assert_eq!(BanSubject::address(shown).unwrap(), subject);
        }
        for text in ["", "ann", "192.0.2.0/24", "2001:db8::/32", "2001:db8::1/128", "192.0.2.7/x"] {
            assert_eq!(BanSubject::address(text), Err(InvalidAddress), "{text}");
        }
    }
}
