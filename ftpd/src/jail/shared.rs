//! One descriptor of a directory for all sessions whose home or folder it is: an idle session of a
//! user who has others costs none of its own.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use nix::sys::stat::{FileStat, fstat};

use super::{FileError, Jail};

/// Directories that sessions hold open, by device and inode.
#[derive(Debug, Default)]
pub struct SharedDirectories(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    directories: HashMap<(u64, u64), Weak<OwnedFd>>,
    /// Beyond so many, those that nobody holds any more are forgotten.
    sweep_at: usize,
}

impl SharedDirectories {
    /// A handle of the directory that `opened` is, the same for all who ask. Blocks.
    ///
    /// # Errors
    /// As the kernel says.
    fn share(&self, opened: Arc<OwnedFd>) -> Result<Arc<OwnedFd>, FileError> {
        let status = fstat(&opened)?;
        let key = (status.st_dev, status.st_ino);
        let held = self.known().directories.get(&key).and_then(Weak::upgrade);
        if let Some(held) = held
            && fstat(&held).is_ok_and(|other| is_same(&status, &other))
        {
            return Ok(held);
        }
        let mut known = self.known();
        known.directories.insert(key, Arc::downgrade(&opened));
        if known.directories.len() > known.sweep_at {
            known.directories.retain(|_, directory| directory.strong_count() > 0);
            known.sweep_at = 2 * known.directories.len() + 64;
        }
        Ok(opened)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        // Nothing panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Also by the time of their last change: NFS gives the number of a removed directory, whose handle is
/// stale, to a new one. Should it change between two looks, the handle is just not shared.
fn is_same(a: &FileStat, b: &FileStat) -> bool {
    let change = |status: &FileStat| (status.st_ctime, status.st_ctime_nsec);
    (a.st_dev, a.st_ino, change(a)) == (b.st_dev, b.st_ino, change(b))
}

impl Jail {
    /// Gives up handles of its own where other sessions have the same directory open, and notes which file
    /// systems the home and the folders are on. Blocks.
    ///
    /// # Errors
    /// As the kernel says.
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
    fn a_directory_is_held_once_and_a_new_one_of_its_name_is_another() {
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
    fn directories_that_nobody_holds_are_forgotten() {
        let site = tempfile::tempdir().unwrap();
        let shared = SharedDirectories::default();
        for number in 0..1000 {
            let path = site.path().join(number.to_string());
            fs::create_dir(&path).unwrap();
            shared.share(Arc::new(File::open(&path).unwrap().into())).unwrap();
        }
        assert!(shared.known().directories.len() <= 65);
    }
}
