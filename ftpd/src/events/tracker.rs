//! Which events may be delivered: they have happened, and no earlier event of their path is undecided.

use std::collections::HashMap;

use super::{
    directory::{ProcessId, SegmentName},
    record::EventOrder,
};

/// An event: its process, and its number there.
pub(super) type EventKey = (ProcessId, u64);

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
    path: u64,
    order: EventOrder,
    /// The round in which the commit was read.
    committed: Option<u64>,
}

/// A released event.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ReleasedEvent {
    pub key: EventKey,
    pub place: IntentPlace,
    pub path: u64,
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
    pub(super) fn intent(&mut self, key: EventKey, place: IntentPlace, path: u64, order: EventOrder) {
        let events = &self.events;
        let line = self.paths.entry(path).or_default();
        let later = line
            .iter()
            .position(|other| events.get(other).is_some_and(|other| order.is_before(&other.order)));
        line.insert(later.unwrap_or(line.len()), key);
        self.events.insert(key, TrackedEvent { place, path, order, committed: None });
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
        if let Some(line) = self.paths.get_mut(&event.path) {
            line.retain(|other| *other != key);
            if line.is_empty() {
                self.paths.remove(&event.path);
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
        let (events, round) = (&mut self.events, self.round);
        self.paths.retain(|path, line| {
            let ready = line
                .iter()
                .take_while(|key| {
                    events.get(key).and_then(|event| event.committed).is_some_and(|read| read < round)
                })
                .count();
            for key in line.drain(..ready) {
                if let Some(event) = events.remove(&key) {
                    let time = event.order.changed / 1_000_000;
                    released.push(ReleasedEvent { key, place: event.place, path: *path, time });
                }
            }
            !line.is_empty()
        });
        self.committed -= released.len();
        released
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
        tracker.intent((ONE, 1), place(ONE), 7, order(1));
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
            tracker.intent((OTHER, 1), place(OTHER), 7, order(2));
            tracker.commit((OTHER, 1));
            // Of another path.
            tracker.intent((OTHER, 2), place(OTHER), 8, order(4));
            tracker.commit((OTHER, 2));
            // The journal with the earlier event is read later in the round.
            tracker.intent((ONE, 1), place(ONE), 7, order(1));
            tracker.intent((ONE, 2), place(ONE), 7, order(3));
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
}
