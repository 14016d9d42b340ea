//! Lost records: each loss shows in the log, in a metric and in the readiness.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::{
    health::{Condition, Dependency, DependencyFailure, DependencyMonitor},
    sync::lock,
};

/// The time for which the dependency `audit` fails after a loss.
const SHOWN: Duration = Duration::from_secs(300);

/// Minimum interval between two log lines about losses.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// The setting to check after a loss.
const LOG: &str = "audit_log";

/// Counts lost records.
pub(super) struct LossLog {
    /// Counts lost records of a sink in the daemon's metrics.
    metric: fn(sink: &'static str, count: u64),
    monitor: DependencyMonitor,
    state: Mutex<LossState>,
}

#[derive(Default)]
struct LossState {
    last_loss: Option<Instant>,
    last_line: Option<Instant>,
    /// Records whose loss is not in the log yet, and the last cause.
    unreported: Option<(u64, String)>,
}

impl LossLog {
    pub(super) fn new(metric: fn(&'static str, u64)) -> Self {
        Self { metric, monitor: DependencyMonitor::new(LOG), state: Mutex::default() }
    }

    /// `count` records did not reach `sink` (`file`, `stderr`, `journald` or `redis`).
    pub(super) fn note(&self, sink: &'static str, count: u64, cause: &str) {
        if count == 0 {
            return;
        }
        (self.metric)(sink, count);
        let now = Instant::now();
        let mut state = lock(&self.state);
        state.last_loss = Some(now);
        let before = state.unreported.take().map_or(0, |(before, _)| before);
        state.unreported = Some((before + count, format!("{sink}: {cause}")));
        self.report(&mut state, now);
        let setting = if sink == super::stream::REDIS { "audit_records" } else { LOG };
        let error = format!("records of the audit trail are lost ({sink}): {cause}");
        self.monitor.note(Err(DependencyFailure { condition: Condition::Failed, error, setting }));
    }

    /// The dependency `audit`.
    pub(super) fn dependency(&self) -> Dependency {
        let now = Instant::now();
        let mut state = lock(&self.state);
        self.report(&mut state, now);
        if state.last_loss.is_none_or(|last| now.saturating_duration_since(last) >= SHOWN) {
            self.monitor.note(Ok(()));
        }
        self.monitor.dependency()
    }

    /// Logs what is unreported, at most once per [`LINE_INTERVAL`].
    fn report(&self, state: &mut LossState, now: Instant) {
        let is_due = |last: Instant| now.saturating_duration_since(last) >= LINE_INTERVAL;
        if !state.last_line.is_none_or(is_due) {
            return;
        }
        if let Some((lost, cause)) = state.unreported.take() {
            state.last_line = Some(now);
            log::error!(lost, cause = cause.as_str(); "records of the audit trail are lost");
        }
    }
}
