//! What runs on behalf of a command while its session goes on reading: transfers, listings and
//! other long work. ABOR, STAT, NOOP and QUIT are answered meanwhile.

use std::{
    fmt,
    net::{Shutdown, TcpStream},
    os::fd::AsRawFd,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nix::sys::socket::{MsgFlags, recv};
use tokio::{sync::Notify, time::sleep};

use crate::{data::progress::Progress, jail::path::VirtualPath, protocol::reply::Reply};

/// An upload whose client has left ends at the latest after this many times the limit for silence.
const MOST_SILENCES: u32 = 10;

/// Something that runs, and ends with a reply.
pub struct Activity {
    pub watch: Arc<Watch>,
    /// Whether it asks [`Progress::client_has_left`], and goes on with [`Watch::see_off`] then: an upload.
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
    /// Its data connection has come.
    is_connected: AtomicBool,
    cancelled: Notify,
    cancelled_by: OnceLock<CancelledBy>,
    departed: Notify,
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
    /// It was slower than `minimum_rate`.
    TooSlow,
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
            Self::TooSlow => "too_slow",
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
            Self::TooSlow => "the transfer was slower than minimum_rate",
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
            is_connected: AtomicBool::new(false),
            cancelled: Notify::new(),
            cancelled_by: OnceLock::new(),
            departed: Notify::new(),
        })
    }

    /// Whether the replies to the commands after it wait for its reply. STAT with a path is short, so that nothing
    /// needs an answer meanwhile, and clients may pipeline commands after it. ABOR is heard all the same.
    pub fn keeps_order(&self) -> bool {
        self.verb == "STAT"
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
        self.shut_down(Shutdown::Both);
        self.cancelled.notify_one();
    }

    fn shut_down(&self, how: Shutdown) {
        if let Some(socket) = &*self.socket.lock().unwrap_or_else(PoisonError::into_inner) {
            // It may have ended by itself.
            let _ = socket.shutdown(how);
        }
    }

    /// The client has closed the control connection in an upload: what is on its way is still stored.
    /// Waits for it until nothing came for as long as `silence`, or for `MOST_SILENCES` times as long;
    /// then the upload ends soon. Cancel-safe.
    pub async fn see_off(&self, silence: Duration) {
        self.progress.client_left();
        self.departed.notify_one();
        let mut moved = self.progress.transferred();
        for _ in 0..MOST_SILENCES {
            sleep(silence).await;
            let is_connected = self.is_connected.load(Ordering::Acquire);
            let is_silent = self.progress.transferred() == moved && !self.has_unread();
            moved = self.progress.transferred();
            match (is_connected, is_silent) {
                (false, _) => break,
                (true, true) => self.cut_off(),
                (true, false) => {}
            }
        }
        let _ = self.cancelled_by.set(CancelledBy::ClientGone);
        self.progress.give_up();
        self.shut_down(Shutdown::Both);
        self.cancelled.notify_one();
    }

    /// Ends the stream after what has come so far.
    fn cut_off(&self) {
        self.progress.cut_off();
        self.shut_down(Shutdown::Read);
    }

    /// Whether bytes wait in the data connection for a thread that is slower.
    fn has_unread(&self) -> bool {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        socket.as_ref().is_some_and(|socket| recv(socket.as_raw_fd(), &mut [0], flags).is_ok_and(|n| n > 0))
    }

    /// Returns once the client has left. One waiter at a time.
    pub async fn departure(&self) {
        if !self.progress.client_has_left() {
            self.departed.notified().await;
        }
    }

    /// The data connection has come.
    pub fn connected(&self) {
        self.is_connected.store(true, Ordering::Release);
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
        } else if self.progress.is_cut_off() {
            let _ = socket.shutdown(Shutdown::Read);
        }
    }

    /// Whether a thread uses the data connection.
    pub fn is_attached(&self) -> bool {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// The connection is done with: it closes when its thread has dropped it too.
    pub fn detach(&self) {
        *self.socket.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
