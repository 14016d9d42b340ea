//! What the journal of events is told of an upload: before its file gets its final name, and afterwards.

use std::fmt;

use super::FileError;

/// Notes on the storage that an upload is about to be complete, and how that ended. A node that dies between
/// these calls leaves a note, by which another node finds out whether the file has its name.
pub trait PublicationRecorder: Send {
    /// Notes that `file` is about to be published (atomic mode), or is complete at its name (direct mode).
    ///
    /// # Errors
    /// The note is not on stable storage, so the upload must fail.
    fn begin(&mut self, file: &FileToPublish<'_>) -> Result<(), FileError>;

    /// Tells SHA-256 of the file before [`begin`](Self::begin), if the node computes it.
    fn set_digest(&mut self, sha256: [u8; 32]);

    /// Notes that the file is complete at its name, and that the client is told so. Blocks.
    fn complete(&mut self);

    /// Notes that the upload failed. Called before the file is renamed, changed or removed again. Blocks.
    fn fail(&mut self);
}

impl fmt::Debug for dyn PublicationRecorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PublicationRecorder")
    }
}

/// A file that is about to be published, or in direct mode is complete.
#[derive(Clone, Copy, Debug)]
pub struct FileToPublish<'f> {
    /// Real path of the directory.
    pub directory: &'f [u8],
    /// The final name.
    pub name: &'f [u8],
    /// Atomic mode: the names that the partial file may have until it has the final name.
    pub hidden: Option<[&'f [u8]; 2]>,
    pub inode: u64,
    pub size: u64,
    /// Time of the last change of the file or its name, in ns since 1970, by the storage's clock.
    pub changed: i128,
    /// False in direct mode if the upload is complete only if its lease is still held.
    pub is_proven: bool,
}
