//! Paths to lease, and the state of a lease that its holder and the refresh task share.

use std::{
    fmt,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use crate::{clock, session::SessionId};

/// The reach of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeaseScope {
    /// The path itself. Refused while the path, or a tree above it, is leased.
    File,
    /// The path and all paths below it. Refused while one of them, or a tree above them, is leased.
    Tree,
}

/// A path to lease. Paths are relative to the storage's root: no leading slash, `/` between names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeasePath {
    pub path: Box<[u8]>,
    pub scope: LeaseScope,
}

impl LeasePath {
    pub fn file(path: &[u8]) -> Self {
        Self { path: path.into(), scope: LeaseScope::File }
    }

    pub fn tree(path: &[u8]) -> Self {
        Self { path: path.into(), scope: LeaseScope::Tree }
    }
}

/// The position of the lease that prevents another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseConflict {
    /// On the requested path itself.
    Same,
    /// On a path below the requested tree.
    Below,
    /// On a tree that contains the requested path.
    Above,
}

/// One grant of a lease. `Display` distinguishes it from all others of this process, and ends with the
/// session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeaseGrant {
    pub number: u64,
    pub holder: SessionId,
}

impl fmt::Display for LeaseGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.number, self.holder)
    }
}

/// The state of a lease that the refresh task updates and the holder reads.
#[derive(Debug, Default)]
pub(super) struct LeaseState {
    /// Time at which the last successful request to take or keep the lease was sent, in ms of
    /// CLOCK_BOOTTIME. 0 before the first such request, and after the lease is lost.
    sent: AtomicU64,
    /// Epoch of Redis's data at that request; 0 before the first one.
    epoch: AtomicU64,
    /// Number of the lease in Redis; 0 if Redis has not granted the lease.
    number: AtomicU64,
    on_storage: AtomicBool,
}

impl LeaseState {
    /// Notes that Redis has granted or kept the lease by a request sent at `sent`.
    pub(super) fn confirm(&self, sent: Duration, epoch: u64, number: u64) {
        self.number.store(number, Ordering::Relaxed);
        self.epoch.store(epoch, Ordering::Relaxed);
        self.sent.fetch_max(millis(sent), Ordering::Release);
    }

    /// Notes that another session may have a path of the lease.
    pub(super) fn lose(&self) {
        self.sent.store(0, Ordering::Release);
    }

    /// Epoch and number in Redis's last confirmation; both 0 if Redis never granted the lease.
    pub(super) fn granted(&self) -> (u64, u64) {
        (self.epoch.load(Ordering::Relaxed), self.number.load(Ordering::Relaxed))
    }

    /// Returns true if the last confirmed request was sent less than `time` ago.
    pub(super) fn is_within(&self, time: Duration) -> bool {
        let sent = self.sent.load(Ordering::Acquire);
        sent != 0 && millis(clock::since_boot()).saturating_sub(sent) < millis(time)
    }

    /// Notes that a lock on the storage protects the leased file.
    pub(super) fn set_on_storage(&self) {
        self.on_storage.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_on_storage(&self) -> bool {
        self.on_storage.load(Ordering::Relaxed)
    }
}

/// Milliseconds, at least 1: 0 means that there was no request.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}
