//! Directory handles: how paths become descriptors, and descriptors paths.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2, readlink};
use nix::sys::stat::{FileStat, SFlag, fstat, fstatat};

use super::FileError;
use crate::listing::{Entry, Kind};

/// Opens a directory to work in, not to read.
pub(super) const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// Opens a directory to read its names.
pub(super) const READ_DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// Opens whatever has the name, for its status only.
pub(super) const STATUS: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);

const SAFE: OFlag = OFlag::O_NONBLOCK.union(OFlag::O_NOCTTY).union(OFlag::O_CLOEXEC);

/// Opens a file to read. Does not wait for FIFOs.
pub(super) const READ: OFlag = OFlag::O_RDONLY.union(SAFE);

/// Opens a file to write. Never truncates: the data connection may not come.
pub(super) const WRITE: OFlag = OFlag::O_WRONLY.union(SAFE);

/// openat2 gives up with EAGAIN when a rename anywhere crosses a `..` of a symbolic link. Each
/// attempt is independent, so this many losses in a row mean something else.
const ATTEMPTS: usize = 64;

/// A name in a directory that is held open.
#[derive(Debug)]
pub(super) struct Place<'p> {
    pub directory: OwnedFd,
    pub name: &'p [u8],
}

impl<'p> Place<'p> {
    /// A name in a directory that another holds open as well.
    pub fn new(directory: &OwnedFd, name: &'p [u8]) -> Result<Self, FileError> {
        Ok(Self { directory: directory.try_clone()?, name })
    }

    /// Of the name itself, not of what a symbolic link points to.
    pub fn status(&self) -> Result<FileStat, Errno> {
        status(&self.directory, self.name)
    }
}

/// What a symbolic link on the way is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Links {
    Followed,
    /// An error, [`FileError::Loop`]; only a link at the end can be opened, itself.
    Refused,
}

/// Opens `path` as seen from inside `root`: absolute symbolic links and `..` stay inside it.
pub(super) fn open_in(
    root: impl AsFd,
    path: &[u8],
    flags: OFlag,
    links: Links,
) -> Result<OwnedFd, FileError> {
    let inside = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(flags).resolve(match links {
        Links::Followed => inside,
        Links::Refused => inside | ResolveFlag::RESOLVE_NO_SYMLINKS,
    });
    let mut attempts = 0;
    loop {
        match openat2(root.as_fd(), path, how) {
            Ok(handle) => return Ok(handle),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if attempts < ATTEMPTS => attempts += 1,
            // The resolution met a way out of the root.
            Err(Errno::EXDEV) => return Err(FileError::OutOfHome),
            Err(errno) => return Err(errno.into()),
        }
    }
}

pub(super) fn status(directory: impl AsFd, name: &(impl nix::NixPath + ?Sized)) -> Result<FileStat, Errno> {
    fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)
}

/// Names of descriptors for calls that take no `O_PATH` handle (chmod, utimes).
pub(super) fn proc_path(handle: &impl AsRawFd) -> CString {
    // Digits hold no NUL.
    CString::new(format!("/proc/self/fd/{}", handle.as_raw_fd())).unwrap_or_default()
}

/// Where the open directory or file is in the process's view of the file system.
///
/// # Errors
/// [`FileError::NotFound`] if it has been removed meanwhile.
pub(super) fn real_path(handle: &(impl AsFd + AsRawFd)) -> Result<Vec<u8>, FileError> {
    let path = readlink(proc_path(handle).as_c_str())?.into_vec();
    // The kernel adds " (deleted)", which could be part of a name as well.
    if fstat(handle)?.st_nlink == 0 { Err(FileError::NotFound) } else { Ok(path) }
}

pub(super) fn kind(status: &FileStat) -> Kind {
    match SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFREG => Kind::File,
        SFlag::S_IFDIR => Kind::Directory,
        SFlag::S_IFLNK => Kind::Symlink,
        _ => Kind::Other,
    }
}

/// A size as the kernel reports it, which is never negative for files.
pub(super) fn size(status: &FileStat) -> u64 {
    u64::try_from(status.st_size).unwrap_or(0)
}

/// What is the same for all names of one file, and different for all others.
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
