//! The task that keeps a node's place in Redis, and the one that waits for commands there.

use std::{sync::Arc, time::Duration};

use redis::{RedisResult, cmd};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    ClusterEvent, Core, LinkError,
    cluster::{Cluster, JoinedNode, NodeInRedis, PublishOutcome, PublishReason},
    lease_calls::LeaseRequest,
    name_claim::{ClaimOutcome, LateClaim},
    orders::Order,
    table::GrantedLease,
    view::parse,
};
use crate::{
    clock,
    node::{NodeName, PortRange},
    process::logging::chain,
    session::{SessionId, SessionRecord},
};

/// How many sessions or leases go into one request, so that Redis serves others in between.
const BATCH: usize = 500;

/// In so many refreshes every session is renewed in Redis once, some in each: what Redis lost without
/// anybody noticing comes back then, and what it has too much goes.
pub(super) const ROUND: u32 = 120;

/// While Redis is away or another node owns our ports, try again after this long (or after the
/// usual time, if that is shorter).
const RETRY: Duration = Duration::from_secs(1);

/// How long one request for commands waits for them.
const COMMAND_WAIT: Duration = Duration::from_secs(5);

/// What a node has for its task to do. All that takes a session or lease out of Redis goes
/// through the task that refreshes them, so that a refresh cannot bring back what has ended; or
/// keeps it from refreshing meanwhile.
pub(super) enum RegistryWork {
    EndSession(SessionRecord),
    EndLease(LeaseRequest),
    /// Something has changed that Redis should know soon.
    Refresh,
    Leave(oneshot::Sender<()>),
}

/// Refreshes what the node has in Redis until the node leaves or loses its name.
pub(super) async fn run(
    core: Arc<Core>,
    cluster: Arc<Cluster>,
    work: mpsc::UnboundedReceiver<RegistryWork>,
    events: mpsc::Sender<ClusterEvent>,
    claim: LateClaim,
) {
    let mut task = RefreshTask {
        core,
        cluster,
        work,
        events,
        listener: JoinSet::new(),
        claim,
        conflict: None,
        connections: 0,
        round: Vec::new(),
        steps: 0,
    };
    let (mut due, mut stands) = (Instant::now(), true);
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            _ = task.work.recv_many(&mut batch, BATCH) => match task.work_off(&mut batch).await {
                NextStep::GoOn => {}
                NextStep::Refresh => due = Instant::now(),
                NextStep::End => return,
            },
            () = sleep_until(due), if stands => {
                let usual = task.cluster.lease / 3;
                due = Instant::now() + match task.refresh().await {
                    Ok(Ownership::Ours { has_new_orders: false }) => usual,
                    Ok(Ownership::Ours { has_new_orders: true } | Ownership::Contested) | Err(LinkError::Away | LinkError::Denied) => usual.min(RETRY),
                    Ok(Ownership::Lost) => {
                        stands = false;
                        usual
                    }
                    Err(error) => {
                        log::error!(error = chain(&error).as_str(); "the registry's refresh failed");
                        usual.min(RETRY)
                    }
                };
            }
        }
    }
}

/// What follows from a batch of work.
enum NextStep {
    GoOn,
    Refresh,
    End,
}

/// Whose this node's name and ports are.
enum Ownership {
    Ours {
        /// The next refresh tells whether they were heard of in another way.
        has_new_orders: bool,
    },
    Contested,
    Lost,
}

struct RefreshTask {
    core: Arc<Core>,
    cluster: Arc<Cluster>,
    work: mpsc::UnboundedReceiver<RegistryWork>,
    events: mpsc::Sender<ClusterEvent>,
    /// The task that waits for commands, once the node has joined.
    listener: JoinSet<()>,
    claim: LateClaim,
    /// The conflict that was last reported.
    conflict: Option<(NodeName, PortRange)>,
    /// How many connections to Redis there had been when it was last asked.
    connections: u64,
    /// The sessions that this round has still to renew, and in how many refreshes.
    round: Vec<SessionId>,
    steps: u32,
}

impl RefreshTask {
    async fn work_off(&mut self, batch: &mut Vec<RegistryWork>) -> NextStep {
        let (mut sessions, mut leases) = (Vec::new(), Vec::new());
        let (mut after, mut left) = (NextStep::GoOn, None);
        for work in batch.drain(..) {
            match work {
                RegistryWork::EndSession(record) => sessions.push(record),
                RegistryWork::EndLease(lease) => leases.push(lease),
                RegistryWork::Refresh => after = NextStep::Refresh,
                RegistryWork::Leave(done) => left = Some(done),
            }
        }
        if !sessions.is_empty() || !leases.is_empty() {
            let removed = self.cluster.remove(&sessions, &leases).await;
            if removed.is_err() {
                // Leases expire; the next refresh finds the sessions.
                self.cluster.doubt();
            }
            self.note(removed);
        }
        if let Some(done) = left {
            self.note(self.leave().await);
            // Whoever asked may have stopped waiting.
            let _ = done.send(());
            after = NextStep::End;
        }
        after
    }

    async fn refresh(&mut self) -> Result<Ownership, LinkError> {
        let least = self.core.table().granted_count();
        let published = match self.claim.step(&self.core, &self.cluster).await? {
            ClaimOutcome::Wait => return Ok(Ownership::Contested),
            ClaimOutcome::Outcome(published) => published,
            ClaimOutcome::Done => self.cluster.publish(&self.core.record(), PublishReason::Keep).await?,
        };
        let (place, known) = match published {
            PublishOutcome::Joined(JoinedNode { known, revision, orders }) => {
                self.conflict = None;
                if self.listener.is_empty() {
                    self.listener.spawn(listen(
                        Arc::clone(&self.core),
                        Arc::clone(&self.cluster),
                        self.events.clone(),
                    ));
                }
                self.note_revision(revision, known);
                let (has_new_orders, ended) = self.take_orders(orders);
                if !ended.is_empty() {
                    self.note(self.cluster.orders_done(&ended).await);
                }
                (Ownership::Ours { has_new_orders }, known)
            }
            PublishOutcome::Taken(name, slice, known) => {
                self.contested((name, slice));
                (Ownership::Contested, known)
            }
            PublishOutcome::Named(holder, _) => {
                self.listener.abort_all();
                // An error means that the node is ending anyway.
                let _ = self.events.send(ClusterEvent::NameTaken(holder)).await;
                return Ok(Ownership::Lost);
            }
            PublishOutcome::Free => return Ok(Ownership::Contested),
        };
        if !self.is_whole(least, known) {
            self.cluster.doubt();
        }
        // Before the sessions, of which there may be many: leases expire, sessions live with their node.
        self.note(refused_only(self.keep_leases().await)?);
        self.renew_sessions().await?;
        self.cluster.answered();
        Ok(place)
    }

    /// Tells the node of the revision of the accounts. A node that had expired in Redis, or has another
    /// connection, perhaps to another Redis, may have missed one.
    fn note_revision(&self, number: u64, known: NodeInRedis) {
        let has_joined = !known.alive || self.connections != self.cluster.link().connections();
        self.core.revision.send_if_modified(|revision| {
            let before = *revision;
            revision.number = number;
            revision.joins += u64::from(has_joined);
            *revision != before
        });
    }

    /// Tells the node of orders whose commands were lost. Returns whether there are new ones, whose commands may
    /// still come, and the sessions that were to end and are gone.
    fn take_orders(&self, orders: Vec<Order>) -> (bool, Vec<SessionId>) {
        let (open, ended) = {
            let table = self.core.table();
            let is_done =
                |order: &Order| matches!(order, Order::End(session) if !table.has_session(*session));
            orders.into_iter().partition::<Vec<_>, _>(|order| !is_done(order))
        };
        let (late, is_new) = self.core.orders().refresh(open);
        for command in late.into_iter().map(Order::command) {
            log::info!(command:?; "carrying out an order whose command did not arrive");
            // If the node is too busy to be told now, the next refresh tells it.
            if self.events.try_send(ClusterEvent::Command(command.clone())).is_ok() {
                self.core.orders().note(&command);
            }
        }
        let session = |order| match order {
            Order::End(session) => Some(session),
            Order::Drain => None,
        };
        (is_new, ended.into_iter().filter_map(session).collect())
    }

    /// Whether Redis had just these sessions, as far as their number tells. `least` of them were
    /// admitted before it was asked.
    fn is_whole(&mut self, least: usize, known: NodeInRedis) -> bool {
        // Those were in Redis, because nobody but this task takes a session out. What was there beside
        // them is by now in the table or, if it has ended, waits in the queue.
        let most = {
            let table = self.core.table();
            table.session_count() + self.work.len()
        };
        // Another connection may lead to another Redis, and one that thought this node dead may have
        // lost more of it: neither need show in the number.
        let before = std::mem::replace(&mut self.connections, self.cluster.link().connections());
        before == self.connections && known.alive && (least..=most).contains(&known.sessions)
    }

    fn contested(&mut self, theirs: (NodeName, PortRange)) {
        if self.conflict.as_ref() == Some(&theirs) {
            return;
        }
        let ours = self.cluster.ours();
        log::error!(
            node = ours.0.as_str(), ports:% = ours.1, other = theirs.0.as_str(),
            other_ports:% = theirs.1;
            "another live node owns some of this node's passive ports"
        );
        // If the node is too busy to be told now, the next refresh tells it.
        if self.events.try_send(ClusterEvent::SliceConflict { ours, theirs: theirs.clone() }).is_ok() {
            self.conflict = Some(theirs);
        }
    }

    /// Renews those sessions in Redis whose turn it is; after a doubt all of them.
    async fn renew_sessions(&mut self) -> Result<(), LinkError> {
        let all = self.cluster.take_doubt();
        let renewed = self.renew(all).await;
        if all && !matches!(renewed, Ok(Ok(()))) {
            self.cluster.doubt();
        }
        self.note(renewed?);
        Ok(())
    }

    /// As [`renew_sessions`](Self::renew_sessions). What one step cannot do, for example because of a
    /// value of the wrong type, the next may put right: says what Redis refused last.
    async fn renew(&mut self, all: bool) -> Result<Result<(), LinkError>, LinkError> {
        let mut outcome = Ok(());
        if all || self.steps == 0 {
            outcome = refused_only(sweep(&self.core, &self.cluster).await)?;
            self.round = self.core.table().granted_sessions();
            self.steps = ROUND;
        }
        let left = self.round.len();
        // The steps fit: they count down from `ROUND`.
        let now = if all { left } else { left.div_ceil(self.steps as usize) };
        self.steps -= 1;
        for ids in self.round.split_off(left - now).chunks(BATCH) {
            let records = self.core.table().records(ids);
            let renewed = refused_only(self.cluster.renew_sessions(&records).await)?;
            outcome = outcome.and(renewed);
        }
        Ok(outcome)
    }

    /// Keeps the leases of this node in Redis.
    async fn keep_leases(&self) -> Result<(), LinkError> {
        let _alone = self.cluster.keeping.write().await;
        let leases = self.core.table().granted_leases();
        let batches = leases.chunks(BATCH).chain(leases.is_empty().then_some(&[][..]));
        for leases in batches {
            // If one is dropped meanwhile, its end waits for this task, and undoes the keeping.
            let held: Vec<LeaseRequest> = leases.iter().map(|lease| self.held(lease)).collect();
            let sent = clock::since_boot();
            let kept = self.cluster.keep(&held).await?;
            for (lease, kept) in leases.iter().zip(kept) {
                match kept {
                    Some(kept) => lease.state.kept(sent, kept.epoch, kept.number),
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
        for claim in lease.claims.iter() {
            log::warn!(path:% = claim.path.escape_ascii(); "a write lease was lost");
        }
    }

    fn held(&self, lease: &GrantedLease) -> LeaseRequest {
        LeaseRequest {
            claims: Arc::clone(&lease.claims),
            token: self.cluster.token(lease.grant),
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
            let held: Vec<LeaseRequest> = leases.iter().map(|lease| self.held(lease)).collect();
            self.cluster.remove(&[], &held).await?;
        }
        self.cluster.leave().await
    }

    /// Logs what Redis refused. That it is away, the link has logged.
    fn note(&self, result: Result<(), LinkError>) {
        if let Err(error @ LinkError::Reply(_)) = result {
            log::warn!(error = chain(&error).as_str(); "Redis refused a step of the registry");
        }
    }
}

/// Lets the error pass if Redis is away: then there is no use in going on.
fn refused_only(result: Result<(), LinkError>) -> Result<Result<(), LinkError>, LinkError> {
    match result {
        Err(error @ (LinkError::Away | LinkError::Denied)) => Err(error),
        result => Ok(result),
    }
}

/// Takes out of Redis the sessions under this node's name that are not in its table.
pub(super) async fn sweep(core: &Core, cluster: &Cluster) -> Result<(), LinkError> {
    // A session is in the table before it is in Redis, so one that Redis has and the table has
    // not has ended, or was never this process's.
    let ids = cluster.session_ids().await?;
    let unknown_ids = core.table().unknown_ids(ids);
    for ids in unknown_ids.chunks(BATCH) {
        cluster.remove_unknown_sessions(ids).await?;
    }
    Ok(())
}

/// Waits for commands on a connection of its own, for as long as anybody hears of them.
async fn listen(core: Arc<Core>, cluster: Arc<Cluster>, events: mpsc::Sender<ClusterEvent>) {
    const FIRST_PAUSE: Duration = Duration::from_millis(100);
    const LONGEST_PAUSE: Duration = Duration::from_secs(2);
    let mut pause = FIRST_PAUSE;
    loop {
        if let Ok(mut connection) = cluster.link().dedicated().await {
            while let Ok(command) = next_command(&cluster, &mut connection).await {
                pause = FIRST_PAUSE;
                let Some(command) = command else { continue };
                let key = cluster.commands_key();
                let Some(command) = parse(&command, &key) else {
                    continue;
                };
                core.orders().note(&command);
                if events.send(ClusterEvent::Command(command)).await.is_err() {
                    return;
                }
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// One command as it stands in Redis; `None` if none came for a while.
async fn next_command(
    cluster: &Cluster,
    connection: &mut redis::aio::MultiplexedConnection,
) -> RedisResult<Option<Vec<u8>>> {
    let key = cluster.commands_key();
    let request = cmd("BRPOP").arg(&key).arg(COMMAND_WAIT.as_secs()).to_owned();
    // Redis answers after `COMMAND_WAIT` at the latest; a connection that is silent for twice as
    // long is dead.
    let answer = request.query_async::<Option<(Vec<u8>, Vec<u8>)>>(connection);
    match timeout(COMMAND_WAIT * 2, answer).await {
        Ok(Ok(answer)) => Ok(answer.map(|(_key, command)| command)),
        Ok(Err(error)) => {
            if error.code() == Some("WRONGTYPE") {
                log::warn!(key = key.as_str(); "removed a value in Redis that is no list of commands");
                cmd("DEL").arg(&key).exec_async(connection).await?;
            }
            Err(error)
        }
        Err(elapsed) => Err(std::io::Error::from(elapsed).into()),
    }
}
