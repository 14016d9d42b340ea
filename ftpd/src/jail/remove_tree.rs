//! RMDA: removes a directory with everything below it.

use std::ffi::{CStr, CString};

use nix::errno::Errno;
use nix::unistd::UnlinkatFlags;

use super::directory::DirectoryReader;
use super::handle::open_subdirectory;
use super::usage::{self, Changes};
use super::{FileError, Jail};
use crate::virtual_path::VirtualPath;
use crate::work::progress::Progress;

/// Maximum levels below the removed directory. Each level holds one descriptor and 32 KiB.
const MAX_DEPTH: usize = 128;

impl Jail {
    /// Removes the directory `path` with everything in it, including hidden names. Symbolic links are
    /// removed, not followed. After a cancellation, everything removed so far stays removed. Removed
    /// files and directories are recorded in `changes`, even after an error.
    ///
    /// # Errors
    /// [`FileError::TooDeep`] below 128 levels, [`FileError::Cancelled`], or any error of the kernel.
    pub fn remove_tree(
        &self,
        path: &VirtualPath,
        progress: &Progress,
        changes: &Changes,
    ) -> Result<(), FileError> {
        let location = self.entry_location(path)?;
        let top = DirectoryReader::new(open_subdirectory(&location.directory, location.name)?);
        let mut levels = vec![RemovalLevel { reader: top, name: None, removed: false }];
        while let Some(level) = levels.last_mut() {
            if progress.is_cancelled() {
                return Err(FileError::Cancelled);
            }
            match level.remove_next(changes)? {
                Removal::Continue => {}
                Removal::Subdirectory(_) if levels.len() > MAX_DEPTH => return Err(FileError::TooDeep),
                Removal::Subdirectory(below) => levels.push(below),
                Removal::Empty => {
                    let emptied = levels.pop().and_then(|level| level.name);
                    debug_assert_eq!(emptied.is_some(), !levels.is_empty(), "only the top has no name");
                    if let (Some(name), Some(parent)) = (emptied, levels.last_mut()) {
                        parent.remove_subdirectory(&name, changes)?;
                    }
                }
            }
        }
        changes.remove(usage::unlink(&location.directory, location.name, UnlinkatFlags::RemoveDir, None)?);
        Ok(())
    }
}

/// A directory whose entries are being removed.
struct RemovalLevel {
    reader: DirectoryReader,
    /// Its name in the level above; `None` for the top.
    name: Option<CString>,
    /// True if something has been removed since reading started.
    removed: bool,
}

/// Result of one step in a directory.
enum Removal {
    /// An entry was removed or skipped, or the directory is read again.
    Continue,
    /// The next entry is a directory, which must be emptied first.
    Subdirectory(RemovalLevel),
    /// Nothing is left to remove.
    Empty,
}

impl RemovalLevel {
    /// Removes the next entry unless it is a directory.
    fn remove_next(&mut self, changes: &Changes) -> Result<Removal, Errno> {
        let Some(found) = self.reader.next().transpose()? else {
            if !self.removed {
                return Ok(Removal::Empty);
            }
            // On some file systems, removing entries while reading skips names: read the directory
            // again until nothing is left to remove.
            self.removed = false;
            self.reader.rewind()?;
            return Ok(Removal::Continue);
        };
        if found.is_self_or_parent() {
            return Ok(Removal::Continue);
        }
        match usage::unlink(found.directory, found.name, UnlinkatFlags::NoRemoveDir, None) {
            Ok(freed) => {
                self.removed = true;
                changes.remove(freed);
                Ok(Removal::Continue)
            }
            Err(Errno::ENOENT | Errno::ESTALE) => Ok(Removal::Continue),
            // For a directory, Linux returns EISDIR and POSIX EPERM.
            Err(refused @ (Errno::EISDIR | Errno::EPERM)) => {
                match open_subdirectory(found.directory, found.name) {
                    Ok(below) => Ok(Removal::Subdirectory(Self {
                        reader: DirectoryReader::new(below),
                        name: Some(found.name.to_owned()),
                        removed: false,
                    })),
                    Err(Errno::ENOENT | Errno::ESTALE) => Ok(Removal::Continue),
                    // Not a directory but a file, which the node may not remove.
                    Err(Errno::ENOTDIR) => Err(refused),
                    Err(errno) => Err(errno),
                }
            }
            Err(errno) => Err(errno),
        }
    }

    /// Removes the emptied subdirectory `name`.
    fn remove_subdirectory(&mut self, name: &CStr, changes: &Changes) -> Result<(), Errno> {
        match usage::unlink(self.reader.directory(), name, UnlinkatFlags::RemoveDir, None) {
            Ok(freed) => {
                self.removed = true;
                changes.remove(freed);
                Ok(())
            }
            Err(Errno::ENOENT | Errno::ESTALE) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}
