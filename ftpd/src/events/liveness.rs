//! Which processes that wrote a journal are dead.
//!
//! A process holds a lock on its newest segment. Where file locks hold on all nodes, a process without a lock
//! is dead. Where they do not, a process is dead if the registry has not shown its node for a while, or if a
//! later process has the name of the node.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    time::{Duration, Instant},
};

use common::ids::NodeName;

use super::directory::{EventFiles, EventsDirectory, ProcessId, SegmentName};
use crate::jail::{LockMode, lock::WriterLock};

/// Attempts to see the same list of segments while all of them are locked.
const ATTEMPTS: usize = 4;

/// How a node finds out that a process is dead.
pub(super) enum LivenessTest {
    /// By locks on the journals.
    Locks(LockMode),
    /// By the registry: a node is dead if it was missing for this time.
    Registry { missing_for: Duration },
    /// A single node without locks: all other processes have ended.
    Alone,
}

/// The processes that are known to be dead.
pub(super) struct Liveness {
    test: LivenessTest,
    own: ProcessId,
    dead: HashSet<ProcessId>,
    /// Nodes that the registry does not show, since when.
    missing: HashMap<NodeName, Instant>,
}

impl Liveness {
    pub(super) fn new(test: LivenessTest, own: ProcessId) -> Self {
        Self { test, own, dead: HashSet::new(), missing: HashMap::new() }
    }

    pub(super) fn is_dead(&self, process: ProcessId) -> bool {
        self.dead.contains(&process)
    }

    /// Notes that a process that seemed dead lives.
    pub(super) fn revive(&mut self, process: ProcessId) {
        self.dead.remove(&process);
    }

    /// The lock on a segment of a dead process, without which it must not be removed: a process that has just
    /// created the segment may be about to lock it. `None`: the process lives.
    pub(super) fn lock_to_remove(&self, file: &File) -> io::Result<Option<()>> {
        match &self.test {
            LivenessTest::Locks(locks) => match locks.take(file).map_err(io::Error::other)? {
                WriterLock::Held { .. } => Ok(Some(())),
                WriterLock::HeldByAnother | WriterLock::NotSupported => Ok(None),
            },
            LivenessTest::Registry { .. } | LivenessTest::Alone => Ok(Some(())),
        }
    }

    /// Looks for dead processes. `live` are the nodes that the registry shows; `None` while it is away.
    /// Returns true if it found one.
    pub(super) fn update(
        &mut self,
        directory: &EventsDirectory,
        files: &EventFiles,
        live: Option<&HashSet<NodeName>>,
    ) -> io::Result<bool> {
        let known = self.dead.len();
        let processes: HashSet<ProcessId> = files.segments.iter().map(|name| name.process).collect();
        self.dead.retain(|process| processes.contains(process));
        let gone = known - self.dead.len();
        for process in processes {
            if process == self.own || self.dead.contains(&process) {
                continue;
            }
            let is_dead = match &self.test {
                LivenessTest::Alone => true,
                LivenessTest::Locks(locks) => has_no_lock(directory, *locks, process)?,
                LivenessTest::Registry { missing_for } => {
                    let Some(live) = live else {
                        self.missing.clear();
                        continue;
                    };
                    is_missing(&mut self.missing, files, process, live, *missing_for)
                }
            };
            if is_dead {
                self.dead.insert(process);
            }
        }
        Ok(self.dead.len() + gone > known)
    }
}

/// Returns true if the process holds no lock on any of its segments. A process that goes on to a new segment
/// locks it before it unlocks the previous one, and a segment that this function has locked is not used by
/// its process. So the process is dead if all segments are locked here and there is no further one.
fn has_no_lock(directory: &EventsDirectory, locks: LockMode, process: ProcessId) -> io::Result<bool> {
    let mut held: HashMap<SegmentName, File> = HashMap::new();
    for _ in 0..ATTEMPTS {
        let segments = directory.list()?.segments;
        let mut is_complete = true;
        for name in segments.into_iter().filter(|name| name.process == process).rev() {
            if held.contains_key(&name) {
                continue;
            }
            is_complete = false;
            let file = match directory.open_segment(&name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file?,
            };
            match locks.take(&file).map_err(io::Error::other)? {
                WriterLock::HeldByAnother => return Ok(false),
                WriterLock::Held { .. } => held.insert(name, file),
                // Then nothing shows that the process is dead.
                WriterLock::NotSupported => return Ok(false),
            };
        }
        if is_complete {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_missing(
    missing: &mut HashMap<NodeName, Instant>,
    files: &EventFiles,
    process: ProcessId,
    live: &HashSet<NodeName>,
    missing_for: Duration,
) -> bool {
    let Some(name) = files.segments.iter().find(|name| name.process == process).map(|name| &name.node) else {
        return false;
    };
    if live.contains(name) {
        missing.remove(name);
        // One process at a time has the name of a node.
        return files.segments.iter().any(|other| other.node == *name && other.process > process);
    }
    missing.entry(name.clone()).or_insert_with(Instant::now).elapsed() >= missing_for
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::journal::Journal;

    fn directory(root: &std::path::Path) -> EventsDirectory {
        EventsDirectory::open(root).unwrap()
    }

    #[test]
    fn a_process_without_a_lock_is_dead() {
        let root = tempfile::tempdir().unwrap();
        let node: NodeName = "node".parse().unwrap();
        let journal = Journal::create(directory(root.path()), node, LockMode::Auto).unwrap();
        let mut liveness = Liveness::new(LivenessTest::Locks(LockMode::Auto), ProcessId(1));
        let mut update = || {
            let directory = directory(root.path());
            let files = directory.list().unwrap();
            liveness.update(&directory, &files, None).unwrap()
        };
        assert!(!update());
        let process = journal.process;
        drop(journal);
        assert!(update());
        assert!(!update());
        assert!(liveness.is_dead(process));
    }

    #[test]
    fn without_locks_a_node_is_dead_when_the_registry_has_not_shown_it_for_a_while() {
        let root = tempfile::tempdir().unwrap();
        let directory = directory(root.path());
        let segment = |process, node: &str| SegmentName {
            process: ProcessId(process),
            segment: 0,
            node: node.parse().unwrap(),
        };
        for name in [segment(2, "a"), segment(3, "a"), segment(4, "b")] {
            directory.create_segment(&name).unwrap();
        }
        let files = directory.list().unwrap();
        let test = LivenessTest::Registry { missing_for: Duration::from_secs(3600) };
        let mut liveness = Liveness::new(test, ProcessId(1));
        assert!(!liveness.update(&directory, &files, None).unwrap(), "the registry is away");
        let live = HashSet::from(["a".parse().unwrap()]);
        assert!(liveness.update(&directory, &files, Some(&live)).unwrap());
        assert!(liveness.is_dead(ProcessId(2)), "a later process has the name");
        assert!(!liveness.is_dead(ProcessId(3)) && !liveness.is_dead(ProcessId(4)));
        liveness.test = LivenessTest::Registry { missing_for: Duration::ZERO };
        assert!(liveness.update(&directory, &files, Some(&live)).unwrap());
        assert!(liveness.is_dead(ProcessId(4)));
    }
}
