//! How a process gets its node's name, which only one process may have.
//!
//! The node's key in Redis is a lease on the name: it expires unless its process renews it. A process
//! that finds a lease of another one waits for as long as a lease lasts. If the lease ends, its process
//! had died; if it is renewed, the name is in use, and the process that came second gives up.

use std::{fmt, time::Duration};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::{Instant, sleep_until};

use super::{
    Core, LinkError,
    cluster::{Cluster, PublishOutcome, PublishReason},
};
use crate::node::NodeRecord;

/// Added to the lease, so that Redis has removed a lease that has just ended.
const SLACK: Duration = Duration::from_millis(200);

/// How often a process that waits for the name asks for it.
const ASK: Duration = Duration::from_millis(500);

/// After an outage of Redis, a node that was in the registry before it enters itself again within this
/// time: it tries every second. A node that was not waits for so long with a claim to a free name.
const LATE: Duration = Duration::from_secs(5);

/// The process that holds a node's name. `None`: Redis has no record of it that can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameHolder(pub(super) Option<Box<NodeRecord>>);

impl fmt::Display for NameHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(record) = &self.0 else {
            return f.write_str("another process (its record in Redis cannot be read)");
        };
        f.write_str("another process")?;
        if !record.host.is_empty() {
            write!(f, " on host {}", record.host)?;
        }
        let since =
            i64::try_from(record.since).ok().and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
        let since = since.and_then(|since| since.format(&Rfc3339).ok());
        write!(
            f,
            " (listening on {}, started {})",
            record.control,
            since.as_deref().unwrap_or("at some time")
        )
    }
}

/// Enters a node whose process starts. [`PublishOutcome::Named`] if another process renews its lease of the
/// name.
pub(super) async fn at_start(core: &Core, cluster: &Cluster) -> Result<PublishOutcome, LinkError> {
    let deadline = Instant::now() + cluster.lease + SLACK;
    let mut is_told = false;
    loop {
        let published = cluster.publish(&core.record(), PublishReason::Start).await?;
        let PublishOutcome::Named(holder, left) = &published else { return Ok(published) };
        let now = Instant::now();
        if now >= deadline {
            return Ok(published);
        }
        if !is_told {
            is_told = true;
            log::warn!(
                node = core.node.name.as_str(), lease_left:? = left;
                "the node name is in use by {holder}; waiting for {:?} (node_lease) in case that process has \
                 crashed", cluster.lease
            );
        }
        // Redis removes a key within some milliseconds of its end.
        let ended = now + *left + Duration::from_millis(20);
        sleep_until(ended.min(now + ASK).min(deadline)).await;
    }
}

/// What came of a step to claim a name.
pub(super) enum ClaimOutcome {
    /// The name was claimed before.
    Done,
    /// Not yet: try again soon.
    Wait,
    /// The claim was made, or cannot be.
    Outcome(PublishOutcome),
}

/// The claim of a process that started while Redis was away. It serves meanwhile, and so may another
/// process of its name that was in the registry before the outage, and has the older right.
#[derive(Default)]
pub(super) struct LateClaim {
    is_done: bool,
    /// Since when Redis says that the name is free.
    free: Option<Instant>,
    /// Since when Redis says that it is not.
    named: Option<Instant>,
}

impl LateClaim {
    /// The name is this process's.
    pub fn done(&mut self) {
        self.is_done = true;
    }

    pub async fn step(&mut self, core: &Core, cluster: &Cluster) -> Result<ClaimOutcome, LinkError> {
        if self.is_done {
            return Ok(ClaimOutcome::Done);
        }
        let now = Instant::now();
        let looked = cluster.publish(&core.record(), PublishReason::Look).await?;
        if let PublishOutcome::Named(..) = looked {
            self.free = None;
            let since = *self.named.get_or_insert(now);
            let is_over = now.duration_since(since) >= cluster.lease + SLACK;
            return Ok(if is_over { ClaimOutcome::Outcome(looked) } else { ClaimOutcome::Wait });
        }
        self.named = None;
        let since = *self.free.get_or_insert(now);
        if now.duration_since(since) < cluster.lease.min(LATE) {
            return Ok(ClaimOutcome::Wait);
        }
        Ok(match cluster.publish(&core.record(), PublishReason::Late).await? {
            // Another process was faster.
            PublishOutcome::Named(..) | PublishOutcome::Free => ClaimOutcome::Wait,
            published => {
                self.is_done = true;
                ClaimOutcome::Outcome(published)
            }
        })
    }
}
