//! The self-test of the storage at the start of a node: what uploads rely on, tried with files of its own.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, RenameFlags, openat, renameat, renameat2};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{LinkatFlags, UnlinkatFlags, linkat, unlinkat};

use super::PARTIAL_PREFIX;
use super::files::sync_directory;
use super::handle;
use super::handle::identity;
use super::lock::{LockMode, WriterLock};
use super::mount::MountInfo;

/// What the self-test found in the storage root.
#[derive(Debug)]
pub struct StorageSelfTest {
    /// Type of the file system: `ext4`, `nfs4`.
    pub file_system: String,
    pub findings: Vec<StorageFinding>,
}

/// One thing that the storage does not do as uploads need it.
#[derive(Debug, PartialEq, Eq)]
pub struct StorageFinding {
    pub severity: StorageSeverity,
    /// A sentence that names the operation and its result.
    pub text: String,
}

/// What follows from a [`StorageFinding`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageSeverity {
    /// Uploads in atomic mode would not keep their promise.
    BreaksAtomicMode,
    /// A promise is weaker than elsewhere.
    Weak,
    /// The operation failed for a reason that may pass, such as a full disk.
    Unknown,
}

impl StorageSelfTest {
    /// Creates two hidden files in `root`, and removes them. Blocks. `must_sync`: uploads are flushed before
    /// their 226, so fsync must work.
    ///
    /// # Errors
    /// The node may not create files in the root, so nothing was tested; or the root cannot be opened.
    pub fn run(root: &Path, locks: LockMode, must_sync: bool) -> io::Result<Self> {
        let directory = OwnedFd::from(File::open(root)?);
        let file_system = MountInfo::of(&directory).map_or_else(|_| "unknown".to_owned(), |mount| mount.kind);
        let prefix = String::from_utf8_lossy(PARTIAL_PREFIX);
        let name = format!("{prefix}self-test-{:016x}", rand::random::<u64>());
        let files = TestFiles { directory, one: name.clone(), other: format!("{name}-2") };
        // The first file shows whether the node may write here at all.
        let first = files.create(&files.one)?;
        let mut findings = Vec::new();
        let mut note = |result: Result<(), StorageFinding>| findings.extend(result.err());
        note(files.exclusive_create());
        note(files.sync(&first, must_sync));
        note(files.lock(&first, locks));
        note(files.rename_over_open_file(first));
        note(files.rename_to_new_name());
        drop(files);
        Ok(Self { file_system, findings })
    }

    /// The findings of this severity, as one text.
    pub fn texts(&self, severity: StorageSeverity) -> Option<String> {
        let texts: Vec<&str> =
            self.findings.iter().filter(|f| f.severity == severity).map(|f| f.text.as_str()).collect();
        (!texts.is_empty()).then(|| texts.join("; "))
    }
}

/// The two files of a self-test. They are removed at the end.
struct TestFiles {
    directory: OwnedFd,
    one: String,
    other: String,
}

impl Drop for TestFiles {
    fn drop(&mut self) {
        for name in [&self.one, &self.other] {
            // The sweeper removes what is left after `partial_lifetime`.
            let _ = unlinkat(&self.directory, name.as_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

fn finding(severity: StorageSeverity, text: impl Into<String>) -> StorageFinding {
    StorageFinding { severity, text: text.into() }
}

/// A finding for an operation that failed: a lack of support breaks atomic mode, another error may pass.
fn failed(operation: &str, errno: Errno) -> StorageFinding {
    let severity = match errno {
        Errno::ENOSPC
        | Errno::EDQUOT
        | Errno::EIO
        | Errno::ESTALE
        | Errno::ETIMEDOUT
        | Errno::ENOENT
        | Errno::EMFILE
        | Errno::ENFILE => StorageSeverity::Unknown,
        _ => StorageSeverity::BreaksAtomicMode,
    };
    finding(severity, format!("{operation} fails: {errno}"))
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

impl TestFiles {
    fn create(&self, name: &str) -> io::Result<File> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        Ok(File::from(openat(&self.directory, name, flags, Mode::from_bits_truncate(0o600))?))
    }

    fn open(&self, name: &str) -> Result<File, Errno> {
        Ok(File::from(openat(&self.directory, name, handle::READ, Mode::empty())?))
    }

    /// O_EXCL must refuse a name that exists.
    fn exclusive_create(&self) -> Result<(), StorageFinding> {
        match self.create(&self.one) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(failed("creating a file that exists (O_EXCL)", errno_of(&error))),
            Ok(_) => Err(finding(
                StorageSeverity::BreaksAtomicMode,
                "O_EXCL creates a file that exists: two uploads could get the same partial file",
            )),
        }
    }

    fn sync(&self, mut file: &File, must_sync: bool) -> Result<(), StorageFinding> {
        file.write_all(b"old").map_err(|error| failed("writing a file", errno_of(&error)))?;
        if !must_sync {
            return Ok(());
        }
        file.sync_all().map_err(|error| failed("fsync of a file", errno_of(&error)))?;
        sync_directory(&self.directory).map_err(|error| {
            finding(StorageSeverity::Unknown, format!("fsync of a directory fails: {error}"))
        })
    }

    /// A second lock on the file must be refused.
    fn lock(&self, file: &File, locks: LockMode) -> Result<(), StorageFinding> {
        let weak = |text: &str| Err(finding(StorageSeverity::Weak, text));
        match locks.take(file) {
            Ok(WriterLock::Held { .. }) => {}
            Ok(WriterLock::NotSupported) if locks == LockMode::Off => return Ok(()),
            Ok(WriterLock::NotSupported) => return weak("file locks (F_OFD_SETLK) are not supported"),
            Ok(WriterLock::HeldByAnother) => return weak("a new file is locked already"),
            Err(error) => return weak(&format!("locking a file fails: {error}")),
        }
        let path = handle::proc_path(&self.directory).to_string_lossy().into_owned();
        let second = OpenOptions::new().write(true).open(format!("{path}/{}", self.one));
        match second.map_err(Into::into).and_then(|second| locks.take(&second)) {
            Ok(WriterLock::HeldByAnother) => Ok(()),
            Ok(_) => weak("two open files hold the lock (F_OFD_SETLK) of one file at the same time"),
            Err(error) => weak(&format!("locking a file a second time fails: {error}")),
        }
    }

    /// A rename replaces a file in one step, and who has the old one open reads on in it.
    fn rename_over_open_file(&self, old: File) -> Result<(), StorageFinding> {
        let mut new =
            self.create(&self.other).map_err(|error| failed("creating a file", errno_of(&error)))?;
        new.write_all(b"new").map_err(|error| failed("writing a file", errno_of(&error)))?;
        let mut reader = self.open(&self.one).map_err(|errno| failed("opening a file to read it", errno))?;
        drop(old);
        renameat(&self.directory, self.other.as_str(), &self.directory, self.one.as_str())
            .map_err(|errno| failed("renaming a file over one that is open", errno))?;
        let named = self.open(&self.one).map_err(|errno| failed("opening a renamed file", errno))?;
        let is_same = match (fstat(&named), fstat(&new)) {
            (Ok(named), Ok(new)) => identity(&named) == identity(&new),
            _ => false,
        };
        if !is_same {
            return Err(finding(
                StorageSeverity::BreaksAtomicMode,
                "after a rename the name does not lead to the renamed file (its inode number changes)",
            ));
        }
        let mut content = String::new();
        match reader.read_to_string(&mut content) {
            Ok(_) if content == "old" => Ok(()),
            Ok(_) => Err(finding(
                StorageSeverity::Weak,
                "a reader of a replaced file reads the new one: downloads mix both",
            )),
            Err(error) => Err(finding(
                StorageSeverity::Weak,
                format!("a reader of a replaced file gets an error, so that downloads break: {error}"),
            )),
        }
    }

    /// A rename that must not replace: RENAME_NOREPLACE, or a hard link.
    fn rename_to_new_name(&self) -> Result<(), StorageFinding> {
        let (from, to, here) = (self.one.as_str(), self.other.as_str(), &self.directory);
        match renameat2(here, from, here, to, RenameFlags::RENAME_NOREPLACE) {
            Ok(()) => return Ok(()),
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {}
            Err(errno) => return Err(failed("renaming a file to a new name", errno)),
        }
        match linkat(here, from, here, to, LinkatFlags::empty()) {
            Ok(()) => Ok(()),
            Err(errno) => Err(failed(
                "neither RENAME_NOREPLACE nor hard links work, so that a rename could replace a file: link",
                errno,
            )),
        }
    }
}

/// Returns true if the error of [`StorageSelfTest::run`] means that the node may not write in the root, which
/// is in order where all homes exist.
pub fn is_no_right(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_local_file_system_passes_and_keeps_no_files() {
        let directory = tempfile::tempdir().unwrap();
        let test = StorageSelfTest::run(directory.path(), LockMode::Auto, true).unwrap();
        assert_eq!(test.findings, []);
        assert!(!test.file_system.is_empty());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_full_disk_does_not_break_atomic_mode_and_a_missing_call_does() {
        assert_eq!(failed("fsync", Errno::ENOSPC).severity, StorageSeverity::Unknown);
        assert_eq!(failed("fsync", Errno::EINVAL).severity, StorageSeverity::BreaksAtomicMode);
    }
}
