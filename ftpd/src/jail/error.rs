//! Errors of file operations: one table from errno to [`FileError`], one from [`FileError`] to FTP
//! replies.

use std::io;

use common::{
    process::logging::chain,
    registry::{LeaseCertainty, LeaseConflict, LeaseRefused},
};
use nix::errno::Errno;

use crate::protocol::{Code, Failure, Reply, failure};

/// Reason for a failed file operation. A variant without a source stands for the errno in its message.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("no such file or directory (ENOENT)")]
    NotFound,
    #[error("the storage refuses the node access")]
    PermissionDenied(#[source] io::Error),
    #[error("a symbolic link leads out of the home (EXDEV)")]
    OutOfHome,
    #[error("the name exists already (EEXIST)")]
    AlreadyExists,
    #[error("not a directory (ENOTDIR)")]
    NotADirectory,
    #[error("is a directory (EISDIR)")]
    IsADirectory,
    /// A socket, FIFO or device, or a directory where a file is required.
    #[error("not a regular file")]
    NotAFile,
    #[error("the directory is not empty (ENOTEMPTY)")]
    DirectoryNotEmpty,
    #[error("no space left (ENOSPC)")]
    NoSpace,
    #[error("over quota (EDQUOT)")]
    QuotaExceeded,
    #[error("the file would become too large (EFBIG)")]
    TooLarge,
    /// A name that the server reserves, or `/` where it is not allowed.
    #[error("clients may not use this name here")]
    NameNotAllowed,
    /// A shared folder, or a directory above one.
    #[error("the name is a shared folder or a directory above one")]
    Fixed,
    #[error("the name is too long (ENAMETOOLONG)")]
    NameTooLong,
    /// The offset of REST cannot be used (RFC 3659 section 5): it exceeds the file size, so that writing
    /// there would leave a hole, or the upload must not truncate and the offset is less than the size.
    #[error("the restart offset does not fit the size of the file")]
    BadOffset,
    /// Another session or node has removed or replaced the file.
    #[error("the file is gone from the server (ESTALE)")]
    Stale,
    #[error("too many symbolic links (ELOOP)")]
    Loop,
    #[error("two different file systems (EXDEV)")]
    CrossDevice,
    #[error("read-only file system (EROFS)")]
    ReadOnly,
    #[error("busy")]
    Busy(#[source] io::Error),
    #[error("too many open files")]
    TooManyOpenFiles(#[source] io::Error),
    #[error("the directory tree is too deep")]
    TooDeep,
    /// COMB names the same file twice.
    #[error("one file is named twice")]
    SameFile,
    /// Another session holds the writer's lock on the file: see [`super::lock`].
    #[error("another session writes the file")]
    BeingWritten,
    /// Another session has the write lease of the path, or no leases can be granted at this time.
    #[error(transparent)]
    Leased(#[from] LeaseRefused),
    /// Neither a write lease nor a file lock proves that no other session writes the file.
    #[error("another node may be writing the file")]
    WriterUncertain(LeaseCertainty),
    /// The session lost the right to write the file while it was writing.
    #[error("the session lost its right to write this file")]
    WriteRightLost,
    /// It is unknown which of the written bytes are on stable storage.
    #[error("the data may not be on stable storage")]
    NotDurable,
    /// The operation was cancelled by the control connection.
    #[error("cancelled")]
    Cancelled,
    #[error("input or output error")]
    Io(#[source] io::Error),
}

impl FileError {
    /// Returns the reply to the command, with the cause for the log.
    pub fn refusal(&self) -> Reply {
        let (code, phrase) = self.reply();
        Reply::new(code, phrase).because(self.failure())
    }

    /// Returns the cause for the log and the metrics.
    pub fn failure(&self) -> Failure {
        let (detail, holder) = match self {
            // The reply already says everything.
            Self::Leased(LeaseRefused::Busy { holder, .. }) => (None, *holder),
            Self::Leased(LeaseRefused::RegistryAway) => {
                (Some("Redis is unavailable, and registry_away = \"refuse\"".into()), None)
            }
            Self::WriterUncertain(certainty) => {
                let why = match certainty {
                    LeaseCertainty::RedisLostData => "Redis lost its data less than node_lease ago",
                    LeaseCertainty::Unreplicated => "fewer replicas of Redis answer than redis_replicas asks",
                    LeaseCertainty::RedisAway | LeaseCertainty::Certain => "Redis is unavailable",
                };
                let what = "file locks on this storage do not exclude other nodes (storage_locks)";
                (Some(format!("{why}, and {what}").into()), None)
            }
            error => (Some(chain(error).into()), None),
        };
        Failure { reason: self.reason(), detail, errno: self.errno(), holder }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::PermissionDenied(_) => failure::STORAGE_ACCESS,
            Self::OutOfHome => "link_out_of_home",
            Self::AlreadyExists => "exists",
            Self::NotADirectory => "not_a_directory",
            Self::IsADirectory => "is_a_directory",
            Self::NotAFile => "not_a_file",
            Self::DirectoryNotEmpty => "not_empty",
            Self::Loop => "link_loop",
            Self::ReadOnly => failure::STORAGE_READ_ONLY,
            Self::TooDeep => "too_deep",
            Self::Fixed => "fixed_directory",
            Self::NameNotAllowed => "reserved_name",
            Self::NameTooLong => "name_too_long",
            Self::CrossDevice => "cross_device",
            Self::SameFile => "same_file",
            Self::QuotaExceeded => "storage_quota",
            Self::TooLarge => "too_large",
            Self::BadOffset => "bad_offset",
            Self::NoSpace => "no_space",
            Self::Busy(_) => "busy",
            Self::Stale => "stale",
            Self::TooManyOpenFiles(_) => "too_many_open_files",
            Self::BeingWritten => "being_written",
            Self::Leased(LeaseRefused::Busy { .. }) => "write_lease",
            Self::Leased(LeaseRefused::RegistryAway) | Self::WriterUncertain(_) => "registry_away",
            Self::WriteRightLost => "lease_lost",
            Self::Cancelled => failure::CANCELLED,
            Self::NotDurable | Self::Io(_) => "storage_io",
        }
    }

    /// The errno that the error stands for, if there is one.
    fn errno(&self) -> Option<Errno> {
        Some(match self {
            Self::NotFound => Errno::ENOENT,
            Self::AlreadyExists => Errno::EEXIST,
            Self::NotADirectory => Errno::ENOTDIR,
            Self::IsADirectory => Errno::EISDIR,
            Self::DirectoryNotEmpty => Errno::ENOTEMPTY,
            Self::NoSpace => Errno::ENOSPC,
            Self::QuotaExceeded => Errno::EDQUOT,
            Self::TooLarge => Errno::EFBIG,
            Self::NameTooLong => Errno::ENAMETOOLONG,
            Self::Stale => Errno::ESTALE,
            Self::Loop => Errno::ELOOP,
            Self::CrossDevice | Self::OutOfHome => Errno::EXDEV,
            Self::ReadOnly => Errno::EROFS,
            Self::PermissionDenied(error)
            | Self::Busy(error)
            | Self::TooManyOpenFiles(error)
            | Self::Io(error) => Errno::from_raw(error.raw_os_error()?),
            Self::NotAFile
            | Self::NameNotAllowed
            | Self::Fixed
            | Self::BadOffset
            | Self::TooDeep
            | Self::SameFile
            | Self::BeingWritten
            | Self::Leased(_)
            | Self::WriterUncertain(_)
            | Self::WriteRightLost
            | Self::NotDurable
            | Self::Cancelled => return None,
        })
    }

    /// Returns the reply code (RFC 959 section 4.2, RFC 3659 section 5) and the fixed phrase for
    /// clients.
    pub fn reply(&self) -> (Code, &'static str) {
        match self {
            Self::NotFound => (Code::FILE_UNAVAILABLE, "No such file or directory"),
            // A permanent error: every retry fails until an operator changes the file modes.
            Self::PermissionDenied(_) => (Code::FILE_UNAVAILABLE, "The storage refuses access"),
            Self::OutOfHome => (Code::FILE_UNAVAILABLE, "Permission denied"),
            Self::AlreadyExists => (Code::FILE_UNAVAILABLE, "File exists"),
            Self::NotADirectory => (Code::FILE_UNAVAILABLE, "Not a directory"),
            Self::IsADirectory => (Code::FILE_UNAVAILABLE, "Is a directory"),
            Self::NotAFile => (Code::FILE_UNAVAILABLE, "Not a regular file"),
            Self::DirectoryNotEmpty => (Code::FILE_UNAVAILABLE, "Directory not empty"),
            Self::Loop => (Code::FILE_UNAVAILABLE, "Too many symbolic links"),
            Self::ReadOnly => (Code::FILE_UNAVAILABLE, "Read-only file system"),
            Self::TooDeep => (Code::FILE_UNAVAILABLE, "Directory tree too deep"),
            Self::Fixed => (Code::FILE_UNAVAILABLE, "This directory cannot be changed"),
            Self::NameNotAllowed => (Code::BAD_NAME, "File name not allowed"),
            Self::NameTooLong => (Code::BAD_NAME, "File name too long"),
            Self::CrossDevice => (Code::BAD_NAME, "Cannot move between folders or file systems"),
            Self::SameFile => (Code::BAD_NAME, "The same file is named twice"),
            Self::QuotaExceeded => (Code::QUOTA_EXCEEDED, "Quota exceeded"),
            Self::TooLarge => (Code::QUOTA_EXCEEDED, "File too large"),
            Self::BadOffset => (Code::BAD_OFFSET, "Restart offset does not fit the size of the file"),
            Self::NoSpace => (Code::NO_SPACE, "Insufficient storage space"),
            Self::Busy(_) => (Code::FILE_BUSY, "File busy, try again"),
            Self::Stale => (Code::FILE_BUSY, "File changed during the operation, try again"),
            Self::TooManyOpenFiles(_) => (Code::FILE_BUSY, "Server busy, try again"),
            Self::BeingWritten => (Code::FILE_BUSY, "Another session writes this file"),
            Self::Leased(LeaseRefused::Busy { conflict, .. }) => {
                let phrase = match conflict {
                    LeaseConflict::Same => "Another session writes this file",
                    LeaseConflict::Below => "A file in this directory is being written",
                    LeaseConflict::Above => "A parent directory is being renamed or removed",
                };
                (Code::FILE_BUSY, phrase)
            }
            Self::Leased(LeaseRefused::RegistryAway) => {
                (Code::FILE_BUSY, "Uploads are temporarily unavailable, try again later")
            }
            Self::WriterUncertain(_) => {
                (Code::FILE_BUSY, "Another session may be writing this file, try again later")
            }
            Self::WriteRightLost => (Code::LOCAL_ERROR, "Another session writes this file"),
            Self::Cancelled => (Code::LOCAL_ERROR, "Action cancelled"),
            Self::NotDurable | Self::Io(_) => (Code::LOCAL_ERROR, "Local error in processing"),
        }
    }
}

impl From<Errno> for FileError {
    fn from(errno: Errno) -> Self {
        let source = || io::Error::from(errno);
        match errno {
            Errno::ENOENT => Self::NotFound,
            Errno::EACCES | Errno::EPERM => Self::PermissionDenied(source()),
            Errno::EEXIST => Self::AlreadyExists,
            Errno::ENOTDIR => Self::NotADirectory,
            Errno::EISDIR => Self::IsADirectory,
            // open(2) of a socket, of a FIFO without a reader, or of a device without a driver.
            Errno::ENXIO | Errno::ENODEV => Self::NotAFile,
            Errno::ENOTEMPTY => Self::DirectoryNotEmpty,
            Errno::ENOSPC => Self::NoSpace,
            Errno::EDQUOT => Self::QuotaExceeded,
            Errno::EFBIG => Self::TooLarge,
            Errno::ENAMETOOLONG => Self::NameTooLong,
            Errno::ESTALE => Self::Stale,
            Errno::ELOOP => Self::Loop,
            Errno::EXDEV => Self::CrossDevice,
            Errno::EROFS => Self::ReadOnly,
            // EAGAIN: `openat2` lost too many races with renames, or another server program on the host
            // holds a lease on the file (F_SETLEASE).
            Errno::EBUSY | Errno::ETXTBSY | Errno::EAGAIN => Self::Busy(source()),
            Errno::EMFILE | Errno::ENFILE => Self::TooManyOpenFiles(source()),
            _ => Self::Io(source()),
        }
    }
}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => Errno::from_raw(errno).into(),
            None => Self::Io(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_errors_map_to_reply_codes() {
        for (errno, code) in [
            (Errno::ENOENT, 550),
            (Errno::EACCES, 550),
            (Errno::ENOSPC, 452),
            (Errno::EDQUOT, 552),
            (Errno::EFBIG, 552),
            (Errno::EIO, 451),
            (Errno::ESTALE, 450),
            (Errno::EBUSY, 450),
            (Errno::ENAMETOOLONG, 553),
        ] {
            assert_eq!(FileError::from(errno).reply().0.value(), code, "{errno}");
            assert_eq!(FileError::from(io::Error::from(errno)).reply().0.value(), code, "{errno}");
        }
    }

    #[test]
    fn log_has_the_errno_and_a_storage_refusal_differs_from_a_missing_permission() {
        let error = FileError::from(Errno::EPERM);
        let source = std::error::Error::source(&error).map(ToString::to_string);
        assert_eq!(source, Some(io::Error::from(Errno::EPERM).to_string()));
        let failure = error.failure();
        assert_eq!((failure.reason, failure.errno), (failure::STORAGE_ACCESS, Some(Errno::EPERM)));
        assert_eq!(FileError::from(Errno::EIO).failure().errno, Some(Errno::EIO));
        // The text differs from the reply that a missing permission of the account gets.
        assert_ne!(error.refusal().text(), Reply::permission_denied().text());
    }
}
