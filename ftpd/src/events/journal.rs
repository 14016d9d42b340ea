//! The journal that this process writes: append-only files (segments) on the storage.
//!
//! The process holds a lock on its newest segment, which shows the other nodes that it lives.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::MetadataExt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use common::{ids::NodeName, process::logging::chain, sync::lock};
use nix::fcntl::{FallocateFlags, fallocate};

use super::{
    directory::{EventsDirectory, ProcessId, SegmentName},
    fault,
    record::{Intent, JournalEntry, line_of},
};
use crate::{
    jail::{FileError, LockMode, lock::WriterLock},
    metrics,
    work::StorageCall,
};

/// Size in bytes from which on a segment gets no more lines. A segment is removed as a whole.
const SEGMENT_SIZE: u64 = 4 << 20;

/// Attempts to create a segment while the deliverer of another node removes it as one of a dead process.
const ATTEMPTS: usize = 8;

/// The journal of this process.
pub(super) struct Journal {
    directory: EventsDirectory,
    pub(super) process: ProcessId,
    node: NodeName,
    locks: LockMode,
    next_number: AtomicU64,
    state: Mutex<JournalState>,
}

struct JournalState {
    segment: Arc<Segment>,
    /// Commits and aborts that could not be written yet.
    unsettled: Vec<JournalEntry>,
    /// Commits and aborts that the segment has, with its length at their end, and that are perhaps not on
    /// stable storage.
    unsynced: Vec<(u64, JournalEntry)>,
}

/// A file of the journal.
struct Segment {
    file: File,
    number: u32,
    /// Bytes written.
    length: AtomicU64,
    /// Bytes on stable storage.
    synced: Mutex<u64>,
    /// After a failed write or fsync, nothing more is written to the segment.
    is_broken: AtomicBool,
}

/// Lines that were written, for [`Journal::sync`].
struct Written {
    segment: Arc<Segment>,
    end: u64,
}

impl Segment {
    fn append(&self, line: &[u8]) -> io::Result<u64> {
        let length = self.length.load(Ordering::Relaxed);
        match (&self.file).write_all(line) {
            Ok(()) => {
                let end = length + line.len() as u64;
                self.length.store(end, Ordering::Release);
                Ok(end)
            }
            Err(error) => {
                self.is_broken.store(true, Ordering::Relaxed);
                // A reader recognises the part of a line by its checksum, too.
                let _ = self.file.set_len(length);
                Err(error)
            }
        }
    }

    /// Brings the segment up to `end` to stable storage. Of several callers one does so for all.
    fn sync(&self, end: u64) -> io::Result<()> {
        let mut synced = lock(&self.synced);
        if self.is_broken.load(Ordering::Relaxed) && *synced < end {
            return Err(io::Error::other("an earlier write to the journal of events failed"));
        }
        if *synced >= end {
            return Ok(());
        }
        let written = self.length.load(Ordering::Acquire);
        match StorageCall::Fsync.measure(|| self.file.sync_data()) {
            Ok(()) => {
                *synced = written;
                Ok(())
            }
            Err(error) => {
                // The kernel reports the loss of data only once.
                self.is_broken.store(true, Ordering::Relaxed);
                Err(error)
            }
        }
    }
}

impl Journal {
    /// Creates the first segment. Blocks.
    pub(super) fn create(directory: EventsDirectory, node: NodeName, locks: LockMode) -> io::Result<Self> {
        let process = ProcessId::new();
        let segment = new_segment(&directory, process, &node, locks, 0)?;
        Ok(Self {
            directory,
            process,
            node,
            locks,
            next_number: AtomicU64::new(1),
            state: Mutex::new(JournalState {
                segment: Arc::new(segment),
                unsettled: Vec::new(),
                unsynced: Vec::new(),
            }),
        })
    }

    /// A number for the next event.
    pub(super) fn next_number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    /// The id of the event with the number `n`.
    pub(super) fn event_id(&self, n: u64) -> String {
        format!("{}-{}-{n}", self.node, self.process)
    }

    /// Appends an intent and brings it to stable storage. Blocks.
    pub(super) fn begin(&self, intent: Intent) -> Result<(), FileError> {
        let written = self.append(&JournalEntry::Intent(Box::new(intent)))?;
        fault::pass("intent_written");
        written.segment.sync(written.end)?;
        metrics::event_recorded();
        Ok(())
    }

    /// Appends the end of an event. If that fails, it is tried again later. An abort is brought to stable
    /// storage, because the caller then removes what would show it. Blocks.
    pub(super) fn settle(&self, entry: JournalEntry) {
        let must_sync = matches!(entry, JournalEntry::Abort(_));
        let written = self.append(&entry);
        let settled =
            written.and_then(|written| if must_sync { written.segment.sync(written.end) } else { Ok(()) });
        if let Err(error) = settled {
            log::error!("cannot write the end of an event to its journal; trying again: {}", chain(&error));
            lock(&self.state).unsettled.push(entry);
        }
    }

    /// Writes what could not be written before, and brings the journal to stable storage, so that other nodes
    /// see it. Blocks.
    pub(super) fn flush(&self) {
        let unsettled = std::mem::take(&mut lock(&self.state).unsettled);
        for entry in unsettled {
            self.settle(entry);
        }
        let segment = Arc::clone(&lock(&self.state).segment);
        let end = segment.length.load(Ordering::Acquire);
        match segment.sync(end) {
            Ok(()) => {
                let mut state = lock(&self.state);
                if state.segment.number == segment.number {
                    state.unsynced.retain(|(position, _)| *position > end);
                }
            }
            Err(error) => log::error!("cannot flush the journal of events: {error}"),
        }
    }

    /// Returns true if [`Self::flush`] has something to do.
    pub(super) fn must_flush(&self) -> bool {
        let state = lock(&self.state);
        !state.unsettled.is_empty() || !state.unsynced.is_empty()
    }

    fn append(&self, entry: &JournalEntry) -> io::Result<Written> {
        let line = line_of(entry);
        let mut state = lock(&self.state);
        let current = &state.segment;
        if current.is_broken.load(Ordering::Relaxed) || current.length.load(Ordering::Relaxed) >= SEGMENT_SIZE
        {
            let synced = current.sync(current.length.load(Ordering::Relaxed));
            let number = current.number + 1;
            let next = new_segment(&self.directory, self.process, &self.node, self.locks, number)?;
            state.segment = Arc::new(next);
            let unsynced = std::mem::take(&mut state.unsynced);
            if synced.is_err() {
                // They may be lost in the previous segment. A second line for the same event is harmless.
                state.unsettled.extend(unsynced.into_iter().map(|(_, entry)| entry));
            }
        }
        let segment = Arc::clone(&state.segment);
        let end = segment.append(&line)?;
        if !matches!(entry, JournalEntry::Intent(_)) {
            state.unsynced.push((end, entry.clone()));
        }
        Ok(Written { segment, end })
    }
}

/// Reserves the room of a whole segment, where the storage can: while it is full, clients must still be able
/// to remove files, and removals may have events.
fn reserve_room(file: &File) {
    let flags = FallocateFlags::FALLOC_FL_KEEP_SIZE;
    if let Err(error) = fallocate(file, flags, 0, SEGMENT_SIZE.cast_signed()) {
        log::debug!("no room is reserved for the journal of events: {error}");
    }
}

/// Creates a segment and locks it. Its name is on stable storage.
fn new_segment(
    directory: &EventsDirectory,
    process: ProcessId,
    node: &NodeName,
    locks: LockMode,
    first: u32,
) -> io::Result<Segment> {
    let mut number = first;
    for _ in 0..ATTEMPTS {
        let name = SegmentName { process, segment: number, node: node.clone() };
        let file = match directory.create_segment(&name) {
            Ok(file) => file,
            // An attempt that failed after it had created the file.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                number += 1;
                continue;
            }
            Err(error) => return Err(error),
        };
        reserve_room(&file);
        let held = locks.take(&file).map_err(io::Error::other)?;
        // A deliverer that found the file without a lock removes it while it holds the lock.
        let is_named = directory
            .open_segment(&name)
            .and_then(|found| Ok(found.metadata()?.ino() == file.metadata()?.ino()))
            .unwrap_or(false);
        if held == WriterLock::HeldByAnother || !is_named {
            number += 1;
            continue;
        }
        directory.sync()?;
        return Ok(Segment {
            file,
            number,
            length: AtomicU64::new(0),
            synced: Mutex::new(0),
            is_broken: AtomicBool::new(false),
        });
    }
    Err(io::Error::other("another process keeps removing the journals of events"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::record::{EventOrder, parse_line, tests::intent};

    fn journal(root: &std::path::Path) -> Journal {
        let directory = EventsDirectory::open(root).unwrap();
        Journal::create(directory, "node".parse().unwrap(), LockMode::Auto).unwrap()
    }

    fn order() -> EventOrder {
        EventOrder { epoch: 0, lease: 0, changed: 0 }
    }

    fn entries(root: &std::path::Path) -> Vec<JournalEntry> {
        use std::io::Read;
        let directory = EventsDirectory::open(root).unwrap();
        let mut entries = Vec::new();
        for name in directory.list().unwrap().segments {
            let mut content = Vec::new();
            directory.open_segment(&name).unwrap().read_to_end(&mut content).unwrap();
            let lines = content.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            entries.extend(lines.map(|line| parse_line(line).unwrap()));
        }
        entries
    }

    #[test]
    fn lines_continue_in_a_new_segment_when_one_is_full_or_broken() {
        let root = tempfile::tempdir().unwrap();
        let journal = journal(root.path());
        let mut expected = Vec::new();
        for round in 0..3 {
            let n = journal.next_number();
            journal.begin(intent(n, "a", order())).unwrap();
            journal.settle(JournalEntry::Commit(n));
            expected.push(n);
            let segment = Arc::clone(&lock(&journal.state).segment);
            match round {
                0 => segment.length.store(SEGMENT_SIZE, Ordering::Relaxed),
                _ => segment.is_broken.store(true, Ordering::Relaxed),
            }
        }
        assert_eq!(lock(&journal.state).segment.number, 2);
        let committed: Vec<u64> = entries(root.path())
            .into_iter()
            .filter_map(|entry| if let JournalEntry::Commit(n) = entry { Some(n) } else { None })
            .collect();
        assert_eq!(committed, expected);
    }

    #[test]
    fn a_segment_has_its_room_before_it_is_written() {
        let root = tempfile::tempdir().unwrap();
        let journal = journal(root.path());
        let status = lock(&journal.state).segment.file.metadata().unwrap();
        assert_eq!(status.len(), 0);
        let probe = File::create(root.path().join("probe")).unwrap();
        if fallocate(&probe, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, 4096).is_ok() {
            assert!(status.blocks() * 512 >= SEGMENT_SIZE, "{status:?}");
        }
    }

    #[test]
    fn the_newest_segment_is_locked_while_its_process_lives() {
        let root = tempfile::tempdir().unwrap();
        let journal = journal(root.path());
        let directory = EventsDirectory::open(root.path()).unwrap();
        let name = directory.list().unwrap().segments.remove(0);
        let probe = directory.open_segment(&name).unwrap();
        assert_eq!(LockMode::Auto.take(&probe).unwrap(), WriterLock::HeldByAnother);
        drop(journal);
        assert!(matches!(LockMode::Auto.take(&probe), Ok(WriterLock::Held { .. })));
    }
}
