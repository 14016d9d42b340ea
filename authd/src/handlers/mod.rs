//! The handlers: one per operation, with a typed request in and a typed response or an `ApiError` out.

pub mod audit;
pub mod authorized;
pub mod backup;
pub mod bans;
pub mod blocks;
pub mod events;
pub mod explain;
mod failures;
pub mod feed;
pub mod groups;
pub mod live;
pub mod login;
pub mod nodes;
pub mod page;
pub mod sessions;
pub mod status;
pub mod usage;
pub mod users;

use std::{fmt::Display, str::FromStr};

use common::{
    process::http::Peer,
    registry::{Confirmation, RegistryView},
};
use serde_json::{Map, Value};

use crate::{accounts::stored::StoredAccounts, error::ApiError, service::Service};

/// Number of attempts to write a change when other requests keep changing the same record.
const WRITE_ATTEMPTS: usize = 5;

/// Sessions and nodes in Redis.
fn registry(service: &Service) -> Result<&RegistryView, ApiError> {
    service.registry.as_ref().ok_or(ApiError::NoRedis)
}

/// Users and groups in Redis.
fn stored(service: &Service) -> Result<&StoredAccounts, ApiError> {
    service.accounts.stored.as_ref().ok_or(ApiError::NoRedis)
}

/// Parses a name or an id from a path. A malformed one does not exist; `kind` is for the message.
fn existing<N: FromStr>(text: &str, kind: &'static str) -> Result<N, ApiError> {
    text.parse().map_err(|_| ApiError::NotFound(kind))
}

/// The address of an administrator's request, for the log.
fn address(peer: Option<Peer>) -> String {
    peer.map(|Peer(peer)| peer.ip().to_string()).unwrap_or_default()
}

/// The first 64 characters of a login's user name, for the log. A name that no user can have may be long.
fn shortened(user: &str) -> String {
    user.chars().take(64).collect()
}

/// Checks that enough replicas of Redis have a change, after everything that follows from it was done.
///
/// # Errors
/// Fewer than `redis_replicas` confirmed it.
fn require(confirmation: Confirmation) -> Result<(), ApiError> {
    if confirmation.is_complete() { Ok(()) } else { Err(ApiError::Unreplicated(confirmation)) }
}

/// Removes `name` from the body of a request that creates an object.
///
/// # Errors
/// The name is missing or invalid.
fn take_name<N: FromStr<Err: Display>>(body: &mut Map<String, Value>) -> Result<N, ApiError> {
    let name = match body.remove("name") {
        Some(Value::String(name)) => name,
        Some(_) => return Err(ApiError::InvalidRequest("name: expected a string".to_owned())),
        None => return Err(ApiError::InvalidRequest("missing field `name`".to_owned())),
    };
    name.parse().map_err(|error| ApiError::InvalidRequest(format!("name: {error}")))
}

/// The response to an invalid body. serde's messages name fields. They quote a value only if its type is
/// wrong.
fn invalid(error: serde_json::Error) -> ApiError {
    ApiError::InvalidRequest(error.to_string())
}
