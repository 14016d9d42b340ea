//! What our node is to reach, and whether it did. Pure.

use crate::servers::Kind;

/// One goal: a figure of ours, and its bound.
pub struct Goal {
    pub workload: &'static str,
    pub encrypted: bool,
    /// Whose figure it is.
    pub of: Kind,
    pub figure: &'static str,
    pub bound: Bound,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// No more than this.
    AtMost(f64),
    /// No more than this many times the figure of another server in the same rounds.
    Times(f64, Kind),
    /// No less than that.
    TimesAtLeast(f64, Kind),
    AtLeast(f64),
}

impl Bound {
    /// Whether a figure, or its ratio to the other server's, keeps the bound.
    pub fn is_kept(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) | Self::Times(most, _) => value <= most,
            Self::AtLeast(least) | Self::TimesAtLeast(least, _) => value >= least,
        }
    }
}

const fn goal(workload: &'static str, encrypted: bool, figure: &'static str, bound: Bound) -> Goal {
    Goal { workload, encrypted, of: Kind::Ftpd, figure, bound }
}

const fn times(workload: &'static str, encrypted: bool, factor: f64, kind: Kind) -> Goal {
    goal(workload, encrypted, "cpu", Bound::Times(factor, kind))
}

const fn rate(workload: &'static str, encrypted: bool, factor: f64, kind: Kind) -> Goal {
    goal(workload, encrypted, "rate", Bound::TimesAtLeast(factor, kind))
}

const fn behind(workload: &'static str) -> Goal {
    let bound = Bound::Times(1.05, Kind::Ftpd);
    Goal { workload, encrypted: false, of: Kind::Balancer, figure: "cpu", bound }
}

/// What a change is held against.
pub static GOALS: &[Goal] = &[
    times("retr-1", false, 1.05, Kind::Null),
    times("retr-8", false, 1.05, Kind::Null),
    times("stor-1", false, 1.05, Kind::Null),
    times("stor-8", false, 1.05, Kind::Null),
    times("stor-1", false, 0.92, Kind::PureFtpd),
    times("stor-8", false, 0.92, Kind::PureFtpd),
    times("retr-1", true, 0.65, Kind::PureFtpd),
    times("retr-8", true, 0.65, Kind::PureFtpd),
    times("stor-1", true, 0.75, Kind::PureFtpd),
    times("stor-8", true, 0.75, Kind::PureFtpd),
    times("small-get", false, 0.85, Kind::PureFtpd),
    times("small-put", false, 0.85, Kind::PureFtpd),
    rate("small-get", false, 1.0, Kind::PureFtpd),
    rate("small-put", false, 1.0, Kind::PureFtpd),
    times("small-get", true, 0.9, Kind::Unftp),
    times("small-put", true, 0.9, Kind::Unftp),
    rate("small-get", true, 1.8, Kind::PureFtpd),
    rate("small-put", true, 1.8, Kind::PureFtpd),
    times("list", false, 0.85, Kind::PureFtpd),
    times("list", true, 0.85, Kind::PureFtpd),
    times("mlsd", false, 0.85, Kind::PureFtpd),
    times("mlsd", true, 0.85, Kind::PureFtpd),
    goal("list", false, "first byte ms", Bound::AtMost(5.0)),
    goal("mlsd", false, "first byte ms", Bound::AtMost(5.0)),
    goal("million", false, "first byte ms", Bound::AtMost(5.0)),
    goal("million", false, "peak growth MiB", Bound::AtMost(1.0)),
    times("login-16", false, 1.0, Kind::Unftp),
    times("login-16", true, 1.0, Kind::Unftp),
    behind("balancer-retr"),
    behind("balancer-stor"),
    behind("balancer-small"),
    goal("idle", false, "PSS KiB", Bound::AtMost(4.0)),
    goal("idle", true, "PSS KiB", Bound::AtMost(16.0)),
    goal("idle", false, "idle CPU ms/s", Bound::AtMost(1.0)),
    goal("idle", true, "idle CPU ms/s", Bound::AtMost(1.0)),
    goal("many", false, "fairness", Bound::AtLeast(0.99)),
    goal("many", false, "slowest MB/s", Bound::AtLeast(0.9)),
    goal("many", false, "NOOP p99 ms", Bound::AtMost(5.0)),
    goal("many", false, "PSS KiB per transfer", Bound::AtMost(40.0)),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workloads::WORKLOADS;

    #[test]
    fn every_goal_is_of_a_workload_that_measures_both_servers() {
        for goal in GOALS {
            let workload = WORKLOADS.iter().find(|w| w.name == goal.workload).unwrap();
            assert!(workload.modes.contains(&goal.encrypted), "{}", goal.workload);
            let reference = match goal.bound {
                Bound::Times(_, kind) | Bound::TimesAtLeast(_, kind) => Some(kind),
                Bound::AtMost(_) | Bound::AtLeast(_) => None,
            };
            for kind in [Some(goal.of), reference].into_iter().flatten() {
                assert!(workload.kinds.contains(&kind), "{}", goal.workload);
                assert!(kind.encrypts() || !goal.encrypted, "{}", goal.workload);
            }
        }
    }

    #[test]
    fn bounds_include_their_ends() {
        assert!(Bound::Times(1.05, Kind::Null).is_kept(1.05));
        assert!(!Bound::AtMost(5.0).is_kept(5.1) && Bound::AtLeast(0.99).is_kept(0.99));
        assert!(!Bound::AtMost(5.0).is_kept(f64::NAN));
    }
}
