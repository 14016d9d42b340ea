//! Renaming without replacing an existing file, also on file systems that cannot do it in one step.

use nix::errno::Errno;
use nix::fcntl::{RenameFlags, renameat, renameat2};
use nix::sys::stat::fstat;
use nix::unistd::{LinkatFlags, UnlinkatFlags, linkat, unlinkat};

use super::handle::{EntryLocation, identity, kind};
use super::{FileError, usage};
use crate::listing::EntryKind;

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

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::sys::stat::Mode;

    use super::super::handle;
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
