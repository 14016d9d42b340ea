//! The task that keeps a node's place in Redis, and the one that waits for commands there.

use std::{sync::Arc, time::Duration};

use redis::{RedisResult, cmd};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    Core, Event, LinkError,
    cluster::{Cluster, Held, Published},
    view::parse,
};
use crate::{
    node::{NodeName, PortRange},
    process::logging::chain,
    session::SessionRecord,
};

/// How many sessions or leases go into one request, so that Redis serves others in between.
const BATCH: usize = 500;

/// While Redis is away or another node owns our ports, try again after this long (or after the
/// usual time, if that is shorter).
const RETRY: Duration = Duration::from_secs(1);

/// How long one request for commands waits for them.
const COMMAND_WAIT: Duration = Duration::from_secs(5);

/// What a node has for its task to do. All that takes a session or lease out of Redis goes
/// through the task that refreshes them, so that a refresh cannot bring back what has ended; or
/// keeps it from refreshing meanwhile.
pub(super) enum Work {
    EndSession(SessionRecord),
    EndLease(Held),
    /// Something has changed that Redis should know soon.
    Refresh,
    Leave(oneshot::Sender<()>),
}

/// Refreshes what the node has in Redis until the node leaves or is superseded.
pub(super) async fn run(
    core: Arc<Core>,
    cluster: Arc<Cluster>,
    mut work: mpsc::UnboundedReceiver<Work>,
    events: mpsc::Sender<Event>,
) {
    let mut task = Refresh { core, cluster, events, listener: JoinSet::new(), conflict: None };
    let (mut due, mut stands) = (Instant::now(), true);
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            _ = work.recv_many(&mut batch, BATCH) => match task.work_off(&mut batch).await {
                After::GoOn => {}
                After::Refresh => due = Instant::now(),
                After::End => return,
            },
            () = sleep_until(due), if stands => {
                let usual = task.cluster.lease / 3;
                due = Instant::now() + match task.refresh().await {
                    Ok(Place::Ours) => usual,
                    Ok(Place::Contested) | Err(LinkError::Away) => usual.min(RETRY),
                    Ok(Place::Lost) => {
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
enum After {
    GoOn,
    Refresh,
    End,
}

/// Whose this node's name and ports are.
enum Place {
    Ours,
    Contested,
    Lost,
}

struct Refresh {
    core: Arc<Core>,
    cluster: Arc<Cluster>,
    events: mpsc::Sender<Event>,
    /// The task that waits for commands, once the node has joined.
    listener: JoinSet<()>,
    /// The conflict that was last reported.
    conflict: Option<(NodeName, PortRange)>,
}

impl Refresh {
    async fn work_off(&mut self, batch: &mut Vec<Work>) -> After {
        let (mut sessions, mut leases) = (Vec::new(), Vec::new());
        let (mut after, mut left) = (After::GoOn, None);
        for work in batch.drain(..) {
            match work {
                Work::EndSession(record) => sessions.push(record),
                Work::EndLease(lease) => leases.push(lease),
                Work::Refresh => after = After::Refresh,
                Work::Leave(done) => left = Some(done),
            }
        }
        if !sessions.is_empty() || !leases.is_empty() {
            // What cannot be taken out now expires, and the next refresh finds the sessions.
            self.note(self.cluster.remove(&sessions, &leases).await);
        }
        if let Some(done) = left {
            self.note(self.leave().await);
            // Whoever asked may have stopped waiting.
            let _ = done.send(());
            after = After::End;
        }
        after
    }

    async fn refresh(&mut self) -> Result<Place, LinkError> {
        let place = match self.cluster.publish(&self.core.record(), false).await? {
            Published::Joined => {
                self.conflict = None;
                if self.listener.is_empty() {
                    self.listener.spawn(listen(Arc::clone(&self.cluster), self.events.clone()));
                }
                Place::Ours
            }
            Published::Taken(name, slice) => {
                self.contested((name, slice));
                Place::Contested
            }
            Published::Superseded => {
                log::error!("a later process has this node's name");
                self.listener.abort_all();
                // Nobody listens to events only when the node is ending anyway.
                let _ = self.events.send(Event::Superseded).await;
                return Ok(Place::Lost);
            }
        };
        // What one step cannot do, for example because of a value of the wrong type, the next may
        // put right.
        self.note(refused_only(sweep(&self.core, &self.cluster).await)?);
        self.refresh_sessions().await?;
        self.note(refused_only(self.keep_leases().await)?);
        self.cluster.answered();
        Ok(place)
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
        if self.events.try_send(Event::SliceConflict { ours, theirs: theirs.clone() }).is_ok() {
            self.conflict = Some(theirs);
        }
    }

    async fn refresh_sessions(&self) -> Result<(), LinkError> {
        let ids = self.core.table().granted_sessions();
        for ids in ids.chunks(BATCH) {
            let records = self.core.table().records(ids);
            self.note(refused_only(self.cluster.refresh_sessions(&records).await)?);
        }
        Ok(())
    }

    async fn keep_leases(&self) -> Result<(), LinkError> {
        let _alone = self.cluster.keeping.write().await;
        let leases = self.core.table().granted_leases();
        for leases in leases.chunks(BATCH) {
            // Dropped meanwhile? Then its end waits for this task, and undoes the keeping.
            let held: Vec<Held> = leases
                .iter()
                .map(|(path, grant)| Held { path: path.clone(), token: self.cluster.token(*grant) })
                .collect();
            let kept = self.cluster.keep(&held).await?;
            for ((path, grant), kept) in leases.iter().zip(kept) {
                if !kept && self.core.table().lose(path, *grant) {
                    log::warn!(path:% = path.escape_ascii(); "a write lease was lost");
                }
            }
        }
        Ok(())
    }

    async fn leave(&self) -> Result<(), LinkError> {
        let sessions = self.core.table().sessions();
        for sessions in sessions.chunks(BATCH) {
            self.cluster.remove(sessions, &[]).await?;
        }
        let leases = self.core.table().granted_leases();
        for leases in leases.chunks(BATCH) {
            let held = leases
                .iter()
                .map(|(path, grant)| Held { path: path.clone(), token: self.cluster.token(*grant) });
            self.cluster.remove(&[], &held.collect::<Vec<_>>()).await?;
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
        Err(LinkError::Away) => Err(LinkError::Away),
        result => Ok(result),
    }
}

/// Takes out of Redis the sessions under this node's name that are not in its table.
pub(super) async fn sweep(core: &Core, cluster: &Cluster) -> Result<(), LinkError> {
    // A session is in the table before it is in Redis, so one that Redis has and the table has
    // not has ended, or was never this process's.
    let ids = cluster.session_ids().await?;
    let strangers = core.table().strangers(ids);
    for ids in strangers.chunks(BATCH) {
        cluster.remove_strangers(ids).await?;
    }
    Ok(())
}

/// Waits for commands on a connection of its own, for as long as anybody hears of them.
async fn listen(cluster: Arc<Cluster>, events: mpsc::Sender<Event>) {
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
                if events.send(Event::Command(command)).await.is_err() {
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
