//! Write leases: the right to write a file, or to move or remove a directory with everything below it.

use std::{sync::Arc, time::Duration};

use super::{
    LinkError, Registry,
    cluster::Cluster,
    core::Core,
    lease_calls::{LeaseRequest, TakeReply},
    lease_state::{LeaseConflict, LeaseGrant, LeasePath, LeaseState},
    work::RegistryWork,
};
use crate::{clock, session::SessionId};

/// The node treats a lease as expired this part of its duration before Redis does: a quarter. A byte that
/// the node writes at the last moment still has to reach the storage, clocks differ in speed, and Redis
/// counts from the time at which it received the request. Refreshes come every third of a lease, so one
/// failed refresh ends no transfer.
const MARGIN: u32 = 4;

/// The reason why a lease is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseRefused {
    #[error("another session has a lease on this path, on a path below it or on a directory above it")]
    Busy {
        /// The other session, on this node or another one, if it is known.
        holder: Option<SessionId>,
        conflict: LeaseConflict,
    },
    /// Redis is away and the policy is [`WhenAway::Refuse`](super::WhenAway::Refuse).
    #[error("the registry is away")]
    RegistryAway,
}

/// Tells whether a lease proves that no other session of the cluster writes its paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseCertainty {
    /// A proof, until the lease [expires](WriteLease::is_expired).
    Certain,
    /// No proof: Redis lost data less than a `node_lease` ago. Another session may hold a lease that its
    /// node has not entered again yet.
    RedisLostData,
    /// No proof: too few replicas of Redis have confirmed the lease (`redis_replicas`). After a failover,
    /// Redis may not know it.
    Unreplicated,
    /// No proof: Redis is away, and the policy is [`WhenAway::Admit`](super::WhenAway::Admit). Only this
    /// node's own leases were compared.
    RedisAway,
}

/// Tells the age of a lease without a request to Redis. Cheap to clone and to ask.
#[derive(Clone, Debug)]
pub struct LeaseAge {
    state: Arc<LeaseState>,
    /// Age at which the lease counts as expired. `None` on a single node.
    limit: Option<Duration>,
}

impl LeaseAge {
    /// Returns true if the last confirmed request was sent at least three quarters of a `node_lease` ago,
    /// or the lease is lost, or Redis never granted it. Another session may then have the path soon. Leases
    /// of a single node do not expire.
    pub fn is_expired(&self) -> bool {
        self.limit.is_some_and(|limit| !self.state.is_within(limit))
    }

    /// The epoch of Redis's data and the number of the lease in it. Within an epoch, a later lease has a
    /// greater number. Both are 0 if Redis never granted the lease.
    pub fn granted(&self) -> (u64, u64) {
        self.state.granted()
    }
}

/// The right to write paths. Dropping it releases the lease.
#[must_use]
pub struct WriteLease {
    core: Arc<Core>,
    paths: Arc<[LeasePath]>,
    grant: LeaseGrant,
    state: Arc<LeaseState>,
    certainty: LeaseCertainty,
    /// True if Redis may have the lease, so that it must be removed there.
    is_in_redis: bool,
}

impl Registry {
    /// [`Self::lease`] of one file.
    ///
    /// # Errors
    /// As [`Self::lease`].
    pub async fn lease_write(&self, path: &[u8], holder: SessionId) -> Result<WriteLease, LeaseRefused> {
        self.lease(vec![LeasePath::file(path)], holder).await
    }

    /// Leases all of `paths` or none, in one step. Other sessions learn of `holder` from
    /// [`LeaseRefused::Busy`].
    ///
    /// A lease that is not [certain](WriteLease::is_certain) needs, in addition, a lock on the storage that
    /// all nodes see.
    ///
    /// # Errors
    /// Another session, on this node or another one, has a lease on one of the paths; or Redis is away and
    /// the policy is [`WhenAway::Refuse`](super::WhenAway::Refuse).
    pub async fn lease(&self, paths: Vec<LeasePath>, holder: SessionId) -> Result<WriteLease, LeaseRefused> {
        self.lease_if(paths, holder, Cluster::may_go_on).await
    }

    /// As [`Self::lease`], for a change of names. While Redis is away a lease of this node alone is
    /// granted, whatever the policy is. The holder decides whether it goes on without
    /// [proof](WriteLease::is_certain).
    ///
    /// # Errors
    /// Another session, on this node or another one, has a lease on one of the paths.
    pub async fn lease_names(
        &self,
        paths: Vec<LeasePath>,
        holder: SessionId,
    ) -> Result<WriteLease, LeaseRefused> {
        self.lease_if(paths, holder, |cluster, error| {
            cluster.may_go_on(error);
            true
        })
        .await
    }

    /// `may_go_on` decides whether a lease of this node alone is granted while Redis does not answer.
    async fn lease_if(
        &self,
        paths: Vec<LeasePath>,
        holder: SessionId,
        may_go_on: impl FnOnce(&Cluster, &LinkError) -> bool,
    ) -> Result<WriteLease, LeaseRefused> {
        let paths = without_duplicates(paths);
        let state = Arc::new(LeaseState::default());
        let taken = self.core.table().take(&paths, holder, &state);
        let grant =
            taken.map_err(|(holder, conflict)| LeaseRefused::Busy { holder: Some(holder), conflict })?;
        let mut lease = WriteLease {
            core: Arc::clone(&self.core),
            paths,
            grant,
            state,
            certainty: LeaseCertainty::Certain,
            is_in_redis: true,
        };
        if let Some(cluster) = &self.core.cluster {
            let sent = clock::since_boot();
            match cluster.leases.take(&lease.request(cluster)).await {
                Ok(TakeReply::Granted(confirmed)) => {
                    lease.state.confirm(sent, confirmed.epoch, confirmed.number);
                    if confirmed.is_doubtful {
                        lease.certainty = LeaseCertainty::RedisLostData;
                    } else if !cluster.view.confirmed().has_lease(confirmed.epoch).await {
                        lease.certainty = LeaseCertainty::Unreplicated;
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

/// Each path once; of two scopes the wider.
fn without_duplicates(mut paths: Vec<LeasePath>) -> Arc<[LeasePath]> {
    // The tree before the file of the same path.
    paths.sort_by(|a, b| a.path.cmp(&b.path).then(b.scope.cmp(&a.scope)));
    paths.dedup_by(|next, first| next.path == first.path);
    paths.into()
}

impl WriteLease {
    /// See [`LeaseCertainty`]. Leases of a single node are certain.
    pub fn certainty(&self) -> LeaseCertainty {
        self.certainty
    }

    /// Returns true if the lease alone proves that no other session writes its paths. Otherwise only a lock
    /// on the storage that all nodes see is a proof: see [`Self::rely_on_storage`].
    pub fn is_certain(&self) -> bool {
        self.certainty == LeaseCertainty::Certain
    }

    /// Notes that the holder has locked the file on the storage, with a lock that all nodes see. From now
    /// on the lease survives an outage of Redis of any length, and a loss of its data, unless another
    /// session has a lease on the path when Redis is back.
    pub fn rely_on_storage(&self) {
        self.state.set_on_storage();
    }

    /// See [`LeaseAge::is_expired`].
    pub fn is_expired(&self) -> bool {
        self.age().is_expired()
    }

    /// A handle that tells the age of this lease while its holder writes.
    pub fn age(&self) -> LeaseAge {
        let limit = self.core.cluster.as_ref().map(|cluster| cluster.lease - cluster.lease / MARGIN);
        LeaseAge { state: Arc::clone(&self.state), limit }
    }

    /// Asks Redis whether the lease is still held. It is lost
    /// - if it expired because Redis heard nothing from the node, and another session took one of the
    ///   paths, or
    /// - if Redis lost its data and the node did not enter the lease again within the duration of a lease.
    ///
    /// While Redis is away the lease counts as held if the policy is
    /// [`WhenAway::Admit`](super::WhenAway::Admit) or the storage has a lock: see
    /// [`Self::rely_on_storage`].
    pub async fn is_held(&self) -> bool {
        if !self.core.table().holds(self.grant) {
            return false;
        }
        let Some(cluster) = &self.core.cluster else {
            return true;
        };
        let sent = clock::since_boot();
        match cluster.leases.keep_one(&self.request(cluster)).await {
            Ok(Some(confirmed)) => {
                self.state.confirm(sent, confirmed.epoch, confirmed.number);
                true
            }
            Ok(None) => false,
            Err(error) => cluster.may_go_on(&error) || self.state.is_on_storage(),
        }
    }

    /// Releases the lease. Returns true if it was held until now: see [`Self::is_held`]. A single request
    /// releases it and asks.
    pub async fn give_back(mut self) -> bool {
        let core = Arc::clone(&self.core);
        let Some(cluster) = &core.cluster else {
            return core.table().holds(self.grant);
        };
        // The refresh waits, so that it does not keep this lease meanwhile.
        let _keeping = cluster.keeping.read().await;
        if !core.table().end(self.grant) {
            return false;
        }
        match cluster.leases.give_back(&self.request(cluster)).await {
            Ok(held) => {
                self.is_in_redis = false;
                held
            }
            Err(error) => cluster.may_go_on(&error) || self.state.is_on_storage(),
        }
    }

    fn request(&self, cluster: &Cluster) -> LeaseRequest {
        LeaseRequest {
            paths: Arc::clone(&self.paths),
            token: cluster.leases.token(self.grant),
            state: Arc::clone(&self.state),
        }
    }
}

impl Drop for WriteLease {
    fn drop(&mut self) {
        self.core.table().release(self.grant);
        if self.is_in_redis {
            self.core.work(|cluster| RegistryWork::EndLease(self.request(cluster)));
        }
    }
}
