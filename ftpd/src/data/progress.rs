//! How far a long operation is, and the wish to end it: shared with the control connection.

use std::{
    fmt,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::sync::Notify;

use super::transfer::TransferError;
use crate::governor::Governor;

/// Shared by the thread that works and the one that watches it.
#[derive(Default)]
pub struct Progress {
    transferred: AtomicU64,
    cancelled: AtomicBool,
    cancellation: Notify,
    control: OnceLock<OwnedFd>,
    governor: OnceLock<Governor>,
}

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

    pub fn add(&self, bytes: u64) {
        self.transferred.fetch_add(bytes, Ordering::Relaxed);
        if let Some(governor) = self.governor.get() {
            governor.moved(bytes);
        }
    }

    /// [`Self::add`] for what came from the peer and is not stored yet.
    ///
    /// # Errors
    /// [`TransferError::OverQuota`]: it must not be stored.
    pub fn arrived(&self, bytes: u64) -> Result<(), TransferError> {
        self.add(bytes);
        self.governor.get().map_or(Ok(()), |governor| governor.arrived(bytes))
    }

    /// How many of `most` bytes the transfer may move in its next step, one at least. Waits where a
    /// limit of bandwidth wants it.
    ///
    /// # Errors
    /// [`TransferError::Cancelled`], and [`TransferError::QuotaUnknown`].
    pub fn piece(&self, most: usize) -> Result<usize, TransferError> {
        match self.governor.get() {
            _ if self.is_cancelled() => Err(TransferError::Cancelled),
            None => Ok(most),
            Some(governor) => governor.piece(most, self),
        }
    }

    /// Sets what holds the transfer back. Once, before it starts.
    pub fn govern(&self, governor: Option<Governor>) {
        if let Some(governor) = governor {
            // A second call would be a bug, and the first limits are as good.
            let _ = self.governor.set(governor);
        }
    }

    /// Asks the work to end at its next step. A thread that waits in a socket is woken by
    /// `shutdown(Both)` on that socket, *after* this: an end of file that it then sees counts as
    /// the cancellation.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        self.cancellation.notify_one();
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Returns once it is cancelled. For the thread that works.
    pub async fn cancellation(&self) {
        if !self.is_cancelled() {
            self.cancellation.notified().await;
        }
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
