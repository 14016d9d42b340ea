//! The thread of the events on a node: it flushes the journal, and delivers events if no other node does.

use std::{
    collections::HashSet,
    fs::File,
    io,
    path::PathBuf,
    sync::{Arc, atomic::Ordering, mpsc},
    time::{Duration, Instant},
};

use common::{
    ids::NodeName,
    process::logging::chain,
    registry::{ClusterTask, Registry},
};
use tokio::runtime::Handle;

use super::{
    EventMessage, EventsInner,
    deliverer::Deliverer,
    liveness::{Liveness, LivenessTest},
};
use crate::{
    jail::{LockMode, lock::WriterLock},
    metrics,
};

/// Longest time from a commit until it is flushed, so that the deliverer on another node sees it.
const FLUSH_INTERVAL: Duration = Duration::from_millis(200);

/// Interval at which the deliverer reads the journals of other nodes.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Shortest time between two rounds.
const ROUND_INTERVAL: Duration = Duration::from_millis(20);

/// Interval at which the other nodes try to become the deliverer.
const TAKE_OVER_INTERVAL: Duration = Duration::from_secs(2);

/// A storage error is logged at most this often.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Interval at which the deliverer publishes its state for administrators.
const PUBLISH_INTERVAL: Duration = Duration::from_secs(3);

/// The name of the task in the registry, where file locks do not hold on all nodes.
const TASK: &str = "events";

/// How one deliverer at a time is chosen.
enum Election {
    /// By a lock on a file.
    Lock(LockMode),
    /// By a task in the registry.
    Task,
    /// A single node.
    Alone,
}

/// What makes this node the deliverer, until it is dropped.
enum Mandate {
    /// The lock ends when the file is closed.
    Lock {
        _file: File,
    },
    Task {
        task: ClusterTask,
        kept: Instant,
    },
    Alone,
}

/// The thread of the events.
pub(super) struct Worker {
    events: Arc<EventsInner>,
    registry: Registry,
    runtime: Handle,
    locks: LockMode,
    election: Election,
    /// `node_lease`; `None` on a single node.
    lease: Option<Duration>,
    delivering: Option<(Deliverer, Mandate)>,
    last_error: Option<Instant>,
    /// When the state was published last.
    published: Option<Instant>,
}

impl Worker {
    /// `lease` is `node_lease`; `None` on a single node. Must be called within the runtime.
    pub(super) fn new(
        events: Arc<EventsInner>,
        registry: Registry,
        locks: LockMode,
        root: PathBuf,
        lease: Option<Duration>,
    ) -> Self {
        let holds_on_all_nodes = lease.is_none() || locks.check_cross_nodes(&root).is_ok();
        let election = match (locks, lease) {
            (LockMode::Off, None) => Election::Alone,
            _ if holds_on_all_nodes => Election::Lock(locks),
            _ => Election::Task,
        };
        let runtime = Handle::current();
        Self {
            events,
            registry,
            runtime,
            locks,
            election,
            lease,
            delivering: None,
            last_error: None,
            published: None,
        }
    }

    /// Runs until the node stops.
    pub(super) fn run(mut self, inbox: &mpsc::Receiver<EventMessage>) {
        let mut flushed = Instant::now();
        let mut tried: Option<Instant> = None;
        let mut last_round: Option<Instant> = None;
        loop {
            if self.delivering.is_none() && tried.is_none_or(|at| at.elapsed() >= TAKE_OVER_INTERVAL) {
                tried = Some(Instant::now());
                let taken = self.try_take_over();
                self.note_error(taken);
                last_round = None;
            }
            if self.delivering.is_some() {
                let is_woken = self.events.is_woken.swap(false, Ordering::AcqRel);
                let age = last_round.map(|at| at.elapsed());
                if age.is_none_or(|age| age >= POLL_INTERVAL || is_woken && age >= ROUND_INTERVAL) {
                    last_round = Some(Instant::now());
                    let done = self.deliver();
                    self.note_error(done);
                } else if is_woken {
                    // The next round is due soon.
                    self.events.is_woken.store(true, Ordering::Release);
                }
            } else {
                self.events.is_woken.store(false, Ordering::Release);
            }
            if flushed.elapsed() >= FLUSH_INTERVAL && self.events.journal.must_flush() {
                self.events.journal.flush();
                flushed = Instant::now();
            }
            match inbox.recv_timeout(self.wait(last_round)) {
                Ok(message) => {
                    for message in std::iter::once(message).chain(inbox.try_iter()) {
                        if !self.handle(message) {
                            return;
                        }
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Returns false if the thread is to end.
    fn handle(&mut self, message: EventMessage) -> bool {
        match message {
            EventMessage::Wake => {}
            EventMessage::Attempt(result) => {
                if let Some((deliverer, _)) = &mut self.delivering {
                    let noted = deliverer.note(result);
                    deliverer.restart();
                    deliverer.send();
                    self.note_error(noted);
                }
            }
            EventMessage::Replay { receiver, id } => {
                if let Some((deliverer, _)) = &mut self.delivering {
                    let number = deliverer.replay(receiver.as_deref(), id.as_deref());
                    log::info!(number; "delivering dead letters of events again");
                    deliverer.send();
                    self.published = None;
                }
            }
            EventMessage::Stop(stopped) => {
                self.events.journal.flush();
                self.stop_delivering();
                // The node does not wait any more.
                let _ = stopped.send(());
                return false;
            }
        }
        true
    }

    fn wait(&self, last_round: Option<Instant>) -> Duration {
        let mut wait = if self.delivering.is_some() { POLL_INTERVAL } else { TAKE_OVER_INTERVAL };
        if self.events.journal.must_flush() {
            wait = wait.min(FLUSH_INTERVAL);
        }
        if let Some((deliverer, _)) = &self.delivering {
            if self.events.is_woken.load(Ordering::Acquire) {
                let age = last_round.map_or(Duration::ZERO, |at| at.elapsed());
                wait = wait.min(ROUND_INTERVAL.saturating_sub(age));
            }
            if let Some(time) = deliverer.next_time() {
                wait = wait.min(time.saturating_duration_since(Instant::now()));
            }
        }
        wait
    }

    fn try_take_over(&mut self) -> io::Result<()> {
        let Some(mandate) = self.mandate()? else { return Ok(()) };
        let test = match self.election {
            Election::Lock(_) => LivenessTest::Locks(self.locks),
            // A node that Redis has not shown for so long may not write any more.
            Election::Task => LivenessTest::Registry { missing_for: self.lease.unwrap_or_default() * 2 },
            Election::Alone => LivenessTest::Alone,
        };
        let liveness = Liveness::new(test, self.events.journal.process);
        let (events, registry) = (Arc::clone(&self.events), self.registry.clone());
        let deliverer = Deliverer::take_over(events, self.runtime.clone(), registry, liveness)?;
        log::info!("this node delivers the events of the cluster");
        self.delivering = Some((deliverer, mandate));
        Ok(())
    }

    fn mandate(&mut self) -> io::Result<Option<Mandate>> {
        match &self.election {
            Election::Alone => Ok(Some(Mandate::Alone)),
            Election::Lock(locks) => {
                let file = self.events.directory.open_deliverer()?;
                match locks.take(&file).map_err(io::Error::other)? {
                    WriterLock::Held { .. } => Ok(Some(Mandate::Lock { _file: file })),
                    WriterLock::HeldByAnother => Ok(None),
                    WriterLock::NotSupported if self.lease.is_none() => {
                        self.election = Election::Alone;
                        Ok(Some(Mandate::Alone))
                    }
                    WriterLock::NotSupported => {
                        Err(io::Error::other("the storage does not support file locks (storage_locks)"))
                    }
                }
            }
            // While Redis is away, each node would have the task.
            Election::Task if !self.registry.is_connected() => Ok(None),
            Election::Task => {
                let task = self.runtime.block_on(self.registry.begin_cluster_task(TASK, Duration::ZERO));
                Ok(task.map(|task| Mandate::Task { task, kept: Instant::now() }))
            }
        }
    }

    /// Ends the programs, then the mandate.
    fn stop_delivering(&mut self) {
        if let Some((deliverer, mandate)) = self.delivering.take() {
            deliverer.stop();
            drop(mandate);
        }
    }

    fn deliver(&mut self) -> io::Result<()> {
        let live = matches!(self.election, Election::Task).then(|| self.live()).flatten();
        let Some((deliverer, mandate)) = &mut self.delivering else { return Ok(()) };
        if let Mandate::Task { task, kept } = mandate
            && kept.elapsed() >= task.interval()
        {
            *kept = Instant::now();
            if !self.registry.is_connected() || !self.runtime.block_on(task.keep()) {
                log::info!("another node delivers the events of the cluster");
                self.stop_delivering();
                metrics::events_not_here();
                return Ok(());
            }
        }
        deliverer.restart();
        let done = deliverer.round(live.as_ref());
        deliverer.send();
        deliverer.export();
        if self.published.is_none_or(|at| at.elapsed() >= PUBLISH_INTERVAL) {
            self.published = Some(Instant::now());
            let (registry, view) = (self.registry.clone(), deliverer.view());
            // An error means that Redis is away, which the link has logged.
            self.runtime.spawn(async move { registry.publish_events(&view).await });
        }
        done
    }

    /// The nodes that the registry shows; `None` while it is away.
    fn live(&self) -> Option<HashSet<NodeName>> {
        if !self.registry.is_connected() {
            return None;
        }
        let content = self.registry.port_map().content();
        let content = content.borrow();
        Some(content.nodes.iter().map(|node| node.name.clone()).collect())
    }

    fn note_error(&mut self, result: io::Result<()>) {
        if let Err(error) = result
            && self.last_error.is_none_or(|at| at.elapsed() >= LOG_INTERVAL)
        {
            self.last_error = Some(Instant::now());
            log::error!(
                setting = "events_file";
                "events cannot be delivered at the moment, and wait on the storage: {}", chain(&error)
            );
        }
    }
}
