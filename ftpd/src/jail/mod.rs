//! All file access of a session, confined to the user's home by the kernel.
//!
//! Every path is resolved by `openat2` inside the home's directory handle; operations on names
//! then act on the handle of the directory so found. Everything here blocks: call it from a
//! thread that may wait for storage, never from one that serves connections.
//!
//! Symbolic links are followed inside the home, or inside the folder they are in. Where permissions
//! depend on the path they would be second names of files, so there none is followed at all: see
//! [`Jail::refuse_links`].
//!
//! New files and directories get [`Modes`] less the process's umask, which `main` sets to nothing.

pub mod checksum;
mod combine;
mod directory;
mod error;
mod files;
mod folders;
mod handle;
pub mod lock;
mod partial;
mod publish;
mod remove_tree;
mod same_file;
mod shared;
pub mod sweep;
mod upload;
mod usage;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{FileStat, Mode, fstat, mkdirat};

pub use self::combine::Joining;
pub use self::directory::{Entries, Walk, Walked};
pub use self::error::FileError;
use self::folders::{Folder, Location};
use self::handle::Links;
pub use self::lock::{ChangeLock, Locks};
pub use self::partial::Rivals;
pub use self::shared::SharedDirectories;
pub use self::upload::{Placement, Upload, WriteMode};
pub use self::usage::Changes;
use crate::virtual_path::VirtualPath;

/// Data of unfinished atomic uploads lies under names with this prefix. Listings hide them, and
/// clients may not use them.
pub const PARTIAL_PREFIX: &[u8] = b".ftpd-partial-";

/// Permission bits of what a session creates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modes {
    pub file: u32,
    pub directory: u32,
}

/// A user's tree: the home, and the folders that it shows. Cheap: one descriptor each, or none
/// where another session has it ([`Jail::share`]).
#[derive(Debug)]
pub struct Jail {
    home: Arc<OwnedFd>,
    /// Where the home is, within the storage.
    home_path: VirtualPath,
    folders: Vec<Folder>,
    /// The device numbers of the home and of each folder, in the order of `folders`. Empty before
    /// [`Jail::share`].
    filesystems: Vec<u64>,
    /// Where folders should be that could not be opened.
    absent: Vec<VirtualPath>,
    links: Links,
    /// Listings show what a symbolic link leads to, instead of the link.
    resolves_links: bool,
    locks: Locks,
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
        let root = open_storage(storage_root)?;
        Ok(Self {
            home: open_directory(&root, home, create_home, modes)?.into(),
            home_path: home.clone(),
            folders: Vec::new(),
            filesystems: Vec::new(),
            absent: Vec::new(),
            links: Links::Followed,
            resolves_links: false,
            locks: Locks::Auto,
            storage: handle::real_path(&root)?.into(),
            modes,
        })
    }

    /// From now on a path with a symbolic link in it leads nowhere.
    pub fn refuse_links(&mut self) {
        self.links = Links::Refused;
    }

    /// From now on listings show a symbolic link that leads somewhere in the home as what it leads to.
    pub fn resolve_links(&mut self) {
        self.resolves_links = true;
    }

    /// Which locks uploads take from now on.
    pub fn set_locks(&mut self, locks: Locks) {
        self.locks = locks;
    }

    /// The handle of the directory that holds `path`, and the name in it, to change it.
    ///
    /// # Errors
    /// [`FileError::NameNotAllowed`] for `/` and for the names the server keeps for itself,
    /// [`FileError::Fixed`] for what leads to a folder.
    fn place<'p>(&self, path: &'p VirtualPath) -> Result<handle::Place<'p>, FileError> {
        let (parent, name) = path.split().ok_or(FileError::NameNotAllowed)?;
        if name.starts_with(PARTIAL_PREFIX) {
            return Err(FileError::NameNotAllowed);
        }
        if self.is_fixed(path) {
            return Err(FileError::Fixed);
        }
        match self.open_inside(&parent, b"", handle::DIRECTORY) {
            Ok(directory) => Ok(handle::Place { directory, name }),
            // Only the way to a folder.
            Err(FileError::IsADirectory) => Err(FileError::ReadOnly),
            Err(error) => Err(error),
        }
    }

    /// Opens what `path` names, following symbolic links as far as this jail does.
    ///
    /// # Errors
    /// [`FileError::IsADirectory`] if there is nothing but the way to a folder.
    fn open_path(&self, path: &VirtualPath, flags: OFlag) -> Result<OwnedFd, FileError> {
        if path.split().is_some_and(|(_, name)| name.starts_with(PARTIAL_PREFIX)) {
            return Err(FileError::NameNotAllowed);
        }
        self.open_inside(path, b"", flags)
    }

    /// Opens `below`, a relative path or nothing, in the directory `path`.
    fn open_inside(&self, path: &VirtualPath, below: &[u8], flags: OFlag) -> Result<OwnedFd, FileError> {
        if self.is_absent(path) {
            return Err(FileError::NotFound);
        }
        let Location { root, inside } = self.locate(path);
        let joined: Vec<u8>;
        let way = match (inside, below) {
            (b"", b"") => b".",
            (b"", below) => below,
            (inside, b"") => inside,
            (inside, below) => {
                joined = [inside, b"/", below].concat();
                &joined
            }
        };
        if below.is_empty() && self.leads_to_folder(path) {
            // Whatever else the home has under this name is covered.
            return match handle::open_in(root, way, flags | OFlag::O_DIRECTORY, self.links) {
                Err(FileError::NotFound | FileError::NotADirectory | FileError::Loop) => {
                    Err(FileError::IsADirectory)
                }
                opened => opened,
            };
        }
        handle::open_in(root, way, flags, self.links)
    }

    /// [`Jail::open_path`] with the status of what was opened.
    fn open_with_status(&self, path: &VirtualPath, flags: OFlag) -> Result<(OwnedFd, FileStat), FileError> {
        let handle = self.open_path(path, flags)?;
        let status = fstat(&handle)?;
        Ok((handle, status))
    }
}

fn open_storage(root: &Path) -> Result<OwnedFd, FileError> {
    Ok(open(root, handle::DIRECTORY, Mode::empty())?)
}

/// Opens a directory of the storage that an account names, and makes it if `create` says so.
fn open_directory(
    root: &OwnedFd,
    path: &VirtualPath,
    create: bool,
    modes: Modes,
) -> Result<OwnedFd, FileError> {
    match handle::open_in(root, path.relative(), handle::DIRECTORY, Links::Followed) {
        Err(FileError::NotFound) if create => create_all(root, path, modes.directory),
        found => found,
    }
}

/// Makes the directories of `home` that are missing; every prefix is resolved from `root` anew, so
/// that links in it mean the same as when it is opened.
fn create_all(root: &OwnedFd, home: &VirtualPath, mode: u32) -> Result<OwnedFd, FileError> {
    let mut prefix = VirtualPath::root();
    let mut directory = handle::open_in(root, prefix.relative(), handle::DIRECTORY, Links::Followed)?;
    for name in home.relative().split(|byte| *byte == b'/') {
        // A prefix of a path is no longer than the path, and has no other bytes.
        prefix = prefix.join(name).map_err(|_| FileError::NameTooLong)?;
        directory = match handle::open_in(root, prefix.relative(), handle::DIRECTORY, Links::Followed) {
            Err(FileError::NotFound) => {
                match mkdirat(&directory, name, Mode::from_bits_truncate(mode)) {
                    // Another node was faster.
                    Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
                handle::open_in(root, prefix.relative(), handle::DIRECTORY, Links::Followed)?
            }
            found => found?,
        };
    }
    Ok(directory)
}

#[cfg(test)]
mod tests;
