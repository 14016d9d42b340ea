//! Real FTP clients, each run with a deadline and a separate home directory.

use std::{
    ffi::OsStr,
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// Maximum duration of one run of a client.
const LIMIT: Duration = Duration::from_secs(120);

/// Home and working directory of a client.
pub struct Clients {
    home: TempDir,
}

/// Result of a run of a client.
#[derive(Debug)]
pub struct Run {
    pub succeeded: bool,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Run {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl Clients {
    /// An empty home.
    ///
    /// # Panics
    /// A temporary directory cannot be created.
    pub fn with_home() -> Self {
        Self { home: tempfile::tempdir().expect("a temporary directory") }
    }

    /// Path of a file in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Writes a file in the directory, and creates its parent directories.
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).expect("the client's directory");
        fs::write(&path, content).expect("the client's file");
        path
    }

    /// The content of a file in the directory.
    ///
    /// # Panics
    /// The file does not exist.
    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Runs a client.
    ///
    /// # Panics
    /// The client is not installed, takes too long, or fails. The message contains its output.
    pub fn run<A: AsRef<OsStr>>(&self, program: &str, arguments: impl IntoIterator<Item = A>) -> Run {
        let arguments: Vec<_> = arguments.into_iter().map(|a| a.as_ref().to_owned()).collect();
        let run = self.attempt(program, &arguments);
        let printed = String::from_utf8_lossy(&run.stdout);
        assert!(run.succeeded, "{program} {arguments:?} failed\n{printed}\n{}", run.stderr);
        run
    }

    /// Runs a client that may fail.
    ///
    /// # Panics
    /// The client is not installed or takes too long.
    pub fn attempt<A: AsRef<OsStr>>(&self, program: &str, arguments: impl IntoIterator<Item = A>) -> Run {
        let mut child = Command::new(program)
            .args(arguments)
            .current_dir(self.home.path())
            .env("HOME", self.home.path())
            .env("XDG_CONFIG_HOME", self.path(".config"))
            .env_remove("XDG_DATA_HOME")
            .env_remove("XDG_CACHE_HOME")
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}; ./dev test installs what the tests need"));
        let stdout = collect(child.stdout.take());
        let stderr = collect(child.stderr.take());
        let end = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = child.try_wait().expect("a child can be asked for its state") {
                break Some(status);
            }
            if Instant::now() > end {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            thread::sleep(Duration::from_millis(5));
        };
        let stdout = stdout.join().expect("the reading thread does not panic");
        let stderr = stderr.join().expect("the reading thread does not panic");
        let stderr = String::from_utf8_lossy(&stderr).into_owned();
        let Some(status) = status else {
            panic!("{program} took over {LIMIT:?}\n{}\n{stderr}", String::from_utf8_lossy(&stdout));
        };
        Run { succeeded: status.success(), stdout, stderr }
    }
}

fn collect(stream: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut content = Vec::new();
        if let Some(mut stream) = stream {
            // Keeps the output up to the error.
            let _ = stream.read_to_end(&mut content);
        }
        content
    })
}
