//! Periodic tasks that one node does for the whole cluster.

use std::time::Duration;

use super::{HomeCount, Registry, Usage, UsageStep};

/// The right to do a task that only one node does at a time. Dropping it gives the right up.
#[must_use]
pub struct ClusterTask(HomeCount);

impl Registry {
    /// The right to do the task `name`, if it was last finished at least `every` ago and no other node does
    /// it now. Without Redis, and while Redis is away, each node has a right of its own.
    pub async fn begin_cluster_task(&self, name: &str, every: Duration) -> Option<ClusterTask> {
        // The right is stored like the right to count a home. The slash keeps its key apart: paths of homes
        // have no leading slash.
        let home = self.home_usage(format!("/{name}").as_bytes(), every);
        let status = home.settle(UsageStep::default()).await.ok()?;
        if !status.count_is_due {
            return None;
        }
        home.begin_count().await.map(ClusterTask)
    }
}

impl ClusterTask {
    /// Interval at which [`ClusterTask::keep`] must be called.
    pub fn interval(&self) -> Duration {
        self.0.interval()
    }

    /// Renews the right. Returns false if another node has taken it over.
    pub async fn keep(&self) -> bool {
        self.0.keep().await
    }

    /// Ends the task as done.
    pub async fn finish(self) {
        self.0.finish(Usage::default()).await;
    }
}
