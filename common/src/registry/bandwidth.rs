//! The bandwidth that all transfers of a user share, on one node or through Redis.

use std::{
    num::NonZeroU64,
    sync::{Arc, LazyLock, Weak, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use super::{
    EssentialScript, LinkError, Registry,
    bandwidth_meter::{BURST, BandwidthDirection, UserBandwidth, piece_size},
    cluster::Cluster,
    core::Core,
};
use crate::sync::lock;

static TAKE: LazyLock<EssentialScript> =
    LazyLock::new(|| EssentialScript::new(include_str!("lua/take_bandwidth.lua")));

/// A number of bytes, and the time to wait before they may move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BandwidthGrant {
    pub bytes: u64,
    pub wait: Duration,
}

/// The share of one transfer in the bandwidth of its user. The transfer counts until the share is dropped.
pub struct BandwidthShare {
    core: Arc<Core>,
    /// Bytes per second of all transfers of the user together.
    rate: NonZeroU64,
    key: (String, BandwidthDirection),
    of_user: Arc<UserBandwidth>,
}

impl Registry {
    /// Enters a transfer of `user`. All transfers of the user in this direction together move at most
    /// `rate` bytes per second.
    pub fn share_bandwidth(
        &self,
        user: &str,
        direction: BandwidthDirection,
        rate: NonZeroU64,
    ) -> BandwidthShare {
        let key = (user.to_owned(), direction);
        let mut shares = lock(&self.core.bandwidth_shares);
        let of_user = shares.get(&key).and_then(Weak::upgrade).unwrap_or_else(|| {
            let of_user = Arc::new(UserBandwidth::default());
            shares.insert(key.clone(), Arc::downgrade(&of_user));
            of_user
        });
        of_user.transfers.fetch_add(1, Relaxed);
        BandwidthShare { core: Arc::clone(&self.core), rate, key, of_user }
    }
}

impl BandwidthShare {
    /// Takes at most `most` bytes. While Redis is away, this node's transfers take the part of the rate
    /// that they had before, in proportion to the transfers on all nodes.
    pub async fn take(&self, most: u64) -> BandwidthGrant {
        let here = self.of_user.transfers.load(Relaxed).max(1);
        let all = self.of_user.all.load(Relaxed).max(here);
        let bytes = piece_size(self.rate, all).min(most).max(1);
        if let Some(cluster) = &self.core.cluster
            && let Ok((wait, all)) = cluster.take_bandwidth(&self.key, self.rate, bytes, here).await
        {
            self.of_user.all.store(all, Relaxed);
            return BandwidthGrant { bytes, wait: Duration::from_micros(wait) };
        }
        debug_assert!(here <= all);
        let part = u128::from(self.rate.get()) * u128::from(here) / u128::from(all);
        // The conversion succeeds: a part of the rate is at most the rate.
        let rate = NonZeroU64::new(u64::try_from(part).unwrap_or(u64::MAX)).unwrap_or(NonZeroU64::MIN);
        let mut meter = lock(&self.of_user.meter);
        BandwidthGrant { bytes, wait: meter.take(bytes, rate, Instant::now()) }
    }
}

impl Drop for BandwidthShare {
    fn drop(&mut self) {
        // `share_bandwidth` counts a new transfer under the same lock.
        let mut shares = lock(&self.core.bandwidth_shares);
        if self.of_user.transfers.fetch_sub(1, Relaxed) == 1 {
            shares.remove(&self.key);
        }
    }
}

impl Cluster {
    /// Returns the microseconds to wait, and the number of the user's transfers on all nodes.
    async fn take_bandwidth(
        &self,
        (user, direction): &(String, BandwidthDirection),
        rate: NonZeroU64,
        bytes: u64,
        transfers: u32,
    ) -> Result<(u64, u32), LinkError> {
        let mut call = TAKE.on(self.link()).prepare_invoke();
        call.key(self.keys().bandwidth(direction.name(), user)).arg(rate.get()).arg(bytes);
        call.arg(u64::try_from(BURST.as_micros()).unwrap_or(u64::MAX));
        call.arg(self.process().0.as_str()).arg(transfers);
        self.link().script(&call).await
    }
}
