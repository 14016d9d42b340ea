//! How far a long operation is, and the wish to end it: shared with the control connection.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// Shared by the thread that works and the one that watches it.
#[derive(Debug, Default)]
pub struct Progress {
    transferred: AtomicU64,
    cancelled: AtomicBool,
    control: OnceLock<OwnedFd>,
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
    /// Tells the work which control connection it belongs to. Once, before it starts.
    pub fn belong_to(&self, control: OwnedFd) {
        // A second call would be a bug, and the first connection is as good.
        let _ = self.control.set(control);
    }

    /// Whether the client's side of the control connection is closed, also where commands that
    /// were not read yet stand before its end. The kernel is asked, because the task that reads
    /// the connection may not have come to it yet.
    pub fn client_has_left(&self) -> bool {
        let Some(control) = self.control.get() else { return false };
        let mut poll = libc::pollfd { fd: control.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
        // SAFETY: `poll` is one valid structure, as the count says, and 0 does not wait.
        let found = unsafe { libc::poll(&mut poll, 1, 0) };
        found != 0
    }
}
