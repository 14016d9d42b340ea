//! The turns of home counts: only a few of them read the storage at the same time.
//!
//! While other counts wait, a count loses its turn after `home_count_turn` to the waiting count that has read
//! least. So the count of a small home does not wait until a large home is counted, and a count whose storage
//! hangs does not keep its turn.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use common::sync::lock;

/// How often a waiting count checks whether it was cancelled.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The turns of all home counts of this node.
pub(super) struct CountTurns {
    /// Counts that read at the same time.
    at_once: usize,
    /// How long a count may keep its turn while another waits.
    slice: Duration,
    state: Mutex<TurnsState>,
    changed: Condvar,
}

#[derive(Default)]
struct TurnsState {
    next_id: u64,
    reading: HashMap<u64, ReadingCount>,
    /// Ordered by the time for which they have read, then by number.
    waiting: BTreeSet<(Duration, u64)>,
}

struct ReadingCount {
    since: Instant,
    is_taken: Arc<AtomicBool>,
}

/// The wait for a turn was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TurnCancelled;

/// One home count. Dropping it gives its turn to another count.
pub(super) struct CountTurn {
    turns: Arc<CountTurns>,
    id: u64,
    /// The time of its earlier turns.
    spent: Duration,
    /// The start of its current turn.
    since: Option<Instant>,
    /// True before the first turn, and once another count has got this count's turn.
    is_taken: Arc<AtomicBool>,
}

impl CountTurns {
    pub(super) fn new(at_once: usize, slice: Duration) -> Self {
        Self { at_once, slice, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Registers a count. It has no turn until [`CountTurn::step`].
    pub(super) fn enter(self: &Arc<Self>) -> CountTurn {
        let mut state = self.state();
        state.next_id += 1;
        CountTurn {
            turns: Arc::clone(self),
            id: state.next_id,
            spent: Duration::ZERO,
            since: None,
            is_taken: Arc::new(AtomicBool::new(true)),
        }
    }

    fn state(&self) -> MutexGuard<'_, TurnsState> {
        lock(&self.state)
    }
}

impl TurnsState {
    /// The count with the oldest turn, and the start of that turn.
    fn oldest(&self) -> Option<(u64, Instant)> {
        self.reading.iter().map(|(id, reading)| (*id, reading.since)).min_by_key(|(_, since)| *since)
    }
}

impl CountTurn {
    /// Call it before each step of the count. Blocks until the count has its turn.
    ///
    /// # Errors
    /// `is_cancelled`, which is asked about once a second, returned true.
    pub(super) fn step(&mut self, is_cancelled: impl Fn() -> bool) -> Result<(), TurnCancelled> {
        if is_cancelled() {
            return Err(TurnCancelled);
        }
        if self.is_taken.load(Ordering::Relaxed) { self.wait(is_cancelled) } else { Ok(()) }
    }

    fn wait(&mut self, is_cancelled: impl Fn() -> bool) -> Result<(), TurnCancelled> {
        let turns = Arc::clone(&self.turns);
        let mut state = turns.state();
        // The time during which the storage hung counts, too.
        self.spent += self.since.take().map_or(Duration::ZERO, |since| since.elapsed());
        let rank = (self.spent, self.id);
        state.waiting.insert(rank);
        loop {
            let mut pause = CHECK_INTERVAL;
            if state.waiting.first() == Some(&rank) {
                if state.reading.len() < turns.at_once {
                    break;
                }
                if let Some((id, since)) = state.oldest() {
                    let left = turns.slice.saturating_sub(since.elapsed());
                    if left.is_zero() {
                        // That count notices the loss at its next step, or never if its storage hangs.
                        if let Some(reading) = state.reading.remove(&id) {
                            reading.is_taken.store(true, Ordering::Relaxed);
                        }
                        break;
                    }
                    pause = pause.min(left);
                }
            }
            state = turns.changed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0;
            if is_cancelled() {
                state.waiting.remove(&rank);
                turns.changed.notify_all();
                return Err(TurnCancelled);
            }
        }
        state.waiting.remove(&rank);
        self.is_taken.store(false, Ordering::Relaxed);
        let since = Instant::now();
        self.since = Some(since);
        state.reading.insert(self.id, ReadingCount { since, is_taken: Arc::clone(&self.is_taken) });
        // The next waiting count is the first now.
        turns.changed.notify_all();
        Ok(())
    }
}

impl Drop for CountTurn {
    fn drop(&mut self) {
        self.turns.state().reading.remove(&self.id);
        self.turns.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    const FAR: Duration = Duration::from_secs(60);

    fn never() -> bool {
        false
    }

    /// Does a step on another thread, and sends the turn back.
    fn step_elsewhere(mut turn: CountTurn) -> mpsc::Receiver<CountTurn> {
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            turn.step(never).unwrap();
            let _ = sender.send(turn);
        });
        receiver
    }

    #[test]
    fn a_count_whose_storage_hangs_loses_its_turn_and_waits_when_the_storage_is_back() {
        let turns = Arc::new(CountTurns::new(1, Duration::from_millis(20)));
        let mut hung = turns.enter();
        hung.step(never).unwrap();
        // The hung count does no further step. Another count gets the turn all the same.
        let mut other = step_elsewhere(turns.enter()).recv_timeout(FAR).unwrap();
        assert!(hung.is_taken.load(Ordering::Relaxed));
        // It has read for longer than the other count, so it gets the turn only when the other ends.
        let back = step_elsewhere(hung);
        other.step(never).unwrap();
        drop(other);
        back.recv_timeout(FAR).unwrap();
    }

    #[test]
    fn the_count_that_has_read_least_is_next() {
        let turns = Arc::new(CountTurns::new(1, Duration::from_millis(1)));
        let mut large = turns.enter();
        large.step(never).unwrap();
        large.spent = FAR;
        let mut small: Vec<_> = (0..20).map(|_| turns.enter()).collect();
        // Each small count takes the turn from the large count, which asks for it all the time.
        let large = step_elsewhere(large);
        for turn in &mut small {
            turn.step(never).unwrap();
        }
        drop(small);
        large.recv_timeout(FAR).unwrap();
    }

    #[test]
    fn a_limited_number_of_counts_read_and_a_cancelled_wait_ends() {
        let turns = Arc::new(CountTurns::new(2, FAR));
        let mut reading = [turns.enter(), turns.enter()];
        for turn in &mut reading {
            turn.step(never).unwrap();
        }
        let is_cancelled = AtomicBool::new(false);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| turns.enter().step(|| is_cancelled.load(Ordering::Relaxed)));
            while turns.state().waiting.is_empty() {
                thread::yield_now();
            }
            is_cancelled.store(true, Ordering::Relaxed);
            assert_eq!(waiting.join().unwrap(), Err(TurnCancelled));
        });
        assert!(turns.state().waiting.is_empty());
        drop(reading);
        assert!(turns.enter().step(never).is_ok());
    }
}
