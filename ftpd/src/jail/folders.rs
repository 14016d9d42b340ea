//! Folders: directories of the shared storage that a user's tree shows beside the home.
//!
//! A path at or below a folder is resolved inside the folder's own handle, everything else inside the
//! home's. Names that lead to a folder are fixed: no client can change them. Where the home has no
//! directory of such a name, the tree has one that holds nothing but the way to the folder.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::stat::{FileStat, fstat};

use super::handle::identity;
use super::{FileError, Jail, handle, open_directory, open_storage};
use crate::listing::{Entry, Kind};
use crate::virtual_path::VirtualPath;

/// A folder in the tree.
#[derive(Debug)]
pub(super) struct Folder {
    /// Where the tree shows it.
    path: VirtualPath,
    /// Where it is, within the storage.
    target: VirtualPath,
    pub(super) directory: Arc<OwnedFd>,
}

/// Where a path is resolved: the home or a folder, and the way from there.
pub(super) struct Location<'j, 'p> {
    pub root: &'j OwnedFd,
    /// Relative; empty for the root itself.
    pub inside: &'p [u8],
}

impl Jail {
    /// Shows the directory `target` of the storage at `path`. It is opened as a home is, and
    /// covers what the home has there; if it cannot be opened nothing is there or can be made there: the
    /// folder would cover it later.
    ///
    /// # Errors
    /// [`FileError::AlreadyExists`] for `/` and where a folder is already; as the kernel says.
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
            Ok(directory) => self.folders.push(Folder { path, target, directory: directory.into() }),
            Err(error) => {
                self.absent.push(path);
                return Err(error);
            }
        }
        Ok(())
    }

    pub(super) fn locate<'p>(&self, path: &'p VirtualPath) -> Location<'_, 'p> {
        match self.folder_of(path) {
            // Found by being below it.
            Some(folder) => {
                Location { root: &folder.directory, inside: path.below(&folder.path).unwrap_or_default() }
            }
            None => {
                Location { root: &self.home, inside: path.below(&VirtualPath::root()).unwrap_or_default() }
            }
        }
    }

    /// The folder that holds `path`: the deepest, where one is in another.
    fn folder_of(&self, path: &VirtualPath) -> Option<&Folder> {
        let above = self.folders.iter().filter(|folder| path.below(&folder.path).is_some());
        above.max_by_key(|folder| folder.path.as_bytes().len())
    }

    /// Whether `path` is where a folder should be, or would be in it.
    pub(super) fn is_absent(&self, path: &VirtualPath) -> bool {
        let there = self.folder_of(path).map_or(0, |folder| folder.path.as_bytes().len());
        let mut above = self.absent.iter().filter(|folder| path.below(folder).is_some());
        above.any(|folder| folder.as_bytes().len() > there)
    }

    /// Whether `path` is in the home itself, and in no folder.
    pub fn is_in_home(&self, path: &VirtualPath) -> bool {
        self.folder_of(path).is_none()
    }

    /// The device number (`st_dev`) of the file system that the home, or the folder, of `path` is on; 0
    /// before [`Jail::share`]. Asks nothing of the storage.
    pub fn filesystem_of(&self, path: &VirtualPath) -> u64 {
        let folder = self.folder_of(path);
        let position = folder.and_then(|folder| self.folders.iter().position(|f| std::ptr::eq(f, folder)));
        self.filesystems.get(position.map_or(0, |position| position + 1)).copied().unwrap_or_default()
    }

    /// The device numbers of all file systems that the tree shows.
    pub fn filesystems(&self) -> &[u64] {
        &self.filesystems
    }

    /// Whether both paths are in the same folder, or both in the home.
    pub(super) fn are_together(&self, a: &VirtualPath, b: &VirtualPath) -> bool {
        let folder = |path| self.folder_of(path).map(|folder| &folder.path);
        folder(a) == folder(b)
    }

    /// Whether a folder is somewhere below `path`.
    pub(super) fn leads_to_folder(&self, path: &VirtualPath) -> bool {
        self.folders.iter().any(|folder| folder.path != *path && folder.path.below(path).is_some())
    }

    /// Whether no client may change what the name stands for: a folder, or a directory on the way
    /// to one.
    pub fn is_fixed(&self, path: &VirtualPath) -> bool {
        self.folders.iter().any(|folder| folder.path.below(path).is_some()) || self.is_absent(path)
    }

    /// Whether it is the status of the home, or of a folder.
    pub(super) fn is_top(&self, status: &FileStat) -> Result<bool, Errno> {
        for top in std::iter::once(&self.home).chain(self.folders.iter().map(|folder| &folder.directory)) {
            if identity(&fstat(top)?) == identity(status) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether there is nothing at `path` but the way to a folder: a directory that takes no
    /// files. Asks the storage.
    pub fn is_only_a_way(&self, path: &VirtualPath) -> bool {
        self.leads_to_folder(path)
            && matches!(self.open_path(path, handle::STATUS), Err(FileError::IsADirectory))
    }

    /// Such a directory. Its numbers are of no file system, so that none has the same.
    pub(super) fn way(&self, path: &VirtualPath) -> Result<Entry, FileError> {
        let first = self.folders.iter().position(|folder| folder.path.below(path).is_some());
        let first = first.ok_or(FileError::NotFound)?;
        let status = fstat(&self.folders[first].directory)?;
        let depth = path.names().count();
        Ok(Entry {
            name: path.split().map_or(b"/".to_vec(), |(_, name)| name.to_vec()),
            kind: Kind::Directory,
            size: 0,
            modified: status.st_mtime,
            mode: 0o555,
            links: 2,
            device: 0,
            inode: ((first as u64) << 16) + depth as u64,
            link_target: None,
        })
    }

    /// The names in the directory `path` that are folders or lead to some, each once.
    pub(super) fn folders_in(&self, path: &VirtualPath) -> Vec<Vec<u8>> {
        let below = self.folders.iter().filter_map(|folder| folder.path.below(path));
        let first = below.filter_map(|below| below.split(|byte| *byte == b'/').next());
        let mut names: Vec<_> = first.filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Where `path` is in the storage, as the account names its home and folders: for logs.
    pub fn path_in_storage(&self, path: &VirtualPath) -> Vec<u8> {
        let (top, below) = match self.folder_of(path) {
            Some(folder) => (&folder.target, path.below(&folder.path)),
            None => (&self.home_path, path.below(&VirtualPath::root())),
        };
        let top = if top.is_root() { &[][..] } else { top.as_bytes() };
        [top, b"/", below.unwrap_or_default()].concat()
    }
}
