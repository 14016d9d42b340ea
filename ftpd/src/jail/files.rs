//! Operations on single names: status, open for reading, create, remove, rename, change attributes.

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
use super::path::VirtualPath;
use super::usage::{self, Changes};
use super::{FileError, Jail, OpenFile};
use crate::listing::{Entry, EntryKind};

impl OpenFile {
    /// Reads the bytes of `range`. Returns `None` if the range is longer than `most` bytes or exceeds
    /// the file.
    ///
    /// # Errors
    /// Any error of the kernel.
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
                // consistency). If the open fails because of missing permission or a lease, the cached
                // status is used.
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

    /// MKD.
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

    /// RMD: removes an empty directory, together with partial files of aborted uploads in it, which
    /// clients can neither see nor name. Removed files are recorded in `changes`, even if it fails.
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

    /// DELE: removes a file, or a symbolic link itself. Returns what that freed.
    ///
    /// # Errors
    /// [`FileError::IsADirectory`], or any error of the kernel.
    pub fn remove_file(&self, path: &VirtualPath) -> Result<Usage, FileError> {
        let location = self.entry_location(path)?;
        Ok(usage::unlink(&location.directory, location.name, UnlinkatFlags::NoRemoveDir, None)?)
    }

    /// RNFR and RNTO. Without `replace` an existing `to` is never replaced, even if another node
    /// creates it at the same moment. Returns the usage of the file that was replaced.
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

    /// MFMT: sets the modification time, in Unix seconds.
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

    /// SITE CHMOD: sets the nine permission bits. `change` gets the current mode and true for a
    /// directory, and returns the new mode; its other bits are ignored.
    ///
    /// # Errors
    /// [`FileError::Fixed`] for the home and for shared folders, under any name: without its
    /// permissions no session could use the directory, and no client could restore them. Or any error
    /// of the kernel.
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

    /// AVBL: returns the bytes that an unprivileged user can still write in the file system of `path`.
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

    /// Opens `path` to change its attributes.
    fn open_to_change(&self, path: &VirtualPath) -> Result<OwnedFd, FileError> {
        if self.is_fixed(path) {
            return Err(FileError::Fixed);
        }
        self.open_path(path, handle::STATUS)
    }

    /// Returns a key of the file that is the same through every home, folder, symbolic link and node:
    /// its real path below the storage root, without a leading slash.
    ///
    /// # Errors
    /// [`FileError::NotFound`] if the directory of `path` does not exist; `path` itself need not exist.
    pub fn canonical_key(&self, path: &VirtualPath) -> Result<Vec<u8>, FileError> {
        if path.is_root() {
            return self.key_of_handle(&self.home);
        }
        self.upload_target(path)?.key()
    }

    /// Like [`Jail::canonical_key`], but a symbolic link as the last component is not resolved.
    ///
    /// # Errors
    /// The errors of [`Jail::canonical_key`] and those of a change of the name.
    pub fn name_key(&self, path: &VirtualPath) -> Result<Vec<u8>, FileError> {
        let location = self.entry_location(path)?;
        self.key_in(&real_path(&location.directory)?, location.name)
    }

    /// Returns a key of the home, or of a directory in it, whose files a quota counts. The key is the
    /// same on every node, even while the directory does not exist. Symbolic links in `directory` are
    /// not resolved.
    ///
    /// # Errors
    /// Any error of the kernel.
    pub fn quota_key(&self, directory: &VirtualPath) -> Result<Vec<u8>, FileError> {
        let mut key = self.key_of_handle(&self.home)?;
        for name in directory.names() {
            if !key.is_empty() {
                key.push(b'/');
            }
            key.extend_from_slice(name);
        }
        Ok(key)
    }

    /// [`Jail::canonical_key`] of the name `name` itself in the directory with the real path
    /// `directory`.
    ///
    /// # Errors
    /// [`FileError::NotFound`] if the directory is no longer in the storage.
    pub(super) fn key_in(&self, directory: &[u8], name: &[u8]) -> Result<Vec<u8>, FileError> {
        let mut key = self.strip_storage(directory)?.to_vec();
        if !key.is_empty() {
            key.push(b'/');
        }
        key.extend_from_slice(name);
        Ok(key)
    }

    /// [`Jail::canonical_key`] of an open file or directory.
    pub(super) fn key_of_handle(&self, handle: &OwnedFd) -> Result<Vec<u8>, FileError> {
        Ok(self.strip_storage(&real_path(handle)?)?.to_vec())
    }

    /// Strips the storage's path and the slash after it from a real path.
    fn strip_storage<'p>(&self, path: &'p [u8]) -> Result<&'p [u8], FileError> {
        let storage = self.storage.strip_suffix(b"/").unwrap_or(&self.storage);
        match path.strip_prefix(storage) {
            Some([]) => Ok(&[]),
            Some([b'/', below @ ..]) => Ok(below),
            // Another program has moved the file out of the storage.
            _ => Err(FileError::NotFound),
        }
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

/// Renames without replacing an existing file.
pub(super) fn rename_new(from: &EntryLocation<'_>, to: &EntryLocation<'_>) -> Result<(), FileError> {
    // Another operation that has checked this file before removing it must not find another file under
    // its name.
    let (_lock, _) = usage::lock_entry(from)?;
    let flags = RenameFlags::RENAME_NOREPLACE;
    match renameat2(&from.directory, from.name, &to.directory, to.name, flags) {
        // NFS does not support the flag.
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => rename_new_by_link(from, to),
        renamed => Ok(renamed?),
    }
}

/// [`rename_new`] for file systems without RENAME_NOREPLACE. The new name appears atomically or not at
/// all. A crash between the two steps leaves both names.
fn rename_new_by_link(from: &EntryLocation<'_>, to: &EntryLocation<'_>) -> Result<(), FileError> {
    let source = from.status()?;
    if kind(&source) == EntryKind::Directory {
        // Directories cannot have hard links. A rename replaces at most an empty directory.
        return match to.status() {
            Ok(_) => Err(FileError::AlreadyExists),
            Err(Errno::ENOENT) => Ok(renameat(&from.directory, from.name, &to.directory, to.name)?),
            Err(errno) => Err(errno.into()),
        };
    }
    match linkat(&from.directory, from.name, &to.directory, to.name, LinkatFlags::empty()) {
        Ok(()) => {}
        // An NFS server may have created the link and its first reply was lost: then both names are the
        // same file, which has at least two links. Both names can also be one directory entry (a rename
        // to itself, or to another case on a case-insensitive file system); then the file has one link.
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
        // Already removed: again the first reply was lost.
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Writes the names of a directory to stable storage. NFS servers do this before they reply.
pub(super) fn sync_directory(directory: &OwnedFd) -> Result<(), FileError> {
    let readable = match openat(directory, ".", handle::READ_DIRECTORY, Mode::empty()) {
        Ok(readable) => File::from(readable),
        // The directory may be written but not read, so it cannot be synced.
        Err(Errno::EACCES) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    match readable.sync_all() {
        // The file system does not support fsync of directories.
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
    fn rename_by_link_never_replaces_a_file() {
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
    fn rename_by_link_completes_after_a_lost_reply() {
        let (directory, from, to) = locations(b"a", b"b");
        fs::write(directory.path().join("a"), "data").unwrap();
        fs::hard_link(directory.path().join("a"), directory.path().join("b")).unwrap();
        rename_new_by_link(&from, &to).unwrap();
        assert!(!directory.path().join("a").exists());
        assert_eq!(fs::read(directory.path().join("b")).unwrap(), b"data");
    }

    #[test]
    fn rename_by_link_to_the_same_name_keeps_the_file() {
        let (directory, from, to) = locations(b"a", b"a");
        fs::write(directory.path().join("a"), "data").unwrap();
        fs::hard_link(directory.path().join("a"), directory.path().join("other")).unwrap();
        assert!(matches!(rename_new_by_link(&from, &to), Err(FileError::AlreadyExists)));
        assert!(directory.path().join("a").exists());
    }
}
