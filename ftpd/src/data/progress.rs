//! How far a long operation is, and the wish to end it: shared with the control connection.

use std::{
    fmt,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

use super::transfer::TransferError;
use crate::governor::Governor;

/// How many bytes an upload still takes after its client has closed the control connection: as many
/// as can be on their way in the largest usual buffers of both ends (64 MiB each).
pub const MOST_AFTER_LEAVING: u64 = 128 * 1024 * 1024;

/// Shared by the thread that works and the one that watches it.
#[derive(Default)]
pub struct Progress {
    transferred: AtomicU64,
    /// Bytes that are in the file of an upload; fewer than came in TYPE A.
    stored: AtomicU64,
    /// Says whether an upload may still write.
    may_store: OnceLock<Box<dyn Fn() -> bool + Send + Sync>>,
    /// One of [`RUNNING`], [`CANCELLED`] and [`GIVEN_UP`].
    state: AtomicU8,
    cancellation: Notify,
    /// When the client left, this many bytes had been transferred.
    left_at: OnceLock<u64>,
    /// Nothing more is waited for: the client has left, and the connection is silent.
    is_cut_off: AtomicBool,
    /// Whether the control connection stood when the end of the data was seen.
    stood_at_end: OnceLock<bool>,
    control: OnceLock<OwnedFd>,
    governor: OnceLock<Governor>,
}

const RUNNING: u8 = 0;
/// By ABOR, or because the session or the node ends.
const CANCELLED: u8 = 1;
/// The client left, and the time for what was on its way is over.
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

    /// Sets what says before each write of an upload whether it may still write. Once, before it starts.
    pub fn guard_by(&self, may_store: impl Fn() -> bool + Send + Sync + 'static) {
        // A second call would be a bug, and the first answer is as good.
        let _ = self.may_store.set(Box::new(may_store));
    }

    /// Asked directly before each write to the file of an upload.
    ///
    /// # Errors
    /// [`TransferError::NoRight`]: another session may write the file by now.
    pub fn may_store(&self) -> Result<(), TransferError> {
        if self.may_store.get().is_none_or(|may_store| may_store()) {
            Ok(())
        } else {
            Err(TransferError::NoRight)
        }
    }

    /// Notes bytes that are in the file of an upload.
    pub fn note_stored(&self, bytes: u64) {
        self.stored.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes of an upload that are in its file.
    pub fn stored(&self) -> u64 {
        self.stored.load(Ordering::Relaxed)
    }

    /// How many of `most` bytes the transfer may move in its next step, one at least. Waits where a
    /// limit of bandwidth wants it.
    ///
    /// # Errors
    /// [`TransferError::Cancelled`], [`TransferError::ClientLeft`] and [`TransferError::QuotaUnknown`].
    pub fn piece(&self, most: usize) -> Result<usize, TransferError> {
        let is_enough = |left_at: &u64| self.transferred() - left_at >= MOST_AFTER_LEAVING;
        match self.governor.get() {
            _ if self.is_cancelled() => Err(self.why_cancelled()),
            _ if self.left_at.get().is_some_and(is_enough) => Err(TransferError::ClientLeft),
            None => Ok(most),
            Some(governor) => match governor.piece(most, self) {
                Err(TransferError::Cancelled) => Err(self.why_cancelled()),
                piece => piece,
            },
        }
    }

    /// How long the transfer has waited for its user's bandwidth so far.
    pub fn paced(&self) -> Duration {
        self.governor.get().map_or(Duration::ZERO, Governor::waited)
    }

    /// Whether the end of the data was seen ([`Self::note_end`]).
    pub fn has_seen_end(&self) -> bool {
        self.stood_at_end.get().is_some()
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
        self.end_early(CANCELLED);
    }

    /// [`Self::cancel`], because the client has left and enough has been waited for.
    pub fn give_up(&self) {
        self.end_early(GIVEN_UP);
    }

    fn end_early(&self, state: u8) {
        // The first reason stays.
        let _ = self.state.compare_exchange(RUNNING, state, Ordering::AcqRel, Ordering::Acquire);
        self.cancellation.notify_one();
    }

    /// Cancelled or given up.
    pub fn is_cancelled(&self) -> bool {
        self.state.load(Ordering::Acquire) != RUNNING
    }

    /// What ended it early, if [`Self::is_cancelled`].
    pub fn why_cancelled(&self) -> TransferError {
        match self.state.load(Ordering::Acquire) {
            GIVEN_UP => TransferError::ClientLeft,
            _ => TransferError::Cancelled,
        }
    }

    /// The client has closed the control connection. The work goes on for as long as data comes,
    /// up to [`MOST_AFTER_LEAVING`].
    pub fn client_left(&self) {
        let _ = self.left_at.set(self.transferred());
    }

    /// The client has left, and nothing more comes: an end of file that the work sees from now on is
    /// that of `Watch::cut_off`.
    pub fn cut_off(&self) {
        // After the end of the data no further end is seen.
        if self.stood_at_end.get().is_none() {
            self.is_cut_off.store(true, Ordering::Release);
        }
    }

    pub fn is_cut_off(&self) -> bool {
        self.is_cut_off.load(Ordering::Acquire)
    }

    /// The end of the data was seen: remembers whether the control connection still stood. Only the
    /// first call counts.
    pub fn note_end(&self) {
        self.stood_at_end.get_or_init(|| !self.client_has_left());
    }

    /// Whether the end of the data was seen while the control connection stood.
    pub fn client_stood_at_end(&self) -> bool {
        self.stood_at_end.get().copied().unwrap_or(false)
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
        if self.left_at.get().is_some() {
            return true;
        }
        self.control.get().is_some_and(has_ended)
    }
}

/// Whether the peer has closed its side of the connection, or the connection broke. Does not wait.
pub fn has_ended(connection: &impl AsRawFd) -> bool {
    let mut poll = libc::pollfd { fd: connection.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: `poll` is one valid structure, as the count says, and 0 does not wait.
    let found = unsafe { libc::poll(&mut poll, 1, 0) };
    found != 0
}
