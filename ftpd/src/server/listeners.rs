//! The listeners of control connections: binding, accepting, and refusing connections beyond a limit.
//!
//! A drain closes the listeners, so that a balancer tries another node at once. If an administrator ends the
//! drain, the node needs sockets on the same ports, and by then it may lack the privilege to bind a port
//! below 1024. So it binds spare sockets at its start. They do not listen, so they keep no later process
//! from listening on the port.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

use super::RunError;
use crate::{
    client_address::NoClientAddress,
    config::Network,
    connection_table::AdmissionError,
    control::ControlConnection,
    health_check,
    listener::{self, BoundSocket},
    metrics,
    node::Node,
    protocol::{Code, Reply},
};

/// Number of spare sockets of each control port: a process that may not bind the port again can end so many
/// drains.
const SPARES: usize = 4;

/// The control ports, and the tasks that accept connections there.
pub(super) struct Listeners {
    ports: Vec<ControlPort>,
    tasks: JoinSet<()>,
    /// Replaced to end the tasks.
    open: watch::Sender<()>,
}

/// One address of a control port.
struct ControlPort {
    address: SocketAddr,
    implicit_tls: bool,
    /// Bound sockets that do not listen yet.
    sockets: Vec<BoundSocket>,
}

impl Listeners {
    /// Binds the control ports on each address of the setting `listen`.
    pub(super) fn bind(network: &Network) -> Result<Self, RunError> {
        let mut ports = bind_all(network, network.port, false)?;
        if let Some(port) = network.implicit_tls_port {
            ports.extend(bind_all(network, port, true)?);
        }
        Ok(Self { ports, tasks: JoinSet::new(), open: watch::Sender::new(()) })
    }

    /// The addresses of the control port, or of the one for implicit TLS.
    pub(super) fn addresses(&self, implicit_tls: bool) -> Vec<SocketAddr> {
        let ports = self.ports.iter().filter(|port| port.implicit_tls == implicit_tls);
        ports.map(|port| port.address).collect()
    }

    /// Listens on all control ports, and accepts connections from now on.
    pub(super) fn open(&mut self, node: &Arc<Node>) -> Result<(), RunError> {
        let mut listeners = Vec::new();
        for port in &mut self.ports {
            listeners.push((port.listen()?, port.implicit_tls));
        }
        for (listener, implicit_tls) in listeners {
            let part = if implicit_tls { "implicit_tls" } else { "control" };
            log::info!(part, address:% = local(&listener); "listening");
            self.tasks.spawn(accept(listener, Arc::clone(node), self.open.subscribe(), implicit_tls));
        }
        Ok(())
    }

    /// Stops listening. The ports can be opened again.
    pub(super) async fn close(&mut self) {
        self.open = watch::Sender::new(());
        while self.tasks.join_next().await.is_some() {}
    }
}

impl ControlPort {
    fn bind(address: SocketAddr, implicit_tls: bool) -> io::Result<Self> {
        let first = BoundSocket::new(address)?;
        let address = first.address()?;
        let mut sockets = vec![first];
        for _ in 0..SPARES {
            sockets.push(BoundSocket::new(address)?);
        }
        Ok(Self { address, implicit_tls, sockets })
    }

    fn listen(&mut self) -> Result<TcpListener, RunError> {
        // Fails for a port below 1024 after the start. Then there is one spare socket less.
        if self.sockets.len() <= SPARES
            && let Ok(socket) = BoundSocket::new(self.address)
        {
            self.sockets.push(socket);
        }
        let listening = match self.sockets.pop() {
            Some(socket) => socket.listen(),
            None => Err(io::Error::new(io::ErrorKind::PermissionDenied, "no spare socket is left")),
        };
        listening.map_err(|error| RunError::Listen(self.address, error))
    }
}

/// Listens on `address`.
pub(super) fn bind(address: SocketAddr) -> Result<TcpListener, RunError> {
    listener::bind(address).map_err(|error| RunError::Listen(address, error))
}

/// The address of a listener, for the log.
pub(super) fn local(listener: &TcpListener) -> String {
    listener.local_addr().map_or_else(|error| error.to_string(), |address| address.to_string())
}

/// Binds `port` on each address of the setting `listen`.
fn bind_all(network: &Network, port: u16, implicit_tls: bool) -> Result<Vec<ControlPort>, RunError> {
    let mut ports = Vec::new();
    for ip in &network.listen {
        let address = SocketAddr::new(*ip, port);
        match ControlPort::bind(address, implicit_tls) {
            Ok(port) => ports.push(port),
            Err(error) if network.listen_is_default && is_missing_family(&error) => {
                log::info!("not listening on {address}: {error}");
            }
            Err(error) => return Err(RunError::Listen(address, error)),
        }
    }
    Ok(ports)
}

/// Returns true if the host does not support the address family (IPv4 or IPv6).
fn is_missing_family(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// Accepts connections until the sender of `open` is replaced, then stops listening.
async fn accept(listener: TcpListener, node: Arc<Node>, mut open: watch::Receiver<()>, implicit_tls: bool) {
    loop {
        let (stream, peer) = tokio::select! {
            biased;
            _ = open.changed() => break,
            accepted = listener::accept(&listener) => accepted,
        };
        tokio::spawn(serve(stream, peer, Arc::clone(&node), implicit_tls));
    }
    // The last connections get a 421 instead of a reset.
    listener::close(listener, |stream, peer| {
        tokio::spawn(serve(stream, peer, Arc::clone(&node), implicit_tls));
    })
    .await;
}

async fn serve(mut stream: TcpStream, peer: SocketAddr, node: Arc<Node>, implicit_tls: bool) {
    let is_balancer = node.trusted_balancers.is_balancer(peer.ip());
    let _counted = is_balancer.then(|| node.balancers.connected(peer.ip()));
    let addresses = match node.trusted_balancers.addresses_of(&mut stream, peer).await {
        Ok(addresses) => addresses,
        Err(NoClientAddress::ClosedByPeer) => return,
        Err(NoClientAddress::BalancersOwn) => return health_check::serve(stream, &node, implicit_tls).await,
        Err(error) => {
            metrics::connection_refused("proxy_header");
            if node.connection_log.may_log("proxy_header", peer.ip()) {
                log::warn!(peer:% = peer; "connection refused: {error}");
            }
            return;
        }
    };
    match node.connections.admit(addresses.client.ip()) {
        Ok(entry) => ControlConnection::new(stream, node, addresses, entry).serve(implicit_tls).await,
        Err(refused) => refuse(&node, &stream, addresses.client, refused),
    }
}

fn refuse(node: &Node, stream: &TcpStream, client: SocketAddr, refused: AdmissionError) {
    let (text, reason) = match refused {
        AdmissionError::TooMany => ("Too many connections; try again later", "too_many"),
        AdmissionError::TooManyFromAddress => {
            ("Too many connections from your address", "too_many_from_address")
        }
        AdmissionError::Draining => ("Server is shutting down for maintenance; please reconnect", "draining"),
    };
    metrics::connection_refused(reason);
    if node.connection_log.may_log(reason, client.ip()) {
        log::warn!(address:% = client.ip(); "connection refused: {reason}");
    }
    let mut reply = Vec::new();
    Reply::new(Code::SERVICE_UNAVAILABLE, text).encode(&mut reply);
    // The send buffer of a new connection is empty and takes one line. Otherwise the client has left.
    let _ = stream.try_write(&reply);
}
