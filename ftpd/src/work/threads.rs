//! The threads of the workers.
//!
//! Each idle thread is parked on its own, and the thread that became idle last gets the next job: its memory
//! is still in the CPU's cache, and threads that are not needed end. tokio's own pool wakes its threads
//! through one contended lock, which for a small file doubles the number of futex calls.

use std::{
    cell::Cell,
    collections::VecDeque,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Mutex, MutexGuard},
    thread::{self, Thread},
    time::{Duration, Instant},
};

use common::sync::lock;
use tokio::{runtime::Handle, sync::oneshot};

type Job = Box<dyn FnOnce() + Send>;

/// How long an idle thread waits for a job before it ends.
const IDLE_LIMIT: Duration = Duration::from_secs(10);

/// A pool of threads that grows up to a maximum, and shrinks when threads are idle. Clones share the threads.
#[derive(Clone)]
pub(super) struct Threads(Arc<Pool>);

thread_local! {
    static IS_WORKER: Cell<bool> = const { Cell::new(false) };
}

struct Pool {
    max: usize,
    /// Entered by each thread, so that jobs can use the runtime.
    runtime: Option<Handle>,
    state: Mutex<PoolState>,
}

#[derive(Default)]
struct PoolState {
    /// All threads, running or idle.
    count: usize,
    /// Idle threads. The thread that became idle last is at the end.
    idle: Vec<Arc<IdleThread>>,
    /// Jobs that found no idle thread.
    queue: VecDeque<Job>,
}

/// An idle thread. Under one lock of the pool, the submitter takes it from the list and puts the job here.
struct IdleThread {
    thread: Thread,
    job: Mutex<Option<Job>>,
}

impl Threads {
    /// Call it within the runtime that the jobs may use.
    pub(super) fn new(max: usize) -> Self {
        let runtime = Handle::try_current().ok();
        Self(Arc::new(Pool { max, runtime, state: Mutex::default() }))
    }

    /// Runs `work` on a thread. If the caller is dropped meanwhile, the work still runs to its end, and a
    /// worker drops its result.
    pub(super) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, receiver) = oneshot::channel();
        let mut result = UndeliveredResult { receiver, threads: self };
        self.submit(Box::new(move || {
            // If the caller is gone, `send` returns the result, which is dropped here.
            let _ = sender.send(panic::catch_unwind(AssertUnwindSafe(work)));
        }));
        match (&mut result.receiver).await {
            Ok(Ok(value)) => value,
            // A bug in the work ends this session, as a panic in its own task would.
            Ok(Err(cause)) => panic::resume_unwind(cause),
            // Jobs are dropped only with the pool, at the end of the process.
            Err(_) => std::future::pending().await,
        }
    }

    /// Returns true if the current thread is a worker.
    pub(super) fn is_worker() -> bool {
        IS_WORKER.get()
    }

    /// Drops `value` on a worker: at once on the current thread if it is one, otherwise as soon as one is
    /// free.
    pub(super) fn drop_on_worker<T: Send + 'static>(&self, value: T) {
        if Self::is_worker() {
            drop(value);
            return;
        }
        self.submit(Box::new(move || {
            // The panic hook has logged the panic. The thread can still be used.
            let _ = panic::catch_unwind(AssertUnwindSafe(move || drop(value)));
        }));
    }

    fn submit(&self, job: Job) {
        let shared = &self.0;
        let mut state = shared.state();
        if let Some(idle) = state.idle.pop() {
            *idle.job() = Some(job);
            drop(state);
            idle.thread.unpark();
            return;
        }
        state.queue.push_back(job);
        if state.count < shared.max {
            state.count += 1;
            drop(state);
            let serving = Arc::clone(shared);
            if let Err(error) =
                thread::Builder::new().name("worker".to_owned()).spawn(move || serve(&serving))
            {
                // The job stays in the queue for the next thread that is free or starts.
                shared.state().count -= 1;
                log::error!("cannot start a thread for files: {error}");
            }
        }
    }
}

/// The result of a job, until its caller has received it. A session may end after the worker has sent the
/// result and before the session has received it.
struct UndeliveredResult<'t, T: Send + 'static> {
    receiver: oneshot::Receiver<T>,
    threads: &'t Threads,
}

impl<T: Send + 'static> Drop for UndeliveredResult<'_, T> {
    fn drop(&mut self) {
        // From here on, `send` fails, and the worker drops the result itself.
        self.receiver.close();
        if let Ok(result) = self.receiver.try_recv() {
            self.threads.drop_on_worker(result);
        }
    }
}

impl Pool {
    fn state(&self) -> MutexGuard<'_, PoolState> {
        lock(&self.state)
    }

    /// The next job; `None` if none came for [`IDLE_LIMIT`], so that the thread ends.
    fn next(&self, idle: &Arc<IdleThread>) -> Option<Job> {
        {
            let mut state = self.state();
            if let Some(job) = state.queue.pop_front() {
                return Some(job);
            }
            state.idle.push(Arc::clone(idle));
        }
        let end = Instant::now() + IDLE_LIMIT;
        loop {
            if let Some(job) = idle.job().take() {
                return Some(job);
            }
            let left = end.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                thread::park_timeout(left);
                continue;
            }
            let mut state = self.state();
            // A thread that is not in the list any more gets a job.
            if let Some(slot) = state.idle.iter().position(|other| Arc::ptr_eq(other, idle)) {
                state.idle.remove(slot);
                state.count -= 1;
                return None;
            }
        }
    }
}

impl IdleThread {
    fn job(&self) -> MutexGuard<'_, Option<Job>> {
        lock(&self.job)
    }
}

fn serve(shared: &Pool) {
    IS_WORKER.set(true);
    let _runtime = shared.runtime.as_ref().map(Handle::enter);
    let idle = Arc::new(IdleThread { thread: thread::current(), job: Mutex::default() });
    while let Some(job) = shared.next(&idle) {
        job();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    #[tokio::test]
    async fn work_runs_in_parallel_up_to_the_maximum_and_further_work_waits() {
        let threads = Arc::new(Threads::new(2));
        // Two jobs must run at the same time to get past the barrier.
        let barrier = Arc::new(Barrier::new(2));
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let tasks: Vec<_> = (0..6)
            .map(|number| {
                let (threads, barrier) = (Arc::clone(&threads), Arc::clone(&barrier));
                let (running, most) = (Arc::clone(&running), Arc::clone(&most));
                tokio::spawn(async move {
                    let work = move || {
                        most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        barrier.wait();
                        running.fetch_sub(1, Ordering::SeqCst);
                        number
                    };
                    threads.run(work).await
                })
            })
            .collect();
        for (number, task) in tasks.into_iter().enumerate() {
            assert_eq!(task.await.unwrap(), number);
        }
        assert_eq!(most.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_panic_reaches_the_caller_and_the_thread_goes_on() {
        let threads = Arc::new(Threads::new(1));
        let panicking = Arc::clone(&threads);
        let caller = tokio::spawn(async move { panicking.run(|| panic!("as a test wants it")).await });
        assert!(caller.await.unwrap_err().is_panic());
        assert_eq!(threads.run(|| 7).await, 7);
    }

    #[tokio::test]
    async fn one_thread_serves_sequential_work() {
        let threads = Threads::new(8);
        let first = threads.run(|| thread::current().id()).await;
        for _ in 0..100 {
            // Waits until the thread is in the list of idle threads.
            while threads.0.state().idle.is_empty() {
                tokio::task::yield_now().await;
            }
            assert_eq!(threads.run(|| thread::current().id()).await, first);
        }
    }

    /// Sends the name of the thread that drops it.
    struct Witness(std::sync::mpsc::Sender<Option<String>>);

    impl Drop for Witness {
        fn drop(&mut self) {
            let _ = self.0.send(thread::current().name().map(str::to_owned));
        }
    }

    fn dropped_on(witness: &std::sync::mpsc::Receiver<Option<String>>) -> Option<String> {
        witness.recv_timeout(Duration::from_secs(30)).unwrap()
    }

    #[tokio::test]
    async fn a_result_whose_caller_is_gone_is_dropped_on_a_worker() {
        let threads = Threads::new(1);
        for is_sent_first in [true, false] {
            let (sender, witness) = std::sync::mpsc::channel();
            let (go, gone) = std::sync::mpsc::channel::<()>();
            let mut running = Box::pin(threads.run(move || {
                gone.recv().unwrap();
                Witness(sender)
            }));
            // After one poll, the worker has the job, and the caller waits.
            assert!(waits_after_one_poll(running.as_mut()).await);
            if is_sent_first {
                go.send(()).unwrap();
                // The only thread takes another job only after it has sent the result of this one.
                threads.run(|| ()).await;
                drop(running);
            } else {
                drop(running);
                go.send(()).unwrap();
            }
            assert_eq!(dropped_on(&witness).as_deref(), Some("worker"), "sent first: {is_sent_first}");
        }
    }

    /// Polls a future once, and returns true if it still waits.
    async fn waits_after_one_poll<F: Future>(mut future: std::pin::Pin<&mut F>) -> bool {
        std::future::poll_fn(|context| std::task::Poll::Ready(future.as_mut().poll(context).is_pending()))
            .await
    }

    #[tokio::test]
    async fn a_value_off_the_runtime_is_always_dropped_on_a_worker() {
        use crate::work::off_runtime::OffRuntime;

        let threads = Threads::new(1);
        let (sender, witness) = std::sync::mpsc::channel();
        let keep = |value| OffRuntime::new(value, threads.clone());
        drop(keep(Witness(sender.clone())));
        assert_eq!(dropped_on(&witness).as_deref(), Some("worker"));
        // A closure that was never called, and the value that it owns.
        let held = keep(Witness(sender.clone()));
        drop(OffRuntime::new(move || drop(held), threads.clone()));
        assert_eq!(dropped_on(&witness).as_deref(), Some("worker"));
        // On a worker, the value is dropped at once.
        let held = keep(Witness(sender));
        threads.run(move || drop(held.into_inner())).await;
        assert_eq!(witness.try_recv().unwrap().as_deref(), Some("worker"));
    }
}
