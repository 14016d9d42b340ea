//! Threads for everything that may block: no file operation runs where connections are served.
//!
//! Storage that hangs holds threads of the pool here. Operations and transfers have separate
//! limits, so that neither can take all of them from the other.

mod off_runtime;
mod standing_back;
mod threads;

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use self::threads::Threads;
pub use self::{off_runtime::OffRuntime, standing_back::StandingBack};
use crate::{config::Limits, metrics};

/// Bounds the work on blocking threads.
pub struct Workers {
    threads: Threads,
    operations: Arc<Semaphore>,
    transfers: Arc<Semaphore>,
}

impl Workers {
    /// To be called within the runtime.
    pub fn new(limits: &Limits) -> Self {
        Self {
            threads: Threads::new(limits.file_operations as usize + limits.transfers as usize),
            operations: Arc::new(Semaphore::new(limits.file_operations as usize)),
            transfers: Arc::new(Semaphore::new(limits.transfers as usize)),
        }
    }

    /// Keeps `value` so that only workers drop it.
    pub fn keep<T: Send + 'static>(&self, value: T) -> OffRuntime<T> {
        OffRuntime::new(value, self.threads.clone())
    }

    /// Runs a short file operation, when it is its turn. If the caller is dropped meanwhile, the
    /// operation still ends, and keeps its place until then; a worker drops its result. A result that
    /// does file I/O when it is dropped belongs in [`Workers::keep`] before it is returned.
    pub async fn operation<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        if self.operations.available_permits() == 0 {
            metrics::limit_reached("max_file_operations");
        }
        // The semaphore is never closed.
        let place = Arc::clone(&self.operations).acquire_owned().await.expect("never closed");
        let work = move || {
            let _place = place;
            work()
        };
        self.threads.run(work).await
    }

    /// A transfer's place among the threads; `None` if all are taken.
    pub fn try_transfer(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.transfers).try_acquire_owned().ok()
    }

    /// A transfer's place among the threads, when one comes free.
    pub async fn transfer(&self) -> OwnedSemaphorePermit {
        // The semaphore is never closed.
        Arc::clone(&self.transfers).acquire_owned().await.expect("never closed")
    }

    /// Runs a transfer for as long as it takes, in its place.
    pub async fn run_transfer<T: Send + 'static>(
        &self,
        place: OwnedSemaphorePermit,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let work = move || {
            let _place = place;
            let _back = StandingBack::begin();
            work()
        };
        self.threads.run(work).await
    }
}
