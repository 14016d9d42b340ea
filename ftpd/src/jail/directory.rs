//! Reading directories as a stream: memory does not grow with the number of entries.

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

/// Bytes of names that the kernel hands over at once; what glibc takes for a local directory.
const BUFFER: usize = 32 * 1024;

impl Jail {
    /// The entries of the directory `path` in the order of the file system, without `.` and `..`,
    /// NFS's remains of removed files (`.nfs*`) and our partial uploads. Symbolic links are shown as
    /// links: a client that removes a directory entry by entry must not enter them. Folders come last.
    ///
    /// # Errors
    /// Here and from the iterator: as the kernel says. Entries that vanish meanwhile are no error.
    pub fn entries(&self, path: &VirtualPath) -> Result<Entries<'_>, FileError> {
        let folders = self.folders_in(path);
        let names = match self.open_path(path, READ_DIRECTORY) {
            Ok(handle) => Some(DirectoryReader::new(handle)),
            Err(FileError::IsADirectory) if !folders.is_empty() => None,
            Err(error) => return Err(error),
        };
        let path = path.clone();
        Ok(Entries { jail: self, path, names, folders, shown: 0, is_wanted: None, progress: None })
    }

    /// The tree below `path` for `LIST -R`, in the order of `ls -R`: a directory, its entries,
    /// then each of its directories that `enters` lets it, down to `max_depth` below `path`. Symbolic
    /// links are not followed. Holds one descriptor and 32 KiB a level. Ends when `progress` is
    /// cancelled.
    ///
    /// # Errors
    /// As [`Entries::until_cancelled`]; directories below that cannot be read are left out.
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

/// Whether the entry of this name is wanted.
type NameFilter<'j> = dyn Fn(&[u8]) -> bool + 'j;

/// See [`Jail::entries`].
pub struct Entries<'j> {
    jail: &'j Jail,
    path: VirtualPath,
    /// `None` where there is nothing but the way to folders.
    names: Option<DirectoryReader>,
    /// Names of folders and of what leads to them. They cover those of the home.
    folders: Vec<Vec<u8>>,
    /// How many of `folders` have been handed out.
    shown: usize,
    /// Decides by its name whether an entry is asked for its status. `None`: all are.
    is_wanted: Option<Box<NameFilter<'j>>>,
    /// Ends the iteration. `None`: it cannot be ended.
    progress: Option<&'j Progress>,
}

impl fmt::Debug for Entries<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entries")
            .field("path", &self.path)
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl<'j> Entries<'j> {
    /// Only the entries whose names `is_wanted` accepts. Names are tested before the storage is asked
    /// for the status: on NFS that is one request for each entry.
    pub fn only(self, is_wanted: impl Fn(&[u8]) -> bool + 'j) -> Self {
        Self { is_wanted: Some(Box::new(is_wanted)), ..self }
    }

    /// The iteration gives [`FileError::Cancelled`] as soon as `progress` is cancelled, also between
    /// entries that are left out.
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
            let Some(found) = self.names.as_mut().and_then(DirectoryReader::next) else {
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
                // Another session or node removed it meanwhile.
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

/// See [`Jail::walk`]. Each directory is read twice, for its entries and for the directories in
/// it, so that nothing need be remembered.
pub struct TreeWalk<'j> {
    /// The directories on the way down, the last one being worked on.
    levels: Vec<WalkLevel<'j>>,
    /// The directory to step into next.
    next: Option<Entries<'j>>,
    max_depth: usize,
    progress: &'j Progress,
    enters: Box<dyn Fn(&VirtualPath) -> bool + 'j>,
}

enum WalkLevel<'j> {
    Listing(Entries<'j>),
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
        self.shown = 0;
        self.names.as_mut().map_or(Ok(()), DirectoryReader::rewind)
    }

    fn next_folder(&mut self) -> Option<VirtualPath> {
        loop {
            let name = self.folders.get(self.shown)?;
            self.shown += 1;
            // A part of a folder's path, which is one.
            if let Ok(path) = self.path.join(name) {
                return Some(path);
            }
        }
    }

    /// The next directory in this one that `enters` wants and that can be opened. An error ends the
    /// directory: it has been reported, if it lasts, by the listing before. So does a cancellation.
    fn next_directory(&mut self, enters: &dyn Fn(&VirtualPath) -> bool) -> Option<Self> {
        let progress = self.progress;
        let is_cancelled = || progress.is_some_and(Progress::is_cancelled);
        while !is_cancelled()
            && let Some(found) = self.names.as_mut().and_then(DirectoryReader::next)
        {
            let found = found.ok()?;
            if is_omitted(&self.folders, found.name.to_bytes()) || !found.may_be_directory() {
                continue;
            }
            // A name that no client can say (with a line end), or a path that is too long.
            let Ok(path) = self.path.join(found.name.to_bytes()) else {
                continue;
            };
            if !enters(&path) {
                continue;
            }
            let flags = READ_DIRECTORY | OFlag::O_NOFOLLOW;
            if let Ok(handle) = openat(found.directory, found.name, flags, Mode::empty()) {
                return Some(Self {
                    jail: self.jail,
                    path,
                    names: Some(DirectoryReader::new(handle)),
                    folders: Vec::new(),
                    shown: 0,
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

fn is_omitted(folders: &[Vec<u8>], name: &[u8]) -> bool {
    is_hidden(name) || folders.iter().any(|folder| folder == name)
}

fn is_hidden(name: &[u8]) -> bool {
    matches!(name, b"." | b"..") || name.starts_with(b".nfs") || name.starts_with(PARTIAL_PREFIX)
}

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
    // Replaced by something else meanwhile: read as a link it gives ENOENT, and is left out.
    Ok(entry(name.to_bytes(), &found, Some(link_target(&link)?)))
}

/// The names in an open directory.
#[derive(Debug)]
pub(super) struct DirectoryReader {
    directory: OwnedFd,
    buffer: Box<[u8]>,
    /// What of the buffer has not been handed out.
    pending: std::ops::Range<usize>,
}

/// A name, as `getdents64` gives it.
pub(super) struct DirectoryRecord<'n> {
    pub directory: &'n OwnedFd,
    pub name: &'n CStr,
    file_type: u8,
}

impl DirectoryRecord<'_> {
    /// Whether it is worth opening it as a directory. Some file systems do not say.
    pub fn may_be_directory(&self) -> bool {
        matches!(self.file_type, libc::DT_DIR | libc::DT_UNKNOWN)
    }
}

impl DirectoryReader {
    /// `directory` is open for reading.
    pub fn new(directory: OwnedFd) -> Self {
        Self { directory, buffer: vec![0; BUFFER].into(), pending: 0..0 }
    }

    pub fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    /// Starts again.
    pub fn rewind(&mut self) -> Result<(), Errno> {
        self.pending = 0..0;
        lseek(&self.directory, 0, Whence::SeekSet).map(drop)
    }

    /// The next name, `.` and `..` included; `None` at the end. Not an `Iterator`, because names
    /// stay in the buffer.
    pub fn next(&mut self) -> Option<Result<DirectoryRecord<'_>, Errno>> {
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
        // Only a broken file system gets here; it must not make this loop for ever.
        let Some((length, file_type, name)) = parsed else {
            return Some(Err(Errno::EIO));
        };
        self.pending.start += length;
        Some(Ok(DirectoryRecord { directory: &self.directory, name, file_type }))
    }

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
                // The directory has been removed meanwhile: nothing is in it.
                Err(Errno::ENOENT) => return Ok(0),
                Err(errno) => return Err(errno),
            }
        }
    }
}
