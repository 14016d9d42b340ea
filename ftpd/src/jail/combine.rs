//! COMB: several files become one.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use common::process::logging::chain;
use nix::sys::stat::fstat;
use nix::unistd::UnlinkatFlags;

use super::handle::{EntryLocation, identity};
use super::same_file::FileIdentity;
use super::usage::{self, Changes};
use super::{FileError, Jail, OpenFile, UploadPlacement, WriteMode};
use crate::virtual_path::VirtualPath;
use crate::work::pieces::PIECE;
use crate::work::progress::Progress;

/// What COMB joins.
#[derive(Clone, Copy, Debug)]
pub struct CombineRequest<'p> {
    pub target: &'p VirtualPath,
    pub sources: &'p [VirtualPath],
    /// The target is on disk before a source is removed.
    pub sync: bool,
}

impl Jail {
    /// Appends `sources` in their order to `target`, which is made if it is missing, and then
    /// removes them. Answers the bytes copied. `changes` becomes what has been done to the home, also after an
    /// error.
    ///
    /// `reserve` is asked, before anything is changed, for room for so many bytes and, if true, for a new
    /// file: for as long as sources and target both exist. `is_ours` is asked before the removal whether no
    /// other session may write the files by now; if one may, all sources stay, and the target keeps its
    /// content, which may be that session's. The same holds once `may_store`, which is asked before each write,
    /// returns false.
    ///
    /// Cancelled or failed while copying, it leaves the target as it was and all sources. If a source cannot
    /// be removed, the target keeps the content of the sources that are gone, and loses the rest again: no
    /// content is lost, and none is on the disk twice.
    ///
    /// # Errors
    /// What `reserve` says; [`FileError::SameFile`] if a file is named twice, [`FileError::CrossDevice`] if
    /// they are not all in one folder, [`FileError::WriteRightLost`] if `is_ours` says no or a source has changed
    /// meanwhile, [`FileError::Cancelled`], and as the kernel says.
    pub fn combine(
        &self,
        CombineRequest { target, sources, sync }: CombineRequest<'_>,
        progress: &Progress,
        changes: &mut Changes,
        reserve: impl FnOnce(u64, bool) -> Result<(), FileError>,
        may_store: impl Fn() -> bool,
        is_ours: impl FnOnce() -> bool,
    ) -> Result<u64, FileError> {
        if !sources.iter().all(|source| self.share_root(source, target)) {
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
                let written = CombinedTarget {
                    jail: self,
                    file,
                    path: target,
                    is_new: is_new && start == 0,
                    sync,
                    changes,
                };
                upload.finish(sync, end)?;
                written.remove_sources(&sources, start)?;
                Ok(end - start)
            }
            Err(error) if !may_store() => {
                // Another session may write the target by now.
                upload.leave_untouched();
                Err(error)
            }
            Err(error) => {
                upload.discard();
                Err(error)
            }
        }
    }

    /// Where the target ends then. Reads and writes: `copy_file_range` hangs on NFS.
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
                // Room was reserved for the size that it had.
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

/// A file that is to be joined to another.
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

    /// Opens it again, because a descriptor for each of many sources would be too many.
    fn reopen(&self, jail: &Jail) -> Result<OpenFile, FileError> {
        let source = jail.open_read(self.path)?;
        let is_same = identity(&fstat(&source.file)?) == self.identity && source.size == self.size;
        if is_same { Ok(source) } else { Err(FileError::WriteRightLost) }
    }
}

/// The target, with the content of all sources.
struct CombinedTarget<'w> {
    jail: &'w Jail,
    file: File,
    path: &'w VirtualPath,
    /// COMB has made it.
    is_new: bool,
    sync: bool,
    changes: &'w Changes,
}

impl CombinedTarget<'_> {
    /// Removes the sources, whose content begins at `start` in the target.
    fn remove_sources(&self, sources: &[CombineSource<'_>], start: u64) -> Result<(), FileError> {
        let mut end = start;
        for source in sources {
            match self.jail.remove_file(source.path) {
                Ok(freed) => self.changes.remove(freed),
                // The first answer of an NFS server may have been lost.
                Err(FileError::NotFound) => {}
                Err(error) => {
                    if let Err(error) = self.cut(end) {
                        let path = self.path.as_bytes().escape_ascii();
                        log::error!(path:%; "COMB could not remove a source, nor undo the copy: {}", chain(&error));
                    }
                    return Err(error);
                }
            }
            end += source.size;
        }
        Ok(())
    }

    /// Takes back what is in the target from `end` on, and the target if that is all, and COMB made it.
    fn cut(&self, end: u64) -> Result<(), FileError> {
        if self.is_new && end == 0 {
            let EntryLocation { directory, name } = self.jail.entry_location(self.path)?;
            let ours = identity(&fstat(&self.file)?);
            let freed = usage::unlink(&directory, name, UnlinkatFlags::NoRemoveDir, Some(ours))?;
            self.changes.remove(freed);
            return Ok(());
        }
        usage::truncate(&self.file, end, self.changes)?;
        if self.sync {
            self.file.sync_all()?;
        }
        Ok(())
    }
}
