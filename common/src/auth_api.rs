//! Requests and answers of authd's HTTP API, as both daemons read and write them.

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
    /// The client's real address.
    pub address: IpAddr,
    pub node: NodeName,
    pub session: SessionId,
    /// Whether the control connection is encrypted.
    pub tls: bool,
    /// Subject of the client certificate, from a node that does not send `client_certificate` yet. It has no
    /// escapes: authd believes it only if it has one attribute without special characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// The client certificate that the node has verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<ClientCertificate>,
}

/// Body of the answer 200 to `POST /v1/authenticate`: everything a node needs to know of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    pub user: String,
    /// Absolute, within the shared storage: `/demo`.
    pub home: String,
    #[serde(default)]
    pub permissions: Permissions,
    /// Where other permissions hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub directories: Vec<DirectoryRule>,
    /// Names that no upload and no rename may give a file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub denied_names: Vec<NamePattern>,
    /// What the tree shows beside the home.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub folders: Vec<Folder>,
    #[serde(default)]
    pub limits: AccountLimits,
    #[serde(default)]
    pub quota: Quota,
    /// The directory of the home that the quota is of; without it the whole home. For users who may not
    /// rename: a rename into the directory would not be counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_directory: Option<TreePath>,
    #[serde(default)]
    pub bandwidth: Bandwidth,
    #[serde(default)]
    pub uploads: UploadMode,
    #[serde(default)]
    pub tls: TlsRequirements,
    /// May see all sessions with `SITE WHO`, not only the own ones.
    #[serde(default)]
    pub admin: bool,
    /// What the login was accepted by, for [`AuthorizedRequest`]. `None` from an older authd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// Body of `POST /v1/authorized`, sent by a node: may sessions that these logins began go on? One entry stands
/// for all sessions with the same values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthorizedRequest {
    pub node: NodeName,
    /// At most [`MAX_AUTHORIZED`].
    pub logins: Vec<PastLogin>,
}

/// How many logins one [`AuthorizedRequest`] may name.
pub const MAX_AUTHORIZED: usize = 256;

/// A login that authd has accepted before.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PastLogin {
    pub user: String,
    /// [`Account::version`] of authd's answer. `None`: only the user and the conditions of access are checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The client's real address.
    pub address: IpAddr,
}

/// Body of the answer 200 to `POST /v1/authorized`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorizedAnswer {
    /// One for each login of the request, in its order.
    pub verdicts: Vec<Verdict>,
}

/// Whether the sessions of a login may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "snake_case")]
pub enum Verdict {
    Stay,
    End {
        #[serde(default)]
        reason: EndReason,
    },
    /// authd cannot tell now, because Redis is away: the sessions go on, and the node asks again.
    Undecided,
}

/// Why a session has to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// The user does not exist any more.
    Removed,
    Disabled,
    /// The user has another password, or lost the client certificate of the login.
    CredentialChanged,
    AddressNotAllowed,
    TimeNotAllowed,
    /// A newer authd has a reason that this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

impl EndReason {
    /// As in JSON, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Removed => "removed",
            Self::Disabled => "disabled",
            Self::CredentialChanged => "credential_changed",
            Self::AddressNotAllowed => "address_not_allowed",
            Self::TimeNotAllowed => "time_not_allowed",
            Self::Unknown => "unknown",
        }
    }
}

/// Limits of one user. `None` of sessions is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccountLimits {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions_per_address: Option<u32>,
    /// Transfers at once on each node. `None`: the node's `max_transfers_per_user`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transfers: Option<u32>,
}

/// Which connections of a user must be encrypted, beside what the node itself requires, and how their data
/// ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsRequirements {
    /// The login is refused on a control connection in the clear.
    pub control: bool,
    /// Transfers and listings need PROT P.
    pub data: bool,
    /// Whether an encrypted upload must end with close_notify. `None`: as the node's `tls_close_notify` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub close_notify: Option<bool>,
}

/// How an upload gets its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UploadMode {
    /// Written under its name from the first byte.
    #[default]
    Direct,
    /// Written under a hidden name and renamed when it is complete and synced.
    Atomic,
}

/// Body of every answer that is not 2xx.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: ErrorCode,
    /// One sentence for people. Never holds a secret.
    pub message: String,
    /// With `invalid_credentials`: what was wrong with the login. For the node's log and metrics; its
    /// client must not learn it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Rejection>,
}

/// Why a login is wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rejection {
    UnknownUser,
    WrongPassword,
    Disabled,
    AddressNotAllowed,
    TimeNotAllowed,
    /// authd does not say, or has a reason that this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

impl Rejection {
    /// As in JSON, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnknownUser => "unknown_user",
            Self::WrongPassword => "wrong_password",
            Self::Disabled => "disabled",
            Self::AddressNotAllowed => "address_not_allowed",
            Self::TimeNotAllowed => "time_not_allowed",
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
            Self::Unknown => "authd refused it; authd's log has the reason",
        })
    }
}

/// What went wrong, for programs. The status code of each stands in authd's `error.rs` alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// 401: no bearer token, or not the one this route needs.
    Unauthorized,
    /// 403: unknown user, wrong password or disabled user; which of them is not told.
    InvalidCredentials,
    /// 429, with `Retry-After` in seconds: too many failed logins of this user or address.
    Throttled,
    /// 400: the body or a parameter is not what the route takes.
    InvalidRequest,
    /// 404
    NotFound,
    /// 405
    MethodNotAllowed,
    /// 409: the user or group exists already.
    AlreadyExists,
    /// 409: the user or group comes from the declarative file, which the API does not change.
    Declarative,
    /// 409: users are in the group.
    InUse,
    /// 413
    TooLarge,
    /// 503: Redis is away and the answer needs it.
    Unavailable,
    /// 500
    Internal,
}
