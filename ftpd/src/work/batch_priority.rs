//! The scheduling priority of transfers and long commands: below commands, file operations and other
//! programs.

use std::io;

/// The time slice that a transfer thread requests, in nanoseconds. The scheduler prefers threads with shorter
/// slices (default about 3 ms). Ignored before Linux 6.12.
const LONG_SLICE: u64 = 20_000_000;

/// While it lives, the current thread does not preempt other threads, and they preempt it, so that commands
/// are answered quickly beside a thousand transfers. The thread's share of the CPU stays the same (sched(7)).
///
/// Not for file operations, whose callers wait for them.
pub struct BatchPriority(());

impl BatchPriority {
    pub fn begin() -> Self {
        set(libc::SCHED_BATCH, LONG_SLICE);
        Self(())
    }
}

impl Drop for BatchPriority {
    fn drop(&mut self) {
        // 0 requests the default slice.
        set(libc::SCHED_OTHER, 0);
    }
}

fn set(policy: i32, sched_runtime: u64) {
    let attributes = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: policy as u32,
        sched_flags: 0,
        // SAFETY: takes integers only. `who` 0 is the calling thread. -1 is ambiguous between an error and
        // nice -1; both are acceptable.
        sched_nice: unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) },
        sched_priority: 0,
        sched_runtime,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: `attributes` is one valid structure that contains its size, and is only read.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if result != 0 {
        // A sandbox may forbid the call. The thread then keeps its default priority.
        log::debug!("cannot lower the scheduling priority of a transfer: {}", io::Error::last_os_error());
    }
}
