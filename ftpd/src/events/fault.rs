//! Fault points: places at which tests kill the node.
//!
//! They exist in debug builds only, which is what the tests run: `EVENTS_FAULT=POINT:NUMBER` kills the
//! process with SIGKILL when it passes the point for the NUMBER-th time. A cargo feature would mean a second
//! build of the node for each test run. A release build has neither the code nor the variable.

/// Passes a fault point.
#[cfg(debug_assertions)]
pub(super) fn pass(point: &str) {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    };

    static FAULT: LazyLock<Option<(String, u64)>> = LazyLock::new(|| {
        let (point, number) = std::env::var("EVENTS_FAULT")
            .ok()?
            .split_once(':')
            .map(|(point, number)| (point.to_owned(), number.parse().ok()))?;
        Some((point, number?))
    });
    static PASSED: AtomicU64 = AtomicU64::new(0);
    if let Some((wanted, number)) = &*FAULT
        && wanted == point
        && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == *number
    {
        // SAFETY: kill takes integers only; a process may always kill itself.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        loop {
            std::thread::park();
        }
    }
}

#[cfg(not(debug_assertions))]
pub(super) fn pass(_point: &str) {}
