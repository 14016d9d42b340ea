//! The bridge from blocking threads to the runtime.

use tokio::runtime::Handle;

use super::blocking;

/// Lets a thread that may block wait for a future, such as a request to Redis. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RuntimeBridge(Handle);

impl RuntimeBridge {
    /// A bridge to the runtime of the current thread.
    ///
    /// # Panics
    /// Outside a runtime.
    pub fn to_current() -> Self {
        Self(Handle::current())
    }

    /// Blocks the current thread until `future` is ready.
    pub fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        blocking::assert_allowed("waiting for the runtime");
        self.0.block_on(future)
    }

    /// Runs `future` on the runtime, without waiting for it.
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(future);
    }
}
