//! Slots of workers, shared among users and file systems.
//!
//! Work holds its slot from its start to its end, even if its session has ended meanwhile. So work that hangs
//! counts against its user until the system call returns.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use common::sync::lock;
use tokio::{sync::oneshot, time::Instant};

use super::{storage_call::RunningOperation, task::Task};

/// A file system without work for this long no longer counts as in use.
const FORGET_FILESYSTEM: Duration = Duration::from_secs(24 * 60 * 60);

/// The number of slots, and the largest parts of them that one user and one file system may hold.
///
/// The last quarter of the slots is kept for users who hold none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlotBounds {
    pub all: u32,
    pub per_user: u32,
    /// Applies only while sessions use more than one file system.
    pub per_filesystem: u32,
    pub settings: SlotSettings,
}

/// The names of the settings of these bounds, for metrics, replies and the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlotSettings {
    pub all: &'static str,
    pub per_user: &'static str,
    pub per_filesystem: &'static str,
}

/// A request for a slot.
#[derive(Clone, Debug)]
pub struct SlotRequest {
    pub user: Arc<str>,
    /// The device number (`st_dev`) of the file system; 0 if unknown.
    pub filesystem: u64,
    /// The account's own bound, instead of `SlotBounds::per_user`.
    pub per_user: Option<u32>,
    /// The command, for log lines about work that hangs.
    pub task: Option<Arc<Task>>,
}

/// The bound because of which a request gets no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotScope {
    All,
    User,
    Filesystem,
}

/// No slot becomes free: work that does not end holds all slots that the request could get.
#[derive(Clone, Debug)]
pub struct StuckWork {
    pub scope: SlotScope,
    pub setting: &'static str,
    /// Slots in use within the scope.
    pub running: u32,
    /// Time since work within the scope last began or ended.
    pub since: Duration,
    /// The oldest work within the scope, and its age.
    pub oldest: Option<(Option<Arc<Task>>, Duration)>,
}

impl fmt::Display for StuckWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scope, setting, running, since, oldest } = self;
        let of = match scope {
            SlotScope::All => "",
            SlotScope::User => " of this user",
            SlotScope::Filesystem => " in this file system",
        };
        write!(
            f,
            "{running} file operations{of} run, and none has ended for {} s ({setting}, file_operation_wait)",
            since.as_secs()
        )?;
        match oldest {
            Some((Some(task), age)) => {
                let path = task.path().unwrap_or_default();
                write!(f, "; the oldest, {} {path}, runs for {} s", task.verb, age.as_secs())
            }
            Some((None, age)) => write!(f, "; the oldest runs for {} s", age.as_secs()),
            None => Ok(()),
        }
    }
}

/// The slots of one kind.
pub struct Slots {
    bounds: SlotBounds,
    inner: Mutex<SlotsInner>,
}

#[derive(Default)]
struct SlotsInner {
    last_id: u64,
    /// By number, so in the order of their start.
    running: BTreeMap<u64, RunningWork>,
    all: ScopeUsage,
    /// Users with running work.
    users: HashMap<Arc<str>, ScopeUsage>,
    /// File systems with running work, or with work within [`FORGET_FILESYSTEM`].
    filesystems: HashMap<u64, ScopeUsage>,
    /// Requests of the same user and file system wait in one queue, because the same bounds apply to them.
    queues: HashMap<(Arc<str>, u64), VecDeque<QueuedRequest>>,
    /// The keys of `queues`. The queue that was served last is at the end.
    order: VecDeque<(Arc<str>, u64)>,
}

#[derive(Clone, Copy)]
struct ScopeUsage {
    running: u32,
    /// The time at which the number last changed.
    changed: Instant,
}

impl Default for ScopeUsage {
    fn default() -> Self {
        Self { running: 0, changed: Instant::now() }
    }
}

struct RunningWork {
    request: SlotRequest,
    since: Instant,
    /// The log has reported this work as hanging.
    is_reported: bool,
}

struct QueuedRequest {
    id: u64,
    request: SlotRequest,
    sender: oneshot::Sender<Slot>,
}

/// Work that hangs, for the log.
pub(crate) struct HangingWork {
    pub task: Option<Arc<Task>>,
    pub age: Duration,
}

/// The result of [`Slots::inspect`].
pub struct SlotInspection {
    pub running: u32,
    /// The age of the oldest running work.
    pub oldest: Duration,
    /// Work that has run for longer than the limit, and was not reported before.
    pub(crate) hanging: Vec<HangingWork>,
    /// Set if all slots are taken: the time since work last ended.
    pub stuck: Option<Duration>,
}

impl Slots {
    pub(crate) fn new(bounds: SlotBounds) -> Arc<Self> {
        Arc::new(Self { bounds, inner: Mutex::default() })
    }

    pub(crate) fn bounds(&self) -> SlotBounds {
        self.bounds
    }

    /// The number of slots in use.
    pub fn used(&self) -> u32 {
        self.inner().all.running
    }

    /// Takes a slot if one is free for this request.
    pub fn try_take(self: &Arc<Self>, request: &SlotRequest) -> Option<Slot> {
        let mut inner = self.inner();
        if !inner.may_start(&self.bounds, request) {
            return None;
        }
        Some(Slot { slots: Arc::clone(self), task: request.task.clone(), id: inner.start(request.clone()) })
    }

    /// Waits for a slot. Users with fewer slots come first. Cancel-safe; dropping the future leaves the
    /// queue.
    pub async fn take(self: &Arc<Self>, request: SlotRequest) -> Slot {
        let mut waiting = match self.enter(request) {
            Ok(slot) => return slot,
            Err(waiting) => waiting,
        };
        match (&mut waiting.receiver).await {
            Ok(slot) => slot,
            // The sender is dropped only with `waiting`, or at the end of the process.
            Err(_) => std::future::pending().await,
        }
    }

    /// Waits for a slot as [`Self::take`] does, but only while other work begins or ends.
    ///
    /// # Errors
    /// Within a bound of the request, no work has begun or ended for the time `patience`.
    pub async fn take_unless_stuck(
        self: &Arc<Self>,
        request: SlotRequest,
        patience: Duration,
    ) -> Result<Slot, StuckWork> {
        self.until_stuck(&request, patience)?;
        let taking = self.take(request.clone());
        tokio::pin!(taking);
        loop {
            let until = self.until_stuck(&request, patience)?;
            tokio::select! {
                biased;
                slot = &mut taking => return Ok(slot),
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    /// Notes that sessions use this file system.
    pub fn note_filesystem(&self, filesystem: u64) {
        self.inner().filesystems.entry(filesystem).or_default();
    }

    /// The running work that began first.
    pub(super) fn oldest(&self) -> Option<RunningOperation> {
        let inner = self.inner();
        let RunningWork { request, since, .. } = inner.running.values().next()?;
        Some(RunningOperation { age: since.elapsed(), call: None, task: request.task.clone() })
    }

    /// Inspects the running work. Work that has run for longer than `limit` is reported once.
    pub fn inspect(&self, limit: Duration) -> SlotInspection {
        let now = Instant::now();
        let mut inner = self.inner();
        inner.filesystems.retain(|_, usage| usage.running > 0 || now - usage.changed < FORGET_FILESYSTEM);
        let oldest = inner.running.values().next().map_or(Duration::ZERO, |running| now - running.since);
        let late = inner.running.values_mut().take_while(|running| now - running.since >= limit);
        let new = late.filter(|running| !running.is_reported);
        let hanging = new.map(|running| {
            running.is_reported = true;
            HangingWork { task: running.request.task.clone(), age: now - running.since }
        });
        let hanging = hanging.collect();
        let is_full = inner.all.running >= self.bounds.all;
        let quiet = now - inner.all.changed;
        SlotInspection {
            running: inner.all.running,
            oldest,
            hanging,
            stuck: (is_full && quiet >= limit).then_some(quiet),
        }
    }

    /// The time until which the request may wait: `patience` after work last began or ended within the bound
    /// that is reached.
    ///
    /// # Errors
    /// The time is over.
    fn until_stuck(&self, request: &SlotRequest, patience: Duration) -> Result<Instant, StuckWork> {
        let inner = self.inner();
        let now = Instant::now();
        let usage_in = |scope| match scope {
            SlotScope::All => inner.all,
            SlotScope::User => inner.users.get(&request.user).copied().unwrap_or_default(),
            SlotScope::Filesystem => inner.filesystems.get(&request.filesystem).copied().unwrap_or_default(),
        };
        let full = inner.obstacles(&self.bounds, request).map(|scope| (scope, usage_in(scope)));
        let Some((scope, usage)) = full.min_by_key(|(_, usage)| usage.changed) else {
            return Ok(now + patience);
        };
        let until = usage.changed + patience;
        if until > now {
            return Ok(until);
        }
        let settings = &self.bounds.settings;
        let (setting, is_in_scope): (_, &dyn Fn(&SlotRequest) -> bool) = match scope {
            SlotScope::All => (settings.all, &|_| true),
            SlotScope::User => (settings.per_user, &|other| other.user == request.user),
            SlotScope::Filesystem => {
                (settings.per_filesystem, &|other| other.filesystem == request.filesystem)
            }
        };
        let oldest = inner.running.values().find(|running| is_in_scope(&running.request));
        Err(StuckWork {
            scope,
            setting,
            running: usage.running,
            since: now - usage.changed,
            oldest: oldest.map(|running| (running.request.task.clone(), now - running.since)),
        })
    }

    /// The setting because of which no slot is free for the request now.
    pub fn obstacle(&self, request: &SlotRequest) -> Option<&'static str> {
        let settings = self.bounds.settings;
        self.inner().obstacles(&self.bounds, request).next().map(|scope| match scope {
            SlotScope::All => settings.all,
            SlotScope::User => settings.per_user,
            SlotScope::Filesystem => settings.per_filesystem,
        })
    }

    /// Takes a slot, or joins the queue for one.
    fn enter(self: &Arc<Self>, request: SlotRequest) -> Result<Slot, SlotWait> {
        let mut inner = self.inner();
        if inner.may_start(&self.bounds, &request) {
            let task = request.task.clone();
            return Ok(Slot { slots: Arc::clone(self), id: inner.start(request), task });
        }
        let (sender, receiver) = oneshot::channel();
        let id = inner.next_id();
        let key = (Arc::clone(&request.user), request.filesystem);
        let SlotsInner { queues, order, .. } = &mut *inner;
        let queue = queues.entry(key.clone()).or_insert_with(|| {
            order.push_back(key.clone());
            VecDeque::new()
        });
        queue.push_back(QueuedRequest { id, request, sender });
        Err(SlotWait { slots: Arc::clone(self), key, id, receiver })
    }

    fn release(self: &Arc<Self>, id: u64) {
        let now = Instant::now();
        let mut inner = self.inner();
        let Some(ended) = inner.running.remove(&id) else { return };
        inner.end(&ended.request, now);
        let granted = self.grant(&mut inner);
        drop(inner);
        // Without the lock: if a waiter is gone, its slot is dropped here, which takes the lock.
        for (sender, slot) in granted {
            drop(sender.send(slot));
        }
        if ended.is_reported
            && let Some(task) = &ended.request.task
        {
            task.log_end(now - ended.since);
        }
    }

    /// Gives free slots to waiting requests.
    fn grant(self: &Arc<Self>, inner: &mut SlotsInner) -> Vec<(oneshot::Sender<Slot>, Slot)> {
        let mut granted = Vec::new();
        while let Some(waiter) = inner.next_waiter(&self.bounds) {
            if waiter.sender.is_closed() {
                continue;
            }
            let task = waiter.request.task.clone();
            let id = inner.start(waiter.request);
            granted.push((waiter.sender, Slot { slots: Arc::clone(self), id, task }));
        }
        granted
    }

    fn inner(&self) -> MutexGuard<'_, SlotsInner> {
        lock(&self.inner)
    }
}

impl SlotsInner {
    /// The bounds because of which `request` gets no slot.
    fn obstacles(
        &self,
        bounds: &SlotBounds,
        request: &SlotRequest,
    ) -> impl Iterator<Item = SlotScope> + use<> {
        let of_user = self.users.get(&request.user).map_or(0, |usage| usage.running);
        let of_filesystem = self.filesystems.get(&request.filesystem).map_or(0, |usage| usage.running);
        let is_new_filesystem = !self.filesystems.contains_key(&request.filesystem);
        let filesystems = self.filesystems.len() + usize::from(is_new_filesystem);
        let for_others = if of_user == 0 { 0 } else { bounds.all / 4 };
        let is_full = [
            (SlotScope::All, self.all.running >= bounds.all - for_others),
            (SlotScope::User, of_user >= request.per_user.unwrap_or(bounds.per_user)),
            (SlotScope::Filesystem, filesystems > 1 && of_filesystem >= bounds.per_filesystem),
        ];
        is_full.into_iter().filter_map(|(scope, is_full)| is_full.then_some(scope))
    }

    fn may_start(&self, bounds: &SlotBounds, request: &SlotRequest) -> bool {
        self.obstacles(bounds, request).next().is_none()
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn start(&mut self, request: SlotRequest) -> u64 {
        let (id, now) = (self.next_id(), Instant::now());
        let user = self.users.entry(Arc::clone(&request.user)).or_default();
        let filesystem = self.filesystems.entry(request.filesystem).or_default();
        for usage in [&mut self.all, user, filesystem] {
            usage.running += 1;
            usage.changed = now;
        }
        self.running.insert(id, RunningWork { request, since: now, is_reported: false });
        id
    }

    fn end(&mut self, request: &SlotRequest, now: Instant) {
        let user = self.users.get_mut(&request.user);
        let filesystem = self.filesystems.get_mut(&request.filesystem);
        for usage in [Some(&mut self.all), user, filesystem].into_iter().flatten() {
            usage.running = usage.running.saturating_sub(1);
            usage.changed = now;
        }
        if self.users.get(&request.user).is_some_and(|usage| usage.running == 0) {
            self.users.remove(&request.user);
        }
    }

    /// Removes the next request that may get a slot from its queue: a request of the user with the fewest
    /// slots, and among equal users, from the queue that was served longest ago.
    fn next_waiter(&mut self, bounds: &SlotBounds) -> Option<QueuedRequest> {
        let front = |key: &(Arc<str>, u64)| self.queues.get(key).and_then(VecDeque::front);
        let held = |user: &Arc<str>| self.users.get(user).map_or(0, |usage| usage.running);
        let ready = self
            .order
            .iter()
            .enumerate()
            .filter(|(_, key)| front(key).is_some_and(|waiter| self.may_start(bounds, &waiter.request)));
        // `max_by_key` with reversed positions finds the first of equals.
        let (position, _) =
            ready.max_by_key(|(position, key)| (Reverse(held(&key.0)), Reverse(*position)))?;
        let key = self.order.remove(position)?;
        let waiter = self.queues.get_mut(&key)?.pop_front();
        if self.queues.get(&key).is_some_and(VecDeque::is_empty) {
            self.queues.remove(&key);
        } else {
            self.order.push_back(key);
        }
        waiter
    }

    /// Removes a request from its queue.
    fn give_up(&mut self, key: &(Arc<str>, u64), id: u64) {
        let Some(queue) = self.queues.get_mut(key) else { return };
        queue.retain(|waiter| waiter.id != id);
        if queue.is_empty() {
            self.queues.remove(key);
            self.order.retain(|other| other != key);
        }
    }
}

/// A request that waits for a slot.
struct SlotWait {
    slots: Arc<Slots>,
    key: (Arc<str>, u64),
    id: u64,
    receiver: oneshot::Receiver<Slot>,
}

impl Drop for SlotWait {
    fn drop(&mut self) {
        self.slots.inner().give_up(&self.key, self.id);
        // A slot that was granted meanwhile is dropped with the receiver, and goes to the next request.
    }
}

/// A slot in use. Dropping it gives the slot to the next request.
pub struct Slot {
    slots: Arc<Slots>,
    id: u64,
    task: Option<Arc<Task>>,
}

impl Slot {
    /// The command that has the slot.
    pub(super) fn task(&self) -> Option<Arc<Task>> {
        self.task.clone()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.release(self.id);
    }
}

#[cfg(test)]
mod tests;
