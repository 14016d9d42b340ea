//! What runs on behalf of a command while its session goes on reading: transfers, listings and
//! other long work. ABOR, STAT, NOOP and QUIT are answered meanwhile.

use std::{
    net::{Shutdown, TcpStream},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tokio::sync::Notify;

use crate::{data::progress::Progress, protocol::reply::Reply};

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
    socket: Mutex<Option<Arc<TcpStream>>>,
    cancelled: Notify,
}

impl Watch {
    pub fn new(verb: &'static str) -> Arc<Self> {
        Arc::new(Self {
            verb,
            started: Instant::now(),
            progress: Arc::default(),
            socket: Mutex::default(),
            cancelled: Notify::new(),
        })
    }

    pub fn is_cancelled(&self) -> bool {
        self.progress.is_cancelled()
    }

    /// Makes the activity end soon: its thread sees the flag or its socket's end.
    pub fn cancel(&self) {
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
