//! The relay: carries a data connection that arrived at the wrong node, or at a balancer's host, to the node
//! that owns its port.
//!
//! [`Relay::carry`] finds the owner in the map of passive ports, connects to it, sends the authenticated
//! header of [`protocol::relayed`](crate::protocol::relayed), and [`pump()`] moves the bytes. The engine
//! keeps the meaning of each end: a connection that was cut on one side is reset on the other.

mod dial;
mod ends;
mod flow;
mod pipes;
mod pump;
mod stall;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use common::{
    node::NodeName,
    registry::{BlockOwner, PortMap},
};
use tokio::{net::TcpStream, time::Instant};

pub use self::{
    ends::reset_on_close,
    pipes::PIPE_DESCRIPTORS,
    pump::{PumpEnd, PumpLimits, PumpResult, pump},
};
use crate::{
    connection_log::ConnectionLog,
    metrics,
    protocol::relayed::{self, Relayed},
};

/// Settings of a [`Relay`].
#[derive(Clone, Debug)]
pub struct RelaySettings {
    /// The name of this node. `None` in the relay role. A node never carries a connection to itself.
    pub own: Option<NodeName>,
    /// `max_relayed`: maximum number of connections at once.
    pub max_relayed: u32,
    /// `relay_connect_timeout`.
    pub connect_timeout: Duration,
    /// A connection is reset when no byte has moved in either direction for this time. `None`: no limit. It
    /// must be longer than the node's own limit, so that the node answers its client first.
    pub stall_limit: Option<Duration>,
    /// The address from which the relay connects to nodes. `None`: the kernel chooses.
    pub source: Option<IpAddr>,
    /// Limits the lines about refused connections.
    pub log: ConnectionLog,
}

/// Carries data connections to the owners of their ports.
pub struct Relay {
    map: PortMap,
    settings: RelaySettings,
    count: AtomicU32,
}

impl Relay {
    pub fn new(map: PortMap, settings: RelaySettings) -> Arc<Self> {
        Arc::new(Self { map, settings, count: AtomicU32::new(0) })
    }

    /// The number of connections that are carried now.
    pub fn count(&self) -> u32 {
        self.count.load(Ordering::Acquire)
    }

    /// Carries a connection to the owner of its port until it ends. A connection that cannot be carried is
    /// reset. The client's bytes follow in `socket`: a PROXY header was already read from it.
    ///
    /// Dropping the future resets the connection on both sides.
    pub async fn carry(&self, socket: TcpStream, relayed: Relayed) {
        if let Err(reason) = self.try_carry(socket, &relayed).await {
            metrics::relay_refused(reason.label());
            let Relayed { client, port, .. } = relayed;
            if self.settings.log.may_log("relay", client.ip()) {
                log::warn!(port, address:% = client.ip(); "data connection not relayed: {reason}");
            }
        }
    }

    async fn try_carry(&self, socket: TcpStream, relayed: &Relayed) -> Result<(), NotRelayed> {
        reset_on_close(&socket).map_err(NotRelayed::Client)?;
        let _slot = RelaySlot::take(self)?;
        let owner = self.map.find(relayed.port).await.ok_or(NotRelayed::NoOwner)?;
        if self.settings.own.as_ref() == Some(&owner.node) {
            return Err(NotRelayed::Own);
        }
        let server = self.connect(&owner, relayed).await?;
        metrics::relayed(&owner.node);
        let limits = PumpLimits {
            stall: self.settings.stall_limit,
            splice: true,
            to_server: |bytes| metrics::relay_bytes("to_node", bytes),
            to_client: |bytes| metrics::relay_bytes("to_client", bytes),
        };
        let ended = EndGuard { end: PumpEnd::Cancelled };
        let result = pump(socket, server, limits).await;
        ended.set(result.end);
        let (client, node, end) = (relayed.client, owner.node.as_str(), result.end.label());
        let PumpResult { to_server, to_client, error, .. } = result;
        log::debug!(
            port = relayed.port, address:% = client.ip(), node, end, to_node = to_server, to_client,
            error = error.map(|error| error.to_string()).unwrap_or_default().as_str();
            "relayed a data connection"
        );
        Ok(())
    }

    async fn connect(&self, owner: &BlockOwner, relayed: &Relayed) -> Result<TcpStream, NotRelayed> {
        let key = self.map.relay_key().ok_or(NotRelayed::NoKey)?;
        let header = relayed::seal(relayed, &owner.node, &key, self.map.now());
        let address = SocketAddr::new(owner.address, relayed.port);
        let begin = Instant::now();
        let dialled = dial::dial(address, self.settings.source, &header, self.settings.connect_timeout).await;
        match dialled {
            Ok(server) => {
                metrics::relay_connected(begin.elapsed());
                Ok(server)
            }
            Err(error) => Err(NotRelayed::Unreachable { node: owner.node.clone(), address, error }),
        }
    }
}

/// The reason why a connection was not carried.
#[derive(Debug, thiserror::Error)]
enum NotRelayed {
    #[error("max_relayed connections are being relayed")]
    Limit,
    #[error("no live node owns its port")]
    NoOwner,
    #[error("this node has leased its port and may not use it yet")]
    Own,
    #[error("the registry has not given a relay key yet")]
    NoKey,
    #[error("node {node} cannot be reached at {address} (relay_connect_timeout, node_address): {error}")]
    Unreachable { node: NodeName, address: SocketAddr, error: io::Error },
    #[error("the client's socket is unusable: {0}")]
    Client(io::Error),
}

impl NotRelayed {
    /// The label `reason` of `ftp_relay_refused_total`.
    fn label(&self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::NoOwner | Self::Own => "no_owner",
            Self::NoKey => "no_key",
            Self::Unreachable { .. } => "unreachable",
            Self::Client(_) => "client",
        }
    }
}

/// One of the `max_relayed` connections.
struct RelaySlot<'r>(&'r AtomicU32);

impl<'r> RelaySlot<'r> {
    fn take(relay: &'r Relay) -> Result<Self, NotRelayed> {
        let slot = Self(&relay.count);
        let before = relay.count.fetch_add(1, Ordering::AcqRel);
        metrics::relayed_now(1);
        if before >= relay.settings.max_relayed {
            metrics::limit_reached("max_relayed");
            return Err(NotRelayed::Limit);
        }
        Ok(slot)
    }
}

impl Drop for RelaySlot<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
        metrics::relayed_now(-1);
    }
}

/// Counts the end of a connection, also when the future is dropped.
struct EndGuard {
    end: PumpEnd,
}

impl EndGuard {
    fn set(mut self, end: PumpEnd) {
        self.end = end;
    }
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        metrics::relay_ended(self.end.label());
    }
}

#[cfg(test)]
mod tests;
