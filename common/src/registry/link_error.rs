//! The reasons why a request to Redis has no answer, and what an error of the driver means.

use redis::{ErrorKind, RedisError, ServerErrorKind};

/// The reason why a request to Redis has no answer.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Redis cannot be reached, does not answer in time, or says that it cannot serve now.
    #[error("Redis is away")]
    Away,
    /// Redis refuses this daemon's password or requires one. Callers treat this as if Redis were away.
    #[error("Redis refuses this daemon's password (redis_password_file)")]
    Denied,
    /// Redis answers, but refuses to write: it is out of memory, or lacks replicas or a disk.
    #[error("Redis refuses writes")]
    Unwritable(#[source] RedisError),
    /// Redis refused this request.
    #[error("Redis answered with an error")]
    Reply(#[source] RedisError),
}

/// The fault of the password, if Redis reports one. Only a change of the settings repairs it.
pub(super) fn denial(error: &RedisError) -> Option<&'static str> {
    match error.code() {
        Some("NOAUTH") => Some("Redis wants a password: set redis_password_file"),
        Some("WRONGPASS") => Some(WRONG_PASSWORD),
        _ => (error.kind() == ErrorKind::AuthenticationFailed).then_some(WRONG_PASSWORD),
    }
}

const WRONG_PASSWORD: &str = "Redis refuses the password: the one in redis_password_file (or redis_url) is \
                              not that of Redis, or Redis has none";

/// Returns true if the error is about the state of Redis or the connection, false if it is about the request.
pub(super) fn means_away(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Io | ErrorKind::Parse | ErrorKind::AuthenticationFailed => true,
        ErrorKind::Server(
            ServerErrorKind::BusyLoading
            | ServerErrorKind::MasterDown
            | ServerErrorKind::ReadOnly
            | ServerErrorKind::ClusterDown,
        ) => true,
        // The driver has no name for some of them.
        _ if denial(error).is_some() => true,
        // The driver's task for the connection has ended.
        _ => error.is_unrecoverable_error(),
    }
}
