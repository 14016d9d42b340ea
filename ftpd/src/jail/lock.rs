//! The fence around a file that is written: an open file description lock on its inode.
//!
//! While a file is written, its writer holds an exclusive lock on all of it (`F_OFD_SETLK`, fcntl(2)). The
//! kernel grants it to one open file at a time, whatever name the file was opened under, and takes it back
//! when that file is closed or its process ends. On storage that passes locks to its server (NFSv4, CephFS,
//! …) the server does the same for all nodes.
//!
//! Whether it does follows from the mount: see [`Locks::cross_nodes`].

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
use crate::listing::Kind;
use crate::virtual_path::VirtualPath;

/// How long it is remembered of a file system whether its locks cross nodes: as long as a device number
/// that the kernel gave to another mount may be taken for the old one.
const REMEMBERED: Duration = Duration::from_secs(60);

/// What came of asking for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// It is held until the open file is closed.
    Held {
        /// No other node can hold one at the same time. Otherwise it keeps out writers of this node only.
        crosses_nodes: bool,
    },
    /// Another open file holds one, of this or another process or node.
    HeldByAnother,
    /// The storage has no locks.
    NotSupported,
}

impl Lock {
    /// Whether the lock alone proves that no other node writes the file.
    pub fn fences(self) -> bool {
        self == Self::Held { crosses_nodes: true }
    }
}

/// Which locks are taken and what they prove (`storage_locks`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Locks {
    /// Taken, and the mount tells whether they cross nodes.
    #[default]
    Auto,
    /// Taken, and the operator says that they cross nodes.
    Cluster,
    /// Not taken: the leases in Redis alone tell writers apart.
    Off,
}

/// The text is no [`Locks`].
#[derive(Debug, thiserror::Error)]
#[error("the locks are 'auto', 'cluster' or 'off'")]
pub struct InvalidLocks;

impl FromStr for Locks {
    type Err = InvalidLocks;

    fn from_str(text: &str) -> Result<Self, InvalidLocks> {
        match text {
            "auto" => Ok(Self::Auto),
            "cluster" => Ok(Self::Cluster),
            "off" => Ok(Self::Off),
            _ => Err(InvalidLocks),
        }
    }
}

/// Which kind of lock is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Needs a file that is open for writing.
    Write,
    /// Needs a file that is open for reading, and keeps out all writers as well.
    Read,
}

impl Locks {
    /// Takes the writer's lock on all of `file`, which must be open for writing. Does not wait.
    ///
    /// # Errors
    /// As the kernel says. That the storage has no locks is [`Lock::NotSupported`].
    pub fn take(self, file: &File) -> Result<Lock, FileError> {
        self.lock(file, Access::Write)
    }

    /// Whether a lock on a file in the directory `root` keeps out the writers of other nodes. Answers on what
    /// authority. Blocks.
    ///
    /// # Errors
    /// Why not, and what to change.
    pub fn cross_nodes(self, root: &Path) -> Result<String, String> {
        match self {
            Self::Off => Err("storage_locks is \"off\"".to_owned()),
            Self::Cluster => Ok("storage_locks is \"cluster\"".to_owned()),
            Self::Auto => {
                let storage = open(root, handle::DIRECTORY, Mode::empty())
                    .map_err(std::io::Error::from)
                    .and_then(|handle| Storage::of(&handle))
                    .map_err(|error| format!("the mount cannot be found out: {error}"))?;
                storage.crossing().map(|()| format!("{} passes them on", storage.kind))
            }
        }
    }

    /// Locks a regular file that is open with `O_PATH`, to change its name or attributes. `None` where it
    /// can be opened neither for writing nor for reading, and where there are no locks.
    ///
    /// # Errors
    /// [`FileError::BeingWritten`], and as the kernel says.
    pub(super) fn hold(self, handle: &OwnedFd) -> Result<Option<ChangeLock>, FileError> {
        if self == Self::Off {
            return Ok(None);
        }
        for (flags, access) in [(handle::WRITE, Access::Write), (handle::READ, Access::Read)] {
            let file = match open(handle::proc_path(handle).as_c_str(), flags, Mode::empty()) {
                Ok(file) => file,
                // A reader's lock keeps writers out as well.
                Err(Errno::EACCES | Errno::EPERM | Errno::EROFS | Errno::ETXTBSY) => continue,
                // Removed by another node.
                Err(Errno::ENOENT | Errno::ESTALE) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            };
            return match self.lock(&file, access)? {
                Lock::Held { .. } => Ok(Some(ChangeLock { _file: file })),
                Lock::HeldByAnother => Err(FileError::BeingWritten),
                Lock::NotSupported => Ok(None),
            };
        }
        Ok(None)
    }

    fn lock(self, file: &(impl AsFd + AsRawFd), access: Access) -> Result<Lock, FileError> {
        match self {
            Self::Off => Ok(Lock::NotSupported),
            Self::Auto | Self::Cluster => match lock(file, access)? {
                Lock::Held { .. } => {
                    Ok(Lock::Held { crosses_nodes: self == Self::Cluster || file_crosses_nodes(file)? })
                }
                other => Ok(other),
            },
        }
    }
}

/// `crosses_nodes` of what this returns is not yet known to be true.
fn lock(file: &impl AsFd, access: Access) -> Result<Lock, FileError> {
    let kind = match access {
        Access::Write => libc::F_WRLCK,
        Access::Read => libc::F_RDLCK,
    };
    let whole = libc::flock {
        // These constants are 0, 1 and 2, and fcntl wants them as `short`.
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    loop {
        return match fcntl(file, FcntlArg::F_OFD_SETLK(&whole)) {
            Ok(_) => Ok(Lock::Held { crosses_nodes: false }),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(Lock::HeldByAnother),
            // ENOLCK is also what an NFS client says that cannot reach a lock service.
            Err(Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => Ok(Lock::NotSupported),
            Err(Errno::EINTR) => continue,
            Err(errno) => Err(errno.into()),
        };
    }
}

/// Keeps all writers of a file out while its name or its attributes are changed. The lock ends when this is
/// dropped. Made by [`Jail::hold`].
#[derive(Debug)]
#[must_use = "the file is held only as long as this lives"]
pub struct ChangeLock {
    _file: OwnedFd,
}

impl Jail {
    /// Holds the regular file that has the name `path` for a change of its name (RNTO, DELE, the sources of
    /// COMB): until the [`ChangeLock`] is dropped no session on this node, and where locks cross nodes on any
    /// node, can begin to write it. A symbolic link at the end is not followed, because such a change is one
    /// of the link.
    ///
    /// `None` where there is no regular file, where the node may neither write nor read it, or where the
    /// storage has no locks. Opens no FIFO, socket or device.
    ///
    /// # Errors
    /// [`FileError::BeingWritten`] while another session writes the file, and as the kernel says.
    pub fn hold(&self, path: &VirtualPath) -> Result<Option<ChangeLock>, FileError> {
        self.hold_opened(path, handle::STATUS | OFlag::O_NOFOLLOW)
    }

    /// As [`Jail::hold`], for a change of what is in the file or of its attributes (MFMT): of a symbolic
    /// link at the end, the file that it leads to.
    ///
    /// # Errors
    /// As [`Jail::hold`].
    pub fn hold_resolved(&self, path: &VirtualPath) -> Result<Option<ChangeLock>, FileError> {
        self.hold_opened(path, handle::STATUS)
    }

    /// [`Jail::hold`] for several paths: each file once, also if it has two of the names.
    ///
    /// # Errors
    /// As [`Jail::hold`].
    pub fn hold_all(&self, paths: &[&VirtualPath]) -> Result<Vec<ChangeLock>, FileError> {
        let mut known = HashSet::new();
        let mut held = Vec::new();
        for path in paths {
            if let Some(handle) = self.open_to_hold(path, handle::STATUS | OFlag::O_NOFOLLOW)?
                && known.insert(identity(&fstat(&handle)?))
            {
                held.extend(self.locks.hold(&handle)?);
            }
        }
        Ok(held)
    }

    /// Whether locks on files in the directory of `path` keep out the writers of other nodes.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn locks_cross_nodes(&self, path: &VirtualPath) -> Result<bool, FileError> {
        match self.locks {
            Locks::Off => Ok(false),
            Locks::Cluster => Ok(true),
            Locks::Auto => file_crosses_nodes(&self.place(path)?.directory),
        }
    }

    fn hold_opened(&self, path: &VirtualPath, flags: OFlag) -> Result<Option<ChangeLock>, FileError> {
        match self.open_to_hold(path, flags)? {
            Some(handle) => self.locks.hold(&handle),
            None => Ok(None),
        }
    }

    /// The regular file that has the name, if there is one.
    fn open_to_hold(&self, path: &VirtualPath, flags: OFlag) -> Result<Option<OwnedFd>, FileError> {
        match self.open_with_status(path, flags) {
            Ok((handle, status)) => Ok((kind(&status) == Kind::File).then_some(handle)),
            // The operation itself tells what is wrong with the name, or that nothing is.
            Err(FileError::Io(error)) => Err(FileError::Io(error)),
            Err(FileError::TooManyOpenFiles(error)) => Err(FileError::TooManyOpenFiles(error)),
            Err(_) => Ok(None),
        }
    }
}

/// Whether a lock on the open file keeps out other nodes. Remembered for each file system.
fn file_crosses_nodes(file: &(impl AsFd + AsRawFd)) -> Result<bool, FileError> {
    static KNOWN: LazyLock<Mutex<HashMap<libc::dev_t, (Instant, bool)>>> = LazyLock::new(Mutex::default);
    let device = fstat(file)?.st_dev;
    // Nothing panics while it holds the lock.
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((at, crosses)) = known().get(&device).copied()
        && at.elapsed() < REMEMBERED
    {
        return Ok(crosses);
    }
    let crosses = Storage::of(file).is_ok_and(|storage| storage.crossing().is_ok());
    let mut known = known();
    known.retain(|_, (at, _)| at.elapsed() < REMEMBERED);
    known.insert(device, (Instant::now(), crosses));
    Ok(crosses)
}

/// What a file system says of itself in `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Debug, PartialEq, Eq)]
struct Storage {
    /// `ext4`, `nfs4`, …
    kind: String,
    /// Those of the mount, then those of the file system.
    options: Vec<String>,
}

impl Storage {
    /// The file system that an open file is on.
    fn of(file: &impl AsRawFd) -> std::io::Result<Self> {
        let absent = |what: &str| std::io::Error::new(std::io::ErrorKind::NotFound, what.to_owned());
        // Not the device number of the file: btrfs has others in mountinfo.
        let status = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
        let mount = status.lines().find_map(|line| line.strip_prefix("mnt_id:")).map(str::trim);
        let mount = mount.ok_or_else(|| absent("no mnt_id in /proc/self/fdinfo"))?;
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        Self::in_mountinfo(&mounts, mount).ok_or_else(|| absent("the mount is not in /proc/self/mountinfo"))
    }

    /// The line of the mount whose id is `mount`.
    fn in_mountinfo(mounts: &str, mount: &str) -> Option<Self> {
        let line = mounts.lines().find(|line| line.split(' ').next() == Some(mount))?;
        // Spaces in names are written as \040, so ` - ` stands nowhere else.
        let (before, after) = line.split_once(" - ")?;
        let mut of_file_system = after.split(' ');
        let kind = of_file_system.next()?.to_owned();
        let options = [before.split(' ').nth(5)?, of_file_system.nth(1).unwrap_or_default()];
        let options = options.iter().flat_map(|list| list.split(',')).map(str::to_owned).collect();
        Some(Self { kind, options })
    }

    /// Whether a lock of one node keeps out all others.
    ///
    /// # Errors
    /// Why it does not, and the mount option that would change it.
    fn crossing(&self) -> Result<(), String> {
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
            // Without a stack in user space ocfs2 has no such locks across nodes (fs/ocfs2/file.c in Linux).
            "ocfs2" if !self.options.iter().any(|found| found.starts_with("cluster_stack=")) => {
                Err("ocfs2 passes locks to other nodes only with a cluster stack in user space".to_owned())
            }
            "lustre" | "cifs" | "smb3" | "gfs2" | "ocfs2" | "ceph" | "gpfs" | "fuse.glusterfs"
            | "fuse.ceph" | "fuse.ceph-fuse" => Ok(()),
            // All nodes that use such a file system are processes of one kernel.
            "ext2" | "ext3" | "ext4" | "xfs" | "btrfs" | "bcachefs" | "f2fs" | "zfs" | "jfs" | "nilfs2"
            | "reiserfs" | "tmpfs" | "ramfs" | "overlay" | "vfat" | "exfat" | "ntfs3" | "fuseblk"
            | "ecryptfs" => Ok(()),
            _ => Err(format!("it is not known whether locks of a {kind} file system hold on all nodes")),
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

    fn found(mount: &str) -> Storage {
        Storage::in_mountinfo(MOUNTS, mount).unwrap()
    }

    #[test]
    fn a_mount_is_found_by_its_whole_id() {
        assert_eq!(found("27").kind, "ext4");
        assert_eq!(found("6").kind, "tmpfs");
        assert_eq!(found("64").kind, "nfs", "a name with ` - ` in it");
        assert_eq!(Storage::in_mountinfo(MOUNTS, "5"), None);
        assert_eq!(Storage::in_mountinfo("27 1 259:2 / / rw\n", "27"), None);
        assert_eq!(Storage::in_mountinfo("", "27"), None);
    }

    #[test]
    fn locks_of_local_file_systems_and_of_nfs_4_hold_on_all_nodes() {
        for mount in ["27", "63", "6"] {
            assert_eq!(found(mount).crossing(), Ok(()), "{mount}");
        }
    }

    #[test]
    fn the_reason_names_the_mount_option_to_change() {
        let why = found("64").crossing().unwrap_err();
        assert!(why.contains("nolock") && why.contains("local_lock=none"), "{why}");
        assert!(found("65").crossing().unwrap_err().contains("fuse.sshfs"));
        let storage = |kind: &str, options: &[&str]| Storage {
            kind: kind.to_owned(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
        };
        for (kind, option, holds) in [
            ("nfs4", "local_lock=posix", false),
            // This one is of flock(2) only.
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
            assert_eq!(storage(kind, &["rw", option]).crossing().is_ok(), holds, "{kind} {option}");
        }
    }

    #[test]
    fn the_file_system_of_a_directory_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let handle = open(directory.path(), handle::DIRECTORY, Mode::empty()).unwrap();
        assert!(!Storage::of(&handle).unwrap().kind.is_empty());
        assert!(
            Locks::Auto.cross_nodes(&directory.path().join("missing")).unwrap_err().contains("No such file")
        );
        assert!(Locks::Off.cross_nodes(directory.path()).unwrap_err().contains("storage_locks"));
        assert!(Locks::Cluster.cross_nodes(directory.path()).is_ok());
    }

    #[test]
    fn one_open_file_at_a_time_has_the_lock_whatever_its_name_and_descriptor() {
        let directory = tempfile::tempdir().unwrap();
        let name = directory.path().join("file");
        let first = File::create(&name).unwrap();
        fs::hard_link(&name, directory.path().join("link")).unwrap();
        let second = File::options().write(true).open(directory.path().join("link")).unwrap();
        assert!(matches!(Locks::Auto.take(&first), Ok(Lock::Held { .. })));
        assert_eq!(Locks::Auto.take(&second).unwrap(), Lock::HeldByAnother);
        // Other locks of POSIX end with the first descriptor that is closed.
        drop(first.try_clone().unwrap());
        drop(File::open(&name).unwrap());
        assert_eq!(Locks::Auto.take(&second).unwrap(), Lock::HeldByAnother);
        drop(first);
        assert!(matches!(Locks::Auto.take(&second), Ok(Lock::Held { .. })));
    }
}
