//! The steps of a login attempt as the throttle sees them, the limits, and the result of a step.

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;

use super::ban::{BanKind, BanSubject};
use crate::accounts::name::UserName;

/// Limits of the throttle.
#[derive(Clone, Debug)]
pub struct ThrottleLimits {
    /// Number of failures of a user name without a ban.
    pub free_of_user: u32,
    /// Number of failures of an address without a ban.
    pub free_of_address: u32,
    /// Duration of the ban after the first failure beyond the free ones. Each further failure doubles it.
    pub delay: Duration,
    /// Maximum duration of a ban.
    pub max_delay: Duration,
    /// Failures are forgotten this long after the last one.
    pub window: Duration,
    /// Maximum number of names and addresses that this process counts itself while Redis cannot be reached.
    pub memory: usize,
    /// Networks whose logins are never banned and whose failures do not count.
    pub trusted: Vec<IpNet>,
    /// Maximum number of known addresses per user: addresses from which the user has logged in.
    pub known_addresses: u32,
    /// An address stays known this long after the last login from it.
    pub known_time: Duration,
}

/// A login that is refused because of a ban.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Throttled {
    /// Remaining time of the ban.
    pub wait: Duration,
    pub kind: BanKind,
}

/// An attempt to log in. A name that cannot be a user's is `None`; only the address is counted then.
#[derive(Clone, Copy, Debug)]
pub struct LoginAttempt<'a> {
    pub user: Option<&'a UserName>,
    pub address: IpAddr,
}

impl LoginAttempt<'_> {
    /// The subjects that the attempt counts for: the address, and the user.
    pub fn subjects(&self) -> [Option<BanSubject>; 2] {
        [Some(BanSubject::Address(self.address)), self.user.cloned().map(BanSubject::User)]
    }
}

/// A step of a login attempt.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ThrottleStep {
    /// Before the password is verified.
    Check,
    Failed,
    Succeeded,
}

impl ThrottleStep {
    /// The step as `step.lua` spells it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Failed => "failed",
            Self::Succeeded => "succeeded",
        }
    }
}

/// Result of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StepOutcome {
    /// The ban that was in effect before the step. The step has then counted nothing.
    pub throttled: Option<Throttled>,
    /// Durations of the bans that began with this step: of the address, and of the user.
    pub began: [Option<Duration>; 2],
}
