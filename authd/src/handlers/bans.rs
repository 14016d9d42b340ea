//! `/v1/bans`: the user names and addresses whose logins have to wait, and the end of that.

use common::clock::rfc3339;
use serde::{Deserialize, Serialize};

use crate::{
    Service,
    error::ApiError,
    throttle::{Ban, BanKind, BanSubject},
};

/// A ban as `GET /v1/bans` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BanView {
    pub by: BanKind,
    /// The user, the IPv4 address, or the IPv6 network.
    pub name: String,
    /// RFC 3339, rounded up to a second.
    pub until: String,
}

impl From<Ban> for BanView {
    fn from(ban: Ban) -> Self {
        let (by, name) = (ban.subject.by(), ban.subject.to_string());
        Self { by, name, until: rfc3339(ban.until.div_ceil(1000)) }
    }
}

/// The bans that hold, those that end first at the beginning.
///
/// # Errors
/// Redis is away.
pub async fn list(service: &Service) -> Result<Vec<BanView>, ApiError> {
    Ok(service.throttle.bans().await?.into_iter().map(BanView::from).collect())
}

/// Ends the ban of a user, and forgets the failed logins.
///
/// # Errors
/// The user is not banned, or Redis is away.
pub async fn lift_user(service: &Service, name: &str) -> Result<(), ApiError> {
    let name = name.parse().map_err(|_| ApiError::NotFound("ban"))?;
    lift(service, &BanSubject::User(name)).await
}

/// The same for an address, or for the IPv6 network that it is in.
///
/// # Errors
/// It is none, it is not banned, or Redis is away.
pub async fn lift_address(service: &Service, address: &str) -> Result<(), ApiError> {
    let subject =
        BanSubject::address(address).map_err(|error| ApiError::InvalidRequest(error.to_string()))?;
    lift(service, &subject).await
}

async fn lift(service: &Service, subject: &BanSubject) -> Result<(), ApiError> {
    if service.throttle.lift(subject).await? { Ok(()) } else { Err(ApiError::NotFound("ban")) }
}
