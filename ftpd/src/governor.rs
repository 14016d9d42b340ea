//! What a transfer may move next: as fast as its user's bandwidth allows, and as much as the quota.

use std::{
    num::NonZeroU64,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use common::{
    policy::Bandwidth,
    registry::{self, BandwidthDirection, BandwidthGrant, BandwidthMeter, piece_size},
};
use tokio::{runtime::Handle, time::sleep};

use crate::{
    data::{progress::Progress, transfer::TransferError},
    metrics,
    node::Node,
    quota,
};

/// A session's bandwidth in both directions.
pub struct Lanes {
    upload: Option<Arc<Lane>>,
    download: Option<Arc<Lane>>,
}

/// A session's bandwidth in one direction.
struct Lane {
    direction: BandwidthDirection,
    of_session: Option<NonZeroU64>,
    of_user: Option<NonZeroU64>,
    purse: Mutex<Purse>,
}

#[derive(Default)]
struct Purse {
    meter: BandwidthMeter,
    /// Bytes that have been waited for and may move: what one transfer leaves, the next one has.
    paid: u64,
}

impl Lanes {
    pub fn new(bandwidth: &Bandwidth) -> Self {
        let lane = |direction, of_session: Option<NonZeroU64>, of_user: Option<NonZeroU64>| {
            of_session.or(of_user)?;
            Some(Arc::new(Lane { direction, of_session, of_user, purse: Mutex::default() }))
        };
        Self {
            upload: lane(BandwidthDirection::Upload, bandwidth.session_upload, bandwidth.upload),
            download: lane(BandwidthDirection::Download, bandwidth.session_download, bandwidth.download),
        }
    }

    /// What holds a transfer of `user` back; `None` if nothing does.
    pub fn govern(
        &self,
        node: &Node,
        user: &str,
        direction: BandwidthDirection,
        quota: Option<Arc<quota::Share>>,
    ) -> Option<Governor> {
        let lane = match direction {
            BandwidthDirection::Upload => self.upload.clone(),
            BandwidthDirection::Download => self.download.clone(),
        };
        if lane.is_none() && quota.is_none() {
            return None;
        }
        let rate = lane.as_ref().and_then(|lane| lane.of_user);
        let of_user = rate.map(|rate| node.registry.share_bandwidth(user, direction, rate));
        Some(Governor { runtime: Handle::current(), lane, of_user, quota, waited: Mutex::default() })
    }
}

impl Lane {
    fn purse(&self) -> MutexGuard<'_, Purse> {
        self.purse.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds one transfer back.
pub struct Governor {
    runtime: Handle,
    lane: Option<Arc<Lane>>,
    of_user: Option<registry::BandwidthShare>,
    quota: Option<Arc<quota::Share>>,
    waited: Mutex<Duration>,
}

impl Governor {
    /// How many of `most` bytes may move now, one at least. Waits for the bandwidth, and for the
    /// registry; a cancellation ends that at once.
    ///
    /// # Errors
    /// Cancelled, or it cannot be known whether there is room.
    pub fn piece(&self, most: usize, progress: &Progress) -> Result<usize, TransferError> {
        let mut most = most as u64;
        if let Some(quota) = &self.quota {
            if quota.room() == 0 {
                self.wait(progress, quota.reserve())??;
            }
            // With the quota used up, the end of the stream may still come, and no more than that.
            most = most.min(quota.room().max(1));
        }
        if let Some(lane) = &self.lane {
            if lane.purse().paid == 0 {
                self.pay(lane, progress)?;
            }
            most = most.min(lane.purse().paid);
        }
        // Not more than was asked for, which is a usize.
        Ok(most as usize)
    }

    /// Notes that bytes have moved.
    pub fn moved(&self, bytes: u64) {
        if let Some(lane) = &self.lane {
            let mut purse = lane.purse();
            purse.paid = purse.paid.saturating_sub(bytes);
        }
    }

    /// Notes that bytes have arrived.
    ///
    /// # Errors
    /// They are beyond the quota, and must not be stored.
    pub fn arrived(&self, bytes: u64) -> Result<(), TransferError> {
        self.quota.as_ref().map_or(Ok(()), |quota| quota.arrived(bytes))
    }

    /// How long it has held the transfer back so far.
    pub fn waited(&self) -> Duration {
        *self.waited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pay(&self, lane: &Lane, progress: &Progress) -> Result<(), TransferError> {
        let begun = Instant::now();
        let most = lane.of_session.map_or(u64::MAX, |rate| piece_size(rate, 1));
        let paid = self.wait(progress, async {
            let mut slice = match &self.of_user {
                Some(of_user) => of_user.take(most).await,
                None => BandwidthGrant { bytes: most, wait: Duration::ZERO },
            };
            if let Some(rate) = lane.of_session {
                let wait = lane.purse().meter.take(slice.bytes, rate, Instant::now());
                slice.wait = slice.wait.max(wait);
            }
            sleep(slice.wait).await;
            slice.bytes
        });
        *self.waited.lock().unwrap_or_else(PoisonError::into_inner) += begun.elapsed();
        lane.purse().paid = paid?;
        Ok(())
    }

    fn wait<T>(&self, progress: &Progress, work: impl Future<Output = T>) -> Result<T, TransferError> {
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = progress.cancellation() => Err(TransferError::Cancelled),
                done = work => Ok(done),
            }
        })
    }
}

impl Drop for Governor {
    fn drop(&mut self) {
        let waited = self.waited();
        if let Some(lane) = &self.lane {
            metrics::paced(lane.direction.name(), waited);
        }
    }
}
