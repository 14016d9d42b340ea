//! Which events may be delivered: they have happened, and no earlier event of their paths is undecided.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use super::{
    directory::{ProcessId, SegmentName},
    record::{Event, EventOrder},
};

/// An event: its process, and its number there.
pub(super) type EventKey = (ProcessId, u64);

/// The lines that an event stands in: hashes of its path and, of a rename, of the old path. Paths with the
/// same hash wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PathKeys(u64, Option<u64>);

impl PathKeys {
    pub(super) fn of(event: &Event) -> Self {
        if !event.event.has_order() {
            // A line of its own.
            return Self(key_of(event.id.as_bytes()), None);
        }
        let (path, old) = (event.storage_bytes(), event.old_storage_bytes());
        Self::new(key_of(&path), old.map(|old| key_of(&old)))
    }

    /// Each key once.
    pub(super) fn new(path: u64, old: Option<u64>) -> Self {
        Self(path, old.filter(|old| *old != path))
    }

    pub(super) fn iter(self) -> impl Iterator<Item = u64> {
        [self.0].into_iter().chain(self.1)
    }
}

fn key_of(path: &[u8]) -> u64 {
    let mut key = DefaultHasher::new();
    path.hash(&mut key);
    key.finish()
}

/// The place of an event's intent in a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct IntentPlace {
    pub segment: SegmentName,
    pub offset: u64,
    pub length: u32,
}

/// An event that is not released yet.
#[derive(Debug)]
struct TrackedEvent {
    place: IntentPlace,
    paths: PathKeys,
    order: EventOrder,
    /// The round in which the commit was read.
    committed: Option<u64>,
}

/// A released event.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ReleasedEvent {
    pub key: EventKey,
    pub place: IntentPlace,
    pub paths: PathKeys,
    /// When it happened: Unix ms by the storage's clock.
    pub time: u64,
}

/// The events that were read from all journals.
///
/// A round reads every journal to its end. The intent of an event is on stable storage before another session
/// may write the path, so before a later event of the path is in any journal. A round that begins after the
/// later event was read therefore finds the earlier one: an event is released after the round that follows
/// the one in which its commit was read.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    events: HashMap<EventKey, TrackedEvent>,
    /// The events of each path, in order. The key is a hash of the path; paths with the same hash wait for
    /// each other.
    paths: HashMap<u64, Vec<EventKey>>,
    round: u64,
    /// Committed events that are not released.
    committed: usize,
}

impl Tracker {
    pub(super) fn intent(&mut self, key: EventKey, place: IntentPlace, paths: PathKeys, order: EventOrder) {
        let events = &self.events;
        for path in paths.iter() {
            let line = self.paths.entry(path).or_default();
            let later = line
                .iter()
                .position(|other| events.get(other).is_some_and(|other| order.is_before(&other.order)));
            line.insert(later.unwrap_or(line.len()), key);
        }
        self.events.insert(key, TrackedEvent { place, paths, order, committed: None });
    }

    pub(super) fn commit(&mut self, key: EventKey) {
        if let Some(event) = self.events.get_mut(&key)
            && event.committed.is_none()
        {
            event.committed = Some(self.round);
            self.committed += 1;
        }
    }

    /// Forgets an event that did not happen. Returns the segment of its intent.
    pub(super) fn abort(&mut self, key: EventKey) -> Option<SegmentName> {
        if self.events.get(&key)?.committed.is_some() {
            return None;
        }
        self.remove(key).map(|event| event.place.segment)
    }

    fn remove(&mut self, key: EventKey) -> Option<TrackedEvent> {
        let event = self.events.remove(&key)?;
        for path in event.paths.iter() {
            if let Some(line) = self.paths.get_mut(&path) {
                line.retain(|other| *other != key);
                if line.is_empty() {
                    self.paths.remove(&path);
                }
            }
        }
        Some(event)
    }

    /// The undecided events of a process.
    pub(super) fn open_of(&self, process: ProcessId) -> Vec<(EventKey, IntentPlace)> {
        let mut open: Vec<_> = self
            .events
            .iter()
            .filter(|(key, event)| key.0 == process && event.committed.is_none())
            .map(|(key, event)| (*key, event.place.clone()))
            .collect();
        open.sort_by_key(|(key, _)| *key);
        open
    }

    /// Begins a round.
    pub(super) fn begin_round(&mut self) {
        self.round += 1;
    }

    /// Returns true if a further round may release events.
    pub(super) fn has_committed(&self) -> bool {
        self.committed > 0
    }

    /// After a round has read every journal: takes out the events that may be delivered, those of each path
    /// in their order.
    pub(super) fn release(&mut self) -> Vec<ReleasedEvent> {
        let mut released = Vec::new();
        if self.committed == 0 {
            return released;
        }
        let mut lines: Vec<u64> = self.paths.keys().copied().collect();
        while let Some(path) = lines.pop() {
            while let Some(key) = self.releasable(path)
                && let Some(event) = self.remove(key)
            {
                // A rename may have held up the line of its other path.
                lines.extend(event.paths.iter().filter(|other| *other != path));
                let TrackedEvent { place, paths, order, .. } = event;
                released.push(ReleasedEvent { key, place, paths, time: order.changed / 1_000_000 });
            }
        }
        self.committed -= released.len();
        released
    }

    fn first(&self, path: u64) -> Option<EventKey> {
        self.paths.get(&path)?.first().copied()
    }

    /// The first event of the line, if it may be delivered now: it is also the first one of its other line.
    ///
    /// Only when Redis was away meanwhile can two lines disagree on the order of their events, because the
    /// clocks of nodes are compared then. Renames that wait for each other in a circle do not wait.
    fn releasable(&self, path: u64) -> Option<EventKey> {
        let first = self.first(path)?;
        let mut seen = HashSet::new();
        let mut next = first;
        loop {
            let event = self.events.get(&next)?;
            event.committed.filter(|read| *read < self.round)?;
            let Some(earlier) =
                event.paths.iter().filter_map(|path| self.first(path)).find(|key| *key != next)
            else {
                // `next` can be released, and `first` after it.
                return (next == first).then_some(first);
            };
            if !seen.insert(next) {
                return (next == first).then_some(first);
            }
            next = earlier;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: ProcessId = ProcessId(1);
    const OTHER: ProcessId = ProcessId(2);

    fn place(process: ProcessId) -> IntentPlace {
        let segment = SegmentName { process, segment: 0, node: "node".parse().unwrap() };
        IntentPlace { segment, offset: 0, length: 1 }
    }

    fn path(key: u64) -> PathKeys {
        PathKeys::new(key, None)
    }

    fn rename(from: u64, to: u64) -> PathKeys {
        PathKeys::new(to, Some(from))
    }

    fn order(lease: u64) -> EventOrder {
        EventOrder { epoch: 1, lease, changed: 0 }
    }

    fn keys(tracker: &mut Tracker) -> Vec<EventKey> {
        tracker.begin_round();
        tracker.release().into_iter().map(|event| event.key).collect()
    }

    #[test]
    fn an_event_is_released_a_round_after_its_commit_was_read() {
        let mut tracker = Tracker::default();
        tracker.begin_round();
        tracker.intent((ONE, 1), place(ONE), path(7), order(1));
        tracker.commit((ONE, 1));
        assert_eq!(tracker.release(), []);
        assert!(tracker.has_committed());
        assert_eq!(keys(&mut tracker), [(ONE, 1)]);
        assert!(!tracker.has_committed());
        // A second line for the same event changes nothing.
        tracker.commit((ONE, 1));
        assert_eq!(keys(&mut tracker), []);
    }

    #[test]
    fn a_later_event_waits_for_the_decision_on_an_earlier_one_of_its_path() {
        for happened in [true, false] {
            let mut tracker = Tracker::default();
            tracker.begin_round();
            tracker.intent((OTHER, 1), place(OTHER), path(7), order(2));
            tracker.commit((OTHER, 1));
            // Of another path.
            tracker.intent((OTHER, 2), place(OTHER), path(8), order(4));
            tracker.commit((OTHER, 2));
            // The journal with the earlier event is read later in the round.
            tracker.intent((ONE, 1), place(ONE), path(7), order(1));
            tracker.intent((ONE, 2), place(ONE), path(7), order(3));
            assert_eq!(keys(&mut tracker), [(OTHER, 2)]);
            assert_eq!(keys(&mut tracker), []);
            assert_eq!(tracker.open_of(ONE).len(), 2);
            if happened {
                tracker.commit((ONE, 1));
                assert_eq!(keys(&mut tracker), [(ONE, 1), (OTHER, 1)]);
            } else {
                assert_eq!(tracker.abort((ONE, 1)), Some(place(ONE).segment));
                assert_eq!(keys(&mut tracker), [(OTHER, 1)]);
            }
            assert_eq!(tracker.open_of(ONE).len(), 1);
        }
    }

    #[test]
    fn a_rename_keeps_its_place_among_the_events_of_both_paths() {
        let mut tracker = Tracker::default();
        tracker.begin_round();
        for (n, paths) in [(5, path(8)), (4, path(7)), (3, rename(7, 8)), (2, path(7)), (1, path(8))] {
            tracker.intent((ONE, n), place(ONE), paths, order(n));
        }
        for n in [2, 3, 4, 5] {
            tracker.commit((ONE, n));
        }
        assert_eq!(keys(&mut tracker), [(ONE, 2)], "an earlier event of the new path is undecided");
        tracker.commit((ONE, 1));
        let released = keys(&mut tracker);
        let position = |n| released.iter().position(|key| *key == (ONE, n)).unwrap();
        assert_eq!(released.len(), 4);
        assert!(position(1) < position(3) && position(3) < position(4) && position(3) < position(5));
        assert!(tracker.paths.is_empty() && tracker.events.is_empty());
    }

    #[test]
    fn renames_that_wait_for_each_other_in_a_circle_are_released() {
        let mut tracker = Tracker::default();
        tracker.begin_round();
        // A line of three whose order is no order: 1 before 2 by lease, 2 before 3 and 3 before 1 by clock.
        let orders = [
            EventOrder { epoch: 1, lease: 1, changed: 9 },
            EventOrder { epoch: 1, lease: 2, changed: 1 },
            EventOrder { epoch: 2, lease: 1, changed: 5 },
        ];
        let paths = [rename(1, 2), rename(2, 3), rename(3, 1)];
        for (n, (order, paths)) in (1..).zip(orders.into_iter().zip(paths)) {
            tracker.intent((ONE, n), place(ONE), paths, order);
        }
        for n in [1, 3] {
            tracker.commit((ONE, n));
        }
        assert_eq!(keys(&mut tracker), [], "one of the circle is undecided");
        tracker.commit((ONE, 2));
        let mut released = keys(&mut tracker);
        released.sort();
        assert_eq!(released, [(ONE, 1), (ONE, 2), (ONE, 3)]);
    }
}
