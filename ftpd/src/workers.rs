//! Threads for everything that may block: no file operation runs where connections are served.
//!
//! Storage that hangs holds threads of the pool here. Each kind of work has places of its own, so that
//! none can take those of another, and [`Places`] shares them out among users and file systems:
//!
//! * file operations of commands, which are short;
//! * the file operations of logins;
//! * long commands: checksums, COMB, RMDA, STAT with a path;
//! * transfers and listings.

mod off_runtime;
mod places;
mod standing_back;
mod task;
mod threads;

use std::{sync::Arc, time::Duration};

pub use self::{
    off_runtime::OffRuntime,
    places::{Claim, Inspection, Place, Places, Scope, Stuck},
    standing_back::StandingBack,
    task::Task,
};
use self::{
    places::{Bounds, Settings},
    threads::Threads,
};
use crate::{config::Limits, metrics};

/// Threads for work of the node itself, which takes no place: closing files, counts of homes.
const SPARE: usize = 16;

/// Of logins: the file system of a home is known once the home is open.
const NO_FILESYSTEM: u64 = 0;

/// Bounds the work on blocking threads. Clones share threads and places.
#[derive(Clone)]
pub struct Workers {
    threads: Threads,
    operations: Arc<Places>,
    logins: Arc<Places>,
    long: Arc<Places>,
    transfers: Arc<Places>,
    /// How long a file operation waits for a place while no other ends.
    patience: Duration,
}

/// The kinds of places, and the value of the label `kind` of `ftp_places_used`.
pub const KINDS: [&str; 4] = ["file_operations", "login_operations", "long_operations", "transfers"];

impl Workers {
    /// To be called within the runtime. `patience`: how long a file operation waits for a place while no
    /// other operation ends.
    pub fn new(limits: &Limits, patience: Duration) -> Self {
        let places = |all: u32, per_user, per_filesystem, settings| {
            Places::new(Bounds { all, per_user, per_filesystem, settings })
        };
        let all = [limits.file_operations, limits.login_operations, limits.long_operations, limits.transfers];
        Self {
            threads: Threads::new(SPARE + all.into_iter().map(|places| places as usize).sum::<usize>()),
            operations: places(
                limits.file_operations,
                limits.file_operations_per_user,
                limits.file_operations_per_filesystem,
                Settings {
                    all: "max_file_operations",
                    per_user: "max_file_operations_per_user",
                    per_filesystem: "max_file_operations_per_filesystem",
                },
            ),
            logins: places(
                limits.login_operations,
                quarter(limits.login_operations),
                u32::MAX,
                Settings {
                    all: "max_login_operations",
                    per_user: "max_login_operations",
                    per_filesystem: "max_login_operations",
                },
            ),
            long: places(
                limits.long_operations,
                limits.long_operations_per_user,
                u32::MAX,
                Settings {
                    all: "max_long_operations",
                    per_user: "max_long_operations_per_user",
                    per_filesystem: "max_long_operations",
                },
            ),
            transfers: places(
                limits.transfers,
                limits.transfers_per_user,
                u32::MAX,
                Settings {
                    all: "max_transfers",
                    per_user: "max_transfers_per_user",
                    per_filesystem: "max_transfers",
                },
            ),
            patience,
        }
    }

    /// Keeps `value` so that only workers drop it.
    pub fn keep<T: Send + 'static>(&self, value: T) -> OffRuntime<T> {
        OffRuntime::new(value, self.threads.clone())
    }

    /// Runs a file operation of the node itself, which takes no place. The caller bounds how many run at
    /// once. If the caller is dropped meanwhile, the operation still ends, and a worker drops its result.
    pub async fn operation<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.threads.run(work).await
    }

    /// Runs a short file operation of a command, when it is its turn. If the caller is dropped meanwhile,
    /// the operation still ends, and keeps its place until then; a worker drops its result. A result that
    /// does file I/O when it is dropped belongs in [`Workers::keep`] before it is returned.
    ///
    /// # Errors
    /// The user's share, or the file system's, is held by operations that do not end.
    pub async fn operation_of<T: Send + 'static>(
        &self,
        claim: Claim,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Stuck> {
        self.run_while_moving(&self.operations, claim, work).await
    }

    /// Runs the file operations of a login of `user`, as [`Self::operation_of`] does, in places of their
    /// own: a login does not wait for the commands of others.
    ///
    /// # Errors
    /// As [`Self::operation_of`].
    pub async fn login<T: Send + 'static>(
        &self,
        task: Arc<Task>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Stuck> {
        let user = task.subject.user.as_str().into();
        let claim = Claim { user, filesystem: NO_FILESYSTEM, per_user: None, task: Some(task) };
        self.run_while_moving(&self.logins, claim, work).await
    }

    /// Notes that a session uses this file system.
    pub fn note_filesystem(&self, filesystem: u64) {
        self.operations.note_filesystem(filesystem);
    }

    async fn run_while_moving<T: Send + 'static>(
        &self,
        places: &Arc<Places>,
        claim: Claim,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Stuck> {
        let place = match places.try_take(&claim) {
            Some(place) => place,
            None => {
                if let Some(setting) = places.obstacle(&claim) {
                    metrics::limit_reached(setting);
                }
                places.take_while_moving(claim, self.patience).await?
            }
        };
        Ok(self.run(place, work).await)
    }

    /// A place for a transfer or a listing.
    ///
    /// # Errors
    /// The setting that keeps it from one at this moment.
    pub fn try_transfer(&self, claim: &Claim) -> Result<Place, &'static str> {
        try_take(&self.transfers, claim)
    }

    /// A place for a transfer or a listing, when one is free for this claim. Cancel-safe.
    pub async fn transfer(&self, claim: Claim) -> Place {
        self.transfers.take(claim).await
    }

    /// A place for a long command.
    ///
    /// # Errors
    /// As [`Self::try_transfer`].
    pub fn try_long(&self, claim: &Claim) -> Result<Place, &'static str> {
        try_take(&self.long, claim)
    }

    /// A place for a long command, when one is free for this claim. Cancel-safe.
    pub async fn long(&self, claim: Claim) -> Place {
        self.long.take(claim).await
    }

    /// Runs a transfer or a long command for as long as it takes, in its place.
    pub async fn run_long<T: Send + 'static>(
        &self,
        place: Place,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let work = move || {
            let _back = StandingBack::begin();
            work()
        };
        self.run(place, work).await
    }

    async fn run<T: Send + 'static>(&self, place: Place, work: impl FnOnce() -> T + Send + 'static) -> T {
        let work = move || {
            let _place = place;
            work()
        };
        self.threads.run(work).await
    }

    /// How the file operations of commands and those of logins go. One that runs for longer than `limit`
    /// is told of once.
    pub fn inspect_operations(&self, limit: Duration) -> [Inspection; 2] {
        [&self.operations, &self.logins].map(|places| places.inspect(limit))
    }

    /// Tells the metrics how many places of each kind are in use.
    pub fn tell_usage(&self) {
        let places = [&self.operations, &self.logins, &self.long, &self.transfers];
        for (kind, places) in KINDS.into_iter().zip(places) {
            metrics::places_used(kind, places.used());
        }
    }
}

fn try_take(places: &Arc<Places>, claim: &Claim) -> Result<Place, &'static str> {
    match places.try_take(claim) {
        Some(place) => Ok(place),
        // Between the two calls a place may have become free: the wait for it ends at once.
        None => Err(places.obstacle(claim).unwrap_or(places.bounds().settings.all)),
    }
}

/// A quarter of the places, at least 1.
pub const fn quarter(places: u32) -> u32 {
    places.div_ceil(4)
}
