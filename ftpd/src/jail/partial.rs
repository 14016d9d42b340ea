//! Partial files (the hidden files of atomic uploads): their names, and how an upload creates, resumes
//! or replaces one.
//!
//! The resumable name of a partial file is computed from the owner and the path, so that the owner can
//! resume the upload on any node. No upload opens a partial file that another upload may be writing:
//!
//! * An upload that begins at 0 creates its own file. If the resumable name is taken, the new file gets
//!   a unique name (the resumable name with a random token). Before its first byte is written, it
//!   replaces the file with the resumable name.
//! * An upload that resumes opens the file with the resumable name, takes the writer's lock, and then
//!   checks that the file still has the name.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use common::registry::Usage;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::UnlinkatFlags;
use sha2::{Digest, Sha256};

use super::directory::DirectoryReader;
use super::handle::{self, EntryLocation, identity, kind, size};
use super::lock::{ChangeLock, LockMode, WriterLock};
use super::usage::{self, Changes};
use super::{FileError, Jail, PARTIAL_PREFIX};
use crate::listing::EntryKind;
use crate::virtual_path::VirtualPath;

/// Number of hexadecimal digits in the name of a partial file that are computed from its owner and path.
const HASH_LENGTH: usize = 32;

/// Number of hexadecimal digits of the random token in unique names.
const TOKEN_LENGTH: usize = 16;

/// Attempts to open a partial file while other sessions create, remove or replace it.
const ATTEMPTS: usize = 3;

/// What an atomic upload does if another upload of the same path is still running: another session
/// writes the file itself, or a session of the same owner writes the partial file and this upload begins
/// at 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RivalPolicy {
    /// This upload has the write lease, so the other upload has lost it. Replaces the partial file, so
    /// that the other upload cannot publish.
    Replace,
    /// The write lease is not certain, so the other upload's lock decides: fails with
    /// [`FileError::BeingWritten`].
    Respect,
}

/// The two names of a partial file, in the directory of its file.
#[derive(Debug)]
pub(super) struct PartialNames {
    /// Computed from owner and path: the owner finds the file under this name to resume.
    pub resumable: Box<[u8]>,
    /// The resumable name with a random token: only this upload uses it.
    pub unique: Box<[u8]>,
}

/// A file opened for an upload: a partial file or, for a direct upload, the file itself.
#[derive(Debug)]
pub(super) struct UploadFile {
    pub file: File,
    pub lock: WriterLock,
    pub created: bool,
    /// The older partial file, which this file replaces before its first byte is written. Until then this
    /// file has the name [`PartialNames::unique`].
    pub replaced: Option<ReplacedPartial>,
}

/// An older partial file, which has the resumable name when an upload begins at 0.
#[derive(Debug)]
pub(super) struct ReplacedPartial {
    handle: OwnedFd,
    /// Prevents another session from resuming the file. `None` if another upload is still writing it,
    /// or if there are no locks.
    _lock: Option<ChangeLock>,
    /// The removed bytes are credited to the quota. False while another upload is still writing the file,
    /// because that upload credits its own bytes.
    is_credited: bool,
}

impl PartialNames {
    /// Adds a new random token to the name `resumable`.
    pub(super) fn new(resumable: Box<[u8]>) -> Self {
        let token = format!("-{:0width$x}", rand::random::<u64>(), width = TOKEN_LENGTH);
        let unique = [&resumable, token.as_bytes()].concat().into();
        Self { resumable, unique }
    }

    /// Creates the file of an upload that begins at 0.
    pub(super) fn create(
        &self,
        directory: &OwnedFd,
        mode: u32,
        locks: LockMode,
        rivals: RivalPolicy,
    ) -> Result<UploadFile, FileError> {
        for _ in 0..ATTEMPTS {
            match handle::create_file(directory, &self.resumable, mode) {
                Ok(file) => return lock_created(file, locks, None),
                Err(FileError::AlreadyExists) => {}
                Err(error) => return Err(error),
            }
            let Some(replaced) = ReplacedPartial::find(directory, &self.resumable, locks, rivals)? else {
                continue;
            };
            return lock_created(handle::create_file(directory, &self.unique, mode)?, locks, Some(replaced));
        }
        Err(FileError::Stale)
    }

    /// Opens the file of an aborted upload to resume it.
    pub(super) fn resume(&self, directory: &OwnedFd, locks: LockMode) -> Result<UploadFile, FileError> {
        let flags = handle::WRITE | OFlag::O_NOFOLLOW;
        for _ in 0..ATTEMPTS {
            let file = match openat(directory, &*self.resumable, flags, Mode::empty()) {
                Ok(file) => File::from(file),
                Err(Errno::ENOENT) => return Err(FileError::BadOffset),
                Err(errno) => return Err(errno.into()),
            };
            let lock = match locks.take(&file)? {
                WriterLock::HeldByAnother => return Err(FileError::BeingWritten),
                lock => lock,
            };
            // Another session may have published or replaced the file before the lock was taken.
            if has_name(directory, &*self.resumable, &file)? {
                return Ok(UploadFile { file, lock, created: false, replaced: None });
            }
        }
        Err(FileError::Stale)
    }

    /// Renames `file` from its unique name to the resumable name.
    pub(super) fn replace_resumable(
        &self,
        directory: &OwnedFd,
        file: &File,
        replaced: ReplacedPartial,
        changes: &Changes,
    ) -> Result<(), FileError> {
        let (from, to) =
            (EntryLocation::new(directory, &self.unique)?, EntryLocation::new(directory, &self.resumable)?);
        let is_credited =
            replaced.is_credited && to.status().is_ok_and(|there| replaced.has_identity_of(&there));
        match usage::replace(&from, &to) {
            Ok(freed) if is_credited => changes.remove(freed),
            Ok(_) => {}
            // An NFS server may have renamed the file and its first reply was lost.
            Err(Errno::ENOENT) if has_name(directory, &*self.resumable, file)? => {}
            Err(Errno::ENOENT) => return Err(FileError::WriteRightLost),
            Err(errno) => return Err(errno.into()),
        }
        Ok(())
    }
}

/// Locks a file that this upload has just created. If another upload has already opened the file to
/// resume it and holds the lock, the file is left to that upload.
fn lock_created(
    file: File,
    locks: LockMode,
    replaced: Option<ReplacedPartial>,
) -> Result<UploadFile, FileError> {
    match locks.take(&file)? {
        WriterLock::HeldByAnother => Err(FileError::BeingWritten),
        lock => Ok(UploadFile { file, lock, created: true, replaced }),
    }
}

impl ReplacedPartial {
    /// Finds the partial file `name`. Returns `None` if it no longer exists.
    fn find(
        directory: &OwnedFd,
        name: &[u8],
        locks: LockMode,
        rivals: RivalPolicy,
    ) -> Result<Option<Self>, FileError> {
        let handle = match openat(directory, name, handle::STATUS | OFlag::O_NOFOLLOW, Mode::empty()) {
            Ok(handle) => handle,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        match locks.hold(&handle) {
            Ok(lock) => Ok(Some(Self { handle, _lock: lock, is_credited: true })),
            Err(FileError::BeingWritten) if rivals == RivalPolicy::Replace => {
                Ok(Some(Self { handle, _lock: None, is_credited: false }))
            }
            Err(error) => Err(error),
        }
    }

    fn has_identity_of(&self, status: &nix::sys::stat::FileStat) -> bool {
        fstat(&self.handle).is_ok_and(|found| identity(&found) == identity(status))
    }
}

/// Returns true if the name has the form of a partial file: the prefix, 32 hexadecimal digits, and in
/// unique names a hyphen and 16 more.
pub(super) fn is_partial_name(name: &[u8]) -> bool {
    let Some(rest) = name.strip_prefix(PARTIAL_PREFIX) else { return false };
    let is_hex = |text: &[u8]| text.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    match rest.split_at_checked(HASH_LENGTH) {
        Some((hash, [])) => is_hex(hash),
        Some((hash, [b'-', token @ ..])) => is_hex(hash) && token.len() == TOKEN_LENGTH && is_hex(token),
        Some(_) | None => false,
    }
}

/// Returns true if `name` is a name of the open file or directory. Symbolic links are not followed.
pub(super) fn has_name(
    directory: impl AsFd,
    name: &(impl nix::NixPath + ?Sized),
    opened: impl AsFd,
) -> Result<bool, FileError> {
    let identities = handle::status(directory, name).and_then(|found| Ok((found, fstat(opened)?)));
    match identities {
        Ok((found, ours)) => Ok(identity(&found) == identity(&ours)),
        // NFS returns ESTALE for a file that was removed on the server.
        Err(Errno::ENOENT | Errno::ESTALE | Errno::ENOTDIR | Errno::ELOOP) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

impl Jail {
    /// Size of the partial file of an aborted atomic upload of `owner` to `path`, if there is one. SIZE
    /// reports it if the file itself does not exist, so that the client can resume.
    ///
    /// # Errors
    /// Any error of the kernel. A missing partial file is not an error.
    pub fn partial_size(&self, path: &VirtualPath, owner: &str) -> Result<Option<u64>, FileError> {
        let location = self.entry_location(path)?;
        let name = self.partial_name(&handle::real_path(&location.directory)?, location.name, owner)?;
        let flags = handle::READ | OFlag::O_NOFOLLOW;
        match openat(&location.directory, &*name, flags, Mode::empty()) {
            Ok(file) => Ok(Some(size(&fstat(&file)?))),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Removes the partial file of an aborted atomic upload of `owner` to `path`. Returns what that
    /// freed, or `None` if there is no such file.
    ///
    /// # Errors
    /// [`FileError::BeingWritten`] while an upload writes the file, or any error of the kernel.
    pub fn remove_partial(&self, path: &VirtualPath, owner: &str) -> Result<Option<Usage>, FileError> {
        let location = self.entry_location(path)?;
        let name = self.partial_name(&handle::real_path(&location.directory)?, location.name, owner)?;
        self.remove_unwritten(&location.directory, &*name)
    }

    /// Removes the partial files in a directory that contains no other entries. Records removed files
    /// in `changes`, even if it fails.
    ///
    /// # Errors
    /// [`FileError::DirectoryNotEmpty`] if there are other entries, [`FileError::BeingWritten`] while
    /// an upload writes one of the partial files, or any error of the kernel.
    pub(super) fn remove_partials(
        &self,
        location: &EntryLocation<'_>,
        changes: &Changes,
    ) -> Result<(), FileError> {
        let mut names = DirectoryReader::new(handle::open_subdirectory(&location.directory, location.name)?);
        let is_partial = |name: &[u8]| name.starts_with(PARTIAL_PREFIX);
        while let Some(found) = names.next() {
            let found = found?;
            let name = found.name.to_bytes();
            if is_partial(name) {
                // All partial files are checked before the first one is removed.
                self.lock_unless_written(found.directory, found.name)?;
            } else if !found.is_self_or_parent() {
                return Err(FileError::DirectoryNotEmpty);
            }
        }
        names.rewind()?;
        while let Some(found) = names.next() {
            let found = found?;
            if is_partial(found.name.to_bytes()) {
                // Another session may have removed it.
                let freed = self.remove_unwritten(found.directory, found.name)?;
                changes.remove(freed.unwrap_or_default());
            }
        }
        Ok(())
    }

    /// Removes a partial file that no upload is writing. Returns what that freed, or `None` if the file
    /// does not exist.
    fn remove_unwritten(
        &self,
        directory: &OwnedFd,
        name: &(impl nix::NixPath + ?Sized),
    ) -> Result<Option<Usage>, FileError> {
        let _lock = self.lock_unless_written(directory, name)?;
        match usage::unlink(directory, name, UnlinkatFlags::NoRemoveDir, None) {
            Ok(freed) => Ok(Some(freed)),
            // Another session has removed it.
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Locks a partial file, if it exists, so that no upload can resume it.
    fn lock_unless_written(
        &self,
        directory: &OwnedFd,
        name: &(impl nix::NixPath + ?Sized),
    ) -> Result<Option<ChangeLock>, FileError> {
        match openat(directory, name, handle::STATUS | OFlag::O_NOFOLLOW, Mode::empty()) {
            Ok(handle) if kind(&fstat(&handle)?) == EntryKind::File => self.locks.hold(&handle),
            Ok(_) | Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The resumable name of the partial file for `name` in the directory with the real path
    /// `directory`. It is the same on every node. Clients can neither compute it for another user nor use
    /// it in a command.
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
        name.extend_from_slice(&hex::encode(hash.finalize()).as_bytes()[..HASH_LENGTH]);
        Ok(name.into())
    }
}
