//! Changes of dead processes whose end is not in the journal: whether they were made.
//!
//! | change | what the storage shows | decision |
//! | --- | --- | --- |
//! | publication | the final name is the file of the intent | made |
//! | | one of the hidden names is the file | not made |
//! | | neither, and the directory exists | made: the file had its name, and was replaced or moved since |
//! | | the directory is gone | not made |
//! | rename | the new name is the file or directory of the intent | made |
//! | | the old name is | not made |
//! | | neither | made: it was replaced, moved or removed since |
//! | removal | the name is the file or directory of the intent | not made |
//! | | it is not | made |
//! | none: a download, a login | | happened: the client may have been told |
//!
//! A process notes on stable storage that a change failed before it undoes any part of it. In direct mode,
//! the intent is written when the file is complete at its name. So it is published if a file lock proved that
//! no other session wrote the file; otherwise if the name still is that file.
//!
//! The dead process held a write lease on the names of a rename or a removal, which outlives it for the time
//! in which this decision comes. So no other session has changed what the names show.

use std::{
    fs::{self, File, Metadata},
    io,
    os::unix::{ffi::OsStringExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use super::record::{ChangeEvidence, Intent, NameBytes};
use crate::jail::birth;

/// Decides whether a change was made. `root` is the storage's root. Blocks.
pub(super) fn decide(root: &Path, intent: &Intent) -> io::Result<bool> {
    let event = &intent.event;
    match &intent.evidence {
        ChangeEvidence::Publication { directory, name, hidden, inode, proven } => {
            let is_file =
                |found: &Metadata| found.ino() == *inode && event.size.is_none_or(|size| found.len() >= size);
            let directory = root.join(path(directory.bytes()));
            is_published(&directory, name, hidden.as_ref(), is_file, *proven)
        }
        ChangeEvidence::Rename { inode } => {
            let is_it = |found: &Metadata| found.ino() == *inode;
            let old = event.old_storage_bytes().unwrap_or_default();
            Ok(names(&place(root, event.storage_bytes()), is_it)? || !names(&place(root, old), is_it)?)
        }
        ChangeEvidence::Removal { inode, born } => {
            let is_it = |found: &Metadata| found.ino() == *inode && birth(found) == *born;
            Ok(!names(&place(root, event.storage_bytes()), is_it)?)
        }
        ChangeEvidence::Nothing => Ok(true),
    }
}

fn is_published(
    directory: &Path,
    name: &NameBytes,
    hidden: Option<&[NameBytes; 2]>,
    is_file: impl Fn(&Metadata) -> bool + Copy,
    is_proven: bool,
) -> io::Result<bool> {
    let is_there = open_directory(directory)?;
    let is_at =
        |name: &NameBytes| Ok::<_, io::Error>(is_there && is(&directory.join(path(name.bytes())), is_file)?);
    if is_at(name)? {
        return Ok(true);
    }
    let Some(hidden) = hidden else { return Ok(is_proven) };
    for name in hidden {
        if is_at(name)? {
            return Ok(false);
        }
    }
    Ok(is_there)
}

/// Returns true if this path of the storage, or a link at it, is what `is_it` recognises.
fn names(path: &Path, is_it: impl Fn(&Metadata) -> bool) -> io::Result<bool> {
    let is_there = path.parent().map_or(Ok(true), open_directory)?;
    Ok(is_there && is(path, is_it)?)
}

/// Returns true if the directory exists. Opening it makes an NFS client ask the server for its names again.
fn open_directory(directory: &Path) -> io::Result<bool> {
    found(File::open(directory)).map(|found| found.is_some())
}

fn is(path: &Path, is_it: impl Fn(&Metadata) -> bool) -> io::Result<bool> {
    found(fs::symlink_metadata(path)).map(|found| found.is_some_and(|found| is_it(&found)))
}

/// `None`: there is nothing at the path.
fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The absolute path of a path that begins with a slash and counts from the storage's root.
fn place(root: &Path, mut storage_path: Vec<u8>) -> PathBuf {
    storage_path.drain(..storage_path.len().min(1));
    root.join(path(storage_path))
}

fn path(bytes: Vec<u8>) -> PathBuf {
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::record::{EventKind, EventOrder, tests::intent};

    const ORDER: EventOrder = EventOrder { epoch: 0, lease: 0, changed: 0 };

    fn decided(root: &Path, intent: &Intent) -> bool {
        decide(root, intent).unwrap()
    }

    #[test]
    fn the_names_of_a_file_show_whether_its_upload_was_complete() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("alice");
        fs::create_dir(&directory).unwrap();
        let put = |name: &str| fs::write(directory.join(name), "abc").unwrap();
        let rename = |from: &str, to: &str| fs::rename(directory.join(from), directory.join(to)).unwrap();
        put("unique");
        let inode = fs::metadata(directory.join("unique")).unwrap().ino();
        let publication = |hidden, proven| {
            let mut publication = intent(1, "a", ORDER);
            let (directory, name) = (b"alice"[..].into(), b"a"[..].into());
            publication.evidence = ChangeEvidence::Publication { directory, name, hidden, inode, proven };
            publication
        };
        let atomic = publication(Some([b"unique"[..].into(), b"resumable"[..].into()]), true);
        let (proven, unproven) = (publication(None, true), publication(None, false));
        let decided = |intent: &Intent| decided(root.path(), intent);

        assert!(!decided(&atomic));
        put("a");
        assert!(!decided(&atomic), "an older file has the name");
        rename("unique", "resumable");
        assert!(!decided(&atomic));
        rename("resumable", "a");
        assert!(decided(&atomic) && decided(&proven));
        rename("a", "moved");
        assert!(decided(&atomic), "the consumer has moved it away");
        assert!(decided(&proven) && !decided(&unproven));
        fs::remove_dir_all(&directory).unwrap();
        assert!(!decided(&atomic) && !decided(&unproven));
    }

    #[test]
    fn the_old_and_the_new_name_show_whether_a_rename_was_made() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("alice");
        fs::create_dir(&directory).unwrap();
        for name in ["old", "new"] {
            fs::write(directory.join(name), name).unwrap();
        }
        let mut rename = intent(1, "new", ORDER);
        rename.event.event = EventKind::Rename;
        rename.event.old_storage_path = Some("/alice/old".into());
        rename.evidence =
            ChangeEvidence::Rename { inode: fs::metadata(directory.join("old")).unwrap().ino() };
        assert!(!decided(root.path(), &rename));
        fs::rename(directory.join("old"), directory.join("new")).unwrap();
        assert!(decided(root.path(), &rename));
        fs::remove_file(directory.join("new")).unwrap();
        assert!(decided(root.path(), &rename), "removed since");
    }

    #[test]
    fn a_name_that_is_another_file_or_none_shows_a_removal() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("alice");
        fs::write(&file, "").unwrap();
        let status = fs::metadata(&file).unwrap();
        let mut removal = intent(1, "", ORDER);
        removal.event.storage_path = "/alice".into();
        removal.evidence = ChangeEvidence::Removal { inode: status.ino(), born: birth(&status) };
        assert!(!decided(root.path(), &removal));
        let mut reused = removal.clone();
        reused.evidence = ChangeEvidence::Removal { inode: status.ino(), born: Some(1) };
        assert!(decided(root.path(), &reused), "a new file has the number of the removed one");
        fs::remove_file(&file).unwrap();
        assert!(decided(root.path(), &removal));
    }
}
