//! The registry of sessions, nodes and write leases: one node's own, or shared through Redis.
//!
//! A node always keeps its own sessions and leases in a table in memory; that table alone is the
//! registry of a single node. In a cluster every step is first taken in the table and then, as one
//! atomic step, in Redis. So nothing a node knows is ever only in Redis, and a Redis that lost its
//! data, or was away, is made whole by the nodes.
//!
//! What is refreshed there is the node, and its sessions live with it: one that is idle costs nothing.
//! Only where Redis may have other sessions of the node than the node are all of them entered again.
//!
//! Redis is one server, with replicas if need be. It cannot be a Redis Cluster, which spreads keys
//! over servers: the steps touch several keys.

mod bandwidth;
mod chore;
mod claim;
mod cluster;
mod lease_calls;
mod leases;
mod link;
mod options;
mod orders;
mod probe;
mod refresh;
mod table;
mod tickets;
mod usage;
mod view;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use serde::Serialize;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};

pub use self::{
    bandwidth::{Direction, Meter, Share, Slice, piece},
    chore::Chore,
    claim::Holder,
    leases::{Certainty, Claim, Conflict, LeaseAge, LeaseRefused, Scope, WriteLease},
    link::{LinkError, RedisLink},
    options::{InvalidRedisUrl, InvalidWhenAway, RedisOptions, RedisUrl, WhenAway},
    orders::NodeOrders,
    probe::{ProbeError, probe},
    tickets::{InvalidTicketKey, TicketKey},
    usage::{Change, Counting, HomeUsage, RegistryAway, Standing, Step, Usage},
    view::RegistryView,
};
use self::{
    claim::LateClaim,
    cluster::{Cluster, Published},
    orders::OwnOrders,
    refresh::Work,
    table::Table,
    tickets::OwnKeys,
};
use crate::{
    health::Dependency,
    node::{Failing, NodeCommand, NodeName, NodeRecord, NodeState, PortRange},
    process::logging::chain,
    session::{SessionId, SessionLimits, SessionRecord},
    sync::lock,
};

/// A node's handle on the registry. Cheap to clone; when the last clone is dropped, the node
/// stops refreshing what it has in Redis, as if it had died (see [`Registry::leave`]).
#[derive(Clone)]
pub struct Registry {
    core: Arc<Core>,
    /// The task that refreshes the node in Redis; it ends with the last handle.
    _refresh: Arc<JoinSet<()>>,
}

/// Events that wait for the node to take them.
const EVENTS: usize = 64;

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

/// Why a node may not join its cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    #[error(
        "the passive ports {} of node {} overlap the ports {} of node {}, which is live",
        ours.1, ours.0, theirs.1, theirs.0
    )]
    SliceTaken { ours: (NodeName, PortRange), theirs: (NodeName, PortRange) },
    #[error(
        "the node name {name} is in use by {holder}, which renews its lease in Redis: give this node \
         another node_name, or end that process (a process that crashed frees the name after {lease:?}, \
         the node_lease)"
    )]
    NameTaken { name: NodeName, holder: Holder, lease: Duration },
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
    /// Another process holds this node's name, because this one could not renew its lease for a
    /// `node_lease`, or started while Redis was away: this one must end.
    NameTaken(Holder),
}

/// What a node last learned of changes to accounts. It asks which of its sessions may stay whenever this is
/// another value than the one for which it asked before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Revision {
    /// The number in Redis: see [`Keys::revision`](crate::keys::Keys::revision).
    number: u64,
    /// How often the node has joined. Changes that it was not told of may have happened before each time.
    joins: u64,
}

impl Registry {
    /// The registry of a single node, which needs no Redis.
    pub fn local(node: NodeRecord) -> Self {
        Self { core: Arc::new(Core::new(node, None)), _refresh: Arc::default() }
    }

    /// Joins the cluster whose registry is in Redis.
    ///
    /// A Redis that cannot be reached is no error: the node starts, and joins when Redis comes.
    ///
    /// `place` identifies what only one living process can have: this host since it booted, its
    /// network, and the ports there, which the caller holds. So a process that Redis names at the same
    /// place is dead, and this one takes over its name at once. If another process at another place
    /// holds the name, this waits for a `lease`: the process may have crashed.
    ///
    /// # Errors
    /// Another process renews the lease of this node's name, or a live node of another name owns ports
    /// of this node's slice.
    pub async fn join(
        node: NodeRecord,
        place: Option<String>,
        options: RedisOptions,
    ) -> Result<(Self, mpsc::Receiver<Event>), JoinError> {
        let (work, to_do) = mpsc::unbounded_channel();
        let (events, hear) = mpsc::channel(EVENTS);
        let cluster = Arc::new(Cluster::new(&node, place, &options, work));
        let core = Arc::new(Core::new(node, Some(Arc::clone(&cluster))));
        let mut claim = LateClaim::default();
        let joined = match claim::at_start(&core, &cluster).await {
            Ok(Published::Taken(name, slice, _)) => {
                return Err(JoinError::SliceTaken { ours: cluster.ours(), theirs: (name, slice) });
            }
            Ok(Published::Named(holder, _)) => {
                let (name, lease) = (core.node.name.clone(), cluster.lease);
                return Err(JoinError::NameTaken { name, holder, lease });
            }
            // The sessions of a process that had this name before must not count any more.
            Ok(Published::Joined(_) | Published::Free) => {
                claim.done();
                refresh::sweep(&core, &cluster).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = joined {
            log::warn!(
                node = core.node.name.as_str(), error = chain(&error).as_str();
                "starting without the registry; joining it when it can be reached"
            );
        }
        let mut task = JoinSet::new();
        task.spawn(refresh::run(Arc::clone(&core), cluster, to_do, events, claim));
        Ok((Self { core, _refresh: Arc::new(task) }, hear))
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
        self.core.table().open(record.clone(), limits)?;
        // From here on the session is taken out again whatever happens, cancellation included.
        let entry = SessionEntry { core: Arc::clone(&self.core), id };
        if let Some(cluster) = &self.core.cluster {
            match cluster.put_session(&record, limits).await {
                Ok(Ok(())) => {}
                Ok(Err(refusal)) => {
                    // Redis has not entered it, so has nothing to forget.
                    self.core.table().close(id);
                    return Err(refusal);
                }
                Err(error) if cluster.may_go_on(&error) => {
                    self.core.table().admit(id);
                    // After that: whoever hears of the doubt finds the session among those to enter.
                    cluster.doubt();
                    return Ok(entry);
                }
                Err(_) => return Err(Refusal::RegistryAway),
            }
        }
        self.core.table().admit(id);
        Ok(entry)
    }

    /// All sessions of the cluster; this node's own ones while Redis is away.
    pub async fn sessions(&self) -> Vec<SessionRecord> {
        let mut sessions = self.core.table().sessions();
        if let Some(cluster) = &self.core.cluster {
            let others = cluster.view.sessions().await.unwrap_or_default();
            sessions.extend(others.into_iter().filter(|other| other.node != self.core.node.name));
        }
        sessions
    }

    /// The sessions of one user in the cluster; those on this node while Redis is away.
    pub async fn sessions_of(&self, user: &str) -> Vec<SessionRecord> {
        let mut sessions = self.core.table().sessions();
        sessions.retain(|session| session.user == user);
        if let Some(cluster) = &self.core.cluster {
            let others = cluster.view.sessions_of(user).await.unwrap_or_default();
            sessions.extend(others.into_iter().filter(|other| other.node != self.core.node.name));
        }
        sessions
    }

    /// The keys that seal TLS session tickets, the newest first: the cluster's, with a new one if
    /// the newest is older than `rotation`. While Redis is away those known before go on.
    pub async fn ticket_keys(&self, rotation: Duration) -> Vec<TicketKey> {
        if let Some(cluster) = &self.core.cluster {
            match cluster.ticket_keys(rotation).await {
                Ok(keys) if !keys.is_empty() => {
                    self.core.ticket_keys().replace(&keys);
                    return keys;
                }
                Ok(_) => {}
                Err(error) => {
                    log::warn!(node = self.core.node.name.as_str(); "no ticket keys from Redis: {error}");
                }
            }
        }
        self.core.ticket_keys().rotated(rotation)
    }

    /// The revision of the accounts as of the last refresh, and its changes. Never changes where there is only
    /// this node.
    pub fn revision(&self) -> watch::Receiver<Revision> {
        self.core.revision.subscribe()
    }

    /// Tells the cluster that this node's life has moved on.
    pub fn set_state(&self, state: NodeState) {
        *lock(&self.core.state) = state;
        self.core.work(|_| Work::Refresh);
    }

    /// Tells the cluster which of this node's dependencies fail.
    pub fn set_failing(&self, failing: Vec<Failing>) {
        let before = {
            let mut now = lock(&self.core.failing);
            std::mem::replace(&mut *now, failing.clone())
        };
        // Errors that differ in their text alone can wait for the next refresh.
        let kinds = |all: &[Failing]| -> Vec<_> {
            all.iter().map(|one| (one.dependency.clone(), one.since, one.required)).collect()
        };
        if kinds(&before) != kinds(&failing) {
            self.core.work(|_| Work::Refresh);
        }
    }

    /// How Redis is; `None` where there is only this node.
    pub fn dependency(&self) -> Option<Dependency> {
        self.core.cluster.as_ref().map(|cluster| cluster.link().dependency())
    }

    /// The number of this node's transfers in progress, which the node counts and the registry
    /// publishes.
    pub fn transfers(&self) -> &AtomicU32 {
        &self.core.transfers
    }

    /// Takes everything of this node out of Redis. For the clean end of a node, after its last
    /// session; returns when it is done, or Redis is away.
    pub async fn leave(&self) {
        let (done, wait) = oneshot::channel();
        self.core.work(|_| Work::Leave(done));
        // An error means that the task has ended: the node has left already.
        let _ = wait.await;
    }

    /// Whether the registry holds for the whole cluster at this time: Redis answers, or there is
    /// only this node.
    pub fn is_connected(&self) -> bool {
        self.core.cluster.as_ref().is_none_or(|cluster| cluster.link().is_connected())
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
        let mut table = self.core.table();
        if let Some(record) = table.close(self.id) {
            // While the table is locked: whoever counts both finds a session in it, or its end here.
            self.core.work(|_| Work::EndSession(record));
        }
    }
}

/// What all handles, entries and leases of one node share.
struct Core {
    node: NodeRecord,
    state: Mutex<NodeState>,
    failing: Mutex<Vec<Failing>>,
    transfers: AtomicU32,
    table: Mutex<Table>,
    ticket_keys: Mutex<OwnKeys>,
    homes: Mutex<HashMap<Box<[u8]>, Arc<usage::Home>>>,
    shares: bandwidth::Shares,
    revision: watch::Sender<Revision>,
    orders: Mutex<OwnOrders>,
    cluster: Option<Arc<Cluster>>,
}

impl Core {
    fn new(node: NodeRecord, cluster: Option<Arc<Cluster>>) -> Self {
        Self {
            state: Mutex::new(node.state),
            failing: Mutex::default(),
            transfers: AtomicU32::new(node.transfers),
            table: Mutex::default(),
            ticket_keys: Mutex::default(),
            homes: Mutex::default(),
            shares: Mutex::default(),
            revision: watch::Sender::default(),
            orders: Mutex::default(),
            node,
            cluster,
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    fn orders(&self) -> MutexGuard<'_, OwnOrders> {
        lock(&self.orders)
    }

    fn ticket_keys(&self) -> MutexGuard<'_, OwnKeys> {
        lock(&self.ticket_keys)
    }

    /// The node as it is now.
    fn record(&self) -> NodeRecord {
        NodeRecord {
            state: *lock(&self.state),
            sessions: u32::try_from(self.table().session_count()).unwrap_or(u32::MAX),
            transfers: self.transfers.load(Ordering::Relaxed),
            failing: lock(&self.failing).clone(),
            ..self.node.clone()
        }
    }

    /// Gives work to the task that keeps the node's place in Redis, if there is one. The queue
    /// holds no more than what has ended since the task's last step, which takes a bounded time.
    fn work(&self, work: impl FnOnce(&Cluster) -> Work) {
        if let Some(cluster) = &self.cluster {
            // An error means that the node has left: Redis holds nothing of it.
            let _ = cluster.work.send(work(cluster));
        }
    }
}

/// A record as it stands in Redis.
fn json(record: &impl Serialize) -> String {
    // `to_string` fails for maps whose keys are no text and for failing `Serialize`s: the records
    // are plain structs and enums of text and numbers.
    serde_json::to_string(record).expect("a record is plain data")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> Registry {
        Registry::local(NodeRecord::new("a".parse().unwrap(), 1, "50000-50010".parse().unwrap()))
    }

    #[tokio::test]
    async fn a_session_counts_until_its_entry_is_dropped() {
        let registry = registry();
        let limits = SessionLimits { per_user: Some(1), ..SessionLimits::default() };
        let record = |user: &str| SessionRecord {
            id: SessionId::random(),
            node: "a".parse().unwrap(),
            user: user.to_owned(),
            address: [192, 0, 2, 1].into(),
            since: 0,
        };
        let ann = record("ann");
        let entry = registry.open_session(ann.clone(), limits).await.unwrap();
        let refused = registry.open_session(record("ann"), limits).await.err();
        assert_eq!(refused, Some(Refusal::UserLimit(1)));
        assert_eq!(registry.sessions().await, [ann]);
        assert_eq!(registry.core.record().sessions, 1);
        drop(entry);
        let _ann = registry.open_session(record("ann"), limits).await.unwrap();
        let _ben = registry.open_session(record("ben"), limits).await.unwrap();
        assert!(registry.is_connected());
    }

    #[tokio::test]
    async fn a_path_is_taken_until_its_lease_is_dropped() {
        let registry = registry();
        let holder = SessionId::random();
        let lease = registry.lease_write(b"/a", holder).await.unwrap();
        let refused = registry.lease_write(b"/a", SessionId::random()).await.err();
        let conflict = Conflict::Same;
        assert_eq!(refused, Some(LeaseRefused::Busy { holder: Some(holder), conflict }));
        assert!(lease.is_held().await && lease.is_certain() && !lease.is_expired());
        let _other = registry.lease_write(b"/b", SessionId::random()).await.unwrap();
        drop(lease);
        let _again = registry.lease_write(b"/a", SessionId::random()).await.unwrap();
        registry.leave().await;
    }
}
