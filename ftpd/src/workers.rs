//! Threads for everything that may block: no file operation runs where connections are served.
//!
//! Storage that hangs holds threads of the pool here. Operations and transfers have separate
//! limits, so that neither can take all of them from the other.

use std::{panic, sync::Arc};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
};

use crate::{config::Limits, metrics};

/// Bounds the work on the runtime's blocking threads.
pub struct Workers {
    operations: Semaphore,
    transfers: Arc<Semaphore>,
}

/// Threads for what is neither: name look-ups of the HTTP client, the transfer log.
const SPARE_THREADS: usize = 8;

impl Workers {
    pub fn new(limits: &Limits) -> Self {
        Self {
            operations: Semaphore::new(limits.file_operations as usize),
            transfers: Arc::new(Semaphore::new(limits.transfers as usize)),
        }
    }

    /// How many blocking threads the runtime must allow.
    pub fn threads(limits: &Limits) -> usize {
        limits.file_operations as usize + limits.transfers as usize + SPARE_THREADS
    }

    /// Runs a short file operation, when it is its turn. If the caller is dropped meanwhile, the
    /// operation still ends, and keeps its place until then.
    pub async fn operation<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        if self.operations.available_permits() == 0 {
            metrics::limit_reached("max_file_operations");
        }
        // The semaphore is never closed.
        let _permit = self.operations.acquire().await.expect("never closed");
        join(spawn_blocking(work)).await
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
        join(spawn_blocking(move || {
            let _place = place;
            work()
        }))
        .await
    }
}

async fn join<T>(handle: tokio::task::JoinHandle<T>) -> T {
    match handle.await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            // A bug of ours: it ends this session, as if it had happened in its own task.
            Ok(cause) => panic::resume_unwind(cause),
            // The runtime shuts down; nobody will look at the result of this task any more.
            Err(_) => std::future::pending().await,
        },
    }
}
