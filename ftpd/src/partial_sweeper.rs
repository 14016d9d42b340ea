//! The partial sweeper: removes partial files of uploads that broke off and were not resumed for
//! `partial_lifetime`. One node of the cluster sweeps at a time.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use common::{process::logging::chain, registry::ClusterTask};
use tokio::{sync::oneshot, time::sleep};

use crate::{
    jail::{
        FileError,
        sweep::{SweptFile, sweep},
    },
    metrics,
    node::Node,
    work::{BatchPriority, RuntimeBridge, progress::Progress},
};

/// The name of this task in the registry.
const NAME: &str = "partials";

/// The longest and the shortest time between two sweeps.
const MAX_INTERVAL: Duration = Duration::from_secs(24 * 3600);
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// How often a node asks the registry whether a sweep is due.
const ASK_INTERVAL: Duration = Duration::from_secs(60);

/// Starts the sweeper, unless `partial_lifetime` switches it off. It pauses while the node drains.
pub(crate) fn start(node: &Arc<Node>) {
    if let Some(lifetime) = node.storage.partial_lifetime {
        tokio::spawn(run(Arc::clone(node), lifetime));
    }
}

async fn run(node: Arc<Node>, lifetime: Duration) {
    // A partial file stays at most a seventh of its lifetime too long, and at most a day.
    let sweep_interval = (lifetime / 7).clamp(MIN_INTERVAL, MAX_INTERVAL);
    loop {
        sleep(sweep_interval.min(ASK_INTERVAL)).await;
        if node.connections.is_draining() {
            continue;
        }
        if let Some(task) = node.registry.begin_cluster_task(NAME, sweep_interval).await {
            sweep_once(&node, lifetime, task).await;
        }
    }
}

#[derive(Default)]
struct SweptTotal {
    files: u64,
    bytes: u64,
}

async fn sweep_once(node: &Arc<Node>, lifetime: Duration, task: ClusterTask) {
    let progress = Arc::new(Progress::default());
    let (sender, mut ended) = oneshot::channel();
    let (sweeper, shared_progress, bridge) =
        (Arc::clone(node), Arc::clone(&progress), RuntimeBridge::to_current());
    let begun = Instant::now();
    let sweeping = move || {
        let _priority = BatchPriority::begin();
        // The receiver is gone only if the process ends.
        let _ = sender.send(sweep_all(&sweeper, lifetime, &shared_progress, &bridge));
    };
    if let Err(error) = thread::Builder::new().name("sweep".to_owned()).spawn(sweeping) {
        log::error!("cannot start the thread that removes old partial files: {error}");
        return;
    }
    let interval = task.interval().min(Duration::from_secs(1));
    let mut last_kept = begun;
    let swept = loop {
        tokio::select! {
            swept = &mut ended => break swept.unwrap_or(Err(FileError::Cancelled)),
            () = sleep(interval) => {}
        }
        let is_lost = last_kept.elapsed() >= task.interval() && {
            last_kept = Instant::now();
            !task.keep().await
        };
        if is_lost || node.connections.is_draining() {
            progress.cancel();
        }
    };
    match swept {
        Ok(SweptTotal { files, bytes }) => {
            log::info!(
                files, bytes, seconds = begun.elapsed().as_secs_f64();
                "removed partial files older than partial_lifetime"
            );
            task.finish().await;
        }
        Err(FileError::Cancelled) => {}
        Err(error) => log::error!("cannot search for old partial files: {}", chain(&error)),
    }
}

fn sweep_all(
    node: &Node,
    lifetime: Duration,
    progress: &Progress,
    bridge: &RuntimeBridge,
) -> Result<SweptTotal, FileError> {
    let mut total = SweptTotal::default();
    let step = || if progress.is_cancelled() { Err(FileError::Cancelled) } else { Ok(()) };
    let note = |SweptFile { directory, name, usage, age }: SweptFile| {
        total.files += usage.files;
        total.bytes += usage.bytes;
        metrics::partial_removed(usage.bytes);
        let path = format!("/{}/{}", directory.escape_ascii(), name.escape_ascii());
        log::info!(
            path:%, bytes = usage.bytes, age_seconds = age.as_secs();
            "removed the partial file of an upload that broke off and was not resumed (partial_lifetime)"
        );
        bridge.wait(node.registry.removed_below(&directory, usage, node.home_counts.interval));
    };
    sweep(&node.storage.root, lifetime, node.storage.locks, step, note)?;
    Ok(total)
}
