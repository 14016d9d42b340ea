//! Operations on single names: status, open to read, make, remove, rename, attributes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::{ffi::OsStringExt, fs::FileExt};

use common::registry::Usage;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, openat, readlinkat, renameat, renameat2};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, UtimensatFlags, fchmodat, fstat, mkdirat, utimensat};
use nix::sys::statvfs::fstatvfs;
use nix::sys::time::TimeSpec;
use nix::unistd::{LinkatFlags, UnlinkatFlags, linkat, unlinkat};

use super::handle::{self, EntryLocation, entry, identity, kind, real_path, size};
use super::usage::{self, Changes};
use super::{FileError, Jail, OpenFile};
use crate::listing::{Entry, EntryKind};
use crate::virtual_path::VirtualPath;

impl OpenFile {
    /// The bytes of `range`, if they are no more than `most` and still there.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn content(&self, range: &Range<u64>, most: u64) -> Result<Option<Vec<u8>>, FileError> {
        let length = range.end.saturating_sub(range.start);
        let Some(length) = usize::try_from(length).ok().filter(|_| length <= most) else { return Ok(None) };
        let mut content = vec![0; length];
        match self.file.read_exact_at(&mut content, range.start) {
            Ok(()) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl Jail {
    /// Whether a session may make `path` its working directory (CWD): it is a directory, and
    /// names in it may be looked up.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn check_directory(&self, path: &VirtualPath) -> Result<(), FileError> {
        // The `.` needs search permission, which opening the directory itself does not.
        match self.open_inside(path, b".", handle::DIRECTORY) {
            Err(FileError::NotFound | FileError::NotADirectory | FileError::Loop)
                if self.has_folder_below(path) =>
            {
                Ok(())
            }
            opened => opened.map(drop),
        }
    }

    /// Opens a file for RETR, SIZE, MDTM and checksums. Opening before asking for the status is
    /// what makes the answer true on NFS.
    ///
    /// # Errors
    /// [`FileError::NotAFile`] for everything that is not a regular file.
    pub fn open_read(&self, path: &VirtualPath) -> Result<OpenFile, FileError> {
        let (handle, status) = self.open_with_status(path, handle::READ)?;
        if kind(&status) != EntryKind::File {
            return Err(FileError::NotAFile);
        }
        Ok(OpenFile { file: handle.into(), size: size(&status), modified: status.st_mtime })
    }

    /// The entry that has the name `path` (MLST, RNFR): a symbolic link itself, not what it leads to,
    /// unless this jail [resolves](Jail::resolve_links) links. A directory on the way to a folder is a
    /// directory, also where the home has a link of that name. The name of `/` is `/`.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn entry(&self, path: &VirtualPath) -> Result<Entry, FileError> {
        if self.resolves_links || self.has_folder_below(path) {
            return self.resolved_entry(path);
        }
        self.look_up(path, OFlag::O_NOFOLLOW)
    }

    /// As [`Jail::entry`], but a symbolic link that leads somewhere in the home is described as what
    /// it leads to (LIST, MLSD of a link to a directory).
    ///
    /// # Errors
    /// As the kernel says.
    pub fn resolved_entry(&self, path: &VirtualPath) -> Result<Entry, FileError> {
        self.look_up(path, OFlag::empty())
    }

    /// `following` is `O_NOFOLLOW`, or nothing.
    fn look_up(&self, path: &VirtualPath, following: OFlag) -> Result<Entry, FileError> {
        let name = path.split().map_or(&b"/"[..], |(_, name)| name);
        // Without O_PATH the open itself has effects: on a FIFO it wakes a writer that waits for a reader, on a
        // device the driver decides.
        let opened = self.open_with_status(path, handle::STATUS | following).map(|(found, status)| {
            match kind(&status) {
                // On NFS only a real open asks the server for the status of now (close-to-open consistency). Where
                // it is not permitted, or a lease stands in its way, what the client knows must do.
                EntryKind::File | EntryKind::Directory => {
                    let status = reopen(&found).unwrap_or(status);
                    (found, status)
                }
                EntryKind::Symlink | EntryKind::Other => (found, status),
            }
        });
        match opened {
            // Only where links are not followed.
            Ok((link, status)) if kind(&status) == EntryKind::Symlink => {
                Ok(entry(name, &status, Some(link_target(&link)?)))
            }
            Ok((_, status)) => Ok(entry(name, &status, None)),
            Err(FileError::IsADirectory) if self.has_folder_below(path) => self.synthetic_entry(path),
            Err(error @ (FileError::NotFound | FileError::Loop)) => {
                // Perhaps a link: one that is not followed, leads nowhere, or out of the home.
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

    /// MKD.
    ///
    /// # Errors
    /// [`FileError::AlreadyExists`], and as the kernel says.
    pub fn create_directory(&self, path: &VirtualPath) -> Result<(), FileError> {
        let location = match self.entry_location(path) {
            Err(FileError::Fixed) => return Err(FileError::AlreadyExists),
            location => location?,
        };
        mkdirat(&location.directory, location.name, Mode::from_bits_truncate(self.modes.directory))?;
        Ok(())
    }

    /// RMD: an empty directory. What broken atomic uploads left in it, which no client sees or can
    /// name, goes with it. What is gone is noted in `changes`, also after an error.
    ///
    /// # Errors
    /// [`FileError::DirectoryNotEmpty`], also when only NFS's remains of removed files are in it, and
    /// [`FileError::BeingWritten`] while an atomic upload to it runs.
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

    /// DELE: a file, or a symbolic link itself. Answers what that freed.
    ///
    /// # Errors
    /// [`FileError::IsADirectory`], and as the kernel says.
    pub fn remove_file(&self, path: &VirtualPath) -> Result<Usage, FileError> {
        let location = self.entry_location(path)?;
        Ok(usage::unlink(&location.directory, location.name, UnlinkatFlags::NoRemoveDir, None)?)
    }

    /// RNFR and RNTO. Without `replace` an existing `to` stays what it is, also when it appears
    /// at the same moment through another node. Answers what was replaced.
    ///
    /// # Errors
    /// [`FileError::AlreadyExists`] without `replace`, [`FileError::CrossDevice`] between two
    /// folders, and as the kernel says.
    pub fn rename(&self, from: &VirtualPath, to: &VirtualPath, replace: bool) -> Result<Usage, FileError> {
        let share_root = self.share_root(from, to);
        let (from, to) = (self.entry_location(from)?, self.entry_location(to)?);
        if !share_root {
            return Err(FileError::CrossDevice);
        }
        let renamed = if replace {
            usage::replace(&from, &to).map_err(FileError::from)
        } else {
            rename_new(&from, &to).map(|()| Usage::default())
        };
        match renamed {
            // A directory into itself.
            Err(FileError::Io(error)) if error.raw_os_error() == Some(libc::EINVAL) => {
                Err(FileError::NameNotAllowed)
            }
            renamed => renamed,
        }
    }

    /// MFMT: the time of the last change, in seconds since 1970.
    ///
    /// # Errors
    /// As the kernel says.
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

    /// SITE CHMOD: the nine permission bits of what `change` makes of a mode, given whether it is a
    /// directory's; other bits are ignored.
    ///
    /// # Errors
    /// [`FileError::Fixed`] for the home and for folders, by whatever name: without its permissions no session
    /// could use it, and no client could give them back. As the kernel says.
    pub fn change_mode(
        &self,
        path: &VirtualPath,
        change: impl FnOnce(u32, bool) -> u32,
    ) -> Result<(), FileError> {
        let handle = self.open_to_change(path)?;
        let status = fstat(&handle)?;
        if self.is_home_or_folder(&status)? {
            return Err(FileError::Fixed);
        }
        let mode = change(status.st_mode & 0o777, kind(&status) == EntryKind::Directory);
        fchmodat(
            AT_FDCWD,
            handle::proc_path(&handle).as_c_str(),
            Mode::from_bits_truncate(mode & 0o777),
            FchmodatFlags::FollowSymlink,
        )?;
        Ok(())
    }

    /// AVBL: bytes that an unprivileged user can still write in the file system of `path`.
    /// Quotas of an NFS server do not show here.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn free_space(&self, path: &VirtualPath) -> Result<u64, FileError> {
        let status = match self.open_path(path, handle::STATUS) {
            Err(FileError::IsADirectory) if self.has_folder_below(path) => fstatvfs(&self.home)?,
            opened => fstatvfs(opened?)?,
        };
        Ok(status.blocks_available().saturating_mul(status.fragment_size()))
    }

    /// To change its attributes.
    fn open_to_change(&self, path: &VirtualPath) -> Result<OwnedFd, FileError> {
        if self.is_fixed(path) {
            return Err(FileError::Fixed);
        }
        self.open_path(path, handle::STATUS)
    }

    /// A name for the file that is the same through every home, folder, symbolic link and node: its real
    /// path below the storage root, without a slash before it.
    ///
    /// # Errors
    /// The directory of `path` must exist; `path` itself need not.
    pub fn canonical_key(&self, path: &VirtualPath) -> Result<Vec<u8>, FileError> {
        if path.is_root() {
            return self.path_in_storage_of(&self.home);
        }
        self.upload_target(path)?.key()
    }

    /// As [`Jail::canonical_key`], of the name itself: for a symbolic link at the end that of the link.
    ///
    /// # Errors
    /// As [`Jail::canonical_key`], and as for changing the name.
    pub fn name_key(&self, path: &VirtualPath) -> Result<Vec<u8>, FileError> {
        let location = self.entry_location(path)?;
        self.key_in(&real_path(&location.directory)?, location.name)
    }

    /// A name for the home, or a directory of it, whose files a quota counts: the same on every node, also
    /// while the directory does not exist. Symbolic links on the way to it are not resolved.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn quota_key(&self, directory: &VirtualPath) -> Result<Vec<u8>, FileError> {
        let mut key = self.path_in_storage_of(&self.home)?;
        for name in directory.names() {
            if !key.is_empty() {
                key.push(b'/');
            }
            key.extend_from_slice(name);
        }
        Ok(key)
    }

    /// [`Jail::canonical_key`] of the name `name` itself in the directory whose real path is `directory`.
    ///
    /// # Errors
    /// [`FileError::NotFound`] if the directory is not in the storage any more.
    pub(super) fn key_in(&self, directory: &[u8], name: &[u8]) -> Result<Vec<u8>, FileError> {
        let mut key = self.strip_storage(directory)?.to_vec();
        if !key.is_empty() {
            key.push(b'/');
        }
        key.extend_from_slice(name);
        Ok(key)
    }

    pub(super) fn path_in_storage_of(&self, handle: &OwnedFd) -> Result<Vec<u8>, FileError> {
        Ok(self.strip_storage(&real_path(handle)?)?.to_vec())
    }

    /// A real path without that of the storage and the slash after it.
    fn strip_storage<'p>(&self, path: &'p [u8]) -> Result<&'p [u8], FileError> {
        let storage = self.storage.strip_suffix(b"/").unwrap_or(&self.storage);
        match path.strip_prefix(storage) {
            Some([]) => Ok(&[]),
            Some([b'/', below @ ..]) => Ok(below),
            // Another program has moved it out of the storage.
            _ => Err(FileError::NotFound),
        }
    }
}

/// Opens a regular file or a directory that is held by an `O_PATH` handle to read, and asks for its status.
/// This is the same file, whatever has its name by now.
fn reopen(found: &OwnedFd) -> Result<FileStat, Errno> {
    let opened = openat(AT_FDCWD, handle::proc_path(found).as_c_str(), handle::READ, Mode::empty())?;
    fstat(&opened)
}

/// Where a symbolic link points, opened with `O_PATH | O_NOFOLLOW`.
pub(super) fn link_target(link: &OwnedFd) -> Result<Vec<u8>, Errno> {
    readlinkat(link, "").map(OsStringExt::into_vec)
}

/// Renames, but never over something.
pub(super) fn rename_new(from: &EntryLocation<'_>, to: &EntryLocation<'_>) -> Result<(), FileError> {
    // An operation that has just looked at the file, to remove it, must not find another under its name.
    let (_lock, _) = usage::lock_entry(from)?;
    let flags = RenameFlags::RENAME_NOREPLACE;
    match renameat2(&from.directory, from.name, &to.directory, to.name, flags) {
        // NFS knows no flags.
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => rename_new_by_link(from, to),
        renamed => Ok(renamed?),
    }
}

/// [`rename_new`] for file systems that cannot do it in one step: the new name appears at once or
/// not at all, and a crash in between leaves both names.
fn rename_new_by_link(from: &EntryLocation<'_>, to: &EntryLocation<'_>) -> Result<(), FileError> {
    let source = from.status()?;
    if kind(&source) == EntryKind::Directory {
        // Directories have no links. A rename replaces at most an empty directory.
        return match to.status() {
            Ok(_) => Err(FileError::AlreadyExists),
            Err(Errno::ENOENT) => Ok(renameat(&from.directory, from.name, &to.directory, to.name)?),
            Err(errno) => Err(errno.into()),
        };
    }
    match linkat(&from.directory, from.name, &to.directory, to.name, LinkatFlags::empty()) {
        Ok(()) => {}
        // The server may have made the link, and its first answer was lost: then it is the same
        // file, with two names. One name can be the same file too (a rename to itself, or to
        // another case of the letters where case does not count); that has one link.
        Err(Errno::EEXIST) => {
            let target = to.status()?;
            let one_name = from.name == to.name
                && identity(&fstat(&from.directory)?) == identity(&fstat(&to.directory)?);
            if one_name || identity(&target) != identity(&source) || target.st_nlink < 2 {
                return Err(FileError::AlreadyExists);
            }
        }
        Err(errno) => return Err(errno.into()),
    }
    match unlinkat(&from.directory, from.name, UnlinkatFlags::NoRemoveDir) {
        // Gone already: again an answer that was lost.
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Writes a directory's names to disk. NFS servers have done it before they answer.
pub(super) fn sync_directory(directory: &OwnedFd) -> Result<(), FileError> {
    let readable = match openat(directory, ".", handle::READ_DIRECTORY, Mode::empty()) {
        Ok(readable) => File::from(readable),
        // A drop box: its names may be changed but not read, and so not synced either.
        Err(Errno::EACCES) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    match readable.sync_all() {
        // The file system does not sync directories.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        synced => Ok(synced?),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn locations<'p>(
        from: &'p [u8],
        to: &'p [u8],
    ) -> (tempfile::TempDir, EntryLocation<'p>, EntryLocation<'p>) {
        let directory = tempfile::tempdir().unwrap();
        let location = |name| EntryLocation {
            directory: nix::fcntl::open(directory.path(), handle::DIRECTORY, Mode::empty()).unwrap(),
            name,
        };
        let (from, to) = (location(from), location(to));
        (directory, from, to)
    }

    #[test]
    fn without_rename_flags_a_file_still_never_replaces_another() {
        let (directory, from, to) = locations(b"a", b"b");
        fs::write(directory.path().join("a"), "new").unwrap();
        fs::write(directory.path().join("b"), "old").unwrap();
        assert!(matches!(rename_new_by_link(&from, &to), Err(FileError::AlreadyExists)));
        assert_eq!(fs::read(directory.path().join("b")).unwrap(), b"old");
        fs::remove_file(directory.path().join("b")).unwrap();
        rename_new_by_link(&from, &to).unwrap();
        assert_eq!(fs::read(directory.path().join("b")).unwrap(), b"new");
        assert!(!directory.path().join("a").exists());
    }

    #[test]
    fn a_link_whose_answer_was_lost_is_completed() {
        let (directory, from, to) = locations(b"a", b"b");
        fs::write(directory.path().join("a"), "data").unwrap();
        fs::hard_link(directory.path().join("a"), directory.path().join("b")).unwrap();
        rename_new_by_link(&from, &to).unwrap();
        assert!(!directory.path().join("a").exists());
        assert_eq!(fs::read(directory.path().join("b")).unwrap(), b"data");
    }

    #[test]
    fn renaming_a_file_to_itself_does_not_remove_it() {
        let (directory, from, to) = locations(b"a", b"a");
        fs::write(directory.path().join("a"), "data").unwrap();
        fs::hard_link(directory.path().join("a"), directory.path().join("other")).unwrap();
        assert!(matches!(rename_new_by_link(&from, &to), Err(FileError::AlreadyExists)));
        assert!(directory.path().join("a").exists());
    }
}
