//! `/v1/sessions` and `/v1/nodes`: what the registry shows, and commands to nodes through it.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use common::{
    clock::rfc3339,
    node::{FailingDependency, NodeCommand, NodeName, NodeRecord, NodeState, PortRange},
    registry::{NodeOrders, RegistryView},
    session::{SessionId, SessionRecord},
};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::{Service, error::ApiError, server::Peer};

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
    /// Whether an administrator has asked for its end.
    ending: bool,
    /// Since when; RFC 3339.
    ending_since: Option<String>,
}

impl From<SessionRecord> for SessionView {
    fn from(record: SessionRecord) -> Self {
        let SessionRecord { id, node, user, address, since } = record;
        Self { id, node, user, address, since: rfc3339(since), ending: false, ending_since: None }
    }
}

impl SessionView {
    fn with(self, orders: &NodeOrders) -> Self {
        let asked = orders.ends.get(&self.id);
        Self { ending: asked.is_some(), ending_since: asked.copied().map(rfc3339), ..self }
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
    drain: DrainStage,
}

/// How far a node's drain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DrainStage {
    None,
    /// An administrator has asked for it, and the node has not begun.
    Asked,
    Draining,
    /// The node had drained, and has left.
    Drained,
}

/// Body of the answer to `GET /v1/nodes/{name}/drain`.
#[derive(Debug, Serialize)]
pub struct DrainView {
    drain: DrainStage,
    /// When an administrator asked for it; RFC 3339. `None`: none did.
    asked: Option<String>,
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
            drain: if state == NodeState::Draining { DrainStage::Draining } else { DrainStage::None },
        }
    }
}

impl NodeView {
    fn with(self, orders: &NodeOrders) -> Self {
        let is_asked = self.drain == DrainStage::None && orders.drain.is_some();
        Self { drain: if is_asked { DrainStage::Asked } else { self.drain }, ..self }
    }
}

impl From<FailingDependency> for FailingView {
    fn from(failing: FailingDependency) -> Self {
        let FailingDependency { dependency, error, since, required } = failing;
        Self { dependency, error, since: rfc3339(since), required }
    }
}

/// What became of a session that was to end.
#[derive(Debug)]
pub enum SessionEnd {
    Gone,
    /// Its node is asked, and has not done it yet.
    Asked(SessionView),
}

/// The sessions of the cluster, the oldest first.
///
/// # Errors
/// Redis is away.
pub async fn list(service: &Service, filter: SessionFilter) -> Result<Vec<SessionView>, ApiError> {
    let registry = registry(service)?;
    let mut sessions = registry.sessions().await?;
    sessions.retain(|session| {
        filter.user.as_ref().is_none_or(|user| *user == session.user)
            && filter.node.as_ref().is_none_or(|node| *node == session.node)
            && filter.address.is_none_or(|address| address.to_canonical() == session.address.to_canonical())
    });
    sessions.sort_by_key(|session| (session.since, session.id));
    let mut orders = HashMap::new();
    for session in &sessions {
        if !orders.contains_key(&session.node) {
            orders.insert(session.node.clone(), registry.orders(&session.node).await?);
        }
    }
    let none = NodeOrders::default();
    let view = |session: SessionRecord| {
        let orders = orders.get(&session.node).unwrap_or(&none);
        SessionView::from(session).with(orders)
    };
    Ok(sessions.into_iter().map(view).collect())
}

/// One session, and whether an administrator has asked for its end.
///
/// # Errors
/// No session has that id, or Redis is away.
pub async fn show(service: &Service, id: &str) -> Result<SessionView, ApiError> {
    let id: SessionId = id.parse().map_err(|_| ApiError::NotFound("session"))?;
    let registry = registry(service)?;
    let session = registry.find_session(id).await?.ok_or(ApiError::NotFound("session"))?;
    let orders = registry.orders(&session.node).await?;
    Ok(SessionView::from(session).with(&orders))
}

/// Ends a session. `peer` is for the log.
///
/// # Errors
/// No session has that id, or Redis is away.
pub async fn end(service: &Service, id: &str, peer: Option<Peer>) -> Result<SessionEnd, ApiError> {
    let id: SessionId = id.parse().map_err(|_| ApiError::NotFound("session"))?;
    let registry = registry(service)?;
    let session = registry.find_session(id).await?.ok_or(ApiError::NotFound("session"))?;
    if !registry.send(&session.node, &NodeCommand::EndSession { session: id }).await? {
        // The node has died meanwhile, and its sessions with it.
        return Ok(SessionEnd::Gone);
    }
    let by = address(peer);
    log::info!(session:% = id, user = session.user, node:% = session.node, by; "session is to end");
    let deadline = Instant::now() + END_WAIT;
    loop {
        let Some(session) = registry.find_session(id).await? else { return Ok(SessionEnd::Gone) };
        if Instant::now() >= deadline {
            let orders = registry.orders(&session.node).await?;
            return Ok(SessionEnd::Asked(SessionView::from(session).with(&orders)));
        }
        sleep(END_POLL).await;
    }
}

/// The live nodes, by name.
///
/// # Errors
/// Redis is away.
pub async fn nodes(service: &Service) -> Result<Vec<NodeView>, ApiError> {
    let registry = registry(service)?;
    let mut views = Vec::new();
    for node in registry.nodes().await? {
        let orders = registry.orders(&node.name).await?;
        views.push(NodeView::from(node).with(&orders));
    }
    Ok(views)
}

/// How far a node's drain is. That a node has drained is known for a day.
///
/// # Errors
/// There is no such live node, and none that has drained, or Redis is away.
pub async fn drain_state(service: &Service, name: &str) -> Result<DrainView, ApiError> {
    let name: NodeName = name.parse().map_err(|_| ApiError::NotFound("node"))?;
    let registry = registry(service)?;
    let node = registry.nodes().await?.into_iter().find(|node| node.name == name);
    let orders = registry.orders(&name).await?;
    let asked = orders.drain.map(rfc3339);
    match node {
        Some(node) => Ok(DrainView { drain: NodeView::from(node).with(&orders).drain, asked }),
        None if orders.drained.is_some() => Ok(DrainView { drain: DrainStage::Drained, asked }),
        None => Err(ApiError::NotFound("node")),
    }
}

/// Tells a node to drain. `peer` is for the log.
///
/// # Errors
/// There is no such live node, or Redis is away.
pub async fn drain(service: &Service, name: &str, peer: Option<Peer>) -> Result<(), ApiError> {
    let name: NodeName = name.parse().map_err(|_| ApiError::NotFound("node"))?;
    if !registry(service)?.send(&name, &NodeCommand::Drain).await? {
        return Err(ApiError::NotFound("node"));
    }
    log::info!(node:% = name, by = address(peer); "node is to drain");
    Ok(())
}

/// From where an administrator's request came: there is one token for all administrators.
fn address(peer: Option<Peer>) -> String {
    peer.map(|Peer(peer)| peer.ip().to_string()).unwrap_or_default()
}

fn registry(service: &Service) -> Result<&RegistryView, ApiError> {
    service.registry.as_ref().ok_or(ApiError::NoRedis)
}
