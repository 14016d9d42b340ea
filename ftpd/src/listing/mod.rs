//! Directory entries as text: LIST, NLST, MLSD. Pure.

pub mod machine;

/// One name in a directory, with what the storage says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name without its directory. Bytes, not text.
    pub name: Vec<u8>,
    pub kind: Kind,
    /// Bytes.
    pub size: u64,
    /// Last change of the content, in Unix seconds.
    pub modified: i64,
    /// Permission bits; bits of the file type are ignored.
    pub mode: u32,
    /// Hard links.
    pub links: u64,
    pub device: u64,
    pub inode: u64,
    /// Where a symbolic link points, as it is written there. `None` for all else, or unread.
    pub link_target: Option<Vec<u8>>,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    /// Device, socket or pipe.
    Other,
}
