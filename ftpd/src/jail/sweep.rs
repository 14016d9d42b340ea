//! Removal of old partial files (the hidden files of aborted atomic uploads).

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::{process::logging::chain, registry::Usage};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{FileStat, Mode, fstat};
use nix::unistd::UnlinkatFlags;

use super::directory::{DirectoryReader, MAX_WALK_DEPTH};
use super::handle::{self, READ_DIRECTORY, identity, kind, real_path};
use super::lock::{LockMode, WriterLock};
use super::partial::is_partial_name;
use super::{EVENTS_DIRECTORY, FileError, open_storage, usage};
use crate::listing::EntryKind;

/// A removed partial file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SweptFile {
    /// Path of its directory in the storage, without a leading slash.
    pub directory: Vec<u8>,
    pub name: Vec<u8>,
    pub usage: Usage,
    /// Time since its last change.
    pub age: Duration,
}

/// Searches the tree below `root` and removes partial files that were last changed at least `lifetime`
/// ago and that no upload has locked. If `locks` is off, only the age decides. Before each entry `step`
/// is called; its error ends the search. `swept` is called for each removed file. Symbolic links are
/// not followed, and directories that cannot be read are skipped.
///
/// # Errors
/// The errors of `step`, and any error of the kernel for `root` itself.
pub fn sweep(
    root: &Path,
    lifetime: Duration,
    locks: LockMode,
    mut step: impl FnMut() -> Result<(), FileError>,
    mut swept: impl FnMut(SweptFile),
) -> Result<(), FileError> {
    let root = open_storage(root)?;
    let storage = real_path(&root)?;
    let mut levels = vec![DirectoryReader::new(openat(&root, ".", READ_DIRECTORY, Mode::empty())?)];
    while let Some(names) = levels.last_mut() {
        step()?;
        let Some(Ok(found)) = names.next() else {
            levels.pop();
            continue;
        };
        let name = found.name.to_bytes();
        if is_partial_name(name) {
            if let Some(file) = remove_or_warn(found.directory, found.name, &storage, lifetime, locks) {
                swept(file);
            }
            continue;
        }
        if name == EVENTS_DIRECTORY {
            continue;
        }
        let is_directory = || handle::status(found.directory, found.name).map(|found| kind(&found));
        if found.is_self_or_parent() || is_directory() != Ok(EntryKind::Directory) {
            continue;
        }
        match handle::open_subdirectory(found.directory, found.name) {
            Ok(directory) if levels.len() < MAX_WALK_DEPTH => levels.push(DirectoryReader::new(directory)),
            // Removed by another session, not readable, or too deep.
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

/// [`remove`], with errors in the log. `storage` is the real path of the storage root.
fn remove_or_warn(
    directory: &OwnedFd,
    name: &CStr,
    storage: &[u8],
    lifetime: Duration,
    locks: LockMode,
) -> Option<SweptFile> {
    match remove(directory, name, lifetime, locks) {
        Ok(removed) => removed.map(|(usage, age)| {
            let directory = real_path(directory).unwrap_or_default();
            let below = directory.strip_prefix(storage).unwrap_or_default();
            let directory = below.strip_prefix(b"/").unwrap_or(below).to_vec();
            SweptFile { directory, name: name.to_bytes().to_vec(), usage, age }
        }),
        Err(FileError::NotFound | FileError::Stale) => None,
        Err(error) => {
            let path = handle::printable_path(directory, name.to_bytes());
            let error = chain(&error);
            log::warn!(path:%; "cannot remove an expired partial file (partial_lifetime): {error}");
            None
        }
    }
}

/// Removes the partial file if it is old and no upload has locked it. Returns what that freed, and the
/// age of the file.
fn remove(
    directory: &OwnedFd,
    name: &CStr,
    lifetime: Duration,
    locks: LockMode,
) -> Result<Option<(Usage, Duration)>, FileError> {
    let old =
        |status: &FileStat| age(status).filter(|age| kind(status) == EntryKind::File && *age >= lifetime);
    if old(&handle::status(directory, name)?).is_none() {
        return Ok(None);
    }
    let file = File::from(openat(directory, name, handle::WRITE | OFlag::O_NOFOLLOW, Mode::empty())?);
    // The lock is held until `file` is closed, so no upload can resume the file before it is removed.
    if locks.take(&file)? == WriterLock::HeldByAnother {
        return Ok(None);
    }
    // An upload may have resumed the file before it was locked.
    let status = fstat(&file)?;
    let Some(age) = old(&status) else { return Ok(None) };
    let (flag, only) = (UnlinkatFlags::NoRemoveDir, Some(identity(&status)));
    let freed = usage::unlink(directory, name, flag, only)?;
    Ok((freed != Usage::default()).then_some((freed, age)))
}

/// Time since the last change; `None` if the storage's clock is ahead.
fn age(status: &FileStat) -> Option<Duration> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    now.checked_sub(Duration::from_secs(u64::try_from(status.st_mtime).ok()?))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn old_file(path: &Path) {
        let file = File::create(path).unwrap();
        file.set_len(1000).unwrap();
        file.set_modified(SystemTime::now() - 2 * HOUR).unwrap();
    }

    fn swept(root: &Path) -> Vec<SweptFile> {
        let mut all = Vec::new();
        sweep(root, HOUR, LockMode::Auto, || Ok(()), |swept| all.push(swept)).unwrap();
        all
    }

    #[test]
    fn sweep_removes_only_old_partial_files_without_a_lock() {
        let site = tempfile::tempdir().unwrap();
        let below = site.path().join("home/a directory");
        fs::create_dir_all(&below).unwrap();
        let hash = "0123456789abcdef0123456789abcdef";
        let stays = [
            "file".to_owned(),
            ".ftpd-partial-".to_owned(),
            format!(".ftpd-partial-{hash}0"),
            format!(".ftpd-partial-{hash}-"),
            format!(".ftpd-partial-{hash}-0123456789abcdeg"),
            format!("ftpd-partial-{hash}"),
            ".ftpd-partial-check-0123456789abcdef".to_owned(),
        ];
        for name in &stays {
            old_file(&below.join(name));
        }
        let young = format!(".ftpd-partial-{}", "1".repeat(32));
        fs::write(below.join(&young), "x").unwrap();
        let locked = below.join(format!(".ftpd-partial-{}", "2".repeat(32)));
        old_file(&locked);
        let upload = File::options().write(true).open(&locked).unwrap();
        assert!(matches!(LockMode::Auto.take(&upload), Ok(WriterLock::Held { .. })));
        let plain = format!(".ftpd-partial-{hash}");
        let with_token = format!(".ftpd-partial-{hash}-0123456789abcdef");
        old_file(&below.join(&plain));
        old_file(&site.path().join(&with_token));
        // A symbolic link is not removed, whatever its target.
        std::os::unix::fs::symlink(
            below.join("file"),
            below.join(format!(".ftpd-partial-{}", "3".repeat(32))),
        )
        .unwrap();

        let mut all = swept(site.path());
        all.sort_by_key(|swept| swept.name.len());
        let found: Vec<_> = all.iter().map(|swept| (&*swept.directory, &*swept.name, swept.usage)).collect();
        let usage = Usage { bytes: 1000, files: 1 };
        assert_eq!(
            found,
            [(&b"home/a directory"[..], plain.as_bytes(), usage), (&b""[..], with_token.as_bytes(), usage)]
        );
        assert!(all[0].age >= 2 * HOUR && all[0].age < 3 * HOUR);
        assert!(stays.iter().chain([&young]).all(|name| below.join(name).exists()));
        assert!(locked.exists());
        drop(upload);
        assert_eq!(swept(site.path()).len(), 1);
        assert!(!locked.exists());
    }

    #[test]
    fn sweep_ends_with_the_error_of_step() {
        let site = tempfile::tempdir().unwrap();
        let ended = sweep(site.path(), HOUR, LockMode::Auto, || Err(FileError::Cancelled), |_| ());
        assert!(matches!(ended, Err(FileError::Cancelled)));
    }
}
