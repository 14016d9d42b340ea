//! A Redis of the test's own.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::Command,
};

use tempfile::TempDir;

use crate::{DEADLINE, eventually, process::Daemon};

/// A running `redis-server` without persistence. It ends when this is dropped.
pub struct Redis {
    pub daemon: Daemon,
    pub address: SocketAddr,
    _directory: TempDir,
}

impl Redis {
    /// Starts it and waits until it answers.
    ///
    /// # Panics
    /// It is not installed, or does not start.
    pub fn start(address: SocketAddr) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new("redis-server");
        command.arg("--bind").arg(address.ip().to_string());
        command.arg("--port").arg(address.port().to_string());
        command.arg("--dir").arg(directory.path());
        command.args(["--save", "", "--appendonly", "no", "--daemonize", "no"]);
        let redis = Self { daemon: Daemon::start("redis", command), address, _directory: directory };
        eventually("Redis to answer", || redis.command("PING").filter(|answer| answer == "+PONG"));
        redis
    }

    /// Sends one command without spaces in its arguments and returns the first line of the answer.
    pub fn command(&self, line: &str) -> Option<String> {
        let mut stream = TcpStream::connect_timeout(&self.address, DEADLINE).ok()?;
        stream.set_read_timeout(Some(DEADLINE)).ok()?;
        stream.write_all(format!("{line}\r\nQUIT\r\n").as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.lines().next().map(str::to_owned)
    }
}
