//! Quotas of homes: what a session tells of what it does, what uploads reserve, and the count.

mod count;
#[cfg(test)]
mod tests;
mod turns;

use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use common::{
    auth_api::Account,
    policy::Quota,
    registry::{HomeUsage, RegistryAway, Usage, UsageChange, UsageStatus, UsageStep},
};
use tokio::{
    runtime::Handle,
    time::{Instant, sleep},
};

pub use self::count::Counts;
use crate::{
    data::transfer::TransferError,
    failure::Failure,
    jail::{Changes, Jail, path::VirtualPath},
    metrics,
    node::Node,
    protocol::{Code, Reply},
};

/// Bytes that an upload reserves at once, where there is room.
const PIECE: u64 = 16 * 1024 * 1024;

/// How often a session looks whether the count that it waits for has ended.
const LOOK: Duration = Duration::from_millis(50);

/// The quota of a session's user, and the home it is about. Users without a quota have none of this.
pub struct HomeQuota {
    counts: Counts,
    jail: Arc<Jail>,
    /// What it counts: the home, or a directory of it.
    directory: VirtualPath,
    usage: HomeUsage,
    limit: Quota,
    /// As the account names it: for logs.
    home: String,
}

impl HomeQuota {
    /// Begins to count `directory` if that is due. `path`: its [`Jail::quota_key`].
    pub async fn open(
        node: &Arc<Node>,
        account: &Account,
        jail: &Arc<Jail>,
        path: &[u8],
        directory: VirtualPath,
    ) -> Arc<Self> {
        let usage = node.registry.home_usage(path, node.counts.interval);
        let (counts, jail) = (node.counts.clone(), Arc::clone(jail));
        let limit = account.quota;
        let home = match directory.is_root() {
            true => account.home.clone(),
            false => format!("{}{}", account.home.trim_end_matches('/'), directory.as_bytes().escape_ascii()),
        };
        let quota = Arc::new(Self { counts, jail, directory, usage, limit, home });
        // Commands that need the answer ask again.
        let _ = quota.settle(UsageStep::default()).await;
        quota
    }

    /// Whether what happens at `path` counts.
    pub fn counts(&self, path: &VirtualPath) -> bool {
        self.jail.is_in_home(path) && path.below(&self.directory).is_some()
    }

    /// What it counts: the home, or a directory of it.
    pub fn directory(&self) -> &VirtualPath {
        &self.directory
    }

    pub fn limit(&self) -> Quota {
        self.limit
    }

    /// What the home holds, when it has been counted.
    ///
    /// # Errors
    /// 450: it is still being counted after the configured time, or the registry is away.
    pub async fn held(self: &Arc<Self>) -> Result<Usage, Reply> {
        let deadline = Instant::now() + self.counts.wait;
        loop {
            match self.settle(UsageStep::default()).await {
                Ok(UsageStatus { held: Some(held), .. }) => return Ok(held),
                Ok(_) if Instant::now() < deadline => sleep(LOOK).await,
                Ok(_) => {
                    return Err(Reply::new(Code::FILE_BUSY, "Your files are being counted; try again later")
                        .because("quota_counting"));
                }
                Err(RegistryAway) => return Err(unknown()),
            }
        }
    }

    /// Bytes left of the quota; `None` where bytes have no limit.
    ///
    /// # Errors
    /// As [`Self::held`].
    pub async fn bytes_left(self: &Arc<Self>) -> Result<Option<u64>, Reply> {
        let Some(limit) = self.limit.bytes else { return Ok(None) };
        Ok(Some(limit.saturating_sub(self.held().await?.bytes)))
    }

    /// Tells what has been done.
    pub async fn tell(self: &Arc<Self>, (bytes, files): (i64, i64)) {
        let change = change(bytes, files);
        if !change.is_nothing() {
            // Without Redis it is told with the next step.
            let _ = self.settle(UsageStep { change, ..UsageStep::default() }).await;
        }
    }

    /// Lets an upload begin. `frees`: bytes of what it replaces that come free before it writes.
    ///
    /// # Errors
    /// 552: the quota is used up; 450 as for [`Self::held`].
    pub async fn admit(self: &Arc<Self>, new: NewFile, frees: u64) -> Result<Share, Reply> {
        let held = self.held().await?;
        if frees == 0 && self.limit.bytes.is_some_and(|limit| held.bytes >= limit) {
            metrics::limit_reached("quota_bytes");
            return Err(self.exceeded(held));
        }
        let wanted = Usage { bytes: 0, files: u64::from(new != NewFile::No) };
        let limit = Quota { files: self.limit.files.filter(|_| new != NewFile::Beside), ..self.limit };
        self.reserve(held, UsageStep { wanted, limit, ..UsageStep::default() }).await
    }

    /// Reserves a whole: so many bytes, and so many files and directories. Nothing, if there is no room for
    /// all of it.
    ///
    /// # Errors
    /// As [`Self::admit`].
    pub async fn admit_whole(self: &Arc<Self>, wanted: Usage) -> Result<Share, Reply> {
        let held = self.held().await?;
        self.reserve(held, UsageStep { wanted, whole: true, limit: self.limit, ..UsageStep::default() }).await
    }

    async fn reserve(self: &Arc<Self>, held: Usage, step: UsageStep) -> Result<Share, Reply> {
        let standing = self.settle(step).await;
        let granted = standing.map_err(|RegistryAway| unknown())?.granted;
        let ledger = Ledger { reserved: granted, room: granted.bytes, ..Ledger::default() };
        let share = Share {
            quota: Arc::clone(self),
            runtime: Handle::current(),
            changes: OnceLock::new(),
            ledger: Mutex::new(ledger),
        };
        let is_short = granted.bytes < step.wanted.bytes;
        if is_short || granted.files < step.wanted.files {
            metrics::limit_reached(if is_short { "quota_bytes" } else { "quota_files" });
            // At once, and not when it is dropped: the next command may want the part that was granted.
            if let Some(step) = share.last_step() {
                let _ = self.settle(step).await;
            }
            return Err(self.exceeded(held));
        }
        Ok(share)
    }

    fn exceeded(&self, held: Usage) -> Reply {
        let of =
            |limit: Option<u64>| limit.map_or_else(|| "any number".to_owned(), |limit| limit.to_string());
        let detail = format!(
            "the quota of the home {} is used up: it holds {} of {} bytes and {} of {} files",
            self.home,
            held.bytes,
            of(self.limit.bytes),
            held.files,
            of(self.limit.files)
        );
        let failure = Failure { detail: Some(detail.into()), ..Failure::from("quota") };
        Reply::new(Code::QUOTA_EXCEEDED, "Quota exceeded").because(failure)
    }

    /// One step in the registry. A count that is due begins.
    async fn settle(self: &Arc<Self>, step: UsageStep) -> Result<UsageStatus, RegistryAway> {
        let standing = self.usage.settle(step).await;
        if standing.is_ok_and(|standing| standing.count_is_due)
            && let Some(counting) = self.usage.begin_count().await
        {
            tokio::spawn(count::count(Arc::clone(self), counting));
        }
        standing
    }
}

fn unknown() -> Reply {
    Reply::new(Code::FILE_BUSY, "Uploads are not possible at this time; try again later").because(Failure {
        detail: Some("Redis is away, so the quota cannot be checked".into()),
        ..Failure::from("registry_away")
    })
}

fn change(bytes: i64, files: i64) -> UsageChange {
    let positive = |number: i64| u64::try_from(number).unwrap_or(0);
    UsageChange {
        added: Usage { bytes: positive(bytes), files: positive(files) },
        removed: Usage { bytes: positive(bytes.saturating_neg()), files: positive(files.saturating_neg()) },
    }
}

/// What an upload makes beside the bytes that it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewFile {
    No,
    /// A file that counts to the limit of files.
    Yes,
    /// A hidden file beside the file that it will replace: counted for as long as both are there, but not
    /// refused.
    Beside,
}

/// What one upload, COMB or MKD takes of the quota. Dropping it gives back what it has reserved.
pub struct Share {
    quota: Arc<HomeQuota>,
    runtime: Handle,
    changes: OnceLock<Changes>,
    ledger: Mutex<Ledger>,
}

#[derive(Default)]
struct Ledger {
    /// Held in the registry.
    reserved: Usage,
    /// Of the bytes reserved, those that have not arrived.
    room: u64,
    /// Bytes that have arrived in all.
    arrived: i64,
    /// What the registry has been told of this upload.
    told: (i64, i64),
    /// A request's answer has not been seen: it may have reserved something.
    is_asking: bool,
}

impl Ledger {
    /// What the registry has not been told yet of what has been done by `now`.
    fn untold(&mut self, now: (i64, i64)) -> UsageChange {
        let change = change(now.0 - self.told.0, now.1 - self.told.1);
        self.told = now;
        change
    }
}

impl Share {
    /// The operation has begun, and notes what it does in `changes`.
    pub fn follow(&self, changes: Changes) {
        // A second call would be a bug, and the first upload is as good.
        let _ = self.changes.set(changes);
    }

    /// Bytes that may arrive now.
    pub fn room(&self) -> u64 {
        self.ledger().room
    }

    /// Notes that bytes have arrived.
    ///
    /// # Errors
    /// There was no room for them: they must not be stored.
    pub fn arrived(&self, bytes: u64) -> Result<(), TransferError> {
        let mut ledger = self.ledger();
        match ledger.room.checked_sub(bytes) {
            Some(room) => {
                ledger.room = room;
                ledger.arrived = ledger.arrived.saturating_add_unsigned(bytes);
                Ok(())
            }
            None => {
                metrics::limit_reached("quota_bytes");
                Err(TransferError::OverQuota)
            }
        }
    }

    /// Reserves another piece. Nothing is granted when the quota is used up.
    ///
    /// # Errors
    /// The registry is away, or has lost its data and the home is still being counted.
    pub async fn reserve(&self) -> Result<(), TransferError> {
        let step = {
            let mut ledger = self.ledger();
            let (bytes, files) = self.so_far();
            let now = (bytes.saturating_add(ledger.arrived), files);
            let released = Usage { bytes: ledger.reserved.bytes - ledger.room, files: ledger.reserved.files };
            ledger.reserved = ledger.reserved.less(released);
            ledger.is_asking = true;
            let wanted = Usage { bytes: PIECE, files: 0 };
            UsageStep { change: ledger.untold(now), released, wanted, limit: self.quota.limit, whole: false }
        };
        let granted = match self.quota.settle(step).await {
            Ok(UsageStatus { held: Some(_), granted, .. }) => granted,
            Ok(UsageStatus { held: None, .. }) => {
                self.quota.held().await.map_err(|_| TransferError::QuotaUnknown)?;
                let step = UsageStep { wanted: step.wanted, limit: step.limit, ..UsageStep::default() };
                self.quota.settle(step).await.map_err(|RegistryAway| TransferError::QuotaUnknown)?.granted
            }
            Err(RegistryAway) => return Err(TransferError::QuotaUnknown),
        };
        let mut ledger = self.ledger();
        ledger.is_asking = false;
        ledger.reserved = ledger.reserved.plus(granted);
        ledger.room += granted.bytes;
        Ok(())
    }

    /// The operation has ended, with or without success: tells what it has changed. Blocks.
    pub fn settle(&self) {
        if let Some(step) = self.last_step() {
            // Without Redis it is told with the next step.
            let _ = self.runtime.block_on(self.quota.settle(step));
        }
    }

    fn last_step(&self) -> Option<UsageStep> {
        let mut ledger = self.ledger();
        let change = ledger.untold(self.so_far());
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
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Some(step) = self.last_step() {
            let quota = Arc::clone(&self.quota);
            self.runtime.spawn(async move {
                let _ = quota.settle(step).await;
            });
        }
    }
}
