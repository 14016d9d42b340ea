//! `/v1/nodes`: lists the live nodes, drains a node.

use std::net::IpAddr;

use common::{
    clock::rfc3339,
    node::{FailingDependency, NodeCommand, NodeName, NodeRecord, NodeState, PortRange},
    process::http::Peer,
    registry::NodeOrders,
};
use serde::Serialize;

use super::{address, existing, registry};
use crate::{error::ApiError, service::Service};

/// A node in the response to `GET /v1/nodes`.
#[derive(Debug, Serialize)]
pub struct NodeView {
    name: NodeName,
    /// Hexadecimal digits: JavaScript and jq would round the 64-bit number.
    incarnation: String,
    state: NodeState,
    /// The first passive ports, for readers of the previous version.
    slice: PortRange,
    /// The blocks that the node leases, or its slice.
    passive_ports: Vec<PortRange>,
    /// The address at which other nodes and relays reach the node. `None`: the node is of the previous
    /// version.
    address: Option<IpAddr>,
    control: String,
    host: String,
    version: String,
    /// Start of the process; RFC 3339.
    since: String,
    sessions: u32,
    transfers: u32,
    failing: Vec<FailingView>,
    drain: DrainStage,
}

/// Progress of a node's drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DrainStage {
    None,
    /// An administrator has requested the drain, and the node has not begun yet.
    Asked,
    Draining,
    /// The node has drained and left the cluster.
    Drained,
}

/// Body of the response to `GET /v1/nodes/{name}/drain`.
#[derive(Debug, Serialize)]
pub struct DrainView {
    drain: DrainStage,
    /// Time of the administrator's request; RFC 3339. `None`: there was no request.
    asked: Option<String>,
}

/// A failing dependency of a node.
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
        let passive_ports = record.passive_ports();
        let NodeRecord {
            name,
            incarnation,
            state,
            slice,
            address,
            control,
            host,
            version,
            since,
            sessions,
            transfers,
            failing,
            ..
        } = record;
        let is_degraded = state == NodeState::Ready && failing.iter().any(|failing| failing.required);
        Self {
            name,
            incarnation: format!("{incarnation:016x}"),
            state: if is_degraded { NodeState::Degraded } else { state },
            slice,
            passive_ports,
            address,
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

/// The live nodes, by name.
///
/// # Errors
/// Redis cannot be reached.
pub async fn list(service: &Service) -> Result<Vec<NodeView>, ApiError> {
    let registry = registry(service)?;
    let mut views = Vec::new();
    for node in registry.nodes().await? {
        let orders = registry.orders(&node.name).await?;
        views.push(NodeView::from(node).with(&orders));
    }
    Ok(views)
}

/// The progress of a node's drain. The registry remembers for a day that a node has drained.
///
/// # Errors
/// No live or drained node has this name, or Redis cannot be reached.
pub async fn drain_state(service: &Service, name: &str) -> Result<DrainView, ApiError> {
    let name: NodeName = existing(name, "node")?;
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

/// Orders a node to drain. `peer` is for the log.
///
/// # Errors
/// No live node has this name, or Redis cannot be reached.
pub async fn drain(service: &Service, name: &str, peer: Option<Peer>) -> Result<(), ApiError> {
    let name: NodeName = existing(name, "node")?;
    if !registry(service)?.send(&name, &NodeCommand::Drain).await? {
        return Err(ApiError::NotFound("node"));
    }
    log::info!(node:% = name, by = address(peer); "an administrator ordered a node to drain");
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json, to_value};

    use super::*;

    fn passive_ports(fields: Value) -> Value {
        let mut record = json!({
            "name": "a", "incarnation": 1, "state": "ready", "slice": [50000, 50004], "control": "",
            "version": "",
            "since": 1, "sessions": 1, "transfers": 0,
        });
        record.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let record: NodeRecord = serde_json::from_value(record).unwrap();
        to_value(NodeView::from(record)).unwrap()["passive_ports"].take()
    }

    #[test]
    fn a_node_shows_its_blocks_or_its_slice() {
        assert_eq!(passive_ports(json!({})), json!([[50000, 50004]]));
        assert_eq!(passive_ports(json!({ "is_leased": true })), json!([]));
        let blocks = json!([[50000, 50004], [50010, 50014]]);
        assert_eq!(passive_ports(json!({ "is_leased": true, "blocks": blocks })), blocks);
    }
}
