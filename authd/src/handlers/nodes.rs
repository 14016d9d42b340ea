//! `/v1/nodes`: lists the live nodes, drains a node, ends a drain.

use common::{
    admin_api::{DrainStage, DrainView, FailingView, NodeView},
    clock::rfc3339,
    node::{FailingDependency, NodeCommand, NodeName, NodeRecord, NodeState},
    registry::NodeOrders,
};

use super::{existing, registry};
use crate::{error::ApiError, service::Service};

/// The view of a node with the orders to it.
pub(super) fn view(record: NodeRecord, orders: &NodeOrders) -> NodeView {
    let passive_ports = record.passive_ports();
    let is_degraded =
        record.state == NodeState::Ready && record.failing.iter().any(|failing| failing.required);
    let drain = match (record.state, orders.drain) {
        (NodeState::Draining, _) => DrainStage::Draining,
        (_, Some(_)) => DrainStage::Asked,
        (_, None) => DrainStage::None,
    };
    NodeView {
        name: record.name,
        incarnation: format!("{:016x}", record.incarnation),
        state: if is_degraded { NodeState::Degraded } else { record.state },
        slice: record.slice,
        passive_ports,
        address: record.address,
        control: record.control,
        host: record.host,
        version: record.version,
        since: rfc3339(record.since),
        sessions: record.sessions,
        transfers: record.transfers,
        failing: record.failing.into_iter().map(failing_view).collect(),
        drain,
        drain_until: record.drain_until.map(rfc3339),
        activity: record.activity,
    }
}

fn failing_view(failing: FailingDependency) -> FailingView {
    let FailingDependency { dependency, error, since, required } = failing;
    FailingView { dependency, error, since: rfc3339(since), required }
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
        views.push(view(node, &orders));
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
    let status = format!("/v1/nodes/{name}/drain");
    match node {
        Some(node) => {
            let NodeView { drain, drain_until, sessions, transfers, .. } = view(node, &orders);
            Ok(DrainView { drain, asked, until: drain_until, sessions, transfers, status })
        }
        None if orders.drained.is_some() => {
            let drain = DrainStage::Drained;
            Ok(DrainView { drain, asked, until: None, sessions: 0, transfers: 0, status })
        }
        None => Err(ApiError::NotFound("node")),
    }
}

/// Orders a node to drain, and returns the progress.
///
/// # Errors
/// No live node has this name, or Redis cannot be reached.
pub async fn drain(service: &Service, name: &str) -> Result<DrainView, ApiError> {
    let node: NodeName = existing(name, "node")?;
    if !registry(service)?.send(&node, &NodeCommand::Drain).await? {
        return Err(ApiError::NotFound("node"));
    }
    drain_state(service, name).await
}

/// Orders a node that an administrator drains to serve again, and returns the progress.
///
/// # Errors
/// No live node has this name, the node stops for good, or Redis cannot be reached.
pub async fn undrain(service: &Service, name: &str) -> Result<DrainView, ApiError> {
    let node: NodeName = existing(name, "node")?;
    let registry = registry(service)?;
    let orders = registry.orders(&node).await?;
    let Some(record) = registry.nodes().await?.into_iter().find(|record| record.name == node) else {
        return Err(match orders.drained {
            Some(_) => {
                ApiError::CannotUndrain("the node has drained and its process has ended; start it again")
            }
            None => ApiError::NotFound("node"),
        });
    };
    let is_ordered = orders.drain.is_some() || orders.undrain.is_some();
    if record.state == NodeState::Draining && !is_ordered {
        let text = "the node drains because it was told to stop on its host, which cannot be undone; start \
                    it again when it has ended";
        return Err(ApiError::CannotUndrain(text));
    }
    if is_ordered && !registry.send(&node, &NodeCommand::Undrain).await? {
        return Err(ApiError::NotFound("node"));
    }
    drain_state(service, name).await
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
        to_value(view(record, &NodeOrders::default())).unwrap()["passive_ports"].take()
    }

    #[test]
    fn a_node_shows_its_blocks_or_its_slice() {
        assert_eq!(passive_ports(json!({})), json!([[50000, 50004]]));
        assert_eq!(passive_ports(json!({ "is_leased": true })), json!([]));
        let blocks = json!([[50000, 50004], [50010, 50014]]);
        assert_eq!(passive_ports(json!({ "is_leased": true, "blocks": blocks })), blocks);
    }
}
