//! A running Redis process.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::Command,
};

use tempfile::TempDir;

use crate::{DEADLINE, eventually, process::Daemon};

/// A running `redis-server` without persistence. Dropping it ends the process.
pub struct Redis {
    pub daemon: Daemon,
    pub address: SocketAddr,
    _directory: TempDir,
}

impl Redis {
    /// Starts Redis and waits until it responds.
    ///
    /// # Panics
    /// Redis is not installed or does not start.
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

    /// Sends a command, whose arguments must not contain spaces, and returns the first line of the response.
    pub fn command(&self, line: &str) -> Option<String> {
        let mut stream = TcpStream::connect_timeout(&self.address, DEADLINE).ok()?;
        stream.set_read_timeout(Some(DEADLINE)).ok()?;
        stream.write_all(format!("{line}\r\nQUIT\r\n").as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.lines().next().map(str::to_owned)
    }
}
