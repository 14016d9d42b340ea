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
        self.response(line)?.lines().next().map(str::to_owned)
    }

    /// The entries of a stream, oldest first: each with its id, and its fields and values in turn. No value
    /// has a line end, or begins with `$` or `*`.
    ///
    /// # Panics
    /// Redis does not answer.
    pub fn stream(&self, key: &str) -> Vec<Vec<String>> {
        let response = self.response(&format!("XRANGE {key} - +")).expect("Redis answers");
        // An entry is an array of its id and an array of its fields; `$LENGTH` comes before each text.
        let mut entries: Vec<Vec<String>> = Vec::new();
        for line in response.lines().skip(1).take_while(|line| !line.starts_with("+OK")) {
            if line == "*2" {
                entries.push(Vec::new());
            } else if !line.starts_with(['*', '$'])
                && let Some(entry) = entries.last_mut()
            {
                entry.push(line.to_owned());
            }
        }
        entries
    }

    fn response(&self, line: &str) -> Option<String> {
        let mut stream = TcpStream::connect_timeout(&self.address, DEADLINE).ok()?;
        stream.set_read_timeout(Some(DEADLINE)).ok()?;
        stream.write_all(format!("{line}\r\nQUIT\r\n").as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }
}
