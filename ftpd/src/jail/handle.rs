//! Handles of files and directories: opening them by path, their status and their real path.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlink};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};

use super::FileError;
use crate::listing::{Entry, EntryKind};

/// Opens a directory to resolve names in it, not to read it.
pub(super) const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// Opens a directory to read its names.
pub(super) const READ_DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// Opens a file of any type only to get its status.
pub(super) const STATUS: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);

/// Flags of each open for reading or writing: the open does not wait, and a terminal does not become the
/// process's controlling terminal.
const SAFE: OFlag = OFlag::O_NONBLOCK.union(OFlag::O_NOCTTY).union(OFlag::O_CLOEXEC);

/// Opens a file for reading.
pub(super) const READ: OFlag = OFlag::O_RDONLY.union(SAFE);

/// Opens a file for writing. Never truncates it, because the data connection may not come.
pub(super) const WRITE: OFlag = OFlag::O_WRONLY.union(SAFE);

/// Attempts of one `openat2`. It fails with EAGAIN when a rename anywhere in the system races with the
/// resolution of `..`. So many failures in a row have another cause.
const ATTEMPTS: usize = 64;

/// A name in an open directory.
#[derive(Debug)]
pub(super) struct EntryLocation<'p> {
    pub directory: OwnedFd,
    pub name: &'p [u8],
}

impl<'p> EntryLocation<'p> {
    /// Duplicates the handle `directory`.
    pub(super) fn new(directory: &OwnedFd, name: &'p [u8]) -> Result<Self, FileError> {
        Ok(Self { directory: directory.try_clone()?, name })
    }

    /// Status of the name itself: a symbolic link is not followed.
    pub(super) fn status(&self) -> Result<FileStat, Errno> {
        status(&self.directory, self.name)
    }
}

/// Treatment of symbolic links when a path is resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkPolicy {
    Follow,
    /// A symbolic link in the path is an error ([`FileError::Loop`]). A link as the last component can
    /// be opened itself with `O_NOFOLLOW`.
    Refuse,
}

/// Opens `path` with `root` as its root directory: absolute symbolic links and `..` stay inside it.
pub(super) fn open_in(
    root: impl AsFd,
    path: &[u8],
    flags: OFlag,
    link_policy: LinkPolicy,
) -> Result<OwnedFd, FileError> {
    let inside = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(flags).resolve(match link_policy {
        LinkPolicy::Follow => inside,
        LinkPolicy::Refuse => inside | ResolveFlag::RESOLVE_NO_SYMLINKS,
    });
    let mut attempts = 0;
    loop {
        match openat2(root.as_fd(), path, how) {
            Ok(handle) => return Ok(handle),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if attempts < ATTEMPTS => attempts += 1,
            // The path would leave the root.
            Err(Errno::EXDEV) => return Err(FileError::OutOfHome),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Creates a file that must not exist yet, and opens it for writing.
pub(super) fn create_file(directory: &OwnedFd, name: &[u8], mode: u32) -> Result<File, FileError> {
    let flags = WRITE | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
    Ok(openat(directory, name, flags, Mode::from_bits_truncate(mode))?.into())
}

/// Opens a directory by its name in `directory`, to read it. A symbolic link fails with ENOTDIR.
pub(super) fn open_subdirectory(
    directory: &OwnedFd,
    name: &(impl nix::NixPath + ?Sized),
) -> Result<OwnedFd, Errno> {
    openat(directory, name, READ_DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty())
}

/// Status of the name itself: a symbolic link is not followed.
pub(super) fn status(directory: impl AsFd, name: &(impl nix::NixPath + ?Sized)) -> Result<FileStat, Errno> {
    fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)
}

/// Path of a descriptor, for system calls that do not accept an `O_PATH` handle (chmod, utimes).
pub(super) fn proc_path(handle: &impl AsRawFd) -> CString {
    // Digits contain no NUL.
    CString::new(format!("/proc/self/fd/{}", handle.as_raw_fd())).unwrap_or_default()
}

/// Absolute path of the open file or directory in the mount namespace of this process.
///
/// # Errors
/// [`FileError::NotFound`] if it has been removed.
pub(super) fn real_path(handle: &(impl AsFd + AsRawFd)) -> Result<Vec<u8>, FileError> {
    let path = readlink(proc_path(handle).as_c_str())?.into_vec();
    // The kernel appends " (deleted)" to the path of a removed file. The link count is checked instead,
    // because a file name may end with the same text.
    if fstat(handle)?.st_nlink == 0 { Err(FileError::NotFound) } else { Ok(path) }
}

/// Path of the name `name` in an open directory, for logs. Bytes that are not printable ASCII are escaped.
pub(super) fn printable_path(directory: &OwnedFd, name: &[u8]) -> String {
    let directory = real_path(directory).unwrap_or_default();
    format!("{}/{}", directory.escape_ascii(), name.escape_ascii())
}

pub(super) fn kind(status: &FileStat) -> EntryKind {
    match SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFREG => EntryKind::File,
        SFlag::S_IFDIR => EntryKind::Directory,
        SFlag::S_IFLNK => EntryKind::Symlink,
        _ => EntryKind::Other,
    }
}

/// The size in bytes. The kernel never reports a negative size for a file.
pub(super) fn size(status: &FileStat) -> u64 {
    u64::try_from(status.st_size).unwrap_or(0)
}

/// Device and inode number: equal for all names of one file, different for different files.
pub(super) fn identity(status: &FileStat) -> (u64, u64) {
    (status.st_dev, status.st_ino)
}

pub(super) fn entry(name: &[u8], status: &FileStat, link_target: Option<Vec<u8>>) -> Entry {
    Entry {
        name: name.to_vec(),
        kind: kind(status),
        size: size(status),
        modified: status.st_mtime,
        mode: status.st_mode & 0o7777,
        links: status.st_nlink,
        device: status.st_dev,
        inode: status.st_ino,
        link_target,
    }
}
