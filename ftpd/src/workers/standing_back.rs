//! Transfers stand back for what is short: commands, file operations, other programs.

use std::io;

/// In nanoseconds, how long a transfer wants to run at a time. The scheduler runs first who wants
/// less, and everybody else wants about 3 ms. Linux before 6.12 takes no notice.
const LONG: u64 = 20_000_000;

/// While it lives, this thread does not interrupt others that it wakes, or that are awake, and they
/// interrupt it: a command is answered beside a thousand transfers. Its share of the CPU stays the
/// same (sched(7)).
///
/// Not for operations: those who wait for a short one want it done at once.
pub struct StandingBack(());

impl StandingBack {
    pub fn begin() -> Self {
        set(libc::SCHED_BATCH, LONG);
        Self(())
    }
}

impl Drop for StandingBack {
    fn drop(&mut self) {
        // 0 is what everybody has.
        set(libc::SCHED_OTHER, 0);
    }
}

fn set(policy: i32, sched_runtime: u64) {
    let attributes = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: policy as u32,
        sched_flags: 0,
        // SAFETY: 0 is this thread, and nothing is passed by address. (-1 may be an error; then it is
        // this thread's, too.)
        sched_nice: unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) },
        sched_priority: 0,
        sched_runtime,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: `attributes` is one valid structure that tells its size and is only read.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if result != 0 {
        // A sandbox may forbid it; the thread then is as good as any.
        log::debug!("a transfer cannot stand back: {}", io::Error::last_os_error());
    }
}
