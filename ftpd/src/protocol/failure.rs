//! The reason of a failed operation: what the log and the metrics show beside its reply.

use std::borrow::Cow;

use common::session::SessionId;
use nix::errno::Errno;

use super::reply::Code;

/// The storage refuses the node access: file modes, ownership, an ACL, or an NFS export's root_squash.
pub const STORAGE_ACCESS: &str = "storage_access";
pub const STORAGE_READ_ONLY: &str = "storage_read_only";
/// The operation was cancelled. The log shows the cause instead, such as ABOR or the end of the node.
pub const CANCELLED: &str = "cancelled";

/// The reason of a failed operation, and details that its reply does not contain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// The label `reason` of `ftp_operations_failed_total`. Always a constant, so that the set of labels is
    /// bounded.
    pub reason: &'static str,
    /// Text for the log only. `None`: the log shows the reply's text.
    pub detail: Option<Cow<'static, str>>,
    pub errno: Option<Errno>,
    /// The session that holds the write lease that this session asked for.
    pub holder: Option<SessionId>,
}

impl From<&'static str> for Failure {
    fn from(reason: &'static str) -> Self {
        Self { reason, ..Self::default() }
    }
}

impl Failure {
    /// A reason with a text for the log.
    pub fn with_detail(reason: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { detail: Some(detail.into()), ..Self::from(reason) }
    }

    /// The reason for a reply that carries none, derived from its code.
    pub fn of_code(code: Code) -> Self {
        Self::from(match code {
            Code::NO_DATA_CONNECTION => "no_data_connection",
            Code::TRANSFER_ABORTED => "connection_lost",
            Code::FILE_BUSY => "busy",
            Code::LOCAL_ERROR => "local_error",
            Code::NO_SPACE => "no_space",
            Code::PROTECTION_REQUIRED => "not_encrypted",
            Code::FILE_UNAVAILABLE => "unavailable",
            Code::QUOTA_EXCEEDED => "quota",
            Code::BAD_NAME => "bad_name",
            Code::BAD_OFFSET => "bad_offset",
            _ => "other",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_without_a_reason_gets_one_from_its_code() {
        for (code, reason) in
            [(Code::QUOTA_EXCEEDED, "quota"), (Code::FILE_BUSY, "busy"), (Code::POLICY, "other")]
        {
            assert_eq!(Failure::of_code(code).reason, reason);
        }
    }
}
