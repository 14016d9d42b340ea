//! COMB: appends several files to one file and removes them.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use common::process::logging::chain;
use nix::sys::stat::fstat;
use nix::unistd::UnlinkatFlags;

use super::handle::{EntryLocation, identity};
use super::inode_lock::FileIdentity;
use super::usage::{self, Changes};
use super::{FileError, Jail, OpenFile, UploadPlacement, WriteMode};
use crate::virtual_path::VirtualPath;
use crate::work::StorageCall;
use crate::work::pieces::PIECE;
use crate::work::progress::Progress;

/// The files of a COMB command.
#[derive(Clone, Copy, Debug)]
pub struct CombineRequest<'p> {
    pub target: &'p VirtualPath,
    pub sources: &'p [VirtualPath],
    /// Write the target to stable storage before removing a source.
    pub sync: bool,
}

impl Jail {
    /// Appends `sources` in their order to `target`, which is created if it is missing, and then
    /// removes them. Returns the number of copied bytes. Sets `changes` to the changes of the user's
    /// usage, even after an error.
    ///
    /// * `reserve(bytes, is_new)` is called before anything is changed. It sets aside the quota for the
    ///   copy, which exists beside the sources for a while. `is_new` is true if the target is created.
    /// * `may_store` is called before each write, `is_ours` once before the sources are removed. Both
    ///   return true as long as this session has the right to write all files. Once one returns false, all
    ///   sources are kept, and the target stays as it is, because another session may be writing it.
    ///
    /// If copying fails or is cancelled, the target gets its old content back and all sources are kept.
    /// If a source cannot be removed, the target keeps only the content of the sources that have been
    /// removed: no content is lost, and no content is stored twice.
    ///
    /// # Errors
    /// The errors of `reserve`; [`FileError::SameFile`] if a file is named twice;
    /// [`FileError::CrossDevice`] if the files are not all in the home or all in one folder;
    /// [`FileError::WriteRightLost`] if `is_ours` returns false or a source has changed;
    /// [`FileError::Cancelled`]; or any error of the kernel.
    pub fn combine(
        &self,
        CombineRequest { target, sources, sync }: CombineRequest<'_>,
        progress: &Progress,
        changes: &mut Changes,
        reserve: impl FnOnce(u64, bool) -> Result<(), FileError>,
        may_store: impl Fn() -> bool,
        is_ours: impl FnOnce() -> bool,
    ) -> Result<u64, FileError> {
        if !sources.iter().all(|source| self.have_same_root(source, target)) {
            return Err(FileError::CrossDevice);
        }
        let mut known = HashSet::new();
        let sources = sources.iter().map(|path| CombineSource::open(self, path, &mut known));
        let sources = sources.collect::<Result<Vec<_>, _>>()?;
        let is_new = match self.entry(target) {
            Ok(_) => false,
            Err(FileError::NotFound) => true,
            Err(error) => return Err(error),
        };
        reserve(sources.iter().map(|source| source.size).sum(), is_new)?;
        let mut upload = self.open_write(target, WriteMode::Append, UploadPlacement::Direct)?;
        *changes = upload.changes();
        if known.contains(&identity(&fstat(upload.file())?)) {
            return Err(FileError::SameFile);
        }
        let start = upload.begin()?;
        match self.append_all(upload.prepare_write(0)?, start, &sources, progress, &may_store) {
            Ok(_) if !is_ours() => {
                upload.leave_untouched();
                Err(FileError::WriteRightLost)
            }
            Ok(end) => {
                let file = upload.file().try_clone()?;
                let combined = CombinedTarget {
                    jail: self,
                    file,
                    path: target,
                    is_new: is_new && start == 0,
                    sync,
                    changes,
                };
                upload.finish(sync, end)?;
                combined.remove_sources(&sources, start)?;
                Ok(end - start)
            }
            Err(error) if !may_store() => {
                // Another session may be writing the target by now.
                upload.leave_untouched();
                Err(error)
            }
            Err(error) => {
                upload.discard();
                Err(error)
            }
        }
    }

    /// Copies all sources to the end of `target` and returns the new end. Uses reads and writes,
    /// because `copy_file_range` hangs on NFS.
    fn append_all(
        &self,
        target: &File,
        start: u64,
        sources: &[CombineSource<'_>],
        progress: &Progress,
        may_store: impl Fn() -> bool,
    ) -> Result<u64, FileError> {
        let mut buffer = vec![0; PIECE];
        let mut end = start;
        for source in sources {
            let source_end = end + source.size;
            let file = source.reopen(self)?.file;
            loop {
                if progress.is_cancelled() {
                    return Err(FileError::Cancelled);
                }
                let read = file.read_at(&mut buffer, source.size - (source_end - end))?;
                if read == 0 && end == source_end {
                    break;
                }
                // The source has changed, and quota was reserved for its earlier size only.
                if read == 0 || read as u64 > source_end - end {
                    return Err(FileError::WriteRightLost);
                }
                if !may_store() {
                    return Err(FileError::WriteRightLost);
                }
                target.write_all_at(&buffer[..read], end)?;
                end += read as u64;
                progress.add(read as u64);
            }
        }
        Ok(end)
    }
}

/// A file to append to the target.
struct CombineSource<'p> {
    path: &'p VirtualPath,
    identity: FileIdentity,
    size: u64,
}

impl<'p> CombineSource<'p> {
    fn open(
        jail: &Jail,
        path: &'p VirtualPath,
        known: &mut HashSet<FileIdentity>,
    ) -> Result<Self, FileError> {
        let source = jail.open_read(path)?;
        let identity = identity(&fstat(&source.file)?);
        if !known.insert(identity) {
            return Err(FileError::SameFile);
        }
        Ok(Self { path, identity, size: source.size })
    }

    /// Opens the source again. Keeping a descriptor for each source would take too many descriptors.
    fn reopen(&self, jail: &Jail) -> Result<OpenFile, FileError> {
        let source = jail.open_read(self.path)?;
        let is_same = identity(&fstat(&source.file)?) == self.identity && source.size == self.size;
        if is_same { Ok(source) } else { Err(FileError::WriteRightLost) }
    }
}

/// The target after the content of all sources was appended.
struct CombinedTarget<'w> {
    jail: &'w Jail,
    file: File,
    path: &'w VirtualPath,
    /// This COMB has created the file.
    is_new: bool,
    sync: bool,
    changes: &'w Changes,
}

impl CombinedTarget<'_> {
    /// Removes the sources. Their content begins at `start` in the target.
    fn remove_sources(&self, sources: &[CombineSource<'_>], start: u64) -> Result<(), FileError> {
        let mut end = start;
        for source in sources {
            match self.jail.remove_file(source.path) {
                Ok(freed) => self.changes.remove(freed),
                // An NFS server may have removed it and its first reply was lost.
                Err(FileError::NotFound) => {}
                Err(error) => {
                    if let Err(error) = self.truncate(end) {
                        let (path, error) = (self.path.as_bytes().escape_ascii(), chain(&error));
                        log::error!(path:%; "COMB could neither remove a source nor undo the copy: {error}");
                    }
                    return Err(error);
                }
            }
            end += source.size;
        }
        Ok(())
    }

    /// Truncates the target to `end` bytes. Removes the target if it is then empty and this COMB
    /// created it.
    fn truncate(&self, end: u64) -> Result<(), FileError> {
        if self.is_new && end == 0 {
            let EntryLocation { directory, name } = self.jail.entry_location(self.path)?;
            let ours = identity(&fstat(&self.file)?);
            let freed = usage::unlink(&directory, name, UnlinkatFlags::NoRemoveDir, Some(ours))?;
            self.changes.remove(freed);
            return Ok(());
        }
        usage::truncate(&self.file, end, self.changes)?;
        if self.sync {
            StorageCall::Fsync.measure(|| self.file.sync_all())?;
        }
        Ok(())
    }
}
