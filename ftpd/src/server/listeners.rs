//! The listeners of control connections: binding, accepting, and refusing connections beyond a limit.

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

/// The tasks that accept control connections.
pub(super) struct Listeners {
    tasks: JoinSet<()>,
    /// Dropped to end the tasks.
    open: watch::Sender<()>,
}

impl Default for Listeners {
    fn default() -> Self {
        Self { tasks: JoinSet::new(), open: watch::Sender::new(()) }
    }
}

impl Listeners {
    /// Listens on the bound sockets, and accepts connections from now on.
    pub(super) fn open(
        &mut self,
        node: &Arc<Node>,
        control: Vec<BoundSocket>,
        implicit_tls: Vec<BoundSocket>,
    ) -> Result<(), RunError> {
        let (control, implicit_tls) = (listen(control)?, listen(implicit_tls)?);
        self.accept_all("control", control, node, false);
        self.accept_all("implicit_tls", implicit_tls, node, true);
        Ok(())
    }

    fn accept_all(&mut self, part: &str, listeners: Vec<TcpListener>, node: &Arc<Node>, implicit_tls: bool) {
        for listener in listeners {
            log::info!(part, address:% = local(&listener); "listening");
            self.tasks.spawn(accept(listener, Arc::clone(node), self.open.subscribe(), implicit_tls));
        }
    }

    /// Stops listening.
    pub(super) async fn close(self) {
        drop(self.open);
        self.tasks.join_all().await;
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

/// Binds a socket for `port` on each address of the setting `listen`.
pub(super) fn bind_all(network: &Network, port: u16) -> Result<Vec<BoundSocket>, RunError> {
    let mut sockets = Vec::new();
    for ip in &network.listen {
        let address = SocketAddr::new(*ip, port);
        match BoundSocket::new(address) {
            Ok(socket) => sockets.push(socket),
            Err(error) if network.listen_is_default && is_missing_family(&error) => {
                log::info!("not listening on {address}: {error}");
            }
            Err(error) => return Err(RunError::Listen(address, error)),
        }
    }
    Ok(sockets)
}

fn listen(sockets: Vec<BoundSocket>) -> Result<Vec<TcpListener>, RunError> {
    let listen = |socket: BoundSocket| {
        // A bound socket always has an address.
        let address = socket.address().unwrap_or_else(|_| SocketAddr::from(([0; 4], 0)));
        socket.listen().map_err(|error| RunError::Listen(address, error))
    };
    sockets.into_iter().map(listen).collect()
}

/// Returns true if the host does not support the address family (IPv4 or IPv6).
fn is_missing_family(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// Accepts connections until the sender of `open` is dropped, then stops listening.
async fn accept(listener: TcpListener, node: Arc<Node>, mut open: watch::Receiver<()>, implicit_tls: bool) {
    loop {
        let (stream, peer) = tokio::select! {
            biased;
            _ = open.changed() => break,
            accepted = listener::accept(&listener) => accepted,
        };
        tokio::spawn(serve(stream, peer, Arc::clone(&node), implicit_tls));
    }
    // Connections that wait in the kernel's queue get a 421 instead of a reset.
    let Ok(listener) = listener.into_std() else { return };
    while let Ok((stream, peer)) = listener.accept() {
        if stream.set_nonblocking(true).is_ok()
            && let Ok(stream) = TcpStream::from_std(stream)
        {
            tokio::spawn(serve(stream, peer, Arc::clone(&node), implicit_tls));
        }
    }
}

async fn serve(mut stream: TcpStream, peer: SocketAddr, node: Arc<Node>, implicit_tls: bool) {
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
