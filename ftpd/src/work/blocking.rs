//! A check in debug builds, which all tests run: only threads that may wait for storage do file operations.

use std::cell::Cell;

thread_local! {
    static SERVES_CONNECTIONS: Cell<bool> = const { Cell::new(false) };
}

/// Marks the current thread as one that serves connections and must never wait for storage.
pub fn forbid() {
    SERVES_CONNECTIONS.set(true);
}

/// Checks that the current thread may wait for storage. In a release build this does nothing.
///
/// # Panics
/// In a debug build, on a thread after [`forbid`].
pub fn assert_allowed(operation: &str) {
    debug_assert!(!SERVES_CONNECTIONS.get(), "{operation} on a thread that serves connections");
}
