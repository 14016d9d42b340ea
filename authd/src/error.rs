//! What goes wrong in the API, and the only mapping of it to a status, a public code and a log
//! level. The client gets a fixed phrase; what an operator needs to know is logged here.

use std::{error::Error, time::Duration};

use common::{
    auth_api::{ErrorBody, ErrorCode, Rejection},
    process::logging::chain,
    registry::LinkError,
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

/// Why a request is not answered with 2xx.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No bearer token, or not the one that the route needs.
    #[error("this needs the bearer token of {0}")]
    Unauthorized(&'static str),
    /// The login is wrong. The message is the same for all reasons; the reason is for the node's log.
    #[error("the user or the password is wrong")]
    InvalidCredentials(Rejection),
    #[error("too many failed logins; try again later")]
    Throttled { wait: Duration },
    /// Holds what is wrong, as the caller may know it.
    #[error("{0}")]
    InvalidRequest(String),
    /// Holds what there is not.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// Holds what the path takes, as the `Allow` header lists it.
    #[error("this path takes {0}")]
    MethodNotAllowed(&'static str),
    /// Holds what exists.
    #[error("the {0} exists already")]
    AlreadyExists(&'static str),
    /// Holds what is declared.
    #[error("the {0} is declared in the users file or the settings, which the API does not change")]
    Declarative(&'static str),
    /// Holds where the user is declared.
    #[error("the user is declared in {0}; of such a user the API overrides only `enabled`")]
    OnlyEnabled(String),
    #[error("no override disables the user any more, but {0} does")]
    DisabledInFile(String),
    /// Holds how many users are in the group, and one of them.
    #[error("the group has {0} members, {1:?} among them; take them out of it first")]
    InUse(usize, String),
    #[error("the body is larger than {0} bytes")]
    TooLarge(usize),
    #[error("Redis is away")]
    RedisAway,
    #[error("Redis refuses authd's password (redis_password_file)")]
    RedisDenied,
    /// Whether there is such a user cannot be known. Holds why not.
    #[error("{0}, and no declared user has this name: authd cannot decide the login")]
    Undecided(LinkError),
    #[error("Redis is not available and no user is declared: authd cannot decide a login")]
    NoLogins,
    #[error("this service has no Redis (setting redis_url)")]
    NoRedis,
    #[error("too many logins at once; try again")]
    Busy,
    /// What is in Redis changed again and again while it was to be changed here.
    #[error("others are changing the same at the same time; try again")]
    Contended,
    /// A user or a group in Redis is none.
    #[error("what is kept of the user cannot be used; the log of authd says more")]
    UnreadableAccount,
    #[error("internal error")]
    Internal(#[source] Box<dyn Error + Send + Sync>),
}

impl ApiError {
    fn meaning(&self) -> (StatusCode, ErrorCode) {
        match self {
            Self::Unauthorized(_) => (StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized),
            Self::InvalidCredentials(_) => (StatusCode::FORBIDDEN, ErrorCode::InvalidCredentials),
            Self::Throttled { .. } => (StatusCode::TOO_MANY_REQUESTS, ErrorCode::Throttled),
            Self::InvalidRequest(_) => (StatusCode::BAD_REQUEST, ErrorCode::InvalidRequest),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, ErrorCode::NotFound),
            Self::MethodNotAllowed(_) => (StatusCode::METHOD_NOT_ALLOWED, ErrorCode::MethodNotAllowed),
            Self::AlreadyExists(_) => (StatusCode::CONFLICT, ErrorCode::AlreadyExists),
            Self::Declarative(_) | Self::OnlyEnabled(_) | Self::DisabledInFile(_) => {
                (StatusCode::CONFLICT, ErrorCode::Declarative)
            }
            Self::InUse(..) => (StatusCode::CONFLICT, ErrorCode::InUse),
            Self::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::TooLarge),
            Self::RedisAway
            | Self::RedisDenied
            | Self::Undecided(_)
            | Self::NoLogins
            | Self::NoRedis
            | Self::Busy
            | Self::Contended
            | Self::UnreadableAccount => (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable),
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Internal),
        }
    }
}

impl Reply for ApiError {
    fn into_response(self) -> Response {
        let (status, code) = self.meaning();
        if let Self::Internal(source) = &self {
            log::error!(error = chain(source.as_ref()); "internal error");
        }
        let reason = if let Self::InvalidCredentials(reason) = &self { Some(*reason) } else { None };
        let body = ErrorBody { error: code, message: self.to_string(), reason };
        let mut response = reply::with_status(reply::json(&body), status).into_response();
        let (name, value) = match self {
            Self::Throttled { wait } => {
                // Whole seconds (RFC 9110 section 10.2.3), rounded up: earlier would be too early.
                let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
                (header::RETRY_AFTER, HeaderValue::from(seconds.max(1)))
            }
            Self::Unauthorized(_) => (header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")),
            Self::MethodNotAllowed(methods) => (header::ALLOW, HeaderValue::from_static(methods)),
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
