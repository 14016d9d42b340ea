//! The presence of an upload's client. An upload goes on for a while after its control connection has ended,
//! and the end of its data proves a complete upload only if the control connection was open at that moment.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

/// Maximum bytes that an upload accepts after its client has closed the control connection: the largest usual
/// socket buffers of both sides (64 MiB each).
pub const MAX_AFTER_LEAVING: u64 = 128 * 1024 * 1024;

/// Shared by the worker that receives an upload and the control connection that watches it.
#[derive(Debug, Default)]
pub struct ClientPresence {
    control: OnceLock<OwnedFd>,
    /// The upload's byte count when the client left.
    left_at: OnceLock<u64>,
    is_cut_off: AtomicBool,
    /// Set when the end of the data was seen: true if the control connection was open then.
    was_present_at_end: OnceLock<bool>,
}

impl ClientPresence {
    /// Sets the control connection of the upload. Called once, before the upload starts.
    pub fn set_control(&self, control: OwnedFd) {
        let is_first = self.control.set(control).is_ok();
        debug_assert!(is_first, "an upload has one control connection");
    }

    /// Returns true if the client has closed its side of the control connection. Asks the kernel, because the
    /// task that reads the connection may not have read all commands before the end yet.
    pub fn has_left(&self) -> bool {
        self.left_at.get().is_some() || self.control.get().is_some_and(has_ended)
    }

    /// Notes that the client has closed the control connection, and the upload's byte count at that moment.
    pub fn note_left(&self, transferred: u64) {
        let _ = self.left_at.set(transferred);
    }

    /// Returns true if the upload has taken [`MAX_AFTER_LEAVING`] bytes since the client left.
    pub fn has_sent_enough(&self, transferred: u64) -> bool {
        self.left_at.get().is_some_and(|left_at| transferred - left_at >= MAX_AFTER_LEAVING)
    }

    /// Notes that the node shuts down the data connection of a client that has left. An end of file that the
    /// worker reads from now on is not the end of the data.
    pub fn cut_off(&self) {
        // An end of the data that the worker has seen already came from the client.
        if !self.has_seen_end() {
            self.is_cut_off.store(true, Ordering::Release);
        }
    }

    /// Returns true after [`Self::cut_off`].
    pub fn is_cut_off(&self) -> bool {
        self.is_cut_off.load(Ordering::Acquire)
    }

    /// Notes that the worker has seen the end of the data, and whether the control connection was open then.
    /// Only the first call counts.
    pub fn note_end(&self) {
        self.was_present_at_end.get_or_init(|| !self.has_left());
    }

    /// Returns true after [`Self::note_end`].
    pub fn has_seen_end(&self) -> bool {
        self.was_present_at_end.get().is_some()
    }

    /// Returns true if the end of the data was seen while the control connection was open.
    pub fn was_present_at_end(&self) -> bool {
        self.was_present_at_end.get().copied().unwrap_or(false)
    }
}

/// Returns true if the peer has closed its side of the connection, or the connection broke. Does not wait.
pub fn has_ended(connection: &impl AsRawFd) -> bool {
    let mut poll = libc::pollfd { fd: connection.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: the pointer and the count describe the one structure `poll`. A timeout of 0 does not wait.
    let found = unsafe { libc::poll(&mut poll, 1, 0) };
    found != 0
}
