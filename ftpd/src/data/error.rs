//! The reasons why the copy loops end early.

use std::{error::Error, io};

use nix::errno::Errno;

use crate::work::{presence::ClientPresence, progress::Progress};

/// The reason why a copy ended early. It knows connections and files, but neither quotas nor homes: the
/// callers turn it into replies.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("cancelled")]
    Cancelled,
    #[error("the client closed the control connection")]
    ClientLeft,
    #[error("no data moved for as long as stall_timeout allows")]
    Stalled,
    /// Only whole records arrived, but an attacker or a broken network may have ended the stream.
    #[error(
        "the upload ended without TLS close_notify (.NET's FtpWebRequest never sends it: to accept such \
         uploads, set tls_close_notify, or tls.close_notify of the user, to false)"
    )]
    NoCloseNotify,
    #[error("data connection lost")]
    ConnectionLost(#[source] io::Error),
    #[error("storage failed")]
    Storage(#[source] io::Error),
    /// A [`CopyPace`](super::copy::CopyPace) refused further bytes. The caller that set the pace knows the
    /// type of the cause.
    #[error("a limit ended the transfer")]
    Refused(#[source] Box<dyn Error + Send + Sync>),
    /// The guard of [`CopyJob::guarded_by`](super::copy::CopyJob::guarded_by) forbids further writes.
    #[error("the right to write the file was not renewed in time")]
    MayNotStore,
}

/// The cause of an error of [`std::io::Read`]: an encrypted stream ended without close_notify, after a whole
/// record.
#[derive(Debug, thiserror::Error)]
#[error("no close_notify")]
pub(super) struct NoCloseNotify;

impl CopyError {
    /// The error for a copy whose `progress` is cancelled.
    pub fn of_cancellation(progress: &Progress) -> Self {
        if progress.is_given_up() { Self::ClientLeft } else { Self::Cancelled }
    }

    /// The meaning of an error of the data connection. After a cancellation, every error counts as its
    /// effect.
    pub fn of_connection(error: io::Error, progress: &Progress, client: Option<&ClientPresence>) -> Self {
        match error.kind() {
            _ if progress.is_cancelled() => Self::of_cancellation(progress),
            _ if client.is_some_and(ClientPresence::is_cut_off) => Self::ClientLeft,
            _ if error.get_ref().is_some_and(|cause| cause.is::<NoCloseNotify>()) => Self::NoCloseNotify,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Stalled,
            _ => Self::ConnectionLost(error),
        }
    }

    /// The meaning of an error of a system call on the socket.
    pub(super) fn of_socket(errno: Errno, progress: &Progress, client: Option<&ClientPresence>) -> Self {
        match errno {
            // TCP's ETIMEDOUT means that the peer does not acknowledge. The stall limit gives EAGAIN.
            Errno::ETIMEDOUT if !progress.is_cancelled() => Self::ConnectionLost(errno.into()),
            _ => Self::of_connection(errno.into(), progress, client),
        }
    }

    /// The meaning of an error of a system call that has a file on one side and a socket on the other.
    pub(super) fn of_either(errno: Errno, progress: &Progress, client: Option<&ClientPresence>) -> Self {
        match errno {
            Errno::EAGAIN
            | Errno::EPIPE
            | Errno::ECONNRESET
            | Errno::ECONNABORTED
            | Errno::ECONNREFUSED
            | Errno::ENOTCONN
            | Errno::ESHUTDOWN
            | Errno::ETIMEDOUT
            | Errno::EHOSTUNREACH
            | Errno::EHOSTDOWN
            | Errno::ENETUNREACH
            | Errno::ENETDOWN
            | Errno::ENETRESET => Self::of_socket(errno, progress, client),
            _ => Self::Storage(errno.into()),
        }
    }
}
