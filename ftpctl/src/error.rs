//! Failures of the console, and the exit status of each.

use std::{io, path::PathBuf};

/// Exit status: problems were found, or authd refused the change.
pub(crate) const FOUND: u8 = 1;
/// Exit status: arguments or settings are wrong.
pub(crate) const USAGE: u8 = 2;
/// Exit status: authd or its Redis cannot be reached.
pub(crate) const UNREACHABLE: u8 = 3;
/// Exit status: the token is wrong, or its role does not allow the request.
pub(crate) const NOT_ALLOWED: u8 = 4;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConsoleError {
    /// Holds a message that says what to change.
    #[error("{0}")]
    Usage(String),
    #[error("{}: {error}", path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("authd at {url} cannot be reached: {reason}; --url or FTPCTL_URL sets another address")]
    Unreachable { url: String, reason: String },
    #[error("{url} does not answer as authd does: {reason}")]
    Strange { url: String, reason: String },
    /// authd refused the request. Holds the HTTP status and authd's message.
    #[error("{message}")]
    Refused { status: u16, message: String },
    /// Holds a message: the object of the command does not exist or cannot be used.
    #[error("{0}")]
    Failed(String),
    /// Standard output cannot be written.
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
}

impl ConsoleError {
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::File { .. } => USAGE,
            Self::Refused { status: 401 | 403, .. } => NOT_ALLOWED,
            Self::Refused { status: 400, .. } => USAGE,
            Self::Unreachable { .. } | Self::Strange { .. } | Self::Refused { status: 502..=504, .. } => {
                UNREACHABLE
            }
            Self::Refused { .. } | Self::Failed(_) | Self::Output(_) => FOUND,
        }
    }

    /// True if the reader of standard output has closed it, as `head` does.
    pub(crate) fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_failure_has_its_exit_status() {
        let refused = |status| ConsoleError::Refused { status, message: String::new() }.exit_status();
        assert_eq!([400, 401, 403, 404, 409, 500, 503].map(refused), [2, 4, 4, 1, 1, 1, 3]);
        assert_eq!(ConsoleError::Usage(String::new()).exit_status(), 2);
        let away = ConsoleError::Unreachable { url: String::new(), reason: String::new() };
        assert_eq!(away.exit_status(), 3);
    }
}
