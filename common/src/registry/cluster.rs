//! The entries of one node in Redis: its sessions, its ticket keys, and its end.

use std::{
    sync::{
        LazyLock, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redis::{Cmd, Pipeline, RedisWrite, Script, Value, cmd};
use tokio::sync::{RwLock, mpsc};
use zeroize::Zeroizing;

use super::{
    EssentialScript, LinkError, PortMap, RedisLink, RedisOptions, RegistryView, WhenAway,
    block_holder::{BlockHolder, BlockTimes},
    lease_calls::{LeaseCalls, LeaseRequest, RELEASE_WRITE},
    link::pipeline_with,
    map_reader::MapReader,
    orders::{ORDER_LIFE, Order, reason_field},
    shared_keys::{self, SHARED_KEYS, SharedKey},
    table::SessionRefused,
    view::{parse, to_json},
    work::RegistryWork,
};
use crate::{
    client_network::network_of,
    keys::Keys,
    node::{NodeName, NodeRecord, PortRange},
    passive::PassiveAssignment,
    process::logging::chain,
    session::{SessionId, SessionLimits, SessionRecord},
};

static PUT_SESSION: LazyLock<EssentialScript> =
    LazyLock::new(|| EssentialScript::new(include_str!("lua/put_session.lua")));
static LEAVE_NODE: LazyLock<EssentialScript> =
    LazyLock::new(|| EssentialScript::new(include_str!("lua/leave_node.lua")));

/// Lower bound: with a shorter lease, one slow refresh would end it.
const SHORTEST_LEASE: Duration = Duration::from_millis(100);

/// Upper bound: with a longer lease, a dead node would effectively never expire, and Lua integers would
/// overflow.
const LONGEST_LEASE: Duration = Duration::from_secs(24 * 3600);

const _: () = assert!(SHORTEST_LEASE.as_millis() < LONGEST_LEASE.as_millis());

/// Number of refreshes in which every session is renewed in Redis once, an equal part in each refresh. A
/// round enters again what Redis lost unnoticed, and removes what Redis should not have.
pub(super) const ROUND: u32 = 120;

/// Number of leases for which Redis keeps an entry that is not renewed: a dead node's sessions, and
/// sessions whose end Redis never heard of. A refresh comes every third of a lease, so this is three
/// rounds.
const RETENTION_LEASES: u32 = ROUND;

/// The entries of one node in Redis.
pub(super) struct Cluster {
    pub view: RegistryView,
    pub lease: Duration,
    pub work: mpsc::UnboundedSender<RegistryWork>,
    /// Read-locked while a lease is released, write-locked while the refresh renews all leases. Otherwise
    /// the refresh could enter a lease again that was just released.
    pub keeping: RwLock<()>,
    pub leases: LeaseCalls,
    name: NodeName,
    incarnation: u64,
    /// This process as session entries in Redis name it: `NAME INCARNATION`.
    process: String,
    pub assignment: PassiveAssignment,
    /// The leased blocks; without blocks if the node has a slice.
    pub blocks: Mutex<BlockHolder>,
    /// True if the log says that the node gets no blocks.
    pub lacks_blocks: AtomicBool,
    /// See [`Registry::join`](super::Registry::join). Empty if it is not known.
    place: String,
    when_away: WhenAway,
    /// True if the log says that this node works without Redis.
    degraded: AtomicBool,
    /// True if Redis may have other sessions of this node than the table.
    in_doubt: AtomicBool,
}

impl Cluster {
    pub(super) fn new(
        node: &NodeRecord,
        assignment: PassiveAssignment,
        place: Option<String>,
        options: &RedisOptions,
        work: mpsc::UnboundedSender<RegistryWork>,
    ) -> Self {
        let view = RegistryView::new(options);
        let lease = options.lease.clamp(SHORTEST_LEASE, LONGEST_LEASE);
        Self {
            lease,
            work,
            keeping: RwLock::default(),
            leases: LeaseCalls::new(node, place.as_deref(), &view, lease, lease * RETENTION_LEASES),
            view,
            name: node.name.clone(),
            incarnation: node.incarnation,
            process: format!("{} {}", node.name, node.incarnation),
            assignment,
            blocks: Mutex::new(BlockHolder::new(
                BlockTimes { lease, reservation: options.data_connect_timeout },
                options.when_away == WhenAway::Refuse,
            )),
            place: place.unwrap_or_default(),
            lacks_blocks: AtomicBool::new(false),
            when_away: options.when_away,
            degraded: AtomicBool::new(false),
            in_doubt: AtomicBool::new(false),
        }
    }

    pub(super) fn link(&self) -> &RedisLink {
        self.view.link()
    }

    pub(super) fn keys(&self) -> &Keys {
        self.view.keys()
    }

    /// This node's name and slice; with leased blocks the range.
    pub(super) fn ours(&self) -> (NodeName, PortRange) {
        let ports = match self.assignment {
            PassiveAssignment::Slice(ports) => ports,
            PassiveAssignment::Leased(layout) => layout.range(),
        };
        (self.name.clone(), ports)
    }

    /// An empty map of the passive ports that this node reads.
    pub(super) fn port_map(&self, key_rotation: Duration) -> PortMap {
        PortMap::new(Some(MapReader::new(self.view.clone(), key_rotation, self.lease)))
    }

    /// This node's name and the incarnation of this process.
    pub(super) fn process(&self) -> (&NodeName, u64) {
        (&self.name, self.incarnation)
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// Enters a session. Redis compares the limits in the same step.
    pub(super) async fn put_session(
        &self,
        record: &SessionRecord,
        limits: SessionLimits,
    ) -> Result<Result<(), SessionRefused>, LinkError> {
        let script = PUT_SESSION.on(self.link());
        Ok(match self.link().call(script, &self.put(script, record, limits)).await? {
            1 => Err(SessionRefused::UserLimit(limits.per_user.unwrap_or(0))),
            2 => Err(SessionRefused::AddressLimit(limits.per_address.unwrap_or(0))),
            3 => Err(SessionRefused::UserAddressLimit(limits.per_user_and_address.unwrap_or(0))),
            _ => Ok(()),
        })
    }

    /// Renews sessions, or enters them again after Redis lost them. Limits are not compared, because these
    /// sessions were admitted before.
    pub(super) async fn renew_sessions(&self, records: &[SessionRecord]) -> Result<(), LinkError> {
        let script = PUT_SESSION.on(self.link());
        let mut pipe = pipeline_with(script);
        for record in records {
            pipe.add_command(self.put(script, record, SessionLimits::default())).ignore();
        }
        self.link().pipe(&pipe).await
    }

    /// The call of `put_session.lua`.
    fn put(&self, script: &Script, record: &SessionRecord, limits: SessionLimits) -> Cmd {
        // Enough for a call with names of usual length.
        let mut call = Cmd::with_capacity(15, 640);
        call.arg("EVALSHA").arg(script.get_hash()).arg(5);
        call.arg(&self.counting_keys(record)).arg(self.keys().node_sessions(&self.name));
        call.arg(self.keys().node(&self.name));
        call.write_arg_fmt(record.id);
        call.arg(&self.process).arg(self.retention_ms()).arg(to_json(record));
        for limit in [limits.per_user, limits.per_address, limits.per_user_and_address] {
            call.arg(limit.map_or(-1, i64::from));
        }
        call
    }

    /// Removes sessions and leases.
    pub(super) async fn remove(
        &self,
        sessions: &[SessionRecord],
        leases: &[LeaseRequest],
    ) -> Result<(), LinkError> {
        if sessions.is_empty() && leases.is_empty() {
            return Ok(()); // Redis refuses an empty pipeline.
        }
        let release = RELEASE_WRITE.on(self.link());
        let mut pipe = if leases.is_empty() { Pipeline::new() } else { pipeline_with(release) };
        let of_node = self.keys().node_sessions(&self.name);
        for record in sessions {
            for key in self.counting_keys(record) {
                pipe.add_command(self.zrem(&key, record.id)).ignore();
            }
            let mut hdel = cmd("HDEL");
            hdel.arg(&of_node).write_arg_fmt(record.id);
            pipe.add_command(hdel).ignore();
        }
        for lease in leases {
            self.leases.add_release(&mut pipe, release, lease);
        }
        self.link().pipe(&pipe).await
    }

    /// The cluster's ticket keys, newest first. Redis adds a key if the newest is older than `rotation`.
    pub(super) async fn ticket_keys(&self, rotation: Duration) -> Result<Vec<SharedKey>, LinkError> {
        let script = SHARED_KEYS.on(self.link());
        let call = shared_keys::call(script, &self.keys().ticket_keys(), rotation, &[]);
        let keys: Vec<String> = self.link().call(script, &call).await?;
        let keys: Vec<Zeroizing<String>> = keys.into_iter().map(Zeroizing::new).collect();
        // A malformed key is skipped; the script drops it when newer keys push it out of the list.
        Ok(keys.iter().filter_map(|key| key.parse().ok()).collect())
    }

    /// The ids of the sessions that Redis has for this node.
    pub(super) async fn session_ids(&self) -> Result<Vec<Vec<u8>>, LinkError> {
        self.link().query(cmd("HKEYS").arg(self.keys().node_sessions(&self.name))).await
    }

    /// Removes sessions that Redis has for this node but the node does not have: those of an earlier
    /// process, and those whose end Redis never heard of. (The counting entries of an earlier process name
    /// that process: they do not count any more, and expire.)
    pub(super) async fn remove_sessions_by_id(&self, ids: &[Vec<u8>]) -> Result<(), LinkError> {
        let key = self.keys().node_sessions(&self.name);
        let records: Vec<Option<Vec<u8>>> = self.link().query(cmd("HMGET").arg(&key).arg(ids)).await?;
        let records = ids.iter().zip(&records).filter_map(|(id, record)| {
            let record: SessionRecord = parse(record.as_deref()?, &key)?;
            (record.id.to_string().as_bytes() == id).then_some(record)
        });
        self.remove(&records.collect::<Vec<_>>(), &[]).await?;
        // Also the ids whose record is malformed or has another id.
        self.link().query(cmd("HDEL").arg(&key).arg(ids)).await
    }

    /// Removes the node's own entry.
    pub(super) async fn leave(&self) -> Result<(), LinkError> {
        let mut call = LEAVE_NODE.on(self.link()).prepare_invoke();
        call.key(self.keys().nodes())
            .key(self.keys().node(&self.name))
            .key(self.keys().node_sessions(&self.name))
            .key(self.keys().node_commands(&self.name))
            .key(self.keys().node_orders(&self.name))
            .key(self.keys().blocks())
            .arg(self.name.as_str())
            .arg(self.incarnation)
            .arg(ORDER_LIFE);
        self.link().script::<Value>(&call).await.map(drop)
    }

    /// Removes these orders, which are carried out.
    pub(super) async fn orders_done(&self, done: &[Order]) -> Result<(), LinkError> {
        let mut hdel = cmd("HDEL");
        hdel.arg(self.keys().node_orders(&self.name));
        for order in done {
            hdel.arg(order.to_string());
            if let Order::End(session) = order {
                hdel.arg(reason_field(*session));
            }
        }
        self.link().query(&hdel).await
    }

    /// The key of the list of this node's commands.
    pub(super) fn commands_key(&self) -> String {
        self.keys().node_commands(&self.name)
    }

    /// Notes that Redis answered.
    pub(super) fn note_answer(&self) {
        if self.degraded.swap(false, Ordering::Relaxed) {
            log::info!(node = self.name.as_str(); "limits and leases hold for the cluster again");
        }
    }

    /// Notes that a login or an upload got no answer from Redis. Returns true if the policy lets it go on.
    pub(super) fn may_go_on(&self, error: &LinkError) -> bool {
        metrics::counter!("ftp_registry_degraded_total").increment(1);
        let admit = self.when_away == WhenAway::Admit;
        if !self.degraded.swap(true, Ordering::Relaxed) {
            let message = if admit {
                "without Redis, limits and leases hold on this node only"
            } else {
                "without Redis, new sessions and uploads are refused"
            };
            log::warn!(node = self.name.as_str(), error = chain(error).as_str(); "{message}");
            // The refresh retries until Redis is back, and then enters what began without Redis.
            let _ = self.work.send(RegistryWork::Refresh);
        }
        admit
    }

    /// Notes that Redis may have other sessions of this node than the table. The next refresh corrects this.
    pub(super) fn set_doubt(&self) {
        self.in_doubt.store(true, Ordering::Release);
    }

    /// Returns true if there was a doubt since the last call.
    pub(super) fn take_doubt(&self) -> bool {
        self.in_doubt.swap(false, Ordering::Acquire)
    }

    /// The keys that count a session, in the order of [`SessionLimits`].
    fn counting_keys(&self, record: &SessionRecord) -> [String; 3] {
        let SessionRecord { user, address, .. } = record;
        let network = network_of(*address);
        [
            self.keys().user_sessions(user),
            self.keys().address_sessions(network),
            self.keys().user_address_sessions(user, network),
        ]
    }

    fn zrem(&self, key: &str, id: SessionId) -> Cmd {
        let mut zrem = cmd("ZREM");
        zrem.arg(key).write_arg_fmt(format_args!("{id} {}", self.process));
        zrem
    }

    /// Duration of a lease in ms.
    pub(super) fn lease_ms(&self) -> u64 {
        u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX)
    }

    /// Time for which Redis keeps entries that no node renews, in ms.
    pub(super) fn retention_ms(&self) -> u64 {
        self.lease_ms().saturating_mul(u64::from(RETENTION_LEASES))
    }
}
