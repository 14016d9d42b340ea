//! The end of an upload: what stays of it, and how its data gets its name.
//!
//! The data of an atomic upload gets its name in steps, so that an upload that lost its hidden name to
//! another cannot publish the other's data, and no name gets a file that is still written:
//!
//! 1. The hidden name is this upload's file; otherwise the upload is lost.
//! 2. It is renamed to the name that this upload alone has, and that is this upload's file. Otherwise another
//!    has taken the hidden name between the steps, and gets it back.
//! 3. The node may still write, and the directory is where it was.
//! 4. The file gets its name.

use std::os::fd::OwnedFd;

use common::process::logging::chain;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, readlinkat, renameat};
use nix::sys::stat::fstat;
use nix::sys::statfs::{NFS_SUPER_MAGIC, fstatfs};
use nix::unistd::{UnlinkatFlags, close};

use super::files::{rename_new, sync_directory};
use super::handle::{self, Place, identity, size};
use super::partial::has_name;
use super::upload::{Link, Publish, State, Upload};
use super::{FileError, usage};
use crate::work::blocking;

impl Upload {
    /// All data has arrived, and the file should end at `end`. With `sync`, data and name are on disk when
    /// this returns. Only after `Ok` is a 226 true: the name stands for this file, the file has the bytes of
    /// this upload, and the directory is where it was when the upload was opened. After an error nothing is
    /// kept that may have been lost, as by [`Upload::discard`].
    ///
    /// # Errors
    /// Late ones of the data (ENOSPC, EDQUOT, EIO), [`FileError::AlreadyExists`] if an atomic upload may not
    /// replace what has appeared meanwhile, [`FileError::Stale`] if the file or its directory was changed,
    /// renamed, removed or replaced while it was written, and [`FileError::Taken`] if another upload has
    /// taken the hidden file, or this node may not write any more.
    pub fn finish(mut self, sync: bool, end: u64) -> Result<(), FileError> {
        if matches!(self.state, State::Opened { .. }) {
            self.begin()?;
        }
        // An upload without a byte cuts the file here.
        self.to_write(0)?;
        self.note_written();
        let stored = self.store(sync);
        if let Err(error) = stored {
            // It is unknown which bytes are on disk: a read now is served from memory.
            self.end(Keep::Before);
            return Err(error);
        }
        let published = self.publish(end);
        if matches!(published, Err(FileError::AlreadyExists)) {
            // It can never be published. Other errors may pass, and the data is good.
            self.end(Keep::Before);
        }
        self.state = State::Ended;
        published?;
        if sync && (self.created || self.publish.is_some()) {
            sync_directory(&self.directory)?;
        }
        self.check_names()
    }

    /// The right to write the file was lost: changes nothing any more, because another may write it.
    pub fn leave(mut self) {
        self.note_written();
        self.state = State::Ended;
    }

    /// The data connection broke off, or never came: keeps what has arrived, for REST and APPE.
    /// A file that this upload made and that is empty goes again.
    pub fn abandon(mut self) {
        self.end(Keep::Arrived);
    }

    /// Writing failed, as on a full disk: keeps what was written before if it is proved to be on stable
    /// storage, for REST and APPE; otherwise as [`Upload::discard`], because the file may have holes that
    /// its length does not show. Content that nothing has replaced yet stays as it is.
    pub fn keep_proved(mut self) {
        self.end(Keep::Proved);
    }

    /// Takes back what this upload has written.
    pub fn discard(mut self) {
        self.end(Keep::Before);
    }

    /// What is left of the upload when its node dies.
    #[cfg(test)]
    pub(super) fn crash(mut self) {
        self.state = State::Ended;
    }

    /// The first call counts what was written; the data does not grow any more.
    fn note_written(&mut self) {
        let State::Writing { start, noted: noted @ false } = &mut self.state else { return };
        if let Ok(status) = fstat(&self.file) {
            self.changes.grow(size(&status).saturating_sub(*start));
        }
        *noted = true;
    }

    fn store(&self, sync: bool) -> Result<(), FileError> {
        if sync {
            self.file.sync_all()?;
        }
        self.flush()
    }

    /// What `close` would say, while the file stays open: NFS sends the data at every close of a
    /// descriptor, and tells ENOSPC and EDQUOT only then.
    fn flush(&self) -> Result<(), FileError> {
        match close(OwnedFd::from(self.file.try_clone()?)) {
            // Linux has closed it all the same (close(2)).
            Ok(()) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Gives the data its name, if it does not have it yet.
    fn publish(&mut self, end: u64) -> Result<(), FileError> {
        self.guard.check()?;
        if size(&fstat(&self.file)?) != end {
            return Err(FileError::Stale);
        }
        if !self.is_hidden() {
            return Ok(());
        }
        self.claim()?;
        let named = self.guard.check().and_then(|()| self.check_directory()).and_then(|()| self.give_name());
        if named.is_err() {
            self.give_up_claim();
        }
        named
    }

    /// Takes the hidden file for this upload alone. Nothing to do for an upload that is not hidden.
    ///
    /// # Errors
    /// [`FileError::Taken`] if another upload has it, and as the kernel says.
    pub(super) fn claim(&mut self) -> Result<(), FileError> {
        let Some(Publish { hidden, .. }) = &self.publish else { return Ok(()) };
        if !has_name(&self.directory, &*hidden.found_by, &self.file)? {
            return Err(FileError::Taken);
        }
        match renameat(&self.directory, &*hidden.found_by, &self.directory, &*hidden.own) {
            // An NFS server may have done it, and its first answer was lost: the next look tells.
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        let is_ours = has_name(&self.directory, &*hidden.own, &self.file)?;
        self.name = hidden.own.clone();
        if is_ours {
            return Ok(());
        }
        // Another upload took the hidden name between the first look and the rename.
        self.give_up_claim();
        Err(FileError::Taken)
    }

    /// Gives what has this upload's own name the hidden name again, unless that is taken.
    fn give_up_claim(&mut self) {
        let Some(Publish { hidden, .. }) = &self.publish else { return };
        let (from, to) =
            (Place::new(&self.directory, &hidden.own), Place::new(&self.directory, &hidden.found_by));
        match from.and_then(|from| rename_new(&from, &to?)) {
            Ok(()) => self.name = hidden.found_by.clone(),
            // A new upload has begun, or nothing was claimed.
            Err(FileError::AlreadyExists) if self.guard.check().is_ok() => {
                if let Err(error) = self.remove() {
                    log::warn!(path:% = self.path(); "the remains of an upload could not be removed: {}", chain(&error));
                }
            }
            Err(FileError::AlreadyExists | FileError::NotFound) => {}
            Err(error) => {
                log::warn!(path:% = self.path(); "a broken upload could not be kept: {}", chain(&error));
            }
        }
    }

    /// The last step of an atomic upload, after [`Self::claim`].
    pub(super) fn give_name(&self) -> Result<(), FileError> {
        let Some(Publish { name, replace, hidden, .. }) = &self.publish else { return Ok(()) };
        if !*replace {
            return rename_new(
                &Place::new(&self.directory, &hidden.own)?,
                &Place::new(&self.directory, name)?,
            );
        }
        let (from, to) = (Place::new(&self.directory, &hidden.own)?, Place::new(&self.directory, name)?);
        match usage::replace(&from, &to) {
            Ok(freed) => {
                self.changes.remove(freed);
                Ok(())
            }
            // The first answer of an NFS server may have been lost.
            Err(Errno::ENOENT) if has_name(&self.directory, &**name, &self.file)? => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Whether clients find the data where they were told that it is.
    ///
    /// # Errors
    /// [`FileError::Stale`], and as the kernel says.
    pub(super) fn check_names(&self) -> Result<(), FileError> {
        let is_ours = match (&self.publish, &self.link) {
            // No other upload could rename the file that got the name.
            (Some(_), _) => true,
            (None, None) => has_name(&self.directory, &*self.name, &self.file)?,
            (None, Some(Link { text, target })) => {
                let is_link = readlinkat(&self.directory, &*self.name).is_ok_and(|found| found == *text);
                is_link && has_name(AT_FDCWD, &**target, &self.file)?
            }
        };
        if is_ours { self.check_directory() } else { Err(FileError::Stale) }
    }

    /// Whether the directory is where it was. Asks by its path, because another node may have renamed it.
    fn check_directory(&self) -> Result<(), FileError> {
        if has_name(AT_FDCWD, &*self.directory_path, &self.directory)? {
            Ok(())
        } else {
            Err(FileError::Stale)
        }
    }

    /// Ends an upload that is not to be completed. No caller waits for the outcome, so errors go to
    /// the log.
    fn end(&mut self, keep: Keep) {
        self.note_written();
        let state = std::mem::replace(&mut self.state, State::Ended);
        let ended = match (state, keep) {
            (State::Ended, _) => Ok(()),
            // By now it may be another's.
            _ if self.guard.check().is_err() => Ok(()),
            // What another upload left stays, even if it is empty: this one has changed nothing.
            (State::Opened { .. } | State::Begun { .. }, _) if !self.created => Ok(()),
            (State::Opened { .. } | State::Begun { .. }, _) => self.remove_if_empty(),
            (State::Writing { start, .. }, Keep::Before) => self.cut(start),
            (State::Writing { start, .. }, keep) => {
                let kept = if keep == Keep::Proved { self.prove() } else { self.flush() };
                match kept {
                    Ok(()) => self.remove_if_empty(),
                    Err(error) => {
                        let (path, error) = (self.path(), chain(&error));
                        log::warn!(path:%; "a broken upload could not be kept: {error}");
                        self.cut(start)
                    }
                }
            }
        };
        if let Err(error) = ended {
            let path = self.path();
            log::warn!(path:%; "the remains of an upload could not be removed: {}", chain(&error));
        }
    }

    /// Whether all bytes that were written are on stable storage, asked after a write has failed. They
    /// have no gap, because they were written in order.
    fn prove(&self) -> Result<(), FileError> {
        // A failed write on NFS tells that earlier bytes were lost on their way to the server, and
        // tells it once: fsync may succeed then (nfs_file_write in Linux's fs/nfs/file.c).
        if fstatfs(&self.file)?.filesystem_type() == NFS_SUPER_MAGIC {
            return Err(FileError::Unproved);
        }
        self.store(true)
    }

    /// Where the data is, for the log.
    fn path(&self) -> String {
        let directory = handle::real_path(&self.directory).unwrap_or_default();
        format!("{}/{}", directory.escape_ascii(), self.name.escape_ascii())
    }

    fn cut(&self, start: u64) -> Result<(), FileError> {
        if start == 0 && self.is_ours() {
            return self.remove();
        }
        usage::cut(&self.file, start, &self.changes)
    }

    fn remove_if_empty(&self) -> Result<(), FileError> {
        if self.is_ours() && size(&fstat(&self.file)?) == 0 { self.remove() } else { Ok(()) }
    }

    /// Whether the name is nothing to anybody else.
    fn is_ours(&self) -> bool {
        self.created || self.publish.is_some()
    }

    fn remove(&self) -> Result<(), FileError> {
        let ours = identity(&fstat(&self.file)?);
        match usage::unlink(&self.directory, &*self.name, UnlinkatFlags::NoRemoveDir, Some(ours)) {
            Ok(freed) => self.changes.remove(freed),
            // Another session has removed it.
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        blocking::assert_allowed("an upload is dropped");
        self.end(Keep::Arrived);
    }
}

/// What stays of an upload that is not completed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    Arrived,
    /// What arrived, if it is proved to be on stable storage.
    Proved,
    Before,
}
