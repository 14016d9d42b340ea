//! The pace of transfers: it holds a transfer to the bandwidth of its session and user, and an upload to the
//! quota.

use std::{
    error::Error,
    num::NonZeroU64,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use common::{
    policy::Bandwidth,
    registry::{self, BandwidthDirection, BandwidthGrant, BandwidthMeter, Registry, piece_size},
    sync::lock,
};
use tokio::time::sleep;

use super::quota::{QuotaError, QuotaReservation};
use crate::{
    data::copy::CopyPace,
    metrics,
    work::{RuntimeBridge, progress::Progress},
};

/// A session's bandwidth in both directions.
pub struct SessionBandwidth {
    upload: Option<Arc<DirectionBandwidth>>,
    download: Option<Arc<DirectionBandwidth>>,
}

/// A session's bandwidth in one direction.
struct DirectionBandwidth {
    direction: BandwidthDirection,
    /// Bytes a second of this session.
    of_session: Option<NonZeroU64>,
    /// Bytes a second of all sessions of the user.
    of_user: Option<NonZeroU64>,
    allowance: Mutex<Allowance>,
}

#[derive(Default)]
struct Allowance {
    meter: BandwidthMeter,
    /// Bytes that may move without further waiting. The next transfer gets the bytes that a transfer leaves.
    bytes: u64,
}

impl SessionBandwidth {
    pub fn new(bandwidth: &Bandwidth) -> Self {
        let limited = |direction, of_session: Option<NonZeroU64>, of_user: Option<NonZeroU64>| {
            of_session.or(of_user)?;
            Some(Arc::new(DirectionBandwidth { direction, of_session, of_user, allowance: Mutex::default() }))
        };
        Self {
            upload: limited(BandwidthDirection::Upload, bandwidth.session_upload, bandwidth.upload),
            download: limited(BandwidthDirection::Download, bandwidth.session_download, bandwidth.download),
        }
    }

    /// Returns the pace of a transfer of `user`; `None` if nothing limits the transfer. Call it within the
    /// runtime.
    pub fn pace(
        &self,
        registry: &Registry,
        user: &str,
        direction: BandwidthDirection,
        quota: Option<Arc<QuotaReservation>>,
    ) -> Option<Arc<Pace>> {
        let bandwidth = match direction {
            BandwidthDirection::Upload => self.upload.clone(),
            BandwidthDirection::Download => self.download.clone(),
        };
        if bandwidth.is_none() && quota.is_none() {
            return None;
        }
        let rate = bandwidth.as_ref().and_then(|bandwidth| bandwidth.of_user);
        let of_user = rate.map(|rate| registry.share_bandwidth(user, direction, rate));
        let bridge = RuntimeBridge::to_current();
        Some(Arc::new(Pace { bridge, bandwidth, of_user, quota, waited: Mutex::default() }))
    }
}

impl DirectionBandwidth {
    fn allowance(&self) -> MutexGuard<'_, Allowance> {
        lock(&self.allowance)
    }
}

/// The pace of one transfer.
pub struct Pace {
    bridge: RuntimeBridge,
    bandwidth: Option<Arc<DirectionBandwidth>>,
    of_user: Option<registry::BandwidthShare>,
    quota: Option<Arc<QuotaReservation>>,
    waited: Mutex<Duration>,
}

/// The transfer was cancelled while its pace waited.
struct PaceCancelled;

impl CopyPace for Pace {
    /// Waits for the bandwidth and for the registry; a cancellation ends that at once.
    fn piece(&self, max: usize, progress: &Progress) -> Result<usize, Box<dyn Error + Send + Sync>> {
        match self.next_piece(max as u64, progress)? {
            // At most `max`, so it fits into usize.
            Ok(bytes) => Ok(bytes as usize),
            Err(PaceCancelled) => Ok(0),
        }
    }

    fn moved(&self, bytes: u64) {
        if let Some(bandwidth) = &self.bandwidth {
            let mut allowance = bandwidth.allowance();
            allowance.bytes = allowance.bytes.saturating_sub(bytes);
        }
    }

    fn arrived(&self, bytes: u64) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(self.quota.as_ref().map_or(Ok(()), |quota| quota.arrived(bytes))?)
    }
}

impl Pace {
    /// The time for which the transfer has waited for its user's bandwidth so far.
    pub fn waited(&self) -> Duration {
        *lock(&self.waited)
    }

    fn next_piece(
        &self,
        mut max: u64,
        progress: &Progress,
    ) -> Result<Result<u64, PaceCancelled>, QuotaError> {
        if let Some(quota) = &self.quota {
            if quota.room() == 0 {
                match self.wait(progress, quota.reserve()) {
                    Ok(reserved) => reserved?,
                    Err(cancelled) => return Ok(Err(cancelled)),
                }
            }
            // If the quota is used up, one more byte may be read: it shows that the stream has not ended.
            max = max.min(quota.room().max(1));
        }
        if let Some(bandwidth) = &self.bandwidth {
            if bandwidth.allowance().bytes == 0
                && let Err(cancelled) = self.wait_for_bandwidth(bandwidth, progress)
            {
                return Ok(Err(cancelled));
            }
            max = max.min(bandwidth.allowance().bytes);
        }
        Ok(Ok(max))
    }

    /// Waits until the bandwidth has an allowance again.
    fn wait_for_bandwidth(
        &self,
        bandwidth: &DirectionBandwidth,
        progress: &Progress,
    ) -> Result<(), PaceCancelled> {
        let begun = Instant::now();
        let max = bandwidth.of_session.map_or(u64::MAX, |rate| piece_size(rate, 1));
        let granted = self.wait(progress, async {
            let mut grant = match &self.of_user {
                Some(of_user) => of_user.take(max).await,
                None => BandwidthGrant { bytes: max, wait: Duration::ZERO },
            };
            if let Some(rate) = bandwidth.of_session {
                let wait = bandwidth.allowance().meter.take(grant.bytes, rate, Instant::now());
                grant.wait = grant.wait.max(wait);
            }
            sleep(grant.wait).await;
            grant.bytes
        });
        *lock(&self.waited) += begun.elapsed();
        bandwidth.allowance().bytes = granted?;
        Ok(())
    }

    fn wait<T>(&self, progress: &Progress, work: impl Future<Output = T>) -> Result<T, PaceCancelled> {
        self.bridge.wait(async {
            tokio::select! {
                biased;
                () = progress.cancellation() => Err(PaceCancelled),
                done = work => Ok(done),
            }
        })
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        let waited = self.waited();
        if let Some(bandwidth) = &self.bandwidth {
            metrics::paced(bandwidth.direction.name(), waited);
        }
    }
}
