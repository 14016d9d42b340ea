//! Usage of files for quotas: counting a home's usage, and the change of usage by each operation.
//!
//! Every operation that removes, replaces or truncates a file uses the functions here. They check the
//! file while it is locked ([`InodeLock`]), so that two sessions that remove or replace the same file
//! at the same time do not both credit its bytes.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use common::registry::Usage;
use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{RenameFlags, renameat, renameat2};
use nix::sys::stat::{FileStat, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::directory::{DirectoryReader, MAX_WALK_DEPTH};
use super::handle::{self, EntryLocation, READ_DIRECTORY, identity, kind, size};
use super::inode_lock::{FileIdentity, InodeLock};
use super::{EVENTS_DIRECTORY, FileError, Jail};
use crate::listing::EntryKind;
use crate::virtual_path::VirtualPath;

/// Attempts of an operation while the file of its name keeps changing between the check and the lock.
const ATTEMPTS: u32 = 16;

/// Changes of a user's usage by an operation so far. Clones share the same counters: one belongs to the
/// operation, another to the code that reports usage to the registry.
#[derive(Clone, Debug, Default)]
pub struct Changes(Arc<UsageCounters>);

#[derive(Debug, Default)]
struct UsageCounters {
    bytes: AtomicI64,
    /// Files and directories.
    files: AtomicI64,
}

impl Changes {
    /// Returns the change in bytes and in files. Negative if more was removed than added.
    pub fn so_far(&self) -> (i64, i64) {
        (self.0.bytes.load(Relaxed), self.0.files.load(Relaxed))
    }

    pub(super) fn grow(&self, bytes: u64) {
        self.0.bytes.fetch_add(signed(bytes), Relaxed);
    }

    pub(super) fn shrink(&self, bytes: u64) {
        self.0.bytes.fetch_sub(signed(bytes), Relaxed);
    }

    /// Records a created file or directory.
    pub fn create(&self) {
        self.0.files.fetch_add(1, Relaxed);
    }

    /// Records the removal or replacement of `usage`.
    pub fn remove(&self, usage: Usage) {
        self.shrink(usage.bytes);
        self.0.files.fetch_sub(signed(usage.files), Relaxed);
    }
}

/// No file system has files of 2^63 bytes or more.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl Jail {
    /// Returns the usage of all files and directories below `top`, including hidden ones. A missing
    /// `top` counts as empty. Symbolic links are not followed. Directories that cannot be read, or that
    /// are 512 levels deep, count as empty. `step` is called before each entry and may wait.
    ///
    /// # Errors
    /// The errors of `step`, and any error of the kernel for `top` itself.
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
            // `.nfs*` files are removed files that a client still has open. Their removal has already
            // been recorded.
            let name = found.name.to_bytes();
            if found.is_self_or_parent() || name.starts_with(b".nfs") || name == EVENTS_DIRECTORY {
                continue;
            }
            // A file that another session has removed is not counted.
            let Ok(status) = handle::status(found.directory, found.name) else { continue };
            sum = sum.plus(usage_of(&status));
            if kind(&status) != EntryKind::Directory {
                continue;
            }
            match handle::open_subdirectory(found.directory, found.name) {
                Ok(directory) if depth < MAX_WALK_DEPTH => levels.push(DirectoryReader::new(directory)),
                Ok(_) => {
                    log::warn!(home:% = self.home_path; "a directory is too deep to be counted for the quota")
                }
                Err(Errno::ENOENT | Errno::ESTALE | Errno::ENOTDIR) => {}
                Err(errno) => {
                    let home = &self.home_path;
                    log::warn!(home:%; "a directory cannot be counted for the quota: {errno}");
                }
            }
        }
    }
}

/// Usage of the file or directory itself.
pub(super) fn usage_of(status: &FileStat) -> Usage {
    match kind(status) {
        EntryKind::File => Usage { bytes: size(status), files: 1 },
        EntryKind::Directory => Usage { bytes: 0, files: 1 },
        EntryKind::Symlink | EntryKind::Other => Usage::default(),
    }
}

/// Removes the name `name` in `directory` and returns what that freed. With `only`, the name is removed
/// only if it is that file; otherwise nothing is removed and the result is zero.
///
/// If other sessions keep renaming files to this name, the result is less than what was freed.
///
/// # Errors
/// The errors of `unlinkat`.
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
        // From here on no other operation renames this file.
        let status = look()?;
        if identity(&status) == found {
            unlinkat(directory, name, flag)?;
            return Ok(usage_of(&status));
        }
    }
    // With `only`, another file has the name by now.
    if only.is_none() {
        unlinkat(directory, name, flag)?;
    }
    Ok(Usage::default())
}

/// Locks the file at `location` and returns its status.
///
/// # Errors
/// The errors of `fstatat`; EBUSY if another file had the name in each attempt.
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

/// Renames `from` to `to` and returns the usage of the file that was replaced.
///
/// If other sessions keep creating and removing files at these names, the result is less than what was
/// freed.
///
/// # Errors
/// The errors of `renameat`.
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
                // Another session has just created a file there.
                Err(Errno::EEXIST) => continue,
                // NFS does not support the flag. A file that is created at `to` at this moment is not
                // counted as freed.
                Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
                    renameat(&from.directory, from.name, &to.directory, to.name)?;
                }
                renamed => renamed?,
            }
            return Ok(Usage::default());
        };
        renameat(&from.directory, from.name, &to.directory, to.name)?;
        // Renaming one name of a file to another name of the same file changes nothing.
        let is_itself = identity(&victim) == identity(&source_now);
        return Ok(if is_itself { Usage::default() } else { usage_of(&victim) });
    }
    renameat(&from.directory, from.name, &to.directory, to.name)?;
    Ok(Usage::default())
}

/// Returns the status of the name, or `None` if it does not exist.
fn status_if_exists(location: &EntryLocation<'_>) -> Result<Option<FileStat>, Errno> {
    match location.status() {
        Ok(status) => Ok(Some(status)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Truncates `file` to `length` bytes if it is longer, and records the freed bytes in `changes`. A file
/// without a name frees nothing: the operation that removed or replaced it has recorded all its bytes.
///
/// # Errors
/// The errors of `ftruncate`.
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
