//! The hidden files of atomic uploads: their names, and how an upload takes one over.
//!
//! An upload of `owner` to a path is found under one hidden name, which follows from both, so that the owner
//! can resume it on any node. No upload opens a hidden file that another may write:
//!
//! * One that begins at 0 makes a file of its own. Where the hidden name is taken, the new file has the name
//!   with a random token until its first byte is there, and then replaces what has the name.
//! * One that resumes opens the file under the name, takes the lock of its writer, and then looks whether the
//!   file still has the name.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use common::registry::Usage;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::UnlinkatFlags;
use sha2::{Digest, Sha256};

use super::directory::Names;
use super::handle::{self, Place, identity, kind, size};
use super::lock::{ChangeLock, Lock, Locks};
use super::upload::create;
use super::usage::{self, Changes};
use super::{FileError, Jail, PARTIAL_PREFIX};
use crate::listing::Kind;
use crate::virtual_path::VirtualPath;

/// How often another session may make, remove or replace the hidden file while it is opened.
const ATTEMPTS: usize = 3;

/// What an atomic upload does where another upload still writes the file, or begins at 0 where another still
/// writes the hidden file of the same owner and path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rivals {
    /// Replaces it, so that the other cannot publish any more: the right to write the path was taken from
    /// the other.
    Replaced,
    /// Is refused with [`FileError::BeingWritten`]: nothing but the other's lock tells who may write.
    Respected,
}

/// An atomic upload's names in the directory of its file.
#[derive(Debug)]
pub(super) struct HiddenNames {
    /// Where the owner finds it.
    pub found_by: Box<[u8]>,
    /// Of this upload alone.
    pub own: Box<[u8]>,
}

/// A hidden file, open to be written.
#[derive(Debug)]
pub(super) struct Partial {
    pub file: File,
    pub lock: Lock,
    pub created: bool,
    /// What it replaces when its first byte is there. Until then it has [`HiddenNames::own`].
    pub replaces: Option<Replaced>,
}

/// The file that has the hidden name when an upload begins at 0.
#[derive(Debug)]
pub(super) struct Replaced {
    handle: OwnedFd,
    /// Keeps a resume from beginning with it. `None` where another upload still writes it, which counts what
    /// it has written itself, or where there are no locks.
    _lock: Option<ChangeLock>,
    counts: bool,
}

impl HiddenNames {
    /// A fresh token for the hidden name `found_by`.
    pub fn new(found_by: Box<[u8]>) -> Self {
        let token = format!("-{:016x}", rand::random::<u64>());
        let own = [&found_by, token.as_bytes()].concat().into();
        Self { found_by, own }
    }

    /// Opens a file for an upload that begins at 0.
    pub fn create(
        &self,
        directory: &OwnedFd,
        mode: u32,
        locks: Locks,
        rivals: Rivals,
    ) -> Result<Partial, FileError> {
        for _ in 0..ATTEMPTS {
            match create(directory, &self.found_by, mode) {
                Ok(file) => return locked(file, locks, None),
                Err(FileError::AlreadyExists) => {}
                Err(error) => return Err(error),
            }
            let Some(replaces) = Replaced::find(directory, &self.found_by, locks, rivals)? else { continue };
            return locked(create(directory, &self.own, mode)?, locks, Some(replaces));
        }
        Err(FileError::Stale)
    }

    /// Opens the file of an upload that broke off, to go on with it.
    pub fn resume(&self, directory: &OwnedFd, locks: Locks) -> Result<Partial, FileError> {
        let flags = handle::WRITE | OFlag::O_NOFOLLOW;
        for _ in 0..ATTEMPTS {
            let file = match openat(directory, &*self.found_by, flags, Mode::empty()) {
                Ok(file) => File::from(file),
                Err(Errno::ENOENT) => return Err(FileError::BadOffset),
                Err(errno) => return Err(errno.into()),
            };
            let lock = match locks.take(&file)? {
                Lock::HeldByAnother => return Err(FileError::BeingWritten),
                lock => lock,
            };
            // The file may have been published or replaced before the lock was taken.
            if has_name(directory, &*self.found_by, &file)? {
                return Ok(Partial { file, lock, created: false, replaces: None });
            }
        }
        Err(FileError::Stale)
    }

    /// Gives `file`, which has its own name, the name that the owner finds it by.
    pub fn take_over(
        &self,
        directory: &OwnedFd,
        file: &File,
        replaced: Replaced,
        changes: &Changes,
    ) -> Result<(), FileError> {
        let (from, to) = (Place::new(directory, &self.own)?, Place::new(directory, &self.found_by)?);
        let counts = replaced.counts && to.status().is_ok_and(|there| replaced.is(&there));
        match usage::replace(&from, &to) {
            Ok(freed) if counts => changes.remove(freed),
            Ok(_) => {}
            // The first answer of an NFS server may have been lost.
            Err(Errno::ENOENT) if has_name(directory, &*self.found_by, file)? => {}
            Err(Errno::ENOENT) => return Err(FileError::Taken),
            Err(errno) => return Err(errno.into()),
        }
        Ok(())
    }
}

/// A file that was just made. If another has the lock it came between, and the file is its to remove.
fn locked(file: File, locks: Locks, replaces: Option<Replaced>) -> Result<Partial, FileError> {
    match locks.take(&file)? {
        Lock::HeldByAnother => Err(FileError::BeingWritten),
        lock => Ok(Partial { file, lock, created: true, replaces }),
    }
}

impl Replaced {
    /// What has the hidden name `name`; `None` if nothing has it any more.
    fn find(
        directory: &OwnedFd,
        name: &[u8],
        locks: Locks,
        rivals: Rivals,
    ) -> Result<Option<Self>, FileError> {
        let handle = match openat(directory, name, handle::STATUS | OFlag::O_NOFOLLOW, Mode::empty()) {
            Ok(handle) => handle,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        match locks.hold(&handle) {
            Ok(lock) => Ok(Some(Self { handle, _lock: lock, counts: true })),
            Err(FileError::BeingWritten) if rivals == Rivals::Replaced => {
                Ok(Some(Self { handle, _lock: None, counts: false }))
            }
            Err(error) => Err(error),
        }
    }

    fn is(&self, status: &nix::sys::stat::FileStat) -> bool {
        fstat(&self.handle).is_ok_and(|found| identity(&found) == identity(status))
    }
}

/// Whether `name` stands for the open file or directory. A symbolic link stands for itself.
pub(super) fn has_name(
    directory: impl AsFd,
    name: &(impl nix::NixPath + ?Sized),
    opened: impl AsFd,
) -> Result<bool, FileError> {
    let identities = handle::status(directory, name).and_then(|found| Ok((found, fstat(opened)?)));
    match identities {
        Ok((found, ours)) => Ok(identity(&found) == identity(&ours)),
        // NFS says ESTALE of what was removed on the server.
        Err(Errno::ENOENT | Errno::ESTALE | Errno::ENOTDIR | Errno::ELOOP) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

impl Jail {
    /// How many bytes of an atomic upload of `owner` to `path` have arrived, if one broke off:
    /// where SIZE tells the client to resume when the file itself does not exist.
    ///
    /// # Errors
    /// As the kernel says; no partial file is not an error.
    pub fn partial_size(&self, path: &VirtualPath, owner: &str) -> Result<Option<u64>, FileError> {
        let place = self.place(path)?;
        let name = self.partial_name(&handle::real_path(&place.directory)?, place.name, owner)?;
        let flags = handle::READ | OFlag::O_NOFOLLOW;
        match openat(&place.directory, &*name, flags, Mode::empty()) {
            Ok(file) => Ok(Some(size(&fstat(&file)?))),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Removes what a broken atomic upload of `owner` to `path` left. Answers what that freed, if there was
    /// any.
    ///
    /// # Errors
    /// [`FileError::BeingWritten`] while an upload writes it, and as the kernel says.
    pub fn remove_partial(&self, path: &VirtualPath, owner: &str) -> Result<Option<Usage>, FileError> {
        let place = self.place(path)?;
        let name = self.partial_name(&handle::real_path(&place.directory)?, place.name, owner)?;
        self.remove_unwritten(&place.directory, &*name)
    }

    /// Removes the partial files in a directory that holds nothing else. What is gone is noted in `changes`,
    /// also after an error.
    ///
    /// # Errors
    /// [`FileError::DirectoryNotEmpty`], [`FileError::BeingWritten`] while an upload writes one of them,
    /// and as the kernel says.
    pub(super) fn remove_partials(&self, place: &Place<'_>, changes: &Changes) -> Result<(), FileError> {
        let flags = handle::READ_DIRECTORY | OFlag::O_NOFOLLOW;
        let mut names = Names::new(openat(&place.directory, place.name, flags, Mode::empty())?);
        let is_partial = |name: &[u8]| name.starts_with(PARTIAL_PREFIX);
        while let Some(found) = names.next() {
            let found = found?;
            let name = found.name.to_bytes();
            if is_partial(name) {
                // Before any is removed.
                self.hold_unwritten(found.directory, found.name)?;
            } else if !matches!(name, b"." | b"..") {
                return Err(FileError::DirectoryNotEmpty);
            }
        }
        names.rewind()?;
        while let Some(found) = names.next() {
            let found = found?;
            if is_partial(found.name.to_bytes()) {
                // Another session may have been faster.
                let freed = self.remove_unwritten(found.directory, found.name)?;
                changes.remove(freed.unwrap_or_default());
            }
        }
        Ok(())
    }

    /// Removes a hidden file that no upload writes. Answers what that freed, if there was any.
    fn remove_unwritten(
        &self,
        directory: &OwnedFd,
        name: &(impl nix::NixPath + ?Sized),
    ) -> Result<Option<Usage>, FileError> {
        let _lock = self.hold_unwritten(directory, name)?;
        match usage::unlink(directory, name, UnlinkatFlags::NoRemoveDir, None) {
            Ok(freed) => Ok(Some(freed)),
            // Another session was faster.
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Holds a hidden file, if there is one, against the upload that would go on with it.
    fn hold_unwritten(
        &self,
        directory: &OwnedFd,
        name: &(impl nix::NixPath + ?Sized),
    ) -> Result<Option<ChangeLock>, FileError> {
        match openat(directory, name, handle::STATUS | OFlag::O_NOFOLLOW, Mode::empty()) {
            Ok(handle) if kind(&fstat(&handle)?) == Kind::File => self.locks.hold(&handle),
            Ok(_) | Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The hidden name for `name` in the directory whose real path is `directory`. The same on every node;
    /// nothing a client can guess for another user, or say.
    pub(super) fn partial_name(
        &self,
        directory: &[u8],
        name: &[u8],
        owner: &str,
    ) -> Result<Box<[u8]>, FileError> {
        let mut hash = Sha256::new();
        hash.update(owner.as_bytes());
        hash.update([0]);
        hash.update(self.key_in(directory, name)?);
        let mut name = PARTIAL_PREFIX.to_vec();
        name.extend_from_slice(&hex::encode(hash.finalize()).as_bytes()[..32]);
        Ok(name.into())
    }
}
