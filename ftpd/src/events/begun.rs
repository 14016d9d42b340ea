//! An event that is in the journal without its end.

use std::sync::Arc;

use common::clock::since_epoch;

use super::{
    EventsInner, fault,
    record::{ChangeEvidence, Event, EventOrder, Intent, JournalEntry},
};
use crate::jail::FileError;

/// An event whose intent is in the journal. Dropping it notes that nothing happened.
pub(super) struct BegunEvent {
    events: Arc<EventsInner>,
    n: u64,
    has_ended: bool,
}

impl BegunEvent {
    /// Brings the intent to stable storage. Blocks.
    pub(super) fn begin(
        events: &Arc<EventsInner>,
        event: Event,
        order: EventOrder,
        evidence: ChangeEvidence,
    ) -> Result<Self, FileError> {
        fault::pass("before_intent");
        let n = events.journal.next_number();
        let event = Event { id: events.journal.event_id(n), ..event };
        // Before the line is written: even if that fails, the line may be in the journal.
        let begun = Self { events: Arc::clone(events), n, has_ended: false };
        events.journal.begin(Intent { n, event, order, evidence })?;
        fault::pass("after_intent");
        Ok(begun)
    }

    /// Notes that it happened, and that the client is told so. Blocks.
    pub(super) fn commit(mut self) {
        fault::pass("before_commit");
        self.end(JournalEntry::Commit(self.n));
        fault::pass("after_commit");
    }

    fn end(&mut self, entry: JournalEntry) {
        self.has_ended = true;
        self.events.journal.settle(entry);
        self.events.wake();
    }
}

impl Drop for BegunEvent {
    fn drop(&mut self) {
        if !self.has_ended {
            self.end(JournalEntry::Abort(self.n));
        }
    }
}

/// Notes an event that the storage does not show, before the client is told that it happened. Blocks.
///
/// # Errors
/// The event may be lost, so the client must not be told.
pub(super) fn note(events: &Arc<EventsInner>, event: Event) -> Result<(), FileError> {
    let order = EventOrder { epoch: 0, lease: 0, changed: now_in_ns() };
    BegunEvent::begin(events, event, order, ChangeEvidence::Nothing).map(BegunEvent::commit)
}

/// The time by the node's clock, in ns since 1970.
pub(super) fn now_in_ns() -> u64 {
    u64::try_from(since_epoch().as_nanos()).unwrap_or(u64::MAX)
}
