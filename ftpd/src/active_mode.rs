//! The addresses that active mode never connects to: those of this host and of the cluster's services.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use crate::config::Network;

impl Network {
    /// Checks that active mode may connect to `address`, which is the client's own.
    ///
    /// Behind a proxy that replaces client addresses by the host's own (kube-proxy with source NAT, Docker's
    /// userland proxy), every user could otherwise connect to services that trust this host. Asks the kernel
    /// each time, because addresses change.
    ///
    /// # Errors
    /// `service`: Redis, authd or this node's admin port. `loopback`: a loopback address, unless this node
    /// listens on loopback addresses only. `own_address`: an address of one of this host's interfaces.
    pub fn may_dial(&self, address: SocketAddr) -> Result<(), &'static str> {
        let ip = address.ip().to_canonical();
        // In a cluster on one host, clients and services share loopback addresses, but not ports.
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

/// Returns true if the address is one of this host's.
///
/// Connects a UDP socket, which sends nothing. The kernel then chooses the source address: the destination
/// itself if and only if the destination is local. A list of the interfaces would need netlink, which the
/// service's sandbox forbids; binding would give a wrong answer with `ip_nonlocal_bind`.
fn is_of_this_host(address: SocketAddr) -> bool {
    let any: IpAddr = match address.ip() {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect(address)?;
        socket.local_addr()
    });
    // Without a route, a data connection would fail, too.
    source.is_ok_and(|source| source.ip() == address.ip())
}
