//! The end of an upload: publishing its file, or removing or keeping the data of an aborted upload.
//!
//! An atomic upload is published in steps. They ensure that an upload that lost its partial file to
//! another upload cannot publish the other upload's data, and that no file is published while it is
//! being written:
//!
//! 1. Check that the resumable name is this upload's file; otherwise the upload is lost.
//! 2. Rename it to the unique name of this upload, and check that the unique name is this upload's
//!    file. Otherwise another upload has taken the resumable name between these steps; it gets the name
//!    back.
//! 3. Check that the node may still write and that the directory still has its path.
//! 4. If an event tells of the upload, note in the journal what is about to be published.
//! 5. Rename the file to its final name.

use std::os::fd::OwnedFd;

use common::process::logging::chain;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, readlinkat, renameat};
use nix::sys::stat::fstat;
use nix::sys::statfs::{NFS_SUPER_MAGIC, fstatfs};
use nix::unistd::{UnlinkatFlags, close};

use super::files::sync_directory;
use super::handle::{self, EntryLocation, identity, size};
use super::partial::has_name;
use super::rename_new::rename_new;
use super::upload::{FollowedLink, PublishPlan, Upload, UploadState};
use super::{FileError, FileToPublish, PublicationRecorder, usage};
use crate::work::{StorageCall, blocking};

impl Upload {
    /// Completes the upload after all data has arrived; the file must end at `end`. With `sync`, data
    /// and name are on stable storage when this returns. A 226 is only correct after `Ok`: then the
    /// name is this file, the file consists of the bytes of this upload, and the directory has the path
    /// that it had when the upload was opened. If the data may have been lost, it is removed as by
    /// [`Upload::discard`].
    ///
    /// # Errors
    /// Delayed write errors (ENOSPC, EDQUOT, EIO), [`FileError::AlreadyExists`] if an atomic upload
    /// must not replace a file that has appeared in the meantime, [`FileError::Stale`] if the file or
    /// its directory was changed, renamed, removed or replaced during the upload, and
    /// [`FileError::WriteRightLost`] if another upload has taken the partial file or this node may no
    /// longer write.
    ///
    /// Returns the recorder of a direct upload that is complete only if its lease is still held. The caller
    /// tells the recorder.
    pub fn finish(mut self, sync: bool, end: u64) -> Result<Option<Box<dyn PublicationRecorder>>, FileError> {
        if matches!(self.state, UploadState::Opened { .. }) {
            self.begin()?;
        }
        // An empty upload truncates the file here.
        self.prepare_write(0)?;
        self.record_written();
        let stored = self.flush_to_storage(sync);
        if let Err(error) = stored {
            // It is unknown which bytes are on stable storage: a read now is served from the page
            // cache.
            self.end(KeepData::OnlyPrevious);
            return Err(error);
        }
        let published = self.publish(end);
        if matches!(published, Err(FileError::AlreadyExists)) {
            // The upload can never be published. After other errors the data is good and a resume may
            // succeed.
            self.end(KeepData::OnlyPrevious);
        }
        self.state = UploadState::Ended;
        published?;
        let named = self.keep_name(sync);
        self.record_end(named)
    }

    /// After the publication: brings the name to stable storage, and checks it.
    fn keep_name(&self, sync: bool) -> Result<(), FileError> {
        if sync && (self.created || self.publish.is_some()) {
            sync_directory(&self.directory)?;
        }
        self.check_still_named()
    }

    /// Tells the recorder how the upload ended, or returns it if the lease decides.
    fn record_end(
        &mut self,
        named: Result<(), FileError>,
    ) -> Result<Option<Box<dyn PublicationRecorder>>, FileError> {
        let Some(mut recorder) = self.recorder.take() else { return named.map(|()| None) };
        if self.is_atomic() {
            match &named {
                Ok(()) => recorder.complete(),
                Err(_) => recorder.fail(),
            }
            return named.map(|()| None);
        }
        named?;
        recorder.begin(&self.file_to_publish()?)?;
        if !self.is_fenced() {
            return Ok(Some(recorder));
        }
        recorder.complete();
        Ok(None)
    }

    fn file_to_publish(&self) -> Result<FileToPublish<'_>, FileError> {
        let status = fstat(&self.file)?;
        let (name, hidden) = match &self.publish {
            Some(PublishPlan { name, names, .. }) => (name, Some([&*names.unique, &*names.resumable])),
            None => (&self.name, None),
        };
        Ok(FileToPublish {
            directory: &self.directory_path,
            name,
            hidden,
            inode: status.st_ino,
            size: size(&status),
            changed: i128::from(status.st_ctime) * 1_000_000_000 + i128::from(status.st_ctime_nsec),
            is_proven: self.is_atomic() || self.is_fenced(),
        })
    }

    /// Ends the upload without changing anything, because this node has lost the right to write the
    /// file and another session may be writing it.
    pub fn leave_untouched(mut self) {
        self.record_written();
        self.state = UploadState::Ended;
    }

    /// Ends an upload whose data connection was aborted or never arrived. Keeps the received data for
    /// REST and APPE. Removes an empty file that this upload created.
    pub fn abandon(mut self) {
        self.end(KeepData::Received);
    }

    /// Ends an upload after a failed write, for example on a full disk. Keeps the received data for
    /// REST and APPE if it is on stable storage. Otherwise it has the effect of [`Upload::discard`],
    /// because the file may have holes that its length does not show. Old content that has not been
    /// truncated yet is kept.
    pub fn keep_if_durable(mut self) {
        self.end(KeepData::IfDurable);
    }

    /// Removes the data that this upload has written.
    pub fn discard(mut self) {
        self.end(KeepData::OnlyPrevious);
    }

    /// Leaves the file as it is when a node dies.
    #[cfg(test)]
    pub(super) fn crash(mut self) {
        self.state = UploadState::Ended;
    }

    /// The first call adds the written bytes to `changes`; no data is written after it.
    fn record_written(&mut self) {
        let UploadState::Writing { start, recorded: recorded @ false } = &mut self.state else { return };
        if let Ok(status) = fstat(&self.file) {
            self.changes.grow(size(&status).saturating_sub(*start));
        }
        *recorded = true;
    }

    fn flush_to_storage(&self, sync: bool) -> Result<(), FileError> {
        if sync {
            StorageCall::Fsync.measure(|| self.file.sync_all())?;
        }
        self.flush()
    }

    /// Gets the error that `close` would return while the file stays open: NFS writes data back at
    /// every close of a descriptor, and reports ENOSPC and EDQUOT only then.
    fn flush(&self) -> Result<(), FileError> {
        let copy = OwnedFd::from(self.file.try_clone()?);
        match StorageCall::Close.measure(|| close(copy)) {
            // Linux has closed the descriptor anyway (close(2)).
            Ok(()) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Checks the file and, if it is a partial file, renames it to its final name.
    fn publish(&mut self, end: u64) -> Result<(), FileError> {
        self.guard.check()?;
        if size(&fstat(&self.file)?) != end {
            return Err(FileError::Stale);
        }
        if !self.is_atomic() {
            return Ok(());
        }
        self.take_unique_name()?;
        let named = self
            .guard
            .check()
            .and_then(|()| self.check_directory())
            .and_then(|()| self.record_begin())
            .and_then(|()| self.rename_to_final_name());
        if named.is_err() {
            if let Some(mut recorder) = self.recorder.take() {
                recorder.fail();
            }
            self.restore_resumable_name();
        }
        named
    }

    fn record_begin(&mut self) -> Result<(), FileError> {
        let Some(mut recorder) = self.recorder.take() else { return Ok(()) };
        let begun = self.file_to_publish().and_then(|file| recorder.begin(&file));
        self.recorder = Some(recorder);
        // Bringing the note to stable storage may have taken long.
        begun.and_then(|()| self.guard.check())
    }

    /// Renames the partial file from its resumable name to its unique name, so that only this upload
    /// can publish it. Does nothing for a direct upload.
    ///
    /// # Errors
    /// [`FileError::WriteRightLost`] if another upload has it, or any error of the kernel.
    pub(super) fn take_unique_name(&mut self) -> Result<(), FileError> {
        let Some(PublishPlan { names, replaced, .. }) = &self.publish else { return Ok(()) };
        debug_assert!(replaced.is_none(), "the file has its resumable name once it may be written");
        if !has_name(&self.directory, &*names.resumable, &self.file)? {
            return Err(FileError::WriteRightLost);
        }
        match renameat(&self.directory, &*names.resumable, &self.directory, &*names.unique) {
            // An NFS server may have renamed it and its first reply was lost: the check below tells.
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        let is_ours = has_name(&self.directory, &*names.unique, &self.file)?;
        self.name = names.unique.clone();
        if is_ours {
            return Ok(());
        }
        // Another upload took the resumable name between the check and the rename.
        self.restore_resumable_name();
        Err(FileError::WriteRightLost)
    }

    /// Renames the file with the unique name back to the resumable name, unless the resumable name is
    /// taken.
    fn restore_resumable_name(&mut self) {
        let Some(PublishPlan { names, .. }) = &self.publish else { return };
        let (from, to) = (
            EntryLocation::new(&self.directory, &names.unique),
            EntryLocation::new(&self.directory, &names.resumable),
        );
        match from.and_then(|from| rename_new(&from, &to?)) {
            Ok(()) => self.name = names.resumable.clone(),
            // A new upload has the resumable name, so this data cannot be resumed.
            Err(FileError::AlreadyExists) if self.guard.check().is_ok() => {
                if let Err(error) = self.remove() {
                    self.warn("data of an aborted upload could not be removed", &error);
                }
            }
            // This node may no longer write, or another session has removed the file.
            Err(FileError::AlreadyExists | FileError::NotFound) => {}
            Err(error) => {
                self.warn("the partial file of an upload could not be kept for resuming", &error);
            }
        }
    }

    /// The last step of an atomic upload, after [`Self::take_unique_name`].
    pub(super) fn rename_to_final_name(&self) -> Result<(), FileError> {
        let Some(PublishPlan { name, may_replace, names, .. }) = &self.publish else { return Ok(()) };
        let (from, to) =
            (EntryLocation::new(&self.directory, &names.unique)?, EntryLocation::new(&self.directory, name)?);
        if !*may_replace {
            return StorageCall::Rename.measure(|| rename_new(&from, &to));
        }
        match StorageCall::Rename.measure(|| usage::replace(&from, &to)) {
            Ok(freed) => {
                self.changes.remove(freed);
                Ok(())
            }
            // An NFS server may have renamed it and its first reply was lost.
            Err(Errno::ENOENT) if has_name(&self.directory, &**name, &self.file)? => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Checks that clients find the data under the path of the upload.
    ///
    /// # Errors
    /// [`FileError::Stale`] if they do not, or any error of the kernel.
    pub(super) fn check_still_named(&self) -> Result<(), FileError> {
        let is_ours = match (&self.publish, &self.link) {
            // Only this upload could rename the file to its final name.
            (Some(_), _) => true,
            (None, None) => has_name(&self.directory, &*self.name, &self.file)?,
            (None, Some(FollowedLink { text, target })) => {
                let is_link = readlinkat(&self.directory, &*self.name).is_ok_and(|found| found == *text);
                is_link && has_name(AT_FDCWD, &**target, &self.file)?
            }
        };
        if is_ours { self.check_directory() } else { Err(FileError::Stale) }
    }

    /// Checks that the directory still has its path. Looks the path up again, because another node may
    /// have renamed the directory.
    fn check_directory(&self) -> Result<(), FileError> {
        if has_name(AT_FDCWD, &*self.directory_path, &self.directory)? {
            Ok(())
        } else {
            Err(FileError::Stale)
        }
    }

    /// Ends an upload that is not completed. No caller waits for the outcome, so errors go to the log.
    fn end(&mut self, keep: KeepData) {
        self.record_written();
        let state = std::mem::replace(&mut self.state, UploadState::Ended);
        let ended = match (state, keep) {
            (UploadState::Ended, _) => Ok(()),
            // Another session may own the file by now.
            _ if self.guard.check().is_err() => Ok(()),
            // This upload has changed nothing: keep the file of an earlier upload, even if it is empty.
            (UploadState::Opened { .. } | UploadState::Begun { .. }, _) if !self.created => Ok(()),
            (UploadState::Opened { .. } | UploadState::Begun { .. }, _) => self.remove_if_empty(),
            (UploadState::Writing { start, .. }, KeepData::OnlyPrevious) => self.truncate(start),
            (UploadState::Writing { start, .. }, keep) => {
                let kept = if keep == KeepData::IfDurable { self.check_durable() } else { self.flush() };
                match kept {
                    Ok(()) => self.remove_if_empty(),
                    Err(error) => {
                        self.warn("data of an aborted upload could not be kept", &error);
                        self.truncate(start)
                    }
                }
            }
        };
        if let Err(error) = ended {
            self.warn("data of an aborted upload could not be removed", &error);
        }
    }

    /// Checks that all written bytes are on stable storage, after a write has failed. They have no gap,
    /// because they were written in order.
    fn check_durable(&self) -> Result<(), FileError> {
        // A failed write on NFS may report the loss of earlier bytes on their way to the server, and
        // reports it only once: a later fsync may succeed (nfs_file_write in Linux's fs/nfs/file.c).
        if fstatfs(&self.file)?.filesystem_type() == NFS_SUPER_MAGIC {
            return Err(FileError::NotDurable);
        }
        self.flush_to_storage(true)
    }

    /// Logs a failure with the current path of the data.
    fn warn(&self, message: &str, error: &FileError) {
        let path = handle::printable_path(&self.directory, &self.name);
        log::warn!(path:%; "{message}: {}", chain(error));
    }

    /// Removes the data from `start` on, and the file if nothing is left of it and this upload may remove it.
    fn truncate(&self, start: u64) -> Result<(), FileError> {
        if start == 0 && self.may_remove() {
            return self.remove();
        }
        usage::truncate(&self.file, start, &self.changes)
    }

    /// Removes an empty file if this upload may remove it.
    fn remove_if_empty(&self) -> Result<(), FileError> {
        if self.may_remove() && size(&fstat(&self.file)?) == 0 { self.remove() } else { Ok(()) }
    }

    /// Returns true if this upload may remove the file: it created the file, or the file is its partial
    /// file.
    fn may_remove(&self) -> bool {
        self.created || self.publish.is_some()
    }

    fn remove(&self) -> Result<(), FileError> {
        let ours = identity(&fstat(&self.file)?);
        match usage::unlink(&self.directory, &*self.name, UnlinkatFlags::NoRemoveDir, Some(ours)) {
            Ok(freed) => self.changes.remove(freed),
            // Another session has removed the file.
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        blocking::assert_allowed("an upload is dropped");
        self.end(KeepData::Received);
    }
}

/// Data that is kept of an upload that is not completed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum KeepData {
    /// All received data.
    Received,
    /// The received data if it is on stable storage, otherwise as `OnlyPrevious`.
    IfDurable,
    /// Only the content that the file had before this upload.
    OnlyPrevious,
}
