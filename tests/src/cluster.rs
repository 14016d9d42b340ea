//! A whole cluster of real processes: balancer, nodes, authd and Redis, with a shared storage.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
};

use common::node::PortRange;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    authd::{Authd, AuthdBuilder, NODE_TOKEN},
    dialogue::Dialogue,
    doors::{DoorKind, Doors},
    eventually,
    hang::Hang,
    loopback::Loopback,
    nginx::{Balancer, Nginx},
    node::{Node, NodeBuilder},
    proxy::Connector,
    redis::Redis,
    relay::{Relay, RelayBuilder},
    tls::CertificateFiles,
    wire::Wire,
};

const CONTROL_PORT: u16 = 2121;
const IMPLICIT_PORT: u16 = 2990;
/// Last bytes of the addresses of the parts. Clients have addresses from 100 on.
const BALANCER: u8 = 1;
const REDIS: u8 = 2;
const AUTHD: u8 = 3;
const FIRST_NODE: u8 = 11;
const FIRST_WIRE: u8 = 51;

/// Parts and settings of a cluster that is about to start.
pub struct ClusterBuilder {
    nodes: usize,
    passive_ports: u16,
    settings: Vec<(String, String)>,
    authd_settings: Vec<(String, String)>,
    users: Option<String>,
    reference_variables: bool,
    encrypted: bool,
    doors: DoorKind,
    is_leased: bool,
    spare_nodes: usize,
    wires: bool,
    hang: Option<(usize, Arc<Hang>)>,
    registry: Option<Vec<(String, String)>>,
}

/// A running cluster. Dropping it ends all processes.
pub struct Cluster {
    // Dropped in this order: processes before the addresses and files that they use.
    doors: Doors,
    nodes: Vec<Option<Node>>,
    wires: Vec<Wire>,
    authd: Option<Authd>,
    redis: Option<Redis>,
    configuration: ClusterBuilder,
    passive: PortRange,
    token: TempDir,
    storage: Arc<TempDir>,
    loopback: Arc<Loopback>,
}

impl Cluster {
    /// Three nodes that share 30 passive ports, and the users demo, admin and test with any password.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder {
            nodes: 3,
            passive_ports: 90,
            settings: Vec::new(),
            authd_settings: Vec::new(),
            users: None,
            reference_variables: false,
            encrypted: false,
            doors: DoorKind::NginxAndRelay,
            is_leased: false,
            spare_nodes: 0,
            wires: false,
            hang: None,
            registry: None,
        }
    }

    /// A cluster with the defaults of [`Self::builder`].
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// The address to which clients connect.
    pub fn address(&self) -> SocketAddr {
        self.loopback.socket(BALANCER, CONTROL_PORT)
    }

    /// The address for implicit TLS, in a cluster with a certificate.
    pub fn implicit_address(&self) -> SocketAddr {
        self.loopback.socket(BALANCER, IMPLICIT_PORT)
    }

    /// `ftp://user:password@address/path`, for clients that take URLs.
    pub fn url(&self, user: &str, path: &str) -> String {
        format!("ftp://{user}:secret@{}{path}", self.address())
    }

    /// The address of the `number`-th client.
    pub fn client_address(&self, number: u8) -> IpAddr {
        self.loopback.address(100 + number)
    }

    /// A connector from the address of the `number`-th client.
    pub fn client(&self, number: u8) -> Connector {
        Connector::new().from(self.client_address(number))
    }

    /// A connector directly to nodes, with the PROXY header that the balancer sends for the first client.
    pub fn as_balancer(&self) -> Connector {
        Connector::new().proxy_v1(self.client_address(1), self.address().ip())
    }

    /// # Panics
    /// The cluster has no nginx.
    pub fn nginx(&self) -> &Nginx {
        self.doors.nginx.as_ref().expect("the cluster was started with nginx")
    }

    /// Returns true if HAProxy carries the connections.
    pub fn has_haproxy(&self) -> bool {
        self.doors.haproxy.is_some()
    }

    /// # Panics
    /// The cluster has no relay.
    pub fn relay(&self) -> &Relay {
        self.doors.relay.as_ref().expect("the cluster was started with a relay")
    }

    /// A further relay of the cluster, at `loopback.address(host)`.
    pub fn relay_builder(&self, host: u8) -> RelayBuilder {
        let relay = Relay::builder(&self.loopback, host, self.loopback.socket(REDIS, 6379));
        // At least three times in each node lease of the tests.
        let relay =
            relay.passive_ports(self.passive.from(), self.passive.to()).setting("map_refresh", "500ms");
        let Some(registry) = &self.configuration.registry else { return relay };
        registry.iter().fold(relay.without("redis_url"), |relay, (key, value)| relay.setting(key, value))
    }

    /// The shared storage.
    pub fn storage(&self) -> &Path {
        self.storage.path()
    }

    /// # Panics
    /// The node is not running.
    pub fn node(&self, position: usize) -> &Node {
        self.nodes[position].as_ref().expect("the node runs")
    }

    /// # Panics
    /// The node is not running.
    pub fn node_mut(&mut self, position: usize) -> &mut Node {
        self.nodes[position].as_mut().expect("the node runs")
    }

    /// Number of nodes, running or not.
    pub fn size(&self) -> usize {
        self.nodes.len()
    }

    /// Starts a spare node, or a killed or stopped node again.
    pub fn restart_node(&mut self, position: usize) {
        self.restart_node_with(position, |builder| builder);
    }

    /// As [`Self::restart_node`], with changed settings.
    pub fn restart_node_with(&mut self, position: usize, change: impl FnOnce(NodeBuilder) -> NodeBuilder) {
        self.nodes[position] = None;
        self.nodes[position] = Some(change(self.node_builder(position)).start());
    }

    /// # Panics
    /// authd is stopped.
    pub fn authd(&self) -> &Authd {
        self.authd.as_ref().expect("authd runs")
    }

    /// Kills authd, as in a crash.
    pub fn kill_authd(&mut self) {
        self.authd = None;
    }

    /// Starts authd again at the same address.
    pub fn start_authd(&mut self) {
        self.authd = Some(self.configuration.authd(&self.loopback).start());
    }

    /// # Panics
    /// Redis is stopped.
    pub fn redis(&self) -> &Redis {
        self.redis.as_ref().expect("Redis runs")
    }

    /// Kills Redis, as in a crash. Its data is lost.
    pub fn kill_redis(&mut self) {
        self.redis = None;
    }

    /// Starts Redis again at the same address, without data.
    pub fn start_redis(&mut self) {
        self.redis = Some(Redis::start(self.loopback.socket(REDIS, 6379)));
    }

    /// The connections between the node at `position` and Redis.
    ///
    /// # Panics
    /// The cluster was started without [`ClusterBuilder::wires`].
    pub fn wire(&self, position: usize) -> &Wire {
        &self.wires[position]
    }

    /// Position of the node that owns a passive port.
    ///
    /// # Panics
    /// The port does not belong to a node of the cluster.
    pub fn node_of(&self, data: SocketAddr) -> usize {
        let has_port = |ports: &PortRange| ports.contains(data.port());
        let owns = |position: &usize| {
            if self.configuration.is_leased {
                self.blocks_of(*position).iter().any(has_port)
            } else {
                has_port(&self.passive.slice(*position, self.size()).expect("there are ports for all nodes"))
            }
        };
        let owner = (0..self.size()).find(owns);
        owner.unwrap_or_else(|| panic!("{data} is no passive port of a node of the cluster"))
    }

    /// The passive ports that the node at `position` has leased and may use, as authd lists them. Empty if
    /// it does not list the node.
    pub fn blocks_of(&self, position: usize) -> Vec<PortRange> {
        let answer = self.authd().administer("GET", "/v1/nodes", None);
        let nodes: Vec<Value> = serde_json::from_str(&answer.body).unwrap_or_default();
        let name = node_name(position);
        let node = nodes.iter().find(|node| node["name"] == name.as_str());
        let port = |value: &Value| u16::try_from(value.as_u64()?).ok();
        let range = |pair: &Value| PortRange::new(port(&pair[0])?, port(&pair[1])?).ok();
        let blocks = node.and_then(|node| node["passive_ports"].as_array());
        blocks.map(|blocks| blocks.iter().filter_map(range).collect()).unwrap_or_default()
    }

    /// Number of passive ports of each running node; a node that owns none counts as 0.
    pub fn shares(&self) -> Vec<u32> {
        let running = (0..self.size()).filter(|position| self.nodes[*position].is_some());
        running.map(|position| self.blocks_of(position).iter().map(|block| block.count()).sum()).collect()
    }

    /// A session of `demo` on a node that the balancer chooses.
    pub fn login(&self) -> Dialogue {
        self.login_from(&Connector::new())
    }

    /// A session of `demo` from a chosen address.
    pub fn login_from(&self, connector: &Connector) -> Dialogue {
        let mut dialogue = Dialogue::connect_with(connector, self.address());
        dialogue.login("demo", "secret");
        dialogue
    }

    /// A session of `demo` on the node at `position`. Connects until the balancer chooses that node.
    pub fn login_through(&self, position: usize) -> Dialogue {
        self.session_through(position, &Connector::new(), "demo")
    }

    /// A session of `user` on the node at `position`.
    pub fn session_through(&self, position: usize, connector: &Connector, user: &str) -> Dialogue {
        eventually(&format!("the balancer to choose node {position}"), || {
            let mut dialogue = Dialogue::connect_with(connector, self.address());
            dialogue.login(user, "secret");
            let port = dialogue.epsv();
            if self.node_of(port) == position {
                return Some(dialogue);
            }
            dialogue.quit();
            None
        })
    }

    fn node_builder(&self, position: usize) -> NodeBuilder {
        let configuration = &self.configuration;
        let host = FIRST_NODE + position as u8;
        let name = node_name(position);
        let redis = self.wires.get(position).map_or(self.loopback.socket(REDIS, 6379), Wire::address);
        let authd = format!("http://{}", self.loopback.socket(AUTHD, 5160));
        let external = self.loopback.address(BALANCER);
        let (from, to) = (self.passive.from(), self.passive.to());
        let mut node = NodeBuilder::new(Arc::clone(&self.loopback), Arc::clone(&self.storage), &name, host)
            .setting("create_homes", true)
            // All nodes are on this host, so file locks hold on all of them, on every file system.
            .setting("storage_locks", "cluster")
            .setting("authd_token_file", self.token.path().join("node-token").display());
        node = if configuration.is_leased {
            // The greeting tells tests on which node a session is.
            node.setting("node_address", self.loopback.address(host)).setting("greeting", &name)
        } else {
            let names: Vec<String> = (0..configuration.nodes).map(node_name).collect();
            node.setting("cluster_nodes", names.join(","))
        };
        node = if configuration.reference_variables {
            node.variable("FtpExternalIP", external)
                .variable("FtpBehindProxy", true)
                .variable("port", CONTROL_PORT)
                .variable("FtpPasvMinPort", from)
                .variable("FtpPasvMaxPort", to)
                .variable("RedisConnectionString", redis)
                .variable("authservice", authd)
        } else {
            node.setting("external_address", external)
                // nginx connects to the nodes from this address. Clients have other addresses.
                .setting("trusted_balancers", "127.0.0.1/32")
                .setting("port", CONTROL_PORT)
                .setting("passive_port_min", from)
                .setting("passive_port_max", to)
                .setting("authd_urls", authd)
        };
        if let Some((_, hang)) = configuration.hang.as_ref().filter(|(hanging, _)| *hanging == position) {
            node = node.hanging(hang);
        }
        if configuration.registry.is_none() && !configuration.reference_variables {
            node = node.setting("redis_url", redis);
        }
        configuration.settings.iter().fold(node, |node, (key, value)| node.setting(key, value))
    }
}

fn node_name(position: usize) -> String {
    format!("ftp{}", position + 1)
}

impl ClusterBuilder {
    /// Sets the number of nodes.
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// Sets the number of passive ports of all nodes together.
    pub fn passive_ports(mut self, ports: u16) -> Self {
        self.passive_ports = ports;
        self
    }

    /// Sets a setting of every node.
    pub fn setting(mut self, key: &str, value: impl ToString) -> Self {
        self.settings.push((key.to_owned(), value.to_string()));
        self
    }

    /// Sets a setting of authd.
    pub fn authd_setting(mut self, key: &str, value: impl ToString) -> Self {
        self.authd_settings.push((key.to_owned(), value.to_string()));
        self
    }

    /// Uses this users file (TOML) instead of the demo users.
    pub fn users(mut self, toml: &str) -> Self {
        self.users = Some(toml.to_owned());
        self
    }

    /// Configures the parts by the environment variables of the reference system, where they exist.
    pub fn reference_variables(mut self) -> Self {
        self.reference_variables = true;
        self
    }

    /// Gives all nodes this certificate, with explicit and implicit FTPS.
    pub fn certificate(mut self, files: &CertificateFiles) -> Self {
        self.encrypted = true;
        self.setting("tls_certificates", files.chain.display())
            .setting("tls_keys", files.key.display())
            .setting("implicit_tls_port", IMPLICIT_PORT)
    }

    /// Chooses the parts to which clients connect.
    pub fn doors(mut self, kind: DoorKind) -> Self {
        self.doors = kind;
        self
    }

    /// Leaves out the balancer: clients connect to the nodes.
    pub fn without_balancer(self) -> Self {
        self.doors(DoorKind::Nodes)
    }

    /// The nodes lease blocks of passive ports. Without this, they have slices by their place in a list.
    pub fn leased(mut self) -> Self {
        self.is_leased = true;
        self
    }

    /// Adds nodes that the balancer knows and that do not run at first, to a cluster of [`Self::leased`];
    /// see [`Cluster::restart_node`].
    pub fn spare_nodes(mut self, nodes: usize) -> Self {
        self.spare_nodes = nodes;
        self
    }

    /// Gives each node a separate [`Wire`] to Redis, which a test can cut.
    pub fn wires(mut self) -> Self {
        self.wires = true;
        self
    }

    /// Uses a Redis that the test has started: the settings of all parts that lead to it.
    pub fn registry(mut self, settings: Vec<(String, String)>) -> Self {
        self.settings.extend(settings.clone());
        self.authd_settings.extend(settings.clone());
        self.registry = Some(settings);
        self
    }

    /// Makes a directory hang for the node at `position`.
    pub fn hanging(mut self, position: usize, hang: &Arc<Hang>) -> Self {
        self.hang = Some((position, Arc::clone(hang)));
        self
    }

    /// Starts all parts and waits until each serves.
    ///
    /// # Panics
    /// A part does not serve in time.
    pub fn start(self) -> Cluster {
        let loopback = Arc::new(Loopback::reserve());
        let size = self.nodes + self.spare_nodes;
        let passive = PortRange::new(20000, 20000 + self.passive_ports - 1).expect("a range of ports");
        let balancer = Balancer {
            address: loopback.address(BALANCER),
            control_port: CONTROL_PORT,
            nodes: (0..size)
                .map(|position| {
                    let slice = passive.slice(position, size).expect("there are ports for all nodes");
                    (node_name(position), loopback.address(FIRST_NODE + position as u8), slice)
                })
                .collect(),
            node_port: CONTROL_PORT,
            implicit_port: self.encrypted.then_some(IMPLICIT_PORT),
        };
        let redis = self.registry.is_none().then(|| Redis::start(loopback.socket(REDIS, 6379)));
        let authd = self.authd(&loopback).start();
        let token = tempfile::tempdir().expect("a temporary directory");
        fs::write(token.path().join("node-token"), NODE_TOKEN).expect("a temporary directory takes files");
        let mut cluster = Cluster {
            doors: Doors::default(),
            nodes: Vec::new(),
            wires: Vec::new(),
            authd: Some(authd),
            redis,
            passive,
            token,
            storage: Arc::new(tempfile::tempdir().expect("a temporary directory")),
            configuration: self,
            loopback,
        };
        if cluster.configuration.wires {
            let redis = cluster.loopback.socket(REDIS, 6379);
            let wire = |position| cluster.loopback.socket(FIRST_WIRE + position as u8, 6379);
            cluster.wires = (0..size).map(|i| Wire::start(wire(i), redis)).collect();
        }
        let running = cluster.configuration.nodes;
        cluster.nodes = (0..running).map(|i| Some(cluster.node_builder(i).spawn())).collect();
        for position in 0..running {
            cluster.node(position).daemon.wait_for_message("ready", &[]);
        }
        cluster.nodes.resize_with(size, || None);
        // The balancer starts last: nginx avoids a node for a while after a failed connection.
        let relay = cluster.relay_builder(BALANCER);
        cluster.doors = Doors::start(cluster.configuration.doors, &balancer, passive, relay);
        cluster
    }

    fn authd(&self, loopback: &Loopback) -> AuthdBuilder {
        let mut authd = AuthdBuilder::new(loopback.socket(AUTHD, 5160));
        authd = match &self.users {
            Some(users) => authd.users(users),
            None => authd.setting("demo", true),
        };
        let redis = loopback.socket(REDIS, 6379);
        authd = match self.reference_variables {
            true => authd.variable("RedisConnectionString", redis),
            false if self.registry.is_some() => authd,
            false => authd.setting("redis_url", redis),
        };
        self.authd_settings.iter().fold(authd, |authd, (key, value)| authd.setting(key, value))
    }
}
