//! The events that wait for one receiver: those of a path in order, and each failure with a growing delay.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    time::{Duration, Instant},
};

/// The first delay after a failure; it doubles with each further one.
const FIRST_DELAY: Duration = Duration::from_secs(1);

/// The longest delay of an event that its receiver refuses.
const LONGEST_REFUSAL_DELAY: Duration = Duration::from_secs(300);

/// An event in a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Queued<T> {
    pub item: T,
    /// When it happened, in Unix ms.
    pub time: u64,
    pub attempts: u32,
}

/// The events of one path. The first is the one that is delivered next.
#[derive(Debug)]
struct PathLine<T> {
    events: VecDeque<Queued<T>>,
}

/// The queue of one receiver.
#[derive(Debug)]
pub(super) struct ReceiverQueue<T> {
    lines: HashMap<u64, PathLine<T>>,
    /// Paths whose first event may be sent.
    ready: VecDeque<u64>,
    /// Paths whose first event is sent again later.
    delayed: BinaryHeap<Reverse<(Instant, u64)>>,
    in_flight: u32,
    concurrency: u32,
    /// Failures of the receiver in a row, and the time until which it gets nothing.
    failures: u32,
    paused: Option<Instant>,
    /// The longest of these times.
    longest_pause: Duration,
    length: usize,
}

fn delay(failures: u32, longest: Duration) -> Duration {
    let factor = 1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    FIRST_DELAY.saturating_mul(factor).min(longest)
}

impl<T> ReceiverQueue<T> {
    pub(super) fn new(concurrency: u32, longest_pause: Duration) -> Self {
        Self {
            lines: HashMap::new(),
            ready: VecDeque::new(),
            delayed: BinaryHeap::new(),
            in_flight: 0,
            concurrency,
            failures: 0,
            paused: None,
            longest_pause,
            length: 0,
        }
    }

    /// Events that wait or are being sent.
    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// The time of the oldest event, in Unix ms.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.lines.values().filter_map(|line| line.events.front()).map(|event| event.time).min()
    }

    /// When the first event of the path happened, in Unix ms.
    pub(super) fn first_time(&self, path: u64) -> Option<u64> {
        Some(self.lines.get(&path)?.events.front()?.time)
    }

    pub(super) fn push(&mut self, path: u64, item: T, time: u64) {
        let line = self.lines.entry(path).or_insert_with(|| PathLine { events: VecDeque::new() });
        if line.events.is_empty() {
            self.ready.push_back(path);
        }
        line.events.push_back(Queued { item, time, attempts: 0 });
        self.length += 1;
    }

    fn is_full(&self) -> bool {
        // A receiver that failed gets one event at a time until one succeeds.
        self.in_flight >= if self.failures > 0 { 1 } else { self.concurrency }
    }

    /// The next event to send, with its path. The caller then reports how that ended.
    pub(super) fn start(&mut self, now: Instant) -> Option<(u64, &Queued<T>)> {
        if self.is_full() || self.paused.is_some_and(|until| now < until) {
            return None;
        }
        while let Some(Reverse((time, path))) = self.delayed.peek().copied() {
            if time > now {
                break;
            }
            self.delayed.pop();
            self.ready.push_back(path);
        }
        let path = self.ready.pop_front()?;
        self.in_flight += 1;
        let event = self.lines.get_mut(&path)?.events.front_mut()?;
        event.attempts += 1;
        Some((path, event))
    }

    /// The receiver has the first event of the path.
    pub(super) fn delivered(&mut self, path: u64) -> Option<Queued<T>> {
        self.in_flight = self.in_flight.saturating_sub(1);
        (self.failures, self.paused) = (0, None);
        self.remove_first(path)
    }

    /// The receiver refuses the first event of the path, which is tried again later, or given up if
    /// `gives_up`.
    pub(super) fn refused(&mut self, path: u64, now: Instant, gives_up: bool) -> Option<Queued<T>> {
        self.in_flight = self.in_flight.saturating_sub(1);
        (self.failures, self.paused) = (0, None);
        if gives_up {
            return self.remove_first(path);
        }
        let attempts = self.lines.get(&path)?.events.front()?.attempts;
        self.delayed.push(Reverse((now + delay(attempts, LONGEST_REFUSAL_DELAY), path)));
        None
    }

    /// The receiver does not answer: it gets nothing for a while.
    pub(super) fn unavailable(&mut self, path: u64, now: Instant) {
        self.in_flight = self.in_flight.saturating_sub(1);
        // Requests that were on their way together count once.
        if self.paused.is_none_or(|until| until <= now) {
            self.failures += 1;
            self.paused = Some(now + delay(self.failures, self.longest_pause));
        }
        self.ready.push_front(path);
    }

    /// Takes out the waiting events that happened before `time` (Unix ms). Those being sent stay.
    pub(super) fn take_older(&mut self, time: u64) -> Vec<(u64, Queued<T>)> {
        if self.in_flight > 0 {
            return Vec::new();
        }
        let mut taken = Vec::new();
        self.lines.retain(|path, line| {
            while line.events.front().is_some_and(|event| event.time < time) {
                taken.extend(line.events.pop_front().map(|event| (*path, event)));
            }
            !line.events.is_empty()
        });
        let lines = &self.lines;
        self.ready.retain(|path| lines.contains_key(path));
        self.delayed.retain(|Reverse((_, path))| lines.contains_key(path));
        self.length -= taken.len();
        taken
    }

    /// When [`Self::start`] should be called again. `None`: after the next report or event.
    pub(super) fn next_time(&self) -> Option<Instant> {
        if self.is_full() {
            return None;
        }
        let first = match (self.ready.is_empty(), self.delayed.peek()) {
            (false, _) => Some(self.paused?),
            (true, Some(Reverse((time, _)))) => Some(*time),
            (true, None) => None,
        }?;
        Some(self.paused.map_or(first, |until| first.max(until)))
    }

    fn remove_first(&mut self, path: u64) -> Option<Queued<T>> {
        let line = self.lines.get_mut(&path)?;
        let first = line.events.pop_front()?;
        self.length -= 1;
        if line.events.is_empty() {
            self.lines.remove(&path);
        } else {
            self.ready.push_back(path);
        }
        Some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST_PAUSE: Duration = Duration::from_secs(300);

    fn start<T: Copy>(queue: &mut ReceiverQueue<T>, now: Instant) -> Option<(u64, T)> {
        queue.start(now).map(|(path, queued)| (path, queued.item))
    }

    #[test]
    fn events_of_a_path_are_sent_one_after_the_other_and_other_paths_meanwhile() {
        let now = Instant::now();
        let mut queue = ReceiverQueue::new(2, LONGEST_PAUSE);
        for (path, item) in [(1, "a"), (1, "b"), (2, "c"), (3, "d")] {
            queue.push(path, item, 0);
        }
        assert_eq!(start(&mut queue, now), Some((1, "a")));
        assert_eq!(start(&mut queue, now), Some((2, "c")));
        assert_eq!(start(&mut queue, now), None, "concurrency");
        assert_eq!(queue.delivered(1).unwrap().item, "a");
        assert_eq!(start(&mut queue, now), Some((3, "d")));
        queue.delivered(2);
        assert_eq!(start(&mut queue, now), Some((1, "b")));
        queue.delivered(3);
        queue.delivered(1);
        assert_eq!((queue.len(), queue.in_flight()), (0, 0));
    }

    #[test]
    fn a_refused_event_delays_its_path_only() {
        let now = Instant::now();
        let mut queue = ReceiverQueue::new(4, LONGEST_PAUSE);
        for (path, item) in [(1, "a"), (1, "b"), (2, "c")] {
            queue.push(path, item, 0);
        }
        start(&mut queue, now);
        assert_eq!(queue.refused(1, now, false), None);
        assert_eq!(start(&mut queue, now), Some((2, "c")));
        assert_eq!(start(&mut queue, now), None);
        assert_eq!(queue.next_time(), Some(now + FIRST_DELAY));
        let later = now + FIRST_DELAY;
        assert_eq!(start(&mut queue, later), Some((1, "a")));
        assert_eq!(queue.refused(1, later, true).unwrap().attempts, 2);
        assert_eq!(start(&mut queue, later), Some((1, "b")));
    }

    #[test]
    fn an_unavailable_receiver_gets_one_request_at_a_time_with_growing_delays() {
        let mut now = Instant::now();
        let mut queue = ReceiverQueue::new(4, LONGEST_PAUSE);
        for path in 1..=3 {
            queue.push(path, path, 0);
        }
        for path in 1..=3 {
            assert!(start(&mut queue, now).is_some_and(|(next, _)| next == path));
        }
        for path in 1..=3 {
            queue.unavailable(path, now);
        }
        for pause in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            assert!(start(&mut queue, now).is_none());
            assert_eq!(queue.next_time(), Some(now + Duration::from_secs(pause)));
            now += Duration::from_secs(pause);
            let (path, _) = start(&mut queue, now).unwrap();
            assert!(start(&mut queue, now).is_none());
            queue.unavailable(path, now);
        }
        now += LONGEST_PAUSE;
        let (path, _) = start(&mut queue, now).unwrap();
        queue.delivered(path);
        assert!(start(&mut queue, now).is_some() && start(&mut queue, now).is_some());
    }

    #[test]
    fn old_events_are_taken_out_in_the_order_of_their_path() {
        let now = Instant::now();
        let mut queue = ReceiverQueue::new(4, LONGEST_PAUSE);
        for (path, item, time) in [(1, "a", 10), (1, "b", 20), (1, "c", 30), (2, "d", 40)] {
            queue.push(path, item, time);
        }
        assert_eq!(queue.oldest(), Some(10));
        let taken: Vec<_> = queue.take_older(25).into_iter().map(|(_, queued)| queued.item).collect();
        assert_eq!(taken, ["a", "b"]);
        assert_eq!(queue.len(), 2);
        assert!(start(&mut queue, now).is_some() && start(&mut queue, now).is_some());
        assert!(queue.take_older(100).is_empty());
    }
}
