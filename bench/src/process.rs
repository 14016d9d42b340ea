//! Servers as processes: born into their control group and onto their CPU, ended whatever happens.

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

use crate::{account::Group, client::other, machine};

/// A running server.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command with a log of its own. Must be called from the main thread: the kernel ends
    /// the process when the *thread* that started it ends.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(mut command: Command, group: &Group, cpu: Option<usize>, log: PathBuf) -> io::Result<Self> {
        let file = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let entrance = File::options().write(true).open(group.entrance())?;
        // SAFETY: between fork and exec only system calls on what was prepared before: neither
        // `write` of a file nor prctl nor sched_setaffinity allocates or takes locks.
        unsafe {
            command.pre_exec(move || {
                prctl::set_pdeathsig(Signal::SIGKILL)?;
                io::Write::write_all(&mut &entrance, b"0")?;
                cpu.map_or(Ok(()), machine::bind_to)
            });
        }
        let program = command.get_program().to_owned();
        let child = command.spawn().map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", Path::new(&program).display()))
        })?;
        Ok(Self { child, log })
    }

    /// Tries until `attempt` succeeds.
    ///
    /// # Errors
    /// The process has ended, or half a minute has passed: the end of its log.
    pub fn wait_until<T>(&mut self, mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let error = match attempt() {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if self.child.try_wait()?.is_some() || Instant::now() > end {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(5).collect();
                return Err(other(format!("{error}; its log ends: {}", last.join(" | "))));
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A child that was not waited for keeps its id, so nobody else can get the signal.
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
