//! Workers: threads for everything that may block. No file operation runs on a thread that serves
//! connections.
//!
//! Storage that hangs occupies workers. Therefore each kind of work has slots of its own, and [`Slots`]
//! shares the slots among users and file systems:
//!
//! * file operations of commands, which are short;
//! * file operations of logins;
//! * long commands: checksums, COMB, RMDA, STAT with a path;
//! * transfers and listings.

pub mod activity;
mod batch_priority;
pub mod blocking;
mod bridge;
mod off_runtime;
pub mod pieces;
pub mod presence;
pub mod progress;
pub mod scratch;
mod slots;
pub mod storage_call;
mod task;
mod threads;
pub mod turns;

use std::{sync::Arc, time::Duration};

pub use self::{
    batch_priority::BatchPriority,
    bridge::RuntimeBridge,
    off_runtime::OffRuntime,
    slots::{Slot, SlotInspection, SlotRequest, SlotScope, Slots, StuckWork},
    storage_call::{RunningOperation, StorageCall, take_longest_fsync},
    task::Task,
};
use self::{
    slots::{SlotBounds, SlotSettings},
    threads::Threads,
};
use crate::metrics;

/// Additional workers for work without a slot: closing and removing files.
const SPARE: usize = 16;

/// The numbers of slots of each kind.
#[derive(Clone, Copy, Debug)]
pub struct WorkerSettings {
    pub file_operations: SlotShares,
    pub logins: SlotShares,
    pub long_commands: SlotShares,
    pub transfers: SlotShares,
    /// How long a file operation waits for a slot while no other operation ends.
    pub file_operation_wait: Duration,
}

/// The slots of one kind, and the largest parts of them that one user and one file system may hold.
#[derive(Clone, Copy, Debug)]
pub struct SlotShares {
    pub slots: u32,
    pub per_user: u32,
    pub per_filesystem: u32,
}

impl SlotShares {
    /// Slots of which a user may hold `per_user`, in any file system.
    pub fn new(slots: u32, per_user: u32) -> Self {
        Self { slots, per_user, per_filesystem: u32::MAX }
    }
}

/// The file system in the slot request of a login. The home's file system is unknown until the home is open.
const NO_FILESYSTEM: u64 = 0;

/// The workers of the node, and their slots. Clones share both.
#[derive(Clone)]
pub struct Workers {
    threads: Threads,
    operations: Arc<Slots>,
    logins: Arc<Slots>,
    long: Arc<Slots>,
    transfers: Arc<Slots>,
    /// How long a file operation waits for a slot while no other operation ends.
    patience: Duration,
}

/// The kinds of slots: the label `kind` of `ftp_slots_used`.
pub const KINDS: [&str; 4] = ["file_operations", "login_operations", "long_operations", "transfers"];

impl Workers {
    /// Call it within the runtime.
    pub fn new(settings: &WorkerSettings) -> Self {
        let WorkerSettings { file_operations, logins, long_commands, transfers, file_operation_wait } =
            *settings;
        let all = [file_operations.slots, logins.slots, long_commands.slots, transfers.slots];
        let slots = |shares: SlotShares, settings| {
            let SlotShares { slots: all, per_user, per_filesystem } = shares;
            Slots::new(SlotBounds { all, per_user, per_filesystem, settings })
        };
        Self {
            threads: Threads::new(SPARE + all.into_iter().map(|slots| slots as usize).sum::<usize>()),
            operations: slots(
                file_operations,
                SlotSettings {
                    all: "max_file_operations",
                    per_user: "max_file_operations_per_user",
                    per_filesystem: "max_file_operations_per_filesystem",
                },
            ),
            logins: slots(
                logins,
                SlotSettings {
                    all: "max_login_operations",
                    per_user: "max_login_operations",
                    per_filesystem: "max_login_operations",
                },
            ),
            long: slots(
                long_commands,
                SlotSettings {
                    all: "max_long_operations",
                    per_user: "max_long_operations_per_user",
                    per_filesystem: "max_long_operations",
                },
            ),
            transfers: slots(
                transfers,
                SlotSettings {
                    all: "max_transfers",
                    per_user: "max_transfers_per_user",
                    per_filesystem: "max_transfers",
                },
            ),
            patience: file_operation_wait,
        }
    }

    /// Wraps `value` so that only workers drop it.
    pub fn off_runtime<T: Send + 'static>(&self, value: T) -> OffRuntime<T> {
        OffRuntime::new(value, self.threads.clone())
    }

    /// Runs a file operation of the node itself, without a slot. The caller bounds the number of such
    /// operations. If the caller is dropped meanwhile, the operation still ends, and a worker drops its
    /// result.
    pub async fn run_without_slot<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.threads.run(work).await
    }

    /// Runs a short file operation of a command as soon as it gets a slot. If the caller is dropped
    /// meanwhile, the operation still ends, keeps its slot until then, and a worker drops its result. `work`
    /// must pass a result whose `drop` does file I/O through [`Workers::off_runtime`].
    ///
    /// # Errors
    /// Operations that do not end hold all slots of the user, or of the file system.
    pub async fn operation_of<T: Send + 'static>(
        &self,
        request: SlotRequest,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, StuckWork> {
        self.run_unless_stuck(&self.operations, request, work).await
    }

    /// Runs the file operations of a login, as [`Self::operation_of`] does, in the slots for logins: a login
    /// does not wait for commands.
    ///
    /// # Errors
    /// As [`Self::operation_of`].
    pub async fn login<T: Send + 'static>(
        &self,
        task: Arc<Task>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, StuckWork> {
        let user = task.identity.user.as_str().into();
        let request = SlotRequest { user, filesystem: NO_FILESYSTEM, per_user: None, task: Some(task) };
        self.run_unless_stuck(&self.logins, request, work).await
    }

    /// Notes that a session uses this file system.
    pub fn note_filesystem(&self, filesystem: u64) {
        self.operations.note_filesystem(filesystem);
    }

    async fn run_unless_stuck<T: Send + 'static>(
        &self,
        slots: &Arc<Slots>,
        request: SlotRequest,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, StuckWork> {
        let slot = match slots.try_take(&request) {
            Some(slot) => slot,
            None => {
                if let Some(setting) = slots.obstacle(&request) {
                    metrics::limit_reached(setting);
                }
                slots.take_unless_stuck(request, self.patience).await?
            }
        };
        Ok(self.run(slot, work).await)
    }

    /// Takes a slot for a transfer or a listing.
    ///
    /// # Errors
    /// The setting because of which no slot is free now.
    pub fn try_transfer(&self, request: &SlotRequest) -> Result<Slot, &'static str> {
        try_take(&self.transfers, request)
    }

    /// Waits for a slot for a transfer or a listing. Cancel-safe.
    pub async fn transfer(&self, request: SlotRequest) -> Slot {
        self.transfers.take(request).await
    }

    /// Takes a slot for a long command.
    ///
    /// # Errors
    /// As [`Self::try_transfer`].
    pub fn try_long(&self, request: &SlotRequest) -> Result<Slot, &'static str> {
        try_take(&self.long, request)
    }

    /// Waits for a slot for a long command. Cancel-safe.
    pub async fn long(&self, request: SlotRequest) -> Slot {
        self.long.take(request).await
    }

    /// Runs a transfer or a long command in its slot, with [`BatchPriority`].
    pub async fn run_long<T: Send + 'static>(
        &self,
        slot: Slot,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let work = move || {
            let _priority = BatchPriority::begin();
            work()
        };
        self.run(slot, work).await
    }

    async fn run<T: Send + 'static>(&self, slot: Slot, work: impl FnOnce() -> T + Send + 'static) -> T {
        let work = move || {
            let task = slot.task();
            let _slot = slot;
            storage_call::within(task, work)
        };
        self.threads.run(work).await
    }

    /// Inspects the file operations of commands, and those of logins. Each operation that runs for longer
    /// than `limit` is reported once.
    pub fn inspect_operations(&self, limit: Duration) -> [SlotInspection; 2] {
        [&self.operations, &self.logins].map(|slots| slots.inspect(limit))
    }

    /// The work on the storage that has run for the longest time: a file operation of a command or a login,
    /// or a measured system call of any work, such as the fsync of an upload.
    pub fn oldest_operation(&self) -> Option<RunningOperation> {
        let slots = [&self.operations, &self.logins].into_iter().filter_map(|slots| slots.oldest());
        slots.chain(storage_call::oldest_call()).max_by_key(|operation| operation.age)
    }

    /// Sets the metric of the slots in use, for each kind.
    pub fn record_usage(&self) {
        let slots = [&self.operations, &self.logins, &self.long, &self.transfers];
        for (kind, slots) in KINDS.into_iter().zip(slots) {
            metrics::slots_used(kind, slots.used());
        }
    }
}

fn try_take(slots: &Arc<Slots>, request: &SlotRequest) -> Result<Slot, &'static str> {
    match slots.try_take(request) {
        Some(slot) => Ok(slot),
        // Between the two calls a slot may have become free. Then the caller's wait ends at once.
        None => Err(slots.obstacle(request).unwrap_or(slots.bounds().settings.all)),
    }
}

/// A quarter of the slots, at least 1.
pub const fn quarter(slots: u32) -> u32 {
    slots.div_ceil(4)
}
