//! Events of dead processes whose end is not in the journal: whether they happened.
//!
//! | what the storage shows | decision |
//! | --- | --- |
//! | the final name is the file of the intent | happened |
//! | one of the hidden names is the file | did not happen |
//! | neither, and the directory exists | happened: the file had its name, and was replaced or moved since |
//! | the directory is gone | did not happen |
//!
//! A process notes on stable storage that an upload failed before it removes the file or gives it another
//! hidden name. In direct mode, the intent is written when the file is complete at its name. So it happened
//! if a file lock proved that no other session wrote the file; otherwise if the name still is that file.

use std::{
    fs::{self, File},
    io,
    os::unix::{ffi::OsStringExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use super::record::Intent;

/// Decides whether an event happened. `root` is the storage's root. Blocks.
pub(super) fn decide(root: &Path, intent: &Intent) -> io::Result<bool> {
    let directory = root.join(path(intent.directory.bytes()));
    // Opening the directory makes an NFS client ask the server for its names again.
    let is_there = match File::open(&directory) {
        Ok(_) => true,
        Err(error) if is_missing(&error) => false,
        Err(error) => return Err(error),
    };
    let is_file = |name: PathBuf| match fs::metadata(directory.join(name)) {
        Ok(found) => Ok(found.ino() == intent.inode && found.len() >= intent.event.size),
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(error),
    };
    if is_there && is_file(path(intent.name.bytes()))? {
        return Ok(true);
    }
    let Some(hidden) = &intent.hidden else { return Ok(intent.proven) };
    for name in hidden {
        if is_there && is_file(path(name.bytes()))? {
            return Ok(false);
        }
    }
    Ok(is_there)
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn path(bytes: Vec<u8>) -> PathBuf {
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::record::{EventOrder, tests::intent};

    #[test]
    fn the_names_of_a_file_show_whether_its_upload_was_complete() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("alice");
        fs::create_dir(&directory).unwrap();
        let put = |name: &str| fs::write(directory.join(name), "abc").unwrap();
        let rename = |from: &str, to: &str| fs::rename(directory.join(from), directory.join(to)).unwrap();
        put("unique");
        let mut atomic = intent(1, "a", EventOrder { epoch: 0, lease: 0, changed: 0 });
        atomic.inode = fs::metadata(directory.join("unique")).unwrap().ino();
        atomic.hidden = Some([b"unique"[..].into(), b"resumable"[..].into()]);
        let mut direct = atomic.clone();
        direct.hidden = None;
        let decided = |intent: &Intent| decide(root.path(), intent).unwrap();

        assert!(!decided(&atomic));
        put("a");
        assert!(!decided(&atomic), "an older file has the name");
        rename("unique", "resumable");
        assert!(!decided(&atomic));
        rename("resumable", "a");
        assert!(decided(&atomic) && decided(&direct));
        rename("a", "moved");
        assert!(decided(&atomic), "the consumer has moved it away");
        assert!(decided(&direct));
        direct.proven = false;
        assert!(!decided(&direct));
        fs::remove_dir_all(&directory).unwrap();
        assert!(!decided(&atomic) && !decided(&direct));
    }
}
