//! File locks: while a file is written, its writer holds an open file description lock on it.
//!
//! The lock is exclusive and covers the whole file (`F_OFD_SETLK`, fcntl(2)). The kernel grants it to
//! one open file description at a time, whatever name the file was opened under. It releases the lock
//! when the descriptor is closed or the process ends. If the storage passes locks to its server (NFSv4,
//! CephFS, …), the server excludes the writers of all other nodes as well.
//!
//! The mount options tell if the storage passes locks on: see [`LockMode::check_cross_nodes`].

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::str::FromStr;
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use common::sync;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::{Mode, fstat};

use super::handle::{self, identity, kind};
use super::mount::MountInfo;
use super::{FileError, Jail};
use crate::listing::EntryKind;
use crate::virtual_path::VirtualPath;

/// Lifetime of a cached result of [`file_crosses_nodes`]. It is bounded because the kernel may give the
/// device number of an unmounted file system to another mount.
const CACHE_LIFETIME: Duration = Duration::from_secs(60);

/// Result of an attempt to take the writer's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriterLock {
    /// The lock is held until the open file is closed.
    Held {
        /// The lock excludes writers on all nodes. If false, it excludes writers on this node only.
        crosses_nodes: bool,
    },
    /// Another open file of this process, another process or another node holds the lock.
    HeldByAnother,
    /// The storage does not support locks.
    NotSupported,
}

impl WriterLock {
    /// Returns true if the lock alone proves that no other node writes the file.
    pub fn fences(self) -> bool {
        self == Self::Held { crosses_nodes: true }
    }
}

/// Which file locks are taken, and if they exclude other nodes (setting `storage_locks`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LockMode {
    /// Locks are taken. The mount options tell if they exclude other nodes.
    #[default]
    Auto,
    /// Locks are taken. The operator asserts that they exclude other nodes.
    Cluster,
    /// No locks are taken. Only write leases in the registry exclude other writers.
    Off,
}

/// The text is not a [`LockMode`].
#[derive(Debug, thiserror::Error)]
#[error("must be 'auto', 'cluster' or 'off'")]
pub struct InvalidLockMode;

impl FromStr for LockMode {
    type Err = InvalidLockMode;

    fn from_str(text: &str) -> Result<Self, InvalidLockMode> {
        match text {
            "auto" => Ok(Self::Auto),
            "cluster" => Ok(Self::Cluster),
            "off" => Ok(Self::Off),
            _ => Err(InvalidLockMode),
        }
    }
}

/// Kind of lock to take.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LockKind {
    /// Requires a file that is open for writing.
    Write,
    /// Requires a file that is open for reading. Excludes all writers as well.
    Read,
}

impl LockMode {
    /// Takes the writer's lock on the whole `file`, which must be open for writing. Does not wait.
    ///
    /// # Errors
    /// Any error of the kernel. Storage without locks is not an error but [`WriterLock::NotSupported`].
    pub fn take(self, file: &File) -> Result<WriterLock, FileError> {
        self.lock(file, LockKind::Write)
    }

    /// Checks that a lock on a file in the directory `root` excludes writers on other nodes. Returns
    /// why it does. Blocks.
    ///
    /// # Errors
    /// A text that says why it does not, and which setting or mount option to change.
    pub fn check_cross_nodes(self, root: &Path) -> Result<String, String> {
        match self {
            Self::Off => Err("storage_locks is \"off\"".to_owned()),
            Self::Cluster => Ok("storage_locks is \"cluster\"".to_owned()),
            Self::Auto => {
                let mount = open(root, handle::DIRECTORY, Mode::empty())
                    .map_err(std::io::Error::from)
                    .and_then(|handle| MountInfo::of(&handle))
                    .map_err(|error| format!("the mount of the storage cannot be determined: {error}"))?;
                mount.check_cross_nodes().map(|()| format!("{} passes locks to all nodes", mount.kind))
            }
        }
    }

    /// Locks a regular file that is open with `O_PATH`, for a change of its name or attributes. Returns
    /// `None` if the file can be opened neither for writing nor for reading, or if locks are off or not
    /// supported.
    ///
    /// # Errors
    /// [`FileError::BeingWritten`], or any error of the kernel.
    pub(super) fn hold(self, handle: &OwnedFd) -> Result<Option<ChangeLock>, FileError> {
        if self == Self::Off {
            return Ok(None);
        }
        for (flags, kind) in [(handle::WRITE, LockKind::Write), (handle::READ, LockKind::Read)] {
            let file = match open(handle::proc_path(handle).as_c_str(), flags, Mode::empty()) {
                Ok(file) => file,
                // The node may not write the file. A reader's lock excludes writers as well.
                Err(Errno::EACCES | Errno::EPERM | Errno::EROFS | Errno::ETXTBSY) => continue,
                // Another node has removed the file.
                Err(Errno::ENOENT | Errno::ESTALE) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            };
            return match self.lock(&file, kind)? {
                WriterLock::Held { .. } => Ok(Some(ChangeLock { _file: file })),
                WriterLock::HeldByAnother => Err(FileError::BeingWritten),
                WriterLock::NotSupported => Ok(None),
            };
        }
        Ok(None)
    }

    fn lock(self, file: &(impl AsFd + AsRawFd), kind: LockKind) -> Result<WriterLock, FileError> {
        match self {
            Self::Off => Ok(WriterLock::NotSupported),
            Self::Auto | Self::Cluster => match lock(file, kind)? {
                WriterLock::Held { .. } => {
                    Ok(WriterLock::Held { crosses_nodes: self == Self::Cluster || file_crosses_nodes(file)? })
                }
                other => Ok(other),
            },
        }
    }
}

/// Takes the lock. The caller sets `crosses_nodes` of the result.
fn lock(file: &impl AsFd, kind: LockKind) -> Result<WriterLock, FileError> {
    let kind = match kind {
        LockKind::Write => libc::F_WRLCK,
        LockKind::Read => libc::F_RDLCK,
    };
    let whole = libc::flock {
        // These constants are 0, 1 and 2, so they fit; `flock` has fields of type `short`.
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    loop {
        return match fcntl(file, FcntlArg::F_OFD_SETLK(&whole)) {
            Ok(_) => Ok(WriterLock::Held { crosses_nodes: false }),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(WriterLock::HeldByAnother),
            // An NFS client also returns ENOLCK if it cannot reach the lock service.
            Err(Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => {
                Ok(WriterLock::NotSupported)
            }
            Err(Errno::EINTR) => continue,
            Err(errno) => Err(errno.into()),
        };
    }
}

/// Excludes all writers of a file while its name or attributes are changed. Dropping it releases the
/// lock. Returned by [`Jail::lock_for_change`].
#[derive(Debug)]
#[must_use = "the file is locked only as long as this lives"]
pub struct ChangeLock {
    _file: OwnedFd,
}

impl Jail {
    /// Locks the regular file `path` for a change of its name (RNTO, DELE, the sources of COMB). Until
    /// the [`ChangeLock`] is dropped, no session on this node can begin to write the file, and no
    /// session on any node if locks cross nodes. A symbolic link as the last component is not followed,
    /// because the change affects the link itself.
    ///
    /// Returns `None` if `path` is not a regular file, if the node may neither read nor write it, or if
    /// the storage has no locks. Does not open FIFOs, sockets or devices.
    ///
    /// # Errors
    /// [`FileError::BeingWritten`] while another session writes the file, or any error of the kernel.
    pub fn lock_for_change(&self, path: &VirtualPath) -> Result<Option<ChangeLock>, FileError> {
        self.lock_opened_for_change(path, handle::STATUS | OFlag::O_NOFOLLOW)
    }

    /// Like [`Jail::lock_for_change`], but for a change of the file's content or attributes (MFMT): a
    /// symbolic link as the last component is followed.
    ///
    /// # Errors
    /// As [`Jail::lock_for_change`].
    pub fn lock_resolved_for_change(&self, path: &VirtualPath) -> Result<Option<ChangeLock>, FileError> {
        self.lock_opened_for_change(path, handle::STATUS)
    }

    /// [`Jail::lock_for_change`] for several paths. A file with two of the names is locked once.
    ///
    /// # Errors
    /// As [`Jail::lock_for_change`].
    pub fn lock_all_for_change(&self, paths: &[&VirtualPath]) -> Result<Vec<ChangeLock>, FileError> {
        let mut known = HashSet::new();
        let mut held = Vec::new();
        for path in paths {
            if let Some(handle) = self.open_to_lock(path, handle::STATUS | OFlag::O_NOFOLLOW)?
                && known.insert(identity(&fstat(&handle)?))
            {
                held.extend(self.locks.hold(&handle)?);
            }
        }
        Ok(held)
    }

    /// Returns true if locks on files in the directory of `path` exclude writers on other nodes.
    ///
    /// # Errors
    /// Any error of the kernel.
    pub fn locks_cross_nodes(&self, path: &VirtualPath) -> Result<bool, FileError> {
        match self.locks {
            LockMode::Off => Ok(false),
            LockMode::Cluster => Ok(true),
            LockMode::Auto => file_crosses_nodes(&self.entry_location(path)?.directory),
        }
    }

    fn lock_opened_for_change(
        &self,
        path: &VirtualPath,
        flags: OFlag,
    ) -> Result<Option<ChangeLock>, FileError> {
        match self.open_to_lock(path, flags)? {
            Some(handle) => self.locks.hold(&handle),
            None => Ok(None),
        }
    }

    /// Opens the path if it is a regular file.
    fn open_to_lock(&self, path: &VirtualPath, flags: OFlag) -> Result<Option<OwnedFd>, FileError> {
        match self.open_with_status(path, flags) {
            Ok((handle, status)) => Ok((kind(&status) == EntryKind::File).then_some(handle)),
            // The operation that follows reports what is wrong with the name.
            Err(FileError::Io(error)) => Err(FileError::Io(error)),
            Err(FileError::TooManyOpenFiles(error)) => Err(FileError::TooManyOpenFiles(error)),
            Err(_) => Ok(None),
        }
    }
}

/// Returns true if a lock on the open file excludes other nodes. The result is cached by file system.
fn file_crosses_nodes(file: &(impl AsFd + AsRawFd)) -> Result<bool, FileError> {
    static CACHE: LazyLock<Mutex<HashMap<libc::dev_t, (Instant, bool)>>> = LazyLock::new(Mutex::default);
    let device = fstat(file)?.st_dev;
    let cache = || sync::lock(&CACHE);
    if let Some((at, crosses)) = cache().get(&device).copied()
        && at.elapsed() < CACHE_LIFETIME
    {
        return Ok(crosses);
    }
    let crosses = MountInfo::of(file).is_ok_and(|mount| mount.check_cross_nodes().is_ok());
    let mut cache = cache();
    cache.retain(|_, (at, _)| at.elapsed() < CACHE_LIFETIME);
    cache.insert(device, (Instant::now(), crosses));
    Ok(crosses)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn mount_of_a_directory_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let handle = open(directory.path(), handle::DIRECTORY, Mode::empty()).unwrap();
        assert!(!MountInfo::of(&handle).unwrap().kind.is_empty());
        assert!(
            LockMode::Auto
                .check_cross_nodes(&directory.path().join("missing"))
                .unwrap_err()
                .contains("No such file")
        );
        assert!(LockMode::Off.check_cross_nodes(directory.path()).unwrap_err().contains("storage_locks"));
        assert!(LockMode::Cluster.check_cross_nodes(directory.path()).is_ok());
    }

    #[test]
    fn only_one_open_file_holds_the_lock_under_any_name_and_descriptor() {
        let directory = tempfile::tempdir().unwrap();
        let name = directory.path().join("file");
        let first = File::create(&name).unwrap();
        fs::hard_link(&name, directory.path().join("link")).unwrap();
        let second = File::options().write(true).open(directory.path().join("link")).unwrap();
        assert!(matches!(LockMode::Auto.take(&first), Ok(WriterLock::Held { .. })));
        assert_eq!(LockMode::Auto.take(&second).unwrap(), WriterLock::HeldByAnother);
        // Classic POSIX locks (F_SETLK) would be released when any descriptor of the file is closed.
        drop(first.try_clone().unwrap());
        drop(File::open(&name).unwrap());
        assert_eq!(LockMode::Auto.take(&second).unwrap(), WriterLock::HeldByAnother);
        drop(first);
        assert!(matches!(LockMode::Auto.take(&second), Ok(WriterLock::Held { .. })));
    }
}
