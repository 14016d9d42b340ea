//! The usage of a home as one node knows it, and the arithmetic of quotas without Redis.

use std::{
    sync::{Mutex, MutexGuard, atomic::AtomicBool},
    time::{Duration, Instant},
};

use crate::{policy::Quota, sync::lock};

/// Smallest number of bytes that is reserved for an upload, if there is room for it.
pub(super) const SMALLEST_GRANT: u64 = 64 * 1024;

/// Redis forgets a home that is not used for this long, or for twice the time between two counts if that is
/// longer.
pub(super) const RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);

/// The largest number that Lua counts exactly. Larger numbers, which sparse files can reach, are sent as
/// this one: Redis could not return them as integers.
pub(super) const LARGEST: u64 = 1 << 53;

/// Bytes and number of files. A directory counts as a file without bytes. Symbolic links do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub bytes: u64,
    pub files: u64,
}

impl Usage {
    pub fn plus(self, other: Self) -> Self {
        Self { bytes: self.bytes.saturating_add(other.bytes), files: self.files.saturating_add(other.files) }
    }

    /// The difference, at least zero.
    pub fn less(self, other: Self) -> Self {
        Self { bytes: self.bytes.saturating_sub(other.bytes), files: self.files.saturating_sub(other.files) }
    }

    fn clamp(self, least: Self, most: Self) -> Self {
        Self {
            bytes: self.bytes.clamp(least.bytes, most.bytes.max(least.bytes)),
            files: self.files.clamp(least.files, most.files.max(least.files)),
        }
    }
}

/// A change of a home's usage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsageChange {
    pub added: Usage,
    pub removed: Usage,
}

impl UsageChange {
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    fn plus(self, other: Self) -> Self {
        Self { added: self.added.plus(other.added), removed: self.removed.plus(other.removed) }
    }
}

/// One request of a session about a home.
#[derive(Clone, Copy, Debug, Default)]
pub struct UsageStep {
    /// Changes that the session has made.
    pub change: UsageChange,
    /// The part of the session's reservation that is used or not needed any more.
    pub released: Usage,
    /// The amount to reserve.
    pub wanted: Usage,
    /// True: reserve all wanted bytes or none. False: as many of them as there is room for.
    pub whole: bool,
    /// The quota of the session's user.
    pub limit: Quota,
}

/// The registry's answer to a [`UsageStep`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsageStatus {
    /// Usage on the storage and reservations together; `None` if the home must be counted first.
    pub held: Option<Usage>,
    /// The part of the wanted amount that was reserved. Bytes: any part, or all or none if
    /// [`UsageStep::whole`] is set. Files: all or none.
    pub granted: Usage,
    /// True if the home should be counted: no node counts it now, and the last count is too old or doubtful.
    pub count_is_due: bool,
}

/// A home whose usage this process knows.
pub(super) struct CountedHome {
    /// Path within the storage, without a leading slash.
    pub path: Box<[u8]>,
    /// Time between two counts.
    pub recount: Duration,
    state: Mutex<HomeState>,
    /// Held during a request to Redis about this home.
    pub requesting: tokio::sync::Mutex<()>,
    /// True while this process counts the home.
    pub is_counting: AtomicBool,
}

impl CountedHome {
    pub(super) fn new(path: &[u8], recount: Duration) -> Self {
        Self {
            path: path.into(),
            recount,
            state: Mutex::default(),
            requesting: tokio::sync::Mutex::default(),
            is_counting: AtomicBool::new(false),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, HomeState> {
        lock(&self.state)
    }

    /// Time for which Redis keeps the home without use, in ms.
    pub(super) fn retention_ms(&self) -> u64 {
        millis(RETENTION.max(self.recount.saturating_mul(2)))
    }
}

/// The usage of a home as this process knows it. Without Redis this is all there is.
#[derive(Default)]
pub(super) struct HomeState {
    /// Sum of all changes by this process.
    done: UsageChange,
    /// `done` at the last answer of Redis.
    acknowledged: UsageChange,
    /// Reservations of uploads on this node.
    reserved: Usage,
    /// Reservations of uploads on other nodes, at the last answer of Redis.
    others: Usage,
    /// Usage on the storage; `None` until the home is counted.
    pub used: Option<Usage>,
    counted_at: Option<Instant>,
    /// Changes since this process began to count; `None` while it does not count.
    pub scan: Option<UsageChange>,
}

/// The sums that a node sends to Redis.
pub(super) struct SentSums {
    pub done: UsageChange,
    pub acknowledged: UsageChange,
    pub reserved: Usage,
}

/// The reply of `settle_usage.lua`.
pub(super) type SettleReply = (u8, u8, u64, u64, u64, u64, u64, u64);

impl HomeState {
    /// Notes the changes and releases of a step.
    pub(super) fn apply(&mut self, step: &UsageStep) {
        let change = step.change;
        self.done = self.done.plus(change);
        self.used = self.used.map(|used| used.plus(change.added).less(change.removed));
        self.scan = self.scan.map(|seen| seen.plus(change));
        self.reserved = self.reserved.less(step.released);
    }

    pub(super) fn sums(&self) -> SentSums {
        SentSums { done: self.done, acknowledged: self.acknowledged, reserved: self.reserved }
    }

    /// Applies Redis's reply to a request with the sums `sent`.
    pub(super) fn apply_reply(&mut self, sent: &SentSums, reply: SettleReply) -> UsageStatus {
        let (is_counted, is_due, bytes, files, other_bytes, other_files, granted_bytes, granted_files) =
            reply;
        let granted = Usage { bytes: granted_bytes, files: granted_files };
        self.acknowledged = sent.done;
        self.others = Usage { bytes: other_bytes, files: other_files };
        self.reserved = self.reserved.plus(granted);
        // Changes since the request are not in the reply, but will be in the next one.
        let since = UsageChange {
            added: self.done.added.less(sent.done.added),
            removed: self.done.removed.less(sent.done.removed),
        };
        let used = Usage { bytes, files }.plus(since.added).less(since.removed);
        self.used = (is_counted == 1).then_some(used);
        self.counted_at = (is_due == 0).then(Instant::now);
        UsageStatus { held: self.held(), granted, count_is_due: is_due == 1 }
    }

    /// Reserves the wanted amount, by the rules of `settle_usage.lua`.
    pub(super) fn reserve(&mut self, step: &UsageStep, recount: Duration) -> UsageStatus {
        let mut granted = Usage::default();
        if let Some(held) = self.held() {
            let room = |limit: Option<u64>, held: u64| limit.map(|limit| limit.saturating_sub(held));
            let all_or_none = |wanted: u64, room: u64| if room < wanted { 0 } else { wanted };
            let bytes = room(step.limit.bytes, held.bytes).unwrap_or(step.wanted.bytes);
            let files = room(step.limit.files, held.files).unwrap_or(step.wanted.files);
            granted.bytes = match (step.whole, step.limit.bytes) {
                (true, _) => all_or_none(step.wanted.bytes, bytes),
                (false, None) => step.wanted.bytes,
                (false, Some(_)) => step.wanted.bytes.min(bytes).min(SMALLEST_GRANT.max(bytes / 8)),
            };
            granted.files = all_or_none(step.wanted.files, files);
        }
        self.reserved = self.reserved.plus(granted);
        let is_fresh = self.used.is_some() && self.counted_at.is_some_and(|at| at.elapsed() < recount);
        UsageStatus { held: self.held(), granted, count_is_due: !is_fresh && self.scan.is_none() }
    }

    fn held(&self) -> Option<Usage> {
        self.used.map(|used| used.plus(self.reserved).plus(self.others))
    }

    /// Applies the result of a count, by the rules of `count_usage.lua`.
    pub(super) fn counted(&mut self, counted: Usage) {
        let seen = self.scan.unwrap_or_default();
        let least = counted.less(seen.removed).less(self.reserved);
        let most = counted.plus(seen.added).plus(self.reserved);
        let is_exact = least == most;
        self.counted_at = (self.used.is_some() || is_exact).then(Instant::now);
        self.used = Some(match self.used {
            Some(used) => used.clamp(least, most),
            None => counted.plus(seen.added),
        });
    }
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).min(LARGEST / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Quota = Quota { bytes: Some(1_000_000), files: Some(3) };

    fn bytes(bytes: u64) -> Usage {
        Usage { bytes, files: 0 }
    }

    fn counted(used: Usage) -> HomeState {
        let mut state = HomeState::default();
        state.counted(used);
        state
    }

    fn reserve(state: &mut HomeState, wanted: Usage) -> Usage {
        state.reserve(&UsageStep { wanted, limit: LIMIT, ..UsageStep::default() }, RETENTION).granted
    }

    #[test]
    fn grants_stay_within_the_limit_and_begin_after_the_first_count() {
        assert_eq!(reserve(&mut HomeState::default(), bytes(1)), bytes(0));
        let mut state = counted(bytes(0));
        let mut granted = 0;
        for _ in 0..1000 {
            granted += reserve(&mut state, bytes(u64::MAX)).bytes;
        }
        assert_eq!(granted, 1_000_000);
        assert_eq!(reserve(&mut state, Usage { bytes: 0, files: 3 }).files, 3);
        assert_eq!(reserve(&mut state, Usage { bytes: 0, files: 1 }).files, 0);
        state.apply(&UsageStep { released: bytes(10), ..UsageStep::default() });
        assert_eq!(reserve(&mut state, bytes(100)), bytes(10));
    }

    #[test]
    fn a_count_corrects_the_usage_only_as_far_as_it_proves_it_wrong() {
        let mut state = counted(bytes(700));
        state.scan = Some(UsageChange::default());
        let change = UsageChange { added: bytes(100), removed: bytes(50) };
        state.apply(&UsageStep { change, ..UsageStep::default() });
        // 750 is right whether the count has seen the change or not.
        state.counted(bytes(700));
        assert_eq!(state.used, Some(bytes(750)));
        state.counted(bytes(790));
        assert_eq!(state.used, Some(bytes(750)));
        state.counted(bytes(600));
        assert_eq!(state.used, Some(bytes(700)));
        state.scan = None;
        state.counted(bytes(5));
        assert_eq!(state.used, Some(bytes(5)));
    }
}
