//! The progress of an activity: its byte count, and its cancellation.

use std::{
    fmt,
    sync::{
        OnceLock,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
};

use tokio::sync::Notify;

/// Shared by the worker that does the work and the control connection that watches it.
#[derive(Default)]
pub struct Progress {
    /// Where in its file a transfer begins.
    start: AtomicU64,
    transferred: AtomicU64,
    /// SHA-256 of the file of a complete upload.
    digest: OnceLock<[u8; 32]>,
    /// One of [`RUNNING`], [`CANCELLED`] and [`GIVEN_UP`].
    state: AtomicU8,
    cancellation: Notify,
}

const RUNNING: u8 = 0;
/// Ended by ABOR, or because the session or the node ends.
const CANCELLED: u8 = 1;
/// Ended because the client left, and the time for its remaining bytes is over.
const GIVEN_UP: u8 = 2;

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress")
            .field("transferred", &self.transferred())
            .field("is_cancelled", &self.is_cancelled())
            .finish_non_exhaustive()
    }
}

impl Progress {
    /// Bytes so far: on the wire for transfers, of the files for checksums and COMB.
    pub fn transferred(&self) -> u64 {
        self.transferred.load(Ordering::Relaxed)
    }

    /// Where in its file a transfer begins, as far as it is known.
    pub fn start(&self) -> u64 {
        self.start.load(Ordering::Relaxed)
    }

    pub fn set_start(&self, start: u64) {
        self.start.store(start, Ordering::Relaxed);
    }

    /// SHA-256 of the file of a complete upload, if it was computed (`upload_digest`).
    pub fn digest(&self) -> Option<[u8; 32]> {
        self.digest.get().copied()
    }

    pub fn set_digest(&self, digest: [u8; 32]) {
        // An upload ends once.
        let _ = self.digest.set(digest);
    }

    /// Counts further bytes.
    pub fn add(&self, bytes: u64) {
        self.transferred.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Asks the worker to end at its next step. To wake a worker that waits for a socket, shut the socket
    /// down (`Shutdown::Both`) *after* this call: the worker reads an end of file and then checks the
    /// cancellation.
    pub fn cancel(&self) {
        self.end_early(CANCELLED);
    }

    /// [`Self::cancel`], because the client has left and the time for its remaining bytes is over.
    pub fn give_up(&self) {
        self.end_early(GIVEN_UP);
    }

    fn end_early(&self, state: u8) {
        // The first reason stays.
        let _ = self.state.compare_exchange(RUNNING, state, Ordering::AcqRel, Ordering::Acquire);
        self.cancellation.notify_one();
    }

    /// Returns true after [`Self::cancel`] and [`Self::give_up`].
    pub fn is_cancelled(&self) -> bool {
        self.state.load(Ordering::Acquire) != RUNNING
    }

    /// Returns true if [`Self::give_up`] ended the work.
    pub fn is_given_up(&self) -> bool {
        self.state.load(Ordering::Acquire) == GIVEN_UP
    }

    /// Returns once the work is cancelled. For the worker; one waiter at a time.
    pub async fn cancellation(&self) {
        if !self.is_cancelled() {
            self.cancellation.notified().await;
        }
    }
}
