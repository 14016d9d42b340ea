//! Long commands: checksums, COMB, RMDA and STAT with a path run on a worker, beside the control connection.

use std::sync::Arc;

use tokio::time::timeout;

use super::SessionParts;
use crate::{
    failure_log::Operation,
    jail::FileError,
    metrics,
    node::Node,
    protocol::{Code, Failure, Reply},
    work::{
        Slot, SlotRequest,
        activity::{Activity, ActivityHandle},
    },
};

/// Runs a long command; `work` returns the command's reply.
pub(crate) fn run_in_background(
    session: SessionParts,
    handle: Arc<ActivityHandle>,
    work: impl FnOnce() -> Reply + Send + 'static,
) -> Activity {
    let SessionParts { node, failures, slot, audited } = session;
    let activity = Arc::clone(&handle);
    let run = async move {
        let reply = match slot_for_long_command(&node, &activity, slot).await {
            Ok(slot) => node.workers.run_long(slot, work).await,
            Err(reply) => {
                // `work` may hold open files, which a worker must close.
                node.workers.run_without_slot(move || drop(work)).await;
                reply
            }
        };
        let (verb, path, cancelled_by) = (activity.verb, activity.path.get(), activity.cancelled_by());
        let operation = Operation { verb, audited: &audited, path, transfer: None, cancelled_by };
        failures.report(operation, &reply);
        reply
    };
    Activity { handle, is_upload: false, run: Box::pin(run) }
}

/// A slot for a long command, after at most `long_operation_wait`.
///
/// # Errors
/// The reply: the command was cancelled, or 450 because no slot became free.
async fn slot_for_long_command(
    node: &Node,
    handle: &ActivityHandle,
    request: SlotRequest,
) -> Result<Slot, Reply> {
    let setting = match node.workers.try_long(&request) {
        Ok(slot) => return Ok(slot),
        Err(setting) => setting,
    };
    metrics::limit_reached(setting);
    let patience = node.timeouts.long_operation_wait;
    tokio::select! {
        () = handle.cancellation() => Err(FileError::Cancelled.refusal()),
        slot = timeout(patience, node.workers.long(request)) => slot.map_err(|_| {
            let detail = format!(
                "no slot for a long command became free within {} s ({setting}, long_operation_wait)",
                patience.as_secs_f64()
            );
            Reply::new(Code::FILE_BUSY, "Too many long commands at once, try again")
                .because(Failure::with_detail("no_slot", detail))
        }),
    }
}
