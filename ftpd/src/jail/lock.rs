//! File locks: while a file is written, its writer holds an open file description lock on it.
//!
//! The lock is exclusive and covers the whole file (`F_OFD_SETLK`, fcntl(2)). The kernel grants it to
//! one open file description at a time, whatever name the file was opened under. It releases the lock
//! when the descriptor is closed or the process ends. If the storage passes locks to its server (NFSv4,
//! CephFS, …), the server excludes the writers of all other nodes as well.
//!
//! The mount options tell if it does: see [`LockMode::cross_nodes`].

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::str::FromStr;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::{Mode, fstat};

use super::handle::{self, identity, kind};
use super::{FileError, Jail};
use crate::listing::EntryKind;
use crate::virtual_path::VirtualPath;

/// How long the result of [`file_crosses_nodes`] is cached for a device number. The kernel may give the
/// device number of an unmounted file system to another mount.
const REMEMBERED: Duration = Duration::from_secs(60);

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
    /// Locks are taken. The mount tells if they exclude other nodes.
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
    /// the reason that it does. Blocks.
    ///
    /// # Errors
    /// The reason that it does not, and the setting or mount option to change.
    pub fn cross_nodes(self, root: &Path) -> Result<String, String> {
        match self {
            Self::Off => Err("storage_locks is \"off\"".to_owned()),
            Self::Cluster => Ok("storage_locks is \"cluster\"".to_owned()),
            Self::Auto => {
                let storage = open(root, handle::DIRECTORY, Mode::empty())
                    .map_err(std::io::Error::from)
                    .and_then(|handle| MountInfo::of(&handle))
                    .map_err(|error| format!("the mount of the storage cannot be determined: {error}"))?;
                storage.check_cross_nodes().map(|()| format!("{} passes locks to all nodes", storage.kind))
            }
        }
    }

    /// Locks a regular file that is open with `O_PATH`, for a change of its name or attributes. Returns
    /// `None` if the file can be opened neither for writing nor for reading, or if locks are off or not
    /// supported.
    ///
    /// # Errors
    /// [`FileError::BeingWritten`], and as the kernel says.
    pub(super) fn hold(self, handle: &OwnedFd) -> Result<Option<ChangeLock>, FileError> {
        if self == Self::Off {
            return Ok(None);
        }
        for (flags, access) in [(handle::WRITE, LockKind::Write), (handle::READ, LockKind::Read)] {
            let file = match open(handle::proc_path(handle).as_c_str(), flags, Mode::empty()) {
                Ok(file) => file,
                // The node may not write the file. A reader's lock excludes writers as well.
                Err(Errno::EACCES | Errno::EPERM | Errno::EROFS | Errno::ETXTBSY) => continue,
                // Another node has removed the file.
                Err(Errno::ENOENT | Errno::ESTALE) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            };
            return match self.lock(&file, access)? {
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

/// The caller sets `crosses_nodes` of the result.
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
    /// As the kernel says.
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
    static KNOWN: LazyLock<Mutex<HashMap<libc::dev_t, (Instant, bool)>>> = LazyLock::new(Mutex::default);
    let device = fstat(file)?.st_dev;
    // No code panics while it holds the mutex.
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((at, crosses)) = known().get(&device).copied()
        && at.elapsed() < REMEMBERED
    {
        return Ok(crosses);
    }
    let crosses = MountInfo::of(file).is_ok_and(|storage| storage.check_cross_nodes().is_ok());
    let mut known = known();
    known.retain(|_, (at, _)| at.elapsed() < REMEMBERED);
    known.insert(device, (Instant::now(), crosses));
    Ok(crosses)
}

/// A mount as described in `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Debug, PartialEq, Eq)]
struct MountInfo {
    /// File system type: `ext4`, `nfs4`, …
    kind: String,
    /// Mount options, then the options of the file system (super options).
    options: Vec<String>,
}

impl MountInfo {
    /// Returns the mount that an open file is on.
    fn of(file: &impl AsRawFd) -> std::io::Result<Self> {
        let absent = |what: &str| std::io::Error::new(std::io::ErrorKind::NotFound, what.to_owned());
        // The mount id, because btrfs reports other device numbers in mountinfo than in fstat.
        let status = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
        let mount = status.lines().find_map(|line| line.strip_prefix("mnt_id:")).map(str::trim);
        let mount = mount.ok_or_else(|| absent("no mnt_id in /proc/self/fdinfo"))?;
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        Self::in_mountinfo(&mounts, mount).ok_or_else(|| absent("the mount is not in /proc/self/mountinfo"))
    }

    /// Parses the line of the mount with the id `mount`.
    fn in_mountinfo(mounts: &str, mount: &str) -> Option<Self> {
        let line = mounts.lines().find(|line| line.split(' ').next() == Some(mount))?;
        // Spaces in names are written as \040, so ` - ` is always the separator.
        let (before, after) = line.split_once(" - ")?;
        let mut of_file_system = after.split(' ');
        let kind = of_file_system.next()?.to_owned();
        let options = [before.split(' ').nth(5)?, of_file_system.nth(1).unwrap_or_default()];
        let options = options.iter().flat_map(|list| list.split(',')).map(str::to_owned).collect();
        Some(Self { kind, options })
    }

    /// Checks that a lock taken on one node excludes all other nodes.
    ///
    /// # Errors
    /// The reason that it does not, and the mount option that would change it.
    fn check_cross_nodes(&self) -> Result<(), String> {
        let has = |option: &str| self.options.iter().any(|found| found == option);
        let kind = &*self.kind;
        let local = |option: &str, instead: &str| {
            Err(format!("{kind} is mounted with {option}, so its locks hold on one node only; {instead}"))
        };
        match kind {
            "nfs" | "nfs4" => {
                let wrong = ["nolock", "local_lock=all", "local_lock=posix"].into_iter().find(|o| has(o));
                wrong.map_or(Ok(()), |option| local(option, "mount it with vers=4.2 and local_lock=none"))
            }
            "lustre" if has("localflock") => local("localflock", "mount it with flock"),
            "cifs" | "smb3" if has("nobrl") => local("nobrl", "mount it without nobrl"),
            "gfs2" if has("localflocks") => local("localflocks", "mount it without localflocks"),
            // Without a cluster stack in user space, ocfs2 does not pass these locks to other nodes
            // (fs/ocfs2/file.c in Linux).
            "ocfs2" if !self.options.iter().any(|found| found.starts_with("cluster_stack=")) => {
                Err("ocfs2 passes locks to other nodes only with a cluster stack in user space".to_owned())
            }
            "lustre" | "cifs" | "smb3" | "gfs2" | "ocfs2" | "ceph" | "gpfs" | "fuse.glusterfs"
            | "fuse.ceph" | "fuse.ceph-fuse" => Ok(()),
            // Local file systems: all nodes that use the same one are processes of one kernel.
            "ext2" | "ext3" | "ext4" | "xfs" | "btrfs" | "bcachefs" | "f2fs" | "zfs" | "jfs" | "nilfs2"
            | "reiserfs" | "tmpfs" | "ramfs" | "overlay" | "vfat" | "exfat" | "ntfs3" | "fuseblk"
            | "ecryptfs" => Ok(()),
            _ => Err(format!("ftpd does not know if locks on a {kind} file system hold on all nodes")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 27 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
27 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw,errors=remount-ro
63 27 0:52 / /srv/ftp rw,nosuid,nodev,noexec,noatime shared:30 - nfs4 storage:/srv/ftp \
rw,vers=4.2,rsize=1048576,hard,proto=tcp,sec=sys,local_lock=none,addr=192.0.2.1
64 27 0:53 / /srv/a\\040-\\040b rw,relatime - nfs storage:/old rw,vers=3,nolock,local_lock=all,addr=192.0.2.1
65 27 0:54 / /srv/c rw - fuse.sshfs host:/srv rw,user_id=0,group_id=0
6 27 0:55 / /srv/d rw - tmpfs tmpfs rw,size=1024k
";

    fn found(mount: &str) -> MountInfo {
        MountInfo::in_mountinfo(MOUNTS, mount).unwrap()
    }

    #[test]
    fn mountinfo_line_is_found_by_its_whole_id() {
        assert_eq!(found("27").kind, "ext4");
        assert_eq!(found("6").kind, "tmpfs");
        assert_eq!(found("64").kind, "nfs", "a name with ` - ` in it");
        assert_eq!(MountInfo::in_mountinfo(MOUNTS, "5"), None);
        assert_eq!(MountInfo::in_mountinfo("27 1 259:2 / / rw\n", "27"), None);
        assert_eq!(MountInfo::in_mountinfo("", "27"), None);
    }

    #[test]
    fn locks_of_local_file_systems_and_of_nfs_4_hold_on_all_nodes() {
        for mount in ["27", "63", "6"] {
            assert_eq!(found(mount).check_cross_nodes(), Ok(()), "{mount}");
        }
    }

    #[test]
    fn reason_names_the_mount_option_that_makes_locks_local() {
        let why = found("64").check_cross_nodes().unwrap_err();
        assert!(why.contains("nolock") && why.contains("local_lock=none"), "{why}");
        assert!(found("65").check_cross_nodes().unwrap_err().contains("fuse.sshfs"));
        let storage = |kind: &str, options: &[&str]| MountInfo {
            kind: kind.to_owned(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
        };
        for (kind, option, holds) in [
            ("nfs4", "local_lock=posix", false),
            // This option only affects flock(2).
            ("nfs4", "local_lock=flock", true),
            ("nfs", "vers=3", true),
            ("lustre", "flock", true),
            ("lustre", "localflock", false),
            ("cifs", "nobrl", false),
            ("ceph", "acl", true),
            ("ocfs2", "coherency=full", false),
            ("ocfs2", "cluster_stack=pcmk", true),
            ("9p", "trans=virtio", false),
            ("virtiofs", "rw", false),
        ] {
            assert_eq!(storage(kind, &["rw", option]).check_cross_nodes().is_ok(), holds, "{kind} {option}");
        }
    }

    #[test]
    fn mount_of_a_directory_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let handle = open(directory.path(), handle::DIRECTORY, Mode::empty()).unwrap();
        assert!(!MountInfo::of(&handle).unwrap().kind.is_empty());
        assert!(
            LockMode::Auto
                .cross_nodes(&directory.path().join("missing"))
                .unwrap_err()
                .contains("No such file")
        );
        assert!(LockMode::Off.cross_nodes(directory.path()).unwrap_err().contains("storage_locks"));
        assert!(LockMode::Cluster.cross_nodes(directory.path()).is_ok());
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
