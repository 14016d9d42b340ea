//! All file access of a session, confined to the user's home by the kernel.
//!
//! Every path is resolved by `openat2` inside the home's directory handle; operations on names
//! then act on the handle of the directory so found. Everything here blocks: call it from a
//! thread that may wait for storage, never from one that serves connections.
//!
//! New files and directories get [`Modes`] less the process's umask, which `main` sets to nothing.

pub mod checksum;
mod combine;
mod directory;
mod error;
mod files;
mod handle;
pub mod path;
mod remove_tree;
mod upload;
mod usage;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{FileStat, Mode, fstat, mkdirat};

pub use self::directory::{Entries, Walk, Walked};
pub use self::error::FileError;
use self::path::VirtualPath;
pub use self::upload::{Placement, Upload, WriteMode};
pub use self::usage::Changes;

/// Data of unfinished atomic uploads lies under names with this prefix. Listings hide them, and
/// clients may not use them.
pub const PARTIAL_PREFIX: &[u8] = b".ftpd-partial-";

/// Permission bits of what a session creates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modes {
    pub file: u32,
    pub directory: u32,
}

/// A user's home. Cheap: one descriptor.
#[derive(Debug)]
pub struct Jail {
    home: OwnedFd,
    /// The storage root's own path, which [`Jail::canonical_key`] takes off.
    storage: Box<[u8]>,
    modes: Modes,
}

/// A regular file, open for reading.
#[derive(Debug)]
pub struct OpenFile {
    pub file: File,
    /// Bytes when it was opened. Asking later can fail with ESTALE on NFS.
    pub size: u64,
    /// Seconds since 1970.
    pub modified: i64,
}

impl Jail {
    /// Opens `home` inside the directory `storage_root`. Symbolic links in `home` are followed
    /// inside the storage root. With `create_home`, missing directories are made.
    ///
    /// # Errors
    /// As the kernel says; [`FileError::NotFound`] without `create_home`.
    pub fn open(
        storage_root: &Path,
        home: &VirtualPath,
        create_home: bool,
        modes: Modes,
    ) -> Result<Self, FileError> {
        let root = open(storage_root, handle::DIRECTORY, Mode::empty())?;
        let home = match handle::open_in(&root, home.relative(), handle::DIRECTORY, None) {
            Err(FileError::NotFound) if create_home => create_all(&root, home, modes.directory)?,
            found => found?,
        };
        Ok(Self { home, storage: handle::real_path(&root)?.into(), modes })
    }

    /// The handle of the directory that holds `path`, and the name in it.
    ///
    /// # Errors
    /// [`FileError::NameNotAllowed`] for `/` and for the names the server keeps for itself.
    fn place<'p>(&self, path: &'p VirtualPath) -> Result<handle::Place<'p>, FileError> {
        let (parent, name) = path.split().ok_or(FileError::NameNotAllowed)?;
        if name.starts_with(PARTIAL_PREFIX) {
            return Err(FileError::NameNotAllowed);
        }
        let directory = handle::open_in(&self.home, parent.relative(), handle::DIRECTORY, None)?;
        Ok(handle::Place { directory, name })
    }

    /// Opens what `path` names, following symbolic links inside the home.
    fn open_path(&self, path: &VirtualPath, flags: OFlag) -> Result<OwnedFd, FileError> {
        if path.split().is_some_and(|(_, name)| name.starts_with(PARTIAL_PREFIX)) {
            return Err(FileError::NameNotAllowed);
        }
        handle::open_in(&self.home, path.relative(), flags, None)
    }

    /// [`Jail::open_path`] with the status of what was opened.
    fn open_with_status(&self, path: &VirtualPath, flags: OFlag) -> Result<(OwnedFd, FileStat), FileError> {
        let handle = self.open_path(path, flags)?;
        let status = fstat(&handle)?;
        Ok((handle, status))
    }
}

/// Makes the directories of `home` that are missing; every prefix is resolved from `root` anew, so
/// that links in it mean the same as when it is opened.
fn create_all(root: &OwnedFd, home: &VirtualPath, mode: u32) -> Result<OwnedFd, FileError> {
    let mut prefix = VirtualPath::root();
    let mut directory = handle::open_in(root, prefix.relative(), handle::DIRECTORY, None)?;
    for name in home.relative().split(|byte| *byte == b'/') {
        // A prefix of a path is no longer than the path, and has no other bytes.
        prefix = prefix.join(name).map_err(|_| FileError::NameTooLong)?;
        directory = match handle::open_in(root, prefix.relative(), handle::DIRECTORY, None) {
            Err(FileError::NotFound) => {
                match mkdirat(&directory, name, Mode::from_bits_truncate(mode)) {
                    // Another node was faster.
                    Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
                handle::open_in(root, prefix.relative(), handle::DIRECTORY, None)?
            }
            found => found?,
        };
    }
    Ok(directory)
}

#[cfg(test)]
mod tests;
