//! The failures of transfers, and the one table of their replies.

use std::time::Duration;

use common::process::logging::chain;

use crate::{
    data::{CopyError, NoDataConnection},
    jail::FileError,
    limits::quota::QuotaError,
    protocol::{Code, Failure, Reply, failure::CANCELLED},
};

/// The reason why a transfer failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferFailure {
    #[error(transparent)]
    NoConnection(#[from] NoDataConnection),
    #[error("no slot for a transfer became free within data_connect_timeout ({setting})")]
    NoSlot { setting: &'static str },
    #[error("the transfer moved fewer than {minimum} bytes a second (minimum_rate, minimum_rate_time)")]
    TooSlow { minimum: u64 },
    /// The data connection broke, or the transfer was ended early. Storage errors, quota errors and expired
    /// leases have their own variants.
    #[error(transparent)]
    Copy(CopyError),
    #[error("storage failed")]
    Storage(#[from] FileError),
    #[error(transparent)]
    Quota(QuotaError),
    #[error("{got} bytes arrived of {announced} that ALLO announced")]
    Short { announced: u64, got: u64 },
    #[error("the file became shorter: {sent} bytes of {wanted} were sent")]
    Shrunk { wanted: u64, sent: u64 },
    /// The write lease is older than `node_lease`, and the storage has no locks that hold on all nodes.
    #[error("the right to write the file was not renewed in time")]
    LeaseExpired,
    #[error("another session has taken the right to write this path")]
    LeaseLost,
}

impl From<CopyError> for TransferFailure {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Storage(error) => Self::Storage(error.into()),
            CopyError::MayNotStore => Self::LeaseExpired,
            CopyError::Refused(cause) => match cause.downcast::<QuotaError>() {
                Ok(quota) => Self::Quota(*quota),
                Err(cause) => Self::Copy(CopyError::Refused(cause)),
            },
            CopyError::Cancelled
            | CopyError::ClientLeft
            | CopyError::Stalled
            | CopyError::NoCloseNotify
            | CopyError::ConnectionLost(_) => Self::Copy(error),
        }
    }
}

impl TransferFailure {
    /// The final reply to the command, with its reason, and the label `result` of `ftp_transfers_total`.
    /// `stall` is `stall_timeout`.
    pub(super) fn reply(&self, stall: Duration) -> (Reply, &'static str) {
        let aborted = Code::TRANSFER_ABORTED;
        let stalled = || format!("Transfer stalled: no data for {} s", stall.as_secs_f64());
        let too_slow = |minimum| format!("Transfer too slow: fewer than {minimum} bytes a second");
        let not_resumed = "The data connection must resume the control connection's TLS session";
        let no_close_notify =
            "Upload ended without TLS close_notify (tls_close_notify); what arrived is kept";
        let (reply, result) = match self {
            Self::NoConnection(NoDataConnection::NotResumed) => {
                (Reply::new(Code::UNSUPPORTED_FAMILY, not_resumed), "not_resumed")
            }
            Self::NoConnection(NoDataConnection::Handshake(_)) => {
                (Reply::new(Code::UNSUPPORTED_FAMILY, "TLS failed on the data connection"), "tls_failed")
            }
            Self::NoConnection(_) => {
                (Reply::new(Code::NO_DATA_CONNECTION, "No data connection"), "no_connection")
            }
            Self::NoSlot { .. } => (Reply::new(Code::FILE_BUSY, "Too many transfers, try again"), "no_slot"),
            Self::TooSlow { minimum } => (Reply::new(aborted, too_slow(minimum)), "too_slow"),
            Self::Copy(CopyError::Cancelled) => (Reply::new(aborted, "Transfer aborted"), "aborted"),
            Self::Copy(CopyError::ClientLeft) => (
                Reply::new(aborted, "The control connection was closed; what arrived is kept"),
                "client_gone",
            ),
            Self::Copy(CopyError::Stalled) => (Reply::new(aborted, stalled()), "stalled"),
            Self::Copy(CopyError::NoCloseNotify) => (Reply::new(aborted, no_close_notify), "no_close_notify"),
            Self::Copy(CopyError::ConnectionLost(_)) => {
                (Reply::new(aborted, "The data connection was lost"), "connection_lost")
            }
            Self::Storage(error) => (error.refusal(), "storage"),
            Self::Quota(QuotaError::Exceeded { .. } | QuotaError::UsedUp) => {
                (Reply::new(Code::QUOTA_EXCEEDED, "Quota exceeded"), "quota")
            }
            Self::Quota(QuotaError::Counting | QuotaError::RegistryAway) => {
                (Reply::new(Code::LOCAL_ERROR, "The quota cannot be checked at this time"), "quota_unknown")
            }
            Self::Short { .. } => {
                (Reply::new(aborted, "Fewer bytes than ALLO announced; they are kept"), "short")
            }
            Self::Shrunk { .. } => {
                (Reply::new(Code::LOCAL_ERROR, "The file became shorter while it was sent"), "shrunk")
            }
            // `From<CopyError>` turns these into variants of their own, except an unknown cause of `Refused`.
            Self::Copy(CopyError::Storage(_) | CopyError::Refused(_) | CopyError::MayNotStore) => {
                (Reply::new(Code::LOCAL_ERROR, "Local error in processing"), "local_error")
            }
            Self::LeaseLost | Self::LeaseExpired => {
                (Reply::new(Code::LOCAL_ERROR, "Another session writes this file"), "lease_lost")
            }
        };
        (reply.because(self.failure(result)), result)
    }

    /// The reason for the log and the metrics.
    fn failure(&self, result: &'static str) -> Failure {
        match self {
            Self::Storage(error) => error.failure(),
            Self::Copy(CopyError::Cancelled) => Failure::from(CANCELLED),
            _ => Failure::with_detail(result, chain(self)),
        }
    }
}
