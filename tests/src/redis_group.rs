//! A Redis with replicas, and three sentinels that make a replica the master when the master dies.

use std::{fs, net::SocketAddr, process::Command, sync::Arc};

use tempfile::TempDir;

use crate::{
    eventually,
    loopback::Loopback,
    process::Daemon,
    redis::{Redis, response},
    tls::{Authority, CertificateFiles},
};

/// The name that the sentinels have for the master.
const MASTER: &str = "ftp";
const SENTINELS: u8 = 3;
const FIRST_SERVER: u8 = 1;
const FIRST_SENTINEL: u8 = 101;
const PLAIN_PORT: u16 = 6379;
const TLS_PORT: u16 = 6380;
const SENTINEL_PORT: u16 = 26379;
const SENTINEL_TLS_PORT: u16 = 26380;

/// The password of Redis and of the sentinels.
pub const PASSWORD: &str = "password-of-the-tests";

/// The servers and sentinels. Dropping it ends all processes.
pub struct RedisGroup {
    /// The servers by position; at first, the first is the master. `None`: killed.
    servers: Vec<Option<Redis>>,
    _sentinels: Vec<Daemon>,
    loopback: Arc<Loopback>,
    directory: TempDir,
    authority: Option<Arc<Authority>>,
}

impl RedisGroup {
    /// A master and a replica, without TLS and passwords.
    ///
    /// # Panics
    /// Redis is not installed, or a process does not start.
    pub fn start() -> Self {
        Self::start_with(None)
    }

    /// A master and a replica. Nodes, replicas and sentinels use TLS with certificates of this authority, and
    /// passwords.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn encrypted(authority: &Arc<Authority>) -> Self {
        Self::start_with(Some(Arc::clone(authority)))
    }

    fn start_with(authority: Option<Arc<Authority>>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::write(directory.path().join("password"), PASSWORD).expect("a temporary directory takes files");
        let mut group = Self {
            servers: Vec::new(),
            _sentinels: Vec::new(),
            loopback: Arc::new(Loopback::reserve()),
            directory,
            authority,
        };
        for position in 0..2 {
            group.servers.push(Some(group.start_server(position, position > 0)));
        }
        eventually("the replica to follow the master", || {
            group.server(1).response("INFO replication").filter(|info| info.contains("link_status:up"))
        });
        group._sentinels = (0..SENTINELS).map(|number| group.start_sentinel(number)).collect();
        eventually("the sentinels to know each other and the replica", || {
            (0..SENTINELS).all(|number| group.knows_all(number)).then_some(())
        });
        group
    }

    fn start_server(&self, position: usize, is_replica: bool) -> Redis {
        let host = FIRST_SERVER + position as u8;
        let mut arguments: Vec<String> = Vec::new();
        let mut add = |line: &[&str]| arguments.extend(line.iter().map(ToString::to_string));
        let (master, port) = (self.loopback.address(FIRST_SERVER).to_string(), self.port().to_string());
        if is_replica {
            add(&["--replicaof", &master, &port]);
        }
        // By default a server announces the address from which it connects, which is 127.0.0.1 here.
        add(&["--replica-announce-ip", &self.loopback.address(host).to_string()]);
        add(&["--repl-diskless-sync-delay", "0"]);
        if let Some(files) = self.certificate(host) {
            add(&["--requirepass", PASSWORD, "--masterauth", PASSWORD, "--tls-replication", "yes"]);
            add(&["--replica-announce-port", &port]);
            arguments.extend(Redis::tls_arguments(TLS_PORT, &files, &self.authority_file()));
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let password = self.authority.as_ref().map(|_| PASSWORD);
        Redis::start_as(self.loopback.socket(host, PLAIN_PORT), &arguments, password)
    }

    fn start_sentinel(&self, number: u8) -> Daemon {
        let host = FIRST_SENTINEL + number;
        let file = self.directory.path().join(format!("sentinel-{number}.conf"));
        let (ip, server) = (self.loopback.address(host), self.loopback.address(FIRST_SERVER));
        let (port, directory) = (self.port(), self.directory.path().display());
        let announced = if self.authority.is_some() { SENTINEL_TLS_PORT } else { SENTINEL_PORT };
        let mut text = format!(
            "port {SENTINEL_PORT}\nbind {ip}\ndir {directory}\nsentinel monitor {MASTER} {server} {port} 2\n\
             sentinel announce-ip {ip}\nsentinel announce-port {announced}\n\
             sentinel down-after-milliseconds {MASTER} 1000\n\
             sentinel failover-timeout {MASTER} 4000\n"
        );
        if let Some(files) = self.certificate(host) {
            for line in Redis::tls_arguments(SENTINEL_TLS_PORT, &files, &self.authority_file()).chunks(2) {
                text += &format!("{} {}\n", line[0].trim_start_matches('-'), line[1]);
            }
            text += &format!("tls-replication yes\nsentinel auth-pass {MASTER} {PASSWORD}\n");
            text += &format!("requirepass {PASSWORD}\nsentinel sentinel-pass {PASSWORD}\n");
        }
        fs::write(&file, text).expect("a temporary directory takes files");
        let mut command = Command::new("redis-server");
        command.arg(file).arg("--sentinel");
        Daemon::start("redis-sentinel", command)
    }

    /// The settings of a node, authd or relay that uses this group.
    pub fn settings(&self) -> Vec<(String, String)> {
        let (scheme, port) = match self.authority {
            Some(_) => ("rediss://", SENTINEL_TLS_PORT),
            None => ("", SENTINEL_PORT),
        };
        let sentinel = |number| format!("{scheme}{}", self.loopback.socket(FIRST_SENTINEL + number, port));
        let sentinels: Vec<String> = (0..SENTINELS).map(sentinel).collect();
        let mut settings = vec![
            ("redis_sentinels".to_owned(), sentinels.join(",")),
            ("redis_sentinel_master".to_owned(), MASTER.to_owned()),
        ];
        if let Some(files) = self.certificate(250) {
            let password = self.directory.path().join("password").display().to_string();
            for (key, value) in [
                ("redis_ca_file", self.authority_file().display().to_string()),
                ("redis_client_certificate", files.chain.display().to_string()),
                ("redis_client_key", files.key.display().to_string()),
                ("redis_password_file", password.clone()),
                ("redis_sentinel_password_file", password),
            ] {
                settings.push((key.to_owned(), value));
            }
        }
        settings
    }

    /// Kills the server at `position`, as in a crash.
    pub fn kill(&mut self, position: usize) {
        self.servers[position] = None;
    }

    /// # Panics
    /// The server is killed.
    pub fn server(&self, position: usize) -> &Redis {
        self.servers[position].as_ref().expect("the server runs")
    }

    /// Waits until all sentinels name the server at `position` as the master.
    ///
    /// # Panics
    /// They do not within the deadline.
    pub fn wait_for_master(&self, position: usize) {
        let wanted = self.loopback.address(FIRST_SERVER + position as u8).to_string();
        let names_it = |number| {
            let answer = self.ask(number, &format!("SENTINEL GET-MASTER-ADDR-BY-NAME {MASTER}"));
            answer.lines().any(|line| line == wanted)
        };
        eventually("the sentinels to name another master", || (0..SENTINELS).all(names_it).then_some(()));
    }

    /// Makes the sentinels exchange master and replica, which both run.
    ///
    /// # Panics
    /// The sentinel refuses.
    pub fn fail_over(&self) {
        eventually("a sentinel to begin a failover", || {
            self.ask(0, &format!("SENTINEL FAILOVER {MASTER}")).contains("+OK").then_some(())
        });
    }

    /// The address of a server as the daemons' logs show it.
    pub fn shown(&self, position: usize) -> String {
        let scheme = if self.authority.is_some() { "rediss" } else { "redis" };
        format!("{scheme}://{}/0", self.loopback.socket(FIRST_SERVER + position as u8, self.port()))
    }

    fn port(&self) -> u16 {
        if self.authority.is_some() { TLS_PORT } else { PLAIN_PORT }
    }

    fn certificate(&self, host: u8) -> Option<CertificateFiles> {
        Some(self.authority.as_ref()?.sign(&self.loopback.address(host).to_string()))
    }

    fn authority_file(&self) -> std::path::PathBuf {
        self.authority.as_ref().map(|authority| authority.file()).unwrap_or_default()
    }

    fn knows_all(&self, number: u8) -> bool {
        let answer = self.ask(number, &format!("SENTINEL MASTER {MASTER}"));
        let field = |name| answer.lines().skip_while(|line| *line != name).nth(2).map(str::to_owned);
        field("num-other-sentinels").as_deref() == Some("2") && field("num-slaves").as_deref() == Some("1")
    }

    fn ask(&self, number: u8, line: &str) -> String {
        let address: SocketAddr = self.loopback.socket(FIRST_SENTINEL + number, SENTINEL_PORT);
        let line = match self.authority {
            Some(_) => format!("AUTH {PASSWORD}\r\n{line}"),
            None => line.to_owned(),
        };
        response(address, &line).unwrap_or_default()
    }
}
