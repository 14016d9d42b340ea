//! Writing files: STOR, STOU, APPE, with REST, and atomic uploads.
//!
//! An upload is opened before the data connection comes, begins when it is there, changes the file when
//! its first bytes are written, and ends in one of five ways: [`Upload::finish`], [`Upload::abandon`],
//! [`Upload::keep_proved`], [`Upload::discard`] or [`Upload::leave`].
//!
//! From the moment it is opened it holds the lock of the file's writer: see [`super::lock`].

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstat};

use super::handle::{self, Place, kind, size};
use super::lock::Lock;
use super::partial::{HiddenNames, Partial, Replaced};
use super::usage::{self, Changes};
use super::{FileError, Jail, Rivals};
use crate::listing::Kind;
use crate::virtual_path::VirtualPath;

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
    Atomic { owner: &'o str, rivals: Rivals },
}

/// A file that is being written. Dropping it is [`Upload::abandon`].
#[derive(Debug)]
pub struct Upload {
    pub(super) file: File,
    pub(super) lock: Lock,
    pub(super) guard: Guard,
    pub(super) directory: OwnedFd,
    /// The real path of `directory` when it was opened.
    pub(super) directory_path: Vec<u8>,
    /// In `directory`; what the data is under for now.
    pub(super) name: Box<[u8]>,
    /// The symbolic link that `name` is, if it is one.
    pub(super) link: Option<Link>,
    pub(super) publish: Option<Publish>,
    /// This upload made the name, and no other can have put data under it.
    pub(super) created: bool,
    pub(super) state: State,
    pub(super) changes: Changes,
}

/// What makes an atomic upload visible.
#[derive(Debug)]
pub(super) struct Publish {
    pub name: Box<[u8]>,
    pub replace: bool,
    pub hidden: HiddenNames,
    /// What the data takes the hidden name from with the first byte.
    pub replaces: Option<Replaced>,
}

/// A symbolic link that a file was opened through.
#[derive(Debug)]
pub(super) struct Link {
    /// Its text. Not its inode number, which the next link may get.
    pub text: OsString,
    /// The real path of the file it led to.
    pub target: Vec<u8>,
}

/// Says whether this node may still write, where the lock alone does not prove that.
#[derive(Default)]
pub(super) struct Guard(Option<Box<dyn Fn() -> bool + Send>>);

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Guard").field(&self.0.is_some()).finish()
    }
}

impl Guard {
    /// # Errors
    /// [`FileError::Taken`].
    pub fn check(&self) -> Result<(), FileError> {
        if self.0.as_ref().is_none_or(|may_write| may_write()) { Ok(()) } else { Err(FileError::Taken) }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum State {
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
    /// The real path of the place's directory.
    directory_path: Vec<u8>,
    /// What had the name when it was looked up.
    found: Result<FileStat, Errno>,
    may_create: bool,
}

impl Target<'_> {
    /// The file must be there when it is opened: another session may remove it after any check.
    pub fn only_existing(self) -> Self {
        Self { may_create: false, ..self }
    }

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
        self.jail.key_in(&self.directory_path, self.place.name)
    }

    /// Opens it to write to it, and takes the lock of its writer. Changes nothing yet but to make the file
    /// if it is missing.
    ///
    /// # Errors
    /// [`FileError::BeingWritten`] if another upload has the lock, [`FileError::BadOffset`] if there are
    /// fewer bytes than `Resume` wants to keep, [`FileError::AlreadyExists`] for `CreateNew`, and as the
    /// kernel says.
    pub fn open(self, mode: WriteMode, placement: Placement<'_>) -> Result<Upload, FileError> {
        let start = match mode {
            WriteMode::Replace | WriteMode::CreateNew => Some(0),
            WriteMode::Resume { offset, .. } => Some(offset),
            WriteMode::Append => None,
        };
        let (partial, name, publish) = match placement {
            Placement::Atomic { owner, rivals } if mode != WriteMode::Append => {
                self.check(mode)?;
                if rivals == Rivals::Respected {
                    // A direct upload would find at its end that its file has no name any more.
                    drop(self.jail.hold(self.path)?);
                }
                let hidden =
                    HiddenNames::new(self.jail.partial_name(&self.directory_path, self.place.name, owner)?);
                let (directory, locks) = (&self.place.directory, self.jail.locks);
                let mut partial = match mode {
                    WriteMode::Resume { offset: 1.., .. } => hidden.resume(directory, locks)?,
                    _ => hidden.create(directory, self.jail.modes.file, locks, rivals)?,
                };
                let replaces = partial.replaces.take();
                let now = if replaces.is_some() { &hidden.own } else { &hidden.found_by }.clone();
                let replace =
                    !matches!(mode, WriteMode::CreateNew | WriteMode::Resume { replace: false, .. });
                let publish = Publish { name: self.place.name.into(), replace, hidden, replaces };
                (partial, now, Some(publish))
            }
            Placement::Direct | Placement::Atomic { .. } => {
                (self.open_direct(mode)?, self.place.name.into(), None)
            }
        };
        let Partial { file, lock, created, .. } = partial;
        let link = match self.found {
            Ok(found) if publish.is_none() && !created && kind(&found) == Kind::Symlink => {
                let text = readlinkat(&self.place.directory, self.place.name)?;
                Some(Link { text, target: handle::real_path(&file)? })
            }
            _ => None,
        };
        let (Place { directory, .. }, directory_path) = (self.place, self.directory_path);
        // A hidden file is locked, or its owner's lease keeps all others from it: it may always be cut.
        let may_cut = publish.is_some() || !matches!(mode, WriteMode::Resume { replace: false, .. });
        let state = State::Opened { start, may_cut };
        let (guard, changes) = (Guard::default(), Changes::default());
        if created {
            changes.create();
        }
        let upload = Upload {
            file,
            lock,
            guard,
            directory,
            directory_path,
            name,
            link,
            publish,
            created,
            state,
            changes,
        };
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
            Err(Errno::ENOENT) if self.may_create => Ok(()),
            Err(errno) => Err(errno.into()),
            Ok(_) if mode == WriteMode::CreateNew => Err(FileError::AlreadyExists),
            Ok(Kind::Directory) => Err(FileError::IsADirectory),
            Ok(Kind::Other) => Err(FileError::NotAFile),
            Ok(Kind::File | Kind::Symlink) => Ok(()),
        }
    }

    /// The file itself, locked.
    fn open_direct(&self, mode: WriteMode) -> Result<Partial, FileError> {
        let (file, created) = self.open_file(mode)?;
        match self.jail.locks.take(&file)? {
            // Also where this node has just made the file: another opened it and was faster, and now it is
            // that one's.
            Lock::HeldByAnother => Err(FileError::BeingWritten),
            lock => Ok(Partial { file, lock, created, replaces: None }),
        }
    }

    /// The file, and whether it is new.
    fn open_file(&self, mode: WriteMode) -> Result<(File, bool), FileError> {
        let create = || create(&self.place.directory, self.place.name, self.jail.modes.file);
        if mode == WriteMode::CreateNew {
            return create().map(|file| (file, true));
        }
        let is_resumed = matches!(mode, WriteMode::Resume { offset: 1.., .. });
        let mut is_missing = self.found == Err(Errno::ENOENT);
        // As it was found, then once more each way, in case another node makes or removes the file
        // between two steps. A symbolic link that leads nowhere fails both ways, and stays so.
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
    /// Looks up `path`, to write to it.
    ///
    /// # Errors
    /// The directory of `path` must exist; `path` itself need not.
    pub fn target<'j>(&'j self, path: &'j VirtualPath) -> Result<Target<'j>, FileError> {
        let place = self.place(path)?;
        let found = place.status();
        let directory_path = handle::real_path(&place.directory)?;
        Ok(Target { jail: self, path, place, directory_path, found, may_create: true })
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
}

impl Upload {
    /// Whether the lock proves that no other node writes the file. Otherwise [`Upload::guard_by`] has to.
    pub fn is_fenced(&self) -> bool {
        self.lock.fences()
    }

    /// Asks `may_write` before every step that changes the file or its name: when it says no, nothing is
    /// changed any more.
    pub fn guard_by(&mut self, may_write: impl Fn() -> bool + Send + 'static) {
        self.guard = Guard(Some(Box::new(may_write)));
    }

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
    /// bytes beside what they replace, which then stays; [`FileError::Taken`] if this node may not write any
    /// more; [`FileError::BadOffset`] before `begin`; and as the kernel says.
    pub fn to_write(&mut self, length: u64) -> Result<&File, FileError> {
        match self.state {
            State::Writing { .. } => return Ok(&self.file),
            State::Begun { start, beyond } => {
                self.guard.check()?;
                if let Some(Publish { hidden, replaces, .. }) = &mut self.publish
                    && let Some(replaced) = replaces.take()
                {
                    hidden.take_over(&self.directory, &self.file, replaced, &self.changes)?;
                    self.name = hidden.found_by.clone();
                }
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
}

/// A new file.
pub(super) fn create(directory: &OwnedFd, name: &[u8], mode: u32) -> Result<File, FileError> {
    let flags = handle::WRITE | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
    Ok(openat(directory, name, flags, Mode::from_bits_truncate(mode))?.into())
}
