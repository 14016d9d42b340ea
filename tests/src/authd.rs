//! A running `authd` process.

use std::{
    fs,
    io::Write,
    net::SocketAddr,
    process::{Command, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    binaries,
    http::{self, HttpAnswer},
    node::clean_command,
    process::Daemon,
};

/// The tokens of every authd in the tests.
pub const NODE_TOKEN: &str = "node-token-of-the-tests";
pub const ADMIN_TOKEN: &str = "admin-token-of-the-tests";

/// Settings and files of an authd that is about to start.
pub struct AuthdBuilder {
    address: SocketAddr,
    settings: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    users: Option<String>,
}

/// A running `authd`. Dropping it ends the process.
pub struct Authd {
    pub daemon: Daemon,
    pub address: SocketAddr,
    directory: TempDir,
}

impl AuthdBuilder {
    /// An authd on this address with the tests' tokens, without users and without Redis.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, settings: Vec::new(), environment: Vec::new(), users: None }
            .setting("log_level", "info,authd=debug,common=debug")
            // The tests use short passwords.
            .setting("min_password_length", 1)
    }

    /// Sets a setting by its key. The last value counts.
    pub fn setting(mut self, key: &str, value: impl ToString) -> Self {
        let key = key.replace('-', "_");
        self.settings.retain(|(known, _)| *known != key);
        self.settings.push((key, value.to_string()));
        self
    }

    /// Removes a setting.
    pub fn without(mut self, key: &str) -> Self {
        self.settings.retain(|(known, _)| known != key);
        self
    }

    /// Sets an environment variable.
    pub fn variable(mut self, name: &str, value: impl ToString) -> Self {
        self.environment.push((name.to_owned(), value.to_string()));
        self
    }

    /// Sets the contents of the users file (TOML).
    pub fn users(mut self, toml: &str) -> Self {
        self.users = Some(toml.to_owned());
        self
    }

    /// Starts authd and waits until it listens.
    ///
    /// # Panics
    /// authd does not listen in time.
    pub fn start(self) -> Authd {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = |name: &str, content: &str| {
            let path = directory.path().join(name);
            fs::write(&path, content).expect("a temporary directory takes files");
            path
        };
        let mut command = clean_command(binaries::daemon("authd"));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.arg("--listen").arg(self.address.to_string());
        command.arg("--node-token-file").arg(file("node-token", NODE_TOKEN));
        command.arg("--admin-token-file").arg(file("admin-token", ADMIN_TOKEN));
        if let Some(users) = &self.users {
            command.arg("--users-file").arg(file("users.toml", users));
        }
        for (key, value) in &self.settings {
            command.arg(format!("--{}={value}", key.replace('_', "-")));
        }
        let daemon = Daemon::start("authd", command);
        daemon.wait_for_message("listening", &[]);
        Authd { daemon, address: self.address, directory }
    }
}

impl Authd {
    /// Sends a request with the administrators' token.
    ///
    /// # Panics
    /// There is no response.
    pub fn administer(&self, method: &str, path: &str, body: Option<&Value>) -> HttpAnswer {
        self.request(method, path, Some(ADMIN_TOKEN), body)
    }

    /// Sends a request with the given token, or without one.
    ///
    /// # Panics
    /// There is no response.
    pub fn request(&self, method: &str, path: &str, token: Option<&str>, body: Option<&Value>) -> HttpAnswer {
        http::request(self.address, method, path, token, body)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// Path of the users file, for tests that change it.
    pub fn users_file(&self) -> std::path::PathBuf {
        self.directory.path().join("users.toml")
    }
}

/// The PHC string that `authd hash-password` prints for a password.
///
/// # Panics
/// authd prints no hash.
pub fn hash_password(password: &str) -> String {
    let mut child = Command::new(binaries::daemon("authd"))
        .args(["--min-password-length", "1", "hash-password"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("authd starts");
    let mut stdin = child.stdin.take().expect("its input is a pipe");
    writeln!(stdin, "{password}").expect("authd reads its input");
    drop(stdin);
    let output = child.wait_with_output().expect("authd ends");
    assert!(output.status.success(), "authd hash-password: {output:?}");
    String::from_utf8(output.stdout).expect("a PHC string is text").trim().to_owned()
}
