//! The data path in the balancer's kernel: clients, balancer and nodes are hosts in network namespaces,
//! with the real firewall rules, routes, nginx and ftpd.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    process::Command,
    time::{Duration, Instant},
};

use cluster_tests::{
    binaries,
    content::bytes,
    cut_uploads::CutUploads,
    dialogue::{Dialogue, read_exactly},
    eventually,
    kernel_path::{OtherForwarding, replies_script},
    network::{Host, Network, with_own_network},
    nginx::Balancer,
    process::Daemon,
};
use common::node::PortRange;
use nix::sys::signal::Signal;
use tempfile::TempDir;

/// The passive range. A client needs many ports of it, because it opens sessions and asks for passive ports
/// until nginx has chosen the wanted node.
const RANGE: (u16, u16) = (50000, 50080);

/// Two nodes behind a balancer. Clients know only the balancer. The default gateway of the nodes does not
/// exist.
struct TestNetwork {
    balancer: Balancer,
    balancer_host: Host,
    client: Host,
    stranger: Host,
    nodes: Vec<(Host, Daemon)>,
    homes: Vec<TempDir>,
    _nginx: Daemon,
    directory: TempDir,
}

/// Returns the addresses of `host` in the public network of the clients and in the network of the nodes.
type AddressPlan = fn(host: u8) -> (IpAddr, IpAddr);

fn v4(host: u8) -> (IpAddr, IpAddr) {
    ([203, 0, 113, host].into(), [10, 0, 0, host].into())
}

fn v6(host: u8) -> (IpAddr, IpAddr) {
    let address = |first, second| IpAddr::from([first, second, 0, 0, 0, 0, 0, host.into()]);
    (address(0x2001, 0xdb8), address(0xfd00, 0))
}

/// Clients have IPv6 addresses, nodes have IPv4 addresses.
fn mixed(host: u8) -> (IpAddr, IpAddr) {
    (v6(host).0, v4(host).1)
}

fn prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 24 } else { 64 }
}

impl TestNetwork {
    fn start(plan: AddressPlan) -> Self {
        let (public, inside) = (Network::new("public"), Network::new("inside"));
        let at = |address: IpAddr| [(address, prefix(address))];
        let (balancer_host, client, stranger) = (Host::new("lb"), Host::new("client"), Host::new("stranger"));
        balancer_host.connect("public", &public, &at(plan(10).0));
        balancer_host.connect("inside", &inside, &at(plan(10).1));
        client.connect("eth0", &public, &at(plan(50).0));
        stranger.connect("eth0", &public, &at(plan(51).0));
        balancer_host
            .run("sysctl", &["-qw", "net.ipv4.conf.all.forwarding=1", "net.ipv6.conf.all.forwarding=1"]);

        let range = PortRange::new(RANGE.0, RANGE.1).unwrap();
        let balancer = Balancer {
            address: plan(10).0,
            control_port: 21,
            nodes: (0..2)
                .map(|i| (format!("ftp-{}", i + 1), plan(11 + i).1, range.slice(i.into(), 2).unwrap()))
                .collect(),
            node_port: 21,
            implicit_port: None,
        };
        let homes: Vec<_> = balancer.nodes.iter().map(|_| tempfile::tempdir().unwrap()).collect();
        let nodes = balancer.nodes.iter().zip(&homes).map(|((name, address, slice), home)| {
            let host = Host::new("node");
            host.connect("eth0", &inside, &at(*address));
            let family = if address.is_ipv4() { "-4" } else { "-6" };
            let nowhere = plan(254).1.to_string();
            host.run("ip", &[family, "route", "add", "default", "via", &nowhere]);
            // The data path must also work with the kernel's strict check of return paths.
            host.run("sysctl", &["-qw", "net.ipv4.conf.all.rp_filter=1"]);
            let mut command = Command::new(binaries::daemon("ftpd"));
            command.args(["--standalone", "true", "--user", "demo:secret", "--port", "21"]);
            command.args(["--node-name", name, "--listen", &address.to_string()]);
            command.arg("--root").arg(home.path());
            command.args(["--passive-port-min", &slice.from().to_string()]);
            command.args(["--passive-port-max", &slice.to().to_string()]);
            let trusted = plan(10).1;
            let full_length = if trusted.is_ipv4() { 32 } else { 128 };
            command.args(["--trusted-balancers", &format!("{trusted}/{full_length}")]);
            host.place(&mut command);
            (host, Daemon::start(name, command))
        });
        let nodes: Vec<_> = nodes.collect();
        for (_, ftpd) in &nodes {
            ftpd.wait_for_message("ready", &[]);
        }

        let directory = tempfile::tempdir().unwrap();
        let configuration = directory.path().join("nginx.conf");
        fs::write(&configuration, balancer.configuration(directory.path())).unwrap();
        let mut nginx = Command::new("nginx");
        nginx.arg("-p").arg(directory.path()).arg("-c").arg(configuration);
        // root is the only user of this user namespace.
        nginx.args(["-e", "stderr", "-g", "daemon off; user root root;"]);
        balancer_host.place(&mut nginx);
        let nginx = Daemon::start_ending_with("nginx", nginx, Signal::SIGTERM);
        let network =
            Self { balancer, balancer_host, client, stranger, nodes, homes, _nginx: nginx, directory };
        let control = SocketAddr::from((network.balancer.address, 21));
        network.client.enter(|| eventually("nginx to listen", || TcpStream::connect(control).ok()));
        network.nft(&network.balancer.urgent_data_rules());
        network.load(&network.balancer, OtherForwarding::Drop);
        for position in 0..2 {
            network.route_replies(position, "add");
        }
        network
    }

    /// Replaces the firewall rules by those of `balancer`.
    fn load(&self, balancer: &Balancer, other: OtherForwarding) {
        self.nft(&balancer.data_path_rules(other));
    }

    fn nft(&self, rules: &str) {
        let file = self.directory.path().join("rules.nft");
        fs::write(&file, rules).unwrap();
        self.balancer_host.run("nft", &["-f", file.to_str().unwrap()]);
    }

    fn replies(&self, position: usize, action: &str) -> Command {
        let (_, address, slice) = &self.balancer.nodes[position];
        let inside = if address.is_ipv4() { v4(10).1 } else { v6(10).1 }.to_string();
        let mut command = Command::new(replies_script());
        command.args([action, &address.to_string(), &slice.to_string(), &inside, &inside]);
        self.nodes[position].0.place(&mut command);
        command
    }

    fn route_replies(&self, position: usize, action: &str) {
        let output = self.replies(position, action).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    }

    fn control(&self) -> SocketAddr {
        (self.balancer.address, 21).into()
    }

    /// Opens a session on the node at `position`. Must be called on a client's host.
    fn session(&self, position: usize) -> Dialogue {
        let (_, _, slice) = &self.balancer.nodes[position];
        eventually("the balancer to choose the node", || {
            let mut dialogue = Dialogue::connect(self.control());
            dialogue.login("demo", "secret");
            slice.iter().any(|port| port == dialogue.epsv().port()).then_some(dialogue)
        })
    }

    /// Bytes that the kernel has forwarded to a node (`to`) or from it (`from`).
    fn counted(&self, direction: &str, position: usize) -> u64 {
        let name = format!("{direction}_{}", self.balancer.nodes[position].0);
        let text = self.balancer_host.run("nft", &["list", "counter", "inet", "ftp_data_path", &name]);
        let count = text.split("bytes ").nth(1).and_then(|rest| rest.split_whitespace().next());
        count.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no byte count in: {text}"))
    }

    /// Number of ended data connections that nginx has carried.
    fn through_nginx(&self) -> usize {
        let log = fs::read_to_string(self.directory.path().join("access.log")).unwrap();
        log.lines().filter(|line| line.split_once(" -> ").unwrap().0.contains(":500")).count()
    }

    /// Checks that an uploaded file comes back unchanged on every node, with EPSV, and with PASV if the
    /// balancer has an IPv4 address.
    fn check_transfers(&self) {
        let content = bytes(7, 3 << 20);
        for position in 0..2 {
            let mut session = self.session(position);
            session.store("file", &content);
            assert_eq!(fs::read(self.homes[position].path().join("file")).unwrap(), content);
            assert!(session.retrieve("file") == content);
            if self.balancer.address.is_ipv4() {
                let address = session.pasv();
                assert_eq!(address.ip(), self.balancer.address);
                let mut data = session.data_connection(address);
                session.command("RETR file", 150);
                let mut received = Vec::new();
                data.read_to_end(&mut received).unwrap();
                session.expect(226);
                assert!(received == content);
            }
            session.quit();
        }
    }

    /// Checks that transfers work and that the kernel forwards their data, without nginx.
    fn check_that_kernel_carries_data(&self) {
        self.client.enter(|| self.check_transfers());
        assert_eq!(self.through_nginx(), 0);
        for position in 0..2 {
            for direction in ["to", "from"] {
                let bytes = self.counted(direction, position);
                assert!(bytes > 3 << 20, "{direction} {position}: {bytes}");
            }
        }
    }
}

/// Returns true if a connection succeeds within 700 ms.
fn reaches(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_millis(700)).is_ok()
}

/// The module has its own name, because builders without namespaces (nix/package.nix) skip it.
mod own_network {
    use super::*;

    #[test]
    fn data_goes_through_the_kernel_and_the_node_sees_the_client_address() {
        with_own_network(
            "own_network::data_goes_through_the_kernel_and_the_node_sees_the_client_address",
            || {
                let network = TestNetwork::start(v4);
                // The node sees the client's address: it would close a data connection from another address
                // than the control connection's, and one from the balancer without a PROXY header.
                network.check_that_kernel_carries_data();

                // Without the route for its slice, the node's packets do not come back to the balancer.
                for position in 0..2 {
                    network.route_replies(position, "remove");
                }
                let (_, _, slice) = &network.balancer.nodes[0];
                let port = slice.from();
                assert!(!network.client.enter(|| reaches((network.balancer.address, port).into())));
                let left = network.nodes[0].0.run("ip", &["rule"])
                    + &network.nodes[0].0.run("ip", &["route", "show", "table", "all"]);
                assert!(!left.contains("5021"), "{left}");

                // Adding a route twice has the same effect as adding it once. The `keep` action restores the
                // route after the interface goes down and up.
                network.route_replies(0, "add");
                network.route_replies(0, "add");
                let host = &network.nodes[0].0;
                assert_eq!(host.run("ip", &["rule"]).matches("5021").count(), 2);
                let keeper = Daemon::start("replies.sh", network.replies(0, "keep"));
                host.run("ip", &["link", "set", "eth0", "down"]);
                host.run("ip", &["link", "set", "eth0", "up"]);
                eventually("the route through the balancer", || {
                    network.client.enter(|| reaches((network.balancer.address, port).into())).then_some(())
                });
                drop(keeper);
            },
        );
    }

    #[test]
    fn ipv6_goes_through_the_kernel_like_ipv4() {
        with_own_network("own_network::ipv6_goes_through_the_kernel_like_ipv4", || {
            TestNetwork::start(v6).check_that_kernel_carries_data()
        });
    }

    #[test]
    fn nginx_carries_data_that_the_kernel_cannot_translate() {
        with_own_network("own_network::nginx_carries_data_that_the_kernel_cannot_translate", || {
            // The kernel cannot translate addresses between IPv6 and IPv4.
            let network = TestNetwork::start(mixed);
            network.client.enter(|| network.check_transfers());
            eventually("nginx to log the connections", || (network.through_nginx() >= 4).then_some(()));
        });
    }

    #[test]
    fn without_the_rules_nginx_carries_all_data() {
        with_own_network("own_network::without_the_rules_nginx_carries_all_data", || {
            let network = TestNetwork::start(v4);
            network.balancer_host.run("nft", &["flush", "chain", "inet", "ftp_data_path", "to_owner"]);
            network.client.enter(|| network.check_transfers());
            network.balancer_host.run("nft", &["delete", "table", "inet", "ftp_data_path"]);
            network.client.enter(|| network.check_transfers());
            eventually("nginx to log the connections", || (network.through_nginx() >= 12).then_some(()));
        });
    }

    #[test]
    fn no_reset_upload_gets_226() {
        with_own_network("own_network::no_reset_upload_gets_226", || {
            let network = TestNetwork::start(v4);
            let session = || {
                let mut session = Dialogue::connect(network.control());
                session.login("demo", "secret");
                session
            };
            let uploads = CutUploads {
                session: &session,
                door: &|address| address,
                homes: network.homes.iter().map(|home| home.path().to_owned()).collect(),
                sessions: 20,
                resets: 1000,
            };
            let replies = network.client.enter(|| uploads.run());
            assert_eq!(replies.resets, 1000);
            assert!(replies.confirmed.is_empty(), "{:#?}", replies.confirmed);
            assert_eq!(network.through_nginx(), 0);
        });
    }

    #[test]
    fn a_data_connection_from_another_address_gets_nothing() {
        with_own_network("own_network::a_data_connection_from_another_address_gets_nothing", || {
            let network = TestNetwork::start(v4);
            let content = bytes(8, 100_000);
            let mut session = network.client.enter(|| {
                let mut session = network.session(0);
                session.store("file", &content);
                session
            });
            let address = session.epsv();
            let stolen = network.stranger.enter(|| {
                let mut stolen = TcpStream::connect(address).unwrap();
                stolen.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                let mut received = Vec::new();
                match stolen.read_to_end(&mut received) {
                    Ok(_) => {}
                    Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
                }
                received
            });
            assert!(stolen.is_empty());
            // The client's own connection still succeeds.
            let received = network.client.enter(|| {
                let mut data = session.data_connection(address);
                session.command("RETR file", 150);
                read_exactly(&mut data, content.len())
            });
            assert!(received == content);
            session.expect(226);
        });
    }

    #[test]
    fn new_rules_do_not_interrupt_a_transfer_even_if_they_omit_its_node() {
        with_own_network(
            "own_network::new_rules_do_not_interrupt_a_transfer_even_if_they_omit_its_node",
            || {
                let network = TestNetwork::start(v4);
                let content = bytes(9, 16 << 20);
                fs::write(network.homes[0].path().join("file"), &content).unwrap();
                let (mut session, mut data) = network.client.enter(|| {
                    let mut session = network.session(0);
                    session.command("TYPE I", 200);
                    let data = session.begin("RETR file");
                    (session, data)
                });
                let mut received = read_exactly(&mut data, 1 << 20);
                let mut smaller = network.balancer.clone();
                smaller.nodes.remove(0);
                network.load(&smaller, OtherForwarding::Drop);
                received.extend(read_exactly(&mut data, 15 << 20));
                assert!(received == content);
                session.expect(226);
                // nginx carries the next connection to that slice.
                let again = network.client.enter(|| session.retrieve("file"));
                assert!(again == content);
                eventually("nginx to log the connections", || (network.through_nginx() == 1).then_some(()));
            },
        );
    }

    #[test]
    fn the_balancer_forwards_data_connections_and_nothing_else() {
        with_own_network("own_network::the_balancer_forwards_data_connections_and_nothing_else", || {
            let network = TestNetwork::start(v4);
            let (_, node, slice) = network.balancer.nodes[0].clone();
            // A client uses the balancer as a router, and the node has a route back.
            network.client.run("ip", &["route", "add", "10.0.0.0/24", "via", "203.0.113.10"]);
            network.nodes[0].0.run("ip", &["route", "add", "203.0.113.0/24", "via", "10.0.0.10"]);
            let control = (node, 21).into();
            let data = (node, slice.from()).into();
            assert!(!network.client.enter(|| reaches(control) || reaches(data)));
            // The balancer does not forward connections from a node to the client either.
            let listener = network.client.enter(|| std::net::TcpListener::bind("203.0.113.50:7000").unwrap());
            let outward = listener.local_addr().unwrap();
            assert!(!network.nodes[0].0.enter(|| reaches(outward)));

            // With `Accept` the balancer forwards other traffic, but not to passive ports of nodes.
            network.load(&network.balancer, OtherForwarding::Accept);
            assert!(network.client.enter(|| reaches(control)));
            assert!(network.nodes[0].0.enter(|| reaches(outward)));
            assert!(!network.client.enter(|| reaches(data)));
            network.client.enter(|| network.check_transfers());
        });
    }

    #[test]
    fn an_abor_with_urgent_data_arrives_through_nginx() {
        with_own_network("own_network::an_abor_with_urgent_data_arrives_through_nginx", || {
            let network = TestNetwork::start(v4);
            fs::write(network.homes[0].path().join("file"), bytes(10, 16 << 20)).unwrap();
            network.client.enter(|| {
                let mut session = network.session(0);
                session.command("TYPE I", 200);
                let start = Instant::now();
                for round in 0..40 {
                    let _data = session.begin("RETR file");
                    // Like lftp and BSD clients: IAC IP IAC with the last byte urgent, then DM and ABOR.
                    session.send_urgent(b"\xff\xf4\xff");
                    session.control().write_all(b"\xf2ABOR\r\n").unwrap();
                    let reply = session.try_reply(Duration::from_secs(5));
                    let reply = reply.unwrap_or_else(|error| panic!("round {round}: {error}")).unwrap();
                    assert_eq!(reply.code, 426);
                    session.expect(226);
                }
                assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
            });
            let rules =
                network.balancer_host.run("nft", &["list", "chain", "inet", "ftp_urgent_data", "control"]);
            assert!(!rules.contains("packets 0 "), "no packet was urgent: {rules}");
        });
    }
}
