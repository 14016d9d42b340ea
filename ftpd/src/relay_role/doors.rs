//! The doors: listening sockets, the task of each connection, and their end.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use common::node::PortRange;
use tokio::{
    net::TcpStream,
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    choice::ControlKind, config::RoleConfig, control::ControlDoor, data::DataDoor, role_error::RoleError,
};
use crate::{
    listener::{AcceptedConnection, BoundSocket, ListenerSet},
    metrics, relay,
};

/// The bound sockets of all doors, which do not listen yet.
pub(super) struct BoundDoors {
    data: Vec<BoundSocket>,
    control: Vec<BoundSocket>,
    implicit: Vec<BoundSocket>,
}

impl BoundDoors {
    /// Binds every port of the settings.
    pub(super) fn bind(config: &RoleConfig) -> Result<Self, RoleError> {
        let bind = |ports: Option<PortRange>| {
            let ports = ports.into_iter().flat_map(PortRange::iter);
            bind_all(&config.listen, config.listen_is_default, ports)
        };
        let single = |port: Option<u16>| port.and_then(|port| PortRange::new(port, port).ok());
        Ok(Self {
            data: bind(Some(config.passive_ports))
                .map_err(|(address, error)| RoleError::ListenPassive(address, error))?,
            control: bind(single(config.control_port))?,
            implicit: bind(single(config.implicit_tls_port))?,
        })
    }

    /// Number of sockets.
    pub(super) fn count(&self) -> usize {
        self.data.len() + self.control.len() + self.implicit.len()
    }
}

/// Binds a socket for each port on each address. `families_may_lack`: an address family that the host does
/// not have is left out.
fn bind_all(
    addresses: &[IpAddr],
    families_may_lack: bool,
    ports: impl Iterator<Item = u16>,
) -> Result<Vec<BoundSocket>, (SocketAddr, io::Error)> {
    let mut sockets = Vec::new();
    for port in ports {
        for ip in addresses {
            let address = SocketAddr::new(*ip, port);
            match BoundSocket::new(address) {
                Ok(socket) => sockets.push(socket),
                Err(error) if families_may_lack && is_missing_family(&error) => {
                    log::debug!("not listening on {address}: {error}");
                }
                Err(error) => return Err((address, error)),
            }
        }
    }
    Ok(sockets)
}

/// Returns true if the host does not support the address family (IPv4 or IPv6).
fn is_missing_family(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// The order to the tasks of the doors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum DoorState {
    Open,
    /// No new connections.
    Closed,
    /// No connections at all.
    Cut,
}

/// The open doors.
pub(super) struct OpenDoors {
    state: watch::Sender<DoorState>,
    /// A task for each kind of connection.
    doors: JoinSet<()>,
}

impl OpenDoors {
    /// Listens on all sockets. `max_relayed`: data connections at once.
    pub(super) fn open(
        bound: BoundDoors,
        data: DataDoor,
        control: ControlDoor,
        max_relayed: usize,
    ) -> Result<Self, RoleError> {
        let (state, _) = watch::channel(DoorState::Open);
        let mut doors = JoinSet::new();
        let data = Arc::new(data);
        let control = Arc::new(control);
        let serve_data = move |connection: NewConnection| {
            let data = Arc::clone(&data);
            async move { data.serve(connection.client, connection.peer, connection.port).await }
        };
        doors.spawn(serve_all(listen("data", bound.data)?, state.subscribe(), max_relayed, serve_data));
        for (part, sockets, kind) in [
            ("control", bound.control, ControlKind::Explicit),
            ("implicit_tls", bound.implicit, ControlKind::Implicit),
        ] {
            if sockets.is_empty() {
                continue;
            }
            let control = Arc::clone(&control);
            let serve_control = move |connection: NewConnection| {
                let control = Arc::clone(&control);
                async move { control.serve(connection.client, connection.peer, kind).await }
            };
            // `ControlDoor` has the limit, because it tells the client.
            doors.spawn(serve_all(listen(part, sockets)?, state.subscribe(), usize::MAX, serve_control));
        }
        Ok(Self { state, doors })
    }

    /// Stops listening.
    pub(super) fn close(&self) {
        self.state.send_replace(DoorState::Closed);
    }

    /// Waits until the last connection has ended, but at most until `end`. Cancel-safe.
    pub(super) async fn ended(&mut self, end: Instant) -> bool {
        tokio::select! {
            () = async { while self.doors.join_next().await.is_some() {} } => true,
            () = sleep_until(end) => false,
        }
    }

    /// Resets all connections.
    pub(super) async fn cut(mut self) {
        self.state.send_replace(DoorState::Cut);
        while self.doors.join_next().await.is_some() {}
    }
}

fn listen(part: &str, sockets: Vec<BoundSocket>) -> Result<ListenerSet, RoleError> {
    log::info!(part, sockets = sockets.len(); "listening");
    ListenerSet::listen(sockets).map_err(RoleError::from)
}

/// A connection with a socket that the runtime watches.
struct NewConnection {
    client: TcpStream,
    peer: SocketAddr,
    port: u16,
}

/// Serves connections, at most `limit` at once, until the state is [`DoorState::Closed`]; then stops
/// listening, and waits for the connections.
async fn serve_all<F: Future<Output = ()> + Send + 'static>(
    mut listeners: ListenerSet,
    mut state: watch::Receiver<DoorState>,
    limit: usize,
    serve: impl Fn(NewConnection) -> F,
) {
    let mut connections = JoinSet::new();
    let begin = |connections: &mut JoinSet<()>, accepted| {
        // Connections that have ended do not count.
        while connections.try_join_next().is_some() {}
        if connections.len() >= limit {
            return refuse(accepted);
        }
        match watched(accepted) {
            Ok(connection) => _ = connections.spawn(serve(connection)),
            Err(error) => log::debug!("connection lost: {error}"),
        }
    };
    loop {
        tokio::select! {
            _ = state.changed() => break,
            accepted = listeners.accept() => begin(&mut connections, accepted),
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
    listeners.close(|accepted| begin(&mut connections, accepted)).await;
    tokio::select! {
        () = async { while connections.join_next().await.is_some() {} } => {}
        // Dropping a connection's task resets both of its sockets.
        () = is_cut(&mut state) => connections.shutdown().await,
    }
}

/// Returns when the remaining connections must end.
async fn is_cut(state: &mut watch::Receiver<DoorState>) {
    // An error means that the sender is gone, which happens only at the end, too.
    let _ = state.wait_for(|state| *state == DoorState::Cut).await;
}

/// Resets a data connection beyond the limit.
fn refuse(accepted: AcceptedConnection) {
    metrics::limit_reached("max_relayed");
    metrics::relay_refused("limit");
    // The socket is dropped here, and so is the connection if this fails.
    let _ = relay::reset_on_close(&accepted.socket);
}

fn watched(accepted: AcceptedConnection) -> io::Result<NewConnection> {
    accepted.socket.set_nonblocking(true)?;
    let client = TcpStream::from_std(accepted.socket)?;
    Ok(NewConnection { client, peer: accepted.peer, port: accepted.port })
}
