//! Runs `ftpctl doctor` and reads its JSON.

use std::{fs, net::SocketAddr, path::Path, process::Command};

use serde_json::Value;
use tempfile::TempDir;

use crate::{authd::ADMIN_TOKEN, binaries, network::Host};

/// A run of `ftpctl doctor` that is about to start.
pub struct DoctorRun {
    command: Command,
    directory: TempDir,
    user: String,
    host: String,
    timeout: &'static str,
    implicit_port: u16,
}

/// What the doctor said.
#[derive(Debug)]
pub struct Diagnosis {
    pub checks: Vec<Value>,
    pub status: Option<i32>,
}

impl DoctorRun {
    /// As `demo` with the password `secret`, against the control port at `address`, without authd.
    ///
    /// # Panics
    /// A temporary directory cannot be created.
    pub fn new(address: SocketAddr) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = |name: &str, content: &str| {
            let path = directory.path().join(name);
            fs::write(&path, content).expect("a temporary directory takes files");
            path
        };
        let (password, _) = (file("password", "secret\n"), file("token", ADMIN_TOKEN));
        let mut command = Command::new(binaries::daemon("ftpctl"));
        // A host without the usual authorities, as a small container.
        command.env_clear().env("SSL_CERT_FILE", "/dev/null").env("SSL_CERT_DIR", "/dev/null");
        command.args(["--json", "doctor"]);
        command.arg("--password-file").arg(password).arg("--port").arg(address.port().to_string());
        let (user, host, timeout) = ("demo".to_owned(), address.ip().to_string(), "5s");
        Self { command, directory, user, host, timeout, implicit_port: 0 }
    }

    /// Also checks this port for implicit TLS.
    #[must_use]
    pub fn implicit_port(mut self, port: u16) -> Self {
        self.implicit_port = port;
        self
    }

    /// Logs in as this user.
    #[must_use]
    pub fn user(self, user: &str) -> Self {
        Self { user: user.to_owned(), ..self }
    }

    /// Connects to this host.
    #[must_use]
    pub fn host(self, host: &str) -> Self {
        Self { host: host.to_owned(), ..self }
    }

    /// Sets the time limit of one step.
    #[must_use]
    pub fn timeout(self, timeout: &'static str) -> Self {
        Self { timeout, ..self }
    }

    /// Sends this token to authd instead of the right one.
    ///
    /// # Panics
    /// The file cannot be written.
    #[must_use]
    pub fn token(self, token: &str) -> Self {
        fs::write(self.directory.path().join("token"), token).expect("a temporary directory takes files");
        self
    }

    /// Asks this authd for the nodes.
    #[must_use]
    pub fn authd(mut self, address: SocketAddr) -> Self {
        self.command.arg("--url").arg(format!("http://{address}"));
        self.command.arg("--token-file").arg(self.directory.path().join("token"));
        self
    }

    /// Trusts this authority for certificates of `localhost`.
    #[must_use]
    pub fn authority(self, file: &Path) -> Self {
        let run = self.argument("--tls-ca").argument(&file.display().to_string());
        run.argument("--tls-name=localhost")
    }

    /// A further argument. The last value of a flag counts.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.command.arg(argument);
        self
    }

    /// Runs on this host of the test's networks.
    #[must_use]
    pub fn on(mut self, host: &Host) -> Self {
        host.place(&mut self.command);
        self
    }

    /// # Panics
    /// The doctor does not run, or prints no JSON.
    pub fn run(mut self) -> Diagnosis {
        self.command.args(["--as", &self.user, "--timeout", self.timeout, &self.host]);
        self.command.arg("--implicit-port").arg(self.implicit_port.to_string());
        let output = self.command.output().expect("ftpctl starts");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let json: Value = serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{error}: {text} {}", String::from_utf8_lossy(&output.stderr)));
        let checks = json["checks"].as_array().cloned().expect("a list of checks");
        Diagnosis { checks, status: output.status.code() }
    }
}

impl Diagnosis {
    /// The findings, each once.
    pub fn findings(&self) -> Vec<&str> {
        let mut found: Vec<&str> = self.checks.iter().filter_map(|check| check["finding"].as_str()).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Checks that these are the findings, and that the exit status says whether a check failed.
    ///
    /// # Panics
    /// There are others, or one is missing.
    pub fn assert_findings(&self, expected: &[&str]) {
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        assert_eq!(self.findings(), expected, "{self}");
        let failed = self.checks.iter().any(|check| check["verdict"] == "failed");
        assert_eq!(self.status, Some(i32::from(failed)), "{self}");
    }

    /// The text of the first line with this finding.
    ///
    /// # Panics
    /// There is none.
    pub fn text_of(&self, finding: &str) -> String {
        let line = self.checks.iter().find(|check| check["finding"] == finding);
        let line = line.unwrap_or_else(|| panic!("no {finding}: {self}"));
        format!(
            "{}: {}",
            line["check"].as_str().unwrap_or_default(),
            line["text"].as_str().unwrap_or_default()
        )
    }
}

impl std::fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for check in &self.checks {
            writeln!(f, "{} {}: {} [{}]", check["verdict"], check["check"], check["text"], check["finding"])?;
        }
        Ok(())
    }
}
