//! Transfers: how one starts beside its control connection, moves its data on a worker, and ends with a
//! reply, a log line and metrics.

mod failure;
mod job;
mod long_command;

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

pub(crate) use self::{
    failure::TransferFailure,
    job::{LeaseToRelease, TransferWork, WorkerJob},
    long_command::run_in_background,
};
use crate::{
    audit::{AuditedCommand, MovedBytes},
    config::UploadDigest,
    data::{Coding, CopyError, DataPort, NoDataConnection, Protection, connected::Connected, copy::CopyJob},
    events::SessionEvents,
    failure_log::{FailureLog, Operation, TransferEnd},
    identity::log_session,
    limits::pace::Pace,
    metrics,
    node::Node,
    protocol::{Code, Reply, reply::ReplyText},
    transfer_log,
    virtual_path::VirtualPath,
    work::{
        OffRuntime, Slot, SlotRequest,
        activity::{Activity, ActivityHandle, CancelledBy},
    },
};

/// Maximum size of a small transfer, in bytes. RETR reads a small file when it opens the file, and sends it
/// without a worker. Of an upload, up to this many bytes are read before a worker takes it. A thread hop
/// costs more than moving this many bytes.
pub(crate) const SMALL: usize = 16 * 1024;

/// The kinds of transfers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TransferKind {
    Download,
    Upload,
    Listing,
}

impl TransferKind {
    /// The name in the log, and the label `direction` of metrics.
    fn name(self) -> &'static str {
        match self {
            Self::Download => "download",
            Self::Upload => "upload",
            Self::Listing => "listing",
        }
    }
}

/// A transfer that is about to start.
pub(crate) struct Transfer {
    pub verb: &'static str,
    pub kind: TransferKind,
    pub path: VirtualPath,
    pub coding: Coding,
    /// Where in the file the transfer begins. An upload notes the place when it begins, too.
    pub offset: u64,
    /// The bytes at which the transfer ends, where they are known.
    pub size: Option<u64>,
    /// `None`: neither a bandwidth nor a quota limits the transfer.
    pub pace: Option<Arc<Pace>>,
    /// Notes the event of a download.
    pub events: Option<SessionEvents>,
    pub work: TransferWork,
}

/// The parts of a session that its transfers and long commands need.
pub(crate) struct SessionParts {
    pub node: Arc<Node>,
    pub failures: Arc<FailureLog>,
    pub slot: SlotRequest,
    pub audited: AuditedCommand,
}

/// Starts a transfer. Without `protection`, its data connection is plain. `stored_at` is the path from
/// the root of the storage, for the transfer log.
pub(crate) fn start(
    session: SessionParts,
    port: DataPort,
    protection: Option<Protection>,
    transfer: Transfer,
    stored_at: Vec<u8>,
) -> Activity {
    let SessionParts { node, failures, slot, audited } = session;
    let Transfer { verb, kind, path, coding, offset, size, pace, events, work } = transfer;
    let handle = ActivityHandle::of_size(verb, size);
    handle.progress.set_start(offset);
    let running = RunningTransfer { node, handle: Arc::clone(&handle), pace };
    let run = async move {
        let result = running.run(kind, port, protection, slot, work).await;
        let RunningTransfer { node, handle, pace } = running;
        // Before the reply, because the pace holds the quota reservation of an upload.
        drop(pace);
        let result = match (result, events) {
            (Ok(()), Some(events)) => note_download(&node, events, &handle, &path, &stored_at).await,
            (result, _) => result,
        };
        let ended = EndedTransfer { kind, path, stored_at, coding, audited, result };
        conclude(&node, &failures, &handle, ended)
    };
    Activity { handle, is_upload: kind == TransferKind::Upload, run: Box::pin(run) }
}

/// Notes the event of a complete download, before the client is told.
async fn note_download(
    node: &Node,
    events: SessionEvents,
    handle: &ActivityHandle,
    path: &VirtualPath,
    stored_at: &[u8],
) -> Result<(), TransferFailure> {
    let (offset, bytes) = (handle.progress.start(), handle.progress.transferred());
    let (path, stored_at) = (path.clone(), stored_at.to_vec());
    let note = move || events.note_download(&path, &stored_at, offset, bytes);
    Ok(node.workers.run_without_slot(note).await?)
}

/// A running transfer.
struct RunningTransfer {
    node: Arc<Node>,
    handle: Arc<ActivityHandle>,
    pace: Option<Arc<Pace>>,
}

impl RunningTransfer {
    /// Runs the transfer to its end. Counts it in the metrics, and cancels it if it is slower than
    /// `minimum_rate`.
    async fn run(
        &self,
        kind: TransferKind,
        port: DataPort,
        protection: Option<Protection>,
        slot: SlotRequest,
        work: TransferWork,
    ) -> Result<(), TransferFailure> {
        let _count = TransferCount::start(&self.node);
        let minimum = self.node.limits.minimum_rate;
        let connection = port.connect(self.node.timeouts.data_connect, protection);
        let result = tokio::select! {
            result = self.connect_and_move(slot, connection, work) => result,
            never = minimum.enforce(&self.handle, self.pace.as_deref(), kind == TransferKind::Listing) => {
                match never {}
            }
        };
        result.map_err(|failure| match self.handle.cancelled_by() {
            Some(CancelledBy::TooSlow) => TransferFailure::TooSlow { minimum: minimum.rate },
            _ => failure,
        })
    }

    /// Waits for the data connection, then moves the data.
    async fn connect_and_move(
        &self,
        slot: SlotRequest,
        connection: impl Future<Output = Result<Connected, NoDataConnection>>,
        work: TransferWork,
    ) -> Result<(), TransferFailure> {
        let connected = tokio::select! {
            () = self.handle.cancellation() => Err(self.cancelled()),
            connected = connection => connected.map_err(Into::into),
        };
        self.handle.note_connected();
        match work {
            TransferWork::Send(content) => self.send(connected?, &content).await,
            TransferWork::OnWorker(work) => self.run_on_worker(slot, connected, work).await,
            TransferWork::Receive(work) => {
                let connected = match connected {
                    Ok(connected) => self.gather(connected).await,
                    Err(failure) => Err(failure),
                };
                match self.run_on_worker(slot, connected, work).await? {
                    Some(lease) => lease.release(&self.node.workers).await,
                    None => Ok(()),
                }
            }
        }
    }

    /// Reads the first bytes of an upload, so that no worker waits for a client that sends nothing yet, and a
    /// small upload has arrived completely before a worker takes it.
    async fn gather(&self, connected: Connected) -> Result<Connected, TransferFailure> {
        let mut connected = connected.register().map_err(|error| self.connection_error(error))?;
        tokio::select! {
            biased;
            () = self.handle.cancellation() => {}
            () = connected.gather(SMALL, self.node.timeouts.stall, &self.handle.client) => {}
            // The worker stores the bytes that have arrived.
            () = self.handle.client_left() => {}
        }
        Ok(connected)
    }

    /// Sends `content` without a worker.
    async fn send(&self, connection: Connected, content: &[u8]) -> Result<(), TransferFailure> {
        let sent = tokio::select! {
            () = self.handle.cancellation() => return Err(CopyError::Cancelled.into()),
            sent = connection.send(content) => sent,
            () = stall(self.node.timeouts.stall) => return Err(CopyError::Stalled.into()),
        };
        sent.map_err(|error| self.connection_error(error))?;
        self.handle.progress.add(content.len() as u64);
        Ok(())
    }

    async fn run_on_worker<T: Send + 'static>(
        &self,
        request: SlotRequest,
        connected: Result<Connected, TransferFailure>,
        work: OffRuntime<WorkerJob<T>>,
    ) -> Result<T, TransferFailure> {
        let workers = &self.node.workers;
        let slot = self.slot(request).await;
        let stream = connected
            .and_then(|connected| connected.into_stream().map_err(|error| self.connection_error(error)));
        let (mut stream, slot) = match stream.and_then(|stream| Ok((stream, slot?))) {
            Ok(both) => both,
            Err(failure) => {
                // A worker closes the files, and removes a file that the upload has created. Then the reply.
                workers.run_without_slot(move || drop(work)).await;
                return Err(failure);
            }
        };
        self.handle.attach(stream.socket());
        let (handle, pace, stall) = (Arc::clone(&self.handle), self.pace.clone(), self.node.timeouts.stall);
        let moved = workers.run_long(slot, move || {
            let mut job = CopyJob::new(&handle.progress);
            job.client = Some(&handle.client);
            job.pace = pace.as_deref().map(|pace| pace as _);
            let limited = stream.limit_stalls(stall);
            limited
                .map_err(|error| CopyError::of_connection(error, &handle.progress, Some(&handle.client)))?;
            work.into_inner()(&mut stream, job)
        });
        let result = moved.await;
        self.handle.detach();
        result
    }

    /// A slot for this transfer, after at most `data_connect_timeout`.
    async fn slot(&self, request: SlotRequest) -> Result<Slot, TransferFailure> {
        let workers = &self.node.workers;
        let setting = match workers.try_transfer(&request) {
            Ok(slot) => return Ok(slot),
            Err(setting) => setting,
        };
        metrics::limit_reached(setting);
        tokio::select! {
            () = self.handle.cancellation() => Err(self.cancelled()),
            slot = timeout(self.node.timeouts.data_connect, workers.transfer(request)) => {
                slot.map_err(|_| TransferFailure::NoSlot { setting })
            }
        }
    }

    fn cancelled(&self) -> TransferFailure {
        CopyError::of_cancellation(&self.handle.progress).into()
    }

    fn connection_error(&self, error: std::io::Error) -> TransferFailure {
        CopyError::of_connection(error, &self.handle.progress, Some(&self.handle.client)).into()
    }
}

/// Returns after `limit`; never if it is zero.
async fn stall(limit: Duration) {
    if limit.is_zero() { std::future::pending().await } else { tokio::time::sleep(limit).await }
}

/// A transfer that has ended, with or without success.
struct EndedTransfer {
    kind: TransferKind,
    path: VirtualPath,
    /// The path from the root of the storage.
    stored_at: Vec<u8>,
    coding: Coding,
    audited: AuditedCommand,
    result: Result<(), TransferFailure>,
}

/// The text of the reply to a complete transfer of a file.
fn receipt(node: &Node, handle: &ActivityHandle) -> ReplyText {
    match handle.progress.digest() {
        Some(digest) if node.storage.upload_digest == UploadDigest::InReply => {
            format!("Transfer complete; SHA-256 {}", hex::encode(digest)).into()
        }
        _ => "Transfer complete".into(),
    }
}

/// The one place that turns the end of a transfer into its reply, its log line and metrics.
fn conclude(node: &Node, failures: &FailureLog, handle: &ActivityHandle, ended: EndedTransfer) -> Reply {
    let bytes = handle.progress.transferred();
    let took = handle.started.elapsed();
    let (reply, result) = match &ended.result {
        Ok(()) if ended.kind == TransferKind::Listing => {
            (Reply::new(Code::TRANSFER_COMPLETE, "Directory listing completed"), "complete")
        }
        Ok(()) => (Reply::new(Code::TRANSFER_COMPLETE, receipt(node, handle)), "complete"),
        Err(failure) => failure.reply(node.timeouts.stall),
    };
    metrics::transfer_ended(ended.kind.name(), result, bytes, took);
    let moved = MovedBytes {
        offset: handle.progress.start(),
        bytes,
        seconds: seconds(took),
        ascii: ended.coding == Coding::Ascii,
        sha256: handle.progress.digest(),
    };
    let end = TransferEnd { direction: ended.kind.name(), moved, result };
    if ended.result.is_ok() {
        log_success(failures, handle, &ended, end);
    }
    let operation = Operation {
        verb: handle.verb,
        audited: &ended.audited,
        path: Some(&ended.path),
        transfer: Some(end),
        cancelled_by: handle.cancelled_by(),
    };
    failures.report(operation, &reply);
    if ended.kind != TransferKind::Listing {
        let identity = failures.identity();
        node.transfer_log.record(&transfer_log::LoggedTransfer {
            client: identity.address,
            user: &identity.user,
            path: &ended.stored_at,
            bytes,
            took,
            ascii: ended.coding == Coding::Ascii,
            upload: ended.kind == TransferKind::Upload,
            complete: ended.result.is_ok(),
        });
    }
    reply
}

fn log_success(failures: &FailureLog, handle: &ActivityHandle, ended: &EndedTransfer, end: TransferEnd) {
    let level = if ended.kind == TransferKind::Listing { log::Level::Debug } else { log::Level::Info };
    let TransferEnd { direction, moved: MovedBytes { bytes, seconds, .. }, result } = end;
    log_session!(
        level, failures.identity(), verb = handle.verb, path:% = ended.path, bytes, seconds, result;
        "{direction}"
    );
}

/// Seconds, to the millisecond.
fn seconds(time: Duration) -> f64 {
    time.as_millis() as f64 / 1000.0
}

/// Counts a transfer for the registry and the metrics while it runs.
struct TransferCount<'n>(&'n Node);

impl<'n> TransferCount<'n> {
    fn start(node: &'n Node) -> Self {
        use std::sync::atomic::Ordering::Relaxed;
        metrics::transfers(node.registry.transfers().fetch_add(1, Relaxed) + 1);
        Self(node)
    }
}

impl Drop for TransferCount<'_> {
    fn drop(&mut self) {
        use std::sync::atomic::Ordering::Relaxed;
        metrics::transfers(self.0.registry.transfers().fetch_sub(1, Relaxed) - 1);
    }
}
