//! Places on blocking threads, shared out among users and file systems.
//!
//! A place is held from the start of the work to its end, also when the session that asked for the work
//! has ended meanwhile. So work that hangs counts against its user until the system call returns.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use super::task::Task;

/// A file system that had no work for this long no longer counts as one in use.
const FORGET_FILESYSTEM: Duration = Duration::from_secs(24 * 60 * 60);

/// How many places there are, and how many of them one user and one file system may hold.
///
/// A quarter of the places is kept for users who hold none.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub all: u32,
    pub per_user: u32,
    /// Holds only while sessions use more than one file system.
    pub per_filesystem: u32,
    pub settings: Settings,
}

/// The settings that these bounds come from, for metrics, replies and the log.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub all: &'static str,
    pub per_user: &'static str,
    pub per_filesystem: &'static str,
}

/// For whom a place is taken.
#[derive(Clone, Debug)]
pub struct Claim {
    pub user: Arc<str>,
    /// The device number (`st_dev`) of the file system, as far as it is known.
    pub filesystem: u64,
    /// A bound of this user's own, instead of `Bounds::per_user`.
    pub per_user: Option<u32>,
    /// What the log says of work that hangs.
    pub task: Option<Arc<Task>>,
}

/// Which bound keeps a claim from a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    All,
    User,
    Filesystem,
}

/// No place: all that the claim could have are held by work that does not end.
#[derive(Clone, Debug)]
pub struct Stuck {
    pub scope: Scope,
    pub setting: &'static str,
    /// Places in use within the scope.
    pub running: u32,
    /// How long ago the last work within the scope began or ended.
    pub since: Duration,
    /// The work that runs longest within the scope, and for how long.
    pub oldest: Option<(Option<Arc<Task>>, Duration)>,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scope, setting, running, since, oldest } = self;
        let of = match scope {
            Scope::All => "",
            Scope::User => " of this user",
            Scope::Filesystem => " in this file system",
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

/// A set of places of one kind. Clones of the `Arc` share them.
pub struct Places {
    bounds: Bounds,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last_id: u64,
    /// By id, so in the order of their start.
    running: BTreeMap<u64, Running>,
    all: Usage,
    /// Users with work that runs.
    users: HashMap<Arc<str>, Usage>,
    /// File systems with work that runs, or had some of late.
    filesystems: HashMap<u64, Usage>,
    /// Claims of the same user and file system wait in one queue: the same bounds hold for them.
    queues: HashMap<(Arc<str>, u64), VecDeque<Waiter>>,
    /// The keys of `queues`; the queue that was served last is at the end.
    order: VecDeque<(Arc<str>, u64)>,
}

#[derive(Clone, Copy)]
struct Usage {
    running: u32,
    /// When work last began or ended.
    moved: Instant,
}

impl Default for Usage {
    fn default() -> Self {
        Self { running: 0, moved: Instant::now() }
    }
}

struct Running {
    claim: Claim,
    since: Instant,
    /// The log has it as work that hangs.
    is_reported: bool,
}

struct Waiter {
    id: u64,
    claim: Claim,
    sender: oneshot::Sender<Place>,
}

/// Work that the log is told of.
pub struct Hanging {
    pub task: Option<Arc<Task>>,
    pub age: Duration,
}

/// What [`Places::inspect`] found.
pub struct Inspection {
    pub running: u32,
    /// Age of the work that runs longest.
    pub oldest: Duration,
    /// Work that runs for longer than the limit, each once.
    pub hanging: Vec<Hanging>,
    /// All places are taken, and for this long no work has ended.
    pub stuck: Option<Duration>,
}

impl Places {
    pub fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self { bounds, state: Mutex::default() })
    }

    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// How many are held.
    pub fn used(&self) -> u32 {
        self.state().all.running
    }

    /// A place, if one is free for this claim.
    pub fn try_take(self: &Arc<Self>, claim: &Claim) -> Option<Place> {
        let mut state = self.state();
        if !state.may_start(&self.bounds, claim) {
            return None;
        }
        Some(Place { places: Arc::clone(self), id: state.start(claim.clone()) })
    }

    /// A place, when one is free for this claim. Users with fewer places come first. Dropping the future
    /// gives the turn up.
    pub async fn take(self: &Arc<Self>, claim: Claim) -> Place {
        let mut waiting = match self.enter(claim) {
            Ok(place) => return place,
            Err(waiting) => waiting,
        };
        match (&mut waiting.receiver).await {
            Ok(place) => place,
            // The sender is dropped only with `waiting`, or with the whole process.
            Err(_) => std::future::pending().await,
        }
    }

    /// As [`Self::take`], but waits only while work goes on.
    ///
    /// # Errors
    /// Within the share that the claim could have, no work has begun or ended for `patience`.
    pub async fn take_while_moving(
        self: &Arc<Self>,
        claim: Claim,
        patience: Duration,
    ) -> Result<Place, Stuck> {
        self.until_stuck(&claim, patience)?;
        let taking = self.take(claim.clone());
        tokio::pin!(taking);
        loop {
            let until = self.until_stuck(&claim, patience)?;
            tokio::select! {
                biased;
                place = &mut taking => return Ok(place),
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    /// Notes that sessions use this file system.
    pub fn note_filesystem(&self, filesystem: u64) {
        self.state().filesystems.entry(filesystem).or_default();
    }

    /// How the work goes. Work that runs for longer than `limit` is told of once.
    pub fn inspect(&self, limit: Duration) -> Inspection {
        let now = Instant::now();
        let mut state = self.state();
        state.filesystems.retain(|_, usage| usage.running > 0 || now - usage.moved < FORGET_FILESYSTEM);
        let oldest = state.running.values().next().map_or(Duration::ZERO, |running| now - running.since);
        let late = state.running.values_mut().take_while(|running| now - running.since >= limit);
        let new = late.filter(|running| !running.is_reported);
        let hanging = new.map(|running| {
            running.is_reported = true;
            Hanging { task: running.claim.task.clone(), age: now - running.since }
        });
        let hanging = hanging.collect();
        let is_full = state.all.running >= self.bounds.all;
        let quiet = now - state.all.moved;
        Inspection {
            running: state.all.running,
            oldest,
            hanging,
            stuck: (is_full && quiet >= limit).then_some(quiet),
        }
    }

    /// Until when the claim may wait: for `patience` after work within the scope that is full began or
    /// ended.
    ///
    /// # Errors
    /// That time is over.
    fn until_stuck(&self, claim: &Claim, patience: Duration) -> Result<Instant, Stuck> {
        let state = self.state();
        let now = Instant::now();
        let usage_in = |scope| match scope {
            Scope::All => state.all,
            Scope::User => state.users.get(&claim.user).copied().unwrap_or_default(),
            Scope::Filesystem => state.filesystems.get(&claim.filesystem).copied().unwrap_or_default(),
        };
        let full = state.obstacles(&self.bounds, claim).map(|scope| (scope, usage_in(scope)));
        let Some((scope, usage)) = full.min_by_key(|(_, usage)| usage.moved) else {
            return Ok(now + patience);
        };
        let until = usage.moved + patience;
        if until > now {
            return Ok(until);
        }
        let settings = &self.bounds.settings;
        let (setting, is_in_scope): (_, &dyn Fn(&Claim) -> bool) = match scope {
            Scope::All => (settings.all, &|_| true),
            Scope::User => (settings.per_user, &|other| other.user == claim.user),
            Scope::Filesystem => (settings.per_filesystem, &|other| other.filesystem == claim.filesystem),
        };
        let oldest = state.running.values().find(|running| is_in_scope(&running.claim));
        Err(Stuck {
            scope,
            setting,
            running: usage.running,
            since: now - usage.moved,
            oldest: oldest.map(|running| (running.claim.task.clone(), now - running.since)),
        })
    }

    /// The setting that keeps the claim from a place at this moment.
    pub fn obstacle(&self, claim: &Claim) -> Option<&'static str> {
        let settings = self.bounds.settings;
        self.state().obstacles(&self.bounds, claim).next().map(|scope| match scope {
            Scope::All => settings.all,
            Scope::User => settings.per_user,
            Scope::Filesystem => settings.per_filesystem,
        })
    }

    /// Takes a place, or stands in the queue for one.
    fn enter(self: &Arc<Self>, claim: Claim) -> Result<Place, Waiting> {
        let mut state = self.state();
        if state.may_start(&self.bounds, &claim) {
            return Ok(Place { places: Arc::clone(self), id: state.start(claim) });
        }
        let (sender, receiver) = oneshot::channel();
        let id = state.next_id();
        let key = (Arc::clone(&claim.user), claim.filesystem);
        let State { queues, order, .. } = &mut *state;
        let queue = queues.entry(key.clone()).or_insert_with(|| {
            order.push_back(key.clone());
            VecDeque::new()
        });
        queue.push_back(Waiter { id, claim, sender });
        Err(Waiting { places: Arc::clone(self), key, id, receiver })
    }

    fn release(self: &Arc<Self>, id: u64) {
        let now = Instant::now();
        let mut state = self.state();
        let Some(ended) = state.running.remove(&id) else { return };
        state.end(&ended.claim, now);
        let granted = self.grant(&mut state);
        drop(state);
        // Outside the lock: a waiter that is gone gives its place back here.
        for (sender, place) in granted {
            drop(sender.send(place));
        }
        if ended.is_reported
            && let Some(task) = &ended.claim.task
        {
            task.log_end(now - ended.since);
        }
    }

    /// Gives free places to those who wait.
    fn grant(self: &Arc<Self>, state: &mut State) -> Vec<(oneshot::Sender<Place>, Place)> {
        let mut granted = Vec::new();
        while let Some(waiter) = state.next_waiter(&self.bounds) {
            if waiter.sender.is_closed() {
                continue;
            }
            let id = state.start(waiter.claim);
            granted.push((waiter.sender, Place { places: Arc::clone(self), id }));
        }
        granted
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The bounds that keep `claim` from a place.
    fn obstacles(&self, bounds: &Bounds, claim: &Claim) -> impl Iterator<Item = Scope> + use<> {
        let of_user = self.users.get(&claim.user).map_or(0, |usage| usage.running);
        let of_filesystem = self.filesystems.get(&claim.filesystem).map_or(0, |usage| usage.running);
        let is_new_filesystem = !self.filesystems.contains_key(&claim.filesystem);
        let filesystems = self.filesystems.len() + usize::from(is_new_filesystem);
        let for_others = if of_user == 0 { 0 } else { bounds.all / 4 };
        let is_full = [
            (Scope::All, self.all.running >= bounds.all - for_others),
            (Scope::User, of_user >= claim.per_user.unwrap_or(bounds.per_user)),
            (Scope::Filesystem, filesystems > 1 && of_filesystem >= bounds.per_filesystem),
        ];
        is_full.into_iter().filter_map(|(scope, is_full)| is_full.then_some(scope))
    }

    fn may_start(&self, bounds: &Bounds, claim: &Claim) -> bool {
        self.obstacles(bounds, claim).next().is_none()
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn start(&mut self, claim: Claim) -> u64 {
        let (id, now) = (self.next_id(), Instant::now());
        let user = self.users.entry(Arc::clone(&claim.user)).or_default();
        let filesystem = self.filesystems.entry(claim.filesystem).or_default();
        for usage in [&mut self.all, user, filesystem] {
            usage.running += 1;
            usage.moved = now;
        }
        self.running.insert(id, Running { claim, since: now, is_reported: false });
        id
    }

    fn end(&mut self, claim: &Claim, now: Instant) {
        let user = self.users.get_mut(&claim.user);
        let filesystem = self.filesystems.get_mut(&claim.filesystem);
        for usage in [Some(&mut self.all), user, filesystem].into_iter().flatten() {
            usage.running = usage.running.saturating_sub(1);
            usage.moved = now;
        }
        if self.users.get(&claim.user).is_some_and(|usage| usage.running == 0) {
            self.users.remove(&claim.user);
        }
    }

    /// Takes the next waiter that may have a place out of its queue: of the user with the fewest places,
    /// and among those with as few, of the queue that was served longest ago.
    fn next_waiter(&mut self, bounds: &Bounds) -> Option<Waiter> {
        let front = |key: &(Arc<str>, u64)| self.queues.get(key).and_then(VecDeque::front);
        let held = |user: &Arc<str>| self.users.get(user).map_or(0, |usage| usage.running);
        let ready = self
            .order
            .iter()
            .enumerate()
            .filter(|(_, key)| front(key).is_some_and(|waiter| self.may_start(bounds, &waiter.claim)));
        // The earliest of equals: positions count downwards.
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

    /// Takes a waiter out of its queue.
    fn give_up(&mut self, key: &(Arc<str>, u64), id: u64) {
        let Some(queue) = self.queues.get_mut(key) else { return };
        queue.retain(|waiter| waiter.id != id);
        if queue.is_empty() {
            self.queues.remove(key);
            self.order.retain(|other| other != key);
        }
    }
}

/// A claim that waits for a place.
struct Waiting {
    places: Arc<Places>,
    key: (Arc<str>, u64),
    id: u64,
    receiver: oneshot::Receiver<Place>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.places.state().give_up(&self.key, self.id);
        // A place that was granted meanwhile is dropped with the receiver, and goes to the next.
    }
}

/// A place that is held. Dropping it gives it to the next waiter.
pub struct Place {
    places: Arc<Places>,
    id: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.release(self.id);
    }
}

#[cfg(test)]
mod tests;
