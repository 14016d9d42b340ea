//! How far a long operation is, and the wish to end it: shared with the control connection.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Shared by the thread that works and the one that watches it.
#[derive(Debug, Default)]
pub struct Progress {
    transferred: AtomicU64,
    cancelled: AtomicBool,
}

impl Progress {
    /// Bytes so far: on the wire for transfers, of the files for checksums and COMB.
    pub fn transferred(&self) -> u64 {
        self.transferred.load(Ordering::Relaxed)
    }

    pub fn add(&self, bytes: u64) {
        self.transferred.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Asks the work to end at its next step. A thread that waits in a socket is woken by
    /// `shutdown(Both)` on that socket, *after* this: an end of file that it then sees counts as
    /// the cancellation.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }
}
