//! The registry of sessions, nodes and write leases: of a single node, or shared by a cluster through Redis.
//!
//! A node keeps its own sessions and leases in a table in memory. For a single node this table is the whole
//! registry. A node of a cluster takes each step first in its table and then, atomically, in Redis. Redis
//! therefore never has the only copy of anything: after Redis was away or lost its data, the nodes enter
//! their sessions and leases again.
//!
//! A node renews its own entry in Redis, and its sessions count as long as this entry exists. So an idle
//! session costs no request. The node enters all its sessions again only if the number in Redis differs
//! from its own.
//!
//! Redis is one server, or the master that sentinels name. The Lua scripts access several keys in one step.
//! In a Redis Cluster these must therefore be in one slot, which a prefix with a hash tag makes sure of.

mod bandwidth;
mod bandwidth_meter;
mod block_holder;
mod blocks;
mod cluster;
mod cluster_task;
mod commands;
mod confirm;
mod connect;
mod core;
mod events;
mod events_state;
mod home;
mod lease_calls;
mod lease_state;
mod leases;
mod link;
mod link_error;
mod live;
mod map_reader;
mod name_claim;
mod options;
mod orders;
mod port_map;
mod probe;
mod publish;
mod refresh;
mod script;
mod sentinel;
mod servers;
mod shared_keys;
mod table;
mod usage;
mod view;
mod work;
mod writes;

use std::{
    sync::{Arc, atomic::AtomicU32},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};

pub use self::{
    bandwidth::{BandwidthGrant, BandwidthShare},
    bandwidth_meter::{BandwidthDirection, BandwidthMeter, piece_size},
    block_holder::{BlockChanges, BlockHolder, BlockReply, BlockStepRequest, BlockTimes},
    cluster_task::ClusterTask,
    confirm::{Confirmation, ConfirmedLink},
    connect::{RedisTls, RedisTlsError, RedisTlsFiles},
    core::Revision,
    events::{ClusterEvent, JoinError, NameHolder},
    home::{Usage, UsageChange, UsageStatus, UsageStep},
    lease_state::{LeaseConflict, LeasePath, LeaseScope},
    leases::{LeaseAge, LeaseCertainty, LeaseRefused, WriteLease},
    link::RedisLink,
    link_error::LinkError,
    options::{InvalidRedisUrl, InvalidWhenAway, RedisOptions, RedisUrl, WhenAway},
    orders::NodeOrders,
    port_map::{BlockOwner, MapContent, MapNode, PortMap},
    probe::{ProbeError, probe},
    script::EssentialScript,
    servers::RedisServers,
    shared_keys::{InvalidSharedKey, SharedKey},
    table::SessionRefused,
    usage::{HomeCount, HomeUsage, RegistryAway},
    view::RegistryView,
};
use self::{
    cluster::Cluster, core::Core, events::EVENT_CAPACITY, name_claim::LateClaim, publish::PublishOutcome,
    work::RegistryWork,
};
use crate::{
    health::Dependency,
    node::{FailingDependency, NodeRecord, NodeState, PortRange},
    passive::{OwnBlock, PassiveAssignment, PassiveLayout},
    process::logging::chain,
    session::{SessionId, SessionLimits, SessionRecord},
    sync::lock,
};

/// A node's handle on the registry. Cheap to clone. When the last clone is dropped, the node stops renewing
/// its entries in Redis, as if it had crashed; [`Registry::leave`] removes them.
#[derive(Clone)]
pub struct Registry {
    core: Arc<Core>,
    /// The refresh task. It ends with the last handle.
    _refresh: Arc<JoinSet<()>>,
}

impl Registry {
    /// The registry of a single node, which needs no Redis.
    pub fn local(node: NodeRecord) -> Self {
        let assignment = PassiveAssignment::Slice(node.slice);
        let core = Core::new(node, assignment, PortMap::empty(), None);
        Self { core: Arc::new(core), _refresh: Arc::default() }
    }

    /// Joins the cluster whose registry is in Redis. If Redis is away, the node starts without it and joins
    /// when Redis is back.
    ///
    /// `place` identifies the host since its boot, the network namespace, and the listening addresses
    /// there, which the caller has already bound. Only one living process can have the same place. If Redis
    /// names another process at this place, that process is dead, and this one takes over its name at once.
    /// If a process at another place holds the name, this method waits for one `lease`, because that
    /// process may have crashed.
    ///
    /// # Errors
    /// Another process renews its lease of this node's name; a live node of another name has a slice with
    /// ports of this node's slice; or a live node leases blocks of another range or size.
    pub async fn join(
        node: NodeRecord,
        assignment: PassiveAssignment,
        place: Option<String>,
        options: RedisOptions,
    ) -> Result<(Self, mpsc::Receiver<ClusterEvent>), JoinError> {
        let (work_sender, work) = mpsc::unbounded_channel();
        let (event_sender, events) = mpsc::channel(EVENT_CAPACITY);
        let cluster = Arc::new(Cluster::new(&node, assignment, place, &options, work_sender));
        let port_map = cluster.port_map(options.relay_key_rotation);
        let core = Arc::new(Core::new(node, assignment, port_map, Some(Arc::clone(&cluster))));
        let mut claim = LateClaim::default();
        // The connection on which the node joined; no connection has the number 0.
        let mut connections = 0;
        let joined = match name_claim::at_start(&core, &cluster).await {
            Ok(PublishOutcome::SliceTaken(name, slice, _)) => {
                return Err(JoinError::SliceTaken { ours: cluster.ours(), theirs: (name, slice) });
            }
            Ok(PublishOutcome::LayoutDiffers(name, theirs, _)) => {
                let ours = match assignment {
                    PassiveAssignment::Leased(layout) => layout,
                    PassiveAssignment::Slice(ports) => PassiveLayout::new(ports, u16::MAX),
                };
                let ours = (core.node.name.clone(), ours);
                return Err(JoinError::LayoutDiffers { ours, theirs: (name, theirs) });
            }
            Ok(PublishOutcome::NameTaken(holder, _)) => {
                let (name, lease) = (core.node.name.clone(), cluster.lease);
                return Err(JoinError::NameTaken { name, holder, lease });
            }
            // Sessions of an earlier process with this name must not count any more.
            Ok(joined @ (PublishOutcome::Joined(_) | PublishOutcome::NameFree)) => {
                claim.mark_done();
                // Read now: if the first refresh counted as another join, the first logins would be checked
                // with authd a second time.
                if let PublishOutcome::Joined(joined) = joined {
                    core.revision.send_replace(Revision { number: joined.revision, joins: 1 });
                    connections = cluster.link().connections();
                }
                refresh::remove_unknown_sessions(&core, &cluster).await
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
        task.spawn(refresh::run(Arc::clone(&core), cluster, work, event_sender, claim, connections));
        Ok((Self { core, _refresh: Arc::new(task) }, events))
    }

    /// Registers a session after its login, unless a limit is reached. Dropping the entry removes the
    /// session.
    ///
    /// # Errors
    /// The limit that was reached; or Redis is away and the policy is [`WhenAway::Refuse`].
    pub async fn open_session(
        &self,
        record: SessionRecord,
        limits: SessionLimits,
    ) -> Result<SessionEntry, SessionRefused> {
        let id = record.id;
        self.core.table().open(record.clone(), limits)?;
        // From here on dropping `entry` removes the session, also if this future is cancelled.
        let entry = SessionEntry { core: Arc::clone(&self.core), id };
        if let Some(cluster) = &self.core.cluster {
            match cluster.put_session(&record, limits).await {
                Ok(Ok(())) => {}
                Ok(Err(refused)) => {
                    // Redis has not entered the session, so there is nothing to remove there.
                    self.core.table().close(id);
                    return Err(refused);
                }
                Err(error) if cluster.may_go_on(&error) => {
                    self.core.table().admit(id);
                    // In this order: the refresh that sees the doubt must find the session in the table.
                    cluster.set_doubt();
                    return Ok(entry);
                }
                Err(_) => return Err(SessionRefused::RegistryAway),
            }
        }
        self.core.table().admit(id);
        Ok(entry)
    }

    /// All sessions of the cluster; only this node's sessions while Redis is away.
    pub async fn sessions(&self) -> Vec<SessionRecord> {
        let mut sessions = self.core.table().sessions();
        if let Some(cluster) = &self.core.cluster {
            let others = cluster.view.sessions().await.unwrap_or_default();
            sessions.extend(others.into_iter().filter(|other| other.node != self.core.node.name));
        }
        sessions
    }

    /// The sessions of one user in the cluster; only those on this node while Redis is away.
    pub async fn sessions_of(&self, user: &str) -> Vec<SessionRecord> {
        let mut sessions = self.core.table().sessions();
        sessions.retain(|session| session.user == user);
        if let Some(cluster) = &self.core.cluster {
            let others = cluster.view.sessions_of(user).await.unwrap_or_default();
            sessions.extend(others.into_iter().filter(|other| other.node != self.core.node.name));
        }
        sessions
    }

    /// The keys that encrypt TLS session tickets, newest first. A new key is added if the newest is older
    /// than `rotation`. While Redis is away the node uses the keys that it read last.
    pub async fn ticket_keys(&self, rotation: Duration) -> Vec<SharedKey> {
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

    /// The passive ports that this node owns, and their changes.
    pub fn blocks(&self) -> watch::Receiver<Arc<[OwnBlock]>> {
        self.core.blocks.subscribe()
    }

    /// Hands a block over that the node has given up: no reservation is outstanding on it. Does nothing if
    /// the node has not given up the block, or has lost it.
    pub fn release_block(&self, ports: PortRange) {
        if let Some(cluster) = &self.core.cluster
            && cluster.release_block(&self.core, ports)
        {
            self.core.work(|_| RegistryWork::Refresh);
        }
    }

    /// Returns false if other nodes may own this node's ports by now, because it has not reached Redis for
    /// longer than `node_lease`, and the policy is [`WhenAway::Refuse`]. Then the node reserves no port.
    ///
    /// With [`WhenAway::Admit`] it is always true. A node that alone is cut off from Redis for longer than
    /// its lease and the rest of its blocks together may then reserve ports that another node has taken.
    /// Relays and other nodes no longer send it connections to these ports.
    pub fn may_reserve(&self) -> bool {
        self.core.cluster.as_ref().is_none_or(|cluster| cluster.may_reserve(&self.core))
    }

    /// The map of all nodes' passive ports.
    pub fn port_map(&self) -> PortMap {
        self.core.port_map.clone()
    }

    /// The revision of the accounts at the last refresh, and its changes. It never changes on a single node.
    pub fn revision(&self) -> watch::Receiver<Revision> {
        self.core.revision.subscribe()
    }

    /// Publishes that this node drains. `until`: the end at the latest, in seconds since the Unix epoch.
    pub fn set_draining(&self, until: u64) {
        *lock(&self.core.drain_until) = Some(until);
        *lock(&self.core.state) = NodeState::Draining;
        self.core.work(|_| RegistryWork::Refresh);
    }

    /// Publishes that this node does not drain any more.
    pub fn end_drain(&self) {
        *lock(&self.core.drain_until) = None;
        *lock(&self.core.state) = NodeState::Ready;
        self.core.work(|_| RegistryWork::Refresh);
    }

    /// Publishes the failing dependencies of this node.
    pub fn set_failing(&self, failing: Vec<FailingDependency>) {
        let before = {
            let mut now = lock(&self.core.failing);
            std::mem::replace(&mut *now, failing.clone())
        };
        // A change of error texts alone can wait for the next refresh.
        let without_texts = |all: &[FailingDependency]| -> Vec<_> {
            all.iter().map(|one| (one.dependency.clone(), one.since, one.required)).collect()
        };
        if without_texts(&before) != without_texts(&failing) {
            self.core.work(|_| RegistryWork::Refresh);
        }
    }

    /// The condition of Redis; `None` on a single node.
    pub fn dependency(&self) -> Option<Dependency> {
        self.core.cluster.as_ref().map(|cluster| cluster.link().dependency())
    }

    /// Whether Redis accepts writes; `None` on a single node, and until Redis was asked.
    pub fn writes(&self) -> Option<Dependency> {
        self.core.cluster.as_ref()?.link().writes()
    }

    /// The number of this node's transfers in progress. The node counts them, the registry publishes the
    /// number.
    pub fn transfers(&self) -> &AtomicU32 {
        &self.core.transfers
    }

    /// Removes all entries of this node from Redis. For a clean shutdown, after the last session has ended.
    /// Returns when the entries are removed or Redis is away.
    pub async fn leave(&self) {
        let (done, wait) = oneshot::channel();
        self.core.work(|_| RegistryWork::Leave(done));
        // An error means that the task has ended: the node has left already.
        let _ = wait.await;
    }

    /// The shared registry in Redis; `None` on a single node.
    pub fn view(&self) -> Option<RegistryView> {
        self.core.cluster.as_ref().map(|cluster| cluster.view.clone())
    }

    /// Returns true if limits and leases currently hold for the whole cluster: Redis answers, or there is
    /// only this node.
    pub fn is_connected(&self) -> bool {
        self.core.cluster.as_ref().is_none_or(|cluster| cluster.link().is_connected())
    }
}

/// A session in the registry. Dropping it removes the session.
#[must_use]
pub struct SessionEntry {
    core: Arc<Core>,
    id: SessionId,
}

impl Drop for SessionEntry {
    fn drop(&mut self) {
        let mut table = self.core.table();
        if let Some(record) = table.close(self.id) {
            // While the table is locked: the refresh, which counts the table and the queue, must find the
            // session in one of them.
            self.core.work(|_| RegistryWork::EndSession(record));
        }
    }
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
        assert_eq!(refused, Some(SessionRefused::UserLimit(1)));
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
        let conflict = LeaseConflict::Same;
        assert_eq!(refused, Some(LeaseRefused::Busy { holder: Some(holder), conflict }));
        assert!(lease.is_held().await && lease.is_certain() && !lease.is_expired());
        let _other = registry.lease_write(b"/b", SessionId::random()).await.unwrap();
        drop(lease);
        let _again = registry.lease_write(b"/a", SessionId::random()).await.unwrap();
        registry.leave().await;
    }
}
