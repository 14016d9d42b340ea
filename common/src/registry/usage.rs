//! The usage of homes for quotas, on one node or shared through Redis.
//!
//! A home is counted once on the storage. Later its usage follows from the changes that the nodes make.
//! Each process sends the sums of all its changes since it began, so a request may be lost or repeated
//! without an error in the result. An upload reserves bytes before it writes them.

use std::{
    sync::{Arc, LazyLock, atomic::Ordering},
    time::Duration,
};

use redis::cmd;

use super::{
    EssentialScript, LinkError, Registry,
    cluster::Cluster,
    core::Core,
    home::{
        CountedHome, LARGEST, RETENTION, SMALLEST_GRANT, SentSums, SettleReply, Usage, UsageChange,
        UsageStatus, UsageStep, millis,
    },
};
use crate::sync::lock;

static SETTLE: LazyLock<EssentialScript> =
    LazyLock::new(|| EssentialScript::new(include_str!("lua/settle_usage.lua")));
static COUNT: LazyLock<EssentialScript> =
    LazyLock::new(|| EssentialScript::new(include_str!("lua/count_usage.lua")));

/// Redis is away, and the policy is [`WhenAway::Refuse`](super::WhenAway::Refuse).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the registry is away")]
pub struct RegistryAway;

/// A handle on the usage of one home. Cheap to clone.
#[derive(Clone)]
pub struct HomeUsage {
    core: Arc<Core>,
    home: Arc<CountedHome>,
}

/// The right to count a home. Dropping it gives the right up.
#[must_use]
pub struct HomeCount {
    usage: HomeUsage,
    token: String,
}

impl Registry {
    /// The usage of the home at `path` within the storage. `recount` is the time between two counts.
    pub fn home_usage(&self, path: &[u8], recount: Duration) -> HomeUsage {
        let mut homes = lock(&self.core.homes);
        // Kept until the process ends, because its sums must not begin again at zero.
        let home = homes.entry(path.into()).or_insert_with(|| Arc::new(CountedHome::new(path, recount)));
        HomeUsage { core: Arc::clone(&self.core), home: Arc::clone(home) }
    }

    /// Subtracts `removed` from the usage of each known home that contains the directory `path`, which has
    /// no leading slash. `recount` is the time between two counts of a home.
    pub async fn removed_below(&self, path: &[u8], removed: Usage, recount: Duration) {
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(end, _)| end);
        let mut homes: Vec<_> = [0, path.len()].into_iter().chain(ends).map(|end| &path[..end]).collect();
        homes.dedup();
        for home in homes {
            if self.is_known_home(home).await {
                let change = UsageChange { removed, ..UsageChange::default() };
                let home = self.home_usage(home, recount);
                // If Redis is away, the next request about the home carries the change.
                let _ = home.settle(UsageStep { change, ..UsageStep::default() }).await;
            }
        }
    }

    async fn is_known_home(&self, path: &[u8]) -> bool {
        if lock(&self.core.homes).contains_key(path) {
            return true;
        }
        let Some(cluster) = &self.core.cluster else { return false };
        let key = cluster.keys().home_usage(path);
        // An unknown home needs no change: it is counted at its next use.
        cluster.link().query(cmd("EXISTS").arg(key)).await.unwrap_or(false)
    }
}

impl HomeUsage {
    /// Notes the changes of `step`, also if the reservation fails, and reserves the wanted amount as far as
    /// there is room. An empty step only asks for the usage.
    ///
    /// # Errors
    /// Redis is away and the policy is to refuse. Nothing was reserved.
    pub async fn settle(&self, step: UsageStep) -> Result<UsageStatus, RegistryAway> {
        self.home.state().apply(&step);
        let Some(cluster) = &self.core.cluster else {
            return Ok(self.home.state().reserve(&step, self.home.recount));
        };
        // One request at a time: a later request must not carry older reservations.
        let _requesting = self.home.requesting.lock().await;
        let sums = self.home.state().sums();
        match cluster.settle_usage(&self.home, &sums, &step).await {
            Ok(reply) => Ok(self.home.state().apply_reply(&sums, reply)),
            Err(error) if cluster.may_go_on(&error) => {
                Ok(self.home.state().reserve(&step, self.home.recount))
            }
            Err(_) => Err(RegistryAway),
        }
    }

    /// The right to count the home, if a count is due and no other task or node counts it.
    pub async fn begin_count(&self) -> Option<HomeCount> {
        if self.home.is_counting.swap(true, Ordering::Relaxed) {
            return None;
        }
        let counting = HomeCount { usage: self.clone(), token: format!("{:032x}", rand::random::<u128>()) };
        self.home.state().scan = Some(UsageChange::default());
        let may_count = match counting.ask("begin", Usage::default()).await {
            Ok(may_count) => may_count,
            // Without an answer this node counts for itself, if it does not know the usage.
            Err(_) => self.home.state().used.is_none(),
        };
        may_count.then_some(counting)
    }
}

impl HomeCount {
    /// Interval at which [`HomeCount::keep`] must be called.
    pub fn interval(&self) -> Duration {
        self.usage.core.cluster.as_ref().map_or(RETENTION, |cluster| cluster.lease / 3)
    }

    /// Renews the right. Returns false if another node has taken it over.
    pub async fn keep(&self) -> bool {
        // While Redis is away no other node can take the right over.
        self.ask("keep", Usage::default()).await.unwrap_or(true)
    }

    /// Ends the count with its result. Sessions may have changed the home during the count, so the known
    /// usage is corrected only as far as the result proves it wrong.
    pub async fn finish(self, counted: Usage) {
        let ended = self.ask("end", counted).await;
        if !matches!(ended, Ok(false)) {
            self.usage.home.state().counted(counted);
        }
    }

    async fn ask(&self, step: &str, counted: Usage) -> Result<bool, LinkError> {
        let Some(cluster) = &self.usage.core.cluster else { return Ok(true) };
        cluster.count_usage(&self.usage.home, step, &self.token, counted).await
    }
}

impl Drop for HomeCount {
    fn drop(&mut self) {
        self.usage.home.state().scan = None;
        self.usage.home.is_counting.store(false, Ordering::Relaxed);
    }
}

impl Cluster {
    async fn settle_usage(
        &self,
        home: &CountedHome,
        sums: &SentSums,
        step: &UsageStep,
    ) -> Result<SettleReply, LinkError> {
        let bounded = |number: u64| number.min(LARGEST);
        let limit = |limit: Option<u64>| limit.map_or(-1, |limit| bounded(limit).cast_signed());
        let (name, incarnation) = self.process();
        let mut call = SETTLE.on(self.link()).prepare_invoke();
        call.key(self.keys().home_usage(&home.path)).key(self.keys().node(name));
        call.arg(name.as_str()).arg(incarnation).arg(millis(home.recount)).arg(home.retention_ms());
        for UsageChange { added, removed } in [sums.done, sums.acknowledged] {
            call.arg(&[added.bytes, removed.bytes, added.files, removed.files].map(bounded));
        }
        for Usage { bytes, files } in [sums.reserved, step.wanted] {
            call.arg(&[bytes, files].map(bounded));
        }
        call.arg(&[limit(step.limit.bytes), limit(step.limit.files)]).arg(SMALLEST_GRANT);
        call.arg(u8::from(step.whole));
        self.link().script(&call).await
    }

    async fn count_usage(
        &self,
        home: &CountedHome,
        step: &str,
        token: &str,
        counted: Usage,
    ) -> Result<bool, LinkError> {
        let mut call = COUNT.on(self.link()).prepare_invoke();
        call.key(self.keys().home_usage(&home.path)).arg(step).arg(token).arg(millis(self.lease));
        call.arg(millis(home.recount)).arg(home.retention_ms());
        call.arg(&[counted.bytes, counted.files].map(|number| number.min(LARGEST)));
        self.link().script(&call).await
    }
}
