//! The hidden directory of the events in the storage's root, and the names of the files in it.

use std::{
    ffi::OsStr,
    fmt,
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use common::{clock::since_epoch, ids::NodeName};

use crate::jail::{EVENTS_DIRECTORY, PARTIAL_PREFIX};

/// The kinds of files in the directory.
const JOURNAL: &str = "journal-";
const DELIVERY: &str = "delivery-";
const DELIVERER: &str = "deliverer";

/// A process that writes or delivers events: 44 bits of the time (Unix ms) at which it started, and 20 random
/// bits. Later processes of a node are thus greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ProcessId(pub u64);

impl ProcessId {
    pub(super) fn new() -> Self {
        let millis = u64::try_from(since_epoch().as_millis()).unwrap_or(0);
        Self(millis << 20 | u64::from(rand::random::<u32>() >> 12))
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The name of a journal: `PROCESS-SEGMENT-NODE` after the prefix.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct SegmentName {
    pub process: ProcessId,
    /// Counts from 0.
    pub segment: u32,
    pub node: NodeName,
}

impl SegmentName {
    fn file_name(&self) -> Vec<u8> {
        let Self { process, segment, node } = self;
        hidden(&format!("{JOURNAL}{process}-{segment:08x}-{node}"))
    }

    fn parse(name: &str) -> Option<Self> {
        let (process, rest) = name.split_at_checked(16)?;
        let (segment, node) = rest.strip_prefix('-')?.split_at_checked(8)?;
        Some(Self {
            process: ProcessId(u64::from_str_radix(process, 16).ok()?),
            segment: u32::from_str_radix(segment, 16).ok()?,
            node: node.strip_prefix('-')?.parse().ok()?,
        })
    }
}

/// A name that no client can see or use.
fn hidden(name: &str) -> Vec<u8> {
    [PARTIAL_PREFIX, name.as_bytes()].concat()
}

/// The directory of the events. Its methods block.
#[derive(Clone, Debug)]
pub(super) struct EventsDirectory {
    path: PathBuf,
    /// Real path of the storage's root.
    root: PathBuf,
}

/// The files in the directory.
#[derive(Debug, Default)]
pub(super) struct EventFiles {
    /// Sorted by process and segment.
    pub segments: Vec<SegmentName>,
    pub deliveries: Vec<ProcessId>,
}

impl EventsDirectory {
    /// Opens the directory, which is created if it is missing.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        let root = fs::canonicalize(root)?;
        let path = root.join(OsStr::from_bytes(EVENTS_DIRECTORY));
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => File::open(&root)?.sync_all()?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        Ok(Self { path, root })
    }

    /// Real path of the storage's root.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    fn file(&self, name: &[u8]) -> PathBuf {
        self.path.join(OsStr::from_bytes(name))
    }

    /// Creates a journal that must not exist yet, and opens it for appending.
    pub(super) fn create_segment(&self, name: &SegmentName) -> io::Result<File> {
        self.create(&name.file_name())
    }

    /// Creates the delivery log of a process, and opens it for appending.
    pub(super) fn create_delivery(&self, process: ProcessId) -> io::Result<File> {
        self.create(&hidden(&format!("{DELIVERY}{process}")))
    }

    fn create(&self, name: &[u8]) -> io::Result<File> {
        OpenOptions::new().append(true).create_new(true).mode(0o600).open(self.file(name))
    }

    /// Opens a journal for reading, and for the lock that shows whether its process lives.
    pub(super) fn open_segment(&self, name: &SegmentName) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(self.file(&name.file_name()))
    }

    pub(super) fn read_delivery(&self, process: ProcessId) -> io::Result<Vec<u8>> {
        fs::read(self.file(&hidden(&format!("{DELIVERY}{process}"))))
    }

    pub(super) fn remove_segment(&self, name: &SegmentName) -> io::Result<()> {
        fs::remove_file(self.file(&name.file_name()))
    }

    pub(super) fn remove_delivery(&self, process: ProcessId) -> io::Result<()> {
        fs::remove_file(self.file(&hidden(&format!("{DELIVERY}{process}"))))
    }

    /// The file whose lock the deliverer of the cluster holds.
    pub(super) fn open_deliverer(&self) -> io::Result<File> {
        let path = self.file(&hidden(DELIVERER));
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)
    }

    /// Brings the names in the directory to stable storage.
    pub(super) fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    /// Lists the files. Names of other forms are skipped.
    pub(super) fn list(&self) -> io::Result<EventFiles> {
        let mut files = EventFiles::default();
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let Some(name) = name.as_bytes().strip_prefix(PARTIAL_PREFIX) else { continue };
            let Ok(name) = str::from_utf8(name) else { continue };
            if let Some(name) = name.strip_prefix(JOURNAL) {
                files.segments.extend(SegmentName::parse(name));
            } else if let Some(process) = name.strip_prefix(DELIVERY) {
                files.deliveries.extend(u64::from_str_radix(process, 16).map(ProcessId));
            }
        }
        files.segments.sort();
        files.deliveries.sort();
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_journals_are_read_back() {
        let root = tempfile::tempdir().unwrap();
        let directory = EventsDirectory::open(root.path()).unwrap();
        let name = SegmentName { process: ProcessId::new(), segment: 17, node: "node-1".parse().unwrap() };
        directory.create_segment(&name).unwrap();
        directory.create_delivery(name.process).unwrap();
        directory.open_deliverer().unwrap();
        let files = EventsDirectory::open(root.path()).unwrap().list().unwrap();
        assert_eq!((files.segments, files.deliveries), (vec![name.clone()], vec![name.process]));
        assert!(directory.create_segment(&name).is_err());
    }

    #[test]
    fn a_later_process_is_greater() {
        let first = ProcessId::new();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(ProcessId::new() > first);
    }
}
