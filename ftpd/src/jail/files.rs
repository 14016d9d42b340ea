//! Operations on single names: status, open for reading, create, remove, rename, change attributes.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::{ffi::OsStringExt, fs::FileExt};

use common::registry::Usage;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat, readlinkat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, UtimensatFlags, fchmodat, fstat, mkdirat, utimensat};
use nix::sys::statvfs::fstatvfs;
use nix::sys::time::TimeSpec;
use nix::unistd::UnlinkatFlags;

use super::handle::{self, entry, kind, size};
use super::rename_new::rename_new;
use super::usage::{self, Changes};
use super::{FileError, Jail, OpenFile};
use crate::listing::{Entry, EntryKind};
use crate::virtual_path::VirtualPath;
use crate::work::StorageCall;

impl OpenFile {
    /// Reads the bytes of `range`. Returns `None` if the range is longer than `max_length` bytes or
    /// exceeds the file.
    ///
    /// # Errors
    /// Any error of the kernel.
    pub fn content(&self, range: &Range<u64>, max_length: u64) -> Result<Option<Vec<u8>>, FileError> {
        let length = range.end.saturating_sub(range.start);
        let Some(length) = usize::try_from(length).ok().filter(|_| length <= max_length) else {
            return Ok(None);
        };
        let mut content = vec![0; length];
        match self.file.read_exact_at(&mut content, range.start) {
            Ok(()) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl Jail {
    /// Checks that `path` can be a working directory (CWD): it is a directory, and names in it may be
    /// looked up.
    ///
    /// # Errors
    /// Any error of the kernel.
    pub fn check_directory(&self, path: &VirtualPath) -> Result<(), FileError> {
        // Resolving `.` requires search permission; opening the directory itself does not.
        match self.open_inside(path, b".", handle::DIRECTORY) {
            Err(FileError::NotFound | FileError::NotADirectory | FileError::Loop)
                if self.has_folder_below(path) =>
            {
                Ok(())
            }
            opened => opened.map(drop),
        }
    }

    /// Opens a file for RETR, SIZE, MDTM and checksums. The file is opened before its status is read,
    /// because on NFS only an open gets the current status from the server.
    ///
    /// # Errors
    /// [`FileError::NotAFile`] if it is not a regular file, or any error of the kernel.
    pub fn open_read(&self, path: &VirtualPath) -> Result<OpenFile, FileError> {
        let (handle, status) = self.open_with_status(path, handle::READ)?;
        if kind(&status) != EntryKind::File {
            return Err(FileError::NotAFile);
        }
        Ok(OpenFile { file: handle.into(), size: size(&status), modified: status.st_mtime })
    }

    /// Returns the entry `path` (MLST, RNFR). A symbolic link is described itself, unless this jail
    /// [resolves](Jail::resolve_links) links. A directory above a shared folder is shown as a directory
    /// even if the home has a link of that name. The name of `/` is `/`.
    ///
    /// # Errors
    /// Any error of the kernel.
    pub fn entry(&self, path: &VirtualPath) -> Result<Entry, FileError> {
        if self.resolves_links || self.has_folder_below(path) {
            return self.resolved_entry(path);
        }
        self.look_up(path, OFlag::O_NOFOLLOW)
    }

    /// Like [`Jail::entry`], but describes the target of a symbolic link if the target is inside the
    /// home (LIST, MLSD of a link to a directory).
    ///
    /// # Errors
    /// Any error of the kernel.
    pub fn resolved_entry(&self, path: &VirtualPath) -> Result<Entry, FileError> {
        self.look_up(path, OFlag::empty())
    }

    /// `no_follow` is `O_NOFOLLOW` or empty.
    fn look_up(&self, path: &VirtualPath, no_follow: OFlag) -> Result<Entry, FileError> {
        let name = path.split().map_or(&b"/"[..], |(_, name)| name);
        // Without O_PATH the open itself would have side effects: on a FIFO it wakes a writer that
        // waits for a reader, on a device the driver decides.
        let opened = self.open_with_status(path, handle::STATUS | no_follow).map(|(found, status)| {
            match kind(&status) {
                // On NFS only a real open gets the current status from the server (close-to-open
                // consistency). If the open fails because of missing permission or because another
                // program holds a lease on the file (F_SETLEASE), the cached status is used.
                EntryKind::File | EntryKind::Directory => {
                    let status = reopen(&found).unwrap_or(status);
                    (found, status)
                }
                EntryKind::Symlink | EntryKind::Other => (found, status),
            }
        });
        match opened {
            // The jail does not follow links.
            Ok((link, status)) if kind(&status) == EntryKind::Symlink => {
                Ok(entry(name, &status, Some(link_target(&link)?)))
            }
            Ok((_, status)) => Ok(entry(name, &status, None)),
            Err(FileError::IsADirectory) if self.has_folder_below(path) => self.synthetic_entry(path),
            Err(error @ (FileError::NotFound | FileError::Loop)) => {
                // Perhaps a symbolic link that is not followed, is dangling, or leaves the home.
                let unfollowed = handle::STATUS | OFlag::O_NOFOLLOW;
                let (link, status) = self.open_with_status(path, unfollowed)?;
                if kind(&status) != EntryKind::Symlink {
                    return Err(error);
                }
                Ok(entry(name, &status, Some(link_target(&link)?)))
            }
            Err(error) => Err(error),
        }
    }

    /// Creates a directory (MKD).
    ///
    /// # Errors
    /// [`FileError::AlreadyExists`], or any error of the kernel.
    pub fn create_directory(&self, path: &VirtualPath) -> Result<(), FileError> {
        let location = match self.entry_location(path) {
            Err(FileError::Fixed) => return Err(FileError::AlreadyExists),
            location => location?,
        };
        mkdirat(&location.directory, location.name, Mode::from_bits_truncate(self.modes.directory))?;
        Ok(())
    }

    /// Removes an empty directory (RMD), together with partial files of aborted uploads in it, which
    /// clients can neither see nor name. Removed files are recorded in `changes`, even after an error.
    ///
    /// # Errors
    /// [`FileError::DirectoryNotEmpty`], even if it only contains removed files that NFS keeps until
    /// they are closed; [`FileError::BeingWritten`] while an atomic upload to the directory runs; or
    /// any error of the kernel.
    pub fn remove_directory(&self, path: &VirtualPath, changes: &Changes) -> Result<(), FileError> {
        let location = self.entry_location(path)?;
        let remove = || usage::unlink(&location.directory, location.name, UnlinkatFlags::RemoveDir, None);
        let removed = match remove() {
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => {
                self.remove_partials(&location, changes)?;
                remove()
            }
            removed => removed,
        };
        changes.remove(removed?);
        Ok(())
    }

    /// Removes a file, or a symbolic link itself (DELE). Returns what that freed.
    ///
    /// # Errors
    /// [`FileError::IsADirectory`], or any error of the kernel.
    pub fn remove_file(&self, path: &VirtualPath) -> Result<Usage, FileError> {
        let location = self.entry_location(path)?;
        Ok(usage::unlink(&location.directory, location.name, UnlinkatFlags::NoRemoveDir, None)?)
    }

    /// Renames `from` to `to` (RNTO). Without `replace` an existing `to` is never replaced, even if
    /// another node creates it at the same moment. Returns the usage of the file that was replaced.
    ///
    /// # Errors
    /// [`FileError::AlreadyExists`] without `replace`; [`FileError::CrossDevice`] if the paths are not
    /// both in the home or both in one folder; or any error of the kernel.
    pub fn rename(&self, from: &VirtualPath, to: &VirtualPath, replace: bool) -> Result<Usage, FileError> {
        let have_same_root = self.have_same_root(from, to);
        let (from, to) = (self.entry_location(from)?, self.entry_location(to)?);
        if !have_same_root {
            return Err(FileError::CrossDevice);
        }
        let renamed = if replace {
            usage::replace(&from, &to).map_err(FileError::from)
        } else {
            rename_new(&from, &to).map(|()| Usage::default())
        };
        match renamed {
            // A directory cannot be moved into itself.
            Err(FileError::Io(error)) if error.raw_os_error() == Some(libc::EINVAL) => {
                Err(FileError::NameNotAllowed)
            }
            renamed => renamed,
        }
    }

    /// Sets the modification time, in Unix seconds (MFMT).
    ///
    /// # Errors
    /// Any error of the kernel.
    pub fn set_modified(&self, path: &VirtualPath, unix_seconds: i64) -> Result<(), FileError> {
        let handle = self.open_to_change(path)?;
        utimensat(
            AT_FDCWD,
            handle::proc_path(&handle).as_c_str(),
            &TimeSpec::UTIME_OMIT,
            &TimeSpec::new(unix_seconds, 0),
            UtimensatFlags::FollowSymlink,
        )?;
        Ok(())
    }

    /// Sets the nine permission bits (SITE CHMOD). `change(mode, is_directory)` gets the current mode
    /// and returns the new one, of which only the nine bits are used.
    ///
    /// # Errors
    /// [`FileError::Fixed`] for the home and for shared folders, under any name, because a client could
    /// make such a directory unusable and then not restore its mode; or any error of the kernel.
    pub fn change_mode(
        &self,
        path: &VirtualPath,
        change: impl FnOnce(u32, bool) -> u32,
    ) -> Result<u32, FileError> {
        let handle = self.open_to_change(path)?;
        let status = fstat(&handle)?;
        if self.is_home_or_folder(&status)? {
            return Err(FileError::Fixed);
        }
        let mode = change(status.st_mode & 0o777, kind(&status) == EntryKind::Directory) & 0o777;
        fchmodat(
            AT_FDCWD,
            handle::proc_path(&handle).as_c_str(),
            Mode::from_bits_truncate(mode),
            FchmodatFlags::FollowSymlink,
        )?;
        Ok(mode)
    }

    /// Returns the bytes that an unprivileged user can still write in the file system of `path` (AVBL).
    /// Does not reflect quotas of an NFS server.
    ///
    /// # Errors
    /// Any error of the kernel.
    pub fn free_space(&self, path: &VirtualPath) -> Result<u64, FileError> {
        let status = match self.open_path(path, handle::STATUS) {
            Err(FileError::IsADirectory) if self.has_folder_below(path) => fstatvfs(&self.home)?,
            opened => fstatvfs(opened?)?,
        };
        Ok(status.blocks_available().saturating_mul(status.fragment_size()))
    }

    /// Writes the names in the directories of `paths` to stable storage after they have changed, each
    /// directory once; nothing without [`Self::sync_names`]. A directory that is gone has no names.
    ///
    /// # Errors
    /// Any error of the kernel. The change is done, and a crash of the storage may undo it.
    pub fn sync_parents(&self, paths: &[&VirtualPath]) -> Result<(), FileError> {
        if !self.syncs_names {
            return Ok(());
        }
        let parents: BTreeSet<VirtualPath> =
            paths.iter().filter_map(|path| path.split()).map(|(parent, _)| parent).collect();
        for parent in parents {
            match self.open_inside(&parent, b"", handle::DIRECTORY) {
                Ok(directory) => sync_directory(&directory)?,
                Err(FileError::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Opens `path` to change its attributes.
    fn open_to_change(&self, path: &VirtualPath) -> Result<OwnedFd, FileError> {
        if self.is_fixed(path) {
            return Err(FileError::Fixed);
        }
        self.open_path(path, handle::STATUS)
    }
}

/// Opens a regular file or directory again for reading, by its `O_PATH` handle, and returns its current
/// status. It is the same file even if its name now belongs to another file.
fn reopen(found: &OwnedFd) -> Result<FileStat, Errno> {
    let opened = openat(AT_FDCWD, handle::proc_path(found).as_c_str(), handle::READ, Mode::empty())?;
    fstat(&opened)
}

/// Returns the target of a symbolic link that is open with `O_PATH | O_NOFOLLOW`.
pub(super) fn link_target(link: &OwnedFd) -> Result<Vec<u8>, Errno> {
    readlinkat(link, "").map(OsStringExt::into_vec)
}

/// Writes the names of a directory to stable storage. NFS servers do this before they reply.
pub(super) fn sync_directory(directory: &OwnedFd) -> Result<(), FileError> {
    let readable = match openat(directory, ".", handle::READ_DIRECTORY, Mode::empty()) {
        Ok(readable) => File::from(readable),
        // The directory may be written but not read, so it cannot be synced.
        Err(Errno::EACCES) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    match StorageCall::FsyncDirectory.measure(|| readable.sync_all()) {
        // The file system does not support fsync of directories.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        synced => Ok(synced?),
    }
}
