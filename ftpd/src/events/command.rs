//! Runs a program for an event: never through a shell, in an environment of its own, with a time limit.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, PipeReader, Read, Seek, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::{ffi::OsStringExt, fs::PermissionsExt, process::CommandExt},
    },
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};

use super::{programs::ProgramsHandle, record::Event, target::DeliveryAttempt};

/// The only search path of the program. The last directory is that of NixOS.
const SEARCH_PATH: &str = "/usr/local/bin:/usr/bin:/bin:/run/current-system/sw/bin";

/// EX_TEMPFAIL of sysexits.h.
const TEMPORARY_FAILURE: i32 = 75;

/// Bytes of output that reach the log.
const LOGGED_OUTPUT: usize = 4096;

/// Bytes of output that become part of the reason of a failure.
const SHOWN_OUTPUT: usize = 200;

/// Bytes of output that are read after the program has ended. A process that left the group may write more.
const LAST_OUTPUT: usize = 1 << 20;

/// A program that gets events. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct EventCommand(Arc<CommandSettings>);

#[derive(Debug)]
pub(super) struct CommandSettings {
    /// Names the program in the log.
    pub receiver: String,
    pub program: PathBuf,
    pub arguments: Vec<String>,
    pub timeout: Duration,
    /// The real path of the storage's root.
    pub root: PathBuf,
}

/// How a run ended.
enum RunEnd {
    Exited(ExitStatus),
    TimedOut,
    /// This node does not deliver any more.
    Stopped,
}

/// What ended the wait for a program.
#[derive(Clone, Copy)]
enum WaitEnd {
    Exit,
    Timeout,
    Stop,
}

impl EventCommand {
    /// # Errors
    /// The program cannot be run, or clients could change it.
    pub(super) fn new(settings: CommandSettings) -> Result<Self, String> {
        let CommandSettings { program, root, .. } = &settings;
        let invalid = |reason: &str| Err(format!("program {}: {reason}", program.display()));
        if !program.is_absolute() {
            return invalid("expected an absolute path");
        }
        let real = match fs::canonicalize(program) {
            Ok(real) => real,
            Err(error) => return invalid(&error.to_string()),
        };
        if real.starts_with(root) {
            return invalid("it is on the storage, where clients could change it");
        }
        match fs::metadata(&real) {
            Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => {}
            Ok(_) => return invalid("not an executable file"),
            Err(error) => return invalid(&error.to_string()),
        }
        Ok(Self(Arc::new(settings)))
    }

    /// Makes one attempt on a thread of its own, and passes its result to `report`. `body` is the event as
    /// JSON.
    pub(super) fn begin<R>(&self, programs: ProgramsHandle, event: Event, body: Vec<u8>, report: R)
    where
        R: FnOnce(DeliveryAttempt) + Send + 'static,
    {
        let settings = Arc::clone(&self.0);
        // The thread gets `report` when it exists.
        let (sender, receiver) = mpsc::channel::<R>();
        let started = thread::Builder::new().name("event-command".into()).spawn(move || {
            let attempt = settings.run(&programs, &event, &body);
            if let Ok(report) = receiver.recv() {
                report(attempt);
            }
        });
        match started {
            // The thread waits for it.
            Ok(_) => drop(sender.send(report)),
            Err(error) => report(DeliveryAttempt::Unavailable(format!("cannot start a thread: {error}"))),
        }
    }
}

impl CommandSettings {
    fn run(&self, programs: &ProgramsHandle, event: &Event, body: &[u8]) -> DeliveryAttempt {
        let mut output = Vec::new();
        let spawned = self.spawn(event, body);
        let ended = spawned.and_then(|(child, pipe)| self.wait(programs, child, pipe, &mut output));
        let output = String::from_utf8_lossy(&output);
        let output = output.trim();
        if !output.is_empty() {
            log::info!(
                receiver = self.receiver.as_str(), event = event.id.as_str(), output;
                "output of a program that got an event"
            );
        }
        let because = |what: String| match output.char_indices().nth_back(SHOWN_OUTPUT) {
            _ if output.is_empty() => what,
            None => format!("{what}: {output}"),
            Some((position, _)) => format!("{what}: …{}", &output[position..]),
        };
        match ended {
            Ok(RunEnd::TimedOut) => {
                DeliveryAttempt::Refused(because(format!("killed after {:?} (timeout)", self.timeout)))
            }
            Ok(RunEnd::Stopped) => DeliveryAttempt::Unavailable("killed: this node stops to deliver".into()),
            Ok(RunEnd::Exited(status)) => match status.code() {
                Some(0) => DeliveryAttempt::Delivered,
                Some(TEMPORARY_FAILURE) => DeliveryAttempt::Unavailable(because(status.to_string())),
                _ => DeliveryAttempt::Refused(because(status.to_string())),
            },
            // A NUL byte in a variable.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                DeliveryAttempt::Refused(format!("cannot run the program for this event: {error}"))
            }
            Err(error) => DeliveryAttempt::Unavailable(format!("cannot run the program: {error}")),
        }
    }

    /// Starts the program. Returns it with its standard output and standard error.
    fn spawn(&self, event: &Event, body: &[u8]) -> io::Result<(Child, PipeReader)> {
        // A pipe would block the node if the program does not read its input.
        let mut input = File::from(memfd_create("event", MFdFlags::MFD_CLOEXEC)?);
        input.write_all(body)?;
        input.rewind()?;
        let (reader, writer) = io::pipe()?;
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .env_clear()
            .env("PATH", SEARCH_PATH)
            .envs(self.variables(event))
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::from(input))
            .stdout(Stdio::from(OwnedFd::from(writer.try_clone()?)))
            .stderr(Stdio::from(OwnedFd::from(writer)))
            .spawn()?;
        Ok((child, reader))
    }

    fn variables(&self, event: &Event) -> Vec<(&'static str, OsString)> {
        let storage_path = event.storage_bytes();
        let below_root = storage_path.strip_prefix(b"/").unwrap_or(&storage_path);
        let file = self.root.join(OsString::from_vec(below_root.to_vec()));
        let text = |text: &dyn ToString| OsString::from(text.to_string());
        let mut variables = vec![
            ("FTP_EVENT", text(&event.event.name())),
            ("FTP_EVENT_ID", text(&event.id)),
            ("FTP_TIME", text(&event.time)),
            ("FTP_NODE", text(&event.node)),
            ("FTP_SESSION", text(&event.session)),
            ("FTP_USER", text(&event.user)),
            ("FTP_ADDRESS", text(&event.address)),
            ("FTP_PATH", OsString::from_vec(event.path_bytes())),
            ("FTP_STORAGE_PATH", OsString::from_vec(storage_path)),
            ("FTP_FILE", file.into_os_string()),
        ];
        variables.extend(event.old_path_bytes().map(|old| ("FTP_OLD_PATH", OsString::from_vec(old))));
        let old = event.old_storage_bytes();
        variables.extend(old.map(|old| ("FTP_OLD_STORAGE_PATH", OsString::from_vec(old))));
        variables.extend(event.size.map(|size| ("FTP_SIZE", text(&size))));
        variables.extend(event.offset.map(|offset| ("FTP_OFFSET", text(&offset))));
        variables.extend(event.sha256.as_ref().map(|hash| ("FTP_SHA256", text(hash))));
        variables
    }

    /// Waits until the program has ended or its time is over, and kills what is left of its process group.
    fn wait(
        &self,
        programs: &ProgramsHandle,
        mut child: Child,
        mut pipe: PipeReader,
        output: &mut Vec<u8>,
    ) -> io::Result<RunEnd> {
        let deadline = Instant::now() + self.timeout;
        let watched = watch(programs, &child, &mut pipe, output, deadline);
        // The program was not waited for, so no other process group can have its number.
        kill_group(&child);
        let _ = child.kill();
        let status = child.wait()?;
        let mut rest = LAST_OUTPUT;
        while rest > 0
            && let Ok(Some(read @ 1..)) = read_some(&mut pipe, output)
        {
            rest = rest.saturating_sub(read);
        }
        Ok(match watched? {
            WaitEnd::Exit => RunEnd::Exited(status),
            WaitEnd::Timeout => RunEnd::TimedOut,
            WaitEnd::Stop => RunEnd::Stopped,
        })
    }
}

/// Reads the output until the program has ended, until `deadline`, or until the programs are to end.
fn watch(
    programs: &ProgramsHandle,
    child: &Child,
    pipe: &mut PipeReader,
    output: &mut Vec<u8>,
    deadline: Instant,
) -> io::Result<WaitEnd> {
    let process = open_process(child)?;
    let mut is_open = true;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(WaitEnd::Timeout);
        }
        let output_fd = if is_open { pipe.as_raw_fd() } else { -1 };
        let mut fds = [process.as_raw_fd(), output_fd, programs.stopping().as_raw_fd()]
            .map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
        let millis = left.as_millis().saturating_add(1).min(i32::MAX as u128) as i32;
        // SAFETY: `fds` is a valid array of this length.
        if unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, millis) } < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
            continue;
        }
        if fds[1].revents != 0 {
            is_open = read_some(pipe, output)? != Some(0);
        }
        if fds[0].revents != 0 {
            return Ok(WaitEnd::Exit);
        }
        if fds[2].revents != 0 {
            return Ok(WaitEnd::Stop);
        }
    }
}

/// Reads what is there, and keeps at most [`LOGGED_OUTPUT`] bytes of it. `None`: nothing is there; 0: the
/// pipe is closed.
fn read_some(pipe: &mut PipeReader, output: &mut Vec<u8>) -> io::Result<Option<usize>> {
    let mut buffer = [0; 4096];
    match pipe.read(&mut buffer) {
        Ok(read) => {
            let room = LOGGED_OUTPUT.saturating_sub(output.len());
            output.extend_from_slice(&buffer[..read.min(room)]);
            Ok(Some(read))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// A descriptor that is readable when the process has ended.
fn open_process(child: &Child) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes integers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), 0) };
    match i32::try_from(fd) {
        // SAFETY: the kernel has just returned this descriptor, which has no other owner.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn kill_group(child: &Child) {
    if let Ok(group @ 2..) = i32::try_from(child.id()) {
        // SAFETY: kill(2) takes integers only. The group is the child's, which has not been waited for.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
}

#[cfg(test)]
mod tests {
    use std::{env, path::Path};

    use super::*;
    use crate::events::{
        programs::Programs,
        record::{EventOrder, tests::intent},
    };

    const LONG: Duration = Duration::from_secs(60);

    fn settings(program: &str, arguments: &[&str], timeout: Duration) -> CommandSettings {
        CommandSettings {
            receiver: "test".into(),
            program: program.into(),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            timeout,
            root: "/storage".into(),
        }
    }

    fn run(command: &CommandSettings, body: &[u8]) -> DeliveryAttempt {
        command.run(&Programs::new().unwrap().handle(), &event(), body)
    }

    fn event() -> Event {
        intent(1, "a b;$(c)", EventOrder { epoch: 0, lease: 0, changed: 0 }).event
    }

    /// A shell that runs a script with the programs of this test's search path.
    fn shell(script: &str, timeout: Duration) -> CommandSettings {
        let path = env::var("PATH").unwrap();
        settings("/bin/sh", &["-c", &format!("PATH='{path}'; {script}")], timeout)
    }

    fn attempt(script: &str, timeout: Duration) -> DeliveryAttempt {
        run(&shell(script, timeout), b"{\"v\":1}")
    }

    fn output(command: &CommandSettings) -> Vec<u8> {
        let (programs, mut output) = (Programs::new().unwrap(), Vec::new());
        let (child, pipe) = command.spawn(&event(), b"").unwrap();
        let ended = command.wait(&programs.handle(), child, pipe, &mut output);
        assert!(matches!(ended, Ok(RunEnd::Exited(status)) if status.success()));
        output
    }

    #[test]
    fn the_exit_status_decides() {
        assert_eq!(attempt("exit 0", LONG), DeliveryAttempt::Delivered);
        assert!(matches!(attempt("exit 75", LONG), DeliveryAttempt::Unavailable(_)));
        let failed = attempt("echo out; echo the disk is full >&2; exit 3", LONG);
        assert!(matches!(&failed, DeliveryAttempt::Refused(text) if text.contains("the disk is full")));
        assert!(matches!(attempt("kill -9 $$", LONG), DeliveryAttempt::Refused(_)));
        let missing = run(&settings("/missing/program", &[], LONG), b"");
        assert!(matches!(missing, DeliveryAttempt::Unavailable(_)));
    }

    #[test]
    fn the_program_gets_the_event_and_no_other_variable() {
        let expected = "FTP_ADDRESS=192.0.2.1 FTP_EVENT=upload FTP_EVENT_ID=node-1 \
                        FTP_FILE=/storage/alice/a b;$(c) FTP_PATH=/a b;$(c) FTP_SIZE=3 \
                        FTP_STORAGE_PATH=/alice/a b;$(c) FTP_USER=alice";
        let path = env::var_os("PATH").unwrap();
        let program = env::split_paths(&path).map(|directory| directory.join("env"));
        let program = program.into_iter().find(|program| program.exists()).unwrap();
        let text = String::from_utf8(output(&settings(program.to_str().unwrap(), &[], LONG))).unwrap();
        let mut lines: Vec<_> = text.lines().collect();
        lines.sort_unstable();
        lines.retain(|line| {
            !["FTP_TIME=", "FTP_NODE=", "FTP_SESSION="].iter().any(|name| line.starts_with(name))
        });
        assert_eq!(lines.pop(), Some(&*format!("PATH={SEARCH_PATH}")));
        assert_eq!(lines.join(" "), expected);
        assert_eq!(
            attempt("test \"$(cat)\" = '{\"v\":1}' && test \"$PWD\" = /", LONG),
            DeliveryAttempt::Delivered
        );
    }

    #[test]
    fn a_program_beyond_its_time_is_killed_with_the_processes_that_it_started() {
        let directory = tempfile::tempdir().unwrap();
        let pid = directory.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; sleep 1000", pid.display());
        let ended = attempt(&script, Duration::from_secs(2));
        assert!(matches!(&ended, DeliveryAttempt::Refused(text) if text.contains("timeout")), "{ended:?}");
        let child = fs::read_to_string(&pid).unwrap();
        let status = format!("/proc/{}/status", child.trim());
        let is_gone = || match fs::read_to_string(&status) {
            Ok(status) => status.contains("State:\tZ"),
            Err(_) => true,
        };
        let deadline = Instant::now() + LONG;
        while !is_gone() {
            assert!(Instant::now() < deadline, "the process {child} still runs");
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn programs_end_with_their_deliverer() {
        let programs = Programs::new().unwrap();
        let (handle, (sender, ended)) = (programs.handle(), mpsc::channel());
        let command = EventCommand(Arc::new(shell("sleep 1000", Duration::from_secs(1000))));
        command.begin(handle, event(), Vec::new(), move |attempt| drop(sender.send(attempt)));
        programs.stop(LONG);
        assert!(matches!(ended.recv_timeout(LONG), Ok(DeliveryAttempt::Unavailable(_))));
    }

    #[test]
    fn more_output_than_the_log_takes_is_read_and_dropped() {
        let output = output(&shell("head -c 1000000 /dev/zero | tr '\\0' x", LONG));
        assert_eq!(output, [b'x'; LOGGED_OUTPUT]);
    }

    #[test]
    fn a_program_that_cannot_run_or_that_clients_could_change_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name).display().to_string();
        fs::write(path("script"), "#!/bin/sh\n").unwrap();
        let refused = |program: &str, below: &Path| {
            let settings = CommandSettings { root: below.to_owned(), ..settings(program, &[], LONG) };
            EventCommand::new(settings).err()
        };
        let elsewhere = Path::new("/elsewhere");
        assert!(refused("sh", elsewhere).unwrap().contains("absolute"));
        assert!(refused(&path("missing"), elsewhere).is_some());
        assert!(refused(&path("script"), elsewhere).unwrap().contains("executable"));
        fs::set_permissions(path("script"), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(refused(&path("script"), elsewhere), None);
        let real = fs::canonicalize(root.path()).unwrap();
        assert!(refused(&path("script"), &real).unwrap().contains("storage"));
    }
}
