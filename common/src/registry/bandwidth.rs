//! How fast the transfers of one user are together: on one node, or on all through Redis.

use std::{
    collections::HashMap,
    num::NonZeroU64,
    sync::{
        Arc, LazyLock, Mutex, Weak,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use redis::Script;

use super::{Core, LinkError, Registry, cluster::Cluster};
use crate::sync::lock;

static TAKE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("take_bandwidth.lua")));

/// What an idle user saves up. It makes good for the time that asking takes.
const SAVED: Duration = Duration::from_millis(250);

/// Pieces a second that all transfers of a user together take.
const PIECES: u64 = 8;

/// Bytes: below this the asking costs more than the moving.
const SMALLEST_PIECE: u64 = 4 * 1024;

/// Which way a transfer goes, seen from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    Upload,
    Download,
}

impl Direction {
    pub fn name(self) -> &'static str {
        match self {
            Self::Upload => "upload",
            Self::Download => "download",
        }
    }
}

/// Says when bytes may move so that they move no faster than a rate.
#[derive(Debug, Default)]
pub struct Meter {
    /// When what was taken so far will have moved.
    free: Option<Instant>,
}

impl Meter {
    /// Takes `bytes`; answers how long to wait before they move.
    pub fn take(&mut self, bytes: u64, rate: NonZeroU64, now: Instant) -> Duration {
        let saved = now.checked_sub(SAVED).unwrap_or(now);
        let from = self.free.map_or(saved, |free| free.max(saved));
        let took = Duration::try_from_secs_f64(bytes as f64 / rate.get() as f64).unwrap_or(Duration::MAX);
        // A time that no clock can show is not reached either.
        self.free = Some(from.checked_add(took).unwrap_or(from));
        from.saturating_duration_since(now)
    }
}

/// The piece that one of `transfers` takes at once from their common rate, in bytes.
pub fn piece(rate: NonZeroU64, transfers: u32) -> u64 {
    (rate.get() / PIECES / u64::from(transfers.max(1))).max(SMALLEST_PIECE)
}

/// Bytes that may move after a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    pub bytes: u64,
    pub wait: Duration,
}

/// A transfer's part in the bandwidth of its user, for as long as it lives.
pub struct Share {
    core: Arc<Core>,
    rate: NonZeroU64,
    key: (String, Direction),
    common: Arc<Common>,
}

/// What the user's transfers on this node have in common.
pub(super) struct Common {
    /// On this node.
    transfers: AtomicU32,
    /// On all nodes, as Redis last said; at least those of this node.
    all: AtomicU32,
    /// For a node without Redis.
    meter: Mutex<Meter>,
}

pub(super) type Shares = Mutex<HashMap<(String, Direction), Weak<Common>>>;

impl Registry {
    /// Enters a transfer of `user`, all of whose transfers together move at most `rate` bytes a second.
    pub fn share_bandwidth(&self, user: &str, direction: Direction, rate: NonZeroU64) -> Share {
        let key = (user.to_owned(), direction);
        let mut shares = lock(&self.core.shares);
        let common = shares.get(&key).and_then(Weak::upgrade).unwrap_or_else(|| {
            let (transfers, all) = (AtomicU32::new(0), AtomicU32::new(0));
            let common = Arc::new(Common { transfers, all, meter: Mutex::default() });
            shares.insert(key.clone(), Arc::downgrade(&common));
            common
        });
        common.transfers.fetch_add(1, Relaxed);
        Share { core: Arc::clone(&self.core), rate, key, common }
    }
}

impl Share {
    /// Takes at most `most` bytes. While Redis is away the node takes the part of the rate that its
    /// transfers had before among those of all nodes.
    pub async fn take(&self, most: u64) -> Slice {
        let here = self.common.transfers.load(Relaxed).max(1);
        let all = self.common.all.load(Relaxed).max(here);
        let bytes = piece(self.rate, all).min(most).max(1);
        if let Some(cluster) = &self.core.cluster
            && let Ok((wait, all)) = cluster.take_bandwidth(&self.key, self.rate, bytes, here).await
        {
            self.common.all.store(all, Relaxed);
            return Slice { bytes, wait: Duration::from_micros(wait) };
        }
        let part = u128::from(self.rate.get()) * u128::from(here) / u128::from(all);
        // A part of the rate is not more than the rate.
        let rate = NonZeroU64::new(u64::try_from(part).unwrap_or(u64::MAX)).unwrap_or(NonZeroU64::MIN);
        let mut meter = lock(&self.common.meter);
        Slice { bytes, wait: meter.take(bytes, rate, Instant::now()) }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut shares = lock(&self.core.shares);
        if self.common.transfers.fetch_sub(1, Relaxed) == 1 {
            // Whoever enters does so under the same lock.
            shares.remove(&self.key);
        }
    }
}

impl Cluster {
    async fn take_bandwidth(
        &self,
        (user, direction): &(String, Direction),
        rate: NonZeroU64,
        bytes: u64,
        transfers: u32,
    ) -> Result<(u64, u32), LinkError> {
        let mut call = TAKE.prepare_invoke();
        call.key(self.keys().bandwidth(direction.name(), user)).arg(rate.get()).arg(bytes);
        call.arg(u64::try_from(SAVED.as_micros()).unwrap_or(u64::MAX));
        call.arg(self.process().0.as_str()).arg(transfers);
        self.link().script(&call).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_move_no_faster_than_the_rate_and_what_is_saved_is_bounded() {
        let rate = NonZeroU64::new(1000).unwrap();
        let (mut meter, now) = (Meter::default(), Instant::now());
        assert_eq!(meter.take(250, rate, now), Duration::ZERO);
        assert_eq!(meter.take(1000, rate, now), Duration::ZERO);
        assert_eq!(meter.take(1, rate, now), Duration::from_secs(1));
        let later = now + Duration::from_secs(3600);
        assert_eq!(meter.take(750, rate, later), Duration::ZERO);
        assert_eq!(meter.take(1, rate, later), Duration::from_millis(500));
        meter.take(u64::MAX, NonZeroU64::MIN, later);
    }
}
