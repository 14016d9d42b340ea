//! The end of the node: what ends it, the drain, and the end of the remaining sessions.

use std::{sync::Arc, time::Duration};

use common::{
    clock::unix_seconds,
    node::NodeCommand,
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

use super::{RunError, listeners::Listeners, live::LivePublisher};
use crate::{connection_table::EndRequest, metrics, node::Node};

/// Time for sessions to send their last reply when the node stops.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// Time for the last records of the audit trail when the node stops.
const AUDIT_GRACE: Duration = Duration::from_secs(3);

/// Interval at which a node that drains counts the connections that it carries.
const RELAY_INTERVAL: Duration = Duration::from_millis(100);

/// Why the node stops serving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StopCause {
    Signal,
    /// An administrator's order to drain, which the administrator can revoke.
    Order,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DrainEnd {
    /// The node has left the cluster.
    Stopped,
    /// An administrator revoked the order: the node serves again.
    Undone,
}

/// Returns when the node has to end: on a signal, on an administrator's order, or because another node has
/// its name or ports.
pub(super) async fn wait_for_end(
    node: &Arc<Node>,
    signals: &mut Signals,
    events: &mut mpsc::Receiver<ClusterEvent>,
    live: &mut LivePublisher,
) -> Result<StopCause, RunError> {
    let mut events_are_open = true;
    loop {
        tokio::select! {
            request = signals.next() => match request {
                SignalRequest::Terminate => return Ok(StopCause::Signal),
                SignalRequest::Reload => {
                    log::info!("reloading certificates, transfer log, audit log and events_file");
                    node.transfer_log.reopen();
                    node.audit.reopen();
                    let events = node.events.clone();
                    node.workers.run_without_slot(move || events.reload()).await;
                    if let Some(tls) = &node.tls {
                        tls.reload_and_log().await;
                    }
                }
            },
            event = events.recv(), if events_are_open => match event {
                Some(ClusterEvent::Command(NodeCommand::Drain)) => return Ok(StopCause::Order),
                Some(ClusterEvent::Command(command)) => obey(node, &command, live),
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
///
/// `listeners`: the control ports, if an administrator's order began the drain. An administrator can then end
/// it, until the last session has ended or a signal arrives.
pub(super) async fn drain(
    node: &Arc<Node>,
    signals: &mut Signals,
    events: &mut mpsc::Receiver<ClusterEvent>,
    live: &mut LivePublisher,
    mut listeners: Option<&mut Listeners>,
) -> DrainEnd {
    log::info!(
        connections = node.connections.count(), limit:? = node.timeouts.drain;
        "draining"
    );
    metrics::draining(true);
    // The service manager cannot be told later that the process goes on.
    match listeners {
        Some(_) => service::status("draining"),
        None => service::stopping(),
    }
    node.registry.set_draining(unix_seconds() + node.timeouts.drain.as_secs());
    node.connections.end_all(EndRequest::Drain);
    let deadline = Instant::now() + node.timeouts.drain;
    loop {
        tokio::select! {
            () = node.connections.all_ended() => {}
            () = sleep_until(deadline) => log::warn!("drain_timeout is over"),
            () = terminated(signals) => {
                if listeners.take().is_some() {
                    log::info!("received a signal to stop; the drain goes on and cannot be undone");
                    service::stopping();
                    continue;
                }
                log::warn!("received a second signal to stop");
            }
            Some(event) = events.recv() => {
                match event {
                    ClusterEvent::Command(NodeCommand::Undrain) if listeners.is_some() => {
                        match listeners.take().map(|ports| resume(node, ports)) {
                            Some(Err(error)) => {
                                log::error!("the drain cannot be undone, and goes on: {error}");
                                service::stopping();
                            }
                            Some(Ok(())) | None => return DrainEnd::Undone,
                        }
                    }
                    // Orders to end single sessions are still carried out.
                    ClusterEvent::Command(command) => obey(node, &command, live),
                    // The node must not serve again under a name or with ports that another node has.
                    ClusterEvent::NameTaken(_) | ClusterEvent::SliceConflict { .. } => {
                        if listeners.take().is_some() {
                            service::stopping();
                        }
                    }
                }
                continue;
            }
        }
        break;
    }
    if listeners.is_some() {
        service::stopping();
    }
    stop_carrying(node, signals, deadline).await;
    if node.connections.count() > 0 {
        log::warn!(connections = node.connections.count(); "ending the remaining sessions");
        node.connections.end_all(EndRequest::StopNode);
        // The process ends even if hanging storage keeps a session from ending.
        let _ = timeout_at(Instant::now() + STOP_GRACE, node.connections.all_ended()).await;
    }
    let events = node.events.clone();
    node.workers.run_without_slot(move || events.stop()).await;
    node.registry.leave().await;
    node.audit.finish(AUDIT_GRACE).await;
    log::info!("stopped");
    DrainEnd::Stopped
}

/// Serves again: sessions whose end only the drain requested go on.
fn resume(node: &Arc<Node>, ports: &mut Listeners) -> Result<(), RunError> {
    node.connections.resume();
    if let Err(error) = ports.open(node) {
        node.connections.end_all(EndRequest::Drain);
        return Err(error);
    }
    node.registry.end_drain();
    metrics::draining(false);
    service::status("ready");
    let connections = node.connections.count();
    log::info!(connections; "an administrator ended the drain; the node serves again");
    Ok(())
}

/// Stops listening on the passive ports when the node has no session left, so that a balancer sends data
/// connections to other nodes, and lets those finish that this node carries to other nodes.
async fn stop_carrying(node: &Node, signals: &mut Signals, deadline: Instant) {
    if node.connections.count() > 0 {
        return; // The time is over.
    }
    node.passive.stop_listening().await;
    let Some(relay) = &node.relay else { return };
    // The last connections that arrived are counted in a moment.
    sleep(RELAY_INTERVAL).await;
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

/// Carries out a command of an administrator.
fn obey(node: &Arc<Node>, command: &NodeCommand, live: &mut LivePublisher) {
    match command {
        NodeCommand::EndSession { session, reason } => {
            if !node.connections.end_session(*session, reason.as_deref()) {
                log::info!(session:%; "ignored an order to end a session that is not on this node");
            }
        }
        NodeCommand::EndUser { user, reason } => node.connections.end_user(user, reason.as_deref()),
        NodeCommand::Report { session } => {
            // Of all nodes, only the one that has the session answers.
            let Some(lines) = node.connections.dialogue(*session) else { return };
            let (registry, session) = (node.registry.clone(), *session);
            // An error means that Redis is away, which the link has logged.
            tokio::spawn(async move { registry.publish_dialogue(session, &lines).await });
        }
        NodeCommand::Watch { seconds } => live.watch(node, *seconds),
        NodeCommand::Undrain => log::info!("ignored an order to end a drain: none runs that could be undone"),
        NodeCommand::ReplayEvents { receiver, id } => node.events.replay(receiver.clone(), id.clone()),
        // The caller drains the node. The registry refreshes.
        NodeCommand::Drain | NodeCommand::Refresh => {}
    }
}

pub(super) async fn terminated(signals: &mut Signals) {
    while signals.next().await != SignalRequest::Terminate {}
}
