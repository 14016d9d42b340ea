//! `minimum_rate`: ends transfers whose client holds a place and moves next to nothing.

use std::{convert::Infallible, future::pending, time::Duration};

use tokio::time::{Instant, sleep};

use super::Direction;
use crate::{
    activity::{CancelledBy, Watch},
    metrics,
};

/// The slowest that a transfer may be.
#[derive(Clone, Copy, Debug)]
pub struct MinimumRate {
    /// Bytes a second; 0 is no minimum.
    pub rate: u64,
    /// Over how long it is measured.
    pub window: Duration,
}

/// Where a transfer was at the start of a window.
struct Mark {
    at: Instant,
    transferred: u64,
    /// How long the transfer had waited for its user's bandwidth.
    paced: Duration,
}

impl MinimumRate {
    /// Cancels the transfer once it was slower than the minimum for a whole window. Measures while a
    /// thread serves the transfer: neither the wait for the data connection or a place, nor the end of an
    /// upload, when its file is synced. A listing is measured from its first byte. Never returns.
    pub async fn enforce(self, watch: &Watch, direction: Direction) -> Infallible {
        if self.rate == 0 || self.window.is_zero() {
            return pending().await;
        }
        let mut mark = None;
        loop {
            sleep(self.window / 4).await;
            let progress = &watch.progress;
            let gathers = direction == Direction::Listing && progress.transferred() == 0;
            if !watch.is_attached() || progress.has_seen_end() || gathers {
                mark = None;
                continue;
            }
            let now =
                Mark { at: Instant::now(), transferred: progress.transferred(), paced: progress.paced() };
            let Some(from) = &mark else {
                mark = Some(now);
                continue;
            };
            if now.at - from.at < self.window {
                continue;
            }
            if self.is_too_slow(from, &now) {
                metrics::limit_reached("minimum_rate");
                watch.cancel(CancelledBy::TooSlow);
                return pending().await;
            }
            mark = Some(now);
        }
    }

    fn is_too_slow(&self, from: &Mark, to: &Mark) -> bool {
        let waited = to.paced.saturating_sub(from.paced);
        let own = (to.at - from.at).saturating_sub(waited);
        let moved = to.transferred.saturating_sub(from.transferred);
        // A transfer that mostly waits for its bandwidth says too little about its client.
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

    fn attached() -> Arc<Watch> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = Arc::new(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        let watch = Watch::new("RETR");
        watch.attach(&socket);
        watch
    }

    /// Whether a transfer that moves `bytes` a second is cancelled within ten minutes.
    async fn is_cancelled(watch: &Watch, direction: Direction, bytes: u64) -> bool {
        let client = async {
            for _ in 0..600 {
                sleep(Duration::from_secs(1)).await;
                watch.progress.add(bytes);
            }
        };
        tokio::select! {
            never = MINIMUM.enforce(watch, direction) => match never {},
            () = client => {}
        }
        watch.is_cancelled()
    }

    #[tokio::test(start_paused = true)]
    async fn a_transfer_below_the_minimum_is_cancelled_and_one_above_goes_on() {
        for (bytes, cancelled) in [(0, true), (1, true), (90, true), (110, false), (1_000_000, false)] {
            let watch = attached();
            assert_eq!(is_cancelled(&watch, Direction::Download, bytes).await, cancelled, "{bytes}");
            assert_eq!(watch.cancelled_by(), cancelled.then_some(CancelledBy::TooSlow));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_client_does_not_cause_is_not_measured() {
        // The wait for the data connection or a place.
        assert!(!is_cancelled(&Watch::new("RETR"), Direction::Download, 0).await);
        // A listing that is gathered.
        assert!(!is_cancelled(&attached(), Direction::Listing, 0).await);
        // An upload that is synced.
        let watch = attached();
        watch.progress.note_end();
        assert!(!is_cancelled(&watch, Direction::Upload, 0).await);
    }

    #[test]
    fn time_that_a_transfer_waits_for_bandwidth_does_not_count() {
        let start = Instant::now();
        let mark = |seconds, transferred, paced| Mark {
            at: start + Duration::from_secs(seconds),
            transferred,
            paced: Duration::from_secs(paced),
        };
        assert!(MINIMUM.is_too_slow(&mark(0, 0, 0), &mark(60, 3500, 0)));
        assert!(!MINIMUM.is_too_slow(&mark(0, 0, 0), &mark(60, 3500, 29)));
        assert!(!MINIMUM.is_too_slow(&mark(0, 0, 0), &mark(60, 0, 59)));
    }
}
