//! What files take, for quotas: of one name, of a home, and what an upload changes.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use common::registry::Usage;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{FileStat, Mode};

use super::directory::Names;
use super::handle::{self, Place, READ_DIRECTORY, identity, kind, size};
use super::path::VirtualPath;
use super::{FileError, Jail, PARTIAL_PREFIX};
use crate::data::progress::Progress;
use crate::listing::Kind;

/// Levels of directories that are counted, each holding a descriptor and 32 KiB.
const MAX_DEPTH: usize = 512;

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

    pub(super) fn create(&self) {
        self.0.1.fetch_add(1, Relaxed);
    }

    pub(super) fn remove(&self, usage: Usage) {
        self.shrink(usage.bytes);
        self.0.1.fetch_sub(signed(usage.files), Relaxed);
    }
}

/// No file system has files of 2^63 bytes.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl Jail {
    /// What would go if `path` were removed, or replaced by another file: a regular file's size.
    /// Nothing where there is none.
    pub fn usage_of(&self, path: &VirtualPath) -> Usage {
        self.place(path).ok().and_then(|place| place.status().ok()).map_or_else(Usage::default, |s| of(&s))
    }

    /// What would go if `from` were renamed to `to`.
    pub fn usage_replaced(&self, from: &VirtualPath, to: &VirtualPath) -> Usage {
        let status = |path| self.place(path).ok().and_then(|place: Place<'_>| place.status().ok());
        match (status(from), status(to)) {
            // A rename of a file to itself changes nothing.
            (Some(from), Some(to)) if identity(&from) != identity(&to) => of(&to),
            _ => Usage::default(),
        }
    }

    /// What broken atomic uploads left in the directory `path`, which RMD removes with it.
    pub fn usage_of_partials(&self, path: &VirtualPath) -> Usage {
        let Ok(directory) = self.open_path(path, READ_DIRECTORY) else { return Usage::default() };
        let (mut names, mut sum) = (Names::new(directory), Usage::default());
        while let Some(Ok(found)) = names.next() {
            if found.name.to_bytes().starts_with(PARTIAL_PREFIX)
                && let Ok(status) = handle::status(found.directory, found.name)
            {
                sum = sum.plus(of(&status));
            }
        }
        sum
    }

    /// What all files of the home take, hidden ones included. Symbolic links are not followed;
    /// directories that cannot be read, and those 512 levels down, count as empty.
    ///
    /// # Errors
    /// [`FileError::Cancelled`], and as the kernel says of the home itself.
    pub fn usage(&self, progress: &Progress) -> Result<Usage, FileError> {
        let mut sum = Usage::default();
        let mut levels = vec![Names::new(self.open_path(&VirtualPath::root(), READ_DIRECTORY)?)];
        loop {
            let depth = levels.len();
            let Some(names) = levels.last_mut() else { return Ok(sum) };
            if progress.is_cancelled() {
                return Err(FileError::Cancelled);
            }
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
            if kind(&status) != Kind::Directory {
                sum = sum.plus(of(&status));
                continue;
            }
            match below(found.directory, found.name) {
                Ok(directory) if depth < MAX_DEPTH => levels.push(Names::new(directory)),
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

fn below(directory: &OwnedFd, name: &std::ffi::CStr) -> Result<OwnedFd, Errno> {
    openat(directory, name, READ_DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty())
}

/// What the file takes.
pub(super) fn of(status: &FileStat) -> Usage {
    match kind(status) {
        Kind::File => Usage { bytes: size(status), files: 1 },
        _ => Usage::default(),
    }
}
