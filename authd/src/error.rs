//! Errors of the API, and the only mapping from an error to a status, a public code and a log level.
//! The caller gets a fixed message. Details for the operator are logged here.

use std::{error::Error, time::Duration};

use common::{
    auth_api::{ErrorBody, ErrorCode, Rejection},
    process::logging::chain,
    registry::{Confirmation, LinkError},
};
use warp::{
    Reply,
    http::{HeaderValue, StatusCode, header},
    reply::{self, Response},
};

use crate::accounts::{
    password::{QueueFull, UnusablePassword},
    stored::StoredError,
};

/// The reason why a request does not get a 2xx response.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The bearer token is missing or is not the one that the route needs. Holds whose token that is.
    #[error("this request needs the bearer token of {0}")]
    Unauthorized(&'static str),
    /// The login is wrong. The message is the same for all reasons; the reason is for the node's log.
    #[error("the user or the password is wrong")]
    InvalidCredentials(Rejection),
    /// Holds the name of the administrator.
    #[error("the role of {0:?} is viewer, who may change nothing and see no password hashes")]
    ReadOnly(String),
    /// A login to the page. The message does not tell which of both is wrong.
    #[error("the name or the token is wrong")]
    WrongToken,
    /// The request has the cookie of no session of the page.
    #[error("the session of the page is over; log in again")]
    NoSession,
    /// The request has the page's cookie, but nothing shows that the page sent it.
    #[error("the request lacks the token of the page's session (x-csrf-token), or comes from another site")]
    ForeignRequest,
    #[error("too many failed logins; try again later")]
    Throttled { wait: Duration },
    /// Holds a message for the caller.
    #[error("{0}")]
    InvalidRequest(String),
    /// Holds the kind of the missing object.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// Holds the path's methods in the form of the `Allow` header.
    #[error("this path supports {0}")]
    MethodNotAllowed(String),
    /// Holds the kind of the existing object.
    #[error("the {0} exists already")]
    AlreadyExists(&'static str),
    /// Holds the kind of the declared object.
    #[error("the {0} is declared in the users file or the settings; the API cannot change it")]
    Declarative(&'static str),
    /// Holds the place where the user is declared.
    #[error("the user is declared in {0}; the API can only override `enabled` of such a user")]
    OnlyEnabled(String),
    /// Holds the place where the user is declared.
    #[error("the override is removed, but the user is still disabled in {0}")]
    DisabledInFile(String),
    /// Holds the number of users in the group, and one of them.
    #[error("the group has {0} members, for example {1:?}; remove them from the group first")]
    InUse(usize, String),
    /// Holds the reason why a node cannot end its drain.
    #[error("{0}")]
    CannotUndrain(&'static str),
    #[error("the body is larger than {0} bytes")]
    TooLarge(usize),
    #[error("Redis cannot be reached")]
    RedisAway,
    #[error(
        "the change is stored in Redis, but {} of {} replicas (redis_replicas) confirmed it in time: it is \
         lost if Redis fails before they have it",
        .0.confirmed, .0.wanted
    )]
    Unreplicated(Confirmation),
    #[error("Redis refuses writes, so nothing has changed; authd's log and /readyz have the reason")]
    RedisUnwritable,
    #[error("Redis refuses authd's password (redis_password_file)")]
    RedisDenied,
    /// The user may exist in Redis, but Redis cannot be asked. Holds the reason.
    #[error("{0}, and no declared user has this name: authd cannot decide the login")]
    Undecided(LinkError),
    #[error("Redis cannot be reached and no user is declared: authd cannot decide a login")]
    NoLogins,
    #[error("authd runs without Redis (setting redis_url)")]
    NoRedis,
    #[error("no node delivers events: no node has events_file, or the storage does not answer")]
    NoDeliverer,
    #[error("too many logins at once; try again")]
    Busy,
    /// Holds the value of the setting.
    #[error("there are {0} listeners already (setting max_live_listeners), or authd stops")]
    TooManyListeners(usize),
    /// The record in Redis changed each time before this change could be written.
    #[error("other requests keep changing the same object; try again")]
    Contended,
    /// Holds the number of these users and groups, and the names of the first ones.
    #[error("{number} users or groups exist with other properties: {names}; replace=true replaces them")]
    RestoreConflicts { number: usize, names: String },
    #[error("Redis lost a part of the document before it was in place; nothing has changed; try again")]
    RestoreIncomplete,
    #[error("a record in Redis is no JSON, so a backup would not be complete; see authd's log")]
    UnreadableRecord,
    /// The record of the user or of one of the user's groups in Redis is malformed, or a group is missing.
    #[error("the user's account cannot be read; see authd's log")]
    UnreadableAccount,
    #[error("internal error")]
    Internal(#[source] Box<dyn Error + Send + Sync>),
}

impl ApiError {
    /// The public code, for the log of actions: messages may quote a part of the request.
    pub(crate) fn code(&self) -> String {
        let code = serde_json::to_value(self.status_and_code().1).unwrap_or_default();
        code.as_str().unwrap_or_default().to_owned()
    }

    fn status_and_code(&self) -> (StatusCode, ErrorCode) {
        match self {
            Self::Unauthorized(_) => (StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized),
            Self::InvalidCredentials(_) => (StatusCode::FORBIDDEN, ErrorCode::InvalidCredentials),
            Self::WrongToken => (StatusCode::FORBIDDEN, ErrorCode::InvalidCredentials),
            Self::NoSession => (StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized),
            Self::ForeignRequest => (StatusCode::FORBIDDEN, ErrorCode::Forbidden),
            Self::ReadOnly(_) => (StatusCode::FORBIDDEN, ErrorCode::Forbidden),
            Self::Throttled { .. } => (StatusCode::TOO_MANY_REQUESTS, ErrorCode::Throttled),
            Self::InvalidRequest(_) => (StatusCode::BAD_REQUEST, ErrorCode::InvalidRequest),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, ErrorCode::NotFound),
            Self::MethodNotAllowed(_) => (StatusCode::METHOD_NOT_ALLOWED, ErrorCode::MethodNotAllowed),
            Self::AlreadyExists(_) | Self::RestoreConflicts { .. } => {
                (StatusCode::CONFLICT, ErrorCode::AlreadyExists)
            }
            Self::Declarative(_) | Self::OnlyEnabled(_) | Self::DisabledInFile(_) => {
                (StatusCode::CONFLICT, ErrorCode::Declarative)
            }
            Self::InUse(..) => (StatusCode::CONFLICT, ErrorCode::InUse),
            Self::CannotUndrain(_) => (StatusCode::CONFLICT, ErrorCode::Stopping),
            Self::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::TooLarge),
            Self::RedisAway
            | Self::RedisDenied
            | Self::RedisUnwritable
            | Self::Unreplicated(_)
            | Self::Undecided(_)
            | Self::NoLogins
            | Self::NoRedis
            | Self::NoDeliverer
            | Self::Busy
            | Self::TooManyListeners(_)
            | Self::Contended
            | Self::RestoreIncomplete
            | Self::UnreadableRecord
            | Self::UnreadableAccount => (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable),
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Internal),
        }
    }
}

impl Reply for ApiError {
    fn into_response(self) -> Response {
        let (status, code) = self.status_and_code();
        if let Self::Internal(source) = &self {
            log::error!(error = chain(source.as_ref()); "internal error");
        }
        let reason = if let Self::InvalidCredentials(reason) = &self { Some(*reason) } else { None };
        let body = ErrorBody { error: code, message: self.to_string(), reason };
        let mut response = reply::with_status(reply::json(&body), status).into_response();
        let (name, value) = match self {
            Self::Throttled { wait } => {
                // Whole seconds (RFC 9110 section 10.2.3), rounded up so that the client does not retry
                // too early.
                let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
                (header::RETRY_AFTER, HeaderValue::from(seconds.max(1)))
            }
            Self::Unauthorized(_) | Self::NoSession => {
                (header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
            }
            Self::MethodNotAllowed(methods) => {
                (header::ALLOW, HeaderValue::try_from(methods).expect("method names are valid in a header"))
            }
            _ => return response,
        };
        response.headers_mut().insert(name, value);
        response
    }
}

impl From<LinkError> for ApiError {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Away => Self::RedisAway,
            LinkError::Denied => Self::RedisDenied,
            LinkError::Unwritable(_) => Self::RedisUnwritable,
            LinkError::Reply(_) => Self::Internal(error.into()),
        }
    }
}

impl From<StoredError> for ApiError {
    fn from(error: StoredError) -> Self {
        match error {
            StoredError::Link(error) => error.into(),
            StoredError::Unreadable { .. } | StoredError::NoGroup(_) => Self::Internal(error.into()),
        }
    }
}

impl From<QueueFull> for ApiError {
    fn from(_: QueueFull) -> Self {
        Self::Busy
    }
}

impl From<UnusablePassword> for ApiError {
    fn from(error: UnusablePassword) -> Self {
        Self::InvalidRequest(error.to_string())
    }
}
