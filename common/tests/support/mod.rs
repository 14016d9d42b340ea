//! A Redis server for one test, and nodes that join it.

use std::{
    net::{IpAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use common::{
    node::NodeRecord,
    passive::PassiveAssignment,
    registry::{ClusterEvent, RedisLink, RedisOptions, Registry, SessionEntry, WhenAway},
    session::{SessionId, SessionLimits, SessionRecord},
};
use tempfile::TempDir;
use tokio::sync::mpsc;

/// Time limit for each step of a test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A short lease, so that tests can wait for dead nodes to expire.
pub(crate) const LEASE: Duration = Duration::from_millis(600);

/// A redis-server on a free port, without persistence. Dropping this value ends it.
pub(crate) struct RedisServer {
    directory: TempDir,
    port: u16,
    process: Child,
}

impl RedisServer {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            // If another process takes the port before Redis does, try another one.
            if let Some(process) = run(&directory, port) {
                return Self { directory, port, process };
            }
            assert!(Instant::now() < deadline, "redis-server does not start");
        }
    }

    pub(crate) fn stop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts the server again, without data.
    pub(crate) fn restart(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        self.process = loop {
            if let Some(process) = run(&self.directory, self.port) {
                break process;
            }
            assert!(Instant::now() < deadline, "redis-server does not start again");
        };
    }

    /// Makes the server hang (`STOP`) or continue (`CONT`).
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.process.id().to_string();
        let status = Command::new("kill").args(["-s", signal, &pid]).status().unwrap();
        assert!(status.success());
    }

    pub(crate) fn options(&self) -> RedisOptions {
        let url = format!("127.0.0.1:{}", self.port).parse().unwrap();
        RedisOptions { lease: LEASE, ..RedisOptions::new(url) }
    }

    pub(crate) fn refusing(&self) -> RedisOptions {
        RedisOptions { when_away: WhenAway::Refuse, ..self.options() }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // The test may have stopped the server before.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts a server. Returns `None` if it ended before it listened.
fn run(directory: &TempDir, port: u16) -> Option<Child> {
    let mut process = Command::new("redis-server")
        .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", ""])
        .args(["--appendonly", "no", "--dir"])
        .arg(directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is installed");
    loop {
        if process.try_wait().unwrap().is_some() {
            return None;
        }
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Some(process);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The record of a node with this slice, ready to join.
pub(crate) fn node(name: &str, slice: &str) -> NodeRecord {
    NodeRecord {
        control: "127.0.0.1:21".to_owned(),
        host: "host".to_owned(),
        version: "0.1.0".to_owned(),
        since: 1_700_000_000,
        ..NodeRecord::new(name.parse().unwrap(), rand::random(), slice.parse().unwrap())
    }
}

/// The assignment of a node with this slice.
pub(crate) fn fixed(slice: &str) -> PassiveAssignment {
    PassiveAssignment::Slice(slice.parse().unwrap())
}

/// The place of the nodes with this name in the tests.
pub(crate) fn place(name: &str) -> Option<String> {
    Some(format!("boot namespace {name}"))
}

pub(crate) async fn join(
    name: &str,
    slice: &str,
    options: RedisOptions,
) -> (Registry, mpsc::Receiver<ClusterEvent>) {
    Registry::join(node(name, slice), fixed(slice), place(name), options).await.unwrap()
}

/// A session that has just logged in.
pub(crate) fn session(node: &str, user: &str, address: [u8; 4]) -> SessionRecord {
    SessionRecord {
        id: SessionId::random(),
        node: node.parse().unwrap(),
        user: user.to_owned(),
        address: IpAddr::from(address),
        since: 1_700_000_000,
    }
}

pub(crate) const NO_LIMITS: SessionLimits =
    SessionLimits { per_user: None, per_address: None, per_user_and_address: None };

pub(crate) fn user_limit(limit: u32) -> SessionLimits {
    SessionLimits { per_user: Some(limit), ..NO_LIMITS }
}

/// Opens a session of `user` on `node`, without limits.
pub(crate) async fn open(registry: &Registry, node: &str, user: &str) -> SessionEntry {
    registry.open_session(session(node, user, [192, 0, 2, 1]), NO_LIMITS).await.unwrap()
}

/// Returns true if the user has `limit` sessions or more.
pub(crate) async fn is_full(registry: &Registry, node: &str, user: &str, limit: u32) -> bool {
    let record = session(node, user, [192, 0, 2, 1]);
    registry.open_session(record, user_limit(limit)).await.is_err()
}

/// All keys in Redis except those that nodes leave there to expire.
pub(crate) async fn keys_left(link: &RedisLink) -> Vec<String> {
    let mut keys: Vec<String> = link.query(redis::cmd("KEYS").arg("*")).await.unwrap();
    let expiring = ["ftp:lease-epoch", "ftp:relay-keys", "ftp:blocks"];
    keys.retain(|key| !expiring.contains(&key.as_str()));
    keys
}

/// Waits until `condition` returns a value.
pub(crate) async fn eventually<T>(what: &str, condition: impl AsyncFn() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "did not happen within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) async fn next_event(events: &mut mpsc::Receiver<ClusterEvent>) -> ClusterEvent {
    tokio::time::timeout(PATIENCE, events.recv()).await.expect("an event in time").unwrap()
}
