//! What one node keeps in Redis, and each step it takes there.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redis::{Cmd, ErrorKind, Pipeline, RedisError, RedisWrite, Script, Value, cmd};
use tokio::sync::{RwLock, mpsc};
use zeroize::Zeroizing;

use super::{
    LinkError, NameHolder, RedisLink, RedisOptions, RegistryView, SessionRefused, WhenAway,
    lease_calls::{LeaseCalls, LeaseRequest, RELEASE_WRITE},
    orders::{ORDER_LIFE, Order},
    refresh::{ROUND, RegistryWork},
    table::LeaseGrant,
    tickets::{KEPT, TicketKey},
    view::parse,
};
use crate::{
    client_network::network_of,
    keys::Keys,
    node::{NodeName, NodeRecord, PortRange},
    process::logging::chain,
    session::{SessionId, SessionLimits, SessionRecord},
};

static PUT_SESSION: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/put_session.lua")));
static PUBLISH_NODE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/publish_node.lua")));
static LEAVE_NODE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/leave_node.lua")));
static TICKET_KEYS: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/ticket_keys.lua")));

/// A lease has to outlast a refresh or two.
const SHORTEST_LEASE: Duration = Duration::from_millis(100);

/// Beyond this a dead node would never be rid of, and Redis's arithmetic has bounds too.
const LONGEST_LEASE: Duration = Duration::from_secs(24 * 3600);

/// Redis keeps for so many leases what nobody renews: what is left of sessions whose node died, or whose
/// end it was not told. That is three rounds of renewing all sessions, a third of a lease a step.
const KEPT_FOR: u32 = ROUND;

/// What came of publishing a node.
pub(super) enum PublishOutcome {
    Joined(JoinedNode),
    /// This live node owns some of our ports.
    Taken(NodeName, PortRange, NodeInRedis),
    /// Another process holds the node's name, and for this long if it does not renew its lease.
    Named(NameHolder, Duration),
    /// No other process holds the name.
    Free,
}

/// Why a node is published.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum PublishReason {
    /// The process has just started. A process before it at the same place is dead.
    Start,
    /// The same, and the process serves already, because Redis was away when it started.
    Late,
    /// The process has joined, and renews its lease.
    Keep,
    /// Only says whether another process holds the name.
    Look,
}

/// What Redis knew of a node when it was published.
#[derive(Clone, Copy)]
pub(super) struct NodeInRedis {
    /// How many sessions.
    pub sessions: usize,
    /// Whether the node counted as alive.
    pub alive: bool,
}

/// What a node that has joined is told beside that.
pub(super) struct JoinedNode {
    pub known: NodeInRedis,
    /// Of the accounts.
    pub revision: u64,
    /// What this process is to do.
    pub orders: Vec<Order>,
}

/// A node's place in Redis.
pub(super) struct Cluster {
    pub view: RegistryView,
    pub lease: Duration,
    pub work: mpsc::UnboundedSender<RegistryWork>,
    /// Read-locked while a lease is given back, write-locked while the refresh keeps all leases; otherwise the
    /// refresh could bring back a lease that was just given back.
    pub keeping: RwLock<()>,
    name: NodeName,
    incarnation: u64,
    /// This process, as sessions name it in Redis.
    process: String,
    slice: PortRange,
    /// Empty if it is not known.
    place: String,
    pub(super) leases: LeaseCalls,
    when_away: WhenAway,
    /// Whether the log knows that this node is on its own.
    degraded: AtomicBool,
    /// Whether Redis may have other sessions of this node than the table.
    in_doubt: AtomicBool,
}

impl Cluster {
    pub fn new(
        node: &NodeRecord,
        place: Option<String>,
        options: &RedisOptions,
        work: mpsc::UnboundedSender<RegistryWork>,
    ) -> Self {
        Self {
            view: RegistryView::new(options),
            lease: options.lease.clamp(SHORTEST_LEASE, LONGEST_LEASE),
            work,
            keeping: RwLock::default(),
            name: node.name.clone(),
            incarnation: node.incarnation,
            process: format!("{} {}", node.name, node.incarnation),
            slice: node.slice,
            leases: LeaseCalls::new(node, place.as_deref()),
            place: place.unwrap_or_default(),
            when_away: options.when_away,
            degraded: AtomicBool::new(false),
            in_doubt: AtomicBool::new(false),
        }
    }

    pub fn link(&self) -> &RedisLink {
        self.view.link()
    }

    pub fn keys(&self) -> &Keys {
        self.view.keys()
    }

    /// This node and its ports, as conflicts name them.
    pub fn ours(&self) -> (NodeName, PortRange) {
        (self.name.clone(), self.slice)
    }

    /// This process, among all that have or had its name.
    pub fn process(&self) -> (&NodeName, u64) {
        (&self.name, self.incarnation)
    }

    /// See [`LeaseCalls::token`].
    pub fn token(&self, grant: LeaseGrant) -> String {
        self.leases.token(grant)
    }

    /// Enters or refreshes the node.
    pub async fn publish(
        &self,
        record: &NodeRecord,
        why: PublishReason,
    ) -> Result<PublishOutcome, LinkError> {
        let mut call = PUBLISH_NODE.prepare_invoke();
        call.key(self.keys().nodes())
            .key(self.keys().node(&self.name))
            .key(self.keys().node_commands(&self.name))
            .key(self.keys().node_sessions(&self.name))
            .key(self.keys().revision())
            .key(self.keys().node_orders(&self.name))
            .arg(self.name.as_str())
            .arg(self.incarnation)
            .arg(&self.place)
            .arg(match why {
                PublishReason::Start => "start",
                PublishReason::Late => "late",
                PublishReason::Keep => "keep",
                PublishReason::Look => "look",
            })
            .arg(self.slice.from())
            .arg(self.slice.to())
            .arg(super::json(record))
            .arg(self.lease_ms())
            .arg(self.kept_ms());
        let reply: Vec<Vec<u8>> = self.link().script(&call).await?;
        let reply: Vec<_> = reply.iter().map(|field| String::from_utf8_lossy(field)).collect();
        let fields: Vec<&str> = reply.iter().map(|field| &**field).collect();
        let published = match fields[..] {
            ["joined", sessions, alive, revision, ref orders @ ..] => NodeInRedis::parse(sessions, alive)
                .map(|known| {
                    PublishOutcome::Joined(JoinedNode {
                        known,
                        revision: revision.parse().unwrap_or(0),
                        orders: orders.iter().filter_map(|order| order.parse().ok()).collect(),
                    })
                }),
            ["named", record, left] => {
                let holder = NameHolder(serde_json::from_str(record).ok().map(Box::new));
                left.parse().ok().map(|left| PublishOutcome::Named(holder, Duration::from_millis(left)))
            }
            ["free"] => Some(PublishOutcome::Free),
            ["taken", sessions, alive, name, from, to] => {
                let known = NodeInRedis::parse(sessions, alive);
                taken(name, from, to)
                    .zip(known)
                    .map(|((name, slice), known)| PublishOutcome::Taken(name, slice, known))
            }
            _ => None,
        };
        let unexpected = || RedisError::from((ErrorKind::UnexpectedReturnType, "publish_node.lua"));
        published.ok_or_else(|| LinkError::Reply(unexpected()))
    }

    /// Enters a session, in one step with comparing the limits.
    pub async fn put_session(
        &self,
        record: &SessionRecord,
        limits: SessionLimits,
    ) -> Result<Result<(), SessionRefused>, LinkError> {
        Ok(match self.link().call(&PUT_SESSION, &self.put(record, limits)).await? {
            1 => Err(SessionRefused::UserLimit(limits.per_user.unwrap_or(0))),
            2 => Err(SessionRefused::AddressLimit(limits.per_address.unwrap_or(0))),
            3 => Err(SessionRefused::UserAddressLimit(limits.per_user_and_address.unwrap_or(0))),
            _ => Ok(()),
        })
    }

    /// Renews sessions, or enters them again after Redis lost them. Limits do not matter: these
    /// sessions were admitted.
    pub async fn renew_sessions(&self, records: &[SessionRecord]) -> Result<(), LinkError> {
        let mut pipe = with_script(&PUT_SESSION);
        for record in records {
            pipe.add_command(self.put(record, SessionLimits::default())).ignore();
        }
        self.link().pipe(&pipe).await
    }

    /// The call of `put_session.lua`.
    fn put(&self, record: &SessionRecord, limits: SessionLimits) -> Cmd {
        // As much as a call needs unless names are long.
        let mut call = Cmd::with_capacity(15, 640);
        call.arg("EVALSHA").arg(PUT_SESSION.get_hash()).arg(5);
        call.arg(&self.counting_keys(record)).arg(self.keys().node_sessions(&self.name));
        call.arg(self.keys().node(&self.name));
        call.write_arg_fmt(record.id);
        call.arg(&self.process).arg(self.kept_ms()).arg(super::json(record));
        for limit in [limits.per_user, limits.per_address, limits.per_user_and_address] {
            call.arg(limit.map_or(-1, i64::from));
        }
        call
    }

    /// Takes sessions and leases out.
    pub async fn remove(&self, sessions: &[SessionRecord], leases: &[LeaseRequest]) -> Result<(), LinkError> {
        if sessions.is_empty() && leases.is_empty() {
            return Ok(()); // There is no pipeline without commands.
        }
        let mut pipe = if leases.is_empty() { Pipeline::new() } else { with_script(&RELEASE_WRITE) };
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
            self.add_release(&mut pipe, lease);
        }
        self.link().pipe(&pipe).await
    }

    /// The cluster's ticket keys, the newest first; one is added if the newest has had its time.
    pub async fn ticket_keys(&self, rotation: Duration) -> Result<Vec<TicketKey>, LinkError> {
        let mut call = TICKET_KEYS.prepare_invoke();
        call.key(self.keys().ticket_keys())
            .arg(TicketKey::random(0).text().as_str())
            .arg(u64::try_from(rotation.as_millis()).unwrap_or(u64::MAX))
            .arg(KEPT);
        let keys: Vec<Zeroizing<String>> =
            self.link().script::<Vec<String>>(&call).await?.into_iter().map(Zeroizing::new).collect();
        // What is no key is nobody's: it is skipped, and replaced in its time.
        Ok(keys.iter().filter_map(|key| key.parse().ok()).collect())
    }

    /// The ids of sessions that Redis says are this node's.
    pub async fn session_ids(&self) -> Result<Vec<Vec<u8>>, LinkError> {
        self.link().query(cmd("HKEYS").arg(self.keys().node_sessions(&self.name))).await
    }

    /// Takes out sessions that Redis has under this node's name and that are not its own: those
    /// of a process before, and those whose end Redis did not hear of. (Where the former counted they
    /// do so no more, and expire.)
    pub async fn remove_unknown_sessions(&self, ids: &[Vec<u8>]) -> Result<(), LinkError> {
        let key = self.keys().node_sessions(&self.name);
        let records: Vec<Option<Vec<u8>>> = self.link().query(cmd("HMGET").arg(&key).arg(ids)).await?;
        let records = ids.iter().zip(&records).filter_map(|(id, record)| {
            let record: SessionRecord = parse(record.as_deref()?, &key)?;
            (record.id.to_string().as_bytes() == id).then_some(record)
        });
        self.remove(&records.collect::<Vec<_>>(), &[]).await?;
        // Also those whose record is none, or another session's.
        self.link().query(cmd("HDEL").arg(&key).arg(ids)).await
    }

    /// Takes the node itself out.
    pub async fn leave(&self) -> Result<(), LinkError> {
        let mut call = LEAVE_NODE.prepare_invoke();
        call.key(self.keys().nodes())
            .key(self.keys().node(&self.name))
            .key(self.keys().node_sessions(&self.name))
            .key(self.keys().node_commands(&self.name))
            .key(self.keys().node_orders(&self.name))
            .arg(self.name.as_str())
            .arg(self.incarnation)
            .arg(ORDER_LIFE);
        self.link().script::<Value>(&call).await.map(drop)
    }

    /// Notes in Redis that sessions that were to end are gone.
    pub async fn orders_done(&self, ended: &[SessionId]) -> Result<(), LinkError> {
        let mut hdel = cmd("HDEL");
        hdel.arg(self.keys().node_orders(&self.name));
        for id in ended {
            hdel.arg(Order::End(*id).to_string());
        }
        self.link().query(&hdel).await
    }

    /// Where this node's commands wait.
    pub fn commands_key(&self) -> String {
        self.keys().node_commands(&self.name)
    }

    /// Notes that Redis answered.
    pub fn answered(&self) {
        if self.degraded.swap(false, Ordering::Relaxed) {
            log::info!(node = self.name.as_str(); "limits and leases hold for the cluster again");
        }
    }

    /// Notes that a login or an upload went without Redis; whether it may go on.
    pub fn may_go_on(&self, error: &LinkError) -> bool {
        metrics::counter!("ftp_registry_degraded_total").increment(1);
        let admit = self.when_away == WhenAway::Admit;
        if !self.degraded.swap(true, Ordering::Relaxed) {
            let what = if admit {
                "without Redis, limits and leases hold on this node only"
            } else {
                "without Redis, new sessions and uploads are refused"
            };
            log::warn!(node = self.name.as_str(), error = chain(error).as_str(); "{what}");
            // The task finds out when Redis is back, and then enters what began without it.
            let _ = self.work.send(RegistryWork::Refresh);
        }
        admit
    }

    /// Notes that Redis may have other sessions of this node than the table: the next refresh makes
    /// it whole.
    pub fn doubt(&self) {
        self.in_doubt.store(true, Ordering::Release);
    }

    /// Whether there was a doubt since this was last asked.
    pub fn take_doubt(&self) -> bool {
        self.in_doubt.swap(false, Ordering::Acquire)
    }

    /// Where a session counts, in the order of the limits.
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

    pub(super) fn lease_ms(&self) -> u64 {
        u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX)
    }

    /// How long Redis keeps entries that no node renews, in ms.
    pub(super) fn kept_ms(&self) -> u64 {
        self.lease_ms().saturating_mul(u64::from(KEPT_FOR))
    }
}

/// A pipeline in which `script` can be run by its hash.
pub(super) fn with_script(script: &Script) -> Pipeline {
    let mut pipe = Pipeline::new();
    // Redis forgets scripts when it restarts; to load one that it knows costs it a look-up.
    pipe.load_script(script).ignore();
    pipe
}

impl NodeInRedis {
    fn parse(sessions: &str, alive: &str) -> Option<Self> {
        Some(Self { sessions: sessions.parse().ok()?, alive: alive == "1" })
    }
}

fn taken(name: &str, from: &str, to: &str) -> Option<(NodeName, PortRange)> {
    let slice = PortRange::new(from.parse().ok()?, to.parse().ok()?).ok()?;
    Some((name.parse().ok()?, slice))
}
