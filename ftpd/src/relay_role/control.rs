//! Control connections: the choice of a node, its greeting, and the bytes of both sides.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use common::{node::NodeName, process::logging::chain};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpSocket, TcpStream},
    sync::Semaphore,
    time::timeout,
};

use super::{
    choice::{ChosenNode, ControlKind, NodeChoice},
    config::RoleConfig,
    known_nodes::KnownNodes,
    metrics,
};
use crate::{
    client_address::{ConnectionAddresses, NoClientAddress, TrustedBalancers},
    connection_log::ConnectionLog,
    metrics::{connection_refused, limit_reached},
    protocol::{Code, Reply, proxy},
    relay::{self, PumpLimits},
};

/// Nodes that one connection tries at most. Clients wait about half a minute for a greeting.
const ATTEMPTS: usize = 4;

/// For implicit FTPS, where the client speaks first: a node that has greeted within this time is not asked
/// again whether it greets.
const GREETED: Duration = Duration::from_secs(5);

/// The header of a connection that the relay makes for itself (PROXY protocol section 2.2, LOCAL).
const LOCAL_HEADER: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

/// Time limit for a reply of the relay itself.
const REPLY: Duration = Duration::from_secs(1);

/// The reply to a client that no node serves.
const NO_NODE: &str = "No server is available at this time; try again later";

/// The state that all control connections share.
pub(super) struct ControlDoor {
    nodes: Arc<KnownNodes>,
    choice: Arc<NodeChoice>,
    balancers: Arc<TrustedBalancers>,
    source: Option<IpAddr>,
    connect: Duration,
    greeting: Duration,
    silence: Duration,
    slots: Arc<Semaphore>,
    log: ConnectionLog,
}

/// Why a node does not serve a connection.
#[derive(Debug, thiserror::Error)]
enum NodeFailure {
    #[error("the node did not accept the connection in time (relay_connect_timeout)")]
    ConnectTimeout,
    #[error("cannot connect to the node")]
    Connect(#[source] io::Error),
    #[error("the connection to the node broke before its greeting")]
    Broken(#[source] io::Error),
    #[error("the node closed the connection before its greeting")]
    Closed,
    #[error("the node did not greet in time (greeting_timeout)")]
    Silent,
}

impl NodeFailure {
    /// The label `reason` of `ftp_relay_nodes_avoided_total`.
    fn label(&self) -> &'static str {
        match self {
            Self::ConnectTimeout => "connect_timeout",
            Self::Connect(_) => "connect",
            Self::Broken(_) | Self::Closed => "closed",
            Self::Silent => "silent",
        }
    }
}

impl ControlDoor {
    pub(super) fn new(
        config: &RoleConfig,
        nodes: Arc<KnownNodes>,
        balancers: Arc<TrustedBalancers>,
        log: ConnectionLog,
    ) -> Self {
        Self {
            nodes,
            choice: Arc::default(),
            balancers,
            source: config.source_address,
            connect: config.timeouts.connect,
            greeting: config.timeouts.greeting,
            silence: config.timeouts.control,
            slots: Arc::new(Semaphore::new(config.limits.control_connections as usize)),
            log,
        }
    }

    /// Serves one connection until it ends.
    pub(super) async fn serve(&self, mut client: TcpStream, peer: SocketAddr, kind: ControlKind) {
        let Ok(_slot) = self.slots.try_acquire() else {
            limit_reached("max_control_connections");
            let why = ("too_many", "Too many connections; try again later");
            return self.refuse(client, peer.ip(), kind, why).await;
        };
        let addresses = match self.balancers.addresses_of(&mut client, peer).await {
            Ok(addresses) => addresses,
            Err(NoClientAddress::ClosedByPeer) => return,
            // A health check of the balancer in front.
            Err(NoClientAddress::BalancersOwn) => return self.answer_health_check(client, kind).await,
            Err(error) => {
                connection_refused("proxy_header");
                if self.log.may_log("proxy_header", peer.ip()) {
                    log::warn!(peer:% = peer; "control connection refused: {error}");
                }
                return;
            }
        };
        let Some((chosen, node)) = self.node(addresses, kind).await else {
            return self.refuse(client, addresses.client.ip(), kind, ("no_node", NO_NODE)).await;
        };
        log::debug!(address:% = addresses.client, node = chosen.name.as_str(); "control connection");
        let open = metrics::control_opened(chosen.name.as_str());
        let limits = PumpLimits {
            stall: Some(self.silence),
            // Clients may send ABOR as urgent data, which splice(2) does not move.
            splice: false,
            to_server: |_| {},
            to_client: |_| {},
        };
        if relay::reset_on_close(&client).is_ok() {
            let ended = relay::pump(client, node, limits).await;
            log::debug!(address:% = addresses.client, end = ended.end.label(); "control connection ended");
        }
        drop((chosen, open));
    }

    /// Finds a node that serves the connection, and connects to it.
    async fn node(
        &self,
        addresses: ConnectionAddresses,
        kind: ControlKind,
    ) -> Option<(ChosenNode, TcpStream)> {
        let header = proxy::write(addresses.client, addresses.reached, &[]);
        let mut tried: Vec<NodeName> = Vec::new();
        for _ in 0..ATTEMPTS {
            let chosen =
                self.choice.choose(&self.nodes.content(), kind, &tried, self.connect + self.greeting)?;
            let result = match kind {
                ControlKind::Explicit => self.greeting_of(chosen.address, &header).await,
                ControlKind::Implicit => self.connect_to_live(&chosen, &header).await,
            };
            match result {
                Ok(node) => {
                    if kind == ControlKind::Explicit && chosen.greeted() {
                        log::info!(node = chosen.name.as_str(); "the node greets again");
                    }
                    return Some((chosen, node));
                }
                Err(failure) => {
                    if chosen.failed() {
                        metrics::node_avoided(chosen.name.as_str(), failure.label());
                        log::warn!(
                            node = chosen.name.as_str(), node_address:% = chosen.address;
                            "the node does not serve, new control connections avoid it: {}", chain(&failure)
                        );
                    }
                    tried.push(chosen.name.clone());
                }
            }
        }
        None
    }

    /// Connects to a node and waits for the first byte of its greeting, which it leaves in the socket.
    async fn greeting_of(&self, address: SocketAddr, header: &[u8]) -> Result<TcpStream, NodeFailure> {
        let node = self.connect(address, header).await?;
        match timeout(self.greeting, node.peek(&mut [0])).await {
            Err(_) => Err(NodeFailure::Silent),
            Ok(Err(error)) => Err(NodeFailure::Broken(error)),
            Ok(Ok(0)) => Err(NodeFailure::Closed),
            Ok(Ok(_)) => Ok(node),
        }
    }

    /// Connects to the port of implicit FTPS of a node that greets at its other control port. A node says
    /// nothing at this port before the client does, so a node that hangs would go unnoticed.
    async fn connect_to_live(&self, chosen: &ChosenNode, header: &[u8]) -> Result<TcpStream, NodeFailure> {
        if !chosen.has_greeted_within(GREETED) {
            // Closing the connection after the greeting, like any health check, makes no session on the node.
            drop(self.greeting_of(chosen.greets_at, LOCAL_HEADER).await?);
            if chosen.greeted() {
                log::info!(node = chosen.name.as_str(); "the node greets again");
            }
        }
        self.connect(chosen.address, header).await
    }

    /// Connects to a node, and sends the PROXY header.
    async fn connect(&self, address: SocketAddr, header: &[u8]) -> Result<TcpStream, NodeFailure> {
        let connect = async {
            let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            relay::reset_on_close(&socket)?;
            if let Some(source) = self.source.filter(|source| source.is_ipv4() == address.is_ipv4()) {
                socket.bind((source, 0).into())?;
            }
            socket.connect(address).await
        };
        let mut node = match timeout(self.connect, connect).await {
            Err(_) => return Err(NodeFailure::ConnectTimeout),
            Ok(connected) => connected.map_err(NodeFailure::Connect)?,
        };
        // The send buffer of a new connection is empty and takes the header at once.
        node.write_all(header).await.map_err(NodeFailure::Broken)?;
        Ok(node)
    }

    /// Tells the client why it is not served. With implicit FTPS it would not understand that.
    async fn refuse(
        &self,
        client: TcpStream,
        address: IpAddr,
        kind: ControlKind,
        (reason, text): (&'static str, &'static str),
    ) {
        connection_refused(reason);
        if self.log.may_log(reason, address) {
            log::warn!(address:%; "control connection refused: {reason}");
        }
        if kind == ControlKind::Explicit {
            reply(client, Code::SERVICE_UNAVAILABLE, text).await;
        }
    }

    /// Answers a balancer in front of the relay that connects for itself: it wants to know whether a client
    /// would be served.
    async fn answer_health_check(&self, client: TcpStream, kind: ControlKind) {
        // With implicit FTPS the balancer would not understand a reply.
        if kind == ControlKind::Explicit {
            let (code, text) = match self.nodes.content().nodes.iter().any(|node| node.is_ready) {
                true => (Code::READY, "Relay ready"),
                false => (Code::SERVICE_UNAVAILABLE, NO_NODE),
            };
            reply(client, code, text).await;
        }
    }
}

/// Sends one reply and closes the connection.
async fn reply(mut client: TcpStream, code: Code, text: &'static str) {
    let mut bytes = Vec::new();
    Reply::new(code, text).encode(&mut bytes);
    // The send buffer of a new connection is empty and takes one line. Otherwise the client has left.
    let _ = timeout(REPLY, client.write_all(&bytes)).await;
    let _ = client.shutdown().await;
}
