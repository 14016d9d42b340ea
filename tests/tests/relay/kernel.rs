//! The relay that fills the kernel's map of owners. Clients, balancer and nodes are network namespaces.

use std::{
    env, fs,
    io::Read,
    net::{IpAddr, SocketAddr, TcpStream},
    process::Command,
};

use cluster_tests::{
    binaries,
    content::bytes,
    dialogue::Dialogue,
    eventually,
    kernel_path::{OWNERS, OtherForwarding, replies_script},
    network::{Host, Network, with_own_network},
    nginx::Balancer,
    process::Daemon,
    relay::{Relay, RelayBuilder},
};
use tempfile::TempDir;

/// The passive range of both nodes together.
const RANGE: (u16, u16) = (50000, 50019);

fn public(host: u8) -> IpAddr {
    [203, 0, 113, host].into()
}

fn inside(host: u8) -> IpAddr {
    [10, 0, 0, host].into()
}

/// Two nodes and a balancer with Redis, the relay and the kernel's data path. The nodes have slices of their
/// own, so that they need no authd.
struct ElasticPath {
    balancer: Host,
    client: Host,
    nodes: Vec<(Host, Daemon)>,
    relay: Relay,
    _redis: Daemon,
    home: TempDir,
    rules: String,
}

impl ElasticPath {
    fn start() -> Self {
        let (outside_net, inside_net) = (Network::new("public"), Network::new("inside"));
        let (balancer, client) = (Host::new("lb"), Host::new("client"));
        balancer.connect("public", &outside_net, &[(public(10), 24)]);
        balancer.connect("inside", &inside_net, &[(inside(10), 24)]);
        balancer.run("sysctl", &["-qw", "net.ipv4.conf.all.forwarding=1"]);
        client.connect("eth0", &outside_net, &[(public(50), 24)]);
        let mut redis = Command::new("redis-server");
        redis.args(["--bind", "10.0.0.10", "--port", "6379", "--save", "", "--protected-mode", "no"]);
        balancer.place(&mut redis);
        let redis = Daemon::start("redis", redis);
        balancer.enter(|| eventually("Redis", || TcpStream::connect((inside(10), 6379)).ok()));

        let home = tempfile::tempdir().unwrap();
        let nodes: Vec<_> = (0..2).map(|position| node(position, &inside_net, &home)).collect();
        let slice = |position: u16| {
            let from = RANGE.0 + 10 * position;
            format!("{from}-{}", from + 9).parse().unwrap()
        };
        let rules = Balancer {
            address: public(10),
            control_port: 21,
            nodes: (0..2).map(|i| (format!("ftp{}", i + 1), inside(11 + i as u8), slice(i))).collect(),
            node_port: 21,
            implicit_port: None,
        };
        let rules = rules.elastic_data_path_rules(OtherForwarding::Drop);
        let path =
            Self { relay: relay().spawn_on(&balancer), balancer, client, nodes, _redis: redis, home, rules };
        path.relay.daemon.wait_for_message("ready", &[]);
        path
    }

    fn load_rules(&self) {
        let file = self.home.path().join("rules.nft");
        fs::write(&file, &self.rules).unwrap();
        self.balancer.run("nft", &["-f", file.to_str().unwrap()]);
    }

    /// The elements of the kernel's map.
    fn owners(&self) -> String {
        let words: Vec<&str> = ["list", "map"].into_iter().chain(OWNERS.split(' ')).collect();
        let text = self.balancer.run("nft", &words);
        let elements = text.split_once("elements = {").and_then(|(_, rest)| rest.split_once('}'));
        let elements =
            elements.map(|(elements, _)| elements.split_whitespace().collect::<Vec<_>>().join(" "));
        elements.unwrap_or_default()
    }

    fn wait_for_owners(&self, wanted: &str) {
        eventually(&format!("the owners {wanted:?}"), || (self.owners() == wanted).then_some(()));
    }

    /// Bytes that the kernel has carried to a node.
    fn carried(&self, node: &str) -> u64 {
        let text =
            self.balancer.run("nft", &["list", "counter", "inet", "ftp_data_path", &format!("to_{node}")]);
        let count = text.split("bytes ").nth(1).and_then(|rest| rest.split_whitespace().next());
        count.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no byte count in: {text}"))
    }

    /// Uploads and downloads a file on both nodes, through the relay's control port.
    fn transfer(&self) {
        let content = bytes(1, 1 << 20);
        self.client.enter(|| {
            for _ in 0..2 {
                let mut session = Dialogue::connect(SocketAddr::from((public(10), 21)));
                session.login("demo", "secret");
                session.store("file", &content);
                assert!(session.retrieve("file") == content);
                session.quit();
            }
        });
    }

    /// Data connections that the relay has carried.
    fn relayed(&self) -> f64 {
        let carried = |node| self.metric(&format!("ftp_relayed_total{{to=\"{node}\"}}")).unwrap_or(0.0);
        carried("ftp1") + carried("ftp2")
    }

    fn metric(&self, name: &str) -> Option<f64> {
        self.balancer.enter(|| self.relay.metric(name))
    }
}

fn relay() -> RelayBuilder {
    let relay = RelayBuilder::new(inside(10), (inside(10), 6379).into()).passive_ports(RANGE.0, RANGE.1);
    let relay = relay.setting("listen", "0.0.0.0").setting("control_port", 21).setting("nft_map", OWNERS);
    relay.setting("map_refresh", "500ms").variable("PATH", env::var("PATH").unwrap())
}

/// Starts a node with its route for the replies.
fn node(position: u8, network: &Network, home: &TempDir) -> (Host, Daemon) {
    let host = Host::new("node");
    let address = inside(11 + position);
    host.connect("eth0", network, &[(address, 24)]);
    let from = RANGE.0 + 10 * u16::from(position);
    let mut command = Command::new(binaries::daemon("ftpd"));
    command.args(["--standalone", "true", "--user", "demo:secret", "--port", "21"]);
    command.args(["--node-name", &format!("ftp{}", position + 1), "--listen", &address.to_string()]);
    command.arg("--root").arg(home.path()).args(["--redis-url", "10.0.0.10:6379"]);
    command.args(["--passive-port-min", &from.to_string(), "--passive-port-max", &(from + 9).to_string()]);
    command.args(["--trusted-balancers", "10.0.0.10/32", "--node-lease", "3s"]);
    host.place(&mut command);
    let daemon = Daemon::start("ftpd", command);
    daemon.wait_for_message("ready", &[]);
    let ports = format!("{}-{}", RANGE.0, RANGE.1);
    let script = replies_script();
    let arguments = ["add", &address.to_string(), &ports, "10.0.0.10", "10.0.0.10"];
    host.run(script.to_str().unwrap(), &arguments);
    (host, daemon)
}

/// The module has its own name, because builders without namespaces (nix/package.nix) skip it.
mod own_network {
    use super::*;

    #[test]
    fn the_kernels_map_follows_the_registry_and_the_relay_carries_what_the_kernel_does_not() {
        let name = "relay::kernel::own_network::\
                    the_kernels_map_follows_the_registry_and_the_relay_carries_what_the_kernel_does_not";
        with_own_network(name, || {
            let mut path = ElasticPath::start();
            // The table does not exist yet: the relay says so and carries the data.
            path.relay.daemon.wait_for_message("cannot write the nftables map", &[("setting", "nft_map")]);
            path.transfer();
            assert_eq!(path.relayed(), 4.0);
            path.load_rules();
            let both = "50000-50009 : 10.0.0.11, 50010-50019 : 10.0.0.12";
            path.wait_for_owners(both);
            path.relay.daemon.wait_for_message("the nftables map has the owners of the passive ports", &[]);
            path.transfer();
            assert_eq!(path.relayed(), 4.0, "the kernel carries all data");
            for node in ["ftp1", "ftp2"] {
                assert!(path.carried(node) > 1 << 20, "{node}");
            }
            // Another program empties the map.
            let words: Vec<&str> = ["flush", "map"].into_iter().chain(OWNERS.split(' ')).collect();
            path.balancer.run("nft", &words);
            path.wait_for_owners(both);
            // A node that leaves disappears from the map, and its successor comes back.
            path.nodes.remove(1).1.stop();
            path.wait_for_owners("50000-50009 : 10.0.0.11");
            path.client.enter(|| {
                let mut session = Dialogue::connect(SocketAddr::from((public(10), 21)));
                session.login("demo", "secret");
                let mut data = session.begin("RETR file");
                let mut received = Vec::new();
                data.read_to_end(&mut received).unwrap();
                assert!(received == bytes(1, 1 << 20));
                session.expect(226);
            });
        });
    }
}
