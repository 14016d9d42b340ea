//! `/v1/blocks`: an administrator forbids the logins of a user, an address or a network.

use std::net::IpAddr;

use common::{
    admin_api::{BlockRequest, BlockSubject, BlockView},
    clock::{rfc3339, unix_seconds},
    node::NodeCommand,
};
use ipnet::IpNet;

use super::{registry, sessions};
use crate::{
    accounts::name::UserName,
    administrators::Actor,
    error::ApiError,
    login_blocks::{BlockKey, LoginBlock, MAX_BLOCKS},
    service::Service,
};

pub(super) fn view(key: &BlockKey, block: &LoginBlock) -> BlockView {
    BlockView {
        kind: key.kind,
        name: key.name.clone(),
        until: block.until.map(rfc3339),
        reason: block.reason.clone(),
        by: block.by.clone(),
        since: rfc3339(block.since),
    }
}

/// The blocks in effect.
///
/// # Errors
/// Redis cannot be reached.
pub async fn list(service: &Service) -> Result<Vec<BlockView>, ApiError> {
    registry(service)?;
    Ok(service.blocks.all().await?.iter().map(|(key, block)| view(key, block)).collect())
}

/// Begins a block, and ends the sessions of the user, or from the address or network.
///
/// # Errors
/// The request is invalid, there are too many blocks, or Redis cannot be reached.
pub async fn create(service: &Service, request: BlockRequest, by: &Actor) -> Result<BlockView, ApiError> {
    let registry = registry(service)?;
    let BlockRequest { kind, name, seconds, reason } = request;
    let key = key(service, kind, &name)?;
    if seconds == Some(0) {
        return Err(ApiError::InvalidRequest("seconds: it cannot be zero".to_owned()));
    }
    let told = sessions::reason(&reason)?;
    let blocks = service.blocks.all().await?;
    if blocks.len() >= MAX_BLOCKS && !blocks.contains_key(&key) {
        return Err(ApiError::InvalidRequest(format!("there are {MAX_BLOCKS} blocks already")));
    }
    let since = unix_seconds();
    let until = seconds.map(|seconds| since.saturating_add(seconds));
    let block = LoginBlock { until, since, reason, by: by.administrator.name.clone() };
    service.blocks.put(&key, &block).await?;
    let network: Option<IpNet> = match kind {
        BlockSubject::User => None,
        BlockSubject::Address => {
            key.name.parse().ok().or_else(|| Some(IpNet::from(key.name.parse::<IpAddr>().ok()?)))
        }
    };
    let found = match kind {
        BlockSubject::User => registry.sessions_of(&key.name).await?,
        BlockSubject::Address => registry.sessions().await?,
    };
    for session in found {
        let address = session.address.to_canonical();
        if network.is_none_or(|network| network.contains(&address)) {
            let command = NodeCommand::EndSession { session: session.id, reason: told.clone() };
            registry.send(&session.node, &command).await?;
        }
    }
    // A login that was decided before the block, and begins its session only now, is asked about again.
    service.revision.advance();
    Ok(view(&key, &block))
}

/// Removes a block.
///
/// # Errors
/// There is no such block, or Redis cannot be reached.
pub async fn remove(service: &Service, kind: BlockSubject, name: &str) -> Result<(), ApiError> {
    registry(service)?;
    let key = key(service, kind, name).map_err(|_| ApiError::NotFound("block"))?;
    if service.blocks.remove(&key).await? { Ok(()) } else { Err(ApiError::NotFound("block")) }
}

fn key(service: &Service, kind: BlockSubject, name: &str) -> Result<BlockKey, ApiError> {
    let invalid = |reason: &str| ApiError::InvalidRequest(format!("name: {reason}"));
    match kind {
        BlockSubject::User => {
            let name: UserName = name.parse().map_err(|error| invalid(&format!("{error}")))?;
            Ok(BlockKey::user(service.accounts.declared.canonical_name(name).as_str()))
        }
        BlockSubject::Address => {
            BlockKey::network(name).ok_or_else(|| invalid("neither an address nor a network"))
        }
    }
}
