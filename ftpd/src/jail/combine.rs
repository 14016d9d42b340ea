//! COMB: several files become one.

use std::collections::HashSet;
use std::os::unix::fs::FileExt;

use nix::sys::stat::fstat;

use super::handle::identity;
use super::path::VirtualPath;
use super::{Changes, FileError, Jail, Placement, WriteMode};
use crate::data::progress::Progress;

/// NFS wants pieces of at least 256 KiB.
const BUFFER: usize = 256 * 1024;

impl Jail {
    /// Appends `sources` in their order to `target`, which is made if it is missing, and then
    /// removes them. Answers the bytes copied. Cancelled or failed while copying, it leaves the
    /// target as it was and all sources. With `sync` the target is on disk before a source is
    /// removed. `changes` becomes what has been done to the home. `is_ours` is asked before the
    /// removal whether nobody else may write the files by now; if somebody may, all sources stay, and
    /// the target keeps what it has, which may be another's.
    ///
    /// # Errors
    /// [`FileError::SameFile`] if a file is named twice, [`FileError::CrossDevice`] if they are not
    /// all in one folder, [`FileError::Taken`] if `is_ours` says no, [`FileError::Cancelled`], and as
    /// the kernel says.
    pub fn combine(
        &self,
        target: &VirtualPath,
        sources: &[VirtualPath],
        sync: bool,
        progress: &Progress,
        changes: &mut Changes,
        is_ours: impl FnOnce() -> bool,
    ) -> Result<u64, FileError> {
        if !sources.iter().all(|source| self.are_together(source, target)) {
            return Err(FileError::CrossDevice);
        }
        let mut upload = self.open_write(target, WriteMode::Append, Placement::Direct)?;
        *changes = upload.changes();
        let mut named = HashSet::from([identity(&fstat(upload.file())?)]);
        for source in sources {
            let source = self.open_read(source)?;
            if !named.insert(identity(&fstat(&source.file)?)) {
                return Err(FileError::SameFile);
            }
        }
        let start = upload.begin()?;
        match self.append_all(upload.to_write(0)?, start, sources, progress) {
            Ok(_) if !is_ours() => {
                upload.abandon();
                Err(FileError::Taken)
            }
            Ok(end) => {
                upload.finish(sync, end)?;
                for source in sources {
                    let usage = self.usage_of(source);
                    self.remove_file(source)?;
                    changes.remove(usage);
                }
                Ok(end - start)
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
        target: &std::fs::File,
        start: u64,
        sources: &[VirtualPath],
        progress: &Progress,
    ) -> Result<u64, FileError> {
        let mut buffer = vec![0; BUFFER];
        let mut end = start;
        for source in sources {
            let source = self.open_read(source)?;
            let mut position = 0;
            loop {
                if progress.is_cancelled() {
                    return Err(FileError::Cancelled);
                }
                let read = source.file.read_at(&mut buffer, position)?;
                if read == 0 {
                    break;
                }
                target.write_all_at(&buffer[..read], end)?;
                position += read as u64;
                end += read as u64;
                progress.add(read as u64);
            }
        }
        Ok(end)
    }
}
