//! The task that keeps a node's entries in Redis.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    LinkError,
    cluster::{Cluster, ROUND},
    commands::listen,
    core::Core,
    events::{ClusterEvent, JoinError},
    lease_calls::LeaseRequest,
    name_claim::{ClaimOutcome, LateClaim},
    orders::{Order, OrdersInRedis},
    publish::{JoinedNode, NodeInRedis, PublishOutcome, PublishReason},
    table::GrantedLease,
    work::RegistryWork,
};
use crate::{
    clock,
    node::{NodeName, NodeState, PortRange},
    passive::{PassiveAssignment, PassiveLayout},
    process::logging::chain,
    session::SessionId,
    sync::lock,
};

/// Maximum number of sessions or leases in one request, so that Redis serves other clients in between.
const BATCH: usize = 500;

/// Longest time to the next refresh while Redis is away or another node owns some of this node's ports.
const RETRY: Duration = Duration::from_secs(1);

/// Refreshes the node's entries in Redis until the node leaves or loses its name. `connections`:
/// [`RedisLink::connections`](super::RedisLink::connections) when the node joined, 0 if it has not joined.
pub(super) async fn run(
    core: Arc<Core>,
    cluster: Arc<Cluster>,
    work: mpsc::UnboundedReceiver<RegistryWork>,
    events: mpsc::Sender<ClusterEvent>,
    claim: LateClaim,
    connections: u64,
) {
    let mut task = RefreshTask {
        core,
        cluster,
        work,
        events,
        listener: JoinSet::new(),
        claim,
        reported_conflict: None,
        connections,
        round: Vec::new(),
        round_steps: 0,
    };
    let (mut due, mut has_name) = (Instant::now(), true);
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            _ = task.work.recv_many(&mut batch, BATCH) => match task.do_work(&mut batch).await {
                AfterWork::Continue => {}
                AfterWork::Refresh => due = Instant::now(),
                AfterWork::End => return,
            },
            () = sleep_until(due), if has_name => {
                let refreshed = task.refresh().await;
                let usual = task.cluster.next_refresh();
                has_name = !matches!(refreshed, Ok(Ownership::NameLost));
                due = Instant::now() + match refreshed {
                    Ok(Ownership::Ours { has_new_orders: false } | Ownership::NameLost) => usual,
                    Ok(Ownership::Ours { has_new_orders: true } | Ownership::Contested)
                    | Err(LinkError::Away | LinkError::Denied | LinkError::Unwritable(_)) => usual.min(RETRY),
                    Err(error) => {
                        log::error!(error = chain(&error).as_str(); "the registry's refresh failed");
                        usual.min(RETRY)
                    }
                };
            }
        }
    }
}

/// The next action after a batch of work.
enum AfterWork {
    Continue,
    Refresh,
    End,
}

/// The owner of this node's name and ports.
enum Ownership {
    Ours {
        /// There are orders whose commands may still arrive. The next refresh tells whether they did.
        has_new_orders: bool,
    },
    /// Another node owns some of the ports, or the claim of the name is not made yet.
    Contested,
    /// Another process holds the name.
    NameLost,
}

struct RefreshTask {
    core: Arc<Core>,
    cluster: Arc<Cluster>,
    work: mpsc::UnboundedReceiver<RegistryWork>,
    events: mpsc::Sender<ClusterEvent>,
    /// The task that receives commands, once the node has joined.
    listener: JoinSet<()>,
    claim: LateClaim,
    /// The last reported conflict of ports or layouts.
    reported_conflict: Option<(NodeName, PortRange)>,
    /// [`RedisLink::connections`](super::RedisLink::connections) at the previous refresh.
    connections: u64,
    /// The sessions that this round has still to renew.
    round: Vec<SessionId>,
    /// Number of refreshes that are left in this round.
    round_steps: u32,
}

impl RefreshTask {
    async fn do_work(&mut self, batch: &mut Vec<RegistryWork>) -> AfterWork {
        let (mut sessions, mut leases) = (Vec::new(), Vec::new());
        let (mut after, mut leaving) = (AfterWork::Continue, None);
        for work in batch.drain(..) {
            match work {
                RegistryWork::EndSession(record) => sessions.push(record),
                RegistryWork::EndLease(lease) => leases.push(lease),
                RegistryWork::Refresh => after = AfterWork::Refresh,
                RegistryWork::Leave(done) => leaving = Some(done),
            }
        }
        if !sessions.is_empty() || !leases.is_empty() {
            let removed = self.cluster.remove(&sessions, &leases).await;
            if removed.is_err() {
                // Leases expire; the next refresh finds the sessions.
                self.cluster.set_doubt();
            }
            log_refusal(removed);
        }
        if let Some(done) = leaving {
            log_refusal(self.leave().await);
            // The caller may have stopped waiting.
            let _ = done.send(());
            after = AfterWork::End;
        }
        after
    }

    async fn refresh(&mut self) -> Result<Ownership, LinkError> {
        self.cluster.release_overdue(&self.core);
        let granted = self.core.table().granted_count();
        let published = match self.claim.step(&self.core, &self.cluster).await? {
            ClaimOutcome::Wait => return Ok(Ownership::Contested),
            ClaimOutcome::Published(published) => published,
            ClaimOutcome::Done => self.cluster.publish(&self.core, PublishReason::Keep).await?,
        };
        let (ownership, before) = match published {
            PublishOutcome::Joined(joined) => {
                let before = joined.before;
                let ownership = self.joined(joined).await;
                log_refusal(refused_only(self.core.port_map.refresh().await)?);
                (ownership, before)
            }
            PublishOutcome::LayoutDiffers(name, layout, before) => {
                self.report_layout(name, layout);
                (Ownership::Contested, before)
            }
            PublishOutcome::SliceTaken(name, slice, before) => {
                self.report_conflict((name, slice));
                (Ownership::Contested, before)
            }
            PublishOutcome::NameTaken(holder, _) => {
                self.listener.abort_all();
                // An error means that the node is ending anyway.
                let _ = self.events.send(ClusterEvent::NameTaken(holder)).await;
                return Ok(Ownership::NameLost);
            }
            PublishOutcome::NameFree => return Ok(Ownership::Contested),
        };
        if !self.is_complete(granted, before) {
            self.cluster.set_doubt();
        }
        // Leases first: they expire, while sessions count as long as their node lives, and there may be
        // many of them.
        log_refusal(refused_only(self.keep_leases().await)?);
        self.renew_sessions().await?;
        self.cluster.note_answer();
        Ok(ownership)
    }

    async fn joined(&mut self, JoinedNode { before, revision, orders, .. }: JoinedNode) -> Ownership {
        self.reported_conflict = None;
        if self.listener.is_empty() {
            self.listener.spawn(listen(
                Arc::clone(&self.core),
                Arc::clone(&self.cluster),
                self.events.clone(),
            ));
        }
        self.note_revision(revision, before);
        let (has_new_orders, done) = self.take_orders(orders);
        if !done.is_empty() {
            log_refusal(self.cluster.orders_done(&done).await);
        }
        Ownership::Ours { has_new_orders }
    }

    /// Passes the revision of the accounts to the node. The node may have missed a revision if its entry
    /// had expired, or if the connection is a new one, perhaps to another Redis.
    fn note_revision(&self, number: u64, before: NodeInRedis) {
        let has_joined = !before.alive || self.connections != self.cluster.link().connections();
        self.core.revision.send_if_modified(|revision| {
            let old = *revision;
            revision.number = number;
            revision.joins += u64::from(has_joined);
            *revision != old
        });
    }

    /// Passes the orders to the node whose commands were lost. Returns whether there are new orders, whose
    /// commands may still arrive, and the orders that are carried out.
    fn take_orders(&self, in_redis: OrdersInRedis) -> (bool, Vec<Order>) {
        let OrdersInRedis { orders, mut reasons } = in_redis;
        let (open, done) = {
            let (table, passed_on) = (self.core.table(), self.core.orders());
            let is_draining = *lock(&self.core.state) == NodeState::Draining;
            let is_done = |order: &Order| match order {
                Order::Drain => false,
                Order::Undrain => !is_draining && passed_on.is_passed_on(order),
                Order::End(session) => !table.has_session(*session),
            };
            orders.into_iter().partition::<Vec<_>, _>(|order| !is_done(order))
        };
        let (late, has_new) = self.core.orders().refresh(open);
        for order in late {
            let reason = match order {
                Order::End(session) => reasons.remove(&session),
                Order::Drain | Order::Undrain => None,
            };
            let command = order.command(reason);
            log::info!(command:?; "carrying out an order whose command did not arrive");
            // If the queue of events is full, the next refresh sends the event.
            if self.events.try_send(ClusterEvent::Command(command.clone())).is_ok() {
                self.core.orders().note(&command);
            }
        }
        (has_new, done)
    }

    /// Returns true if Redis had exactly the sessions of this node, as far as their number tells. `granted`
    /// is the number of granted sessions before the request.
    fn is_complete(&mut self, granted: usize, before: NodeInRedis) -> bool {
        // Lower bound: sessions granted before the request are still in Redis, because only this task
        // removes them. Upper bound: any other session in Redis is in the table by now, or its removal is
        // queued.
        let most = {
            let table = self.core.table();
            table.session_count() + self.work.len()
        };
        // A new connection may lead to another Redis, and a Redis in which this node had expired may have
        // lost more. The number need not show either.
        let connections = std::mem::replace(&mut self.connections, self.cluster.link().connections());
        connections == self.connections && before.alive && (granted..=most).contains(&before.sessions)
    }

    fn report_conflict(&mut self, theirs: (NodeName, PortRange)) {
        if self.reported_conflict.as_ref() == Some(&theirs) {
            return;
        }
        let ours = self.cluster.ours();
        log::error!(
            node = ours.0.as_str(), ports:% = ours.1, other = theirs.0.as_str(),
            other_ports:% = theirs.1;
            "another live node owns some of this node's passive ports"
        );
        // If the queue of events is full, the next refresh sends the event.
        if self.events.try_send(ClusterEvent::SliceConflict { ours, theirs: theirs.clone() }).is_ok() {
            self.reported_conflict = Some(theirs);
        }
    }

    fn report_layout(&mut self, other: NodeName, theirs: PassiveLayout) {
        let PassiveAssignment::Leased(ours) = self.cluster.assignment else { return };
        let conflict = Some((other.clone(), theirs.range()));
        if self.reported_conflict != conflict {
            self.reported_conflict = conflict;
            let node = self.core.node.name.clone();
            let error = JoinError::LayoutDiffers { ours: (node, ours), theirs: (other, theirs) };
            log::error!(node = self.core.node.name.as_str(); "this node leases no passive ports: {error}");
        }
    }

    /// Renews a part of the sessions in Redis; after a doubt all of them.
    async fn renew_sessions(&mut self) -> Result<(), LinkError> {
        let all = self.cluster.take_doubt();
        let renewed = self.renew(all).await;
        if all && !matches!(renewed, Ok(Ok(()))) {
            self.cluster.set_doubt();
        }
        log_refusal(renewed?);
        Ok(())
    }

    /// Renews all sessions, or one step of the round. If Redis refuses a request, for example because of a
    /// value of the wrong type, the others are still sent, since they may succeed. Returns the first
    /// refusal.
    async fn renew(&mut self, all: bool) -> Result<Result<(), LinkError>, LinkError> {
        let mut outcome = Ok(());
        if all || self.round_steps == 0 {
            outcome = refused_only(remove_unknown_sessions(&self.core, &self.cluster).await)?;
            self.round = self.core.table().granted_sessions();
            self.round_steps = ROUND;
        }
        let left = self.round.len();
        // The cast is lossless: `round_steps` is at most `ROUND`.
        let now = if all { left } else { left.div_ceil(self.round_steps as usize) };
        self.round_steps -= 1;
        for ids in self.round.split_off(left - now).chunks(BATCH) {
            let records = self.core.table().records(ids);
            let renewed = refused_only(self.cluster.renew_sessions(&records).await)?;
            outcome = outcome.and(renewed);
        }
        Ok(outcome)
    }

    /// Keeps the leases of this node in Redis.
    async fn keep_leases(&self) -> Result<(), LinkError> {
        let _keeping = self.cluster.keeping.write().await;
        let leases = self.core.table().granted_leases();
        // One request also without leases: see `LeaseCalls::keep`.
        let batches = leases.chunks(BATCH).chain(leases.is_empty().then_some(&[][..]));
        for leases in batches {
            // If a lease is dropped meanwhile, its removal waits in this task's queue and undoes the keeping.
            let requests: Vec<LeaseRequest> = leases.iter().map(|lease| self.request(lease)).collect();
            let sent = clock::since_boot();
            let replies = self.cluster.leases.keep(&requests).await?;
            for (lease, reply) in leases.iter().zip(replies) {
                match reply {
                    Some(confirmed) => lease.state.confirm(sent, confirmed.epoch, confirmed.number),
                    None => self.lose(lease),
                }
            }
        }
        Ok(())
    }

    fn lose(&self, lease: &GrantedLease) {
        if !self.core.table().lose(lease.grant) {
            return;
        }
        for path in lease.paths.iter() {
            log::warn!(path:% = path.path.escape_ascii(); "a write lease was lost");
        }
    }

    fn request(&self, lease: &GrantedLease) -> LeaseRequest {
        LeaseRequest {
            paths: Arc::clone(&lease.paths),
            token: self.cluster.leases.token(lease.grant),
            state: Arc::clone(&lease.state),
        }
    }

    async fn leave(&self) -> Result<(), LinkError> {
        let sessions = self.core.table().sessions();
        for sessions in sessions.chunks(BATCH) {
            self.cluster.remove(sessions, &[]).await?;
        }
        let leases = self.core.table().granted_leases();
        for leases in leases.chunks(BATCH) {
            let requests: Vec<LeaseRequest> = leases.iter().map(|lease| self.request(lease)).collect();
            self.cluster.remove(&[], &requests).await?;
        }
        self.cluster.leave().await
    }
}

/// Logs a request that Redis refused. The link has logged the other errors.
fn log_refusal(result: Result<(), LinkError>) {
    if let Err(error @ LinkError::Reply(_)) = result {
        log::warn!(error = chain(&error).as_str(); "Redis refused a request of the registry");
    }
}

/// Returns the outer error if Redis is away or refuses all writes, so that the caller stops, and the inner
/// one if Redis refused the request.
fn refused_only(result: Result<(), LinkError>) -> Result<Result<(), LinkError>, LinkError> {
    match result {
        Err(error @ (LinkError::Away | LinkError::Denied | LinkError::Unwritable(_))) => Err(error),
        result => Ok(result),
    }
}

/// Removes the sessions from Redis that are entered under this node's name but are not in its table.
pub(super) async fn remove_unknown_sessions(core: &Core, cluster: &Cluster) -> Result<(), LinkError> {
    // A session is in the table before it is in Redis. So a session that is only in Redis has ended, or
    // belonged to an earlier process.
    let ids = cluster.session_ids().await?;
    let unknown = core.table().unknown_ids(ids);
    for ids in unknown.chunks(BATCH) {
        cluster.remove_sessions_by_id(ids).await?;
    }
    Ok(())
}
