//! The delivery log: which receivers have which events, decisions on events of dead nodes, and dead letters.
//!
//! Each deliverer writes a file of its own, which begins with the state that it found. A deliverer that was
//! replaced without noticing therefore cannot damage the file of its successor.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::File,
    io::{self, Write},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    directory::{EventsDirectory, ProcessId},
    record::{Event, line_of, parse_line},
    tracker::EventKey,
};

/// The log is written anew when it is this much longer than its state was.
const GROWTH: u64 = 1 << 20;

/// Interval at which notes of delivered events are brought to stable storage.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// Dead letters that are kept. Beyond it the oldest is removed, with an error in the log.
const MAX_DEAD: usize = 10_000;

/// An event that a receiver did not accept in time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct DeadLetter {
    pub event: Event,
    /// The receiver.
    pub to: String,
    /// When it was given up: RFC 3339.
    pub since: String,
    pub attempts: u32,
    /// Why the last attempt failed.
    pub error: String,
}

/// A line of the log.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum DeliveryEntry {
    /// The receiver has the event.
    Done {
        id: String,
        to: String,
    },
    Dead(Box<DeadLetter>),
    /// A dead letter was removed.
    Forgotten {
        id: String,
        to: String,
    },
    /// Whether an event of a dead process happened.
    Decided {
        id: String,
        happened: bool,
    },
}

/// The key of the event with this id.
pub(super) fn key_of(id: &str) -> Option<EventKey> {
    let mut parts = id.rsplitn(3, '-');
    let number = parts.next()?.parse().ok()?;
    let process = u64::from_str_radix(parts.next()?, 16).ok()?;
    Some((ProcessId(process), number))
}

/// The state that the lines of the log add up to.
#[derive(Debug, Default)]
struct DeliveryState {
    /// The receivers that have an event, by id; only of events whose journal exists.
    done: HashMap<EventKey, HashSet<String>>,
    decided: HashMap<EventKey, (String, bool)>,
    /// By receiver and id.
    dead: BTreeMap<(String, String), DeadLetter>,
}

impl DeliveryState {
    fn apply(&mut self, entry: DeliveryEntry) {
        match entry {
            DeliveryEntry::Done { id, to } => {
                if let Some(key) = key_of(&id) {
                    self.done.entry(key).or_default().insert(to.clone());
                }
                self.dead.remove(&(to, id));
            }
            DeliveryEntry::Dead(letter) => {
                self.dead.insert((letter.to.clone(), letter.event.id.clone()), *letter);
            }
            DeliveryEntry::Forgotten { id, to } => {
                self.dead.remove(&(to, id));
            }
            DeliveryEntry::Decided { id, happened } => {
                if let Some(key) = key_of(&id) {
                    self.decided.insert(key, (id, happened));
                }
            }
        }
    }
}

/// The delivery log of this deliverer. Its methods block.
pub(super) struct DeliveryLog {
    directory: EventsDirectory,
    file: File,
    state: DeliveryState,
    length: u64,
    /// Length at which the log is written anew.
    limit: u64,
    is_synced: bool,
    synced: Instant,
}

impl DeliveryLog {
    /// Reads the logs of earlier deliverers, and begins one of its own. Events of processes without a journal
    /// are forgotten.
    pub(super) fn take_over(directory: EventsDirectory) -> io::Result<Self> {
        let files = directory.list()?;
        let mut state = DeliveryState::default();
        for process in &files.deliveries {
            let content = match directory.read_delivery(*process) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                content => content?,
            };
            for line in content.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                match parse_line(line) {
                    Some(entry) => state.apply(entry),
                    None => log::warn!("skipped a damaged line in the delivery log of events"),
                }
            }
        }
        let journals: HashSet<ProcessId> = files.segments.iter().map(|name| name.process).collect();
        state.done.retain(|key, _| journals.contains(&key.0));
        state.decided.retain(|key, _| journals.contains(&key.0));
        let (file, length) = write_state(&directory, &state)?;
        for process in files.deliveries {
            directory.remove_delivery(process)?;
        }
        Ok(Self {
            directory,
            file,
            state,
            length,
            limit: length + GROWTH,
            is_synced: true,
            synced: Instant::now(),
        })
    }

    pub(super) fn has(&self, key: EventKey, receiver: &str) -> bool {
        self.state.done.get(&key).is_some_and(|receivers| receivers.contains(receiver))
    }

    pub(super) fn is_dead(&self, id: &str, receiver: &str) -> bool {
        self.state.dead.contains_key(&(receiver.to_owned(), id.to_owned()))
    }

    /// The decision on an event of a dead process.
    pub(super) fn decision(&self, key: EventKey) -> Option<bool> {
        self.state.decided.get(&key).map(|(_, happened)| *happened)
    }

    pub(super) fn dead(&self) -> impl ExactSizeIterator<Item = &DeadLetter> {
        self.state.dead.values()
    }

    /// Notes that the receiver has the event. After a crash of the machine, which may lose the line, the
    /// receiver gets the event again, with the same id.
    pub(super) fn note_done(&mut self, id: &str, receiver: &str) -> io::Result<()> {
        self.append(DeliveryEntry::Done { id: id.to_owned(), to: receiver.to_owned() })
    }

    /// Keeps a dead letter, on stable storage.
    pub(super) fn note_dead(&mut self, letter: DeadLetter) -> io::Result<()> {
        if self.state.dead.len() >= MAX_DEAD
            && let Some((to, id)) = self
                .state
                .dead
                .values()
                .min_by(|a, b| a.since.cmp(&b.since))
                .map(|old| (old.to.clone(), old.event.id.clone()))
        {
            log::error!(
                event = id.as_str(), receiver = to.as_str();
                "removed the oldest dead letter, because there are {MAX_DEAD}"
            );
            self.append(DeliveryEntry::Forgotten { id, to })?;
        }
        self.append(DeliveryEntry::Dead(Box::new(letter)))?;
        self.sync()
    }

    /// Keeps the decision whether an event of a dead process happened, on stable storage.
    pub(super) fn note_decision(&mut self, id: &str, happened: bool) -> io::Result<()> {
        self.append(DeliveryEntry::Decided { id: id.to_owned(), happened })?;
        self.sync()
    }

    /// Forgets the events of a journal that was removed.
    pub(super) fn forget(&mut self, process: ProcessId, numbers: &[u64]) {
        for number in numbers {
            self.state.done.remove(&(process, *number));
            self.state.decided.remove(&(process, *number));
        }
    }

    /// Brings the log to stable storage, and writes it anew when it has grown.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.length < self.limit {
            let is_due = !self.is_synced && self.synced.elapsed() >= SYNC_INTERVAL;
            return if is_due { self.sync() } else { Ok(()) };
        }
        let old = self.directory.list()?.deliveries;
        let (file, length) = write_state(&self.directory, &self.state)?;
        (self.file, self.length, self.limit, self.is_synced) = (file, length, length + GROWTH, true);
        for process in old {
            self.directory.remove_delivery(process)?;
        }
        Ok(())
    }

    fn append(&mut self, entry: DeliveryEntry) -> io::Result<()> {
        let line = line_of(&entry);
        self.file.write_all(&line)?;
        self.length += line.len() as u64;
        self.is_synced = false;
        self.state.apply(entry);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        (self.is_synced, self.synced) = (true, Instant::now());
        Ok(())
    }
}

/// Writes a new log with this state. Returns it with its length.
fn write_state(directory: &EventsDirectory, state: &DeliveryState) -> io::Result<(File, u64)> {
    let mut content = Vec::new();
    for (key, receivers) in &state.done {
        for to in receivers {
            // Only the last two parts of an id are used to find the event.
            let id = format!("-{}-{}", key.0, key.1);
            content.extend(line_of(&DeliveryEntry::Done { id, to: to.clone() }));
        }
    }
    for (id, happened) in state.decided.values() {
        content.extend(line_of(&DeliveryEntry::Decided { id: id.clone(), happened: *happened }));
    }
    for letter in state.dead.values() {
        content.extend(line_of(&DeliveryEntry::Dead(Box::new(letter.clone()))));
    }
    let mut file = directory.create_delivery(ProcessId::new())?;
    file.write_all(&content)?;
    file.sync_data()?;
    directory.sync()?;
    Ok((file, content.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{
        directory::SegmentName,
        record::{EventOrder, tests::intent},
    };

    fn letter(n: u64) -> DeadLetter {
        let event = intent(n, "a", EventOrder { epoch: 0, lease: 0, changed: 0 }).event;
        let event = Event { id: format!("node-{}-{n}", ProcessId(7)), ..event };
        DeadLetter { event, to: "hook".into(), since: format!("{n:04}"), attempts: 3, error: "503".into() }
    }

    #[test]
    fn a_successor_finds_the_state_and_the_log_is_written_anew_when_it_has_grown() {
        let root = tempfile::tempdir().unwrap();
        let directory = EventsDirectory::open(root.path()).unwrap();
        let process = ProcessId(7);
        let name = SegmentName { process, segment: 0, node: "node".parse().unwrap() };
        directory.create_segment(&name).unwrap();
        let mut log = DeliveryLog::take_over(directory.clone()).unwrap();
        let id = |n: u64| format!("node-{process}-{n}");
        log.note_done(&id(1), "hook").unwrap();
        log.note_decision(&id(2), false).unwrap();
        let kept = letter(3);
        log.note_dead(kept.clone()).unwrap();
        log.note_dead(letter(4)).unwrap();
        log.note_done(&id(4), "hook").unwrap();
        for rewritten in [false, true] {
            if rewritten {
                log.limit = 0;
                log.flush().unwrap();
            } else {
                log = DeliveryLog::take_over(directory.clone()).unwrap();
            }
            assert_eq!(directory.list().unwrap().deliveries.len(), 1);
            assert!(log.has((process, 1), "hook") && !log.has((process, 1), "other"));
            assert!(log.has((process, 4), "hook") && !log.has((process, 3), "hook"));
            assert_eq!((log.decision((process, 1)), log.decision((process, 2))), (None, Some(false)));
            assert!(log.dead().eq([&kept]));
            assert!(log.is_dead(&id(3), "hook") && !log.is_dead(&id(4), "hook"));
        }
        log.forget(process, &[1]);
        assert!(!log.has((process, 1), "hook"));
        // Without the journal, only the dead letters are kept.
        directory.remove_segment(&name).unwrap();
        let log = DeliveryLog::take_over(directory).unwrap();
        assert!(!log.has((process, 4), "hook"));
        assert_eq!(log.dead().len(), 1);
    }
}
