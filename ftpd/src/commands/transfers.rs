//! What all transfers have in common, and RETR, REST, RANG (RFC 959 section 4.1, RFC 3659 section 5).

mod minimum_rate;

use std::{sync::Arc, time::Duration};

use common::{
    policy::Permission,
    process::logging::chain,
    registry::{self, WriteLease},
};
use tokio::time::timeout;

use crate::{
    activity::{Activity, CancelledBy, Watch},
    data::{
        DataPort, NoDataConnection, Protection, connected::Connected, progress::Progress, stream::DataStream,
        transfer::TransferError,
    },
    failure::{CANCELLED, Failure, Failures, Operation, TransferEnd},
    jail::{FileError, OpenFile, path::VirtualPath},
    metrics,
    node::Node,
    protocol::{Code, Reply, command::ByteRange},
    session::{LoggedIn, Outcome},
    tls::TlsPolicy,
    transfer_log,
    workers::{Claim, OffRuntime, Place},
};

pub use self::minimum_rate::MinimumRate;

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Download,
    Upload,
    Listing,
}

impl Direction {
    fn name(self) -> &'static str {
        match self {
            Self::Download => "download",
            Self::Upload => "upload",
            Self::Listing => "listing",
        }
    }
}

/// What a transfer does with its connection.
pub enum Work {
    /// On a thread of its own: whole and blocking.
    OnThread(OffRuntime<Blocking<()>>),
    /// The same once something has come. What then ends it is the lease, if the work leaves it.
    Receive(OffRuntime<Blocking<Option<LastLease>>>),
    /// Sends this little, which needs no thread.
    Send(Vec<u8>),
}

impl Work {
    /// [`Work::OnThread`].
    pub fn on_thread(
        node: &Node,
        work: impl FnOnce(&mut DataStream, &Progress) -> Result<(), TransferFailure> + Send + 'static,
    ) -> Self {
        Self::OnThread(node.workers.keep(Box::new(work)))
    }

    /// [`Work::Receive`].
    pub fn receive(
        node: &Node,
        work: impl FnOnce(&mut DataStream, &Progress) -> Result<Option<LastLease>, TransferFailure>
        + Send
        + 'static,
    ) -> Self {
        Self::Receive(node.workers.keep(Box::new(work)))
    }
}

/// The lease of an upload that has ended well, to be given back before the reply.
pub struct LastLease {
    pub lease: WriteLease,
    /// Whether the upload is complete only if the lease was held until now. A lock on the storage that
    /// crosses nodes proves as much.
    pub decides: bool,
}

/// What a transfer does on its thread, with its connection.
pub type Blocking<T> = Box<dyn FnOnce(&mut DataStream, &Progress) -> Result<T, TransferFailure> + Send>;

/// A transfer that is about to start.
pub struct Transfer {
    pub verb: &'static str,
    pub direction: Direction,
    pub path: VirtualPath,
    pub work: Work,
}

/// Why a transfer did not end well.
#[derive(Debug, thiserror::Error)]
pub enum TransferFailure {
    #[error(transparent)]
    NoConnection(#[from] NoDataConnection),
    #[error("no place for a transfer became free within data_connect_timeout ({setting})")]
    NoPlace { setting: &'static str },
    #[error("the transfer moved fewer than {minimum} bytes a second (minimum_rate, minimum_rate_time)")]
    TooSlow { minimum: u64 },
    #[error(transparent)]
    Failed(#[from] TransferError),
    #[error("{got} bytes came of {announced} that ALLO announced")]
    Short { announced: u64, got: u64 },
    #[error("the file became shorter: {sent} bytes of {wanted} were sent")]
    Shrunk { wanted: u64, sent: u64 },
    #[error("another session has taken the right to write this path")]
    LeaseLost,
}

impl TransferFailure {
    /// The last reply to the command, and a name for metrics. `stall`: the limit that a stalled transfer met.
    fn reply(&self, stall: Duration) -> (Reply, &'static str) {
        let lost = |text: &'static str| Reply::new(Code::TRANSFER_ABORTED, text);
        match self {
            Self::NoConnection(NoDataConnection::NotResumed) => (
                Reply::new(
                    Code::UNSUPPORTED_FAMILY,
                    "The data connection must resume the control connection's TLS session",
                ),
                "not_resumed",
            ),
            Self::NoConnection(NoDataConnection::Handshake(_)) => {
                (Reply::new(Code::UNSUPPORTED_FAMILY, "TLS failed on the data connection"), "tls_failed")
            }
            Self::NoConnection(_) => {
                (Reply::new(Code::NO_DATA_CONNECTION, "No data connection"), "no_connection")
            }
            Self::NoPlace { .. } => {
                (Reply::new(Code::FILE_BUSY, "Too many transfers, try again"), "no_place")
            }
            Self::TooSlow { minimum } => {
                let text = format!("Transfer too slow: fewer than {minimum} bytes a second");
                (Reply::new(Code::TRANSFER_ABORTED, text), "too_slow")
            }
            Self::Failed(TransferError::Cancelled) => (lost("Transfer aborted"), "aborted"),
            Self::Failed(TransferError::ClientLeft) => {
                (lost("The control connection was closed; what arrived is kept"), "client_gone")
            }
            Self::Failed(TransferError::Stalled) => {
                let text = format!("Transfer stalled: no data for {} s", stall.as_secs_f64());
                (Reply::new(Code::TRANSFER_ABORTED, text), "stalled")
            }
            Self::Failed(TransferError::NoCloseNotify) => {
                let text = "Upload ended without TLS close_notify (tls_close_notify); what arrived is kept";
                (lost(text), "no_close_notify")
            }
            Self::Failed(TransferError::ConnectionLost(_)) => {
                (lost("The data connection was lost"), "connection_lost")
            }
            Self::Failed(TransferError::File(error)) => (error.refusal(), "storage"),
            Self::Failed(TransferError::OverQuota) => {
                (Reply::new(Code::QUOTA_EXCEEDED, "Quota exceeded"), "quota")
            }
            Self::Failed(TransferError::QuotaUnknown) => {
                (Reply::new(Code::LOCAL_ERROR, "The quota cannot be checked at this time"), "quota_unknown")
            }
            Self::Short { .. } => (lost("Fewer bytes than ALLO announced; they are kept"), "short"),
            Self::Shrunk { .. } => {
                (Reply::new(Code::LOCAL_ERROR, "The file became shorter while it was sent"), "shrunk")
            }
            Self::LeaseLost | Self::Failed(TransferError::NoRight) => {
                (Reply::new(Code::LOCAL_ERROR, "Another session writes this file"), "lease_lost")
            }
        }
    }
}

impl TransferFailure {
    /// What the log and the metrics tell of it. `result`: the label of [`Self::reply`].
    fn failure(&self, result: &'static str) -> Failure {
        match self {
            Self::Failed(TransferError::File(error)) => error.failure(),
            Self::Failed(TransferError::Cancelled) => Failure::from(CANCELLED),
            _ => Failure { detail: Some(chain(self).into()), ..Failure::from(result) },
        }
    }
}

/// What PASV, EPSV, PORT or EPRT arranged.
///
/// # Errors
/// 425: nothing was arranged. 521: the connection would not be encrypted, but must be (RFC 4217
/// section 9).
pub fn take_port(session: &mut LoggedIn) -> Result<DataPort, Reply> {
    let node_requires = session.node.tls.as_ref().is_some_and(|tls| tls.settings.data == TlsPolicy::Required);
    if !session.is_private && (node_requires || session.account.tls.data) {
        session.data_port = None;
        return Err(Reply::new(Code::PROTECTION_REQUIRED, "Data connections must be encrypted: PROT P"));
    }
    let port = session.data_port.take();
    if port.as_ref().is_some_and(DataPort::is_given_up) {
        let text = "The passive port was given up (data_connect_timeout): send PASV or EPSV again";
        return Err(Reply::new(Code::NO_DATA_CONNECTION, text).because("passive_port_given_up"));
    }
    port.ok_or_else(|| {
        Reply::new(Code::NO_DATA_CONNECTION, "PASV, EPSV, PORT or EPRT comes first").because("no_data_port")
    })
}

/// Starts a transfer: `opening` goes to the client at once, everything else runs beside the
/// control connection.
pub fn start(session: &LoggedIn, port: DataPort, transfer: Transfer, opening: Reply) -> Outcome {
    let node = Arc::clone(&session.node);
    let failures = Arc::clone(&session.failures);
    let ascii = session.representation.converts();
    let protection = match &session.node.tls {
        Some(tls) if session.is_private => Some(Protection {
            tls: Arc::clone(tls),
            session: session.subject.session,
            resumes: Arc::clone(&session.resumes),
            close_notify_required: session
                .account
                .tls
                .close_notify
                .unwrap_or(tls.settings.close_notify_required),
        }),
        _ => None,
    };
    let Transfer { verb, direction, path, work } = transfer;
    let stored_at = session.jail.path_in_storage(&path);
    let watch = Watch::new(verb);
    let watched = Arc::clone(&watch);
    let claim = session.transfer_claim();
    let end = async move {
        let count = Count::new(&node);
        let connection = port.connect(node.timeouts.data_connect, protection);
        let result = tokio::select! {
            result = run(&node, &watched, claim, connection, work) => result,
            never = node.limits.minimum_rate.enforce(&watched, direction) => match never {},
        };
        let result = result.map_err(|failure| match watched.cancelled_by() {
            Some(CancelledBy::TooSlow) => TransferFailure::TooSlow { minimum: node.limits.minimum_rate.rate },
            _ => failure,
        });
        drop(count);
        conclude(&node, &failures, &watched, Ended { direction, path, stored_at, ascii, result })
    };
    let asks_for_client = direction == Direction::Upload;
    Outcome::Start(Some(opening), Activity { watch, asks_for_client, end: Box::pin(end) })
}

/// Runs long work that needs no data connection; `work` ends with the command's reply.
pub fn run_in_background(
    session: &LoggedIn,
    watch: Arc<Watch>,
    work: impl FnOnce() -> Reply + Send + 'static,
) -> Outcome {
    let (node, failures) = (Arc::clone(&session.node), Arc::clone(&session.failures));
    let watched = Arc::clone(&watch);
    let claim = session.claim();
    let end = async move {
        let reply = match place_for_long_work(&node, &watched, claim).await {
            Ok(place) => node.workers.run_long(place, work).await,
            Err(reply) => {
                // A worker closes the files that the work holds.
                node.workers.operation(move || drop(work)).await;
                reply
            }
        };
        let (path, cancelled_by) = (watched.path.get(), watched.cancelled_by());
        failures.report(Operation { verb: watched.verb, path, transfer: None, cancelled_by }, &reply);
        reply
    };
    Outcome::Start(None, Activity { watch, asks_for_client: false, end: Box::pin(end) })
}

/// A place for a long command, at most `long_operation_wait` later.
///
/// # Errors
/// The reply: cancelled, or 450 because there is none.
async fn place_for_long_work(node: &Node, watch: &Watch, claim: Claim) -> Result<Place, Reply> {
    let setting = match node.workers.try_long(&claim) {
        Ok(place) => return Ok(place),
        Err(setting) => setting,
    };
    metrics::limit_reached(setting);
    let patience = node.timeouts.long_operation_wait;
    tokio::select! {
        () = watch.cancellation() => Err(FileError::Cancelled.refusal()),
        place = timeout(patience, node.workers.long(claim)) => place.map_err(|_| {
            let detail = format!(
                "no place for a long command became free within {} s ({setting}, long_operation_wait)",
                patience.as_secs_f64()
            );
            let failure = Failure { detail: Some(detail.into()), ..Failure::from("no_place") };
            Reply::new(Code::FILE_BUSY, "Too many long commands at once, try again").because(failure)
        }),
    }
}

async fn run(
    node: &Node,
    watch: &Watch,
    claim: Claim,
    connection: impl Future<Output = Result<Connected, NoDataConnection>>,
    work: Work,
) -> Result<(), TransferFailure> {
    let connected = tokio::select! {
        () = watch.cancellation() => Err(watch.progress.why_cancelled().into()),
        connected = connection => connected.map_err(Into::into),
    };
    watch.connected();
    match work {
        Work::Send(content) => send(node, watch, connected?, &content).await,
        Work::OnThread(work) => run_on_thread(node, watch, claim, connected, work).await,
        Work::Receive(work) => {
            let unusable = |error| TransferError::of_connection(error, &watch.progress).into();
            let mut connected = connected.and_then(|connection| connection.watched().map_err(unusable));
            if let Ok(connection) = &mut connected {
                tokio::select! {
                    biased;
                    () = watch.cancellation() => {}
                    () = connection.gather(SMALL, node.timeouts.stall, &watch.progress) => {}
                    // The thread takes what is there.
                    () = watch.departure() => {}
                }
            }
            let ended = run_on_thread(node, watch, claim, connected, work).await?;
            let Some(LastLease { lease, decides }) = ended else { return Ok(()) };
            if lease.give_back().await || !decides { Ok(()) } else { Err(TransferFailure::LeaseLost) }
        }
    }
}

/// Sends `content` from here: a thread would cost more than the sending.
async fn send(
    node: &Node,
    watch: &Watch,
    connection: Connected,
    content: &[u8],
) -> Result<(), TransferFailure> {
    let limit = node.timeouts.stall;
    let sent = tokio::select! {
        () = watch.cancellation() => return Err(TransferError::Cancelled.into()),
        sent = connection.send(content) => sent,
        () = stalled(limit) => return Err(TransferError::Stalled.into()),
    };
    sent.map_err(|error| TransferError::of_connection(error, &watch.progress))?;
    watch.progress.add(content.len() as u64);
    Ok(())
}

/// Returns after `limit`; zero is no limit.
async fn stalled(limit: Duration) {
    if limit.is_zero() { std::future::pending().await } else { tokio::time::sleep(limit).await }
}

async fn run_on_thread<T: Send + 'static>(
    node: &Node,
    watch: &Watch,
    claim: Claim,
    connected: Result<Connected, TransferFailure>,
    work: OffRuntime<Blocking<T>>,
) -> Result<T, TransferFailure> {
    let place = match node.workers.try_transfer(&claim) {
        Ok(place) => Ok(place),
        Err(setting) => {
            metrics::limit_reached(setting);
            tokio::select! {
                () = watch.cancellation() => Err(watch.progress.why_cancelled().into()),
                place = timeout(node.timeouts.data_connect, node.workers.transfer(claim)) => {
                    place.map_err(|_| TransferFailure::NoPlace { setting })
                }
            }
        }
    };
    let unusable = |error| TransferError::of_connection(error, &watch.progress).into();
    let stream = connected.and_then(|connected| connected.for_thread().map_err(unusable));
    let (mut stream, place) = match stream.and_then(|stream| Ok((stream, place?))) {
        Ok(both) => both,
        Err(failure) => {
            // A worker closes the files and removes what was made for nothing. The reply comes after that.
            node.workers.operation(move || drop(work)).await;
            return Err(failure);
        }
    };
    watch.attach(stream.socket());
    let progress = Arc::clone(&watch.progress);
    let stall = node.timeouts.stall;
    let result = node
        .workers
        .run_long(place, move || {
            stream.limit_stalls(stall).map_err(|error| TransferError::of_connection(error, &progress))?;
            work.into_inner()(&mut stream, &progress)
        })
        .await;
    watch.detach();
    result
}

/// A transfer that has ended, however.
struct Ended {
    direction: Direction,
    path: VirtualPath,
    /// The path from the root of the storage.
    stored_at: Vec<u8>,
    ascii: bool,
    result: Result<(), TransferFailure>,
}

/// The one place where the end of a transfer becomes a reply, a log line and metrics.
fn conclude(node: &Node, failures: &Failures, watch: &Watch, ended: Ended) -> Reply {
    let subject = failures.subject();
    let bytes = watch.progress.transferred();
    let took = watch.started.elapsed();
    let (reply, result) = match &ended.result {
        Ok(()) if ended.direction == Direction::Listing => {
            (Reply::new(Code::TRANSFER_COMPLETE, "Directory listing completed"), "complete")
        }
        Ok(()) => (Reply::new(Code::TRANSFER_COMPLETE, "Transfer complete"), "complete"),
        Err(failure) => {
            let (reply, result) = failure.reply(node.timeouts.stall);
            (reply.because(failure.failure(result)), result)
        }
    };
    metrics::transfer_ended(ended.direction.name(), result, bytes, took);
    let direction = ended.direction.name();
    if ended.result.is_ok() {
        let level = if ended.direction == Direction::Listing { log::Level::Debug } else { log::Level::Info };
        log::log!(
            level,
            session:% = subject.session, user = subject.user.as_str(), address:% = subject.address,
            verb = watch.verb, path:% = ended.path, bytes, seconds = seconds(took), result;
            "{direction}"
        );
    } else {
        let operation = Operation {
            verb: watch.verb,
            path: Some(&ended.path),
            transfer: Some(TransferEnd { direction, bytes, seconds: seconds(took), result }),
            cancelled_by: watch.cancelled_by(),
        };
        failures.report(operation, &reply);
    }
    if ended.direction != Direction::Listing {
        node.transfer_log.record(&transfer_log::LoggedTransfer {
            client: subject.address,
            user: &subject.user,
            path: &ended.stored_at,
            bytes,
            took,
            ascii: ended.ascii,
            upload: ended.direction == Direction::Upload,
            complete: ended.result.is_ok(),
        });
    }
    reply
}

/// To the millisecond.
fn seconds(time: Duration) -> f64 {
    time.as_millis() as f64 / 1000.0
}

/// Counts a transfer for the registry and the metrics while it runs.
struct Count(Arc<Node>);

impl Count {
    fn new(node: &Arc<Node>) -> Self {
        use std::sync::atomic::Ordering::Relaxed;
        metrics::transfers(node.registry.transfers().fetch_add(1, Relaxed) + 1);
        Self(Arc::clone(node))
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        use std::sync::atomic::Ordering::Relaxed;
        metrics::transfers(self.0.registry.transfers().fetch_sub(1, Relaxed) - 1);
    }
}

/// REST: where the next transfer begins (RFC 3659 section 5).
pub fn rest(session: &mut LoggedIn, offset: u64) -> Reply {
    session.offset = offset;
    Reply::new(Code::PENDING, format!("Restarting at {offset}"))
}

/// RANG: which bytes the next RETR or HASH is of (draft-bryan-ftp-range).
pub fn rang(session: &mut LoggedIn, range: Option<ByteRange>) -> Reply {
    session.range = range;
    match range {
        Some(ByteRange { start, end }) => {
            Reply::new(Code::PENDING, format!("Restarting at {start}, ending at {end}"))
        }
        None => Reply::new(Code::PENDING, "Range taken back"),
    }
}

/// The offset of REST, used up.
///
/// # Errors
/// 554 in TYPE A, where an offset would count bytes that are not in the file.
pub fn take_offset(session: &mut LoggedIn) -> Result<u64, Reply> {
    match std::mem::take(&mut session.offset) {
        0 => Ok(0),
        _ if session.representation.converts() => {
            Err(Reply::new(Code::BAD_OFFSET, "REST works in TYPE I only"))
        }
        offset => Ok(offset),
    }
}

/// Bytes of a file that are read as soon as it is opened, and sent without a thread of their own;
/// and bytes of an upload that come before a thread takes it. To go to one and back costs more than
/// to move so many. A session that never fetches them, or sends the rest, holds them as long as it
/// waits.
const SMALL: usize = 16 * 1024;

/// What RETR sends.
enum Source {
    Content(Vec<u8>),
    File(OffRuntime<OpenFile>),
}

/// RETR.
pub async fn retr(session: &mut LoggedIn, verb: &'static str, argument: &[u8]) -> Result<Outcome, Reply> {
    let range = session.range.take();
    let offset = take_offset(session)?;
    let port = take_port(session)?;
    let path = session.path(argument)?;
    session.allow(Permission::Download, &path)?;
    let opened = path.clone();
    let ascii = session.representation.converts();
    let governor = session.lanes.govern(
        &session.node,
        &session.account.user,
        registry::BandwidthDirection::Download,
        None,
    );
    let may_be_sent_at_once = !ascii && governor.is_none();
    let node = Arc::clone(&session.node);
    let (size, bytes, source) = session
        .in_home(move |jail| {
            let file = jail.open_read(&opened)?;
            let size = file.size;
            let bytes = match range {
                Some(range) => range.start..range.end.saturating_add(1).min(size),
                None => offset..size,
            };
            let content = if may_be_sent_at_once { file.content(&bytes, SMALL as u64)? } else { None };
            Ok((size, bytes, content.map_or_else(|| Source::File(node.workers.keep(file)), Source::Content)))
        })
        .await?;
    if bytes.start > size {
        return Err(Reply::new(Code::BAD_OFFSET, "Restart offset is beyond the end of the file"));
    }
    let wanted = bytes.end.saturating_sub(bytes.start);
    let mut text = b"Opening data connection for ".to_vec();
    text.extend_from_slice(argument);
    if !ascii {
        text.extend_from_slice(format!(" ({wanted} bytes)").as_bytes());
    }
    let work = match source {
        Source::Content(content) => Work::Send(content),
        Source::File(file) => Work::on_thread(&session.node, move |stream, progress| {
            let file = file.into_inner();
            progress.govern(governor);
            if ascii {
                stream.send_ascii(&file.file, bytes, progress)?;
            } else {
                let sent = stream.send_file(&file.file, bytes, progress)?;
                if sent < wanted {
                    return Err(TransferFailure::Shrunk { wanted, sent });
                }
            }
            Ok(stream.finish(progress)?)
        }),
    };
    let transfer = Transfer { verb, direction: Direction::Download, path, work };
    Ok(start(session, port, transfer, Reply::new(Code::OPENING_DATA_CONNECTION, text)))
}
