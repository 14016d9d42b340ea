//! The state that all handles, session entries and leases of one node share.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering},
    },
};

use tokio::sync::watch;

use super::{
    bandwidth_meter::BandwidthShares, cluster::Cluster, home::CountedHome, orders::LocalOrders,
    port_map::PortMap, shared_keys::LocalSharedKeys, table::NodeTable, work::RegistryWork,
};
use crate::{
    clock::since_epoch,
    live::NodeActivity,
    node::{FailingDependency, NodeRecord, NodeState, PortRange},
    passive::{BlockState, OwnBlock, PassiveAssignment},
    sync::lock,
};

/// The revision of the accounts that a node last read from Redis. Whenever this value changes, the
/// node asks authd which of its sessions may stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Revision {
    /// The number in Redis: see [`Keys::revision`](crate::keys::Keys::revision).
    pub(super) number: u64,
    /// Number of times that the node has joined. The node may have missed a change before each of them.
    pub(super) joins: u64,
}

/// The shared state of one node's registry.
pub(super) struct Core {
    pub node: NodeRecord,
    pub state: Mutex<NodeState>,
    pub failing: Mutex<Vec<FailingDependency>>,
    pub transfers: AtomicU32,
    /// The end of the drain at the latest; Unix time in seconds.
    pub drain_until: Mutex<Option<u64>>,
    pub activity: Mutex<Option<NodeActivity>>,
    table: Mutex<NodeTable>,
    ticket_keys: Mutex<LocalSharedKeys>,
    pub homes: Mutex<HashMap<Box<[u8]>, Arc<CountedHome>>>,
    pub bandwidth_shares: BandwidthShares,
    pub revision: watch::Sender<Revision>,
    orders: Mutex<LocalOrders>,
    /// The passive ports that this node owns.
    pub blocks: watch::Sender<Arc<[OwnBlock]>>,
    pub port_map: PortMap,
    /// `None` for a node without Redis.
    pub cluster: Option<Arc<Cluster>>,
}

impl Core {
    pub(super) fn new(
        node: NodeRecord,
        assignment: PassiveAssignment,
        port_map: PortMap,
        cluster: Option<Arc<Cluster>>,
    ) -> Self {
        let blocks = match assignment {
            PassiveAssignment::Slice(ports) => {
                Arc::from([OwnBlock { ports, generation: 0, state: BlockState::Leased }])
            }
            PassiveAssignment::Leased(_) => Arc::default(),
        };
        Self {
            blocks: watch::Sender::new(blocks),
            port_map,
            state: Mutex::new(node.state),
            failing: Mutex::default(),
            transfers: AtomicU32::new(node.transfers),
            activity: Mutex::default(),
            drain_until: Mutex::default(),
            table: Mutex::default(),
            ticket_keys: Mutex::default(),
            homes: Mutex::default(),
            bandwidth_shares: Mutex::default(),
            revision: watch::Sender::default(),
            orders: Mutex::default(),
            node,
            cluster,
        }
    }

    pub(super) fn table(&self) -> MutexGuard<'_, NodeTable> {
        lock(&self.table)
    }

    pub(super) fn orders(&self) -> MutexGuard<'_, LocalOrders> {
        lock(&self.orders)
    }

    pub(super) fn ticket_keys(&self) -> MutexGuard<'_, LocalSharedKeys> {
        lock(&self.ticket_keys)
    }

    /// The current record of the node.
    pub(super) fn record(&self) -> NodeRecord {
        let is_leased = self.cluster.as_ref().is_some_and(|cluster| cluster.is_leased());
        let blocks: Vec<PortRange> = match is_leased {
            true => self.blocks.borrow().iter().map(|block| block.ports).collect(),
            false => Vec::new(),
        };
        NodeRecord {
            slice: blocks.first().copied().unwrap_or(self.node.slice),
            is_leased,
            blocks,
            state: *lock(&self.state),
            sessions: u32::try_from(self.table().session_count()).unwrap_or(u32::MAX),
            transfers: self.transfers.load(Ordering::Relaxed),
            failing: lock(&self.failing).clone(),
            activity: lock(&self.activity).clone().map(|activity| NodeActivity {
                // The time of the refresh, not of the measurement: administrators compare it with theirs.
                clock: u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX),
                ..activity
            }),
            drain_until: *lock(&self.drain_until),
            ..self.node.clone()
        }
    }

    /// Gives work to the refresh task, if there is one. The queue holds at most what has ended since the
    /// task's last step, which takes a bounded time.
    pub(super) fn work(&self, work: impl FnOnce(&Cluster) -> RegistryWork) {
        if let Some(cluster) = &self.cluster {
            // An error means that the node has left: Redis has no entries of it.
            let _ = cluster.work.send(work(cluster));
        }
    }
}
