//! Threads that take blocking work one piece at a time.
//!
//! Each idle thread waits by itself, and the one that began to wait last gets the next piece: its
//! memory is still in the CPU's cache, and those that are not needed end. tokio's own pool wakes
//! its threads through one lock that they then contend for, which costs a small file as many
//! futex calls again as the work itself.

use std::{
    cell::Cell,
    collections::VecDeque,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, Thread},
    time::{Duration, Instant},
};

use tokio::{runtime::Handle, sync::oneshot};

type Job = Box<dyn FnOnce() + Send>;

/// How long a thread waits for work before it ends.
const KEEP: Duration = Duration::from_secs(10);

/// A pool that grows to so many threads, and shrinks when they idle. Clones share the threads.
#[derive(Clone)]
pub struct Threads(Arc<Shared>);

thread_local! {
    static IS_WORKER: Cell<bool> = const { Cell::new(false) };
}

struct Shared {
    most: usize,
    /// What runs here may talk to the runtime, as on its own threads.
    runtime: Option<Handle>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Running or idle.
    count: usize,
    /// Those that wait, the one that began last at the end.
    idle: Vec<Arc<Idle>>,
    /// What found no thread.
    queue: VecDeque<Job>,
}

/// A thread that waits. Its job is put here under the state's lock.
struct Idle {
    thread: Thread,
    job: Mutex<Option<Job>>,
}

impl Threads {
    /// To be called within the runtime that the work may talk to.
    pub fn new(most: usize) -> Self {
        let runtime = Handle::try_current().ok();
        Self(Arc::new(Shared { most, runtime, state: Mutex::default() }))
    }

    /// Runs `work` on a thread. If the caller is dropped meanwhile, it still runs to its end, and its
    /// result is dropped on a worker, too.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, receiver) = oneshot::channel();
        let mut result = Undelivered { receiver, threads: self };
        self.submit(Box::new(move || {
            // An error means that the caller is gone; it gives the result back, to be dropped here.
            let _ = sender.send(panic::catch_unwind(AssertUnwindSafe(work)));
        }));
        match (&mut result.receiver).await {
            Ok(Ok(value)) => value,
            // A bug of ours: it ends this session, as if it had happened in its own task.
            Ok(Err(cause)) => panic::resume_unwind(cause),
            // Jobs are dropped only with the pool, when the process ends.
            Err(_) => std::future::pending().await,
        }
    }

    /// Whether the current thread belongs to such a pool.
    pub fn is_worker() -> bool {
        IS_WORKER.get()
    }

    /// Drops `value` on a worker: at once if this is one, otherwise as soon as one is free.
    pub fn drop_on_worker<T: Send + 'static>(&self, value: T) {
        if Self::is_worker() {
            drop(value);
            return;
        }
        self.submit(Box::new(move || {
            // A panic is a bug of ours, which its hook has told; the thread is still good.
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
        if state.count < shared.most {
            state.count += 1;
            drop(state);
            let serving = Arc::clone(shared);
            if let Err(error) =
                thread::Builder::new().name("worker".to_owned()).spawn(move || serve(&serving))
            {
                // The job stays in the queue for the next thread that is free or can be started.
                shared.state().count -= 1;
                log::error!("cannot start a thread for files: {error}");
            }
        }
    }
}

/// The result of a job, until its caller has it. A session may end between the moment at which the
/// worker sends a result and the moment at which the session would receive it.
struct Undelivered<'t, T: Send + 'static> {
    receiver: oneshot::Receiver<T>,
    threads: &'t Threads,
}

impl<T: Send + 'static> Drop for Undelivered<'_, T> {
    fn drop(&mut self) {
        // From here on the worker keeps what it could not send.
        self.receiver.close();
        if let Ok(result) = self.receiver.try_recv() {
            self.threads.drop_on_worker(result);
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job; `None` if there was none for so long that the thread is not needed.
    fn next(&self, idle: &Arc<Idle>) -> Option<Job> {
        {
            let mut state = self.state();
            if let Some(job) = state.queue.pop_front() {
                return Some(job);
            }
            state.idle.push(Arc::clone(idle));
        }
        let end = Instant::now() + KEEP;
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
            // Who is no longer on the list has a job.
            if let Some(place) = state.idle.iter().position(|other| Arc::ptr_eq(other, idle)) {
                state.idle.remove(place);
                state.count -= 1;
                return None;
            }
        }
    }
}

impl Idle {
    fn job(&self) -> MutexGuard<'_, Option<Job>> {
        self.job.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn serve(shared: &Shared) {
    IS_WORKER.set(true);
    let _runtime = shared.runtime.as_ref().map(Handle::enter);
    let idle = Arc::new(Idle { thread: thread::current(), job: Mutex::default() });
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
    async fn work_runs_at_once_up_to_the_most_and_more_waits_its_turn() {
        let threads = Arc::new(Threads::new(2));
        // Only two at once get past it.
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
    async fn a_panic_is_its_callers_and_the_thread_goes_on() {
        let threads = Arc::new(Threads::new(1));
        let panicking = Arc::clone(&threads);
        let caller = tokio::spawn(async move { panicking.run(|| panic!("as a test wants it")).await });
        assert!(caller.await.unwrap_err().is_panic());
        assert_eq!(threads.run(|| 7).await, 7);
    }

    #[tokio::test]
    async fn one_thread_serves_work_that_comes_one_after_the_other() {
        let threads = Threads::new(8);
        let first = threads.run(|| thread::current().id()).await;
        for _ in 0..100 {
            // A thread that is about to wait is not yet one that waits.
            while threads.0.state().idle.is_empty() {
                tokio::task::yield_now().await;
            }
            assert_eq!(threads.run(|| thread::current().id()).await, first);
        }
    }

    /// Sends the name of the thread on which it is dropped.
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
            // Polled once: the job is with the worker, and the caller waits.
            assert!(waits_after_one_poll(running.as_mut()).await);
            if is_sent_first {
                go.send(()).unwrap();
                // The only thread takes another job only when it has sent the result of this one.
                threads.run(|| ()).await;
                drop(running);
            } else {
                drop(running);
                go.send(()).unwrap();
            }
            assert_eq!(dropped_on(&witness).as_deref(), Some("worker"), "sent first: {is_sent_first}");
        }
    }

    /// Polls it once; whether it still waits.
    async fn waits_after_one_poll<F: Future>(mut future: std::pin::Pin<&mut F>) -> bool {
        std::future::poll_fn(|context| std::task::Poll::Ready(future.as_mut().poll(context).is_pending()))
            .await
    }

    #[tokio::test]
    async fn a_value_off_the_runtime_is_dropped_on_a_worker_wherever_its_owner_is() {
        use crate::workers::off_runtime::OffRuntime;

        let threads = Threads::new(1);
        let (sender, witness) = std::sync::mpsc::channel();
        let keep = |value| OffRuntime::new(value, threads.clone());
        drop(keep(Witness(sender.clone())));
        assert_eq!(dropped_on(&witness).as_deref(), Some("worker"));
        // A closure that was never called, and what it holds.
        let held = keep(Witness(sender.clone()));
        drop(OffRuntime::new(move || drop(held), threads.clone()));
        assert_eq!(dropped_on(&witness).as_deref(), Some("worker"));
        // On a worker it goes at once, in its turn.
        let held = keep(Witness(sender));
        threads.run(move || drop(held.into_inner())).await;
        assert_eq!(witness.try_recv().unwrap().as_deref(), Some("worker"));
    }
}
