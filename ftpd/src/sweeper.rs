//! Removes hidden files of atomic uploads that broke off and were not resumed for `partial_lifetime`: one node
//! of the cluster at a time, beside its other work.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use common::{process::logging::chain, registry::ClusterTask};
use tokio::{runtime::Handle, sync::oneshot, time::sleep};

use crate::{
    data::progress::Progress,
    jail::{
        FileError,
        sweep::{SweptFile, sweep},
    },
    metrics,
    node::Node,
    workers::StandingBack,
};

/// What the work is called in Redis.
const NAME: &str = "partials";

/// The storage is looked through at most this often.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
const SHORTEST: Duration = Duration::from_secs(1);

/// How often a node asks whether the work is due.
const ASK: Duration = Duration::from_secs(60);

/// Starts the work, unless the settings switch it off. It ends when the node drains.
pub fn start(node: &Arc<Node>) {
    if let Some(lifetime) = node.storage.partial_lifetime {
        tokio::spawn(run(Arc::clone(node), lifetime));
    }
}

async fn run(node: Arc<Node>, lifetime: Duration) {
    // A file stays for at most a seventh longer than its lifetime, or a day.
    let every = (lifetime / 7).clamp(SHORTEST, LONGEST);
    while !node.connections.is_draining() {
        sleep(every.min(ASK)).await;
        if let Some(chore) = node.registry.begin_cluster_task(NAME, every).await {
            work(&node, lifetime, chore).await;
        }
    }
}

#[derive(Default)]
struct Sum {
    files: u64,
    bytes: u64,
}

async fn work(node: &Arc<Node>, lifetime: Duration, chore: ClusterTask) {
    let progress = Arc::new(Progress::default());
    let (sender, mut ended) = oneshot::channel();
    let (walking, walked, runtime) = (Arc::clone(node), Arc::clone(&progress), Handle::current());
    let begun = Instant::now();
    let sweeping = move || {
        let _back = StandingBack::begin();
        // If this task has ended, the process ends, too.
        let _ = sender.send(sweep_all(&walking, lifetime, &walked, &runtime));
    };
    if let Err(error) = thread::Builder::new().name("sweep".to_owned()).spawn(sweeping) {
        log::error!("cannot start a thread that looks for old partial files: {error}");
        return;
    }
    let interval = chore.interval().min(Duration::from_secs(1));
    let mut kept = begun;
    let swept = loop {
        tokio::select! {
            swept = &mut ended => break swept.unwrap_or(Err(FileError::Cancelled)),
            () = sleep(interval) => {}
        }
        let is_lost = kept.elapsed() >= chore.interval() && {
            kept = Instant::now();
            !chore.keep().await
        };
        if is_lost || node.connections.is_draining() {
            progress.cancel();
        }
    };
    match swept {
        Ok(Sum { files, bytes }) => {
            log::info!(
                files, bytes, seconds = begun.elapsed().as_secs_f64();
                "looked for partial files older than partial_lifetime"
            );
            chore.finish().await;
        }
        Err(FileError::Cancelled) => {}
        Err(error) => log::error!("cannot look for old partial files: {}", chain(&error)),
    }
}

fn sweep_all(
    node: &Node,
    lifetime: Duration,
    progress: &Progress,
    runtime: &Handle,
) -> Result<Sum, FileError> {
    let mut sum = Sum::default();
    let step = || if progress.is_cancelled() { Err(FileError::Cancelled) } else { Ok(()) };
    let note = |SweptFile { directory, name, usage, age }: SweptFile| {
        sum.files += usage.files;
        sum.bytes += usage.bytes;
        metrics::partial_removed(usage.bytes);
        let path = format!("/{}/{}", directory.escape_ascii(), name.escape_ascii());
        log::info!(
            path:%, bytes = usage.bytes, age_seconds = age.as_secs();
            "removed the hidden file of an upload that broke off and was not resumed (partial_lifetime)"
        );
        runtime.block_on(node.registry.removed_below(&directory, usage, node.counts.interval));
    };
    sweep(&node.storage.root, lifetime, node.storage.locks, step, note)?;
    Ok(sum)
}
