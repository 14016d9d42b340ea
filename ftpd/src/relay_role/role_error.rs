//! Why the relay cannot start.

use std::{io, net::SocketAddr};

use crate::listener::advice;

/// Why the relay cannot start.
#[derive(Debug, thiserror::Error)]
pub enum RoleError {
    #[error("cannot listen on {0}{hint}", hint = advice(.0, .1))]
    Listen(SocketAddr, #[source] io::Error),
    #[error(
        "cannot listen on the passive port {0} (if an outgoing connection of this host uses it: reserve the \
         passive ports with the sysctl net.ipv4.ip_local_reserved_ports)"
    )]
    ListenPassive(SocketAddr, #[source] io::Error),
    #[error("cannot set up the metrics: {0}")]
    Metrics(String),
    #[error("cannot write nftables maps: the setting nft_map needs CAP_NET_ADMIN")]
    NetworkAdministration(#[source] io::Error),
    #[error(
        "the limit of open files (RLIMIT_NOFILE, LimitNOFILE= of the service) is {available}; the listening \
         sockets and one connection need {needed}"
    )]
    OpenFiles { available: u64, needed: u64 },
    #[error("cannot give up capabilities")]
    Capabilities(#[source] io::Error),
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
}

impl From<(SocketAddr, io::Error)> for RoleError {
    fn from((address, error): (SocketAddr, io::Error)) -> Self {
        Self::Listen(address, error)
    }
}
