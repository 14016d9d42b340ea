//! Work that a node gives to the task that keeps its entries in Redis.

use tokio::sync::oneshot;

use super::lease_calls::LeaseRequest;
use crate::session::SessionRecord;

/// One piece of work for the refresh task.
///
/// Only this task removes sessions and leases from Redis, so that a refresh cannot enter again what has
/// just been removed. (The exception, [`WriteLease::give_back`](super::WriteLease::give_back), keeps the
/// refresh waiting.)
pub(super) enum RegistryWork {
    EndSession(SessionRecord),
    EndLease(LeaseRequest),
    /// The node's record has changed: refresh now instead of at the next interval.
    Refresh,
    /// Remove all entries of the node, then end the task.
    Leave(oneshot::Sender<()>),
}
