//! Whether file operations end: a watchdog for storage that hangs.

use std::{sync::Arc, time::Duration};

use common::health::{Condition, Trouble, Watched};
use tokio::time::{MissedTickBehavior, interval};

use super::Health;
use crate::{
    metrics,
    work::{SlotInspection, Workers},
};

/// How often the operations are looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// Tells the metrics, the log and the readiness how the file operations go. An operation that runs for
/// longer than `alarm` is logged; if all places are taken and none has become free for as long, the node
/// is not ready. Never returns.
pub async fn watch(health: Arc<Health>, workers: Workers, alarm: Duration) {
    let mut ticks = interval(INTERVAL.min(alarm.max(Duration::from_millis(10))));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let [operations, logins] = workers.inspect_operations(alarm);
        metrics::oldest_file_operation(operations.oldest.max(logins.oldest));
        workers.record_usage();
        for hanging in operations.hanging.iter().chain(&logins.hanging) {
            if let Some(task) = &hanging.task {
                task.log_hang(hanging.age);
            }
        }
        health.note_operations(&operations, &logins);
    }
}

/// File operations before the first look at them: none runs, so none hangs.
pub fn watched() -> Watched {
    let watched = Watched::new("max_file_operations");
    watched.note(Ok(()));
    watched
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
                    "all {} places are taken, and no operation has ended for {} s",
                    inspection.running,
                    since.as_secs()
                );
                Err(Trouble { condition: Condition::Failed, error, setting })
            }
        });
        match stuck {
            Some((inspection, since, setting)) if is_new => log::error!(
                setting, places = inspection.running, seconds = since.as_secs();
                "file operations hang: all places are taken, and none has ended"
            ),
            None if is_new && self.operations.dependency().last_error.is_some() => {
                log::info!("file operations end again");
            }
            _ => {}
        }
    }
}
