//! Reading directories and directory trees as streams: memory use does not grow with the number of
//! entries.

use std::ffi::CStr;
use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{Whence, lseek};

use super::files::link_target;
use super::handle::{self, READ_DIRECTORY, entry, kind, status};
use super::{FileError, Jail, PARTIAL_PREFIX};
use crate::listing::{Entry, EntryKind};
use crate::virtual_path::VirtualPath;
use crate::work::progress::Progress;

/// Bytes of one read of a directory; glibc uses the same size for local directories.
const BUFFER: usize = 32 * 1024;

/// Maximum depth when a whole home or storage is read. Each level holds one descriptor and 32 KiB.
pub(super) const MAX_WALK_DEPTH: usize = 512;

impl Jail {
    /// Returns the entries of the directory `path` in the order of the file system, without `.` and
    /// `..`, removed files that NFS keeps until they are closed (`.nfs*`), and partial files. Shared
    /// folders come last.
    ///
    /// Unless this jail [resolves](Jail::resolve_links) links, symbolic links are shown as links, so that
    /// a client that removes a directory entry by entry does not enter them.
    ///
    /// # Errors
    /// From this method and from the iterator: any error of the kernel. Entries that are removed during
    /// the iteration are not errors.
    pub fn entries(&self, path: &VirtualPath) -> Result<Entries<'_>, FileError> {
        let folders = self.folders_in(path);
        let reader = match self.open_path(path, READ_DIRECTORY) {
            Ok(handle) => Some(DirectoryReader::new(handle)),
            Err(FileError::IsADirectory) if !folders.is_empty() => None,
            Err(error) => return Err(error),
        };
        let path = path.clone();
        Ok(Entries { jail: self, path, reader, folders, folders_done: 0, is_wanted: None, progress: None })
    }

    /// Returns the tree below `path` for `LIST -R`, in the order of `ls -R`: a directory, its entries,
    /// then each of its directories that `enters` accepts, down to `max_depth` levels below `path`.
    /// Symbolic links are not followed. Each level holds one descriptor and 32 KiB. The walk ends when
    /// `progress` is cancelled.
    ///
    /// # Errors
    /// The errors of [`Entries::until_cancelled`]. Directories below `path` that cannot be read are
    /// omitted.
    pub fn walk<'j>(
        &'j self,
        path: &VirtualPath,
        max_depth: usize,
        progress: &'j Progress,
        enters: impl Fn(&VirtualPath) -> bool + 'j,
    ) -> Result<TreeWalk<'j>, FileError> {
        let top = self.entries(path)?.until_cancelled(progress);
        Ok(TreeWalk { levels: Vec::new(), next: Some(top), max_depth, progress, enters: Box::new(enters) })
    }
}

/// Decides by its name if an entry is returned.
type NameFilter<'j> = dyn Fn(&[u8]) -> bool + 'j;

/// See [`Jail::entries`].
pub struct Entries<'j> {
    jail: &'j Jail,
    path: VirtualPath,
    /// `None` for a synthetic directory, which only contains shared folders.
    reader: Option<DirectoryReader>,
    /// Names in this directory that are folders or contain folders below them. They hide entries of the
    /// home with the same names.
    folders: Vec<Vec<u8>>,
    /// Number of `folders` that have been returned or skipped.
    folders_done: usize,
    /// `None`: all entries are returned.
    is_wanted: Option<Box<NameFilter<'j>>>,
    /// Cancels the iteration. `None`: it cannot be cancelled.
    progress: Option<&'j Progress>,
}

impl fmt::Debug for Entries<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entries")
            .field("path", &self.path)
            .field("reader", &self.reader)
            .finish_non_exhaustive()
    }
}

impl<'j> Entries<'j> {
    /// Restricts the iteration to entries whose names `is_wanted` accepts. Names are tested before the
    /// storage is asked for the status: on NFS that saves one request for each omitted entry.
    pub fn only(self, is_wanted: impl Fn(&[u8]) -> bool + 'j) -> Self {
        Self { is_wanted: Some(Box::new(is_wanted)), ..self }
    }

    /// Makes the iteration return [`FileError::Cancelled`] as soon as `progress` is cancelled, even
    /// while it skips omitted entries.
    pub fn until_cancelled(self, progress: &'j Progress) -> Self {
        Self { progress: Some(progress), ..self }
    }

    fn is_cancelled(&self) -> bool {
        self.progress.is_some_and(Progress::is_cancelled)
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<Entry, FileError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.is_cancelled() {
                return Some(Err(FileError::Cancelled));
            }
            let Some(found) = self.reader.as_mut().and_then(DirectoryReader::next) else {
                let path = self.next_folder()?;
                if !is_wanted(self.is_wanted.as_deref(), path.split().map_or(b"/", |(_, name)| name)) {
                    continue;
                }
                match self.jail.entry(&path) {
                    Err(FileError::NotFound | FileError::Stale) => continue,
                    entry => return Some(entry),
                }
            };
            let found = match found {
                Ok(found) => found,
                Err(errno) => return Some(Err(errno.into())),
            };
            let name = found.name.to_bytes();
            if is_omitted(&self.folders, name) || !is_wanted(self.is_wanted.as_deref(), name) {
                continue;
            }
            match entry_named(self.jail, &self.path, found.directory, found.name) {
                Ok(entry) => return Some(Ok(entry)),
                // Another session or node has removed it.
                Err(FileError::NotFound | FileError::Stale) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// One step of a [`TreeWalk`].
#[derive(Debug)]
pub enum WalkStep {
    /// The entries of this directory follow.
    Directory(VirtualPath),
    Entry(Entry),
}

/// See [`Jail::walk`]. Each directory is read twice, once for its entries and once for its
/// subdirectories, so that names need not be kept in memory.
pub struct TreeWalk<'j> {
    /// The directories from the top down to the current one.
    levels: Vec<WalkLevel<'j>>,
    /// The directory to step into next.
    next: Option<Entries<'j>>,
    max_depth: usize,
    progress: &'j Progress,
    enters: Box<dyn Fn(&VirtualPath) -> bool + 'j>,
}

/// A directory on the path of a [`TreeWalk`].
enum WalkLevel<'j> {
    /// Its entries are being returned.
    Listing(Entries<'j>),
    /// Its subdirectories are being visited.
    Descending(Entries<'j>),
}

impl Iterator for TreeWalk<'_> {
    type Item = Result<WalkStep, FileError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(entries) = self.next.take() {
            let path = entries.path.clone();
            self.levels.push(WalkLevel::Listing(entries));
            return Some(Ok(WalkStep::Directory(path)));
        }
        loop {
            if self.progress.is_cancelled() {
                return Some(Err(FileError::Cancelled));
            }
            let deepest = self.levels.len() > self.max_depth;
            match self.levels.pop()? {
                WalkLevel::Listing(mut entries) => match entries.next() {
                    Some(Ok(entry)) => {
                        self.levels.push(WalkLevel::Listing(entries));
                        return Some(Ok(WalkStep::Entry(entry)));
                    }
                    Some(Err(error)) => return Some(Err(error)),
                    None if deepest => {}
                    None => match entries.rewind() {
                        Ok(()) => self.levels.push(WalkLevel::Descending(entries)),
                        Err(errno) => return Some(Err(errno.into())),
                    },
                },
                WalkLevel::Descending(mut entries) => {
                    if let Some(below) = entries.next_directory(&self.enters) {
                        let path = below.path.clone();
                        self.levels.push(WalkLevel::Descending(entries));
                        self.levels.push(WalkLevel::Listing(below));
                        return Some(Ok(WalkStep::Directory(path)));
                    }
                }
            }
        }
    }
}

impl<'j> Entries<'j> {
    fn rewind(&mut self) -> Result<(), Errno> {
        self.folders_done = 0;
        self.reader.as_mut().map_or(Ok(()), DirectoryReader::rewind)
    }

    fn next_folder(&mut self) -> Option<VirtualPath> {
        loop {
            let name = self.folders.get(self.folders_done)?;
            self.folders_done += 1;
            // The name is a component of a folder's path, so it is valid.
            if let Ok(path) = self.path.join(name) {
                return Some(path);
            }
        }
    }

    /// Returns the next subdirectory that `enters` accepts and that can be opened, or `None` after the
    /// last one, after an error and after a cancellation. An error that persists has already been
    /// reported, when the entries of this directory were returned.
    fn next_directory(&mut self, enters: &dyn Fn(&VirtualPath) -> bool) -> Option<Self> {
        let progress = self.progress;
        let is_cancelled = || progress.is_some_and(Progress::is_cancelled);
        while !is_cancelled()
            && let Some(found) = self.reader.as_mut().and_then(DirectoryReader::next)
        {
            let found = found.ok()?;
            if is_omitted(&self.folders, found.name.to_bytes()) || !found.may_be_directory() {
                continue;
            }
            // Skipped: the name contains a line end, which no client can send, or the path is too long.
            let Ok(path) = self.path.join(found.name.to_bytes()) else {
                continue;
            };
            if !enters(&path) {
                continue;
            }
            if let Ok(handle) = handle::open_subdirectory(found.directory, found.name) {
                return Some(Self {
                    jail: self.jail,
                    path,
                    reader: Some(DirectoryReader::new(handle)),
                    folders: Vec::new(),
                    folders_done: 0,
                    is_wanted: None,
                    progress,
                });
            }
        }
        while !is_cancelled() {
            let path = self.next_folder()?;
            if enters(&path)
                && let Ok(entries) = self.jail.entries(&path)
            {
                return Some(Self { progress, ..entries });
            }
        }
        None
    }
}

fn is_wanted(is_wanted: Option<&NameFilter<'_>>, name: &[u8]) -> bool {
    is_wanted.is_none_or(|is_wanted| is_wanted(name))
}

/// Returns true if no listing shows the name, or if a folder of that name is shown instead.
fn is_omitted(folders: &[Vec<u8>], name: &[u8]) -> bool {
    is_internal(name) || folders.iter().any(|folder| folder == name)
}

/// Returns true for `.`, `..`, removed files that NFS keeps, and partial files.
fn is_internal(name: &[u8]) -> bool {
    matches!(name, b"." | b"..") || name.starts_with(b".nfs") || name.starts_with(PARTIAL_PREFIX)
}

/// The entry of a name that [`DirectoryReader`] returned.
fn entry_named(
    jail: &Jail,
    path: &VirtualPath,
    directory: &OwnedFd,
    name: &CStr,
) -> Result<Entry, FileError> {
    let found = status(directory, name)?;
    if kind(&found) != EntryKind::Symlink {
        return Ok(entry(name.to_bytes(), &found, None));
    }
    if jail.resolves_links
        && let Ok(target) = jail.open_inside(path, name.to_bytes(), handle::STATUS)
    {
        return Ok(entry(name.to_bytes(), &fstat(&target)?, None));
    }
    let link = openat(directory, name, handle::STATUS | OFlag::O_NOFOLLOW, Mode::empty())?;
    // If the link has just been replaced by something else, reading it as a link fails with ENOENT, and
    // the entry is omitted.
    Ok(entry(name.to_bytes(), &found, Some(link_target(&link)?)))
}

/// The names in an open directory.
#[derive(Debug)]
pub(super) struct DirectoryReader {
    directory: OwnedFd,
    buffer: Box<[u8]>,
    /// Range of `buffer` that has not been returned yet.
    pending: std::ops::Range<usize>,
}

/// A record of `getdents64`: a name and its directory.
pub(super) struct DirectoryRecord<'n> {
    pub directory: &'n OwnedFd,
    pub name: &'n CStr,
    file_type: u8,
}

impl DirectoryRecord<'_> {
    /// Returns true for `.` and `..`.
    pub(super) fn is_self_or_parent(&self) -> bool {
        matches!(self.name.to_bytes(), b"." | b"..")
    }

    /// Returns true if the name is a directory or the file system does not report its type.
    pub(super) fn may_be_directory(&self) -> bool {
        matches!(self.file_type, libc::DT_DIR | libc::DT_UNKNOWN)
    }
}

impl DirectoryReader {
    /// `directory` must be open for reading.
    pub(super) fn new(directory: OwnedFd) -> Self {
        Self { directory, buffer: vec![0; BUFFER].into(), pending: 0..0 }
    }

    pub(super) fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    /// Starts again at the first name.
    pub(super) fn rewind(&mut self) -> Result<(), Errno> {
        self.pending = 0..0;
        lseek(&self.directory, 0, Whence::SeekSet).map(drop)
    }

    /// Returns the next name, including `.` and `..`, or `None` at the end. Not an `Iterator`, because
    /// the names borrow the buffer.
    pub(super) fn next(&mut self) -> Option<Result<DirectoryRecord<'_>, Errno>> {
        if self.pending.is_empty() {
            match self.fill() {
                Ok(0) => return None,
                Ok(filled) => self.pending = 0..filled,
                Err(errno) => return Some(Err(errno)),
            }
        }
        // struct linux_dirent64: d_ino 8 bytes, d_off 8, d_reclen 2, d_type 1, then the name
        // with NUL (getdents64(2)).
        let record = &self.buffer[self.pending.clone()];
        let parsed = record.get(16..18).and_then(|length| {
            let length = usize::from(u16::from_ne_bytes([length[0], length[1]]));
            let file_type = *record.get(18)?;
            let name = CStr::from_bytes_until_nul(record.get(19..length)?).ok()?;
            Some((length, file_type, name))
        });
        // Only a defective file system returns such a record. The error prevents an endless loop.
        let Some((length, file_type, name)) = parsed else {
            return Some(Err(Errno::EIO));
        };
        self.pending.start += length;
        Some(Ok(DirectoryRecord { directory: &self.directory, name, file_type }))
    }

    /// Reads the next records into `buffer`. Returns their length in bytes; 0 at the end.
    fn fill(&mut self) -> Result<usize, Errno> {
        loop {
            // SAFETY: the buffer is writable, of the length given, and not otherwise borrowed
            // during the call; the descriptor is open for as long as `self` lives.
            let filled = unsafe {
                libc::syscall(
                    libc::SYS_getdents64,
                    self.directory.as_raw_fd(),
                    self.buffer.as_mut_ptr(),
                    self.buffer.len(),
                )
            };
            match Errno::result(filled) {
                // The kernel never returns more than the buffer holds.
                Ok(filled) => return Ok(usize::try_from(filled).unwrap_or(0).min(BUFFER)),
                Err(Errno::EINTR) => {}
                // The directory has been removed, so it is empty.
                Err(Errno::ENOENT) => return Ok(0),
                Err(errno) => return Err(errno),
            }
        }
    }
}
