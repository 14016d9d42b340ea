//! Home counts: measuring what homes hold on the storage.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use common::{process::logging::chain, registry::HomeCount, registry::Usage};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::sleep,
};

use super::{
    HomeQuota,
    turns::{CountTurn, CountTurns},
};
use crate::{
    jail::FileError,
    metrics,
    work::{BatchPriority, progress::Progress},
};

/// Home counts that read the storage at the same time.
const READING_AT_ONCE: usize = 4;

/// The settings of home counts.
#[derive(Clone, Copy, Debug)]
pub struct HomeCountSettings {
    /// Counts that may have begun at once (`max_home_counts`).
    pub at_once: usize,
    /// How long a count may read while another waits (`home_count_turn`).
    pub turn: Duration,
    /// Time between two counts of a home (`quota_rescan`).
    pub interval: Duration,
    /// How long an upload waits for the first count of its home (`quota_wait`).
    pub wait: Duration,
}

/// How this node counts homes. Cheap to clone.
#[derive(Clone)]
pub struct HomeCounts {
    /// Each count that has begun holds a permit, also while it waits for its turn or its storage hangs.
    permits: Arc<Semaphore>,
    turns: Arc<CountTurns>,
    is_draining: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Time between two counts of a home.
    pub interval: Duration,
    /// How long an upload waits for the first count of its home.
    pub(super) wait: Duration,
}

impl HomeCounts {
    /// `is_draining` returns true while the node drains. Counts are cancelled then.
    pub fn new(settings: HomeCountSettings, is_draining: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        let HomeCountSettings { at_once, turn, interval, wait } = settings;
        Self {
            permits: Arc::new(Semaphore::new(at_once)),
            turns: Arc::new(CountTurns::new(READING_AT_ONCE, turn)),
            is_draining: Arc::new(is_draining),
            interval,
            wait,
        }
    }

    /// Measures the quota's directory on a thread of its own, in turns with other counts.
    async fn walk(&self, quota: Arc<HomeQuota>, progress: Arc<Progress>) -> Result<Usage, FileError> {
        if self.permits.available_permits() == 0 {
            metrics::limit_reached("max_home_counts");
        }
        // The semaphore is never closed.
        let permit = Arc::clone(&self.permits).acquire_owned().await.expect("never closed");
        let turn = self.turns.enter();
        let (sender, counted) = oneshot::channel();
        let work = move || {
            // If the receiver is gone, no task needs the result.
            let _ = sender.send(walk(&quota, &progress, turn, permit));
        };
        thread::Builder::new().name("count".to_owned()).spawn(work)?;
        counted.await.unwrap_or(Err(FileError::Cancelled))
    }
}

fn walk(
    quota: &HomeQuota,
    progress: &Progress,
    mut turn: CountTurn,
    _permit: OwnedSemaphorePermit,
) -> Result<Usage, FileError> {
    let _priority = BatchPriority::begin();
    quota
        .jail
        .usage(&quota.directory, || turn.step(|| progress.is_cancelled()).map_err(|_| FileError::Cancelled))
}

/// Counts the home, unless the node drains or another node takes over.
pub(super) async fn count(quota: Arc<HomeQuota>, counting: HomeCount) {
    let counts = &quota.counts;
    let progress = Arc::new(Progress::default());
    let walk = counts.walk(Arc::clone(&quota), Arc::clone(&progress));
    tokio::pin!(walk);
    let begun = Instant::now();
    let interval = counting.interval().min(Duration::from_secs(1));
    let mut last_kept = begun;
    let counted = loop {
        tokio::select! {
            counted = &mut walk => break counted,
            () = sleep(interval) => {}
        }
        let is_lost = last_kept.elapsed() >= counting.interval() && {
            last_kept = Instant::now();
            !counting.keep().await
        };
        if is_lost || (counts.is_draining)() {
            progress.cancel();
        }
    };
    match counted {
        Ok(usage) => {
            log::info!(
                home = quota.home.as_str(), bytes = usage.bytes, files = usage.files,
                seconds = begun.elapsed().as_secs_f64();
                "counted a home"
            );
            counting.finish(usage).await;
        }
        Err(FileError::Cancelled) => {}
        Err(error) => {
            log::error!(home = quota.home.as_str(); "a home cannot be counted: {}", chain(&error));
        }
    }
}
