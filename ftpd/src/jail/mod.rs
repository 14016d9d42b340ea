//! All file access of a session, confined to the user's home by the kernel.
//!
//! The kernel resolves each path with `openat2` inside the home's directory handle. An operation on a
//! name then acts on the handle of the directory that was found. Every call may block: call it on a
//! worker thread, never on a thread that serves connections.
//!
//! Symbolic links are followed inside the home or inside the shared folder that contains them. If an
//! account has access rules by path, no symbolic link is followed, because a link would give a file a
//! second path: see [`Jail::refuse_links`].
//!
//! New files and directories get [`Modes`]. `main` sets the process's umask to 0.

pub mod checksum;
mod combine;
mod directory;
mod error;
mod files;
mod folders;
mod handle;
mod inode_lock;
mod keys;
pub mod lock;
mod mount;
mod partial;
mod publication;
mod publish;
mod remove_tree;
mod rename_new;
mod self_test;
mod shared;
pub mod sweep;
mod upload;
mod upload_target;
mod usage;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{FileStat, Mode, fstat, mkdirat};

pub use self::combine::CombineRequest;
pub use self::directory::{Entries, TreeWalk, WalkStep};
pub use self::error::FileError;
use self::folders::{RootedPath, SharedFolder};
use self::handle::LinkPolicy;
pub use self::lock::{ChangeLock, LockMode};
pub use self::partial::RivalPolicy;
pub use self::self_test::{StorageFinding, StorageSelfTest, StorageSeverity, is_no_right};
pub use self::shared::SharedDirectories;
pub use self::upload::{Upload, UploadPlacement, WriteMode};
pub use self::usage::Changes;
pub use self::{
    keys::{NamedEntry, birth},
    publication::{FileToPublish, PublicationRecorder},
};
use crate::virtual_path::VirtualPath;

/// Prefix of the names of partial files (the data of unfinished atomic uploads). Listings omit these
/// names, and clients cannot use them.
pub const PARTIAL_PREFIX: &[u8] = b".ftpd-partial-";

/// The directory in the storage's root that holds the journals of events. It has the prefix of partial files,
/// so that nodes of earlier versions hide it, too. All names in it begin with the prefix.
pub const EVENTS_DIRECTORY: &[u8] = b".ftpd-partial-events";

/// Returns true if a component of `path` is a name that the server reserves.
fn is_reserved(path: &VirtualPath) -> bool {
    path.names().any(|name| name.starts_with(PARTIAL_PREFIX))
}

/// Permission bits of the files and directories that a session creates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modes {
    pub file: u32,
    pub directory: u32,
}

/// A user's directory tree: the home and the shared folders in it. It holds one descriptor for each of
/// them; sessions with the same directory share the descriptor ([`Jail::share`]).
#[derive(Debug)]
pub struct Jail {
    home: Arc<OwnedFd>,
    /// Path of the home in the storage.
    home_path: VirtualPath,
    folders: Vec<SharedFolder>,
    /// Device numbers of the home and then of each folder in the order of `folders`. Empty before
    /// [`Jail::share`].
    filesystems: Vec<u64>,
    /// Virtual paths of the shared folders that could not be opened.
    unavailable: Vec<VirtualPath>,
    link_policy: LinkPolicy,
    /// Listings show the target of a symbolic link instead of the link.
    resolves_links: bool,
    locks: LockMode,
    /// [`Self::sync_parents`] has an effect.
    syncs_names: bool,
    /// Real path of the storage root. [`Jail::canonical_key`] strips it.
    storage: Box<[u8]>,
    modes: Modes,
}

/// A regular file, open for reading.
#[derive(Debug)]
pub struct OpenFile {
    pub file: File,
    /// Size in bytes when the file was opened. A later fstat can fail with ESTALE on NFS.
    pub size: u64,
    /// Seconds since 1970.
    pub modified: i64,
}

impl Jail {
    /// Opens `home` inside the directory `storage_root`. Symbolic links in `home` are followed inside
    /// the storage root. If `create_home` is true, missing directories are created.
    ///
    /// # Errors
    /// [`FileError::NotFound`] if the home is missing and `create_home` is false, or any error of the
    /// kernel.
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
            unavailable: Vec::new(),
            link_policy: LinkPolicy::Follow,
            resolves_links: false,
            locks: LockMode::Auto,
            syncs_names: false,
            storage: handle::real_path(&root)?.into(),
            modes,
        })
    }

    /// Makes every path that contains a symbolic link fail.
    pub fn refuse_links(&mut self) {
        self.link_policy = LinkPolicy::Refuse;
    }

    /// Makes listings show the target of each symbolic link whose target is inside the home.
    pub fn resolve_links(&mut self) {
        self.resolves_links = true;
    }

    /// Sets which locks uploads take.
    pub fn set_locks(&mut self, locks: LockMode) {
        self.locks = locks;
    }

    /// Makes [`Self::sync_parents`] write to stable storage.
    pub fn sync_names(&mut self) {
        self.syncs_names = true;
    }

    /// Returns the directory that contains `path` and the name in it, for an operation that changes the
    /// name.
    ///
    /// # Errors
    /// [`FileError::NameNotAllowed`] for `/` and for names that the server reserves,
    /// [`FileError::Fixed`] for a shared folder and for the directories above it.
    fn entry_location<'p>(&self, path: &'p VirtualPath) -> Result<handle::EntryLocation<'p>, FileError> {
        let (parent, name) = path.split().ok_or(FileError::NameNotAllowed)?;
        if name.starts_with(PARTIAL_PREFIX) {
            return Err(FileError::NameNotAllowed);
        }
        if self.is_fixed(path) {
            return Err(FileError::Fixed);
        }
        match self.open_inside(&parent, b"", handle::DIRECTORY) {
            Ok(directory) => Ok(handle::EntryLocation { directory, name }),
            // The directory is synthetic: it only contains shared folders.
            Err(FileError::IsADirectory) => Err(FileError::ReadOnly),
            Err(error) => Err(error),
        }
    }

    /// Opens `path`. Symbolic links are followed according to the link policy of this jail.
    ///
    /// # Errors
    /// [`FileError::IsADirectory`] if `path` is a synthetic directory that only contains shared
    /// folders.
    fn open_path(&self, path: &VirtualPath, flags: OFlag) -> Result<OwnedFd, FileError> {
        self.open_inside(path, b"", flags)
    }

    /// Opens the relative path `below` in the directory `path`, or `path` itself if `below` is empty.
    fn open_inside(&self, path: &VirtualPath, below: &[u8], flags: OFlag) -> Result<OwnedFd, FileError> {
        if is_reserved(path) {
            return Err(FileError::NameNotAllowed);
        }
        if self.is_in_unavailable_folder(path) {
            return Err(FileError::NotFound);
        }
        let RootedPath { root, inside } = self.rooted_path(path);
        let joined: Vec<u8>;
        let relative = match (inside, below) {
            (b"", b"") => b".",
            (b"", below) => below,
            (inside, b"") => inside,
            (inside, below) => {
                joined = [inside, b"/", below].concat();
                &joined
            }
        };
        if below.is_empty() && self.has_folder_below(path) {
            // The synthetic directory hides a file or link of the same name in the home.
            return match handle::open_in(root, relative, flags | OFlag::O_DIRECTORY, self.link_policy) {
                Err(FileError::NotFound | FileError::NotADirectory | FileError::Loop) => {
                    Err(FileError::IsADirectory)
                }
                opened => opened,
            };
        }
        handle::open_in(root, relative, flags, self.link_policy)
    }

    /// [`Jail::open_path`] together with the status of the opened file.
    fn open_with_status(&self, path: &VirtualPath, flags: OFlag) -> Result<(OwnedFd, FileStat), FileError> {
        let handle = self.open_path(path, flags)?;
        let status = fstat(&handle)?;
        Ok((handle, status))
    }
}

fn open_storage(root: &Path) -> Result<OwnedFd, FileError> {
    Ok(open(root, handle::DIRECTORY, Mode::empty())?)
}

/// Opens a directory of the storage that an account names. Creates it if it is missing and `create` is
/// true.
fn open_directory(
    root: &OwnedFd,
    path: &VirtualPath,
    create: bool,
    modes: Modes,
) -> Result<OwnedFd, FileError> {
    if is_reserved(path) {
        return Err(FileError::NameNotAllowed);
    }
    match handle::open_in(root, path.relative(), handle::DIRECTORY, LinkPolicy::Follow) {
        Err(FileError::NotFound) if create => create_all(root, path, modes.directory),
        found => found,
    }
}

/// Creates the missing directories of `home`. Each prefix is resolved from `root` again, so that
/// symbolic links in it lead to the same directories as when the home is opened.
fn create_all(root: &OwnedFd, home: &VirtualPath, mode: u32) -> Result<OwnedFd, FileError> {
    let mut prefix = VirtualPath::root();
    let mut directory = handle::open_in(root, prefix.relative(), handle::DIRECTORY, LinkPolicy::Follow)?;
    for name in home.relative().split(|byte| *byte == b'/') {
        // A prefix of a valid path is a valid path.
        prefix = prefix.join(name).map_err(|_| FileError::NameTooLong)?;
        directory = match handle::open_in(root, prefix.relative(), handle::DIRECTORY, LinkPolicy::Follow) {
            Err(FileError::NotFound) => {
                match mkdirat(&directory, name, Mode::from_bits_truncate(mode)) {
                    // A file in the home is as durable as the name of the home.
                    Ok(()) => files::sync_directory(&directory)?,
                    // Another node has created the directory.
                    Err(nix::errno::Errno::EEXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
                handle::open_in(root, prefix.relative(), handle::DIRECTORY, LinkPolicy::Follow)?
            }
            found => found?,
        };
    }
    Ok(directory)
}

#[cfg(test)]
mod tests;
