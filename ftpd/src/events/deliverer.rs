//! Delivers the events of the whole cluster: one node at a time does so.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use super::{
    EventMessage, EventsInner,
    delivery_log::{DeadLetter, DeliveryLog},
    fault,
    filter::FilteredEvent,
    journals::Journals,
    liveness::Liveness,
    programs::Programs,
    queue::{QueuePlace, Queued, ReceiverQueue},
    record::{Event, now},
    settings_file::{EventReceiver, EventReceivers},
    target::{DeliveryAttempt, DeliveryContext, DeliveryTarget},
    tracker::{EventKey, IntentPlace, PathKeys, ReleasedEvent},
};
use crate::{metrics, virtual_path::VirtualPath};
use common::{
    admin_api::{DeadLetterView, EventReceiverView, EventsView},
    clock::since_epoch,
    ids::NodeName,
    registry::Registry,
};
use tokio::runtime::Handle;

/// Dead letters that administrators see.
const SHOWN_LETTERS: usize = 500;

/// Time for killed programs to end when this node stops to deliver.
const PROGRAM_END_TIME: Duration = Duration::from_secs(2);

/// An event in the queue of a receiver.
#[derive(Clone, Debug)]
enum PendingEvent {
    Journal {
        key: EventKey,
        place: IntentPlace,
    },
    /// A dead letter that is delivered again. It stays a dead letter until it is delivered.
    Letter {
        id: String,
    },
}

impl PendingEvent {
    fn id(&self) -> String {
        match self {
            Self::Journal { key, place } => format!("{}-{}-{}", place.segment.node, key.0, key.1),
            Self::Letter { id } => id.clone(),
        }
    }
}

/// A receiver with its queue.
struct Receiver {
    name: String,
    retry_for: Duration,
    target: DeliveryTarget,
    queue: ReceiverQueue<PendingEvent>,
    /// Why the last attempt failed. The log has the first failure of a row.
    error: Option<String>,
    /// The dead letters in the queue.
    replayed: HashSet<String>,
}

/// The result of an attempt.
pub(super) struct AttemptResult {
    receiver: String,
    place: QueuePlace,
    attempt: DeliveryAttempt,
    took: Duration,
}

/// The node that delivers the events. It lives on a thread of its own, which may block.
pub(super) struct Deliverer {
    events: Arc<EventsInner>,
    context: DeliveryContext,
    programs: Programs,
    results: mpsc::Sender<EventMessage>,
    log: DeliveryLog,
    journals: Journals,
    settings: Arc<EventReceivers>,
    receivers: Vec<Receiver>,
    /// The number of receivers that an event waits for.
    waiting: HashMap<EventKey, usize>,
}

impl Deliverer {
    /// Takes over from the previous deliverer.
    pub(super) fn take_over(
        events: Arc<EventsInner>,
        runtime: Handle,
        registry: Registry,
        liveness: Liveness,
    ) -> io::Result<Self> {
        let programs = Programs::new()?;
        let context = DeliveryContext { runtime, registry, programs: programs.handle() };
        let results = events.messages.clone();
        let log = DeliveryLog::take_over(events.directory.clone())?;
        let journals = Journals::new(events.directory.clone(), liveness, events.journal.process);
        let settings = events.receivers.load_full();
        let receivers = receivers(&settings);
        Ok(Self {
            events,
            context,
            programs,
            results,
            log,
            journals,
            settings,
            receivers,
            waiting: HashMap::new(),
        })
    }

    /// Kills the programs that run, so that another node may deliver. Blocks for at most
    /// [`PROGRAM_END_TIME`].
    pub(super) fn stop(self) {
        let Self { context, programs, .. } = self;
        drop(context);
        programs.stop(PROGRAM_END_TIME);
    }

    /// Reads the journals and queues what happened. `live` are the nodes that the registry shows.
    pub(super) fn round(&mut self, live: Option<&HashSet<NodeName>>) -> io::Result<()> {
        for event in self.journals.round(&mut self.log, live)? {
            self.queue(event)?;
        }
        if self.journals.has_committed() {
            // Releases the events that the first round has read.
            for event in self.journals.round(&mut self.log, live)? {
                self.queue(event)?;
            }
        }
        self.log.flush()?;
        self.journals.remove_finished(&mut self.log)
    }

    fn queue(&mut self, released: ReleasedEvent) -> io::Result<()> {
        let ReleasedEvent { key, place, paths, time } = released;
        let log = &self.log;
        if self.receivers.iter().all(|receiver| log.has(key, &receiver.name)) {
            self.journals.finish(&place.segment);
            return Ok(());
        }
        let event = self.journals.intent(&place)?.event;
        let wanting =
            self.settings.receivers.iter().zip(&mut self.receivers).filter(|(wanting, receiver)| {
                accepts(wanting, &event)
                    && !log.has(key, &receiver.name)
                    && !log.is_dead(&event.id, &receiver.name)
            });
        let mut number = 0;
        for (_, receiver) in wanting {
            receiver.queue.push(paths, PendingEvent::Journal { key, place: place.clone() }, time);
            number += 1;
        }
        if number == 0 {
            self.journals.finish(&place.segment);
        } else {
            self.waiting.insert(key, number);
        }
        Ok(())
    }

    /// Starts as many attempts as there may be.
    pub(super) fn send(&mut self) {
        if self.must_restart() {
            return;
        }
        let now = Instant::now();
        for receiver in &mut self.receivers {
            while let Some((place, queued)) = receiver.queue.start(now) {
                let event = match load(&self.journals, &self.log, &receiver.name, &queued.item) {
                    Ok(event) => event,
                    Err(error) => {
                        log::error!("cannot read an event from its journal: {error}");
                        receiver.queue.unavailable(place, now);
                        break;
                    }
                };
                fault::pass("before_post");
                let (name, results) = (receiver.name.clone(), self.results.clone());
                let begun = Instant::now();
                receiver.target.begin(&self.context, event, move |attempt| {
                    let took = begun.elapsed();
                    let result = AttemptResult { receiver: name, place, attempt, took };
                    // The deliverer is gone only if the process ends.
                    let _ = results.send(EventMessage::Attempt(result));
                });
            }
        }
    }

    /// Notes the result of an attempt.
    pub(super) fn note(&mut self, result: AttemptResult) -> io::Result<()> {
        let AttemptResult { receiver: name, place, attempt, took } = result;
        let Some(receiver) = self.receivers.iter_mut().find(|receiver| receiver.name == name) else {
            return Ok(());
        };
        let now = Instant::now();
        let retry_for = u64::try_from(receiver.retry_for.as_millis()).unwrap_or(u64::MAX);
        let expiry = unix_millis().saturating_sub(retry_for);
        match attempt {
            DeliveryAttempt::Delivered => {
                fault::pass("after_post");
                metrics::event_attempt(&name, "delivered", took);
                if receiver.error.take().is_some() {
                    log::info!(receiver = name.as_str(); "events are delivered again");
                }
                if let Some(queued) = receiver.queue.delivered(place) {
                    metrics::event_delivered(unix_millis().saturating_sub(queued.time));
                    let id = queued.item.id();
                    receiver.replayed.remove(&id);
                    let noted = self.log.note_done(&id, &name);
                    self.finish(&queued.item);
                    noted?;
                }
            }
            DeliveryAttempt::Refused(error) => {
                metrics::event_attempt(&name, "refused", took);
                note_failure(receiver, "refuses an event", &error);
                let is_late = receiver.queue.time_of(place).is_some_and(|time| time < expiry);
                if let Some(queued) = receiver.queue.refused(place, now, is_late) {
                    self.bury(&name, queued, &error)?;
                }
            }
            DeliveryAttempt::Unavailable(error) => {
                metrics::event_attempt(&name, "unavailable", took);
                note_failure(receiver, "does not accept events", &error);
                receiver.queue.unavailable(place, now);
                for queued in receiver.queue.take_older(expiry) {
                    self.bury(&name, queued, &error)?;
                }
            }
        }
        Ok(())
    }

    /// Makes a dead letter of an event. If it cannot be kept, the event stays in the queue.
    fn bury(&mut self, receiver: &str, queued: Queued<PendingEvent>, error: &str) -> io::Result<()> {
        let buried = load(&self.journals, &self.log, receiver, &queued.item).and_then(|event| {
            log::error!(
                receiver, event = event.id.as_str(), path = event.storage_path.as_str();
                "an event was not accepted for retry_for and is now a dead letter: {error}"
            );
            self.log.note_dead(DeadLetter {
                event,
                to: receiver.to_owned(),
                since: now(),
                attempts: queued.attempts,
                error: error.to_owned(),
            })
        });
        let found = self.receivers.iter_mut().find(|found| found.name == receiver);
        match buried {
            Ok(()) => {
                if let Some(found) = found {
                    found.replayed.remove(&queued.item.id());
                }
                self.finish(&queued.item);
            }
            Err(error) => {
                if let Some(found) = found {
                    found.queue.push(queued.paths, queued.item, queued.time);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// One receiver needs the event no longer.
    fn finish(&mut self, event: &PendingEvent) {
        let PendingEvent::Journal { key, place } = event else { return };
        let Some(waiting) = self.waiting.get_mut(key) else { return };
        *waiting -= 1;
        if *waiting == 0 {
            self.waiting.remove(key);
            self.journals.finish(&place.segment);
        }
    }

    /// Returns true if the receivers have changed. Then no attempt begins until all have ended and
    /// [`Self::restart`] was called.
    fn must_restart(&self) -> bool {
        !Arc::ptr_eq(&self.settings, &self.events.receivers.load())
    }

    /// Uses the changed receivers, as soon as no attempt runs.
    pub(super) fn restart(&mut self) {
        if self.must_restart() && self.receivers.iter().all(|receiver| receiver.queue.in_flight() == 0) {
            self.settings = self.events.receivers.load_full();
            self.receivers = receivers(&self.settings);
            self.waiting.clear();
            self.journals.restart();
        }
    }

    /// When [`Self::send`] should be called again. `None`: after the next result or event.
    pub(super) fn next_time(&self) -> Option<Instant> {
        self.receivers.iter().filter_map(|receiver| receiver.queue.next_time()).min()
    }

    /// Queues dead letters again: those of `receiver` and of the event `id`, where they are given. Returns
    /// their number.
    pub(super) fn replay(&mut self, receiver: Option<&str>, id: Option<&str>) -> usize {
        let mut number = 0;
        for letter in self.log.dead() {
            let is_wanted =
                receiver.is_none_or(|name| name == letter.to) && id.is_none_or(|id| id == letter.event.id);
            let found = self.receivers.iter_mut().find(|found| found.name == letter.to);
            if let Some(found) = found.filter(|_| is_wanted)
                && found.replayed.insert(letter.event.id.clone())
            {
                let item = PendingEvent::Letter { id: letter.event.id.clone() };
                found.queue.push(PathKeys::of(&letter.event), item, unix_millis());
                number += 1;
            }
        }
        number
    }

    /// The state for administrators.
    pub(super) fn view(&self) -> EventsView {
        let receivers = self.receivers.iter().map(|receiver| EventReceiverView {
            name: receiver.name.clone(),
            pending: receiver.queue.len() as u64,
            oldest_seconds: receiver.queue.oldest().map(|time| unix_millis().saturating_sub(time) / 1000),
            dead: self.log.dead().filter(|letter| letter.to == receiver.name).count() as u64,
            error: receiver.error.clone(),
        });
        let mut letters: Vec<&DeadLetter> = self.log.dead().collect();
        letters.sort_by(|a, b| b.since.cmp(&a.since));
        EventsView {
            node: Some(self.events.node.clone()),
            published: Some(now()),
            receivers: receivers.collect(),
            dead: letters.len() as u64,
            dead_letters: letters.into_iter().take(SHOWN_LETTERS).map(letter_view).collect(),
        }
    }

    pub(super) fn export(&self) {
        let pending: usize = self.receivers.iter().map(|receiver| receiver.queue.len()).sum();
        let oldest = self.receivers.iter().filter_map(|receiver| receiver.queue.oldest()).min();
        let age = oldest.map_or(0, |time| unix_millis().saturating_sub(time));
        metrics::events(pending, Duration::from_millis(age), self.log.dead().len());
    }
}

/// Reads an event from its journal or dead letter.
fn load(journals: &Journals, log: &DeliveryLog, receiver: &str, pending: &PendingEvent) -> io::Result<Event> {
    match pending {
        PendingEvent::Journal { place, .. } => Ok(journals.intent(place)?.event),
        PendingEvent::Letter { id } => {
            let letter = log.dead().find(|letter| letter.to == receiver && letter.event.id == *id);
            letter
                .map(|letter| letter.event.clone())
                .ok_or_else(|| io::Error::other("the dead letter is gone"))
        }
    }
}

fn letter_view(letter: &DeadLetter) -> DeadLetterView {
    let event = &letter.event;
    DeadLetterView {
        id: event.id.clone(),
        receiver: letter.to.clone(),
        event: event.event.name().to_owned(),
        time: event.time.clone(),
        user: event.user.clone(),
        path: event.storage_path.clone(),
        size: event.size,
        since: letter.since.clone(),
        attempts: letter.attempts,
        error: letter.error.clone(),
    }
}

fn receivers(settings: &EventReceivers) -> Vec<Receiver> {
    let receiver = |settings: &EventReceiver| Receiver {
        name: settings.name.clone(),
        retry_for: settings.retry_for,
        target: settings.target.clone(),
        queue: ReceiverQueue::new(settings.concurrency, settings.target.longest_delay()),
        error: None,
        replayed: HashSet::new(),
    };
    settings.receivers.iter().map(receiver).collect()
}

fn accepts(receiver: &EventReceiver, event: &Event) -> bool {
    let path_of = |bytes: &[u8]| VirtualPath::root().join(bytes).unwrap_or_else(|_| VirtualPath::root());
    let (path, old) = (path_of(&event.path_bytes()), event.old_path_bytes().map(|old| path_of(&old)));
    receiver.filter.accepts(&FilteredEvent {
        kind: event.event,
        user: &event.user,
        groups: &event.groups,
        path: &path,
        old_path: old.as_ref(),
    })
}

/// Logs the first failure of a row.
fn note_failure(receiver: &mut Receiver, what: &str, error: &str) {
    if receiver.error.replace(error.to_owned()).is_none() {
        log::warn!(
            receiver = receiver.name.as_str(), waiting = receiver.queue.len();
            "a {} {what}; trying again: {error}", receiver.target.kind()
        );
    }
}

fn unix_millis() -> u64 {
    u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX)
}
