//! Requests to Redis about leases: the calls of `hold_write.lua` and `release_write.lua`.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{Cmd, ErrorKind, Pipeline, RedisError, Script, cmd};

use super::{
    EssentialScript, LinkError, RegistryView,
    lease_state::{LeaseConflict, LeaseGrant, LeasePath, LeaseScope, LeaseState},
    link::pipeline_with,
};
use crate::{node::NodeRecord, session::SessionId};

static HOLD_WRITE: LazyLock<EssentialScript> = LazyLock::new(|| {
    EssentialScript::new(concat!(include_str!("lua/lease.lua"), include_str!("lua/hold_write.lua")))
});
pub(super) static RELEASE_WRITE: LazyLock<EssentialScript> = LazyLock::new(|| {
    EssentialScript::new(concat!(include_str!("lua/lease.lua"), include_str!("lua/release_write.lua")))
});

/// Maximum number of calls for one take. A call looks at up to 200 paths below a tree, and removes those
/// that dead nodes have left.
const MOST_CALLS: u32 = 100;

/// A lease to take, keep or release.
#[derive(Clone, Debug)]
pub(super) struct LeaseRequest {
    pub paths: Arc<[LeasePath]>,
    pub token: String,
    pub state: Arc<LeaseState>,
}

/// Redis's confirmation that it has granted or kept a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeaseConfirmation {
    pub epoch: u64,
    pub number: u64,
    /// Redis has recently lost data: another session may have the path.
    pub is_doubtful: bool,
}

/// Redis's reply to a session that wants a lease.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TakeReply {
    Granted(LeaseConfirmation),
    Busy(Option<SessionId>, LeaseConflict),
}

/// One node's requests to Redis about leases.
pub(super) struct LeaseCalls {
    view: RegistryView,
    /// Duration of a lease.
    lease: Duration,
    /// Time for which Redis remembers a lease that is not renewed.
    retention: Duration,
    /// First part of this process's tokens: name, incarnation and place, without spaces in each.
    holder: String,
    /// Epoch of Redis's data in its last answer; 0 if it has not answered yet.
    epoch: AtomicU64,
    /// Number of the connection on which the server was last compared with that of the epoch.
    compared: AtomicU64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum LeaseStep {
    Take,
    Keep,
    /// Reads the epoch only.
    Look,
    /// Releases; the caller needs the answer.
    Give,
    /// Releases; the answer is ignored.
    Drop,
}

impl LeaseCalls {
    pub(super) fn new(
        node: &NodeRecord,
        place: Option<&str>,
        view: &RegistryView,
        lease: Duration,
        retention: Duration,
    ) -> Self {
        let place = place.filter(|place| !place.is_empty()).unwrap_or("-").replace(' ', "_");
        Self {
            view: view.clone(),
            lease,
            retention,
            holder: format!("{} {:016x} {place}", node.name, node.incarnation),
            epoch: AtomicU64::new(0),
            compared: AtomicU64::new(0),
        }
    }

    /// The token of a lease, unique among all processes. [`Self::parse_take`] reads the session from its end.
    pub(super) fn token(&self, grant: LeaseGrant) -> String {
        format!("{} {grant}", self.holder)
    }

    fn note_epoch(&self, epoch: u64) {
        let before = self.epoch.swap(epoch, Ordering::Relaxed);
        if before != 0 && before != epoch {
            log::warn!(
                "Redis has lost data or was replaced by another server; for one node_lease, uploads are \
                 refused unless the storage has locks that all nodes see"
            );
        }
    }

    /// Takes a lease.
    pub(super) async fn take(&self, lease: &LeaseRequest) -> Result<TakeReply, LinkError> {
        for _ in 0..MOST_CALLS {
            let reply = self.call(&HOLD_WRITE, LeaseStep::Take, lease).await?;
            if reply.first().map(String::as_str) != Some("more") {
                return self.parse_take(&reply);
            }
        }
        Err(unexpected("hold_write.lua looks at too many paths"))
    }

    /// Keeps a lease. Returns `None` if it is lost.
    pub(super) async fn keep_one(
        &self,
        lease: &LeaseRequest,
    ) -> Result<Option<LeaseConfirmation>, LinkError> {
        self.parse_keep(&self.call(&HOLD_WRITE, LeaseStep::Keep, lease).await?)
    }

    /// Keeps leases. Returns `None` for each lost lease. The request is sent even if there are no leases: the
    /// node learns from it that Redis lost data, and the known epoch in it makes new leases doubtful.
    pub(super) async fn keep(
        &self,
        leases: &[LeaseRequest],
    ) -> Result<Vec<Option<LeaseConfirmation>>, LinkError> {
        let (connection, compare) = self.comparison();
        let script = HOLD_WRITE.on(self.view.link());
        let mut pipe = pipeline_with(script);
        let nothing = LeaseRequest { paths: Arc::new([]), token: self.holder.clone(), state: Arc::default() };
        pipe.add_command(self.command(script, LeaseStep::Look, &nothing, compare));
        for lease in leases {
            pipe.add_command(self.command(script, LeaseStep::Keep, lease, false));
        }
        let replies: Vec<Vec<String>> = self.view.link().pipe(&pipe).await?;
        self.note_compared(connection);
        let Some((look, kept)) = replies.split_first() else { return Err(unexpected("hold_write.lua")) };
        self.note_epoch(parse_epoch(look.first().map_or("", String::as_str))?);
        kept.iter().map(|reply| self.parse_keep(reply)).collect()
    }

    /// Releases a lease. Returns false if another session has had one of the paths.
    pub(super) async fn give_back(&self, lease: &LeaseRequest) -> Result<bool, LinkError> {
        match self.call(&RELEASE_WRITE, LeaseStep::Give, lease).await?.first().map(String::as_str) {
            Some("held") => Ok(true),
            Some("lost") => Ok(false),
            _ => Err(unexpected("release_write.lua")),
        }
    }

    /// Adds the release of a lease to `pipe`, which has loaded `script`, a form of [`RELEASE_WRITE`].
    pub(super) fn add_release(&self, pipe: &mut Pipeline, script: &Script, lease: &LeaseRequest) {
        pipe.add_command(self.command(script, LeaseStep::Drop, lease, false)).ignore();
    }

    /// Sends a request to a server that is compared with that of the epoch, and returns the answer.
    async fn call(
        &self,
        script: &EssentialScript,
        step: LeaseStep,
        lease: &LeaseRequest,
    ) -> Result<Vec<String>, LinkError> {
        let link = self.view.link();
        let script = script.on(link);
        let (connection, compare) = self.comparison();
        let reply = link.call(script, &self.command(script, step, lease, compare)).await?;
        if compare || link.connections() == connection {
            self.note_compared(connection);
            return Ok(reply);
        }
        // The answer came from a new connection, perhaps to another server: send the request again, with the
        // comparison. It may be repeated.
        link.call(script, &self.command(script, step, lease, true)).await
    }

    /// The number of the current connection, and whether its server must still be compared with that of the
    /// epoch.
    fn comparison(&self) -> (u64, bool) {
        let connection = self.view.link().connections();
        (connection, connection == 0 || connection != self.compared.load(Ordering::Relaxed))
    }

    /// Notes that the server was compared, if `connection` is still the current connection.
    fn note_compared(&self, connection: u64) {
        if self.view.link().connections() == connection {
            self.compared.store(connection, Ordering::Relaxed);
        }
    }

    fn command(&self, script: &Script, step: LeaseStep, lease: &LeaseRequest, compare: bool) -> Cmd {
        let keys = self.view.keys();
        let known_epoch = self.epoch.load(Ordering::Relaxed);
        let (epoch, number) = lease.state.granted();
        let mut call = cmd("EVALSHA");
        call.arg(script.get_hash()).arg(3 + lease.paths.len());
        call.arg(keys.lease_epoch()).arg(keys.leased_paths()).arg(keys.leased_trees());
        for path in lease.paths.iter() {
            call.arg(keys.write_lease(&path.path));
        }
        let kind = |path: &LeasePath| if path.scope == LeaseScope::Tree { 't' } else { 'f' };
        call.arg(match step {
            LeaseStep::Take => "take",
            LeaseStep::Keep => "keep",
            LeaseStep::Look => "look",
            LeaseStep::Give => "give",
            LeaseStep::Drop => "drop",
        });
        call.arg(keys.write_leases()).arg(&lease.token).arg(millis(self.lease)).arg(millis(self.retention));
        call.arg(hex(known_epoch)).arg(hex(rand::random_range(1..=u64::MAX))).arg(u8::from(compare));
        call.arg(hex(epoch)).arg(number);
        call.arg(u8::from(lease.state.is_within(self.lease))).arg(u8::from(lease.state.is_on_storage()));
        call.arg(lease.paths.iter().map(kind).collect::<String>());
        call
    }

    fn parse_take(&self, reply: &[String]) -> Result<TakeReply, LinkError> {
        let fields: Vec<&str> = reply.iter().map(String::as_str).collect();
        match fields[..] {
            ["busy", position, holder, epoch] => {
                self.note_epoch(parse_epoch(epoch)?);
                let conflict = match position {
                    "below" => LeaseConflict::Below,
                    "above" => LeaseConflict::Above,
                    _ => LeaseConflict::Same,
                };
                Ok(TakeReply::Busy(holder.rsplit(' ').next().and_then(|id| id.parse().ok()), conflict))
            }
            _ => match self.parse_keep(reply)? {
                Some(confirmed) => Ok(TakeReply::Granted(confirmed)),
                None => Err(unexpected("hold_write.lua")),
            },
        }
    }

    fn parse_keep(&self, reply: &[String]) -> Result<Option<LeaseConfirmation>, LinkError> {
        let fields: Vec<&str> = reply.iter().map(String::as_str).collect();
        match fields[..] {
            ["held", epoch, number, doubt] => {
                let epoch = parse_epoch(epoch)?;
                self.note_epoch(epoch);
                let number = number.parse().map_err(|_| unexpected("the number of a lease"))?;
                Ok(Some(LeaseConfirmation { epoch, number, is_doubtful: doubt == "1" }))
            }
            ["lost", epoch] => {
                self.note_epoch(parse_epoch(epoch)?);
                Ok(None)
            }
            _ => Err(unexpected("hold_write.lua")),
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The form of an epoch in script arguments. 0 means that there is no epoch, and becomes an empty text.
fn hex(epoch: u64) -> String {
    if epoch == 0 { String::new() } else { format!("{epoch:016x}") }
}

fn parse_epoch(epoch: &str) -> Result<u64, LinkError> {
    u64::from_str_radix(epoch, 16).map_err(|_| unexpected("the epoch of leases"))
}

fn unexpected(what: &'static str) -> LinkError {
    LinkError::Reply(RedisError::from((ErrorKind::UnexpectedReturnType, what)))
}
