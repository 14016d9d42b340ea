//! Events: other programs are told that an upload is complete, and of other commands if they want.
//!
//! An upload leaves an intent in the journal of its node, on the shared storage, before its file gets its
//! name, and a commit after it (`journal`, `recorder`); renames and the rest do likewise (`session_events`).
//! One node at a time reads the journals of all nodes (`journals`, `tracker`), decides on the changes of
//! nodes that died (`liveness`, `recovery`), and sends the events to their receivers (`deliverer`, `queue`,
//! `target`). What was delivered is on the storage, too (`delivery_log`). So an event exists if and only if
//! its command was successful, and no event is lost with Redis.
//!
//! Without `events_file` there is neither a journal nor a thread.

mod actor;
mod begun;
mod command;
mod deliverer;
mod delivery_log;
mod directory;
mod fault;
mod filter;
mod journal;
mod journals;
mod liveness;
mod programs;
mod queue;
mod record;
mod recorder;
mod recovery;
mod session_events;
mod settings_file;
mod stream;
mod target;
mod tracker;
mod webhook;
mod worker;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use common::{ids::NodeName, process::logging::chain, registry::Registry, sync::lock};

pub use self::settings_file::{EventReceivers, EventsFileError};
pub(crate) use self::{actor::EventActor, record::EventKind, session_events::SessionEvents};
use self::{
    deliverer::AttemptResult, directory::EventsDirectory, journal::Journal, settings_file::ReceiverContext,
    worker::Worker,
};
use crate::jail::LockMode;

/// Time for the thread to end when the node stops.
const STOP_TIME: Duration = Duration::from_secs(3);

/// The events of the node, or their absence. Cheap to clone.
#[derive(Clone, Default)]
pub struct Events(Option<Arc<EventsInner>>);

struct EventsInner {
    node: NodeName,
    file: PathBuf,
    context: ReceiverContext,
    receivers: ArcSwap<EventReceivers>,
    directory: EventsDirectory,
    journal: Journal,
    messages: mpsc::Sender<EventMessage>,
    /// The thread has a message that the journal has new lines.
    is_woken: AtomicBool,
    /// The receiver of `messages`, until the thread starts.
    inbox: Mutex<Option<mpsc::Receiver<EventMessage>>>,
}

/// A message to the thread of the events.
enum EventMessage {
    /// The journal has new lines, or the receivers have changed.
    Wake,
    Attempt(AttemptResult),
    /// Deliver dead letters again.
    Replay {
        receiver: Option<String>,
        id: Option<String>,
    },
    Stop(mpsc::Sender<()>),
}

/// What [`Events::open`] needs.
pub struct EventSettings<'s> {
    /// `events_file`.
    pub file: PathBuf,
    pub node: NodeName,
    /// The storage's root.
    pub root: &'s Path,
    pub locks: LockMode,
    /// The node has a Redis.
    pub has_redis: bool,
}

/// The events cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    #[error(transparent)]
    File(#[from] EventsFileError),
    #[error(
        "cannot create the journal of events in the storage root, which must be writable for events_file"
    )]
    Journal(#[source] io::Error),
}

impl Events {
    /// Reads `events_file` and creates the journal of this process. The node must have its name in the
    /// registry. Blocks.
    ///
    /// # Errors
    /// The file is invalid, or the journal cannot be created.
    pub fn open(settings: EventSettings<'_>) -> Result<Self, EventsError> {
        let EventSettings { file, node, root, locks, has_redis } = settings;
        let real_root = fs::canonicalize(root).map_err(EventsError::Journal)?;
        let context = ReceiverContext { has_redis, root: real_root };
        let receivers = EventReceivers::read(&file, &context)?;
        let directory = EventsDirectory::open(root).map_err(EventsError::Journal)?;
        let journal =
            Journal::create(directory.clone(), node.clone(), locks).map_err(EventsError::Journal)?;
        let (messages, inbox) = mpsc::channel();
        Ok(Self(Some(Arc::new(EventsInner {
            node,
            file,
            context,
            receivers: ArcSwap::from_pointee(receivers),
            directory,
            journal,
            messages,
            is_woken: AtomicBool::new(false),
            inbox: Mutex::new(Some(inbox)),
        }))))
    }

    /// Starts the thread that flushes the journal, and delivers events if no other node does.
    ///
    /// # Panics
    /// Outside a runtime.
    pub fn start(&self, registry: &Registry, locks: LockMode, root: &Path, lease: Option<Duration>) {
        let Some(events) = &self.0 else { return };
        let Some(inbox) = lock(&events.inbox).take() else { return };
        let worker = Worker::new(Arc::clone(events), registry.clone(), locks, root.to_owned(), lease);
        let started = std::thread::Builder::new().name("events".into()).spawn(move || worker.run(&inbox));
        if let Err(error) = started {
            log::error!("cannot start the thread that delivers events: {error}");
        }
    }

    /// The events of a session. `actor` describes it.
    pub(crate) fn of_session(&self, actor: impl FnOnce() -> EventActor) -> SessionEvents {
        SessionEvents(self.0.as_ref().map(|events| (Arc::clone(events), actor())))
    }

    /// Reads `events_file` again. After an error the previous receivers stay. Blocks.
    pub fn reload(&self) {
        let Some(events) = &self.0 else { return };
        match EventReceivers::read(&events.file, &events.context) {
            // Changed receivers wait for attempts that run.
            Ok(receivers) if receivers.digest == events.receivers.load().digest => {
                let number = receivers.receivers.len();
                log::info!(receivers = number; "read events_file again: it has not changed");
            }
            Ok(receivers) => {
                let number = receivers.receivers.len();
                events.receivers.store(Arc::new(receivers));
                events.wake();
                log::info!(receivers = number; "read events_file again");
            }
            Err(error) => log::error!(
                setting = "events_file";
                "events_file is not used; the previous receivers stay: {}", chain(&error)
            ),
        }
    }

    /// Delivers dead letters again, if this node delivers: those of `receiver` and of the event `id`, where
    /// they are given.
    pub fn replay(&self, receiver: Option<String>, id: Option<String>) {
        if let Some(events) = &self.0 {
            // The thread has ended only if the node stops.
            let _ = events.messages.send(EventMessage::Replay { receiver, id });
        }
    }

    /// Ends the thread, so that another node delivers. Blocks for at most `STOP_TIME`.
    pub fn stop(&self) {
        let Some(events) = &self.0 else { return };
        let (sender, stopped) = mpsc::channel();
        if events.messages.send(EventMessage::Stop(sender)).is_ok() {
            // An error means that the time is over or that the thread has ended.
            let _ = stopped.recv_timeout(STOP_TIME);
        }
    }
}

impl EventsInner {
    /// Tells the thread that there is something to do.
    fn wake(&self) {
        if !self.is_woken.swap(true, Ordering::AcqRel) {
            // The thread has ended only if the node stops.
            let _ = self.messages.send(EventMessage::Wake);
        }
    }
}
