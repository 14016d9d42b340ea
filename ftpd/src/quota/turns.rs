//! Which of several counts of homes reads the storage now.
//!
//! A few counts read at the same time. A count that has read for a while, while another waits, loses its turn
//! to the waiting count that has read least. So the count of a small home does not wait until a large home is
//! counted; and a count whose storage hangs loses its turn without doing anything.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// How often a count that waits looks whether it has been cancelled.
const LOOK: Duration = Duration::from_secs(1);

/// The turns of all counts of this node.
pub struct Turns {
    /// How many counts read at the same time.
    at_once: usize,
    /// How long a count may keep its turn while another waits.
    slice: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    next_id: u64,
    reading: HashMap<u64, Reading>,
    /// By the time that they have read, then by their number.
    waiting: BTreeSet<(Duration, u64)>,
}

struct Reading {
    since: Instant,
    is_taken: Arc<AtomicBool>,
}

/// The wait for a turn was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cancelled;

/// One count. Dropping it gives its turn to another.
pub struct Turn {
    turns: Arc<Turns>,
    id: u64,
    /// How long it had the turn, without the current turn.
    spent: Duration,
    /// Since when it has the turn.
    since: Option<Instant>,
    /// Another count has got this count's turn, or it has had none yet.
    is_taken: Arc<AtomicBool>,
}

impl Turns {
    pub fn new(at_once: usize, slice: Duration) -> Self {
        Self { at_once, slice, state: Mutex::default(), changed: Condvar::new() }
    }

    /// For a count that begins. It has no turn until [`Turn::step`].
    pub fn enter(self: &Arc<Self>) -> Turn {
        let mut state = self.state();
        state.next_id += 1;
        Turn {
            turns: Arc::clone(self),
            id: state.next_id,
            spent: Duration::ZERO,
            since: None,
            is_taken: Arc::new(AtomicBool::new(true)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The count that has had its turn for longest, and since when.
    fn oldest(&self) -> Option<(u64, Instant)> {
        self.reading.iter().map(|(id, reading)| (*id, reading.since)).min_by_key(|(_, since)| *since)
    }
}

impl Turn {
    /// To be called before each step of the count. Waits if another count has the turn now. Blocks.
    ///
    /// # Errors
    /// `is_cancelled` said so, which is asked about once a second.
    pub fn step(&mut self, is_cancelled: impl Fn() -> bool) -> Result<(), Cancelled> {
        if is_cancelled() {
            return Err(Cancelled);
        }
        if self.is_taken.load(Ordering::Relaxed) { self.wait(is_cancelled) } else { Ok(()) }
    }

    fn wait(&mut self, is_cancelled: impl Fn() -> bool) -> Result<(), Cancelled> {
        let turns = Arc::clone(&self.turns);
        let mut state = turns.state();
        // The time in which the storage hung counts, too.
        self.spent += self.since.take().map_or(Duration::ZERO, |since| since.elapsed());
        let place = (self.spent, self.id);
        state.waiting.insert(place);
        loop {
            let mut pause = LOOK;
            if state.waiting.first() == Some(&place) {
                if state.reading.len() < turns.at_once {
                    break;
                }
                if let Some((id, since)) = state.oldest() {
                    let left = turns.slice.saturating_sub(since.elapsed());
                    if left.is_zero() {
                        // It notices at its next step; if its storage hangs, that may be never.
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
                state.waiting.remove(&place);
                turns.changed.notify_all();
                return Err(Cancelled);
            }
        }
        state.waiting.remove(&place);
        self.is_taken.store(false, Ordering::Relaxed);
        let since = Instant::now();
        self.since = Some(since);
        state.reading.insert(self.id, Reading { since, is_taken: Arc::clone(&self.is_taken) });
        // The next that waits is the first now.
        turns.changed.notify_all();
        Ok(())
    }
}

impl Drop for Turn {
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

    /// Steps on a thread of its own, and tells the result.
    fn step_elsewhere(mut turn: Turn) -> mpsc::Receiver<Turn> {
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            turn.step(never).unwrap();
            let _ = sender.send(turn);
        });
        receiver
    }

    #[test]
    fn a_count_whose_storage_hangs_loses_its_turn_and_waits_when_the_storage_is_back() {
        let turns = Arc::new(Turns::new(1, Duration::from_millis(20)));
        let mut hung = turns.enter();
        hung.step(never).unwrap();
        // It makes no further step. Another count gets the turn all the same.
        let mut other = step_elsewhere(turns.enter()).recv_timeout(FAR).unwrap();
        assert!(hung.is_taken.load(Ordering::Relaxed));
        // Back again, it has read for longer than the other: it gets the turn when the other ends.
        let back = step_elsewhere(hung);
        other.step(never).unwrap();
        drop(other);
        back.recv_timeout(FAR).unwrap();
    }

    #[test]
    fn the_count_that_has_read_least_is_the_next() {
        let turns = Arc::new(Turns::new(1, Duration::from_millis(1)));
        let mut large = turns.enter();
        large.step(never).unwrap();
        large.spent = FAR;
        let mut small: Vec<_> = (0..20).map(|_| turns.enter()).collect();
        // Each small count takes the turn from the large one, though that asks for it all the time.
        let large = step_elsewhere(large);
        for turn in &mut small {
            turn.step(never).unwrap();
        }
        drop(small);
        large.recv_timeout(FAR).unwrap();
    }

    #[test]
    fn so_many_read_at_the_same_time_and_a_cancelled_wait_ends() {
        let turns = Arc::new(Turns::new(2, FAR));
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
            assert_eq!(waiting.join().unwrap(), Err(Cancelled));
        });
        assert!(turns.state().waiting.is_empty());
        drop(reading);
        assert!(turns.enter().step(never).is_ok());
    }
}
