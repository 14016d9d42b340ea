//! Counts the work of a daemon: its system calls, by strace, and the commands that Redis carries out.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{DEADLINE, process::Daemon, redis::Redis};

/// Calls whose number depends on how the kernel schedules the threads, on how the bytes of a connection
/// arrive, or on the allocator; and `fcntl`, with which a debug build looks at each descriptor before it
/// closes it.
const UNSTEADY: [&str; 17] = [
    "brk",
    "clock_nanosleep",
    "epoll_pwait",
    "epoll_wait",
    "fcntl",
    "futex",
    "madvise",
    "mmap",
    "mprotect",
    "munmap",
    "recvfrom",
    "restart_syscall",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_yield",
    "write",
    "writev",
];

/// Names of one call, by the version of the C library.
const STAT: [&str; 4] = ["fstat", "lstat", "newfstatat", "stat"];

/// Numbers by name.
pub type Counts = BTreeMap<String, u64>;

/// An strace that counts the system calls of all threads of a daemon.
pub struct SystemCalls {
    strace: Child,
    directory: TempDir,
}

impl SystemCalls {
    /// Returns why strace cannot be used here, or `Ok`.
    ///
    /// # Errors
    /// It is not installed, or this process may not trace others.
    pub fn check() -> Result<(), String> {
        let output = Command::new("strace").args(["-f", "-c", "-o", "/dev/null", "true"]).output();
        match output {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            Err(error) => Err(format!("strace: {error}")),
        }
    }

    /// Attaches to a daemon.
    ///
    /// # Panics
    /// strace cannot attach.
    pub fn attach(daemon: &Daemon) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new("strace");
        command.args(["-f", "-c", "-p", &daemon.id().to_string(), "-o"]).arg(directory.path().join("counts"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut strace = command.spawn().expect("strace starts");
        let lines = BufReader::new(strace.stderr.take().expect("its standard error")).lines();
        let (sender, attached) = mpsc::channel();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let line = attached.recv_timeout(DEADLINE).expect("strace says something");
        assert!(line.contains("attached"), "{line}");
        Self { strace, directory }
    }

    /// Ends strace, and returns the number of each call, except of those whose number is not the same each
    /// time.
    ///
    /// # Panics
    /// strace does not end.
    pub fn finish(mut self) -> Counts {
        let id = Pid::from_raw(i32::try_from(self.strace.id()).expect("a process id"));
        kill(id, Signal::SIGINT).expect("strace runs");
        self.strace.wait().expect("strace ends");
        let table = fs::read_to_string(self.directory.path().join("counts")).expect("strace has counted");
        // % time     seconds  usecs/call     calls    errors syscall
        let rows = table.lines().skip(2).take_while(|line| !line.starts_with("---"));
        let counts = rows.filter_map(|row| {
            let words: Vec<&str> = row.split_whitespace().collect();
            Some(((*words.last()?).to_owned(), words.get(3)?.parse().ok()?))
        });
        let mut sums = Counts::new();
        for (name, number) in counts.filter(|(name, _): &(String, u64)| !UNSTEADY.contains(&name.as_str())) {
            let name = if STAT.contains(&name.as_str()) { "stat".to_owned() } else { name };
            *sums.entry(name).or_default() += number;
        }
        sums
    }
}

impl Drop for SystemCalls {
    fn drop(&mut self) {
        // It has ended, unless the test has failed.
        let _ = self.strace.kill();
    }
}

/// The number of each command that Redis has carried out so far, those of scripts included.
///
/// # Panics
/// Redis does not answer.
pub fn redis_commands(redis: &Redis) -> Counts {
    let response = redis.response("INFO commandstats").expect("Redis answers");
    // cmdstat_hget:calls=2,usec=…
    let rows = response.lines().filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(":calls="));
    let counts =
        rows.filter_map(|(name, rest)| Some((name.to_owned(), rest.split(',').next()?.parse().ok()?)));
    // The commands of this function itself; and records of the audit trail, which go in groups.
    counts.filter(|(name, _)| !["info", "quit", "xadd"].contains(&name.as_str())).collect()
}

/// What has been added since `before`.
pub fn since(before: &Counts, mut after: Counts) -> Counts {
    for (name, number) in &mut after {
        *number -= before.get(name).copied().unwrap_or(0).min(*number);
    }
    after.retain(|_, number| *number > 0);
    after
}

/// How often the threads of a daemon have gone to sleep so far: each hop between threads adds at least one.
/// Threads that have ended do not count.
///
/// # Panics
/// The daemon has ended.
pub fn sleeps(daemon: &Daemon) -> u64 {
    let threads = fs::read_dir(format!("/proc/{}/task", daemon.id())).expect("a process has threads");
    let status = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("status")).ok());
    let number = |status: String| {
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?.trim();
        line.parse::<u64>().ok()
    };
    status.filter_map(number).sum()
}
