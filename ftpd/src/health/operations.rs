//! Watchdog for file operations that hang because the storage does not respond.

use std::{sync::Arc, time::Duration};

use common::health::{Condition, DependencyFailure, DependencyMonitor};
use tokio::time::{MissedTickBehavior, interval};

use super::Health;
use crate::{
    metrics,
    work::{SlotInspection, Workers},
};

/// Interval between inspections of the operations.
const INTERVAL: Duration = Duration::from_secs(1);

/// Reports the state of the file operations to the metrics, the log and the readiness. An operation
/// that runs for longer than `alarm` is logged. If all slots are in use and none has become free for
/// that long, the node is not ready. Never returns.
pub async fn watch(health: Arc<Health>, workers: Workers, alarm: Duration) {
    let mut ticks = interval(INTERVAL.min(alarm.max(Duration::from_millis(10))));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let [operations, logins] = workers.inspect_operations(alarm);
        metrics::oldest_file_operation(
            workers.oldest_operation().map_or(Duration::ZERO, |oldest| oldest.age),
        );
        workers.record_usage();
        for hanging in operations.hanging.iter().chain(&logins.hanging) {
            if let Some(task) = &hanging.task {
                task.log_hang(hanging.age);
            }
        }
        health.note_operations(&operations, &logins);
    }
}

/// A monitor of the file operations. Their initial state is good: no operation runs, so none hangs.
pub fn monitor() -> DependencyMonitor {
    let monitor = DependencyMonitor::new("max_file_operations");
    monitor.note(Ok(()));
    monitor
}

impl Health {
    fn note_operations(&self, operations: &SlotInspection, logins: &SlotInspection) {
        let stuck = [(operations, "max_file_operations"), (logins, "max_login_operations")]
            .into_iter()
            .find_map(|(inspection, setting)| Some((inspection, inspection.stuck?, setting)));
        let is_new = self.operations.note(match stuck {
            None => Ok(()),
            Some((inspection, since, setting)) => {
                let error = format!(
                    "all {} slots are in use, and no operation has ended for {} s",
                    inspection.running,
                    since.as_secs()
                );
                Err(DependencyFailure { condition: Condition::Failed, error, setting })
            }
        });
        match stuck {
            Some((inspection, since, setting)) if is_new => log::error!(
                setting, slots = inspection.running, seconds = since.as_secs();
                "file operations hang: all slots are in use, and no operation ends"
            ),
            None if is_new && self.operations.dependency().last_error.is_some() => {
                log::info!("file operations no longer hang");
            }
            _ => {}
        }
    }
}
