//! The file of an upload while it is written: STOR, STOU and APPE, REST before them, and atomic
//! uploads.
//!
//! An upload is opened before the data connection arrives. It begins when the data connection has
//! arrived, and changes the file when its first bytes are written. It ends with one of
//! [`Upload::finish`], [`Upload::abandon`], [`Upload::keep_if_durable`], [`Upload::discard`] and
//! [`Upload::leave_untouched`].
//!
//! While it is open, it holds the writer's lock on the file: see [`super::lock`].

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::stat::fstat;

use super::handle::size;
use super::lock::WriterLock;
use super::partial::{PartialNames, ReplacedPartial};
use super::usage::{self, Changes};
use super::{FileError, PublicationRecorder, RivalPolicy};

/// Treatment of an existing file by an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteMode {
    /// STOR.
    Replace,
    /// STOU, and STOR by a user without the permission to overwrite.
    CreateNew,
    /// STOR after REST (RFC 3659 section 5): bytes before `offset` are kept, bytes after it are
    /// truncated. Without `replace`, the file must end at `offset`, and an atomic upload must not
    /// replace an existing file.
    Resume { offset: u64, replace: bool },
    /// APPE.
    Append,
}

/// Where the data is stored until the upload is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadPlacement<'o> {
    /// Direct mode: in the file itself.
    Direct,
    /// Atomic mode: in a partial file, whose name is computed from `owner` and the path, so that the
    /// same user can resume the upload on any node. [`WriteMode::Append`] is always direct, because it
    /// changes an existing file.
    Atomic { owner: &'o str, rivals: RivalPolicy },
}

/// A file that is being written. Dropping it has the effect of [`Upload::abandon`].
#[derive(Debug)]
pub struct Upload {
    pub(super) file: File,
    pub(super) lock: WriterLock,
    pub(super) guard: WriteGuard,
    pub(super) directory: OwnedFd,
    /// Real path of `directory` when it was opened.
    pub(super) directory_path: Vec<u8>,
    /// Current name of the data in `directory`.
    pub(super) name: Box<[u8]>,
    /// The symbolic link that the file was opened through, if any.
    pub(super) link: Option<FollowedLink>,
    pub(super) publish: Option<PublishPlan>,
    /// This upload created the file, so no other upload can have stored data in it.
    pub(super) created: bool,
    pub(super) state: UploadState,
    pub(super) changes: Changes,
    /// `None`: no event tells of this upload.
    pub(super) recorder: Option<Box<dyn PublicationRecorder>>,
}

/// Names and options for publishing an atomic upload.
#[derive(Debug)]
pub(super) struct PublishPlan {
    /// Final name of the file.
    pub name: Box<[u8]>,
    /// An existing file of this name may be replaced.
    pub may_replace: bool,
    pub names: PartialNames,
    /// The older partial file, which has the resumable name until the first byte of this upload is
    /// written.
    pub replaced: Option<ReplacedPartial>,
}

/// A symbolic link that a file was opened through.
#[derive(Debug)]
pub(super) struct FollowedLink {
    /// Text of the link. Its inode number would not identify it, because the kernel may reuse the
    /// number for the next link.
    pub text: OsString,
    /// Real path of the file that the link led to.
    pub target: Vec<u8>,
}

/// Asks if this node may still write, where the lock alone does not prove it.
#[derive(Default)]
pub(super) struct WriteGuard(Option<Box<dyn Fn() -> bool + Send>>);

impl fmt::Debug for WriteGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WriteGuard").field(&self.0.is_some()).finish()
    }
}

impl WriteGuard {
    /// Checks that this node may still write the file.
    ///
    /// # Errors
    /// [`FileError::WriteRightLost`] if it may not.
    pub(super) fn check(&self) -> Result<(), FileError> {
        if self.0.as_ref().is_none_or(|may_write| may_write()) {
            Ok(())
        } else {
            Err(FileError::WriteRightLost)
        }
    }
}

/// Progress of an upload from its opening to its end.
#[derive(Clone, Copy, Debug)]
pub(super) enum UploadState {
    /// Nothing has been changed yet. Writing starts at `start` (`None`: at the end of the file). Bytes
    /// after it are removed if `may_truncate`, otherwise they are an error.
    Opened { start: Option<u64>, may_truncate: bool },
    /// Nothing has been changed yet. The `excess` bytes from `start` on are removed before the first
    /// byte is written.
    Begun { start: u64, excess: u64 },
    /// Bytes before `start` existed before this upload. `recorded` is true if `changes` includes the
    /// bytes from `start` on.
    Writing { start: u64, recorded: bool },
    /// The upload changes nothing more; dropping it has no effect.
    Ended,
}

impl Upload {
    /// Returns true if the lock proves that no other node writes the file. If false, the caller must
    /// set a guard with [`Upload::guard_by`].
    pub fn is_fenced(&self) -> bool {
        self.lock.fences()
    }

    /// Sets the guard: `may_write` is called before every step that changes the file or its name. Once
    /// it returns false, the upload changes nothing more.
    pub fn guard_by(&mut self, may_write: impl Fn() -> bool + Send + 'static) {
        self.guard = WriteGuard(Some(Box::new(may_write)));
    }

    /// Makes the upload tell `recorder` of its publication.
    pub fn record_by(&mut self, recorder: Box<dyn PublicationRecorder>) {
        self.recorder = Some(recorder);
    }

    /// Tells the recorder SHA-256 of the complete file, before [`finish`](Self::finish).
    pub fn set_digest(&mut self, sha256: [u8; 32]) {
        if let Some(recorder) = &mut self.recorder {
            recorder.set_digest(sha256);
        }
    }

    /// Called when the data connection has arrived: returns the offset to write at. Changes nothing
    /// yet, because the first byte may never arrive.
    ///
    /// # Errors
    /// [`FileError::BadOffset`] if the file has become shorter than the offset, or longer where it must
    /// not be truncated; or any error of the kernel.
    pub fn begin(&mut self) -> Result<u64, FileError> {
        let UploadState::Opened { start, may_truncate } = self.state else {
            return Err(FileError::BadOffset);
        };
        let length = size(&fstat(&self.file)?);
        let offset = start.unwrap_or(length);
        if offset > length || offset < length && !may_truncate {
            return Err(FileError::BadOffset);
        }
        self.state = UploadState::Begun { start: offset, excess: length - offset };
        Ok(offset)
    }

    /// Returns the file for writing the next `length` bytes. Bytes must be written in order and without
    /// a gap from the offset that [`Upload::begin`] returned. The first call truncates the bytes that
    /// the upload replaces.
    ///
    /// # Errors
    /// [`FileError::NoSpace`] and [`FileError::QuotaExceeded`] if the storage has no room for the first
    /// bytes beside the old content, which is then kept; [`FileError::WriteRightLost`] if this node may
    /// no longer write; [`FileError::BadOffset`] before `begin`; or any error of the kernel.
    pub fn prepare_write(&mut self, length: u64) -> Result<&File, FileError> {
        match self.state {
            UploadState::Writing { .. } => return Ok(&self.file),
            UploadState::Begun { start, excess } => {
                self.guard.check()?;
                if let Some(PublishPlan { names, replaced, .. }) = &mut self.publish
                    && let Some(replaced) = replaced.take()
                {
                    names.replace_resumable(&self.directory, &self.file, replaced, &self.changes)?;
                    self.name = names.resumable.clone();
                }
                if excess > 0 {
                    // Old content of a partial file has no readers, and its space may be needed.
                    if !self.is_atomic() {
                        self.check_room(start + excess, length)?;
                    }
                    usage::truncate(&self.file, start, &self.changes)?;
                }
                self.state = UploadState::Writing { start, recorded: false };
            }
            UploadState::Opened { .. } | UploadState::Ended => return Err(FileError::BadOffset),
        }
        Ok(&self.file)
    }

    /// Checks that `length` bytes fit beside the content that ends at `end`, by allocating them.
    /// Otherwise, on a full disk, the old content would be truncated and no new content could replace it.
    fn check_room(&self, end: u64, length: u64) -> Result<(), FileError> {
        let (Ok(end), Ok(length @ 1..)) = (libc::off_t::try_from(end), libc::off_t::try_from(length)) else {
            return Ok(());
        };
        match fallocate(&self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, end, length) {
            Err(errno @ (Errno::ENOSPC | Errno::EDQUOT)) => Err(errno.into()),
            // Some file systems do not support it (NFS before 4.2); then the write reports a full disk.
            // The truncation that follows frees the allocated blocks.
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Changes of the user's usage by this upload so far. Written bytes are added when it ends.
    pub fn changes(&self) -> Changes {
        self.changes.clone()
    }

    /// Returns true if the data is in a partial file until [`Upload::finish`] publishes it.
    pub fn is_atomic(&self) -> bool {
        self.publish.is_some()
    }

    /// The file, for writing after [`Upload::prepare_write`].
    pub fn file(&self) -> &File {
        &self.file
    }
}
