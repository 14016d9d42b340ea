//! RMDA: a directory with everything below it.

use std::ffi::CString;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::UnlinkatFlags;

use super::directory::DirectoryReader;
use super::handle::READ_DIRECTORY;
use super::usage::{self, Changes};
use super::{FileError, Jail};
use crate::virtual_path::VirtualPath;
use crate::work::progress::Progress;

/// Levels of directories below the one to remove, each holding a descriptor and 32 KiB.
const MAX_DEPTH: usize = 128;

impl Jail {
    /// Removes the directory `path` with everything in it, hidden names too. Symbolic links are
    /// removed, not followed. Ends early when cancelled; what is gone then stays gone. Files and
    /// directories that go are noted in `changes`, also after an error.
    ///
    /// # Errors
    /// [`FileError::TooDeep`] below 128 levels, [`FileError::Cancelled`], and as the kernel says.
    pub fn remove_tree(
        &self,
        path: &VirtualPath,
        progress: &Progress,
        changes: &Changes,
    ) -> Result<(), FileError> {
        let location = self.entry_location(path)?;
        let top = DirectoryReader::new(open(&location.directory, location.name)?);
        let mut levels: Vec<RemovalLevel> = vec![RemovalLevel { names: top, name: None, removed: false }];
        while let Some(level) = levels.last_mut() {
            if progress.is_cancelled() {
                return Err(FileError::Cancelled);
            }
            match level.names.next() {
                Some(Err(errno)) => return Err(errno.into()),
                Some(Ok(found)) => {
                    if matches!(found.name.to_bytes(), b"." | b"..") {
                        continue;
                    }
                    match usage::unlink(found.directory, found.name, UnlinkatFlags::NoRemoveDir, None) {
                        Ok(freed) => {
                            level.removed = true;
                            changes.remove(freed);
                        }
                        Err(Errno::ENOENT | Errno::ESTALE) => {}
                        // Linux says EISDIR, POSIX EPERM, for a directory.
                        Err(errno @ (Errno::EISDIR | Errno::EPERM)) => {
                            let below = match open(found.directory, found.name.to_bytes()) {
                                Ok(below) => DirectoryReader::new(below),
                                Err(Errno::ENOENT | Errno::ESTALE) => continue,
                                // A file that may not be removed: the first error is the reason.
                                Err(Errno::ENOTDIR) => return Err(errno.into()),
                                Err(errno) => return Err(errno.into()),
                            };
                            let name = Some(found.name.to_owned());
                            if levels.len() > MAX_DEPTH {
                                return Err(FileError::TooDeep);
                            }
                            levels.push(RemovalLevel { names: below, name, removed: false });
                        }
                        Err(errno) => return Err(errno.into()),
                    }
                }
                // Removing while reading can make some file systems skip names: read again until
                // nothing is left to remove.
                None if level.removed => {
                    level.removed = false;
                    level.names.rewind()?;
                }
                None => {
                    let Some(RemovalLevel { name: Some(name), .. }) = levels.pop() else {
                        break;
                    };
                    // The one that was opened by this name in the level that is last now.
                    let Some(parent) = levels.last_mut() else {
                        break;
                    };
                    remove_empty(parent, &name, changes)?;
                }
            }
        }
        changes.remove(usage::unlink(&location.directory, location.name, UnlinkatFlags::RemoveDir, None)?);
        Ok(())
    }
}

struct RemovalLevel {
    names: DirectoryReader,
    /// In the level above; the top has none.
    name: Option<CString>,
    /// Whether anything has been removed since reading started.
    removed: bool,
}

/// A directory to read. A symbolic link is none: ENOTDIR.
fn open(directory: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    openat(directory, name, READ_DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty())
}

fn remove_empty(parent: &mut RemovalLevel, name: &CString, changes: &Changes) -> Result<(), Errno> {
    match usage::unlink(parent.names.directory(), name.as_c_str(), UnlinkatFlags::RemoveDir, None) {
        Ok(freed) => {
            parent.removed = true;
            changes.remove(freed);
            Ok(())
        }
        Err(Errno::ENOENT | Errno::ESTALE) => Ok(()),
        Err(errno) => Err(errno),
    }
}
