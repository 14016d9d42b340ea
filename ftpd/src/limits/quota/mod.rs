//! Quotas of homes: reports of changes, quota reservations of uploads, and home counts.

mod count;
#[cfg(test)]
mod tests;
mod turns;

use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock},
    time::Duration,
};

use common::{
    auth_api::Account,
    policy::Quota,
    registry::{HomeUsage, Registry, RegistryAway, Usage, UsageChange, UsageStatus, UsageStep},
    sync::lock,
};
use tokio::time::{Instant, sleep};

pub use self::count::{HomeCountSettings, HomeCounts};
use crate::{
    jail::{Changes, Jail},
    metrics,
    virtual_path::VirtualPath,
    work::RuntimeBridge,
};

/// Bytes that an upload reserves at once, if the quota has room for them.
const RESERVED_AT_ONCE: u64 = 16 * 1024 * 1024;

/// How often a session asks whether the home count that it waits for has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The reason why a quota does not permit an operation.
#[derive(Clone, Debug, thiserror::Error)]
pub enum QuotaError {
    #[error(
        "the quota of the home {home} is used up: it holds {} of {} bytes and {} of {} files",
        .held.bytes, shown(.limit.bytes), .held.files, shown(.limit.files)
    )]
    Exceeded { home: String, held: Usage, limit: Quota },
    /// An upload has received more bytes than the quota has room for.
    #[error("the quota of the home is used up")]
    UsedUp,
    #[error("the home is still being counted (quota_wait)")]
    Counting,
    #[error("Redis is away, so the quota cannot be checked")]
    RegistryAway,
}

fn shown(limit: Option<u64>) -> String {
    limit.map_or_else(|| "any number".to_owned(), |limit| limit.to_string())
}

impl From<RegistryAway> for QuotaError {
    fn from(RegistryAway: RegistryAway) -> Self {
        Self::RegistryAway
    }
}

/// The quota of a session's user, and the home that it limits. Only users with a quota have one.
pub struct HomeQuota {
    counts: HomeCounts,
    jail: Arc<Jail>,
    /// The directory that the quota limits: the home, or a directory of it.
    directory: VirtualPath,
    usage: HomeUsage,
    limit: Quota,
    /// The path of `directory` in the storage, for logs.
    home: String,
}

impl HomeQuota {
    /// Starts a home count of `directory` if one is due. `key`: its [`Jail::quota_key`].
    pub async fn open(
        registry: &Registry,
        counts: &HomeCounts,
        account: &Account,
        jail: &Arc<Jail>,
        key: &[u8],
        directory: VirtualPath,
    ) -> Arc<Self> {
        let usage = registry.home_usage(key, counts.interval);
        let (counts, jail) = (counts.clone(), Arc::clone(jail));
        let limit = account.quota;
        let home = match directory.is_root() {
            true => account.home.clone(),
            false => format!("{}{}", account.home.trim_end_matches('/'), directory.as_bytes().escape_ascii()),
        };
        let quota = Arc::new(Self { counts, jail, directory, usage, limit, home });
        // An error does not matter here: commands that need the usage ask again.
        let _ = quota.settle(UsageStep::default()).await;
        quota
    }

    /// Returns true if changes at `path` are charged to this quota.
    pub fn counts(&self, path: &VirtualPath) -> bool {
        self.jail.is_in_home(path) && path.below(&self.directory).is_some()
    }

    /// The directory that the quota limits: the home, or a directory of it.
    pub fn directory(&self) -> &VirtualPath {
        &self.directory
    }

    pub fn limit(&self) -> Quota {
        self.limit
    }

    /// Returns what the home holds. Waits for its first count, for at most `quota_wait`.
    ///
    /// # Errors
    /// [`QuotaError::Counting`] if the count takes longer; [`QuotaError::RegistryAway`].
    pub async fn held(self: &Arc<Self>) -> Result<Usage, QuotaError> {
        let deadline = Instant::now() + self.counts.wait;
        loop {
            match self.settle(UsageStep::default()).await? {
                UsageStatus { held: Some(held), .. } => return Ok(held),
                _ if Instant::now() < deadline => sleep(POLL_INTERVAL).await,
                _ => return Err(QuotaError::Counting),
            }
        }
    }

    /// Returns the bytes left of the quota; `None` if the quota does not limit bytes.
    ///
    /// # Errors
    /// As [`Self::held`].
    pub async fn bytes_left(self: &Arc<Self>) -> Result<Option<u64>, QuotaError> {
        let Some(limit) = self.limit.bytes else { return Ok(None) };
        Ok(Some(limit.saturating_sub(self.held().await?.bytes)))
    }

    /// Reports changes of bytes and files to the registry.
    pub async fn report(self: &Arc<Self>, (bytes, files): (i64, i64)) {
        let change = change(bytes, files);
        if !change.is_nothing() {
            // While Redis is away, the registry keeps the change for the next step.
            let _ = self.settle(UsageStep { change, ..UsageStep::default() }).await;
        }
    }

    /// Lets an upload begin. `frees`: bytes of the replaced file that come free before the upload writes.
    ///
    /// # Errors
    /// [`QuotaError::Exceeded`]; the others as for [`Self::held`].
    pub async fn admit(self: &Arc<Self>, new: NewFile, frees: u64) -> Result<QuotaReservation, QuotaError> {
        let held = self.held().await?;
        if frees == 0 && self.limit.bytes.is_some_and(|limit| held.bytes >= limit) {
            metrics::limit_reached("quota_bytes");
            return Err(self.exceeded(held));
        }
        let wanted = Usage { bytes: 0, files: u64::from(new != NewFile::No) };
        let limit = Quota { files: self.limit.files.filter(|_| new != NewFile::Beside), ..self.limit };
        self.reserve(held, UsageStep { wanted, limit, ..UsageStep::default() }).await
    }

    /// Reserves the whole of `wanted`, or nothing if the quota has no room for all of it.
    ///
    /// # Errors
    /// As [`Self::admit`].
    pub async fn admit_whole(self: &Arc<Self>, wanted: Usage) -> Result<QuotaReservation, QuotaError> {
        let held = self.held().await?;
        self.reserve(held, UsageStep { wanted, whole: true, limit: self.limit, ..UsageStep::default() }).await
    }

    async fn reserve(self: &Arc<Self>, held: Usage, step: UsageStep) -> Result<QuotaReservation, QuotaError> {
        let granted = self.settle(step).await?.granted;
        let ledger = Ledger { reserved: granted, room: granted.bytes, ..Ledger::default() };
        let reservation = QuotaReservation {
            quota: Arc::clone(self),
            bridge: RuntimeBridge::to_current(),
            changes: OnceLock::new(),
            ledger: Mutex::new(ledger),
        };
        let is_short = granted.bytes < step.wanted.bytes;
        if is_short || granted.files < step.wanted.files {
            metrics::limit_reached(if is_short { "quota_bytes" } else { "quota_files" });
            // Before the reply, and not in `drop`: the next command may need the part that was granted.
            if let Some(step) = reservation.last_step() {
                let _ = self.settle(step).await;
            }
            return Err(self.exceeded(held));
        }
        Ok(reservation)
    }

    fn exceeded(&self, held: Usage) -> QuotaError {
        QuotaError::Exceeded { home: self.home.clone(), held, limit: self.limit }
    }

    /// Does one step in the registry. Starts a home count if one is due.
    async fn settle(self: &Arc<Self>, step: UsageStep) -> Result<UsageStatus, RegistryAway> {
        let status = self.usage.settle(step).await;
        if status.is_ok_and(|status| status.count_is_due)
            && let Some(counting) = self.usage.begin_count().await
        {
            tokio::spawn(count::count(Arc::clone(self), counting));
        }
        status
    }
}

fn change(bytes: i64, files: i64) -> UsageChange {
    let positive = |number: i64| u64::try_from(number).unwrap_or(0);
    UsageChange {
        added: Usage { bytes: positive(bytes), files: positive(files) },
        removed: Usage { bytes: positive(bytes.saturating_neg()), files: positive(files.saturating_neg()) },
    }
}

/// Whether an upload creates a file, in addition to the bytes that it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewFile {
    No,
    /// A file that counts towards the limit of files.
    Yes,
    /// A hidden partial file beside the file that it will replace. It is charged for as long as both exist,
    /// but never refused.
    Beside,
}

/// The part of a quota that one upload, COMB or MKD has reserved. Dropping it releases what is left of it.
pub struct QuotaReservation {
    quota: Arc<HomeQuota>,
    bridge: RuntimeBridge,
    changes: OnceLock<Changes>,
    ledger: Mutex<Ledger>,
}

#[derive(Default)]
struct Ledger {
    /// The reservation that the registry holds.
    reserved: Usage,
    /// Reserved bytes that have not arrived.
    room: u64,
    /// All bytes that have arrived.
    arrived: i64,
    /// Bytes and files of this operation that were reported to the registry.
    reported: (i64, i64),
    /// A request to the registry is under way, or was dropped: the registry may have reserved something.
    is_asking: bool,
}

impl Ledger {
    /// Returns the change since the last report, and notes `now` as reported.
    fn report(&mut self, now: (i64, i64)) -> UsageChange {
        let change = change(now.0 - self.reported.0, now.1 - self.reported.1);
        self.reported = now;
        change
    }
}

impl QuotaReservation {
    /// The operation has begun, and notes its changes in `changes`.
    pub fn follow(&self, changes: Changes) {
        let is_first = self.changes.set(changes).is_ok();
        debug_assert!(is_first, "a reservation belongs to one operation");
    }

    /// The bytes that may arrive now.
    pub fn room(&self) -> u64 {
        self.ledger().room
    }

    /// Notes that bytes have arrived.
    ///
    /// # Errors
    /// [`QuotaError::UsedUp`]: the bytes must not be stored.
    pub fn arrived(&self, bytes: u64) -> Result<(), QuotaError> {
        let mut ledger = self.ledger();
        match ledger.room.checked_sub(bytes) {
            Some(room) => {
                ledger.room = room;
                ledger.arrived = ledger.arrived.saturating_add_unsigned(bytes);
                Ok(())
            }
            None => {
                metrics::limit_reached("quota_bytes");
                Err(QuotaError::UsedUp)
            }
        }
    }

    /// Reserves further bytes. Gets none if the quota is used up.
    ///
    /// # Errors
    /// The registry is away, or has lost its data and the home is still being counted.
    pub async fn reserve(&self) -> Result<(), QuotaError> {
        let step = {
            let mut ledger = self.ledger();
            let (bytes, files) = self.so_far();
            let now = (bytes.saturating_add(ledger.arrived), files);
            let released = Usage { bytes: ledger.reserved.bytes - ledger.room, files: ledger.reserved.files };
            ledger.reserved = ledger.reserved.less(released);
            ledger.is_asking = true;
            let wanted = Usage { bytes: RESERVED_AT_ONCE, files: 0 };
            UsageStep { change: ledger.report(now), released, wanted, limit: self.quota.limit, whole: false }
        };
        let granted = match self.quota.settle(step).await? {
            UsageStatus { held: Some(_), granted, .. } => granted,
            UsageStatus { held: None, .. } => {
                self.quota.held().await?;
                let step = UsageStep { wanted: step.wanted, limit: step.limit, ..UsageStep::default() };
                self.quota.settle(step).await?.granted
            }
        };
        let mut ledger = self.ledger();
        ledger.is_asking = false;
        ledger.reserved = ledger.reserved.plus(granted);
        ledger.room += granted.bytes;
        Ok(())
    }

    /// The operation has ended, with or without success: reports its changes and releases the rest. Blocks.
    pub fn settle(&self) {
        if let Some(step) = self.last_step() {
            // While Redis is away, the registry keeps the change for the next step.
            let _ = self.bridge.wait(self.quota.settle(step));
        }
    }

    /// Returns the step that ends this reservation; `None` if there is nothing to report or to release.
    fn last_step(&self) -> Option<UsageStep> {
        let mut ledger = self.ledger();
        let change = ledger.report(self.so_far());
        let released = std::mem::take(&mut ledger.reserved);
        ledger.room = 0;
        let is_asking = std::mem::take(&mut ledger.is_asking);
        let is_nothing = change.is_nothing() && released == Usage::default() && !is_asking;
        (!is_nothing).then_some(UsageStep { change, released, ..UsageStep::default() })
    }

    fn so_far(&self) -> (i64, i64) {
        self.changes.get().map_or((0, 0), Changes::so_far)
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }
}

impl Drop for QuotaReservation {
    fn drop(&mut self) {
        if let Some(step) = self.last_step() {
            let quota = Arc::clone(&self.quota);
            self.bridge.spawn(async move {
                let _ = quota.settle(step).await;
            });
        }
    }
}
