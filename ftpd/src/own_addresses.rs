//! Which addresses active mode never connects to: those of this host and of the cluster's services.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use crate::config::Network;

impl Network {
    /// Whether active mode may connect to `address`, which is the client's own.
    ///
    /// A proxy that replaces the clients' addresses by the host's own (kube-proxy with source NAT, Docker's
    /// userland proxy) would otherwise let every user connect to what trusts this host. The kernel is
    /// asked each time: addresses come and go.
    ///
    /// # Errors
    /// `service`: Redis, authd or this node's admin port. `loopback`: a loopback address, unless this node
    /// listens on loopback addresses only. `own_address`: an address of one of this host's interfaces.
    pub fn may_dial(&self, address: SocketAddr) -> Result<(), &'static str> {
        let ip = address.ip().to_canonical();
        // On a loopback address the clients may well have the address of a service, in a cluster on one host.
        let is_service = |service: &SocketAddr| {
            service.ip().to_canonical() == ip && (service.port() == address.port() || !ip.is_loopback())
        };
        if self.services.iter().any(is_service) {
            return Err("service");
        }
        if ip.is_loopback() {
            return if self.listen.iter().all(IpAddr::is_loopback) { Ok(()) } else { Err("loopback") };
        }
        if is_of_this_host(SocketAddr::new(ip, address.port())) { Err("own_address") } else { Ok(()) }
    }
}

/// Whether the address is one of this host's.
///
/// Connecting a UDP socket sends nothing. The kernel chooses the source address, which is the destination
/// itself if and only if the destination is local. Unlike a list of the interfaces this needs no netlink,
/// which the service's sandbox forbids, and unlike binding it is right with `ip_nonlocal_bind`.
fn is_of_this_host(address: SocketAddr) -> bool {
    let any: IpAddr = match address.ip() {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect(address)?;
        socket.local_addr()
    });
    // Without a route no data connection reaches the address either.
    source.is_ok_and(|source| source.ip() == address.ip())
}
