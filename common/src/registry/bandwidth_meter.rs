//! The bandwidth of one user on one node: pieces, waiting times, and the counts that all transfers share.

use std::{
    collections::HashMap,
    num::NonZeroU64,
    sync::{Mutex, Weak, atomic::AtomicU32},
    time::{Duration, Instant},
};

/// Longest burst: an idle user accumulates the bytes of this time. They make up for the duration of a
/// request.
pub(super) const BURST: Duration = Duration::from_millis(250);

/// Pieces per second that all transfers of a user take together.
const PIECES_PER_SECOND: u64 = 8;

/// Smallest piece in bytes. With a smaller one, requests would cost more than the transfer.
const SMALLEST_PIECE: u64 = 4 * 1024;

/// The direction of a transfer, seen from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BandwidthDirection {
    Upload,
    Download,
}

impl BandwidthDirection {
    /// The name in Redis keys.
    pub fn name(self) -> &'static str {
        match self {
            Self::Upload => "upload",
            Self::Download => "download",
        }
    }
}

/// Calculates waiting times that keep a rate.
#[derive(Debug, Default)]
pub struct BandwidthMeter {
    /// Time at which all bytes taken so far have moved.
    free: Option<Instant>,
}

impl BandwidthMeter {
    /// Takes `bytes`, and returns the time to wait before they move.
    pub fn take(&mut self, bytes: u64, rate: NonZeroU64, now: Instant) -> Duration {
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let from = self.free.map_or(earliest, |free| free.max(earliest));
        let took = Duration::try_from_secs_f64(bytes as f64 / rate.get() as f64).unwrap_or(Duration::MAX);
        // An `Instant` that cannot be represented is never reached: leave the time as it is.
        self.free = Some(from.checked_add(took).unwrap_or(from));
        from.saturating_duration_since(now)
    }
}

/// Bytes that one of `transfers` takes at once from their common rate.
pub fn piece_size(rate: NonZeroU64, transfers: u32) -> u64 {
    (rate.get() / PIECES_PER_SECOND / u64::from(transfers.max(1))).max(SMALLEST_PIECE)
}

/// The counts that all transfers of a user in one direction on this node share.
#[derive(Default)]
pub(super) struct UserBandwidth {
    /// Number of the user's transfers on this node.
    pub transfers: AtomicU32,
    /// Number of the user's transfers on all nodes, as Redis last said.
    pub all: AtomicU32,
    /// Used while Redis does not answer.
    pub meter: Mutex<BandwidthMeter>,
}

/// The users who transfer at present.
pub(super) type BandwidthShares = Mutex<HashMap<(String, BandwidthDirection), Weak<UserBandwidth>>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_times_keep_the_rate_and_bursts_are_bounded() {
        let rate = NonZeroU64::new(1000).unwrap();
        let (mut meter, now) = (BandwidthMeter::default(), Instant::now());
        assert_eq!(meter.take(250, rate, now), Duration::ZERO);
        assert_eq!(meter.take(1000, rate, now), Duration::ZERO);
        assert_eq!(meter.take(1, rate, now), Duration::from_secs(1));
        let later = now + Duration::from_secs(3600);
        assert_eq!(meter.take(750, rate, later), Duration::ZERO);
        assert_eq!(meter.take(1, rate, later), Duration::from_millis(500));
        meter.take(u64::MAX, NonZeroU64::MIN, later);
    }
}
