//! Removing the hidden files of atomic uploads that broke off long ago.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::{process::logging::chain, registry::Usage};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{FileStat, Mode, fstat};
use nix::unistd::UnlinkatFlags;

use super::directory::DirectoryReader;
use super::handle::{self, READ_DIRECTORY, identity, kind, real_path};
use super::lock::{LockMode, WriterLock};
use super::{FileError, PARTIAL_PREFIX, open_storage, usage};
use crate::listing::EntryKind;

/// Levels of directories that are looked through, each holding a descriptor and 32 KiB.
const MAX_DEPTH: usize = 512;

/// Length of the name's part that follows from the owner and the path.
const HASH: usize = 32;

/// Length of the token in the names of some partial files.
const TOKEN: usize = 16;

/// A partial file that has been removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SweptFile {
    /// Path of its directory within the storage, without a slash before it.
    pub directory: Vec<u8>,
    pub name: Vec<u8>,
    pub usage: Usage,
    /// Since its last change.
    pub age: Duration,
}

/// Looks through everything below `root` and removes partial files that were last changed at least `lifetime`
/// ago and that no upload has locked. Where `locks` says that there are no locks, the age alone tells. `step` is called before each entry and ends the work with an error;
/// `swept` is told of each file that is removed. Symbolic links are not followed, directories that cannot be
/// read are left out.
///
/// # Errors
/// What `step` says, and as the kernel says of `root`.
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
        if is_partial(name) {
            match remove(found.directory, found.name, lifetime, locks) {
                Ok(Some((usage, age))) => {
                    let directory = real_path(found.directory).unwrap_or_default();
                    let directory = directory.strip_prefix(&*storage).unwrap_or_default();
                    let directory = directory.strip_prefix(b"/").unwrap_or(directory).to_vec();
                    swept(SweptFile { directory, name: name.to_vec(), usage, age });
                }
                Ok(None) | Err(FileError::NotFound | FileError::Stale) => {}
                Err(error) => {
                    let path = real_path(found.directory).unwrap_or_default();
                    let path = format!("{}/{}", path.escape_ascii(), name.escape_ascii());
                    log::warn!(path:%; "an old partial file cannot be removed (partial_lifetime): {}", chain(&error));
                }
            }
            continue;
        }
        let is_directory = || handle::status(found.directory, found.name).map(|found| kind(&found));
        if matches!(name, b"." | b"..") || is_directory() != Ok(EntryKind::Directory) {
            continue;
        }
        let flags = READ_DIRECTORY | OFlag::O_NOFOLLOW;
        match openat(found.directory, found.name, flags, Mode::empty()) {
            Ok(directory) if levels.len() < MAX_DEPTH => levels.push(DirectoryReader::new(directory)),
            // Removed meanwhile, not readable, or too deep.
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

/// Whether an atomic upload can have made the name: the prefix, 32 hexadecimal digits, and in some names a
/// hyphen and 16 more.
fn is_partial(name: &[u8]) -> bool {
    let Some(rest) = name.strip_prefix(PARTIAL_PREFIX) else { return false };
    let is_hex = |text: &[u8]| text.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    match rest.split_at_checked(HASH) {
        Some((hash, [])) => is_hex(hash),
        Some((hash, [b'-', token @ ..])) => is_hex(hash) && token.len() == TOKEN && is_hex(token),
        Some(_) | None => false,
    }
}

/// Removes the partial file if it is old and no upload holds it. Answers what that freed, and how old it was.
fn remove(
    directory: &OwnedFd,
    name: &std::ffi::CStr,
    lifetime: Duration,
    locks: LockMode,
) -> Result<Option<(Usage, Duration)>, FileError> {
    let old =
        |status: &FileStat| age(status).filter(|age| kind(status) == EntryKind::File && *age >= lifetime);
    if old(&handle::status(directory, name)?).is_none() {
        return Ok(None);
    }
    let file = File::from(openat(directory, name, handle::WRITE | OFlag::O_NOFOLLOW, Mode::empty())?);
    // Held until `file` is closed: no upload can resume it meanwhile.
    if locks.take(&file)? == WriterLock::HeldByAnother {
        return Ok(None);
    }
    // An upload may have resumed it before the lock.
    let status = fstat(&file)?;
    let Some(age) = old(&status) else { return Ok(None) };
    let (flag, only) = (UnlinkatFlags::NoRemoveDir, Some(identity(&status)));
    let freed = usage::unlink(directory, name, flag, only)?;
    Ok((freed != Usage::default()).then_some((freed, age)))
}

/// How long ago it was last changed; `None` if the storage's clock is ahead.
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
    fn only_old_partial_files_that_no_upload_has_locked_go() {
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
        // A link is not what its target is.
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
    fn it_ends_when_it_is_told_to() {
        let site = tempfile::tempdir().unwrap();
        let ended = sweep(site.path(), HOUR, LockMode::Auto, || Err(FileError::Cancelled), |_| ());
        assert!(matches!(ended, Err(FileError::Cancelled)));
    }
}
