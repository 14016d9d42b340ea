//! PASV, PORT (RFC 959 section 4.1.2), EPSV, EPRT (RFC 2428): the data port of the next transfer.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use crate::{
    client_address::ConnectionAddresses,
    config::Network,
    data::{DataPort, passive::Reservation},
    identity::log_session,
    metrics,
    protocol::{
        Code, Failure, Reply,
        address::{self, AddressFamily},
        command::EpsvArgument,
    },
    session::LoggedIn,
};

/// The lowest port for active mode. The node never connects to the ports below, which belong to system
/// services (RFC 2577 section 3).
const FIRST_UNPRIVILEGED_PORT: u16 = 1024;

/// PASV. Replaces the session's earlier reservation.
pub(super) async fn pasv(session: &mut LoggedIn) -> Result<Reply, Reply> {
    refuse_after_epsv_all(session)?;
    let announced = announced_address(&session.node.network, session.addresses)
        .ok_or_else(|| Reply::new(Code::NO_DATA_CONNECTION, "PASV requires IPv4; use EPSV"))?;
    let reservation = reserve(session).await?;
    let reply = address::passive(SocketAddrV4::new(announced, reservation.port()));
    session.data_port = Some(DataPort::Passive(reservation));
    Ok(reply)
}

/// EPSV. The data connection goes to the address of the control connection, so it has the same address
/// family.
pub(super) async fn epsv(session: &mut LoggedIn, argument: EpsvArgument) -> Result<Reply, Reply> {
    match argument {
        EpsvArgument::All => {
            session.epsv_only = true;
            return Ok(Reply::new(Code::OK, "EPSV ALL accepted"));
        }
        EpsvArgument::Family(family) if family != own_family(session) => {
            return Err(Reply::new(
                Code::UNSUPPORTED_FAMILY,
                match own_family(session) {
                    AddressFamily::V4 => "Network protocol not supported, use (1)",
                    AddressFamily::V6 => "Network protocol not supported, use (2)",
                },
            ));
        }
        EpsvArgument::Any | EpsvArgument::Family(_) => {}
    }
    let reservation = reserve(session).await?;
    let reply = address::extended_passive(reservation.port());
    session.data_port = Some(DataPort::Passive(reservation));
    Ok(reply)
}

/// PORT and EPRT. The address must be the client's own and the port above 1023, to prevent the FTP bounce
/// attack (CVE-1999-0017, RFC 2577 section 3). Addresses of this host and of the cluster's services are
/// refused: behind a proxy that replaces the client address by the host's own, every user could reach them.
pub(super) fn port(session: &mut LoggedIn, verb: &'static str, address: SocketAddr) -> Result<Reply, Reply> {
    refuse_after_epsv_all(session)?;
    if !session.node.network.active_mode {
        return Err(Reply::new(Code::NOT_IMPLEMENTED, "Active mode is disabled; use PASV or EPSV"));
    }
    if address.ip() != session.addresses.client.ip() || address.port() < FIRST_UNPRIVILEGED_PORT {
        metrics::data_connection_refused("bounce");
        log_session!(log::Level::Warn, session.identity;
            "{verb} to {address} refused: not the client address, or a port below 1024"
        );
        return Err(Reply::new(
            Code::UNSUPPORTED_PARAMETER,
            "PORT must name your own address and a port above 1023",
        ));
    }
    if let Err(reason) = session.node.network.may_dial(address) {
        metrics::data_connection_refused("own_address");
        log_session!(log::Level::Warn, session.identity, reason;
            "{verb} to {address} refused: active mode does not connect to this host or the cluster's services"
        );
        return Err(Reply::new(
            Code::UNSUPPORTED_PARAMETER,
            "Active mode is not available for your address; use PASV or EPSV",
        ));
    }
    session.data_port = Some(DataPort::Active(address));
    Ok(Reply::new(Code::OK, "PORT command successful"))
}

/// Refuses all commands other than EPSV after EPSV ALL (RFC 2428 section 4).
fn refuse_after_epsv_all(session: &LoggedIn) -> Result<(), Reply> {
    if session.epsv_only {
        Err(Reply::new(Code::BAD_SEQUENCE, "Only EPSV is allowed after EPSV ALL"))
    } else {
        Ok(())
    }
}

fn own_family(session: &LoggedIn) -> AddressFamily {
    if session.addresses.client.is_ipv4() { AddressFamily::V4 } else { AddressFamily::V6 }
}

async fn reserve(session: &mut LoggedIn) -> Result<Reservation, Reply> {
    // Release the old reservation first: its port may be the only one.
    session.data_port = None;
    let node = &session.node;
    let tls = node.tls.as_ref().filter(|_| session.is_private);
    let reservation = node.passive.reserve(&session.identity, tls, node.timeouts.passive_wait).await;
    reservation.ok_or_else(|| {
        let failure =
            Failure { detail: Some(node.passive.shortage().into()), ..Failure::from("no_passive_port") };
        Reply::new(Code::NO_DATA_CONNECTION, "No passive port available; try again").because(failure)
    })
}

/// The address in the reply to PASV: `external_address`. Without that setting, and for clients in
/// `internal_networks`, the address at which the client reached the node or the balancer.
fn announced_address(network: &Network, addresses: ConnectionAddresses) -> Option<Ipv4Addr> {
    let client = addresses.client.ip();
    let is_internal = network.internal_networks.iter().any(|internal| internal.contains(&client));
    match (network.external_address, addresses.reached.ip()) {
        (Some(IpAddr::V4(external)), _) if !is_internal => Some(external),
        (_, IpAddr::V4(reached)) => Some(reached),
        (_, IpAddr::V6(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use common::passive::PassiveAssignment;

    use super::*;

    fn network(external: Option<&str>) -> Network {
        Network {
            listen: vec![],
            listen_is_default: false,
            port: 21,
            implicit_tls_port: None,
            passive_ports: common::node::PortRange::new(1, 1).unwrap(),
            assignment: PassiveAssignment::Slice(common::node::PortRange::new(1, 1).unwrap()),
            is_in_cluster: false,
            node_address: None,
            nginx_data_path: false,
            external_address: external.map(|ip| ip.parse().unwrap()),
            internal_networks: vec!["10.0.0.0/8".parse().unwrap()],
            trusted_balancers: vec![],
            active_mode: true,
            services: vec![],
            host_names: vec![],
        }
    }

    #[test]
    fn active_mode_connects_neither_to_this_host_nor_to_services_of_the_cluster() {
        let may_dial = |listen: &[&str], services: &[&str], address: &str| {
            let network = Network {
                listen: listen.iter().map(|ip| ip.parse().unwrap()).collect(),
                services: services.iter().map(|address| address.parse().unwrap()).collect(),
                ..network(None)
            };
            network.may_dial(address.parse().unwrap())
        };
        let services = ["192.0.2.5:6379", "127.0.0.10:6379"];
        assert_eq!(may_dial(&["0.0.0.0"], &services, "198.51.100.1:2000"), Ok(()));
        assert_eq!(may_dial(&["0.0.0.0"], &services, "127.0.0.1:2000"), Err("loopback"));
        assert_eq!(may_dial(&["::"], &services, "[::1]:2000"), Err("loopback"));
        assert_eq!(may_dial(&["127.0.0.1", "::1"], &services, "127.0.0.1:2000"), Ok(()));
        assert_eq!(may_dial(&["0.0.0.0"], &services, "192.0.2.5:2000"), Err("service"));
        // With everything on one host, a client may have the address of a service, but not its port.
        assert_eq!(may_dial(&["127.0.0.1"], &services, "127.0.0.10:2000"), Ok(()));
        assert_eq!(may_dial(&["127.0.0.1"], &services, "127.0.0.10:6379"), Err("service"));
        for interface in nix::ifaddrs::getifaddrs().unwrap() {
            let Some(own) = interface.address.as_ref().and_then(|own| own.as_sockaddr_in()) else { continue };
            if !own.ip().is_loopback() {
                assert_eq!(may_dial(&["0.0.0.0"], &[], &format!("{}:2000", own.ip())), Err("own_address"));
            }
        }
    }

    #[test]
    fn pasv_announces_the_external_address_or_the_address_that_the_client_reached() {
        let announced = |external: Option<&str>, client: &str, reached: &str| {
            let addresses = ConnectionAddresses {
                client: SocketAddr::new(client.parse().unwrap(), 1),
                reached: SocketAddr::new(reached.parse().unwrap(), 21),
            };
            announced_address(&network(external), addresses).map(|ip| ip.to_string())
        };
        let external = Some("203.0.113.10");
        assert_eq!(announced(None, "198.51.100.1", "192.0.2.1").as_deref(), Some("192.0.2.1"));
        assert_eq!(announced(external, "198.51.100.1", "10.0.0.10").as_deref(), external);
        assert_eq!(announced(external, "10.1.1.1", "10.0.0.10").as_deref(), Some("10.0.0.10"));
        assert_eq!(announced(external, "2001:db8::1", "2001:db8::2").as_deref(), external);
        assert_eq!(announced(None, "2001:db8::1", "2001:db8::2"), None);
    }
}
