//! How much each home holds, for its users' quotas: known to one node, or to all through Redis.
//!
//! A home is counted once from the disk, and from then on by what the nodes do to it. Each node keeps
//! sums of all that it has done since it began, and tells them; so nothing is told twice or lost,
//! whatever happens to a request. What an upload may write is reserved before it arrives.

use std::{
    sync::{
        Arc, LazyLock, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use redis::Script;

use super::{Core, LinkError, Registry, cluster::Cluster};
use crate::{policy::Quota, sync::lock};

static SETTLE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("settle_usage.lua")));
static COUNT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("count_usage.lua")));

/// Bytes of the smallest piece that is reserved for an upload, if there is room for it.
const SMALLEST_GRANT: u64 = 64 * 1024;

/// What Redis knows of a home that nobody uses is forgotten after this long, or after twice the time
/// between two counts.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// What Lua's numbers can count exactly. More, which holes in files can come to, is told as this much:
/// beyond what a reply can hold, Redis would answer with something else.
const LARGEST: u64 = 1 << 53;

/// What files take. A directory counts as a file without bytes; symbolic links take nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub bytes: u64,
    pub files: u64,
}

impl Usage {
    pub fn plus(self, other: Self) -> Self {
        Self { bytes: self.bytes.saturating_add(other.bytes), files: self.files.saturating_add(other.files) }
    }

    /// Not less than nothing.
    pub fn less(self, other: Self) -> Self {
        Self { bytes: self.bytes.saturating_sub(other.bytes), files: self.files.saturating_sub(other.files) }
    }

    fn clamp(self, least: Self, most: Self) -> Self {
        Self {
            bytes: self.bytes.clamp(least.bytes, most.bytes.max(least.bytes)),
            files: self.files.clamp(least.files, most.files.max(least.files)),
        }
    }
}

/// What has been done to a home.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    pub added: Usage,
    pub removed: Usage,
}

impl Change {
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    fn plus(self, other: Self) -> Self {
        Self { added: self.added.plus(other.added), removed: self.removed.plus(other.removed) }
    }
}

/// One step of a session in a home.
#[derive(Clone, Copy, Debug, Default)]
pub struct Step {
    /// What it has done.
    pub change: Change,
    /// What of its reservation it has used, or does not need any more.
    pub released: Usage,
    /// What it would like to reserve.
    pub wanted: Usage,
    /// Bytes are wanted all or none, not as many as there are.
    pub whole: bool,
    /// Of its user.
    pub limit: Quota,
}

/// What is known of a home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// What is on the disk or reserved; `None` if it must be counted first.
    pub held: Option<Usage>,
    /// What was reserved of what was wanted. Bytes: any part, unless a whole is wanted; files: all or none.
    pub granted: Usage,
    /// Nobody counts, and the last count was long ago or is in doubt.
    pub count_is_due: bool,
}

/// Redis is away, and the policy is to refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the registry is away")]
pub struct RegistryAway;

/// A home whose usage is known to the registry. Cheap to clone.
#[derive(Clone)]
pub struct HomeUsage {
    core: Arc<Core>,
    home: Arc<Home>,
}

/// The right to count a home. Dropping it gives it up.
#[must_use]
pub struct Counting {
    usage: HomeUsage,
    token: String,
}

impl Registry {
    /// The home at `path` within the storage, which is to be counted every `recount`.
    pub fn home_usage(&self, path: &[u8], recount: Duration) -> HomeUsage {
        let mut homes = lock(&self.core.homes);
        // Kept for as long as the process: its sums must not begin again.
        let home = homes.entry(path.into()).or_insert_with(|| {
            Arc::new(Home {
                path: path.into(),
                recount,
                state: Mutex::default(),
                turn: tokio::sync::Mutex::default(),
                is_counting: AtomicBool::new(false),
            })
        });
        HomeUsage { core: Arc::clone(&self.core), home: Arc::clone(home) }
    }
}

impl HomeUsage {
    /// Notes what was done, which cannot fail, and reserves what is wanted as far as there is room.
    /// A step of nothing only asks.
    ///
    /// # Errors
    /// The registry is away and the policy is to refuse: nothing was reserved.
    pub async fn settle(&self, step: Step) -> Result<Standing, RegistryAway> {
        self.home.state().apply(&step);
        let Some(cluster) = &self.core.cluster else {
            return Ok(self.home.state().reserve(&step, self.home.recount));
        };
        // One request at a time, so that the reservations told are never older ones.
        let _turn = self.home.turn.lock().await;
        let told = self.home.state().told();
        match cluster.settle_usage(&self.home, &told, &step).await {
            Ok(answer) => Ok(self.home.state().learn(&told, answer)),
            Err(error) if cluster.may_go_on(&error) => {
                Ok(self.home.state().reserve(&step, self.home.recount))
            }
            Err(_) => Err(RegistryAway),
        }
    }

    /// The right to count the home, if a count is due and nobody else counts.
    pub async fn begin_count(&self) -> Option<Counting> {
        if self.home.is_counting.swap(true, Ordering::Relaxed) {
            return None;
        }
        let counting = Counting { usage: self.clone(), token: format!("{:032x}", rand::random::<u128>()) };
        self.home.state().scan = Some(Change::default());
        let may = match counting.ask("begin", Usage::default()).await {
            Ok(may) => may,
            // Redis forgot, or never knew: this node counts for itself.
            Err(_) => self.home.state().used.is_none(),
        };
        may.then_some(counting)
    }
}

impl Counting {
    /// How often [`Counting::keep`] must be called.
    pub fn interval(&self) -> Duration {
        self.usage.core.cluster.as_ref().map_or(KEPT, |cluster| cluster.lease / 3)
    }

    /// Whether the count is still this one's.
    pub async fn keep(&self) -> bool {
        // While Redis is away nobody else can begin.
        self.ask("keep", Usage::default()).await.unwrap_or(true)
    }

    /// The home held this much, seen while others may have changed it. What is known is put right as
    /// far as the count proves it wrong.
    pub async fn finish(self, counted: Usage) {
        let ended = self.ask("end", counted).await;
        if !matches!(ended, Ok(false)) {
            self.usage.home.state().counted(counted);
        }
    }

    async fn ask(&self, what: &str, counted: Usage) -> Result<bool, LinkError> {
        let Some(cluster) = &self.usage.core.cluster else { return Ok(true) };
        cluster.count_usage(&self.usage.home, what, &self.token, counted).await
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.usage.home.state().scan = None;
        self.usage.home.is_counting.store(false, Ordering::Relaxed);
    }
}

pub(super) struct Home {
    path: Box<[u8]>,
    recount: Duration,
    state: Mutex<State>,
    turn: tokio::sync::Mutex<()>,
    is_counting: AtomicBool,
}

impl Home {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn kept_ms(&self) -> u64 {
        millis(KEPT.max(self.recount.saturating_mul(2)))
    }
}

/// What this node knows of a home, which is all there is without Redis.
#[derive(Default)]
struct State {
    /// What this process has done in all.
    done: Change,
    /// `done` when Redis last answered.
    acknowledged: Change,
    /// By uploads here.
    reserved: Usage,
    /// By uploads on other nodes, as far as is known.
    others: Usage,
    /// On the disk; `None` until it is counted.
    used: Option<Usage>,
    counted_at: Option<Instant>,
    /// What has changed since this node began to count.
    scan: Option<Change>,
}

/// What a node tells Redis of itself.
struct Told {
    done: Change,
    acknowledged: Change,
    reserved: Usage,
}

/// What `settle_usage.lua` answers.
type Answer = (u8, u8, u64, u64, u64, u64, u64, u64);

impl State {
    fn apply(&mut self, step: &Step) {
        let change = step.change;
        self.done = self.done.plus(change);
        self.used = self.used.map(|used| used.plus(change.added).less(change.removed));
        self.scan = self.scan.map(|seen| seen.plus(change));
        self.reserved = self.reserved.less(step.released);
    }

    fn told(&self) -> Told {
        Told { done: self.done, acknowledged: self.acknowledged, reserved: self.reserved }
    }

    fn learn(&mut self, told: &Told, answer: Answer) -> Standing {
        let (is_counted, is_due, bytes, files, other_bytes, other_files, granted_bytes, granted_files) =
            answer;
        let granted = Usage { bytes: granted_bytes, files: granted_files };
        self.acknowledged = told.done;
        self.others = Usage { bytes: other_bytes, files: other_files };
        self.reserved = self.reserved.plus(granted);
        // What was done since the request is not in the answer, but will be in the next one.
        let since = Change {
            added: self.done.added.less(told.done.added),
            removed: self.done.removed.less(told.done.removed),
        };
        let used = Usage { bytes, files }.plus(since.added).less(since.removed);
        self.used = (is_counted == 1).then_some(used);
        self.counted_at = (is_due == 0).then(Instant::now);
        Standing { held: self.held(), granted, count_is_due: is_due == 1 }
    }

    /// As `settle_usage.lua` does for all nodes.
    fn reserve(&mut self, step: &Step, recount: Duration) -> Standing {
        let mut granted = Usage::default();
        if let Some(held) = self.held() {
            let room = |limit: Option<u64>, held: u64| limit.map(|limit| limit.saturating_sub(held));
            let all_or_none = |wanted: u64, room: u64| if room < wanted { 0 } else { wanted };
            let bytes = room(step.limit.bytes, held.bytes).unwrap_or(step.wanted.bytes);
            let files = room(step.limit.files, held.files).unwrap_or(step.wanted.files);
            granted.bytes = match (step.whole, step.limit.bytes) {
                (true, _) => all_or_none(step.wanted.bytes, bytes),
                (false, None) => step.wanted.bytes,
                (false, Some(_)) => step.wanted.bytes.min(bytes).min(SMALLEST_GRANT.max(bytes / 8)),
            };
            granted.files = all_or_none(step.wanted.files, files);
        }
        self.reserved = self.reserved.plus(granted);
        let is_fresh = self.used.is_some() && self.counted_at.is_some_and(|at| at.elapsed() < recount);
        Standing { held: self.held(), granted, count_is_due: !is_fresh && self.scan.is_none() }
    }

    fn held(&self) -> Option<Usage> {
        self.used.map(|used| used.plus(self.reserved).plus(self.others))
    }

    /// As `count_usage.lua` does for all nodes.
    fn counted(&mut self, counted: Usage) {
        let seen = self.scan.unwrap_or_default();
        let least = counted.less(seen.removed).less(self.reserved);
        let most = counted.plus(seen.added).plus(self.reserved);
        let is_exact = least == most;
        self.counted_at = (self.used.is_some() || is_exact).then(Instant::now);
        self.used = Some(match self.used {
            Some(used) => used.clamp(least, most),
            None => counted.plus(seen.added),
        });
    }
}

impl Cluster {
    async fn settle_usage(&self, home: &Home, told: &Told, step: &Step) -> Result<Answer, LinkError> {
        let told_of = |number: u64| number.min(LARGEST);
        let limit = |limit: Option<u64>| limit.map_or(-1, |limit| told_of(limit).cast_signed());
        let (name, incarnation) = self.process();
        let mut call = SETTLE.prepare_invoke();
        call.key(self.keys().home_usage(&home.path)).key(self.keys().node(name));
        call.arg(name.as_str()).arg(incarnation).arg(millis(home.recount)).arg(home.kept_ms());
        for Change { added, removed } in [told.done, told.acknowledged] {
            call.arg(&[added.bytes, removed.bytes, added.files, removed.files].map(told_of));
        }
        for Usage { bytes, files } in [told.reserved, step.wanted] {
            call.arg(&[bytes, files].map(told_of));
        }
        call.arg(&[limit(step.limit.bytes), limit(step.limit.files)]).arg(SMALLEST_GRANT);
        call.arg(u8::from(step.whole));
        self.link().script(&call).await
    }

    async fn count_usage(
        &self,
        home: &Home,
        what: &str,
        token: &str,
        counted: Usage,
    ) -> Result<bool, LinkError> {
        let mut call = COUNT.prepare_invoke();
        call.key(self.keys().home_usage(&home.path)).arg(what).arg(token).arg(millis(self.lease));
        call.arg(millis(home.recount)).arg(home.kept_ms());
        call.arg(&[counted.bytes, counted.files].map(|number| number.min(LARGEST)));
        self.link().script(&call).await
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).min(LARGEST / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Quota = Quota { bytes: Some(1_000_000), files: Some(3) };

    fn bytes(bytes: u64) -> Usage {
        Usage { bytes, files: 0 }
    }

    fn counted(used: Usage) -> State {
        let mut state = State::default();
        state.counted(used);
        state
    }

    fn reserve(state: &mut State, wanted: Usage) -> Usage {
        state.reserve(&Step { wanted, limit: LIMIT, ..Step::default() }, KEPT).granted
    }

    #[test]
    fn nothing_is_granted_beyond_the_limit_nor_before_the_count() {
        assert_eq!(reserve(&mut State::default(), bytes(1)), bytes(0));
        let mut state = counted(bytes(0));
        let mut granted = 0;
        for _ in 0..1000 {
            granted += reserve(&mut state, bytes(u64::MAX)).bytes;
        }
        assert_eq!(granted, 1_000_000);
        assert_eq!(reserve(&mut state, Usage { bytes: 0, files: 3 }).files, 3);
        assert_eq!(reserve(&mut state, Usage { bytes: 0, files: 1 }).files, 0);
        state.apply(&Step { released: bytes(10), ..Step::default() });
        assert_eq!(reserve(&mut state, bytes(100)), bytes(10));
    }

    #[test]
    fn a_count_corrects_only_what_it_proves_wrong() {
        let mut state = counted(bytes(700));
        state.scan = Some(Change::default());
        let change = Change { added: bytes(100), removed: bytes(50) };
        state.apply(&Step { change, ..Step::default() });
        // Whether it has seen the change or not, 750 is right.
        state.counted(bytes(700));
        assert_eq!(state.used, Some(bytes(750)));
        state.counted(bytes(790));
        assert_eq!(state.used, Some(bytes(750)));
        state.counted(bytes(600));
        assert_eq!(state.used, Some(bytes(700)));
        state.scan = None;
        state.counted(bytes(5));
        assert_eq!(state.used, Some(bytes(5)));
    }
}
