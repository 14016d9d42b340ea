//! `/v1/sessions` and `/v1/nodes`: what the registry shows, and commands to nodes through it.

use std::{net::IpAddr, time::Duration};

use common::{
    clock::rfc3339,
    node::{Failing, NodeCommand, NodeName, NodeRecord, NodeState, PortRange},
    registry::RegistryView,
    session::{SessionId, SessionRecord},
};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::{Service, error::ApiError};

/// How long an answer waits for a session to be gone.
const END_WAIT: Duration = Duration::from_secs(2);

/// How often it looks.
const END_POLL: Duration = Duration::from_millis(50);

/// Which sessions to show: those for which all that is named holds.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionFilter {
    user: Option<String>,
    node: Option<NodeName>,
    address: Option<IpAddr>,
}

/// A session as `GET /v1/sessions` shows it.
#[derive(Debug, Serialize)]
pub struct SessionView {
    id: SessionId,
    node: NodeName,
    user: String,
    address: IpAddr,
    /// Of the login; RFC 3339.
    since: String,
}

impl From<SessionRecord> for SessionView {
    fn from(record: SessionRecord) -> Self {
        let SessionRecord { id, node, user, address, since } = record;
        Self { id, node, user, address, since: rfc3339(since) }
    }
}

/// A node as `GET /v1/nodes` shows it.
#[derive(Debug, Serialize)]
pub struct NodeView {
    name: NodeName,
    /// In hexadecimal digits: JavaScript and jq would round the number.
    incarnation: String,
    state: NodeState,
    slice: PortRange,
    control: String,
    host: String,
    version: String,
    /// Of the process's start; RFC 3339.
    since: String,
    sessions: u32,
    transfers: u32,
    failing: Vec<FailingView>,
}

/// A dependency of a node that fails.
#[derive(Debug, Serialize)]
pub struct FailingView {
    dependency: String,
    error: String,
    /// RFC 3339.
    since: String,
    required: bool,
}

impl From<NodeRecord> for NodeView {
    fn from(record: NodeRecord) -> Self {
        let NodeRecord {
            name,
            incarnation,
            state,
            slice,
            control,
            host,
            version,
            since,
            sessions,
            transfers,
            failing,
        } = record;
        let is_degraded = state == NodeState::Ready && failing.iter().any(|failing| failing.required);
        Self {
            name,
            incarnation: format!("{incarnation:016x}"),
            state: if is_degraded { NodeState::Degraded } else { state },
            slice,
            control,
            host,
            version,
            since: rfc3339(since),
            sessions,
            transfers,
            failing: failing.into_iter().map(FailingView::from).collect(),
        }
    }
}

impl From<Failing> for FailingView {
    fn from(failing: Failing) -> Self {
        let Failing { dependency, error, since, required } = failing;
        Self { dependency, error, since: rfc3339(since), required }
    }
}

/// What became of a session that was to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Gone,
    /// Its node has been told, and has not done it yet.
    Told,
}

/// The sessions of the cluster, the oldest first.
///
/// # Errors
/// Redis is away.
pub async fn list(service: &Service, filter: SessionFilter) -> Result<Vec<SessionView>, ApiError> {
    let mut sessions = registry(service)?.sessions().await?;
    sessions.retain(|session| {
        filter.user.as_ref().is_none_or(|user| *user == session.user)
            && filter.node.as_ref().is_none_or(|node| *node == session.node)
            && filter.address.is_none_or(|address| address.to_canonical() == session.address.to_canonical())
    });
    sessions.sort_by_key(|session| (session.since, session.id));
    Ok(sessions.into_iter().map(SessionView::from).collect())
}

/// Ends a session.
///
/// # Errors
/// There is none with that id, or Redis is away.
pub async fn end(service: &Service, id: &str) -> Result<Ended, ApiError> {
    let id: SessionId = id.parse().map_err(|_| ApiError::NotFound("session"))?;
    let registry = registry(service)?;
    let session = registry.find_session(id).await?.ok_or(ApiError::NotFound("session"))?;
    if !registry.send(&session.node, &NodeCommand::EndSession { session: id }).await? {
        // The node has died meanwhile, and its sessions with it.
        return Ok(Ended::Gone);
    }
    log::info!(session:% = id, user = session.user, node:% = session.node; "session is to end");
    let deadline = Instant::now() + END_WAIT;
    while Instant::now() < deadline {
        if registry.find_session(id).await?.is_none() {
            return Ok(Ended::Gone);
        }
        sleep(END_POLL).await;
    }
    Ok(Ended::Told)
}

/// The live nodes, by name.
///
/// # Errors
/// Redis is away.
pub async fn nodes(service: &Service) -> Result<Vec<NodeView>, ApiError> {
    Ok(registry(service)?.nodes().await?.into_iter().map(NodeView::from).collect())
}

/// Tells a node to drain.
///
/// # Errors
/// There is no such live node, or Redis is away.
pub async fn drain(service: &Service, name: &str) -> Result<(), ApiError> {
    let name: NodeName = name.parse().map_err(|_| ApiError::NotFound("node"))?;
    if !registry(service)?.send(&name, &NodeCommand::Drain).await? {
        return Err(ApiError::NotFound("node"));
    }
    log::info!(node:% = name; "node is to drain");
    Ok(())
}

fn registry(service: &Service) -> Result<&RegistryView, ApiError> {
    service.registry.as_ref().ok_or(ApiError::NoRedis)
}
