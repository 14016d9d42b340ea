//! Activities: transfers and long commands, which run beside the control connection. ABOR, STAT, NOOP and
//! QUIT are answered meanwhile.

use std::{
    fmt,
    net::{Shutdown, TcpStream},
    os::fd::AsRawFd,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use common::sync::lock;
use nix::sys::socket::{MsgFlags, recv};
use tokio::{sync::Notify, time::sleep};

use super::{presence::ClientPresence, progress::Progress};
use crate::{protocol::reply::Reply, virtual_path::VirtualPath};

/// Maximum time for which an upload goes on after its client has left, as a multiple of `silence`.
const MAX_SILENCES: u32 = 10;

/// A transfer or a long command.
pub struct Activity {
    pub handle: Arc<ActivityHandle>,
    /// An upload asks [`ClientPresence::has_left`], and goes on for a while after the control connection has
    /// ended: see [`ActivityHandle::await_rest`].
    pub is_upload: bool,
    /// Runs the activity, and returns its final reply.
    pub run: Pin<Box<dyn Future<Output = Reply> + Send>>,
}

/// Shows the control connection the state of an activity, and cancels it.
pub struct ActivityHandle {
    /// `RETR`, `LIST`, …
    pub verb: &'static str,
    pub started: Instant,
    pub progress: Arc<Progress>,
    /// The bytes at which a transfer ends, where they are known.
    pub size: Option<u64>,
    /// Used by uploads only.
    pub client: ClientPresence,
    /// The path that the command's argument names. Set before the activity runs.
    pub path: OnceLock<VirtualPath>,
    /// The data connection, while a worker uses it.
    socket: Mutex<Option<Arc<TcpStream>>>,
    /// The data connection is open.
    is_connected: AtomicBool,
    cancelled: Notify,
    cancelled_by: OnceLock<CancelledBy>,
    client_left: Notify,
}

/// The cause of an early end of an activity. `Display` is for the log.
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
    /// The transfer was slower than `minimum_rate`.
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

impl ActivityHandle {
    pub fn new(verb: &'static str) -> Arc<Self> {
        Self::of_size(verb, None)
    }

    /// The handle of a transfer that ends at `size` bytes, where that is known.
    pub fn of_size(verb: &'static str, size: Option<u64>) -> Arc<Self> {
        Arc::new(Self {
            verb,
            size,
            started: Instant::now(),
            progress: Arc::default(),
            client: ClientPresence::default(),
            path: OnceLock::new(),
            socket: Mutex::default(),
            is_connected: AtomicBool::new(false),
            cancelled: Notify::new(),
            cancelled_by: OnceLock::new(),
            client_left: Notify::new(),
        })
    }

    /// Returns true if later commands, except ABOR, wait for this activity's reply. This holds for STAT with
    /// a path: it is short, and clients that pipeline commands expect the replies in order.
    pub fn keeps_order(&self) -> bool {
        self.verb == "STAT"
    }

    pub fn is_cancelled(&self) -> bool {
        self.progress.is_cancelled()
    }

    pub fn cancelled_by(&self) -> Option<CancelledBy> {
        self.cancelled_by.get().copied()
    }

    /// Cancels the activity: its worker notices the flag or the end of its socket, and ends. Only the first
    /// cause is kept.
    pub fn cancel(&self, by: CancelledBy) {
        let _ = self.cancelled_by.set(by);
        self.progress.cancel();
        self.shut_down(Shutdown::Both);
        self.cancelled.notify_one();
    }

    fn shut_down(&self, how: Shutdown) {
        if let Some(socket) = &*lock(&self.socket) {
            // The connection may have ended already.
            let _ = socket.shutdown(how);
        }
    }

    /// Lets an upload whose client has closed the control connection store the bytes that are still in
    /// transit. Returns once no byte has arrived for the time `silence`, at the latest after `MAX_SILENCES`
    /// times `silence`, and cancels the upload. Cancel-safe.
    pub async fn await_rest(&self, silence: Duration) {
        self.client.note_left(self.progress.transferred());
        self.client_left.notify_one();
        let mut moved = self.progress.transferred();
        for _ in 0..MAX_SILENCES {
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

    /// Ends the stream of the data connection after the bytes that have arrived.
    fn cut_off(&self) {
        self.client.cut_off();
        self.shut_down(Shutdown::Read);
    }

    /// Returns true if bytes wait in the data connection for the worker.
    fn has_unread(&self) -> bool {
        let socket = lock(&self.socket);
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        socket.as_ref().is_some_and(|socket| recv(socket.as_raw_fd(), &mut [0], flags).is_ok_and(|n| n > 0))
    }

    /// Returns once the client has left. One waiter at a time.
    pub async fn client_left(&self) {
        if !self.client.has_left() {
            self.client_left.notified().await;
        }
    }

    /// Notes that the data connection is open.
    pub fn note_connected(&self) {
        self.is_connected.store(true, Ordering::Release);
    }

    /// Returns once the activity is cancelled. One waiter at a time.
    pub async fn cancellation(&self) {
        if !self.is_cancelled() {
            self.cancelled.notified().await;
        }
    }

    /// Sets the data connection that [`Self::cancel`] shuts down. If the activity is cancelled already, shuts
    /// it down at once.
    pub fn attach(&self, socket: &Arc<TcpStream>) {
        *lock(&self.socket) = Some(Arc::clone(socket));
        if self.is_cancelled() {
            let _ = socket.shutdown(Shutdown::Both);
        } else if self.client.is_cut_off() {
            let _ = socket.shutdown(Shutdown::Read);
        }
    }

    /// Returns true while a worker uses the data connection.
    pub fn is_attached(&self) -> bool {
        lock(&self.socket).is_some()
    }

    /// Drops this reference to the connection. It closes when the worker has dropped its own.
    pub fn detach(&self) {
        *lock(&self.socket) = None;
    }
}
