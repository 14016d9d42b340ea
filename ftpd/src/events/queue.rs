//! The events that wait for one receiver: those of a path in order, and each failure with a growing delay.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap, VecDeque},
    time::{Duration, Instant},
};

use super::tracker::PathKeys;

/// The first delay after a failure; it doubles with each further one.
const FIRST_DELAY: Duration = Duration::from_secs(1);

/// The longest delay of an event that its receiver refuses.
const LONGEST_REFUSAL_DELAY: Duration = Duration::from_secs(300);

/// The place of an event in a queue. Later events have greater places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct QueuePlace(u64);

/// An event in a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Queued<T> {
    pub item: T,
    pub paths: PathKeys,
    /// When it happened, in Unix ms.
    pub time: u64,
    pub attempts: u32,
}

/// The queue of one receiver.
#[derive(Debug)]
pub(super) struct ReceiverQueue<T> {
    events: BTreeMap<QueuePlace, Queued<T>>,
    /// The events of each path. An event is delivered when it is the first one of its paths.
    lines: HashMap<u64, VecDeque<QueuePlace>>,
    next: u64,
    /// Events that may be sent.
    ready: VecDeque<QueuePlace>,
    /// Events that are sent again later.
    delayed: BinaryHeap<Reverse<(Instant, QueuePlace)>>,
    in_flight: u32,
    concurrency: u32,
    /// Failures of the receiver in a row, and the time until which it gets nothing.
    failures: u32,
    paused: Option<Instant>,
    /// The longest of these times.
    longest_pause: Duration,
}

fn delay(failures: u32, longest: Duration) -> Duration {
    let factor = 1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    FIRST_DELAY.saturating_mul(factor).min(longest)
}

impl<T> ReceiverQueue<T> {
    pub(super) fn new(concurrency: u32, longest_pause: Duration) -> Self {
        Self {
            events: BTreeMap::new(),
            lines: HashMap::new(),
            next: 0,
            ready: VecDeque::new(),
            delayed: BinaryHeap::new(),
            in_flight: 0,
            concurrency,
            failures: 0,
            paused: None,
            longest_pause,
        }
    }

    /// Events that wait or are being sent.
    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// The time of the oldest event, in Unix ms.
    pub(super) fn oldest(&self) -> Option<u64> {
        let first = |line: &VecDeque<QueuePlace>| Some(self.events.get(line.front()?)?.time);
        self.lines.values().filter_map(first).min()
    }

    /// When the event happened, in Unix ms.
    pub(super) fn time_of(&self, place: QueuePlace) -> Option<u64> {
        Some(self.events.get(&place)?.time)
    }

    pub(super) fn push(&mut self, paths: PathKeys, item: T, time: u64) {
        let place = QueuePlace(self.next);
        self.next += 1;
        for path in paths.iter() {
            self.lines.entry(path).or_default().push_back(place);
        }
        self.events.insert(place, Queued { item, paths, time, attempts: 0 });
        if self.is_first(place) {
            self.ready.push_back(place);
        }
    }

    fn is_first(&self, place: QueuePlace) -> bool {
        let is_first_of = |path| self.lines.get(&path).and_then(VecDeque::front) == Some(&place);
        self.events.get(&place).is_some_and(|event| event.paths.iter().all(is_first_of))
    }

    fn is_full(&self) -> bool {
        // A receiver that failed gets one event at a time until one succeeds.
        self.in_flight >= if self.failures > 0 { 1 } else { self.concurrency }
    }

    /// The next event to send. The caller then reports how that ended.
    pub(super) fn start(&mut self, now: Instant) -> Option<(QueuePlace, &Queued<T>)> {
        if self.is_full() || self.paused.is_some_and(|until| now < until) {
            return None;
        }
        while let Some(Reverse((time, place))) = self.delayed.peek().copied() {
            if time > now {
                break;
            }
            self.delayed.pop();
            self.ready.push_back(place);
        }
        let place = self.ready.pop_front()?;
        self.in_flight += 1;
        let event = self.events.get_mut(&place)?;
        event.attempts += 1;
        Some((place, event))
    }

    /// The receiver has the event.
    pub(super) fn delivered(&mut self, place: QueuePlace) -> Option<Queued<T>> {
        self.in_flight = self.in_flight.saturating_sub(1);
        (self.failures, self.paused) = (0, None);
        self.remove(place)
    }

    /// The receiver refuses the event, which is tried again later, or given up if `gives_up`.
    pub(super) fn refused(&mut self, place: QueuePlace, now: Instant, gives_up: bool) -> Option<Queued<T>> {
        self.in_flight = self.in_flight.saturating_sub(1);
        (self.failures, self.paused) = (0, None);
        if gives_up {
            return self.remove(place);
        }
        let attempts = self.events.get(&place)?.attempts;
        self.delayed.push(Reverse((now + delay(attempts, LONGEST_REFUSAL_DELAY), place)));
        None
    }

    /// The receiver does not answer: it gets nothing for a while.
    pub(super) fn unavailable(&mut self, place: QueuePlace, now: Instant) {
        self.in_flight = self.in_flight.saturating_sub(1);
        // Requests that were on their way together count once.
        if self.paused.is_none_or(|until| until <= now) {
            self.failures += 1;
            self.paused = Some(now + delay(self.failures, self.longest_pause));
        }
        self.ready.push_front(place);
    }

    /// Takes out the waiting events that happened before `time` (Unix ms), unless an earlier event of their
    /// paths stays. Those being sent stay.
    pub(super) fn take_older(&mut self, time: u64) -> Vec<Queued<T>> {
        if self.in_flight > 0 {
            return Vec::new();
        }
        let old: Vec<_> =
            self.events.iter().filter(|(_, event)| event.time < time).map(|(place, _)| *place).collect();
        let mut taken = Vec::new();
        for place in old {
            if self.is_first(place) {
                taken.extend(self.remove(place));
            }
        }
        let events = &self.events;
        self.ready.retain(|place| events.contains_key(place));
        self.delayed.retain(|Reverse((_, place))| events.contains_key(place));
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

    /// Removes an event that is the first one of its paths.
    fn remove(&mut self, place: QueuePlace) -> Option<Queued<T>> {
        let event = self.events.remove(&place)?;
        for path in event.paths.iter() {
            if let Some(line) = self.lines.get_mut(&path) {
                line.pop_front();
                if line.is_empty() {
                    self.lines.remove(&path);
                }
            }
        }
        let mut previous = None;
        for path in event.paths.iter() {
            let next = self.lines.get(&path).and_then(VecDeque::front).copied();
            // Of two renames between the same paths, the second one is next in both lines.
            if next != previous
                && let Some(next) = next
                && self.is_first(next)
            {
                self.ready.push_back(next);
            }
            previous = next;
        }
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST_PAUSE: Duration = Duration::from_secs(300);

    /// Pushes events of the paths in order, whose names are their places.
    fn queue(concurrency: u32, events: &[(u64, u64)]) -> ReceiverQueue<()> {
        let mut queue = ReceiverQueue::new(concurrency, LONGEST_PAUSE);
        for (path, time) in events {
            queue.push(PathKeys::new(*path, None), (), *time);
        }
        queue
    }

    fn start(queue: &mut ReceiverQueue<()>, now: Instant) -> Option<u64> {
        queue.start(now).map(|(place, _)| place.0)
    }

    fn delivered(queue: &mut ReceiverQueue<()>, place: u64) {
        queue.delivered(QueuePlace(place)).unwrap();
    }

    #[test]
    fn events_of_a_path_are_sent_one_after_the_other_and_other_paths_meanwhile() {
        let now = Instant::now();
        let mut queue = queue(2, &[(1, 0), (1, 0), (2, 0), (3, 0)]);
        assert_eq!(start(&mut queue, now), Some(0));
        assert_eq!(start(&mut queue, now), Some(2));
        assert_eq!(start(&mut queue, now), None, "concurrency");
        delivered(&mut queue, 0);
        assert_eq!(start(&mut queue, now), Some(3));
        delivered(&mut queue, 2);
        assert_eq!(start(&mut queue, now), Some(1));
        delivered(&mut queue, 3);
        delivered(&mut queue, 1);
        assert_eq!((queue.len(), queue.in_flight(), queue.lines.len()), (0, 0, 0));
    }

    #[test]
    fn a_rename_waits_for_the_events_of_both_paths_and_holds_up_later_ones() {
        let now = Instant::now();
        let mut queue = queue(9, &[(1, 0), (2, 0)]);
        queue.push(PathKeys::new(2, Some(1)), (), 0);
        queue.push(PathKeys::new(2, Some(1)), (), 0);
        queue.push(PathKeys::new(1, None), (), 0);
        assert_eq!([start(&mut queue, now), start(&mut queue, now)], [Some(0), Some(1)]);
        delivered(&mut queue, 1);
        assert_eq!(start(&mut queue, now), None, "an event of the old path is being sent");
        delivered(&mut queue, 0);
        for place in 2..5 {
            assert_eq!([start(&mut queue, now), start(&mut queue, now)], [Some(place), None]);
            delivered(&mut queue, place);
        }
        assert_eq!((queue.len(), queue.lines.len()), (0, 0));
    }

    #[test]
    fn a_refused_event_delays_its_path_only() {
        let now = Instant::now();
        let mut queue = queue(4, &[(1, 0), (1, 0), (2, 0)]);
        start(&mut queue, now);
        assert_eq!(queue.refused(QueuePlace(0), now, false), None);
        assert_eq!(start(&mut queue, now), Some(2));
        assert_eq!(start(&mut queue, now), None);
        assert_eq!(queue.next_time(), Some(now + FIRST_DELAY));
        let later = now + FIRST_DELAY;
        assert_eq!(start(&mut queue, later), Some(0));
        assert_eq!(queue.refused(QueuePlace(0), later, true).unwrap().attempts, 2);
        assert_eq!(start(&mut queue, later), Some(1));
    }

    #[test]
    fn an_unavailable_receiver_gets_one_request_at_a_time_with_growing_delays() {
        let mut now = Instant::now();
        let mut queue = queue(4, &[(1, 0), (2, 0), (3, 0)]);
        for place in 0..3 {
            assert_eq!(start(&mut queue, now), Some(place));
        }
        for place in 0..3 {
            queue.unavailable(QueuePlace(place), now);
        }
        for pause in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            assert!(start(&mut queue, now).is_none());
            assert_eq!(queue.next_time(), Some(now + Duration::from_secs(pause)));
            now += Duration::from_secs(pause);
            let place = start(&mut queue, now).unwrap();
            assert!(start(&mut queue, now).is_none());
            queue.unavailable(QueuePlace(place), now);
        }
        now += LONGEST_PAUSE;
        let place = start(&mut queue, now).unwrap();
        delivered(&mut queue, place);
        assert!(start(&mut queue, now).is_some() && start(&mut queue, now).is_some());
    }

    #[test]
    fn old_events_are_taken_out_in_the_order_of_their_path() {
        let now = Instant::now();
        let mut queue = queue(4, &[(1, 10), (1, 20), (1, 30), (2, 40)]);
        // An old rename that waits for a younger event of its old path.
        queue.push(PathKeys::new(5, Some(2)), (), 15);
        assert_eq!(queue.oldest(), Some(10));
        let taken: Vec<_> = queue.take_older(25).into_iter().map(|event| event.time).collect();
        assert_eq!(taken, [10, 20]);
        assert_eq!(queue.len(), 3);
        assert_eq!([start(&mut queue, now), start(&mut queue, now)], [Some(3), Some(2)]);
        assert!(queue.take_older(100).is_empty());
    }
}
