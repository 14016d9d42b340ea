//! `/v1/bans`: lists and lifts the bans of user names and addresses after failed logins.

use common::clock::rfc3339;
use serde::{Deserialize, Serialize};

use super::existing;
use crate::{
    error::ApiError,
    service::Service,
    throttle::{Ban, BanKind, BanSubject},
};

/// A ban in the response to `GET /v1/bans`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BanView {
    pub by: BanKind,
    /// The user, the IPv4 address, or the IPv6 network.
    pub name: String,
    /// End of the ban; RFC 3339, rounded up to a second.
    pub until: String,
}

impl From<Ban> for BanView {
    fn from(ban: Ban) -> Self {
        let (by, name) = (ban.subject.kind(), ban.subject.to_string());
        Self { by, name, until: rfc3339(ban.until.div_ceil(1000)) }
    }
}

/// The bans in effect, by the time of their end.
///
/// # Errors
/// Redis cannot be reached.
pub async fn list(service: &Service) -> Result<Vec<BanView>, ApiError> {
    Ok(service.throttle.bans().await?.into_iter().map(BanView::from).collect())
}

/// Lifts the ban of a user name, and forgets the failed logins.
///
/// # Errors
/// The user name is not banned, or Redis cannot be reached.
pub async fn lift_user(service: &Service, name: &str) -> Result<(), ApiError> {
    lift(service, &BanSubject::User(existing(name, "ban")?)).await
}

/// Lifts the ban of an address, or of the IPv6 network that contains it, and forgets the failed logins.
///
/// # Errors
/// The text is not an address, the address is not banned, or Redis cannot be reached.
pub async fn lift_address(service: &Service, address: &str) -> Result<(), ApiError> {
    let subject =
        BanSubject::address(address).map_err(|error| ApiError::InvalidRequest(error.to_string()))?;
    lift(service, &subject).await
}

async fn lift(service: &Service, subject: &BanSubject) -> Result<(), ApiError> {
    if service.throttle.lift(subject).await? { Ok(()) } else { Err(ApiError::NotFound("ban")) }
}
