//! The look-up of a path to upload to, and opening its file: directly or as a partial file.

use std::fs::File;

use nix::errno::Errno;
use nix::fcntl::readlinkat;
use nix::sys::stat::{FileStat, fstat};

use super::handle::{self, EntryLocation, kind, size};
use super::lock::WriterLock;
use super::partial::{PartialNames, UploadFile};
use super::upload::{FollowedLink, PublishPlan, Upload, UploadPlacement, UploadState, WriteGuard, WriteMode};
use super::usage::Changes;
use super::{FileError, Jail, RivalPolicy};
use crate::listing::EntryKind;
use crate::virtual_path::VirtualPath;

/// A path to upload to. It is looked up once, for both the write lease and the open.
#[derive(Debug)]
pub(crate) struct UploadTarget<'j> {
    jail: &'j Jail,
    path: &'j VirtualPath,
    location: EntryLocation<'j>,
    /// Real path of the directory in `location`.
    directory_path: Vec<u8>,
    /// Status of the name when it was looked up.
    found: Result<FileStat, Errno>,
    may_create: bool,
}

impl UploadTarget<'_> {
    /// Requires that the file exists when it is opened. An earlier check is not enough, because another
    /// session may remove the file after it.
    pub(crate) fn only_existing(self) -> Self {
        Self { may_create: false, ..self }
    }

    /// See [`Jail::canonical_key`].
    ///
    /// # Errors
    /// Any error of the kernel.
    pub(crate) fn key(&self) -> Result<Vec<u8>, FileError> {
        if self.found.is_ok_and(|status| kind(&status) == EntryKind::Symlink) {
            // Only links need the real path of their target. The real path of a regular file is no longer
            // its name if the file is replaced at this moment.
            match self.jail.open_path(self.path, handle::STATUS) {
                Ok(target) => return self.jail.key_of_handle(&target),
                Err(FileError::NotFound | FileError::Loop) => {}
                Err(error) => return Err(error),
            }
        }
        self.jail.key_in(&self.directory_path, self.location.name)
    }

    /// Opens the file for writing and takes the writer's lock. Creates a missing file, but changes
    /// nothing else.
    ///
    /// # Errors
    /// [`FileError::BeingWritten`] if another upload has the lock, [`FileError::BadOffset`] if the file is
    /// shorter than the offset of `Resume`, [`FileError::AlreadyExists`] for `CreateNew`, or any error of the
    /// kernel.
    pub(crate) fn open(self, mode: WriteMode, placement: UploadPlacement<'_>) -> Result<Upload, FileError> {
        let (opened, publish) = match placement {
            UploadPlacement::Atomic { owner, rivals } if mode != WriteMode::Append => {
                let (opened, publish) = self.open_partial(mode, owner, rivals)?;
                (opened, Some(publish))
            }
            UploadPlacement::Direct | UploadPlacement::Atomic { .. } => (self.open_direct(mode)?, None),
        };
        let upload = self.into_upload(opened, publish, mode)?;
        // From here on, dropping `upload` removes a created file.
        let status = fstat(&upload.file)?;
        if kind(&status) != EntryKind::File {
            return Err(FileError::NotAFile);
        }
        match upload.state {
            UploadState::Opened { start: Some(offset), .. } if offset > size(&status) => {
                Err(FileError::BadOffset)
            }
            _ => Ok(upload),
        }
    }

    /// Opens a partial file and plans its publication.
    fn open_partial(
        &self,
        mode: WriteMode,
        owner: &str,
        rivals: RivalPolicy,
    ) -> Result<(UploadFile, PublishPlan), FileError> {
        debug_assert_ne!(mode, WriteMode::Append, "APPE changes the file itself");
        self.check_publishable(mode)?;
        if rivals == RivalPolicy::Respect {
            // A direct upload that is still running would notice only at its end that its file was replaced.
            drop(self.jail.lock_for_change(self.path)?);
        }
        let name = self.location.name;
        let names = PartialNames::new(self.jail.partial_name(&self.directory_path, name, owner)?);
        let (directory, locks) = (&self.location.directory, self.jail.locks);
        let mut opened = match mode {
            WriteMode::Resume { offset: 1.., .. } => names.resume(directory, locks)?,
            _ => names.create(directory, self.jail.modes.file, locks, rivals)?,
        };
        let replaced = opened.replaced.take();
        let may_replace = !matches!(mode, WriteMode::CreateNew | WriteMode::Resume { replace: false, .. });
        Ok((opened, PublishPlan { name: name.into(), may_replace, names, replaced }))
    }

    /// The [`Upload`] of an opened file.
    fn into_upload(
        self,
        opened: UploadFile,
        publish: Option<PublishPlan>,
        mode: WriteMode,
    ) -> Result<Upload, FileError> {
        let UploadFile { file, lock, created, .. } = opened;
        let link = match self.found {
            Ok(found) if publish.is_none() && !created && kind(&found) == EntryKind::Symlink => {
                let text = readlinkat(&self.location.directory, self.location.name)?;
                Some(FollowedLink { text, target: handle::real_path(&file)? })
            }
            _ => None,
        };
        let name = match &publish {
            Some(PublishPlan { names, replaced: Some(_), .. }) => names.unique.clone(),
            Some(PublishPlan { names, replaced: None, .. }) => names.resumable.clone(),
            None => self.location.name.into(),
        };
        let start = match mode {
            WriteMode::Replace | WriteMode::CreateNew => Some(0),
            WriteMode::Resume { offset, .. } => Some(offset),
            WriteMode::Append => None,
        };
        // A partial file may always be truncated: the lock, or the owner's write lease, excludes other
        // writers.
        let may_truncate = publish.is_some() || !matches!(mode, WriteMode::Resume { replace: false, .. });
        let changes = Changes::default();
        if created {
            changes.create();
        }
        Ok(Upload {
            file,
            lock,
            guard: WriteGuard::default(),
            directory: self.location.directory,
            directory_path: self.directory_path,
            name,
            link,
            publish,
            created,
            state: UploadState::Opened { start, may_truncate },
            changes,
            recorder: None,
        })
    }

    /// Refuses early an upload whose final rename would fail.
    fn check_publishable(&self, mode: WriteMode) -> Result<(), FileError> {
        match self.found.map(|status| kind(&status)) {
            Err(Errno::ENOENT) if self.may_create => Ok(()),
            Err(errno) => Err(errno.into()),
            Ok(_) if mode == WriteMode::CreateNew => Err(FileError::AlreadyExists),
            Ok(EntryKind::Directory) => Err(FileError::IsADirectory),
            Ok(EntryKind::Other) => Err(FileError::NotAFile),
            Ok(EntryKind::File | EntryKind::Symlink) => Ok(()),
        }
    }

    /// Opens and locks the file itself.
    fn open_direct(&self, mode: WriteMode) -> Result<UploadFile, FileError> {
        let (file, created) = self.open_file(mode)?;
        match self.jail.locks.take(&file)? {
            // This also happens if this node has just created the file: another session opened and
            // locked it first, so the file is left to that session.
            WriterLock::HeldByAnother => Err(FileError::BeingWritten),
            lock => Ok(UploadFile { file, lock, created, replaced: None }),
        }
    }

    /// Opens the file itself. The second value is true if the file was created.
    fn open_file(&self, mode: WriteMode) -> Result<(File, bool), FileError> {
        let create =
            || handle::create_file(&self.location.directory, self.location.name, self.jail.modes.file);
        if mode == WriteMode::CreateNew {
            return create().map(|file| (file, true));
        }
        let is_resumed = matches!(mode, WriteMode::Resume { offset: 1.., .. });
        let mut is_missing = self.found == Err(Errno::ENOENT);
        // Another node may create or remove the file after the look-up. A dangling symbolic link can be
        // neither created nor opened, so the number of attempts is limited.
        for _ in 0..3 {
            if is_missing && !is_resumed && self.may_create {
                match create() {
                    Err(FileError::AlreadyExists) => {}
                    created => return created.map(|file| (file, true)),
                }
            }
            match self.jail.open_path(self.path, handle::WRITE) {
                Err(FileError::NotFound) if is_resumed => return Err(FileError::BadOffset),
                Err(FileError::NotFound) => is_missing = true,
                opened => return opened.map(|handle| (handle.into(), false)),
            }
        }
        Err(FileError::NotFound)
    }
}

impl Jail {
    /// Looks up `path` for an upload.
    ///
    /// # Errors
    /// [`FileError::NotFound`] if the directory of `path` does not exist; `path` itself need not exist.
    pub(crate) fn upload_target<'j>(&'j self, path: &'j VirtualPath) -> Result<UploadTarget<'j>, FileError> {
        let location = self.entry_location(path)?;
        let found = location.status();
        let directory_path = handle::real_path(&location.directory)?;
        Ok(UploadTarget { jail: self, path, location, directory_path, found, may_create: true })
    }

    /// Looks up `path` and opens it as `UploadTarget::open` does.
    ///
    /// # Errors
    /// The errors of `UploadTarget::open`.
    pub fn open_write(
        &self,
        path: &VirtualPath,
        mode: WriteMode,
        placement: UploadPlacement<'_>,
    ) -> Result<Upload, FileError> {
        self.upload_target(path)?.open(mode, placement)
    }
}
