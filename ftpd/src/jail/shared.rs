//! Sharing of directory descriptors: sessions with the same home or folder use one descriptor.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, Weak};

use common::sync;
use nix::sys::stat::{FileStat, fstat};

use super::handle::identity;
use super::inode_lock::FileIdentity;
use super::{FileError, Jail};

/// Directories that sessions hold open.
#[derive(Debug, Default)]
pub struct SharedDirectories(Mutex<SharedDirectoriesInner>);

#[derive(Debug, Default)]
struct SharedDirectoriesInner {
    /// Handles by device and inode number.
    directories: HashMap<FileIdentity, Weak<OwnedFd>>,
    /// Number of entries above which entries without a session are removed.
    sweep_at: usize,
}

impl SharedDirectories {
    /// Returns the shared handle of the directory `opened`, or shares `opened` if the directory has no
    /// shared handle. Blocks.
    ///
    /// # Errors
    /// Any error of the kernel.
    fn share(&self, opened: Arc<OwnedFd>) -> Result<Arc<OwnedFd>, FileError> {
        let status = fstat(&opened)?;
        let key = identity(&status);
        let held = self.inner().directories.get(&key).and_then(Weak::upgrade);
        if let Some(held) = held
            && fstat(&held).is_ok_and(|other| is_same(&status, &other))
        {
            return Ok(held);
        }
        let mut known = self.inner();
        known.directories.insert(key, Arc::downgrade(&opened));
        if known.directories.len() > known.sweep_at {
            known.directories.retain(|_, directory| directory.strong_count() > 0);
            known.sweep_at = 2 * known.directories.len() + 64;
        }
        Ok(opened)
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, SharedDirectoriesInner> {
        sync::lock(&self.0)
    }
}

/// Compares device, inode and change time. NFS may give the inode number of a removed directory, whose
/// handle is stale, to a new directory. If the directory changes between the two calls of fstat, the
/// handle is just not shared.
fn is_same(a: &FileStat, b: &FileStat) -> bool {
    let change = |status: &FileStat| (status.st_ctime, status.st_ctime_nsec);
    (a.st_dev, a.st_ino, change(a)) == (b.st_dev, b.st_ino, change(b))
}

impl Jail {
    /// Replaces this jail's handles by shared handles and records the file systems of the home and the
    /// folders. Blocks.
    ///
    /// # Errors
    /// Any error of the kernel.
    pub fn share(&mut self, directories: &SharedDirectories) -> Result<(), FileError> {
        let folders = self.folders.iter_mut().map(|folder| &mut folder.directory);
        let mut filesystems = Vec::with_capacity(1);
        for directory in std::iter::once(&mut self.home).chain(folders) {
            *directory = directories.share(Arc::clone(directory))?;
            filesystems.push(fstat(&*directory)?.st_dev);
        }
        self.filesystems = filesystems;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    #[test]
    fn sessions_share_one_handle_and_a_new_directory_of_the_same_name_gets_its_own() {
        let site = tempfile::tempdir().unwrap();
        let path = site.path().join("home");
        let open = || Arc::new(OwnedFd::from(File::open(&path).unwrap()));
        fs::create_dir(&path).unwrap();
        let shared = SharedDirectories::default();
        let first = shared.share(open()).unwrap();
        assert!(Arc::ptr_eq(&first, &shared.share(open()).unwrap()));
        fs::rename(&path, site.path().join("old")).unwrap();
        fs::create_dir(&path).unwrap();
        let other = shared.share(open()).unwrap();
        assert!(!Arc::ptr_eq(&first, &other));
        drop((first, other));
        let again = shared.share(open()).unwrap();
        assert_eq!(Arc::strong_count(&again), 1);
    }

    #[test]
    fn directories_without_a_session_are_removed_from_the_table() {
        let site = tempfile::tempdir().unwrap();
        let shared = SharedDirectories::default();
        for number in 0..1000 {
            let path = site.path().join(number.to_string());
            fs::create_dir(&path).unwrap();
            shared.share(Arc::new(File::open(&path).unwrap().into())).unwrap();
        }
        assert!(shared.inner().directories.len() <= 65);
    }
}
