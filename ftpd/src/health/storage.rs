//! Whether the storage answers.

use std::{fs::File, io, path::Path, thread, time::Duration};

use nix::sys::statvfs::fstatvfs;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};

type Result<T> = std::result::Result<T, String>;

/// Asks the storage on a thread of its own. A storage that hangs holds this one thread, however often it
/// is asked: there is never more than one question.
pub struct StorageProbe {
    questions: mpsc::UnboundedSender<oneshot::Sender<io::Result<()>>>,
    /// The question without an answer so far, and when it was asked.
    open: Option<(Instant, oneshot::Receiver<io::Result<()>>)>,
}

impl StorageProbe {
    /// Opens `root` and asks its file system for its size, which a network file system answers from its
    /// server and not from a cache.
    pub fn of(root: &Path) -> Self {
        let root = root.to_owned();
        Self::new(move || {
            fstatvfs(File::open(&root)?)?;
            Ok(())
        })
    }

    fn new(probe: impl Fn() -> io::Result<()> + Send + 'static) -> Self {
        let (questions, mut asked) = mpsc::unbounded_channel::<oneshot::Sender<_>>();
        let work = move || {
            while let Some(answer) = asked.blocking_recv() {
                // The node may be ending.
                let _ = answer.send(probe());
            }
        };
        // Without the thread each question has the answer that the probe has ended.
        let _ = thread::Builder::new().name("storage-probe".to_owned()).spawn(work);
        Self { questions, open: None }
    }

    /// # Errors
    /// Why the storage cannot be used, or that it has not answered in time.
    pub async fn ask(&mut self, patience: Duration) -> Result<()> {
        let (since, mut answer) = self.open.take().unwrap_or_else(|| {
            let (sender, answer) = oneshot::channel();
            // If the thread has ended, so has the sender.
            let _ = self.questions.send(sender);
            (Instant::now(), answer)
        });
        match timeout(patience, &mut answer).await {
            Ok(Ok(result)) => result.map_err(|error| error.to_string()),
            Ok(Err(_)) => Err("the thread that asks the storage has ended".to_owned()),
            Err(_) => {
                self.open = Some((since, answer));
                Err(format!("no answer for {} s", since.elapsed().as_secs().max(1)))
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
    async fn a_storage_that_hangs_fails_the_probe_and_holds_one_question() {
        let (release, hang) = blocking::channel::<()>();
        let (asked, hang) = (Arc::new(AtomicUsize::new(0)), Mutex::new(hang));
        let counted = Arc::clone(&asked);
        let mut probe = StorageProbe::new(move || {
            counted.fetch_add(1, Ordering::SeqCst);
            hang.lock().unwrap().recv().map_err(io::Error::other)
        });
        for _ in 0..5 {
            let error = probe.ask(Duration::from_millis(20)).await.unwrap_err();
            assert!(error.starts_with("no answer for "), "{error}");
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        release.send(()).unwrap();
        release.send(()).unwrap();
        let patience = Duration::from_secs(20);
        assert_eq!(probe.ask(patience).await, Ok(()));
        assert_eq!(probe.ask(patience).await, Ok(()));
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_root_that_is_gone_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        let mut probe = StorageProbe::of(&root);
        let patience = Duration::from_secs(20);
        assert!(probe.ask(patience).await.unwrap_err().contains("os error 2"));
        std::fs::create_dir(&root).unwrap();
        assert_eq!(probe.ask(patience).await, Ok(()));
    }
}
