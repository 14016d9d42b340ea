//! Whether Redis accepts writes: it refuses them while it is out of memory, lacks replicas, or cannot save.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use redis::RedisError;

use crate::{
    health::{Condition, Dependency, DependencyFailure, DependencyMonitor},
    sync::lock,
};

/// Time without a refusal after which Redis counts as accepting writes. Each key that expires frees some
/// memory, so near its limit Redis accepts one write and refuses the next.
const RECOVERY: Duration = Duration::from_secs(10);

/// Notes refused and accepted writes; logs, counts and shows the changes.
pub(super) struct WriteMonitor {
    monitor: DependencyMonitor,
    refused: Mutex<Option<Instant>>,
}

impl WriteMonitor {
    pub(super) fn new() -> Self {
        Self { monitor: DependencyMonitor::new("redis_url"), refused: Mutex::default() }
    }

    /// Returns true if the error says that Redis refuses writes, and notes it.
    pub(super) fn is_refusal(&self, error: &RedisError) -> bool {
        let Some((setting, remedy)) = remedy(error) else { return false };
        *lock(&self.refused) = Some(Instant::now());
        metrics::gauge!("ftp_registry_writable").set(0.0);
        let text = error.to_string();
        let failure = DependencyFailure { condition: Condition::Failed, error: text.clone(), setting };
        if self.monitor.note(Err(failure)) {
            log::error!(error = text.as_str(), setting; "Redis refuses writes; {remedy}");
        }
        true
    }

    pub(super) fn note_success(&self) {
        if lock(&self.refused).is_some_and(|refused| refused.elapsed() < RECOVERY) {
            return;
        }
        metrics::gauge!("ftp_registry_writable").set(1.0);
        if self.monitor.note(Ok(())) && self.dependency().last_error.is_some() {
            log::info!("Redis accepts writes again");
        }
    }

    pub(super) fn dependency(&self) -> Dependency {
        self.monitor.dependency()
    }
}

/// The setting of Redis to check, and what to do, if the error says that Redis refuses writes.
fn remedy(error: &RedisError) -> Option<(&'static str, &'static str)> {
    // Redis before 7.0 quotes the code within the message of a script's error.
    let is_oom = error.code() == Some("OOM") || error.to_string().contains("OOM command not allowed");
    match error.code() {
        _ if is_oom => Some((
            "maxmemory (of Redis)",
            "it is out of memory: raise `maxmemory`, or find what fills it with `redis-cli --bigkeys`",
        )),
        Some("NOREPLICAS") => Some((
            "min-replicas-to-write (of Redis)",
            "too few replicas follow it: start them, or see whether this Redis is cut off from them",
        )),
        Some("MISCONF") => Some((
            "dir (of Redis)",
            "it cannot save its data: see its log, and the free space of its directory",
        )),
        _ => None,
    }
}
