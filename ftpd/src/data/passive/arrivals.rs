//! Where an arriving data connection belongs: to a session of this node, or to the node that owns its port.
//!
//! Every node of a cluster listens on all passive ports, so a balancer need not know which node owns a port.
//! A connection is one of these:
//!
//! * from a trusted balancer: it begins with a PROXY header, which names the client;
//! * from another node or a relay, which has carried it here: it begins with a PROXY header, too, with a TLV
//!   that only a member of the cluster can make;
//! * from the client itself.
//!
//! With the client known, a connection for a port of this node, or for a reservation here, goes to its
//! session. Any other is carried to the owner of its port, unless it was carried once already.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{client_network::network_of, node::NodeName, registry::PortMap, sync::lock};
use tokio::{net::TcpStream, sync::watch};

use super::{ReservationTable, own_ports::OwnPorts};
use crate::{
    client_address::{self, ConnectionAddresses, FirstBytes, HeaderBytes, NoClientAddress, TrustedBalancers},
    connection_log::ConnectionLog,
    data::connected::{Arrived, Socket},
    listener::{AcceptedConnection, ListenerSet},
    metrics,
    protocol::relayed::{self, RelayRefused, Relayed},
    relay::Relay,
};

/// Time for which a connection from a node's address waits for a PROXY header if it may also come from a
/// client on that node's host: a session here expects such a client, or the port belongs to another node. A
/// relay sends the header at once; TCP repeats it twice within this time if it is lost. A header that came
/// later would be taken for data of that client.
const NODE_HEADER_WAIT: Duration = Duration::from_secs(1);

/// Maximum number of connections from unknown addresses that wait for their first bytes at once, and of those
/// from one network. Each waits for at most `proxy_header_timeout`; a further one does not wait.
const MAX_WAITS: u32 = 256;
const MAX_WAITS_OF_NETWORK: u32 = 32;

/// The other nodes of the cluster: who owns which port, and the relay that carries connections there.
pub struct Door {
    /// The name of this node.
    pub name: NodeName,
    pub map: PortMap,
    pub relay: Arc<Relay>,
    /// Limits the lines about refused connections.
    pub log: ConnectionLog,
}

/// Places the connections that arrive at the passive ports.
pub(super) struct Arrivals {
    pub(super) table: Arc<ReservationTable>,
    pub(super) own: OwnPorts,
    pub(super) balancers: Arc<TrustedBalancers>,
    /// `None`: there are no other nodes.
    pub(super) door: Option<Door>,
    pub(super) waits: Arc<FirstByteWaits>,
}

/// A connection whose client is known.
struct KnownConnection {
    port: u16,
    addresses: ConnectionAddresses,
    socket: Socket,
    /// It came with a PROXY header.
    has_header: bool,
    /// Another node or a relay has carried it here.
    was_relayed: bool,
}

impl Arrivals {
    /// Accepts connections and places them until the sender of `open` is dropped, then stops listening.
    pub(super) async fn accept(self: Arc<Self>, mut listeners: ListenerSet, mut open: watch::Receiver<()>) {
        loop {
            tokio::select! {
                connection = listeners.accept() => self.place(connection),
                _ = open.changed() => break,
            }
        }
        listeners.close(|connection| self.place(connection)).await;
    }

    fn place(self: &Arc<Self>, connection: AcceptedConnection) {
        let AcceptedConnection { socket, peer, port } = connection;
        let peer = client_address::canonical(peer);
        if self.balancers.is_balancer(peer.ip()) {
            match client_address::take_arrived_header(&socket) {
                Some(header) => {
                    let socket = Socket::Blocking(socket);
                    self.place_with_header(port, peer, header.map(|header| (header, socket)));
                }
                None => self.spawn_with_header(port, peer, Socket::Blocking(socket)),
            }
            return;
        }
        let Some(door) = &self.door else { return self.place_direct(port, peer, Socket::Blocking(socket)) };
        let is_expected = self.table.is_reserved(port, peer.ip());
        let is_node = door.map.is_node(peer.ip());
        if is_expected && !is_node {
            return self.place_direct(port, peer, Socket::Blocking(socket));
        }
        match client_address::first_bytes(&socket) {
            FirstBytes::Header => self.spawn_with_header(port, peer, Socket::Blocking(socket)),
            FirstBytes::Other => self.place_direct(port, peer, Socket::Blocking(socket)),
            FirstBytes::NotYet => {
                let wait = if is_node && (is_expected || !self.is_own(port)) {
                    Some((NODE_HEADER_WAIT, None))
                } else if is_node {
                    Some((self.balancers.header_timeout, None))
                } else if self.is_own(port) {
                    let permit = self.waits.begin(peer.ip());
                    permit.map(|permit| (self.balancers.header_timeout, Some(permit)))
                } else {
                    // A client that downloads sends nothing.
                    None
                };
                match wait {
                    Some((limit, permit)) => {
                        let arrivals = Arc::clone(self);
                        tokio::spawn(async move {
                            arrivals.place_after_first_bytes(port, peer, socket, limit).await;
                            drop(permit);
                        });
                    }
                    None => self.place_direct(port, peer, Socket::Blocking(socket)),
                }
            }
        }
    }

    async fn place_after_first_bytes(
        self: &Arc<Self>,
        port: u16,
        peer: SocketAddr,
        socket: std::net::TcpStream,
        limit: Duration,
    ) {
        let stream = match Socket::Blocking(socket).register() {
            Ok(stream) => stream,
            Err(error) => return log_unusable(port, peer, &error),
        };
        match client_address::await_first_bytes(&stream, limit).await {
            FirstBytes::Header => {
                let read = self.read_header(stream).await;
                self.place_with_header(port, peer, read);
            }
            FirstBytes::Other | FirstBytes::NotYet => {
                self.place_direct(port, peer, Socket::Registered(stream));
            }
        }
    }

    /// Reads the PROXY header in a task of its own, and places the connection.
    fn spawn_with_header(self: &Arc<Self>, port: u16, peer: SocketAddr, socket: Socket) {
        let arrivals = Arc::clone(self);
        tokio::spawn(async move {
            let read = match socket.register() {
                Ok(stream) => arrivals.read_header(stream).await,
                Err(error) => Err(error.into()),
            };
            arrivals.place_with_header(port, peer, read);
        });
    }

    async fn read_header(&self, mut stream: TcpStream) -> Result<(HeaderBytes, Socket), NoClientAddress> {
        let header = self.balancers.read_header(&mut stream).await?;
        Ok((header, Socket::Registered(stream)))
    }

    /// Places a connection from the client itself.
    fn place_direct(self: &Arc<Self>, port: u16, client: SocketAddr, socket: Socket) {
        let reached = match socket.local_address() {
            Ok(reached) => client_address::canonical(reached),
            Err(error) => return log_unusable(port, client, &error),
        };
        let addresses = ConnectionAddresses { client, reached };
        self.place_known(KnownConnection { port, addresses, socket, has_header: false, was_relayed: false });
    }

    /// Places a connection that begins with a PROXY header, or should.
    fn place_with_header(
        self: &Arc<Self>,
        port: u16,
        peer: SocketAddr,
        read: Result<(HeaderBytes, Socket), NoClientAddress>,
    ) {
        let with_header = read.and_then(|(header, socket)| Ok((header.addresses()?, header, socket)));
        let (addresses, header, socket) = match with_header {
            Ok(with_header) => with_header,
            // A health check of the balancer has no session.
            Err(NoClientAddress::ClosedByPeer | NoClientAddress::BalancersOwn) => return,
            Err(error) => return self.refuse_header(port, peer, &error),
        };
        let was_relayed = match self.verify(port, &header) {
            Ok(relayed) => relayed.is_some(),
            Err(reason) => return self.refuse_relayed(port, peer, reason.label(), &reason),
        };
        if !was_relayed && !self.balancers.is_balancer(peer.ip()) {
            return self.refuse_header(port, peer, &NoClientAddress::NotTrusted);
        }
        self.place_known(KnownConnection { port, addresses, socket, has_header: true, was_relayed });
    }

    fn verify(&self, port: u16, header: &HeaderBytes) -> Result<Option<Relayed>, RelayRefused> {
        let Some(Door { name, map, .. }) = &self.door else { return Ok(None) };
        relayed::verify(&header.bytes, name, port, &map.relay_keys(), map.now())
    }

    /// Hands a connection to its session, or carries it to the owner of its port.
    fn place_known(self: &Arc<Self>, connection: KnownConnection) {
        let is_expected = self.table.is_reserved(connection.port, connection.addresses.client.ip());
        match &self.door {
            Some(door) if !is_expected && door.map.is_stale() => {
                // The block may belong to another node by now, also one that this node takes for its own.
                let (arrivals, map) = (Arc::clone(self), door.map.clone());
                tokio::spawn(async move {
                    let owner = map.find(connection.port).await;
                    let is_here = match owner {
                        Some(owner) if !map.is_stale() => {
                            arrivals.door.as_ref().is_some_and(|door| door.name == owner.node)
                        }
                        _ => arrivals.is_own(connection.port),
                    };
                    arrivals.place_by_owner(connection, is_here);
                });
            }
            _ => {
                let is_here = is_expected || self.is_own(connection.port);
                self.place_by_owner(connection, is_here);
            }
        }
    }

    /// `is_here`: a session here expects the connection, or this node owns its port.
    fn place_by_owner(self: &Arc<Self>, connection: KnownConnection, is_here: bool) {
        let KnownConnection { port, addresses, socket, has_header, was_relayed } = connection;
        let client = addresses.client;
        let Some(door) = self.door.as_ref().filter(|_| !is_here) else {
            let arrived = Arrived { socket, by_balancer: has_header, records: None };
            return self.table.deliver(port, client.ip(), arrived);
        };
        if was_relayed {
            let reason = "it was relayed once already, and this node does not own its port";
            return self.refuse_relayed(port, client, "twice", &reason);
        }
        match socket.register() {
            Ok(stream) => {
                let relay = Arc::clone(&door.relay);
                let relayed = Relayed { client, reached: addresses.reached, port };
                tokio::spawn(async move { relay.carry(stream, relayed).await });
            }
            Err(error) => log_unusable(port, client, &error),
        }
    }

    /// Returns true if this node owns the port, or has leased it and may not use it yet.
    fn is_own(&self, port: u16) -> bool {
        let is_in_map = |door: &Door| door.map.owner(port).is_some_and(|owner| owner.node == door.name);
        self.own.contain(port) || self.door.as_ref().is_some_and(is_in_map)
    }

    fn refuse_header(&self, port: u16, peer: SocketAddr, error: &NoClientAddress) {
        metrics::data_connection_refused("proxy_header");
        if self.may_log("data_proxy_header", peer.ip()) {
            log::warn!(port, peer:% = peer; "data connection refused: {error}");
        }
    }

    fn refuse_relayed(
        &self,
        port: u16,
        peer: SocketAddr,
        reason: &'static str,
        text: &dyn std::fmt::Display,
    ) {
        metrics::relay_refused(reason);
        if self.may_log("relay", peer.ip()) {
            log::warn!(port, peer:% = peer, reason; "relayed data connection refused: {text}");
        }
    }

    fn may_log(&self, kind: &'static str, address: IpAddr) -> bool {
        self.door.as_ref().is_none_or(|door| door.log.may_log(kind, address))
    }
}

fn log_unusable(port: u16, peer: SocketAddr, error: &std::io::Error) {
    log::debug!(port, peer:% = peer; "the socket of a data connection is unusable: {error}");
}

/// The connections from unknown addresses that wait for their first bytes.
#[derive(Default)]
pub(super) struct FirstByteWaits(Mutex<WaitCounts>);

#[derive(Default)]
struct WaitCounts {
    all: u32,
    by_network: HashMap<IpAddr, u32>,
}

/// A connection that waits. Dropping it ends the wait.
pub(super) struct FirstByteWait {
    waits: Arc<FirstByteWaits>,
    network: IpAddr,
}

impl FirstByteWaits {
    /// `None`: too many connections wait.
    fn begin(self: &Arc<Self>, address: IpAddr) -> Option<FirstByteWait> {
        let network = network_of(address);
        let mut counts = lock(&self.0);
        let of_network = counts.by_network.get(&network).copied().unwrap_or(0);
        if counts.all >= MAX_WAITS || of_network >= MAX_WAITS_OF_NETWORK {
            return None;
        }
        counts.all += 1;
        counts.by_network.insert(network, of_network + 1);
        Some(FirstByteWait { waits: Arc::clone(self), network })
    }
}

impl Drop for FirstByteWait {
    fn drop(&mut self) {
        let mut counts = lock(&self.waits.0);
        counts.all -= 1;
        if let Some(count) = counts.by_network.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                counts.by_network.remove(&self.network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_limited_in_all_and_for_each_network() {
        let waits = Arc::<FirstByteWaits>::default();
        let address = |host: u32| IpAddr::from(std::net::Ipv4Addr::from(0xc000_0200 + host));
        let mut of_one: Vec<_> = (0..100).filter_map(|_| waits.begin(address(1))).collect();
        assert_eq!(of_one.len() as u32, MAX_WAITS_OF_NETWORK);
        of_one.pop();
        assert!(waits.begin(address(1)).is_some(), "dropped at once");
        let others: Vec<_> = (2..1000).filter_map(|host| waits.begin(address(host))).collect();
        assert_eq!((of_one.len() + others.len()) as u32, MAX_WAITS);
        drop((of_one, others));
        let counts = lock(&waits.0);
        assert_eq!((counts.all, counts.by_network.len()), (0, 0));
    }
}
