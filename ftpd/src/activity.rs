//! What runs on behalf of a command while its session goes on reading: transfers, listings and
//! other long work. ABOR, STAT, NOOP and QUIT are answered meanwhile.

use std::{
    fmt,
    net::{Shutdown, TcpStream},
    pin::Pin,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Instant,
};

use tokio::sync::Notify;

use crate::{data::progress::Progress, jail::path::VirtualPath, protocol::reply::Reply};

/// Something that runs, and ends with a reply.
pub struct Activity {
    pub watch: Arc<Watch>,
    /// Whether it asks [`Progress::client_has_left`].
    pub asks_for_client: bool,
    pub end: Pin<Box<dyn Future<Output = Reply> + Send>>,
}

/// What the control connection sees of an activity, and how it ends it early.
pub struct Watch {
    /// `RETR`, `LIST`, …
    pub verb: &'static str,
    pub started: Instant,
    pub progress: Arc<Progress>,
    /// What the command's argument names. Set before the activity runs.
    pub path: OnceLock<VirtualPath>,
    socket: Mutex<Option<Arc<TcpStream>>>,
    cancelled: Notify,
    cancelled_by: OnceLock<CancelledBy>,
}

/// Why an activity was ended early. `Display` is for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelledBy {
    Abor,
    ClientGone,
    Administrator,
    /// After `drain_timeout`, or a second signal.
    NodeStop,
    /// The node ended the session for another reason, which its own line of the log names.
    SessionEnd,
    /// The control connection's descriptor could not be duplicated.
    NoDescriptor,
}

impl CancelledBy {
    /// The label of `ftp_operations_failed_total`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Abor => "aborted",
            Self::ClientGone => "client_gone",
            Self::Administrator => "ended_by_administrator",
            Self::NodeStop => "node_stop",
            Self::SessionEnd => "session_end",
            Self::NoDescriptor => "too_many_open_files",
        }
    }
}

impl fmt::Display for CancelledBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Abor => "the client sent ABOR",
            Self::ClientGone => "the client closed the control connection",
            Self::Administrator => "an administrator ended the session",
            Self::NodeStop => "the node stops, and drain_timeout is over",
            Self::SessionEnd => "the node ended the session",
            Self::NoDescriptor => "the node has too many open files",
        })
    }
}

impl Watch {
    pub fn new(verb: &'static str) -> Arc<Self> {
        Arc::new(Self {
            verb,
            started: Instant::now(),
            progress: Arc::default(),
            path: OnceLock::new(),
            socket: Mutex::default(),
            cancelled: Notify::new(),
            cancelled_by: OnceLock::new(),
        })
    }

    pub fn is_cancelled(&self) -> bool {
        self.progress.is_cancelled()
    }

    pub fn cancelled_by(&self) -> Option<CancelledBy> {
        self.cancelled_by.get().copied()
    }

    /// Makes the activity end soon: its thread sees the flag or its socket's end. The first cause stays.
    pub fn cancel(&self, by: CancelledBy) {
        let _ = self.cancelled_by.set(by);
        self.progress.cancel();
        if let Some(socket) = &*self.socket.lock().unwrap_or_else(PoisonError::into_inner) {
            // It may have ended by itself.
            let _ = socket.shutdown(Shutdown::Both);
        }
        self.cancelled.notify_one();
    }

    /// Returns once the activity is cancelled. One waiter at a time.
    pub async fn cancellation(&self) {
        if !self.is_cancelled() {
            self.cancelled.notified().await;
        }
    }

    /// Lets [`Self::cancel`] end this connection, also if it was called before.
    pub fn attach(&self, socket: &Arc<TcpStream>) {
        *self.socket.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(socket));
        if self.is_cancelled() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// The connection is done with: it closes when its thread has dropped it too.
    pub fn detach(&self) {
        *self.socket.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
