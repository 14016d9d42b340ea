//! Performance goals of our node. Pure.

use crate::servers::ServerKind;

/// A goal: one figure of one of our servers, and the bound that it must keep.
pub(crate) struct Goal {
    pub workload: &'static str,
    pub encrypted: bool,
    /// The server whose figure is compared.
    pub server: ServerKind,
    pub figure: &'static str,
    pub bound: Bound,
}

/// Bound of a figure, or of its ratio to the figure of another server in the same rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bound {
    /// Upper bound of the figure.
    AtMost(f64),
    /// Upper bound of the ratio to this server's figure.
    Times(f64, ServerKind),
    /// Lower bound of the ratio to this server's figure.
    TimesAtLeast(f64, ServerKind),
    /// Lower bound of the figure.
    AtLeast(f64),
}

impl Bound {
    /// Returns true if `value`, a figure or a ratio according to the variant, keeps the bound.
    pub(crate) fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) | Self::Times(most, _) => value <= most,
            Self::AtLeast(least) | Self::TimesAtLeast(least, _) => value >= least,
        }
    }
}

const fn goal(workload: &'static str, encrypted: bool, figure: &'static str, bound: Bound) -> Goal {
    Goal { workload, encrypted, server: ServerKind::Ftpd, figure, bound }
}

/// A goal for the ratio of CPU time.
const fn cpu_ratio(workload: &'static str, encrypted: bool, factor: f64, kind: ServerKind) -> Goal {
    goal(workload, encrypted, "cpu", Bound::Times(factor, kind))
}

/// A goal for the ratio of rates.
const fn rate_ratio(workload: &'static str, encrypted: bool, factor: f64, kind: ServerKind) -> Goal {
    goal(workload, encrypted, "rate", Bound::TimesAtLeast(factor, kind))
}

/// A goal for the node's CPU time behind a balancer, compared with direct connections.
const fn behind_balancer(workload: &'static str) -> Goal {
    let bound = Bound::Times(1.05, ServerKind::Ftpd);
    Goal { workload, encrypted: false, server: ServerKind::Balancer, figure: "cpu", bound }
}

/// A goal for a figure of the node behind ftp-relay, or of the relay.
const fn relay(workload: &'static str, figure: &'static str, bound: Bound) -> Goal {
    Goal { workload, encrypted: false, server: ServerKind::Relay, figure, bound }
}

/// All goals. The report shows which of them a run meets.
pub(crate) static GOALS: &[Goal] = &[
    cpu_ratio("retr-1", false, 1.05, ServerKind::Null),
    cpu_ratio("retr-8", false, 1.05, ServerKind::Null),
    cpu_ratio("stor-1", false, 1.05, ServerKind::Null),
    cpu_ratio("stor-8", false, 1.05, ServerKind::Null),
    cpu_ratio("stor-1", false, 0.92, ServerKind::PureFtpd),
    cpu_ratio("stor-8", false, 0.92, ServerKind::PureFtpd),
    cpu_ratio("retr-1", true, 0.65, ServerKind::PureFtpd),
    cpu_ratio("retr-8", true, 0.65, ServerKind::PureFtpd),
    cpu_ratio("stor-1", true, 0.75, ServerKind::PureFtpd),
    cpu_ratio("stor-8", true, 0.75, ServerKind::PureFtpd),
    cpu_ratio("small-get", false, 0.85, ServerKind::PureFtpd),
    cpu_ratio("small-put", false, 0.85, ServerKind::PureFtpd),
    rate_ratio("small-get", false, 1.0, ServerKind::PureFtpd),
    rate_ratio("small-put", false, 1.0, ServerKind::PureFtpd),
    cpu_ratio("small-get", true, 0.9, ServerKind::Unftp),
    cpu_ratio("small-put", true, 0.9, ServerKind::Unftp),
    rate_ratio("small-get", true, 1.8, ServerKind::PureFtpd),
    rate_ratio("small-put", true, 1.8, ServerKind::PureFtpd),
    cpu_ratio("list", false, 0.85, ServerKind::PureFtpd),
    cpu_ratio("list", true, 0.85, ServerKind::PureFtpd),
    cpu_ratio("mlsd", false, 0.85, ServerKind::PureFtpd),
    cpu_ratio("mlsd", true, 0.85, ServerKind::PureFtpd),
    goal("list", false, "first byte ms", Bound::AtMost(5.0)),
    goal("mlsd", false, "first byte ms", Bound::AtMost(5.0)),
    goal("million", false, "first byte ms", Bound::AtMost(5.0)),
    goal("million", false, "peak growth MiB", Bound::AtMost(1.0)),
    cpu_ratio("login-16", false, 1.0, ServerKind::Unftp),
    cpu_ratio("login-16", true, 1.0, ServerKind::Unftp),
    behind_balancer("balancer-retr"),
    behind_balancer("balancer-stor"),
    behind_balancer("balancer-small"),
    relay("balancer-retr", "balancer", Bound::Times(0.6, ServerKind::Balancer)),
    relay("balancer-retr", "balancer", Bound::AtMost(0.25)),
    relay("balancer-stor", "balancer", Bound::Times(0.6, ServerKind::Balancer)),
    relay("balancer-stor", "balancer", Bound::AtMost(0.25)),
    relay("balancer-small", "cpu", Bound::Times(1.1, ServerKind::Ftpd)),
    relay("relay-idle", "PSS KiB", Bound::AtMost(8.0)),
    relay("relay-idle", "idle CPU ms/s", Bound::AtMost(1.0)),
    relay("relay-busy", "PSS KiB", Bound::AtMost(8.0)),
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
    fn every_goal_names_a_workload_that_measures_all_of_its_servers() {
        for goal in GOALS {
            let workload = WORKLOADS.iter().find(|w| w.name == goal.workload).unwrap();
            assert!(workload.modes.contains(&goal.encrypted), "{}", goal.workload);
            let reference = match goal.bound {
                Bound::Times(_, kind) | Bound::TimesAtLeast(_, kind) => Some(kind),
                Bound::AtMost(_) | Bound::AtLeast(_) => None,
            };
            for kind in [Some(goal.server), reference].into_iter().flatten() {
                assert!(workload.kinds.contains(&kind), "{}", goal.workload);
                assert!(kind.encrypts() || !goal.encrypted, "{}", goal.workload);
            }
        }
    }

    #[test]
    fn a_figure_equal_to_its_bound_meets_it_and_nan_does_not() {
        assert!(Bound::Times(1.05, ServerKind::Null).is_met(1.05));
        assert!(!Bound::AtMost(5.0).is_met(5.1) && Bound::AtLeast(0.99).is_met(0.99));
        assert!(!Bound::AtMost(5.0).is_met(f64::NAN));
    }
}
