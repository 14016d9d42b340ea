//! Processes of servers: each starts in its control group and on its CPU, and ends with the run.

use std::{
    fs::{self, File},
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        prctl,
        signal::{Signal, kill},
    },
    unistd::Pid,
};

use crate::{client::other, costs::ControlGroup, machine};

/// A running server.
pub(crate) struct ServerProcess {
    child: Child,
    log: PathBuf,
}

impl ServerProcess {
    /// Starts a command that writes its output to the file `log`. The caller must be the main thread,
    /// because the kernel kills the process when the *thread* that started it ends (PR_SET_PDEATHSIG).
    ///
    /// # Errors
    /// The process cannot be started.
    pub(crate) fn start(
        mut command: Command,
        group: &ControlGroup,
        cpu: Option<usize>,
        log: PathBuf,
    ) -> io::Result<Self> {
        let file = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let procs_file = File::options().write(true).open(group.procs_file())?;
        // SAFETY: between fork and exec the closure only makes system calls with prepared arguments.
        // `write`, `prctl` and `sched_setaffinity` neither allocate memory nor take locks.
        unsafe {
            command.pre_exec(move || {
                prctl::set_pdeathsig(Signal::SIGKILL)?;
                io::Write::write_all(&mut &procs_file, b"0")?;
                cpu.map_or(Ok(()), machine::bind_to)
            });
        }
        let program = command.get_program().to_owned();
        let child = command.spawn().map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", Path::new(&program).display()))
        })?;
        Ok(Self { child, log })
    }

    /// Repeats `attempt` until it succeeds.
    ///
    /// # Errors
    /// The process has ended, or 30 s have passed. The error contains the last lines of the log.
    pub(crate) fn wait_until<T>(&mut self, mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let error = match attempt() {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if self.child.try_wait()?.is_some() || Instant::now() > end {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(5).collect();
                return Err(other(format!("{error}; the last lines of its log: {}", last.join(" | "))));
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // The kernel does not reuse the process id before `wait`, so no other process gets the signal.
        let id = Pid::from_raw(self.child.id() as i32);
        let _ = kill(id, Signal::SIGTERM);
        let end = Instant::now() + Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > end {
                let _ = kill(id, Signal::SIGKILL);
                let _ = self.child.wait();
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}
