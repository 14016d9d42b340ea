//! Addresses that active mode must not connect to: those of this host and of the cluster's services.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use crate::config::Network;

impl Network {
    /// Checks whether active mode may connect to `address`, the client's own address.
    ///
    /// Some proxies replace client addresses by the host's own (kube-proxy with source NAT, Docker's userland
    /// proxy). Without this check, every user could then connect to services that trust this host. The kernel
    /// is asked each time, because the host's addresses may change.
    ///
    /// # Errors
    /// `service`: Redis, authd or this node's admin port. `loopback`: a loopback address, unless this node
    /// listens only on loopback addresses. `own_address`: an address of this host.
    pub fn may_dial(&self, address: SocketAddr) -> Result<(), &'static str> {
        let ip = address.ip().to_canonical();
        // In a cluster on one host, clients and services share a loopback address; the port then decides.
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

/// Returns true if the address belongs to this host.
///
/// Connecting a UDP socket sends nothing. The kernel chooses the source address, which equals the
/// destination if and only if the destination is local. This needs no netlink (forbidden by the
/// service's sandbox), unlike a list of the interfaces, and it is correct with `ip_nonlocal_bind`,
/// unlike a bind.
fn is_of_this_host(address: SocketAddr) -> bool {
    let any: IpAddr = match address.ip() {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect(address)?;
        socket.local_addr()
    });
    // An error means that there is no route, so a data connection cannot reach the address either.
    source.is_ok_and(|source| source.ip() == address.ip())
}
