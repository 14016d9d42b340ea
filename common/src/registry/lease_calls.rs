//! What a node asks Redis of leases: the calls of hold_write.lua and release_write.lua.

use std::sync::{
    Arc, LazyLock,
    atomic::{AtomicU64, Ordering},
};

use redis::{Cmd, ErrorKind, Pipeline, RedisError, Script, cmd};

use super::{
    LinkError,
    cluster::{Cluster, with_script},
    leases::{LeaseConflict, LeasePath, LeaseScope, LeaseState},
    table::LeaseGrant,
};
use crate::{node::NodeRecord, session::SessionId};

static HOLD_WRITE: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("lua/lease.lua"), include_str!("lua/hold_write.lua"))));
pub(super) static RELEASE_WRITE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(concat!(include_str!("lua/lease.lua"), include_str!("lua/release_write.lua")))
});

/// How often a take is called until it has looked at all paths below a tree. Each call removes what nodes that
/// died have left of two hundred paths.
const MOST_CALLS: u32 = 100;

/// A lease, to be taken, kept or given back.
#[derive(Clone, Debug)]
pub(super) struct LeaseRequest {
    pub claims: Arc<[LeasePath]>,
    pub token: String,
    pub state: Arc<LeaseState>,
}

/// What Redis says of a lease that it has granted or kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeaseConfirmation {
    pub epoch: u64,
    pub number: u64,
    /// Redis has lost data of late: another session may have the path.
    pub is_doubtful: bool,
}

/// What Redis answers to a session that wants a lease.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TakeReply {
    Granted(LeaseConfirmation),
    Busy(Option<SessionId>, LeaseConflict),
}

/// What a node remembers for its requests.
pub(super) struct LeaseCalls {
    /// What the tokens of this process start with: name, incarnation and place, without spaces in each.
    holder: String,
    /// Of the data that Redis had when it last answered; 0: it has not answered yet.
    epoch: AtomicU64,
    /// The number of the connection on which the server was last compared with that of the epoch.
    compared: AtomicU64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum LeaseStep {
    Take,
    Keep,
    /// Only learns the epoch.
    Look,
    /// Released, and the answer matters.
    Give,
    /// Released, and the answer does not matter.
    Drop,
}

impl LeaseCalls {
    pub fn new(node: &NodeRecord, place: Option<&str>) -> Self {
        let place = place.filter(|place| !place.is_empty()).unwrap_or("-").replace(' ', "_");
        Self {
            holder: format!("{} {:016x} {place}", node.name, node.incarnation),
            epoch: AtomicU64::new(0),
            compared: AtomicU64::new(0),
        }
    }

    /// Tells a lease from all others, in all processes. [`TakeReply::parse`] takes the session from it.
    pub fn token(&self, grant: LeaseGrant) -> String {
        format!("{} {grant}", self.holder)
    }

    fn note(&self, epoch: u64) {
        let before = self.epoch.swap(epoch, Ordering::Relaxed);
        if before != 0 && before != epoch {
            log::warn!(
                "Redis has lost data, or is another server: for one node_lease, uploads to a storage without locks \
                 that all nodes see are refused"
            );
        }
    }
}

impl Cluster {
    /// Takes a lease.
    pub async fn take(&self, lease: &LeaseRequest) -> Result<TakeReply, LinkError> {
        for _ in 0..MOST_CALLS {
            let reply = self.call(&HOLD_WRITE, LeaseStep::Take, lease).await?;
            if reply.first().map(String::as_str) != Some("more") {
                return self.taken(&reply);
            }
        }
        Err(unexpected("hold_write.lua looks at too many paths"))
    }

    /// Keeps a lease; `None` if it is lost.
    pub async fn keep_one(&self, lease: &LeaseRequest) -> Result<Option<LeaseConfirmation>, LinkError> {
        self.kept(&self.call(&HOLD_WRITE, LeaseStep::Keep, lease).await?)
    }

    /// Keeps leases; `None` for each that is lost. Also without leases the node learns of a loss of data: what it
    /// knows of the time before makes takes uncertain.
    pub async fn keep(&self, leases: &[LeaseRequest]) -> Result<Vec<Option<LeaseConfirmation>>, LinkError> {
        let (connection, compare) = self.comparison();
        let mut pipe = with_script(&HOLD_WRITE);
        let nothing =
            LeaseRequest { claims: Arc::new([]), token: self.leases.holder.clone(), state: Arc::default() };
        pipe.add_command(self.command(&HOLD_WRITE, LeaseStep::Look, &nothing, compare));
        for lease in leases {
            pipe.add_command(self.command(&HOLD_WRITE, LeaseStep::Keep, lease, false));
        }
        let replies: Vec<Vec<String>> = self.link().pipe(&pipe).await?;
        self.compared(connection);
        let Some((look, kept)) = replies.split_first() else { return Err(unexpected("hold_write.lua")) };
        self.leases.note(parse(look.first().map_or("", String::as_str))?);
        kept.iter().map(|reply| self.kept(reply)).collect()
    }

    /// Gives a lease back; `false` if another session has had it.
    pub async fn give_back(&self, lease: &LeaseRequest) -> Result<bool, LinkError> {
        match self.call(&RELEASE_WRITE, LeaseStep::Give, lease).await?.first().map(String::as_str) {
            Some("held") => Ok(true),
            Some("lost") => Ok(false),
            _ => Err(unexpected("release_write.lua")),
        }
    }

    /// Adds the release of a lease to `pipe`, which knows [`RELEASE_WRITE`].
    pub fn add_release(&self, pipe: &mut Pipeline, lease: &LeaseRequest) {
        pipe.add_command(self.command(&RELEASE_WRITE, LeaseStep::Drop, lease, false)).ignore();
    }

    /// The answer, given by a server that was compared with that of the epoch.
    async fn call(
        &self,
        script: &Script,
        step: LeaseStep,
        lease: &LeaseRequest,
    ) -> Result<Vec<String>, LinkError> {
        let (connection, compare) = self.comparison();
        let reply = self.link().call(script, &self.command(script, step, lease, compare)).await?;
        if compare || self.link().connections() == connection {
            self.compared(connection);
            return Ok(reply);
        }
        // A new connection, perhaps to another server: the same request again, which bears it.
        self.link().call(script, &self.command(script, step, lease, true)).await
    }

    /// The number of the connection, and whether the server there must be compared with that of the epoch.
    fn comparison(&self) -> (u64, bool) {
        let connection = self.link().connections();
        (connection, connection == 0 || connection != self.leases.compared.load(Ordering::Relaxed))
    }

    /// Notes that the server was compared, if the request went out on `connection`.
    fn compared(&self, connection: u64) {
        if self.link().connections() == connection {
            self.leases.compared.store(connection, Ordering::Relaxed);
        }
    }

    fn command(&self, script: &Script, step: LeaseStep, lease: &LeaseRequest, compare: bool) -> Cmd {
        let keys = self.keys();
        let known = self.leases.epoch.load(Ordering::Relaxed);
        let (epoch, number) = lease.state.granted();
        let mut call = cmd("EVALSHA");
        call.arg(script.get_hash()).arg(3 + lease.claims.len());
        call.arg(keys.lease_epoch()).arg(keys.leased_paths()).arg(keys.leased_trees());
        for claim in lease.claims.iter() {
            call.arg(keys.write_lease(&claim.path));
        }
        let kind = |claim: &LeasePath| if claim.scope == LeaseScope::Tree { 't' } else { 'f' };
        call.arg(match step {
            LeaseStep::Take => "take",
            LeaseStep::Keep => "keep",
            LeaseStep::Look => "look",
            LeaseStep::Give => "give",
            LeaseStep::Drop => "drop",
        });
        call.arg(keys.write_leases()).arg(&lease.token).arg(self.lease_ms()).arg(self.kept_ms());
        call.arg(hex(known)).arg(hex(rand::random_range(1..=u64::MAX))).arg(u8::from(compare));
        call.arg(hex(epoch)).arg(number);
        call.arg(u8::from(lease.state.is_within(self.lease))).arg(u8::from(lease.state.is_on_storage()));
        call.arg(lease.claims.iter().map(kind).collect::<String>());
        call
    }

    fn taken(&self, reply: &[String]) -> Result<TakeReply, LinkError> {
        let fields: Vec<&str> = reply.iter().map(String::as_str).collect();
        match fields[..] {
            ["busy", place, holder, epoch] => {
                self.leases.note(parse(epoch)?);
                let conflict = match place {
                    "below" => LeaseConflict::Below,
                    "above" => LeaseConflict::Above,
                    _ => LeaseConflict::Same,
                };
                Ok(TakeReply::Busy(holder.rsplit(' ').next().and_then(|id| id.parse().ok()), conflict))
            }
            _ => match self.kept(reply)? {
                Some(kept) => Ok(TakeReply::Granted(kept)),
                None => Err(unexpected("hold_write.lua")),
            },
        }
    }

    fn kept(&self, reply: &[String]) -> Result<Option<LeaseConfirmation>, LinkError> {
        let fields: Vec<&str> = reply.iter().map(String::as_str).collect();
        match fields[..] {
            ["held", epoch, number, doubt] => {
                let epoch = parse(epoch)?;
                self.leases.note(epoch);
                let number = number.parse().map_err(|_| unexpected("the number of a lease"))?;
                Ok(Some(LeaseConfirmation { epoch, number, is_doubtful: doubt == "1" }))
            }
            ["lost", epoch] => {
                self.leases.note(parse(epoch)?);
                Ok(None)
            }
            _ => Err(unexpected("hold_write.lua")),
        }
    }
}

/// An epoch as scripts take it: nothing for 0.
fn hex(epoch: u64) -> String {
    if epoch == 0 { String::new() } else { format!("{epoch:016x}") }
}

fn parse(epoch: &str) -> Result<u64, LinkError> {
    u64::from_str_radix(epoch, 16).map_err(|_| unexpected("the epoch of leases"))
}

fn unexpected(what: &'static str) -> LinkError {
    LinkError::Reply(RedisError::from((ErrorKind::UnexpectedReturnType, what)))
}
