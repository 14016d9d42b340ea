//! Nodes that share a Redis, an authd and a storage, without a balancer.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    sync::Arc,
};

use cluster_tests::{
    DEADLINE,
    dialogue::Dialogue,
    loopback::Loopback,
    node::{Node, NodeBuilder},
    redis::Redis,
    stub_authd::{Answer, StubAuthd},
};
use common::registry::SharedKey;
use serde_json::json;
use tempfile::TempDir;

/// Last byte of the address of the first node.
const FIRST_NODE: u8 = 11;

/// The number of blocks of the passive range.
pub(crate) const BLOCKS: usize = 6;

const PORTS_OF_BLOCK: usize = 5;

/// The parts of a cluster.
pub(crate) struct Site {
    pub nodes: Vec<Node>,
    pub redis: Redis,
    authd: StubAuthd,
    pub loopback: Arc<Loopback>,
    storage: Arc<TempDir>,
    settings: Vec<(String, String)>,
}

impl Site {
    /// Starts this many nodes that lease blocks of the passive range, and waits until each has its fair
    /// share.
    pub(crate) fn leased(count: u8) -> Self {
        let site = Self::start(count, &[]);
        site.wait_for_shares(&(0..count.into()).collect::<Vec<_>>());
        site
    }

    /// Starts this many nodes with these settings, and waits until each is ready.
    pub(crate) fn start(count: u8, settings: &[(&str, &str)]) -> Self {
        let authd =
            StubAuthd::start(|request| Answer::account(&json!({ "user": request["user"], "home": "/" })));
        let loopback = Arc::new(Loopback::reserve());
        let redis = Redis::start(loopback.socket(1, 6379));
        let storage = Arc::new(tempfile::tempdir().unwrap());
        let settings = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let mut site = Self { nodes: Vec::new(), redis, authd, loopback, storage, settings };
        site.nodes = (0..count).map(|position| site.builder(position).spawn()).collect();
        for node in &site.nodes {
            node.daemon.wait_for_message("ready", &[]);
        }
        site
    }

    /// The node at this position, which is not running yet.
    pub(crate) fn builder(&self, position: u8) -> NodeBuilder {
        let (loopback, storage) = (Arc::clone(&self.loopback), Arc::clone(&self.storage));
        let name = format!("ftp-{position}");
        let builder = NodeBuilder::new(loopback, storage, &name, FIRST_NODE + position)
            .setting("port", 2121)
            .setting("passive_port_min", 20000)
            .setting("passive_port_max", 20000 + BLOCKS * PORTS_OF_BLOCK - 1)
            .setting("passive_block_ports", PORTS_OF_BLOCK)
            .setting("redis_url", self.redis.address)
            .setting("authd_urls", self.authd.url())
            .setting("storage_locks", "cluster")
            .setting("node_lease", "1s")
            .setting("data_connect_timeout", "5s")
            .setting("readiness_interval", "100ms");
        self.settings.iter().fold(builder, |builder, (key, value)| builder.setting(key, value))
    }

    /// Waits until the nodes at these positions lease the same number of blocks, or numbers that differ by
    /// one, and have no block to give up.
    pub(crate) fn wait_for_shares(&self, positions: &[usize]) {
        let nodes = positions.len();
        let (least, most) = (BLOCKS / nodes, BLOCKS.div_ceil(nodes));
        for position in positions {
            let node = &self.nodes[*position];
            let is_fair = |blocks: f64| (least..=most).contains(&(blocks as usize));
            node.wait_for_metric("ftp_blocks{state=\"leased\"}", is_fair);
            node.wait_for_metric("ftp_blocks{state=\"given_up\"}", |blocks| blocks == 0.0);
        }
    }

    pub(crate) fn login(&self, position: usize) -> Dialogue {
        self.nodes[position].login("demo", "x")
    }

    /// The address of a passive port at another node.
    pub(crate) fn door(&self, position: usize, passive: SocketAddr) -> SocketAddr {
        SocketAddr::new(self.nodes[position].address.ip(), passive.port())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.storage.path().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// The newest key that authenticates relayed connections.
    pub(crate) fn relay_key(&self) -> SharedKey {
        let mut stream = TcpStream::connect(self.redis.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(b"LINDEX ftp:relay-keys 0\r\nQUIT\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.lines().nth(1).and_then(|key| key.parse().ok()).unwrap_or_else(|| panic!("{answer:?}"))
    }
}

/// Uploads `content` in a session at one node over a data connection to another address.
pub(crate) fn store_through(
    session: &mut Dialogue,
    door: impl FnOnce(SocketAddr) -> SocketAddr,
    name: &str,
    content: &[u8],
) {
    session.command("TYPE I", 200);
    let passive = session.epsv();
    session.command(&format!("STOR {name}"), 150);
    let mut data = session.data_connection(door(passive));
    data.write_all(content).unwrap();
    drop(data);
    session.expect(226);
}

/// Downloads in a session at one node over a data connection to another address.
pub(crate) fn receive_through(
    session: &mut Dialogue,
    door: impl FnOnce(SocketAddr) -> SocketAddr,
    command: &str,
) -> Vec<u8> {
    session.command("TYPE I", 200);
    let passive = session.epsv();
    let data = session.data_connection(door(passive));
    session.command(command, 150);
    session.finish_download(data)
}
