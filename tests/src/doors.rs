//! The doors of a cluster: the parts to which its clients connect.

use std::net::IpAddr;

use common::node::PortRange;

use crate::{
    haproxy::{HaProxy, HaProxyBuilder},
    nginx::{Balancer, Nginx},
    relay::{Relay, RelayBuilder},
};

/// The kinds of doors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoorKind {
    /// nginx carries control connections, `ftp-relay` data connections.
    NginxAndRelay,
    /// nginx carries control and data connections. It makes a client's reset an orderly end.
    Nginx,
    /// HAProxy carries control and data connections, each to the next node in turn. The nodes see HAProxy's
    /// address as that of every client.
    HaProxy,
    /// The same with a PROXY header of version 2.
    HaProxyWithHeader,
    /// Clients connect to the nodes.
    Nodes,
}

/// The running doors of a cluster. Dropping them ends their processes.
#[derive(Default)]
pub struct Doors {
    pub nginx: Option<Nginx>,
    pub haproxy: Option<HaProxy>,
    pub relay: Option<Relay>,
}

impl Doors {
    /// Starts the doors at the address of `balancer`, which knows the nodes, and waits until they listen.
    /// `relay` has the same address.
    ///
    /// # Panics
    /// A part is not installed or does not start.
    pub fn start(kind: DoorKind, balancer: &Balancer, passive: PortRange, relay: RelayBuilder) -> Self {
        let haproxy = |sends_header| {
            let nodes: Vec<IpAddr> = balancer.nodes.iter().map(|(_, address, _)| *address).collect();
            let control = [balancer.control_port].into_iter().chain(balancer.implicit_port);
            let builder = HaProxyBuilder {
                address: balancer.address,
                control_ports: control.collect(),
                passive,
                nodes,
                sends_header,
            };
            Self { haproxy: Some(builder.start()), ..Self::default() }
        };
        match kind {
            DoorKind::NginxAndRelay => {
                let relay = Some(relay.start());
                Self { nginx: Some(Nginx::start_for_control(balancer)), relay, ..Self::default() }
            }
            DoorKind::Nginx => Self { nginx: Some(Nginx::start(balancer)), ..Self::default() },
            DoorKind::HaProxy => haproxy(false),
            DoorKind::HaProxyWithHeader => haproxy(true),
            DoorKind::Nodes => Self::default(),
        }
    }
}
