//! `minimum_rate`: ends transfers whose client occupies a slot but moves hardly any data.

use std::{convert::Infallible, future::pending, time::Duration};

use tokio::time::{Instant, sleep};

use super::pace::Pace;
use crate::{
    metrics,
    work::activity::{ActivityHandle, CancelledBy},
};

/// The lowest rate of a transfer (`minimum_rate`, `minimum_rate_time`).
#[derive(Clone, Copy, Debug)]
pub struct MinimumRate {
    /// Bytes a second; 0: there is no minimum.
    pub rate: u64,
    /// The time over which the rate is measured.
    pub window: Duration,
}

/// The state of a transfer at the start of a window.
struct RateMark {
    at: Instant,
    transferred: u64,
    /// The time for which the transfer had waited for its user's bandwidth.
    paced: Duration,
}

impl MinimumRate {
    /// Cancels the transfer once it was slower than the minimum for a whole window. Measures only while a
    /// worker moves data: not during the wait for the data connection or a slot, and not at the end of an
    /// upload, when its file is synced. With `gathers_first` (listings), measures from the first byte on.
    /// Never returns.
    pub async fn enforce(
        self,
        handle: &ActivityHandle,
        pace: Option<&Pace>,
        gathers_first: bool,
    ) -> Infallible {
        if self.rate == 0 || self.window.is_zero() {
            return pending().await;
        }
        let mut mark = None;
        loop {
            sleep(self.window / 4).await;
            let progress = &handle.progress;
            let is_gathering = gathers_first && progress.transferred() == 0;
            if !handle.is_attached() || handle.client.has_seen_end() || is_gathering {
                mark = None;
                continue;
            }
            let now = RateMark {
                at: Instant::now(),
                transferred: progress.transferred(),
                paced: pace.map_or(Duration::ZERO, Pace::waited),
            };
            let Some(from) = &mark else {
                mark = Some(now);
                continue;
            };
            if now.at - from.at < self.window {
                continue;
            }
            if self.is_too_slow(from, &now) {
                metrics::limit_reached("minimum_rate");
                handle.cancel(CancelledBy::TooSlow);
                return pending().await;
            }
            mark = Some(now);
        }
    }

    fn is_too_slow(&self, from: &RateMark, to: &RateMark) -> bool {
        let waited = to.paced.saturating_sub(from.paced);
        let own = (to.at - from.at).saturating_sub(waited);
        let moved = to.transferred.saturating_sub(from.transferred);
        // While a transfer mostly waits for its bandwidth, its rate says little about the client.
        own >= self.window / 2 && (moved as f64) < self.rate as f64 * own.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        sync::Arc,
    };

    use super::*;

    const MINIMUM: MinimumRate = MinimumRate { rate: 100, window: Duration::from_secs(60) };

    fn attached() -> Arc<ActivityHandle> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = Arc::new(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        let handle = ActivityHandle::new("RETR");
        handle.attach(&socket);
        handle
    }

    /// Returns true if a transfer that moves `bytes` a second is cancelled within ten minutes.
    async fn is_cancelled(handle: &ActivityHandle, gathers_first: bool, bytes: u64) -> bool {
        let client = async {
            for _ in 0..600 {
                sleep(Duration::from_secs(1)).await;
                handle.progress.add(bytes);
            }
        };
        tokio::select! {
            never = MINIMUM.enforce(handle, None, gathers_first) => match never {},
            () = client => {}
        }
        handle.is_cancelled()
    }

    #[tokio::test(start_paused = true)]
    async fn a_transfer_below_the_minimum_is_cancelled_and_one_above_goes_on() {
        for (bytes, cancelled) in [(0, true), (1, true), (90, true), (110, false), (1_000_000, false)] {
            let handle = attached();
            assert_eq!(is_cancelled(&handle, false, bytes).await, cancelled, "{bytes}");
            assert_eq!(handle.cancelled_by(), cancelled.then_some(CancelledBy::TooSlow));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn waits_that_the_client_does_not_cause_are_not_measured() {
        // The wait for the data connection or a slot.
        assert!(!is_cancelled(&ActivityHandle::new("RETR"), false, 0).await);
        // A listing that is still being gathered.
        assert!(!is_cancelled(&attached(), true, 0).await);
        // An upload that is being synced.
        let handle = attached();
        handle.client.note_end();
        assert!(!is_cancelled(&handle, false, 0).await);
    }

    #[test]
    fn time_that_a_transfer_waits_for_bandwidth_does_not_count() {
        let start = Instant::now();
        let mark = |seconds, transferred, paced| RateMark {
            at: start + Duration::from_secs(seconds),
            transferred,
            paced: Duration::from_secs(paced),
        };
        assert!(MINIMUM.is_too_slow(&mark(0, 0, 0), &mark(60, 3500, 0)));
        assert!(!MINIMUM.is_too_slow(&mark(0, 0, 0), &mark(60, 3500, 29)));
        assert!(!MINIMUM.is_too_slow(&mark(0, 0, 0), &mark(60, 0, 59)));
    }
}
