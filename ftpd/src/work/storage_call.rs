//! System calls that wait for the storage: their durations, and the call that has run for the longest time.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt, mem,
    sync::{Arc, LazyLock, Mutex},
    time::{Duration, Instant},
};

use common::sync::lock;

use super::task::Task;
use crate::metrics;

/// The calls that are measured: the label `operation` of `ftp_storage_seconds`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageCall {
    /// fsync of a file.
    Fsync,
    /// fsync of a directory.
    FsyncDirectory,
    /// `close` of a written file, at which NFS writes data back.
    Close,
    /// The rename that publishes an upload.
    Rename,
}

impl StorageCall {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fsync => "fsync",
            Self::FsyncDirectory => "fsync_directory",
            Self::Close => "close",
            Self::Rename => "rename",
        }
    }

    /// Makes the call and measures it.
    pub fn measure<T>(self, call: impl FnOnce() -> T) -> T {
        let _running = RunningCall::begin(self);
        call()
    }
}

/// The calls of this process. As the metrics, they belong to the process.
static CALLS: LazyLock<Mutex<Calls>> = LazyLock::new(Mutex::default);

#[derive(Default)]
struct Calls {
    last_id: u64,
    /// By number, so in the order of their start.
    running: BTreeMap<u64, CallStart>,
    longest_fsync: Duration,
}

struct CallStart {
    call: StorageCall,
    since: Instant,
    task: Option<Arc<Task>>,
}

thread_local! {
    /// The command for which this worker runs.
    static TASK: RefCell<Option<Arc<Task>>> = const { RefCell::new(None) };
}

/// Runs `work` as part of `task`, so that its calls can be named.
pub(super) fn within<T>(task: Option<Arc<Task>>, work: impl FnOnce() -> T) -> T {
    let _outer = OuterTask(TASK.replace(task));
    work()
}

/// The task of a worker before [`within`]. It is set again at the end, also if the work panics.
struct OuterTask(Option<Arc<Task>>);

impl Drop for OuterTask {
    fn drop(&mut self) {
        TASK.set(self.0.take());
    }
}

/// Ends with the call, also if the call panics.
struct RunningCall(u64);

impl RunningCall {
    fn begin(call: StorageCall) -> Self {
        let task = TASK.with_borrow(Clone::clone);
        let mut calls = lock(&CALLS);
        calls.last_id += 1;
        let id = calls.last_id;
        calls.running.insert(id, CallStart { call, since: Instant::now(), task });
        Self(id)
    }
}

impl Drop for RunningCall {
    fn drop(&mut self) {
        let mut calls = lock(&CALLS);
        let Some(CallStart { call, since, .. }) = calls.running.remove(&self.0) else { return };
        let took = since.elapsed();
        if call == StorageCall::Fsync {
            calls.longest_fsync = calls.longest_fsync.max(took);
        }
        drop(calls);
        metrics::storage_call(call.name(), took);
    }
}

/// Work on the storage that has not ended.
#[derive(Clone, Debug)]
pub struct RunningOperation {
    pub age: Duration,
    /// The system call, where it is known.
    pub call: Option<StorageCall>,
    /// The command for which it runs.
    pub task: Option<Arc<Task>>,
}

impl fmt::Display for RunningOperation {
    /// `STOR fsync /a/b of acme`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let task = self.task.as_ref();
        let path = task.and_then(|task| task.path());
        let parts = [
            task.map(|task| task.verb),
            self.call.map(StorageCall::name),
            path.as_deref(),
            task.map(|_| "of"),
            task.map(|task| task.identity.user.as_str()),
        ];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join(" "))
    }
}

/// The measured call that has run for the longest time.
pub fn oldest_call() -> Option<RunningOperation> {
    let calls = lock(&CALLS);
    let CallStart { call, since, task } = calls.running.values().next()?;
    Some(RunningOperation { age: since.elapsed(), call: Some(*call), task: task.clone() })
}

/// The longest fsync of a file that ended since the previous call of this function.
pub fn take_longest_fsync() -> Duration {
    mem::take(&mut lock(&CALLS).longest_fsync)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_running_call_is_seen_and_its_duration_is_kept_once() {
        StorageCall::Fsync.measure(|| {
            thread::sleep(Duration::from_millis(5));
            let oldest = oldest_call().unwrap();
            assert!(oldest.age >= Duration::from_millis(5));
            assert!(oldest.to_string().starts_with("fsync"), "{oldest}");
        });
        assert!(take_longest_fsync() >= Duration::from_millis(5));
    }
}
