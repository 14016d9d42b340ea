//! The claim of a process to its node's name, which only one process may hold.
//!
//! The node's key in Redis is a lease of the name: it expires unless its process renews it. A process that
//! finds another one's lease waits for the duration of a lease. If the lease expires, the other process has
//! crashed. If it is renewed, the name is in use, and the process that came second ends.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::{
    LinkError,
    cluster::Cluster,
    core::Core,
    publish::{PublishOutcome, PublishReason},
};

/// Added to a lease so that Redis has removed a lease that has just expired.
const SLACK: Duration = Duration::from_millis(200);

/// Interval at which a process that waits for the name asks Redis.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Time for which a late process (see [`LateClaim`]) waits before it claims a free name. After an outage of
/// Redis, a process that was in the registry before enters itself again within this time, because it
/// retries every second.
const LATE_WAIT: Duration = Duration::from_secs(5);

/// Enters a node whose process starts. Returns [`PublishOutcome::NameTaken`] if another process renews its
/// lease of the name.
pub(super) async fn at_start(core: &Core, cluster: &Cluster) -> Result<PublishOutcome, LinkError> {
    let deadline = Instant::now() + cluster.lease + SLACK;
    let mut is_logged = false;
    loop {
        let published = cluster.publish(core, PublishReason::Start).await?;
        let PublishOutcome::NameTaken(holder, left) = &published else { return Ok(published) };
        let now = Instant::now();
        if now >= deadline {
            return Ok(published);
        }
        if !is_logged {
            is_logged = true;
            log::warn!(
                node = core.node.name.as_str(), lease_left:? = left;
                "the node name is in use by {holder}; waiting for {:?} (node_lease) in case that process has \
                 crashed", cluster.lease
            );
        }
        // Redis removes an expired key within some milliseconds.
        let expired = now + *left + Duration::from_millis(20);
        sleep_until(expired.min(now + POLL_INTERVAL).min(deadline)).await;
    }
}

/// The result of one step of a [`LateClaim`].
pub(super) enum ClaimOutcome {
    /// The name was claimed before.
    Done,
    /// The name is not claimed yet: try again soon.
    Wait,
    /// The claim was made, or another process renews its lease of the name.
    Published(PublishOutcome),
}

/// The claim of a process that started while Redis was away. The process serves clients before the claim is
/// made. Another process with the same name may serve clients too, if it was in the registry before the
/// outage. That process has precedence.
#[derive(Default)]
pub(super) struct LateClaim {
    is_done: bool,
    /// Time since which Redis has said that the name is free.
    free_since: Option<Instant>,
    /// Time since which Redis has said that another process holds the name.
    taken_since: Option<Instant>,
}

impl LateClaim {
    /// Notes that this process holds the name.
    pub(super) fn mark_done(&mut self) {
        self.is_done = true;
    }

    pub(super) async fn step(&mut self, core: &Core, cluster: &Cluster) -> Result<ClaimOutcome, LinkError> {
        if self.is_done {
            return Ok(ClaimOutcome::Done);
        }
        let now = Instant::now();
        let looked = cluster.publish(core, PublishReason::Look).await?;
        if let PublishOutcome::NameTaken(..) = looked {
            self.free_since = None;
            let since = *self.taken_since.get_or_insert(now);
            let is_renewed = now.duration_since(since) >= cluster.lease + SLACK;
            return Ok(if is_renewed { ClaimOutcome::Published(looked) } else { ClaimOutcome::Wait });
        }
        self.taken_since = None;
        let since = *self.free_since.get_or_insert(now);
        if now.duration_since(since) < cluster.lease.min(LATE_WAIT) {
            return Ok(ClaimOutcome::Wait);
        }
        Ok(match cluster.publish(core, PublishReason::Late).await? {
            // Another process was faster.
            PublishOutcome::NameTaken(..) | PublishOutcome::NameFree => ClaimOutcome::Wait,
            published => {
                self.is_done = true;
                ClaimOutcome::Published(published)
            }
        })
    }
}
