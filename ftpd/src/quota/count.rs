//! Counting homes from the disk.

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
    turns::{Turn, Turns},
};
use crate::{
    config::{Limits, Storage, Timeouts},
    connections::Connections,
    data::progress::Progress,
    jail::FileError,
    metrics,
    workers::StandingBack,
};

/// How many counts read the storage at the same time.
const READING: usize = 4;

/// How this node counts homes. Cheap to clone.
#[derive(Clone)]
pub struct Counts {
    /// Each count that has begun has one, also while it waits for its turn or its storage hangs.
    places: Arc<Semaphore>,
    turns: Arc<Turns>,
    connections: Arc<Connections>,
    /// Time between two counts of a home.
    pub interval: Duration,
    /// How long an upload waits for the first count of its home.
    pub wait: Duration,
}

impl Counts {
    /// `connections` tells when the node drains: then no count goes on.
    pub fn new(
        limits: &Limits,
        timeouts: &Timeouts,
        storage: &Storage,
        connections: &Arc<Connections>,
    ) -> Self {
        Self {
            places: Arc::new(Semaphore::new(limits.home_counts as usize)),
            turns: Arc::new(Turns::new(READING, timeouts.home_count_turn)),
            connections: Arc::clone(connections),
            interval: storage.quota_rescan,
            wait: timeouts.quota_wait,
        }
    }

    #[cfg(test)]
    pub(super) fn for_tests(connections: Arc<Connections>) -> Self {
        let turns = Arc::new(Turns::new(READING, Duration::from_secs(1)));
        let (interval, wait) = (Duration::from_secs(24 * 3600), Duration::from_secs(60));
        Self { places: Arc::new(Semaphore::new(1)), turns, connections, interval, wait }
    }

    /// Walks through what the quota counts on a thread of its own, in a place and in turns with other counts.
    async fn walk(&self, quota: Arc<HomeQuota>, progress: Arc<Progress>) -> Result<Usage, FileError> {
        if self.places.available_permits() == 0 {
            metrics::limit_reached("max_home_counts");
        }
        // The semaphore is never closed.
        let place = Arc::clone(&self.places).acquire_owned().await.expect("never closed");
        let turn = self.turns.enter();
        let (sender, counted) = oneshot::channel();
        let work = move || {
            // The receiver is gone if the count was given up; then the result is not needed.
            let _ = sender.send(walk(&quota, &progress, turn, place));
        };
        thread::Builder::new().name("count".to_owned()).spawn(work)?;
        counted.await.unwrap_or(Err(FileError::Cancelled))
    }
}

fn walk(
    quota: &HomeQuota,
    progress: &Progress,
    mut turn: Turn,
    _place: OwnedSemaphorePermit,
) -> Result<Usage, FileError> {
    let _back = StandingBack::begin();
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
    let mut kept = begun;
    let counted = loop {
        tokio::select! {
            counted = &mut walk => break counted,
            () = sleep(interval) => {}
        }
        let is_lost = kept.elapsed() >= counting.interval() && {
            kept = Instant::now();
            !counting.keep().await
        };
        if is_lost || counts.connections.is_draining() {
            progress.cancel();
        }
    };
    match counted {
        Ok(usage) => {
            log::info!(
                home = quota.home.as_str(), bytes = usage.bytes, files = usage.files, seconds = begun.elapsed().as_secs_f64();
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
