//! A running Redis process, and a group of them that sentinels watch.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
};

use tempfile::TempDir;

use crate::{DEADLINE, eventually, process::Daemon, tls::CertificateFiles};

/// A running `redis-server` without persistence. Dropping it ends the process.
pub struct Redis {
    pub daemon: Daemon,
    pub address: SocketAddr,
    /// The password with which the test logs in.
    password: Option<String>,
    _directory: TempDir,
}

impl Redis {
    /// Starts Redis and waits until it responds.
    ///
    /// # Panics
    /// Redis is not installed or does not start.
    pub fn start(address: SocketAddr) -> Self {
        Self::start_with(address, &[])
    }

    /// As [`Self::start`], with further arguments.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn start_with(address: SocketAddr, arguments: &[&str]) -> Self {
        Self::start_as(address, arguments, None)
    }

    /// As [`Self::start_with`]. The test logs in with this password.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn start_as(address: SocketAddr, arguments: &[&str], password: Option<&str>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new("redis-server");
        command.arg("--bind").arg(address.ip().to_string());
        command.arg("--port").arg(address.port().to_string());
        command.arg("--dir").arg(directory.path());
        command.args(["--save", "", "--appendonly", "no", "--daemonize", "no"]).args(arguments);
        let daemon = Daemon::start("redis", command);
        let password = password.map(str::to_owned);
        let redis = Self { daemon, address, password, _directory: directory };
        eventually("Redis to answer", || redis.command("PING").filter(|answer| answer == "+PONG"));
        redis
    }

    /// Returns true if the installed Redis has TLS. A test of TLS ends with a message without it.
    ///
    /// # Panics
    /// Redis is not installed.
    pub fn has_tls() -> bool {
        let mut command = Command::new("redis-server");
        // Redis ends because of the port, unless it does not know the setting before it.
        let output = command.args(["--tls-replication", "no", "--port", "99999"]).output();
        let output = output.expect("redis-server is installed");
        let has_tls = !String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).contains("tls-rep");
        if !has_tls {
            eprintln!("skipped: redis-server is built without TLS");
        }
        has_tls
    }

    /// The arguments of a Redis that offers TLS on `port` and asks clients for a certificate of the same
    /// authority.
    pub fn tls_arguments(port: u16, files: &CertificateFiles, authority: &Path) -> Vec<String> {
        let path = |path: &Path| path.display().to_string();
        let (chain, key, authority) = (path(&files.chain), path(&files.key), path(authority));
        let port = port.to_string();
        let pairs = [
            ("--tls-port", &port),
            ("--tls-cert-file", &chain),
            ("--tls-key-file", &key),
            ("--tls-ca-cert-file", &authority),
        ];
        pairs.into_iter().flat_map(|(key, value)| [key.to_owned(), value.clone()]).collect()
    }

    /// Sends a command, whose arguments must not contain spaces, and returns the first line of the response.
    pub fn command(&self, line: &str) -> Option<String> {
        let answer = self.response(line)?;
        answer.lines().nth(usize::from(self.password.is_some())).map(str::to_owned)
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

    /// Sends a command, and returns all lines of the response. Those to AUTH and QUIT surround it.
    pub fn response(&self, line: &str) -> Option<String> {
        match &self.password {
            Some(password) => response(self.address, &format!("AUTH {password}\r\n{line}")),
            None => response(self.address, line),
        }
    }
}

/// Sends a command to a server or a sentinel.
pub(crate) fn response(address: SocketAddr, line: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, DEADLINE).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).ok()?;
    stream.write_all(format!("{line}\r\nQUIT\r\n").as_bytes()).ok()?;
    let (mut answer, mut part) = (Vec::new(), [0; 4096]);
    // A sentinel does not know QUIT, and leaves the connection open.
    while !String::from_utf8_lossy(&answer).contains("-ERR unknown command 'QUIT'") {
        match stream.read(&mut part).ok()? {
            0 => break,
            length => answer.extend_from_slice(&part[..length]),
        }
    }
    String::from_utf8(answer).ok()
}
