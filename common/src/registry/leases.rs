//! Leases on paths: the right to write a file, or to move or remove a directory with all that is in it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{
    Core, LinkError, Registry,
    cluster::Cluster,
    lease_calls::{LeaseRequest, TakeReply},
    refresh::RegistryWork,
    table::LeaseGrant,
};
use crate::{clock, session::SessionId};

/// A lease counts as expired this part of its duration before Redis lets it expire. A byte that the node
/// writes at the last moment still has to reach the storage, two clocks do not run equally fast, and Redis
/// counts from the time at which it got the request. With refreshes every third of a lease, one that fails
/// costs no transfer.
const MARGIN: u32 = 4;

/// How far a lease reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeaseScope {
    /// The path itself. Refused while the path, or a tree above it, is leased.
    File,
    /// The path with all paths below it. Refused while one of them, or a tree above them, is leased.
    Tree,
}

/// A path to lease, as it is named within the storage: without a slash before it, `/` between its names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeasePath {
    pub path: Box<[u8]>,
    pub scope: LeaseScope,
}

impl LeasePath {
    pub fn file(path: &[u8]) -> Self {
        Self { path: path.into(), scope: LeaseScope::File }
    }

    pub fn tree(path: &[u8]) -> Self {
        Self { path: path.into(), scope: LeaseScope::Tree }
    }
}

/// Where the lease is that stands in the way of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseConflict {
    /// Of the path itself.
    Same,
    /// Of a path below the tree that was asked for.
    Below,
    /// Of a tree that holds the path.
    Above,
}

/// Why a path may not be written now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseRefused {
    #[error("another session has a lease on this path, on one below or on a directory above it")]
    Busy {
        /// That session, here or on another node, as far as it is known.
        holder: Option<SessionId>,
        conflict: LeaseConflict,
    },
    /// Redis is away and the policy is [`WhenAway::Refuse`](super::WhenAway::Refuse).
    #[error("the registry is away")]
    RegistryAway,
}

/// Whether a lease proves that no other session of the cluster writes its paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseCertainty {
    /// Yes, as long as it is not [expired](WriteLease::is_expired).
    Certain,
    /// No. Redis lost data less than a `node_lease` ago: another session may hold a lease that Redis has not
    /// heard of again yet.
    RedisLostData,
    /// No. Redis is away, and the policy is [`WhenAway::Admit`](super::WhenAway::Admit): only this node's own
    /// leases were compared.
    RedisAway,
}

/// What the node's task tells of a lease to those who write.
#[derive(Debug, Default)]
pub(super) struct LeaseState {
    /// When the last request that took or kept it was sent (ms of CLOCK_BOOTTIME); 0: never, or it is lost.
    sent: AtomicU64,
    /// Of Redis's data when it was last kept; 0: never.
    epoch: AtomicU64,
    number: AtomicU64,
    on_storage: AtomicBool,
}

impl LeaseState {
    /// Notes that Redis has granted or kept it, by a request sent at `sent`.
    pub fn kept(&self, sent: Duration, epoch: u64, number: u64) {
        self.number.store(number, Ordering::Relaxed);
        self.epoch.store(epoch, Ordering::Relaxed);
        self.sent.fetch_max(millis(sent), Ordering::Release);
    }

    pub fn lost(&self) {
        self.sent.store(0, Ordering::Release);
    }

    /// Epoch and number as Redis last told them; 0 each if it never granted the lease.
    pub fn granted(&self) -> (u64, u64) {
        (self.epoch.load(Ordering::Relaxed), self.number.load(Ordering::Relaxed))
    }

    /// Whether it was kept less than `time` ago.
    pub fn is_within(&self, time: Duration) -> bool {
        let sent = self.sent.load(Ordering::Acquire);
        sent != 0 && millis(clock::since_boot()).saturating_sub(sent) < millis(time)
    }

    pub fn is_on_storage(&self) -> bool {
        self.on_storage.load(Ordering::Relaxed)
    }
}

/// Never 0 of a time since boot.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// Tells how old a lease is, without a request to Redis. Cheap to clone and to ask.
#[derive(Clone, Debug)]
pub struct LeaseAge {
    state: Arc<LeaseState>,
    /// `None`: there is only this node.
    most: Option<Duration>,
}

impl LeaseAge {
    /// Whether the last request that took or kept the lease was sent so long ago (`node_lease` less a quarter)
    /// that another session may soon have the path, or the node knows that it has. Also true of a lease that
    /// Redis never granted. A single node's leases do not expire.
    pub fn is_expired(&self) -> bool {
        self.most.is_some_and(|most| !self.state.is_within(most))
    }
}

/// The right to write paths. Dropping it gives the right back.
#[must_use]
pub struct WriteLease {
    core: Arc<Core>,
    claims: Arc<[LeasePath]>,
    grant: LeaseGrant,
    state: Arc<LeaseState>,
    certainty: LeaseCertainty,
    /// As far as the node knows.
    is_in_redis: bool,
}

impl Registry {
    /// [`Self::lease`] of one file.
    ///
    /// # Errors
    /// The same.
    pub async fn lease_write(&self, path: &[u8], holder: SessionId) -> Result<WriteLease, LeaseRefused> {
        self.lease(vec![LeasePath::file(path)], holder).await
    }

    /// Leases paths within the storage, all or none, in one step. The right is given back when the lease is
    /// dropped. `holder` is what others are told of it.
    ///
    /// A lease that is not [certain](WriteLease::is_certain) needs a lock on the storage beside it that all
    /// nodes see.
    ///
    /// # Errors
    /// Another session has one of the paths, here or on another node; or the registry is away and the policy
    /// is to refuse.
    pub async fn lease(&self, claims: Vec<LeasePath>, holder: SessionId) -> Result<WriteLease, LeaseRefused> {
        self.lease_if(claims, holder, Cluster::may_go_on).await
    }

    /// As [`Self::lease`] for a change of names, which the policy for an absent Redis does not concern: the
    /// holder decides whether it goes on without [proof](WriteLease::is_certain).
    ///
    /// # Errors
    /// Another session has one of the paths, here or on another node.
    pub async fn lease_names(
        &self,
        claims: Vec<LeasePath>,
        holder: SessionId,
    ) -> Result<WriteLease, LeaseRefused> {
        self.lease_if(claims, holder, |cluster, error| {
            cluster.may_go_on(error);
            true
        })
        .await
    }

    /// `may_go_on`: whether there is a lease of this node alone while Redis does not answer.
    async fn lease_if(
        &self,
        claims: Vec<LeasePath>,
        holder: SessionId,
        may_go_on: impl FnOnce(&Cluster, &LinkError) -> bool,
    ) -> Result<WriteLease, LeaseRefused> {
        let claims = each_once(claims);
        let state = Arc::new(LeaseState::default());
        let taken = self.core.table().take(&claims, holder, &state);
        let grant =
            taken.map_err(|(holder, conflict)| LeaseRefused::Busy { holder: Some(holder), conflict })?;
        let mut lease = WriteLease {
            core: Arc::clone(&self.core),
            claims,
            grant,
            state,
            certainty: LeaseCertainty::Certain,
            is_in_redis: true,
        };
        if let Some(cluster) = &self.core.cluster {
            let sent = clock::since_boot();
            match cluster.take(&lease.held(cluster)).await {
                Ok(TakeReply::Granted(kept)) => {
                    lease.state.kept(sent, kept.epoch, kept.number);
                    if kept.is_doubtful {
                        lease.certainty = LeaseCertainty::RedisLostData;
                    }
                }
                Ok(TakeReply::Busy(holder, conflict)) => {
                    lease.is_in_redis = false;
                    return Err(LeaseRefused::Busy { holder, conflict });
                }
                Err(error) if may_go_on(cluster, &error) => lease.certainty = LeaseCertainty::RedisAway,
                Err(_) => return Err(LeaseRefused::RegistryAway),
            }
        }
        self.core.table().grant(grant);
        Ok(lease)
    }
}

/// Each path once, with the wider scope.
fn each_once(mut claims: Vec<LeasePath>) -> Arc<[LeasePath]> {
    // A path's claim of a tree comes before that of a file.
    claims.sort_by(|a, b| a.path.cmp(&b.path).then(b.scope.cmp(&a.scope)));
    claims.dedup_by(|next, first| next.path == first.path);
    claims.into()
}

impl WriteLease {
    /// See [`LeaseCertainty`]. A single node's leases are certain.
    pub fn certainty(&self) -> LeaseCertainty {
        self.certainty
    }

    /// Whether the lease alone proves that no other session writes its paths. If not, only a lock on the
    /// storage does that all nodes see: see [`Self::rely_on_storage`].
    pub fn is_certain(&self) -> bool {
        self.certainty == LeaseCertainty::Certain
    }

    /// Tells that the holder has locked the file on the storage, and that all nodes see this lock. From now on
    /// the lease also outlives an outage of Redis and a loss of its data, however long it lasts, unless another
    /// session has a lease on the path when Redis is back.
    pub fn rely_on_storage(&self) {
        self.state.on_storage.store(true, Ordering::Relaxed);
    }

    /// See [`LeaseAge::is_expired`].
    pub fn is_expired(&self) -> bool {
        self.age().is_expired()
    }

    /// What tells the age of this lease, to be asked while its holder writes.
    pub fn age(&self) -> LeaseAge {
        let most = self.core.cluster.as_ref().map(|cluster| cluster.lease - cluster.lease / MARGIN);
        LeaseAge { state: Arc::clone(&self.state), most }
    }

    /// Whether the right is still this lease's, also for Redis. It is lost when Redis did not hear from the node
    /// for so long that the lease expired, and another session took one of the paths, or when Redis lost it and
    /// the node could not tell it again within a lease. While Redis is away it counts as held if the policy is
    /// [`WhenAway::Admit`](super::WhenAway::Admit) or a lock on the storage stands beside it.
    pub async fn is_held(&self) -> bool {
        if !self.core.table().holds(self.grant) {
            return false;
        }
        let Some(cluster) = &self.core.cluster else {
            return true;
        };
        let sent = clock::since_boot();
        match cluster.keep_one(&self.held(cluster)).await {
            Ok(Some(kept)) => {
                self.state.kept(sent, kept.epoch, kept.number);
                true
            }
            Ok(None) => false,
            Err(error) => cluster.may_go_on(&error) || self.state.is_on_storage(),
        }
    }

    /// Gives the right back, and says whether it was this lease's until now: as [`Self::is_held`], and
    /// one request for both.
    pub async fn give_back(mut self) -> bool {
        let core = Arc::clone(&self.core);
        let Some(cluster) = &core.cluster else {
            return core.table().holds(self.grant);
        };
        // No refresh keeps it meanwhile.
        let _keeping = cluster.keeping.read().await;
        if !core.table().end(self.grant) {
            return false;
        }
        match cluster.give_back(&self.held(cluster)).await {
            Ok(held) => {
                self.is_in_redis = false;
                held
            }
            Err(error) => cluster.may_go_on(&error) || self.state.is_on_storage(),
        }
    }

    fn held(&self, cluster: &Cluster) -> LeaseRequest {
        LeaseRequest {
            claims: Arc::clone(&self.claims),
            token: cluster.token(self.grant),
            state: Arc::clone(&self.state),
        }
    }
}

impl Drop for WriteLease {
    fn drop(&mut self) {
        self.core.table().release(self.grant);
        if self.is_in_redis {
            self.core.work(|cluster| RegistryWork::EndLease(self.held(cluster)));
        }
    }
}
