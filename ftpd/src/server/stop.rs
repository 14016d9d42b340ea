//! The end of the node: what ends it, the drain, and the end of the remaining sessions.

use std::{sync::Arc, time::Duration};

use common::{
    node::{NodeCommand, NodeState},
    process::{
        service,
        signals::{SignalRequest, Signals},
    },
    registry::ClusterEvent,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout_at},
};

use super::RunError;
use crate::{connection_table::EndRequest, metrics, node::Node};

/// Time for sessions to send their last reply when the node stops.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// Interval at which a node that drains counts the connections that it carries.
const RELAY_INTERVAL: Duration = Duration::from_millis(100);

/// Returns when the node has to end: on a signal, on an administrator's order, or because another node has
/// its name or ports.
pub(super) async fn wait_for_end(
    node: &Node,
    signals: &mut Signals,
    events: &mut mpsc::Receiver<ClusterEvent>,
) -> Result<(), RunError> {
    let mut events_are_open = true;
    loop {
        tokio::select! {
            request = signals.next() => match request {
                SignalRequest::Terminate => return Ok(()),
                SignalRequest::Reload => {
                    log::info!("reloading certificates and transfer log");
                    node.transfer_log.reopen();
                    if let Some(tls) = &node.tls {
                        tls.reload_and_log().await;
                    }
                }
            },
            event = events.recv(), if events_are_open => match event {
                Some(ClusterEvent::Command(NodeCommand::Drain)) => return Ok(()),
                Some(ClusterEvent::Command(command)) => end_sessions(node, &command),
                Some(ClusterEvent::NameTaken(holder)) => return Err(RunError::NameLost(holder)),
                Some(ClusterEvent::SliceConflict { ours, theirs }) => {
                    let both = format!("{} has {}, {} has {}", ours.0, ours.1, theirs.0, theirs.1);
                    return Err(RunError::SliceConflict(both));
                }
                None => events_are_open = false,
            },
        }
    }
}

/// Lets transfers finish until `drain_timeout` or a second signal, then ends the remaining sessions.
pub(super) async fn drain(
    node: &Arc<Node>,
    signals: &mut Signals,
    events: &mut mpsc::Receiver<ClusterEvent>,
) {
    log::info!(
        connections = node.connections.count(), limit:? = node.timeouts.drain;
        "draining"
    );
    metrics::draining(true);
    service::stopping();
    node.registry.set_state(NodeState::Draining);
    node.connections.end_all(EndRequest::Drain);
    let deadline = Instant::now() + node.timeouts.drain;
    loop {
        tokio::select! {
            () = node.connections.all_ended() => {}
            () = sleep_until(deadline) => log::warn!("drain_timeout is over"),
            () = terminated(signals) => log::warn!("received a second signal to stop"),
            // Orders to end single sessions are still carried out.
            Some(event) = events.recv() => {
                if let ClusterEvent::Command(command) = event {
                    end_sessions(node, &command);
                }
                continue;
            }
        }
        break;
    }
    stop_carrying(node, signals, deadline).await;
    if node.connections.count() > 0 {
        log::warn!(connections = node.connections.count(); "ending the remaining sessions");
        node.connections.end_all(EndRequest::StopNode);
        // The process ends even if hanging storage keeps a session from ending.
        let _ = timeout_at(Instant::now() + STOP_GRACE, node.connections.all_ended()).await;
    }
    node.registry.leave().await;
    log::info!("stopped");
}

/// Stops listening on the passive ports when the node has no session left, so that a balancer sends data
/// connections to other nodes, and lets those finish that this node carries to other nodes.
async fn stop_carrying(node: &Node, signals: &mut Signals, deadline: Instant) {
    if node.connections.count() > 0 {
        return; // The time is over.
    }
    node.passive.stop_listening();
    let Some(relay) = &node.relay else { return };
    let begin = relay.count();
    if begin == 0 {
        return;
    }
    log::info!(relayed = begin; "waiting for the data connections that this node carries to other nodes");
    let all_ended = async {
        while relay.count() > 0 {
            sleep(RELAY_INTERVAL).await;
        }
    };
    tokio::select! {
        () = all_ended => {}
        () = sleep_until(deadline) => {
            log::warn!(relayed = relay.count(); "drain_timeout is over; relayed data connections are reset");
        }
        () = terminated(signals) => {
            log::warn!(relayed = relay.count(); "received a second signal to stop; relayed data connections \
                                                 are reset");
        }
    }
}

/// Carries out an order to end sessions.
fn end_sessions(node: &Node, command: &NodeCommand) {
    match command {
        NodeCommand::EndSession { session } => {
            if !node.connections.end_session(*session) {
                log::info!(session:%; "ignored an order to end a session that is not on this node");
            }
        }
        NodeCommand::EndUser { user } => node.connections.end_user(user),
        // The caller drains the node. The registry refreshes.
        NodeCommand::Drain | NodeCommand::Refresh => {}
    }
}

pub(super) async fn terminated(signals: &mut Signals) {
    while signals.next().await != SignalRequest::Terminate {}
}
