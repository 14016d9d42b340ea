//! Probe of the storage.

use std::{fs::File, io, path::Path, thread, time::Duration};

use nix::sys::statvfs::fstatvfs;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};

type Result<T> = std::result::Result<T, String>;

/// Probes the storage on its own thread. At most one probe runs at a time, so a storage that hangs
/// blocks only this thread.
pub(super) struct StorageProbe {
    requests: mpsc::UnboundedSender<oneshot::Sender<io::Result<()>>>,
    /// The probe that has no result yet, and its start.
    pending: Option<(Instant, oneshot::Receiver<io::Result<()>>)>,
}

impl StorageProbe {
    /// A probe that opens `root` and calls fstatvfs. A network file system asks its server for this and does
    /// not use a cache.
    pub(super) fn of(root: &Path) -> Self {
        let root = root.to_owned();
        Self::new(move || {
            fstatvfs(File::open(&root)?)?;
            Ok(())
        })
    }

    fn new(probe: impl Fn() -> io::Result<()> + Send + 'static) -> Self {
        let (requests, mut received) = mpsc::unbounded_channel::<oneshot::Sender<_>>();
        let work = move || {
            while let Some(answer) = received.blocking_recv() {
                // Fails if the node is stopping.
                let _ = answer.send(probe());
            }
        };
        // If the thread cannot be started, every probe fails.
        let _ = thread::Builder::new().name("storage-probe".to_owned()).spawn(work);
        Self { requests, pending: None }
    }

    /// Waits up to `time_limit` for the pending probe, or for a new one if none is pending.
    ///
    /// # Errors
    /// The storage cannot be used, or has not responded in time.
    pub(super) async fn ask(&mut self, time_limit: Duration) -> Result<()> {
        let (since, mut answer) = self.pending.take().unwrap_or_else(|| {
            let (sender, answer) = oneshot::channel();
            // If the thread has ended, this drops the sender, and the probe fails.
            let _ = self.requests.send(sender);
            (Instant::now(), answer)
        });
        match timeout(time_limit, &mut answer).await {
            Ok(Ok(result)) => result.map_err(|error| error.to_string()),
            Ok(Err(_)) => Err("the thread that probes the storage has ended".to_owned()),
            Err(_) => {
                self.pending = Some((since, answer));
                Err(format!("no response for {} s", since.elapsed().as_secs().max(1)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc as blocking,
    };

    use super::*;

    #[tokio::test]
    async fn a_storage_that_hangs_fails_the_probe_and_blocks_one_request() {
        let (release, hang) = blocking::channel::<()>();
        let (asked, hang) = (Arc::new(AtomicUsize::new(0)), Mutex::new(hang));
        let counted = Arc::clone(&asked);
        let mut probe = StorageProbe::new(move || {
            counted.fetch_add(1, Ordering::SeqCst);
            hang.lock().unwrap().recv().map_err(io::Error::other)
        });
        for _ in 0..5 {
            let error = probe.ask(Duration::from_millis(20)).await.unwrap_err();
            assert!(error.starts_with("no response for "), "{error}");
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        release.send(()).unwrap();
        release.send(()).unwrap();
        let time_limit = Duration::from_secs(20);
        assert_eq!(probe.ask(time_limit).await, Ok(()));
        assert_eq!(probe.ask(time_limit).await, Ok(()));
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_missing_root_fails_the_probe() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        let mut probe = StorageProbe::of(&root);
        let time_limit = Duration::from_secs(20);
        assert!(probe.ask(time_limit).await.unwrap_err().contains("os error 2"));
        std::fs::create_dir(&root).unwrap();
        assert_eq!(probe.ask(time_limit).await, Ok(()));
    }
}
