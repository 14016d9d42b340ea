//! Shared folders: directories of the storage that a user's tree shows beside the home.
//!
//! A path at or below a folder is resolved inside the folder's own handle, every other path inside the
//! home's handle. Clients cannot change a folder's own name or the names of the directories above it.
//! If the home has no directory at such a name, the tree shows a synthetic directory there that only
//! contains the folder.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::stat::{FileStat, fstat};

use super::handle::identity;
use super::{FileError, Jail, handle, open_directory, open_storage};
use crate::listing::{Entry, EntryKind};
use crate::virtual_path::VirtualPath;

/// A shared folder in the tree.
#[derive(Debug)]
pub(super) struct SharedFolder {
    /// Virtual path of the folder.
    path: VirtualPath,
    /// Path of the folder's directory in the storage.
    target: VirtualPath,
    pub(super) directory: Arc<OwnedFd>,
}

/// A path split into the handle that it is resolved in (of the home or of a folder) and the rest of the
/// path.
pub(super) struct RootedPath<'j, 'p> {
    pub root: &'j OwnedFd,
    /// Relative path; empty for the root itself.
    pub inside: &'p [u8],
}

impl Jail {
    /// Shows the directory `target` of the storage at the virtual path `path`. `target` is opened like
    /// a home and hides anything that the home has at `path`. If `target` cannot be opened, `path` does
    /// not exist and cannot be created: a later login with the folder would hide the created file.
    ///
    /// # Errors
    /// [`FileError::AlreadyExists`] for `/` and for the path of another folder, or any error of the
    /// kernel.
    pub fn add_folder(
        &mut self,
        storage_root: &Path,
        path: VirtualPath,
        target: VirtualPath,
        create: bool,
    ) -> Result<(), FileError> {
        if path.is_root() || self.folders.iter().any(|folder| folder.path == path) {
            return Err(FileError::AlreadyExists);
        }
        let opened =
            open_storage(storage_root).and_then(|root| open_directory(&root, &target, create, self.modes));
        match opened {
            Ok(directory) => self.folders.push(SharedFolder { path, target, directory: directory.into() }),
            Err(error) => {
                self.unavailable.push(path);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Finds the handle that `path` is resolved in.
    pub(super) fn rooted_path<'p>(&self, path: &'p VirtualPath) -> RootedPath<'_, 'p> {
        match self.folder_containing(path) {
            // `folder_containing` only returns folders that `path` is at or below.
            Some(folder) => {
                RootedPath { root: &folder.directory, inside: path.below(&folder.path).unwrap_or_default() }
            }
            None => {
                RootedPath { root: &self.home, inside: path.below(&VirtualPath::root()).unwrap_or_default() }
            }
        }
    }

    /// The folder that contains `path`: the deepest one if folders are nested.
    fn folder_containing(&self, path: &VirtualPath) -> Option<&SharedFolder> {
        let above = self.folders.iter().filter(|folder| path.below(&folder.path).is_some());
        above.max_by_key(|folder| folder.path.as_bytes().len())
    }

    /// Returns true if the deepest folder that contains `path` could not be opened.
    pub(super) fn is_in_unavailable_folder(&self, path: &VirtualPath) -> bool {
        let available = self.folder_containing(path).map_or(0, |folder| folder.path.as_bytes().len());
        let mut above = self.unavailable.iter().filter(|folder| path.below(folder).is_some());
        // The deepest folder contains the path.
        above.any(|folder| folder.as_bytes().len() > available)
    }

    /// Returns true if `path` is in the home and not in a shared folder.
    pub fn is_in_home(&self, path: &VirtualPath) -> bool {
        self.folder_containing(path).is_none()
    }

    /// Device number (`st_dev`) of the file system of the home or folder that contains `path`; 0 before
    /// [`Jail::share`]. Does not access the storage.
    pub fn filesystem_of(&self, path: &VirtualPath) -> u64 {
        debug_assert!(
            self.filesystems.is_empty() || self.filesystems.len() == 1 + self.folders.len(),
            "one device number for the home and each folder"
        );
        let folder = self.folder_containing(path);
        let position = folder.and_then(|folder| self.folders.iter().position(|f| std::ptr::eq(f, folder)));
        self.filesystems.get(position.map_or(0, |position| position + 1)).copied().unwrap_or_default()
    }

    /// Device numbers of the home and of all shared folders.
    pub fn filesystems(&self) -> &[u64] {
        &self.filesystems
    }

    /// Returns true if both paths are in the same folder or both are in the home.
    pub(super) fn have_same_root(&self, a: &VirtualPath, b: &VirtualPath) -> bool {
        let folder = |path| self.folder_containing(path).map(|folder| &folder.path);
        folder(a) == folder(b)
    }

    /// Returns true if a folder is below `path`.
    pub(super) fn has_folder_below(&self, path: &VirtualPath) -> bool {
        self.folders.iter().any(|folder| folder.path != *path && folder.path.below(path).is_some())
    }

    /// Returns true if clients must not change the name: it is a folder or a directory above a folder.
    pub fn is_fixed(&self, path: &VirtualPath) -> bool {
        self.folders.iter().any(|folder| folder.path.below(path).is_some())
            || self.is_in_unavailable_folder(path)
    }

    /// Returns true if `status` is the status of the home or of a folder.
    pub(super) fn is_home_or_folder(&self, status: &FileStat) -> Result<bool, Errno> {
        for top in std::iter::once(&self.home).chain(self.folders.iter().map(|folder| &folder.directory)) {
            if identity(&fstat(top)?) == identity(status) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns true if `path` is a synthetic directory, which only contains folders and accepts no
    /// files. Accesses the storage.
    pub fn is_synthetic_directory(&self, path: &VirtualPath) -> bool {
        self.has_folder_below(path)
            && matches!(self.open_path(path, handle::STATUS), Err(FileError::IsADirectory))
    }

    /// The entry of a synthetic directory. Device 0 keeps its identity distinct from every real file.
    pub(super) fn synthetic_entry(&self, path: &VirtualPath) -> Result<Entry, FileError> {
        let first = self.folders.iter().position(|folder| folder.path.below(path).is_some());
        let first = first.ok_or(FileError::NotFound)?;
        let status = fstat(&self.folders[first].directory)?;
        let depth = path.names().count();
        Ok(Entry {
            name: path.split().map_or(b"/".to_vec(), |(_, name)| name.to_vec()),
            kind: EntryKind::Directory,
            size: 0,
            modified: status.st_mtime,
            mode: 0o555,
            links: 2,
            device: 0,
            inode: ((first as u64) << 16) + depth as u64,
            link_target: None,
        })
    }

    /// The names in the directory `path` that are folders or contain folders below them, without
    /// duplicates.
    pub(super) fn folders_in(&self, path: &VirtualPath) -> Vec<Vec<u8>> {
        let below = self.folders.iter().filter_map(|folder| folder.path.below(path));
        let first = below.filter_map(|below| below.split(|byte| *byte == b'/').next());
        let mut names: Vec<_> = first.filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Path in the storage, as the account names its home and folders. For logs.
    pub fn path_in_storage(&self, path: &VirtualPath) -> Vec<u8> {
        let (top, below) = match self.folder_containing(path) {
            Some(folder) => (&folder.target, path.below(&folder.path)),
            None => (&self.home_path, path.below(&VirtualPath::root())),
        };
        let top = if top.is_root() { &[][..] } else { top.as_bytes() };
        [top, b"/", below.unwrap_or_default()].concat()
    }
}
