//! How much files take of a quota: all files of a home, and what an operation adds or frees.
//!
//! Every operation that removes, replaces or cuts a file goes through the functions here. They look at the
//! file while it is locked ([`InodeLock`]), so that two sessions that remove or replace the same file at the
//! same time do not both free its bytes.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use common::registry::Usage;
use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{OFlag, RenameFlags, openat, renameat, renameat2};
use nix::sys::stat::{FileStat, Mode, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::directory::DirectoryReader;
use super::handle::{self, EntryLocation, READ_DIRECTORY, identity, kind, size};
use super::same_file::{FileIdentity, InodeLock};
use super::{FileError, Jail};
use crate::listing::EntryKind;
use crate::virtual_path::VirtualPath;

/// Levels of directories that are counted, each holding a descriptor and 32 KiB.
const MAX_DEPTH: usize = 512;

/// How often an operation looks again because the name has changed in between.
const ATTEMPTS: u32 = 16;

/// What an operation has added to or taken from the files of a home, so far. Shared by who does it
/// and who tells of it.
#[derive(Clone, Debug, Default)]
pub struct Changes(Arc<(AtomicI64, AtomicI64)>);

impl Changes {
    /// Bytes and files; less than nothing where more was removed.
    pub fn so_far(&self) -> (i64, i64) {
        (self.0.0.load(Relaxed), self.0.1.load(Relaxed))
    }

    pub(super) fn grow(&self, bytes: u64) {
        self.0.0.fetch_add(signed(bytes), Relaxed);
    }

    pub(super) fn shrink(&self, bytes: u64) {
        self.0.0.fetch_sub(signed(bytes), Relaxed);
    }

    /// A file or directory was made.
    pub fn create(&self) {
        self.0.1.fetch_add(1, Relaxed);
    }

    /// `usage` was removed or replaced.
    pub fn remove(&self, usage: Usage) {
        self.shrink(usage.bytes);
        self.0.1.fetch_sub(signed(usage.files), Relaxed);
    }
}

/// No file system has files of 2^63 bytes.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl Jail {
    /// What all files and directories below `top` take, hidden ones included. A `top` that is missing takes
    /// nothing. Symbolic links are not followed; directories that cannot be read, and those 512 levels
    /// down, count as empty. `step` is called before each entry, and may wait.
    ///
    /// # Errors
    /// [`FileError::Cancelled`] if `step` says so, and as the kernel says of `top` itself.
    pub fn usage(
        &self,
        top: &VirtualPath,
        mut step: impl FnMut() -> Result<(), FileError>,
    ) -> Result<Usage, FileError> {
        let mut sum = Usage::default();
        let top = match self.open_path(top, READ_DIRECTORY) {
            Err(FileError::NotFound) if !top.is_root() => return Ok(sum),
            opened => opened?,
        };
        let mut levels = vec![DirectoryReader::new(top)];
        loop {
            let depth = levels.len();
            let Some(names) = levels.last_mut() else { return Ok(sum) };
            step()?;
            let found = match names.next() {
                Some(Ok(found)) => found,
                Some(Err(errno)) if depth == 1 => return Err(errno.into()),
                Some(Err(_)) | None => {
                    levels.pop();
                    continue;
                }
            };
            // NFS's remains of removed files have been told of as removed.
            if matches!(found.name.to_bytes(), b"." | b"..") || found.name.to_bytes().starts_with(b".nfs") {
                continue;
            }
            // One that vanishes meanwhile counts for nothing.
            let Ok(status) = handle::status(found.directory, found.name) else { continue };
            sum = sum.plus(usage_of(&status));
            if kind(&status) != EntryKind::Directory {
                continue;
            }
            match open_subdirectory(found.directory, found.name) {
                Ok(directory) if depth < MAX_DEPTH => levels.push(DirectoryReader::new(directory)),
                Ok(_) => log::warn!(home:% = self.home_path; "a directory is too deep to be counted"),
                Err(Errno::ENOENT | Errno::ESTALE | Errno::ENOTDIR) => {}
                Err(errno) => {
                    let home = &self.home_path;
                    log::warn!(home:%; "a directory cannot be counted: {errno}");
                }
            }
        }
    }
}

fn open_subdirectory(directory: &OwnedFd, name: &std::ffi::CStr) -> Result<OwnedFd, Errno> {
    openat(directory, name, READ_DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty())
}

/// What the file or directory itself takes.
pub(super) fn usage_of(status: &FileStat) -> Usage {
    match kind(status) {
        EntryKind::File => Usage { bytes: size(status), files: 1 },
        EntryKind::Directory => Usage { bytes: 0, files: 1 },
        EntryKind::Symlink | EntryKind::Other => Usage::default(),
    }
}

/// Removes the name `name` in `directory`, and answers what that freed. With `only`, the name is removed only
/// if it is that file's; otherwise nothing happens and nothing is freed.
///
/// If other sessions rename files to this name again and again meanwhile, it answers less than it freed.
///
/// # Errors
/// As `unlinkat`.
pub(super) fn unlink<N: NixPath + ?Sized>(
    directory: &OwnedFd,
    name: &N,
    flag: UnlinkatFlags,
    only: Option<FileIdentity>,
) -> Result<Usage, Errno> {
    let look = || handle::status(directory, name);
    for _ in 0..ATTEMPTS {
        let found = identity(&look()?);
        if only.is_some_and(|only| only != found) {
            return Ok(Usage::default());
        }
        let _lock = InodeLock::take([found]);
        // From here on no other operation gives this file another name.
        let status = look()?;
        if identity(&status) == found {
            unlinkat(directory, name, flag)?;
            return Ok(usage_of(&status));
        }
    }
    // With `only`, the name is another file's by now.
    if only.is_none() {
        unlinkat(directory, name, flag)?;
    }
    Ok(Usage::default())
}

/// Locks the file that has the name, and tells its status.
///
/// # Errors
/// As `fstatat`; EBUSY if the name is another file's each time.
pub(super) fn lock_entry(location: &EntryLocation<'_>) -> Result<(InodeLock, FileStat), Errno> {
    for _ in 0..ATTEMPTS {
        let found = identity(&location.status()?);
        let lock = InodeLock::take([found]);
        let status = location.status()?;
        if identity(&status) == found {
            return Ok((lock, status));
        }
    }
    Err(Errno::EBUSY)
}

/// Renames `from` to `to`, and answers what was at `to` and is gone now.
///
/// If other sessions make and remove files at these names again and again meanwhile, it answers less than was
/// freed.
///
/// # Errors
/// As `renameat`.
pub(super) fn replace(from: &EntryLocation<'_>, to: &EntryLocation<'_>) -> Result<Usage, Errno> {
    for _ in 0..ATTEMPTS {
        let (source, victim) = (from.status()?, status_if_exists(to)?);
        let files = [Some(source), victim].into_iter().flatten().map(|status| identity(&status));
        let _lock = InodeLock::take(files);
        let (source_now, victim_now) = (from.status()?, status_if_exists(to)?);
        let is_same = |a: Option<FileStat>, b: Option<FileStat>| {
            a.map(|status| identity(&status)) == b.map(|status| identity(&status))
        };
        if !is_same(Some(source), Some(source_now)) || !is_same(victim, victim_now) {
            continue;
        }
        let Some(victim) = victim_now else {
            let flags = RenameFlags::RENAME_NOREPLACE;
            match renameat2(&from.directory, from.name, &to.directory, to.name, flags) {
                // Another session has just made a file there.
                Err(Errno::EEXIST) => continue,
                // NFS has no flags. A file that is made there at this moment is not counted as freed.
                Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
                    renameat(&from.directory, from.name, &to.directory, to.name)?;
                }
                renamed => renamed?,
            }
            return Ok(Usage::default());
        };
        renameat(&from.directory, from.name, &to.directory, to.name)?;
        // A rename of one name of a file to another name of the same file changes nothing.
        let is_itself = identity(&victim) == identity(&source_now);
        return Ok(if is_itself { Usage::default() } else { usage_of(&victim) });
    }
    renameat(&from.directory, from.name, &to.directory, to.name)?;
    Ok(Usage::default())
}

/// The status of what has the name, if anything has.
fn status_if_exists(location: &EntryLocation<'_>) -> Result<Option<FileStat>, Errno> {
    match location.status() {
        Ok(status) => Ok(Some(status)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Cuts `file` to `length` bytes if it is longer, and notes what that freed in `changes`. A file that has been
/// removed or replaced meanwhile frees nothing: that operation has counted all its bytes.
///
/// # Errors
/// As `ftruncate`.
pub(super) fn truncate(file: &File, length: u64, changes: &Changes) -> Result<(), FileError> {
    let _lock = InodeLock::take([identity(&fstat(file)?)]);
    let status = fstat(file)?;
    let freed = size(&status).saturating_sub(length);
    if freed > 0 {
        file.set_len(length)?;
        if status.st_nlink > 0 {
            changes.shrink(freed);
        }
    }
    Ok(())
}
