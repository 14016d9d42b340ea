//! Request and response bodies of authd's HTTP API for nodes.

use std::{fmt, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::{
    certificate::ClientCertificate,
    ids::{NodeName, SessionId},
    policy::{Bandwidth, DirectoryRule, Folder, NamePattern, Permissions, Quota, TreePath},
    secret::{Secret, serialize_exposed},
};

/// Body of `POST /v1/authenticate`, sent by a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthenticateRequest {
    pub user: String,
    #[serde(serialize_with = "serialize_exposed")]
    pub password: Secret,
    /// The client's address.
    pub address: IpAddr,
    pub node: NodeName,
    pub session: SessionId,
    /// True if the control connection is encrypted.
    pub tls: bool,
    /// Subject of the client certificate, from older nodes, which do not send `client_certificate`. It is
    /// not escaped, so authd accepts it only if it has a single attribute without special characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// The client certificate that the node has verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<ClientCertificate>,
}

/// Body of the response 200 to `POST /v1/authenticate`: the account of the user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    pub user: String,
    /// The user's groups, for records and filters. Empty from an older authd.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Absolute path within the storage: `/demo`.
    pub home: String,
    #[serde(default)]
    pub permissions: Permissions,
    /// Access rules: permissions of parts of the tree.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub directories: Vec<DirectoryRule>,
    /// Names that uploads and renames may not give to a file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub denied_names: Vec<NamePattern>,
    /// Shared folders that the tree shows in addition to the home.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub folders: Vec<Folder>,
    #[serde(default)]
    pub limits: AccountLimits,
    #[serde(default)]
    pub quota: Quota,
    /// The directory of the home to which the quota applies; `None`: the whole home. Only for users without
    /// the permission to rename, because a rename into the directory would not be counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_directory: Option<TreePath>,
    #[serde(default)]
    pub bandwidth: Bandwidth,
    #[serde(default)]
    pub uploads: UploadMode,
    #[serde(default)]
    pub tls: TlsRequirements,
    /// True if `SITE WHO` shows all sessions, false if it shows the user's own sessions only.
    #[serde(default)]
    pub admin: bool,
    /// Identifies the credential that was accepted, for [`AuthorizedRequest`]. `None` from an older authd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// Body of `POST /v1/authorized`, sent by a node: the logins of its sessions, each of which authd accepts
/// or ends. One entry stands for all sessions with the same values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthorizedRequest {
    pub node: NodeName,
    /// At most [`MAX_AUTHORIZED`].
    pub logins: Vec<PastLogin>,
}

/// Maximum number of logins in one [`AuthorizedRequest`].
pub const MAX_AUTHORIZED: usize = 256;

/// A login that authd has accepted earlier.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PastLogin {
    pub user: String,
    /// [`Account::version`] in authd's response. `None`: authd checks only the user and the login conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The client's address.
    pub address: IpAddr,
}

/// Body of the response 200 to `POST /v1/authorized`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorizedAnswer {
    /// One verdict for each login of the request, in the same order.
    pub verdicts: Vec<Verdict>,
}

/// authd's decision about the sessions of a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "snake_case")]
pub enum Verdict {
    Stay,
    End {
        #[serde(default)]
        reason: EndReason,
    },
    /// authd cannot decide now, because Redis is away. The sessions go on, and the node asks again.
    Undecided,
}

/// The reason why a session must end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// The user does not exist any more.
    Removed,
    Disabled,
    /// The user has a new password, or no longer has the client certificate of the login.
    CredentialChanged,
    AddressNotAllowed,
    TimeNotAllowed,
    /// An administrator blocked the user or the address.
    Blocked,
    /// A reason of a newer authd that this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

impl EndReason {
    /// The name in JSON, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Removed => "removed",
            Self::Disabled => "disabled",
            Self::CredentialChanged => "credential_changed",
            Self::AddressNotAllowed => "address_not_allowed",
            Self::TimeNotAllowed => "time_not_allowed",
            Self::Blocked => "blocked",
            Self::Unknown => "unknown",
        }
    }
}

/// Limits of one user. `None` means no limit of sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccountLimits {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions_per_address: Option<u32>,
    /// Maximum number of simultaneous transfers on each node. `None`: the node's `max_transfers_per_user`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transfers: Option<u32>,
}

/// TLS requirements of one user, in addition to those of the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsRequirements {
    /// Refuse the login on an unencrypted control connection.
    pub control: bool,
    /// Require PROT P for transfers.
    pub data: bool,
    /// True if an encrypted upload must end with close_notify. `None`: as the node's `tls_close_notify` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub close_notify: Option<bool>,
}

/// The way in which an upload gets its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UploadMode {
    /// Direct mode: written under its final name from the first byte.
    #[default]
    Direct,
    /// Atomic mode: written as a hidden partial file, which is renamed when it is complete and synced.
    Atomic,
}

/// Body of every response with a status other than 2xx.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: ErrorCode,
    /// One sentence for people to read. It never contains a secret.
    pub message: String,
    /// With `invalid_credentials`: the reason for the node's log and metrics. The node must not send it to
    /// its client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Rejection>,
}

/// The reason why a login was rejected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rejection {
    UnknownUser,
    WrongPassword,
    Disabled,
    AddressNotAllowed,
    TimeNotAllowed,
    /// An administrator blocked the user or the address.
    Blocked,
    /// authd gives no reason, or a reason that this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

impl Rejection {
    /// The name in JSON, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnknownUser => "unknown_user",
            Self::WrongPassword => "wrong_password",
            Self::Disabled => "disabled",
            Self::AddressNotAllowed => "address_not_allowed",
            Self::TimeNotAllowed => "time_not_allowed",
            Self::Blocked => "blocked",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnknownUser => "there is no such user",
            Self::WrongPassword => "the password is wrong",
            Self::Disabled => "the user is disabled",
            Self::AddressNotAllowed => {
                "the user may not log in from this address (access.allow_from, deny_from)"
            }
            Self::TimeNotAllowed => "the user may not log in at this time (access.hours)",
            Self::Blocked => "an administrator blocked the user or the address",
            Self::Unknown => "authd refused the login; its log has the reason",
        })
    }
}

/// The error, for programs. authd's `error.rs` assigns the HTTP status codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// 401: the bearer token is missing, or is not the one for this route.
    Unauthorized,
    /// 403: unknown user, wrong password, disabled user, or login conditions not met. The code does not
    /// tell which.
    InvalidCredentials,
    /// 403: the administrator's role does not allow this.
    Forbidden,
    /// 429, with `Retry-After` in seconds: too many failed logins of this user or from this address.
    Throttled,
    /// 400: the body or a parameter is malformed.
    InvalidRequest,
    /// 404
    NotFound,
    /// 405
    MethodNotAllowed,
    /// 409: the user or group exists already.
    AlreadyExists,
    /// 409: the user or group is declared in the users file, which the API does not change.
    Declarative,
    /// 409: the group has members.
    InUse,
    /// 409: the node stops, which cannot be undone.
    Stopping,
    /// 413
    TooLarge,
    /// 503: Redis is away and the answer needs it.
    Unavailable,
    /// 500
    Internal,
}
