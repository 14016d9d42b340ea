//! Processes under test: start, log, signals, and their certain end.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{DEADLINE, eventually};

/// Time for the last lines of a process that has ended. Workers of a killed nginx hold its log open longer.
const LOG_END: Duration = Duration::from_secs(2);

/// A running process. Its log is its standard output and standard error.
pub struct Daemon {
    name: String,
    child: Child,
    status: Option<ExitStatus>,
    /// Signal at the end of the test, also if the test is killed.
    last_signal: Signal,
    log: Arc<Log>,
}

#[derive(Default)]
struct Log {
    state: Mutex<LogState>,
    changed: Condvar,
}

#[derive(Default)]
struct LogState {
    lines: Vec<String>,
    /// Number of the two streams that have ended.
    ended: usize,
}

impl Log {
    fn state(&self) -> MutexGuard<'_, LogState> {
        // The list of lines is always valid, so a panic elsewhere does not matter.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(self: &Arc<Self>, stream: impl Read + Send + 'static) {
        let log = Arc::clone(self);
        thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                log.state().lines.push(String::from_utf8_lossy(&line).into_owned());
                log.changed.notify_all();
            }
            log.state().ended += 1;
            log.changed.notify_all();
        });
    }

    /// Waits until both streams have ended, at most for [`LOG_END`].
    fn wait_for_end(&self) {
        let is_open = |state: &mut LogState| state.ended < 2;
        let waited = self.changed.wait_timeout_while(self.state(), LOG_END, is_open);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Daemon {
    /// Starts `command`. `name` is for failure messages.
    ///
    /// # Panics
    /// The process cannot be started.
    pub fn start(name: &str, command: Command) -> Self {
        Self::start_ending_with(name, command, Signal::SIGKILL)
    }

    /// As [`Self::start`], for a process that must clean up quickly at its end, such as nginx with its
    /// workers. At the end, it gets `last_signal` instead of SIGKILL.
    ///
    /// # Panics
    /// The process cannot be started.
    pub fn start_ending_with(name: &str, mut command: Command, last_signal: Signal) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // SAFETY: prctl is async-signal-safe, and nothing else runs between fork and exec.
        unsafe {
            command.pre_exec(move || Ok(nix::sys::prctl::set_pdeathsig(last_signal)?));
        }
        let mut child = spawn(command).unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let log = Arc::<Log>::default();
        if let Some(stream) = child.stdout.take() {
            log.follow(stream);
        }
        if let Some(stream) = child.stderr.take() {
            log.follow(stream);
        }
        Self { name: name.to_owned(), child, status: None, last_signal, log }
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Number of open file descriptors.
    ///
    /// # Panics
    /// The process has ended.
    pub fn descriptors(&self) -> usize {
        let directory = format!("/proc/{}/fd", self.id());
        fs::read_dir(directory).expect("a process has descriptors").count()
    }

    /// Resident memory, in bytes.
    ///
    /// # Panics
    /// The process has ended.
    pub fn memory(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    /// Peak of the resident memory so far, in bytes.
    ///
    /// # Panics
    /// The process has ended.
    pub fn peak_memory(&self) -> u64 {
        self.status_bytes("VmHWM:")
    }

    fn status_bytes(&self, key: &str) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.id())).expect("a process has a status");
        let kib = status.lines().find_map(|line| line.strip_prefix(key)?.trim().strip_suffix(" kB"));
        1024 * kib.and_then(|kib| kib.parse::<u64>().ok()).expect("the status tells the memory")
    }

    /// Processor time used so far, in the kernel's ticks (10 ms).
    ///
    /// # Panics
    /// The process has ended.
    pub fn processor_ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.id())).expect("a process has a stat");
        // proc_pid_stat(5): utime and stime are fields 14 and 15. The name before them ends with `)`.
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("ticks are a number")).sum()
    }

    /// All log lines so far.
    pub fn lines(&self) -> Vec<String> {
        self.log.state().lines.clone()
    }

    /// The first line that `wanted` accepts, including earlier lines.
    ///
    /// # Panics
    /// The process ends without such a line, or [`DEADLINE`] passes.
    pub fn wait_for_line(&self, wanted: impl FnMut(&str) -> bool) -> String {
        self.wait_for_line_after(0, wanted)
    }

    /// As [`Self::wait_for_line`], without the first `skipped` lines. With `lines().len()` from before an
    /// event, only later lines count.
    ///
    /// # Panics
    /// The process ends without such a line, or [`DEADLINE`] passes.
    pub fn wait_for_line_after(&self, skipped: usize, mut wanted: impl FnMut(&str) -> bool) -> String {
        let end = Instant::now() + DEADLINE;
        let mut seen = skipped;
        let mut state = self.log.state();
        loop {
            while let Some(line) = state.lines.get(seen) {
                if wanted(line) {
                    return line.clone();
                }
                seen += 1;
            }
            let left = end.saturating_duration_since(Instant::now());
            let why = if state.ended == 2 { "it ended" } else { "the deadline passed" };
            if left.is_zero() || state.ended == 2 {
                drop(state);
                panic!("{}: {why} before the awaited line was logged", self.name);
            }
            (state, _) = self.log.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The first line with this message (see [`message_is`]) and all of these fields.
    ///
    /// # Panics
    /// As [`Self::wait_for_line`].
    pub fn wait_for_message(&self, message: &str, fields: &[(&str, &str)]) -> String {
        self.wait_for_line(|line| {
            message_is(line, message)
                && fields.iter().all(|(key, value)| field(line, key).as_deref() == Some(*value))
        })
    }

    /// Sends a signal. Waits until SIGSTOP has stopped every thread: on a busy machine the others go on until
    /// the thread that received the signal runs.
    ///
    /// # Panics
    /// The process has ended and was waited for.
    pub fn signal(&self, signal: Signal) {
        assert!(self.status.is_none(), "{} has ended already", self.name);
        // The process keeps its id until it is waited for, so the signal cannot hit another process.
        let sent = kill(Pid::from_raw(self.child.id() as i32), signal);
        if signal == Signal::SIGSTOP && sent.is_ok() {
            eventually(&format!("{} to stop", self.name), || self.is_stopped().then_some(()));
        }
    }

    /// Returns true if no thread of the process runs: each is stopped or has ended.
    fn is_stopped(&self) -> bool {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.child.id())) else { return true };
        // The state follows the name in parentheses (proc(5)).
        let is_stopped = |stat: &str| {
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['T', 't', 'Z', 'X']))
        };
        threads.flatten().all(|thread| {
            fs::read_to_string(thread.path().join("stat")).map_or(true, |stat| is_stopped(&stat))
        })
    }

    /// Sends SIGTERM and does not wait.
    pub fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Kills the process (SIGKILL), as in a crash.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.wait();
    }

    /// Returns true if the process still runs.
    pub fn is_running(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("a child can be asked for its state");
        }
        self.status.is_none()
    }

    /// Waits for the end of the process and returns its status. The log is complete then, unless a child of
    /// the process survives it and holds the log open.
    ///
    /// # Panics
    /// The process has not ended within [`DEADLINE`].
    pub fn wait(&mut self) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        let status = eventually(&what, || if self.is_running() { None } else { self.status });
        self.log.wait_for_end();
        status
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Panics
    /// The process fails, or does not end in time.
    pub fn stop(mut self) {
        self.terminate();
        let status = self.wait();
        let asked = status.signal() == Some(Signal::SIGTERM as i32);
        assert!(status.success() || asked, "{} ended with {status}", self.name);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.is_running() {
            self.signal(self.last_signal);
            // Wakes the process if the test has paused it.
            self.signal(Signal::SIGCONT);
            let end = Instant::now() + DEADLINE;
            while self.is_running() && Instant::now() < end {
                thread::sleep(Duration::from_millis(2));
            }
        }
        if thread::panicking() {
            eprintln!("--- log of {} ---", self.name);
            for line in &self.log.state().lines {
                eprintln!("{line}");
            }
        }
    }
}

/// Returns true if the message of a log line begins with `message`.
pub fn message_is(line: &str, message: &str) -> bool {
    // TIME LEVEL TARGET MESSAGE key=value …; the level is padded.
    let mut rest = line;
    for _ in 0..3 {
        let Some((_, after)) = rest.trim_start().split_once(' ') else { return false };
        rest = after;
    }
    let rest = rest.trim_start();
    rest.strip_prefix(message).is_some_and(|after| !after.starts_with(|c: char| c.is_alphanumeric()))
}

/// The value of `key=value` in a log line.
pub fn field(line: &str, key: &str) -> Option<String> {
    let start = line.find(&format!(" {key}="))? + key.len() + 2;
    let value = &line[start..];
    match value.strip_prefix('"') {
        None => Some(value.split(' ').next().unwrap_or_default().to_owned()),
        Some(quoted) => {
            let mut text = String::new();
            let mut characters = quoted.chars();
            loop {
                match characters.next()? {
                    '"' => return Some(text),
                    '\\' => text.push(characters.next()?),
                    c => text.push(c),
                }
            }
        }
    }
}

/// Starts a process from a thread that lives as long as the test's process. The kernel sends the death
/// signal when the *thread* that started the child ends, and tests may start daemons from short-lived
/// threads.
fn spawn(command: Command) -> std::io::Result<Child> {
    type Order = (Command, mpsc::Sender<std::io::Result<Child>>);
    static SPAWNER: LazyLock<mpsc::Sender<Order>> = LazyLock::new(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, answer) in inbox {
                // The requesting thread may have panicked. Its child then ends with the process.
                let _ = answer.send(command.spawn());
            }
        });
        orders
    });
    let (answer, result) = mpsc::channel();
    SPAWNER.send((command, answer)).expect("the spawning thread does not end");
    result.recv().expect("the spawning thread answers every order")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "2026-11-22T16:40:24Z INFO  ftpd::server listening part=control address=127.0.0.1:21 \
                        why=\"a \\\"b\\\" c\"";

    #[test]
    fn a_log_line_is_taken_apart() {
        assert!(message_is(LINE, "listening"));
        assert!(!message_is(LINE, "listen"));
        assert_eq!(field(LINE, "address").as_deref(), Some("127.0.0.1:21"));
        assert_eq!(field(LINE, "why").as_deref(), Some("a \"b\" c"));
        assert_eq!(field(LINE, "ress"), None);
    }

    #[test]
    fn a_daemon_started_by_a_thread_outlives_it_and_ends_when_dropped() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo started; exec sleep 600"]);
        let start = || Daemon::start("sleep", command);
        let mut daemon = thread::scope(|scope| scope.spawn(start).join().unwrap());
        assert_eq!(daemon.wait_for_line(|line| line == "started"), "started");
        assert!(daemon.is_running());
        let id = Pid::from_raw(daemon.id() as i32);
        drop(daemon);
        assert!(kill(id, None).is_err());
    }
}
