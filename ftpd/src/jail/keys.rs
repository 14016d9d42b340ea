//! Keys of files for leases and quotas: paths in the storage that are the same on every node.

use std::os::fd::OwnedFd;

use super::handle::real_path;
use super::{FileError, Jail};
use crate::virtual_path::VirtualPath;

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
