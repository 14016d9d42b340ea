//! Values that only workers may drop, because dropping them writes, removes or closes files.

use super::threads::Threads;

/// A value whose `drop` may block. Sessions own it and pass it on; wherever the owner is dropped, a worker
/// drops the value.
pub struct OffRuntime<T: Send + 'static> {
    /// `None` only after [`OffRuntime::into_inner`], and within `drop`.
    value: Option<T>,
    threads: Threads,
}

impl<T: Send + 'static> OffRuntime<T> {
    pub(super) fn new(value: T, threads: Threads) -> Self {
        Self { value: Some(value), threads }
    }

    /// Takes the value out. For workers only.
    ///
    /// # Panics
    /// In a debug build, on a thread that is not a worker.
    pub fn into_inner(mut self) -> T {
        debug_assert!(Threads::is_worker(), "only a worker takes a value that only workers may drop");
        self.value.take().expect("into_inner and drop each run once, and they exclude each other")
    }
}

impl<T: Send + 'static> Drop for OffRuntime<T> {
    fn drop(&mut self) {
        if let Some(value) = self.value.take() {
            self.threads.drop_on_worker(value);
        }
    }
}
