//! Keys of files for leases and quotas: paths in the storage that are the same on every node.

use std::{
    ffi::OsStr,
    fs::{self, Metadata},
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::Path,
    time::UNIX_EPOCH,
};

use super::handle::{proc_path, real_path};
use super::{FileError, Jail};
use crate::virtual_path::VirtualPath;

/// A name in the storage, and what it names.
#[derive(Debug)]
pub struct NamedEntry {
    /// As [`Jail::name_key`].
    pub key: Vec<u8>,
    pub inode: u64,
    /// See [`birth`].
    pub born: Option<u64>,
    /// Size in bytes; `None` for a directory.
    pub size: Option<u64>,
}

/// When a file or directory was created, in ns since 1970, if its file system knows that.
pub fn birth(status: &Metadata) -> Option<u64> {
    let age = status.created().ok()?.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(age.as_nanos()).ok()
}

impl Jail {
    /// Returns a key of the file that is the same through every home, folder, symbolic link and node:
    /// its real path below the storage root, without a leading slash.
    ///
    /// # Errors
    /// [`FileError::NotFound`] if the directory of `path` does not exist; `path` itself need not exist.
    pub fn canonical_key(&self, path: &VirtualPath) -> Result<Vec<u8>, FileError> {
        if path.is_root() {
            return self.key_of_handle(&self.home);
        }
        self.upload_target(path)?.key()
    }

    /// Like [`Jail::canonical_key`], but a symbolic link as the last component is not resolved.
    ///
    /// # Errors
    /// The errors of [`Jail::canonical_key`] and those of a change of the name.
    pub fn name_key(&self, path: &VirtualPath) -> Result<Vec<u8>, FileError> {
        let location = self.entry_location(path)?;
        self.key_in(&real_path(&location.directory)?, location.name)
    }

    /// Returns what the name `path` names: a symbolic link as the last component is not resolved.
    ///
    /// # Errors
    /// The errors of [`Jail::name_key`], and [`FileError::NotFound`] if there is nothing at the name.
    pub fn named_entry(&self, path: &VirtualPath) -> Result<NamedEntry, FileError> {
        let location = self.entry_location(path)?;
        let key = self.key_in(&real_path(&location.directory)?, location.name)?;
        let directory = proc_path(&location.directory);
        let place = Path::new(OsStr::from_bytes(directory.to_bytes())).join(OsStr::from_bytes(location.name));
        let status = fs::symlink_metadata(place)?;
        let size = (!status.is_dir()).then_some(status.len());
        Ok(NamedEntry { key, inode: status.ino(), born: birth(&status), size })
    }

    /// Returns a key of the home, or of a directory in it, whose files a quota counts. The key is the
    /// same on every node, even while the directory does not exist. Symbolic links in `directory` are
    /// not resolved.
    ///
    /// # Errors
    /// Any error of the kernel.
    pub fn quota_key(&self, directory: &VirtualPath) -> Result<Vec<u8>, FileError> {
        let mut key = self.key_of_handle(&self.home)?;
        for name in directory.names() {
            if !key.is_empty() {
                key.push(b'/');
            }
            key.extend_from_slice(name);
        }
        Ok(key)
    }

    /// [`Jail::canonical_key`] of the name `name` itself in the directory with the real path
    /// `directory`.
    ///
    /// # Errors
    /// [`FileError::NotFound`] if the directory is no longer in the storage.
    pub(super) fn key_in(&self, directory: &[u8], name: &[u8]) -> Result<Vec<u8>, FileError> {
        let mut key = self.strip_storage(directory)?.to_vec();
        if !key.is_empty() {
            key.push(b'/');
        }
        key.extend_from_slice(name);
        Ok(key)
    }

    /// [`Jail::canonical_key`] of an open file or directory.
    pub(super) fn key_of_handle(&self, handle: &OwnedFd) -> Result<Vec<u8>, FileError> {
        Ok(self.strip_storage(&real_path(handle)?)?.to_vec())
    }

    /// Strips the storage's path and the slash after it from a real path.
    fn strip_storage<'p>(&self, path: &'p [u8]) -> Result<&'p [u8], FileError> {
        let storage = self.storage.strip_suffix(b"/").unwrap_or(&self.storage);
        match path.strip_prefix(storage) {
            Some([]) => Ok(&[]),
            Some([b'/', below @ ..]) => Ok(below),
            // Another program has moved the file out of the storage.
            _ => Err(FileError::NotFound),
        }
    }
}
