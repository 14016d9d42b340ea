//! The stall limit of a relayed connection. Its timer fires at the limit at the earliest, not at each move.

use std::{future::pending, pin::Pin, time::Duration};

use tokio::time::{Instant, Sleep, sleep_until};

/// Notices that no byte has moved for the limit.
pub(super) struct StallWatch {
    /// `None`: no limit.
    limit: Option<Duration>,
    last_move: Instant,
    timer: Option<Pin<Box<Sleep>>>,
    /// The bytes that the peers had not acknowledged when the limit was last reached.
    unacknowledged: Option<usize>,
}

impl StallWatch {
    pub(super) fn new(limit: Option<Duration>) -> Self {
        Self { limit, last_move: Instant::now(), timer: None, unacknowledged: None }
    }

    pub(super) fn note_move(&mut self) {
        self.last_move = Instant::now();
        self.unacknowledged = None;
    }

    /// Waits until the limit may have been reached. Ask [`Self::is_stalled`] then.
    pub(super) async fn timer(&mut self) {
        let Some(limit) = self.limit else { return pending().await };
        // A deadline too far to be represented is no limit.
        let Some(deadline) = self.last_move.checked_add(limit) else { return pending().await };
        self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline))).as_mut().await;
    }

    /// Decides after [`Self::timer`]. If bytes have moved meanwhile, the timer starts again for the rest of
    /// the limit. The kernel may also be sending bytes that it took earlier to a slow peer: while
    /// `unacknowledged` changes, the connection has not stalled.
    pub(super) fn is_stalled(&mut self, unacknowledged: impl FnOnce() -> usize) -> bool {
        let (Some(limit), Some(timer)) = (self.limit, &mut self.timer) else { return false };
        let now = Instant::now();
        if let Some(deadline) = self.last_move.checked_add(limit).filter(|deadline| *deadline > now) {
            timer.as_mut().reset(deadline);
            return false;
        }
        let left = unacknowledged();
        if left == 0 || self.unacknowledged.replace(left) == Some(left) {
            return true;
        }
        timer.as_mut().reset(now + limit);
        false
    }
}
