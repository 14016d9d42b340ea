//! Work that one node of the cluster does for all of them, from time to time.

use std::time::Duration;

use redis::cmd;

use super::{Change, Counting, Registry, Step, Usage};
use crate::sync::lock;

/// The right to do a piece of work that one node does at a time. Dropping it gives the right up.
#[must_use]
pub struct Chore(Counting);

impl Registry {
    /// The right to do the work `name`, if it was last finished at least `every` ago and no other node does it
    /// now. Without Redis, and while Redis is away, each node has this right for itself.
    pub async fn begin_chore(&self, name: &str, every: Duration) -> Option<Chore> {
        // It is kept like the count of a home. No home has such a path: theirs do not begin with a slash.
        let state = self.home_usage(format!("/{name}").as_bytes(), every);
        let standing = state.settle(Step::default()).await.ok()?;
        if !standing.count_is_due {
            return None;
        }
        state.begin_count().await.map(Chore)
    }

    /// Tells the quotas that `removed` is gone from the directory `path` (a path within the storage, without
    /// a slash before it): those of each home that is known and contains the directory. `recount`: time
    /// between two counts of a home.
    pub async fn removed_below(&self, path: &[u8], removed: Usage, recount: Duration) {
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(end, _)| end);
        let mut homes: Vec<_> = [0, path.len()].into_iter().chain(ends).map(|end| &path[..end]).collect();
        homes.dedup();
        for home in homes {
            if self.is_counted_home(home).await {
                let change = Change { removed, ..Change::default() };
                // Without Redis it is told with the next step.
                let _ = self.home_usage(home, recount).settle(Step { change, ..Step::default() }).await;
            }
        }
    }

    async fn is_counted_home(&self, path: &[u8]) -> bool {
        if lock(&self.core.homes).contains_key(path) {
            return true;
        }
        let Some(cluster) = &self.core.cluster else { return false };
        let key = cluster.keys().home_usage(path);
        // A home that is not known now is counted at its next use.
        cluster.link().query(cmd("EXISTS").arg(key)).await.unwrap_or(false)
    }
}

impl Chore {
    /// How often [`Chore::keep`] must be called.
    pub fn interval(&self) -> Duration {
        self.0.interval()
    }

    /// Whether the work is still this node's.
    pub async fn keep(&self) -> bool {
        self.0.keep().await
    }

    /// The work is done.
    pub async fn finish(self) {
        self.0.finish(Usage::default()).await;
    }
}
