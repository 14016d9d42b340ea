//! Writing files: STOR, STOU, APPE, with REST, and atomic uploads.
//!
//! An upload is opened before the data connection comes, begins when it is there, changes the file when
//! its first bytes are written, and ends in one of four ways: [`Upload::finish`], [`Upload::abandon`],
//! [`Upload::keep_proved`] or [`Upload::discard`].

use std::fs::File;
use std::os::fd::OwnedFd;

use common::{process::logging::chain, registry::Usage};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate, openat};
use nix::sys::stat::{FileStat, Mode, fstat};
use nix::sys::statfs::{NFS_SUPER_MAGIC, fstatfs};
use nix::unistd::{UnlinkatFlags, close};
use sha2::{Digest, Sha256};

use super::files::{rename_new, sync_directory};
use super::handle::{self, Place, identity, kind, size};
use super::path::VirtualPath;
use super::usage::{self, Changes};
use super::{FileError, Jail, PARTIAL_PREFIX};
use crate::blocking;
use crate::listing::Kind;

/// How an upload treats what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteMode {
    /// STOR.
    Replace,
    /// STOU, and STOR by a user who may not overwrite.
    CreateNew,
    /// STOR after REST (RFC 3659 section 5): bytes before `offset` stay, those after it go. Without
    /// `replace` none may be after it, and an atomic one gives its name only to a file that is new.
    Resume { offset: u64, replace: bool },
    /// APPE.
    Append,
}

/// Where the data goes until the upload is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement<'o> {
    /// Into the file itself.
    Direct,
    /// Under a hidden name that follows from `owner` and the path, so that the same user can
    /// resume on any node. [`WriteMode::Append`] is direct all the same: it changes a file.
    Atomic { owner: &'o str },
}

/// A file that is being written. Dropping it is [`Upload::abandon`].
#[derive(Debug)]
pub struct Upload {
    file: File,
    directory: OwnedFd,
    /// In `directory`; what the data is under for now.
    name: Box<[u8]>,
    publish: Option<Publish>,
    /// This upload made the name, and nobody else can have put data under it.
    created: bool,
    state: State,
    changes: Changes,
}

/// What makes an atomic upload visible.
#[derive(Debug)]
struct Publish {
    name: Box<[u8]>,
    replace: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Nothing has been changed; writing will start at `start` (`None`: at the end), and what is after
    /// it goes where it `may_cut`.
    Opened {
        start: Option<u64>,
        may_cut: bool,
    },
    /// Nothing has been changed; before the first byte is written at `start`, the `beyond` bytes that
    /// are there go.
    Begun {
        start: u64,
        beyond: u64,
    },
    /// Bytes before `start` were there before. `noted`: those after it are among the changes.
    Writing {
        start: u64,
        noted: bool,
    },
    Ended,
}

/// A name that is to be written to: looked up once, for its lease and to open it.
#[derive(Debug)]
pub struct Target<'j> {
    jail: &'j Jail,
    path: &'j VirtualPath,
    place: Place<'j>,
    /// What had the name when it was looked up.
    found: Result<FileStat, Errno>,
}

impl Target<'_> {
    /// See [`Jail::canonical_key`].
    ///
    /// # Errors
    /// As the kernel says.
    pub fn key(&self) -> Result<Vec<u8>, FileError> {
        if self.found.is_ok_and(|status| kind(&status) == Kind::Symlink) {
            // Only for links, because the real path of a file that is replaced just now is not
            // its name any more.
            match self.jail.open_path(self.path, handle::STATUS) {
                Ok(target) => return self.jail.below_storage(&target),
                Err(FileError::NotFound | FileError::Loop) => {}
                Err(error) => return Err(error),
            }
        }
        self.jail.place_key(&self.place)
    }

    /// Opens it to write to it. Changes nothing yet but to make the file if it is missing.
    ///
    /// # Errors
    /// [`FileError::BadOffset`] if there are fewer bytes than `Resume` wants to keep,
    /// [`FileError::AlreadyExists`] for `CreateNew`, and as the kernel says.
    pub fn open(self, mode: WriteMode, placement: Placement<'_>) -> Result<Upload, FileError> {
        let start = match mode {
            WriteMode::Replace | WriteMode::CreateNew => Some(0),
            WriteMode::Resume { offset, .. } => Some(offset),
            WriteMode::Append => None,
        };
        let (file, created, name, publish) = match placement {
            Placement::Atomic { owner } if mode != WriteMode::Append => {
                self.check(mode)?;
                let name = self.jail.partial_name(&self.place, owner)?;
                let (file, created) = open_partial(&self.place.directory, &name, mode, self.jail.modes.file)?;
                let replace =
                    !matches!(mode, WriteMode::CreateNew | WriteMode::Resume { replace: false, .. });
                (file, created, name, Some(Publish { name: self.place.name.into(), replace }))
            }
            Placement::Direct | Placement::Atomic { .. } => {
                let (file, created) = self.open_direct(mode)?;
                (file, created, self.place.name.into(), None)
            }
        };
        let Place { directory, .. } = self.place;
        // What is hidden is this user's alone.
        let may_cut = publish.is_some() || !matches!(mode, WriteMode::Resume { replace: false, .. });
        let state = State::Opened { start, may_cut };
        let changes = Changes::default();
        if created {
            changes.create();
        }
        let upload = Upload { file, directory, name, publish, created, state, changes };
        // From here on, dropping `upload` removes what was created.
        let status = fstat(&upload.file)?;
        if kind(&status) != Kind::File {
            return Err(FileError::NotAFile);
        }
        match start {
            Some(offset) if offset > size(&status) => Err(FileError::BadOffset),
            _ => Ok(upload),
        }
    }

    /// Refuses early what the rename at the end would refuse.
    fn check(&self, mode: WriteMode) -> Result<(), FileError> {
        match self.found.map(|status| kind(&status)) {
            Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
            Ok(_) if mode == WriteMode::CreateNew => Err(FileError::AlreadyExists),
            Ok(Kind::Directory) => Err(FileError::IsADirectory),
            Ok(Kind::Other) => Err(FileError::NotAFile),
            Ok(Kind::File | Kind::Symlink) => Ok(()),
        }
    }

    /// The file, and whether it is new.
    fn open_direct(&self, mode: WriteMode) -> Result<(File, bool), FileError> {
        let create = || create(&self.place.directory, self.place.name, self.jail.modes.file);
        if mode == WriteMode::CreateNew {
            return create().map(|file| (file, true));
        }
        let must_be_there = matches!(mode, WriteMode::Resume { offset: 1.., .. });
        let mut is_missing = self.found == Err(Errno::ENOENT);
        // As it was found, then once more each way, in case another node makes or removes the file
        // between two steps. A symbolic link that leads nowhere fails both ways, and stays so.
        for _ in 0..3 {
            if is_missing && !must_be_there {
                match create() {
                    Err(FileError::AlreadyExists) => {}
                    created => return created.map(|file| (file, true)),
                }
            }
            match self.jail.open_path(self.path, handle::WRITE) {
                Err(FileError::NotFound) if must_be_there => return Err(FileError::BadOffset),
                Err(FileError::NotFound) => is_missing = true,
                opened => return opened.map(|handle| (handle.into(), false)),
            }
        }
        Err(FileError::NotFound)
    }
}

impl Jail {
    /// Looks up `path`, to write to it.
    ///
    /// # Errors
    /// The directory of `path` must exist; `path` itself need not.
    pub fn target<'j>(&'j self, path: &'j VirtualPath) -> Result<Target<'j>, FileError> {
        let place = self.place(path)?;
        let found = place.status();
        Ok(Target { jail: self, path, place, found })
    }

    /// `Target::open` of `path`.
    ///
    /// # Errors
    /// The same.
    pub fn open_write(
        &self,
        path: &VirtualPath,
        mode: WriteMode,
        placement: Placement<'_>,
    ) -> Result<Upload, FileError> {
        self.target(path)?.open(mode, placement)
    }

    /// How many bytes of an atomic upload of `owner` to `path` have arrived, if one broke off:
    /// where SIZE tells the client to resume when the file itself does not exist.
    ///
    /// # Errors
    /// As the kernel says; no partial file is not an error.
    pub fn partial_size(&self, path: &VirtualPath, owner: &str) -> Result<Option<u64>, FileError> {
        let place = self.place(path)?;
        let name = self.partial_name(&place, owner)?;
        let flags = handle::READ | OFlag::O_NOFOLLOW;
        match openat(&place.directory, &*name, flags, Mode::empty()) {
            Ok(file) => Ok(Some(size(&fstat(&file)?))),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Removes what a broken atomic upload of `owner` to `path` left. Answers what that freed, if there
    /// was any.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn remove_partial(&self, path: &VirtualPath, owner: &str) -> Result<Option<Usage>, FileError> {
        let place = self.place(path)?;
        let name = self.partial_name(&place, owner)?;
        match usage::unlink(&place.directory, &*name, UnlinkatFlags::NoRemoveDir, None) {
            Ok(freed) => Ok(Some(freed)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The same on every node; nothing a client can guess for another user, or say.
    fn partial_name(&self, place: &Place<'_>, owner: &str) -> Result<Box<[u8]>, FileError> {
        let mut hash = Sha256::new();
        hash.update(owner.as_bytes());
        hash.update([0]);
        hash.update(self.place_key(place)?);
        let mut name = PARTIAL_PREFIX.to_vec();
        name.extend_from_slice(&hex::encode(hash.finalize()).as_bytes()[..32]);
        Ok(name.into())
    }
}

impl Upload {
    /// The data connection is there: tells the offset to write at. Changes nothing yet, because the first
    /// byte may never come.
    ///
    /// # Errors
    /// [`FileError::BadOffset`] if the file has become shorter, or longer where nothing may go; and as
    /// the kernel says.
    pub fn begin(&mut self) -> Result<u64, FileError> {
        let State::Opened { start, may_cut } = self.state else {
            return Err(FileError::BadOffset);
        };
        let length = size(&fstat(&self.file)?);
        let offset = start.unwrap_or(length);
        if offset > length || offset < length && !may_cut {
            return Err(FileError::BadOffset);
        }
        self.state = State::Begun { start: offset, beyond: length - offset };
        Ok(offset)
    }

    /// The file, to write `length` bytes to it now, in order and without a gap from the offset that
    /// [`Upload::begin`] told. The first call cuts off what they replace.
    ///
    /// # Errors
    /// [`FileError::NoSpace`] and [`FileError::QuotaExceeded`] if the storage has no room for the first
    /// bytes beside what they replace, which then stays; [`FileError::BadOffset`] before `begin`; and as
    /// the kernel says.
    pub fn to_write(&mut self, length: u64) -> Result<&File, FileError> {
        match self.state {
            State::Writing { .. } => return Ok(&self.file),
            State::Begun { start, beyond } => {
                if beyond > 0 {
                    // A hidden file is worth nothing to a reader, and its room may be needed.
                    if !self.is_hidden() {
                        self.reserve(start + beyond, length)?;
                    }
                    usage::cut(&self.file, start, &self.changes)?;
                }
                self.state = State::Writing { start, noted: false };
            }
            State::Opened { .. } | State::Ended => return Err(FileError::BadOffset),
        }
        Ok(&self.file)
    }

    /// Makes sure that the storage has room for `length` bytes beside the content that ends at `end`: on
    /// a full disk the content would be cut off, and nothing take its place.
    fn reserve(&self, end: u64, length: u64) -> Result<(), FileError> {
        let (Ok(end), Ok(length @ 1..)) = (libc::off_t::try_from(end), libc::off_t::try_from(length)) else {
            return Ok(());
        };
        match fallocate(&self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, end, length) {
            Err(errno @ (Errno::ENOSPC | Errno::EDQUOT)) => Err(errno.into()),
            // Not every file system can (NFS before 4.2), and then the write will tell. What was
            // reserved goes when the file is cut.
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// What this upload has done to the home so far; what it has written is added when it ends.
    pub fn changes(&self) -> Changes {
        self.changes.clone()
    }

    /// Whether the data is hidden until [`Upload::finish`] gives it its name.
    pub fn is_hidden(&self) -> bool {
        self.publish.is_some()
    }

    /// To write to, after [`Upload::to_write`].
    pub fn file(&self) -> &File {
        &self.file
    }

    /// All data has arrived. With `sync`, data and name are on disk when this returns. Only after
    /// `Ok` is a 226 true; after an error nothing is kept that may have been lost, as by
    /// [`Upload::discard`].
    ///
    /// # Errors
    /// Late ones of the data (ENOSPC, EDQUOT, EIO), [`FileError::AlreadyExists`] if an atomic
    /// upload may not replace what has appeared meanwhile, and [`FileError::Stale`] if somebody has
    /// removed or replaced the file while it was written.
    pub fn finish(mut self, sync: bool) -> Result<(), FileError> {
        if matches!(self.state, State::Opened { .. }) {
            self.begin()?;
        }
        // An upload without a byte cuts the file here.
        self.to_write(0)?;
        self.note_written();
        let stored = self.store(sync);
        if let Err(error) = stored {
            // Nobody knows which bytes are on disk: what is read now comes from memory.
            self.end(Keep::Before);
            return Err(error);
        }
        let published = self.publish();
        if matches!(published, Err(FileError::AlreadyExists)) {
            // It can never be published. Other errors may pass, and the data is good.
            self.end(Keep::Before);
        }
        self.state = State::Ended;
        published?;
        if sync && (self.created || self.publish.is_some()) {
            sync_directory(&self.directory)?;
        }
        Ok(())
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

    fn publish(&self) -> Result<(), FileError> {
        let Some(Publish { name, replace }) = &self.publish else {
            let has_name = fstat(&self.file)?.st_nlink > 0;
            return if has_name { Ok(()) } else { Err(FileError::Stale) };
        };
        if !*replace {
            let from = Place { directory: self.directory.try_clone()?, name: &self.name };
            let to = Place { directory: self.directory.try_clone()?, name };
            return rename_new(&from, &to);
        }
        let ours = identity(&fstat(&self.file)?);
        let place = |name| Ok::<_, FileError>(Place { directory: self.directory.try_clone()?, name });
        match usage::replace(&place(&*self.name)?, &place(&**name)?) {
            // The first answer of an NFS server may have been lost.
            Err(Errno::ENOENT)
                if handle::status(&self.directory, &**name).is_ok_and(|status| identity(&status) == ours) =>
            {
                Ok(())
            }
            renamed => {
                self.changes.remove(renamed?);
                Ok(())
            }
        }
    }

    /// Ends an upload that is not to be completed. Nobody waits for the outcome, so errors go to
    /// the log.
    fn end(&mut self, keep: Keep) {
        self.note_written();
        let state = std::mem::replace(&mut self.state, State::Ended);
        let ended = match (state, keep) {
            (State::Ended, _) => Ok(()),
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

fn create(directory: &OwnedFd, name: &[u8], mode: u32) -> Result<File, FileError> {
    let flags = handle::WRITE | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
    Ok(openat(directory, name, flags, Mode::from_bits_truncate(mode))?.into())
}

fn open_partial(
    directory: &OwnedFd,
    name: &[u8],
    mode: WriteMode,
    bits: u32,
) -> Result<(File, bool), FileError> {
    let flags = handle::WRITE | OFlag::O_NOFOLLOW;
    match openat(directory, name, flags, Mode::empty()) {
        Ok(file) => Ok((file.into(), false)),
        Err(Errno::ENOENT) if matches!(mode, WriteMode::Resume { offset: 1.., .. }) => {
            Err(FileError::BadOffset)
        }
        Err(Errno::ENOENT) => create(directory, name, bits).map(|file| (file, true)),
        Err(errno) => Err(errno.into()),
    }
}
