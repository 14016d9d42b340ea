//! The data path in the balancer's kernel: clients, balancer and nodes as hosts on networks, with the
//! real rules and routes, nginx and ftpd.

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

/// So wide that a client that asks for ports until it has found its node is not short of them.
const RANGE: (u16, u16) = (50000, 50080);

/// Two nodes behind a balancer. Clients know the balancer only; the nodes' ordinary gateway is a
/// host that does not exist.
struct World {
    balancer: Balancer,
    lb: Host,
    client: Host,
    stranger: Host,
    nodes: Vec<(Host, Daemon)>,
    homes: Vec<TempDir>,
    _nginx: Daemon,
    directory: TempDir,
}

/// Where clients are, and where nodes are: `host` in either network.
type Plan = fn(host: u8) -> (IpAddr, IpAddr);

fn v4(host: u8) -> (IpAddr, IpAddr) {
    ([203, 0, 113, host].into(), [10, 0, 0, host].into())
}

fn v6(host: u8) -> (IpAddr, IpAddr) {
    let address = |first, second| IpAddr::from([first, second, 0, 0, 0, 0, 0, host.into()]);
    (address(0x2001, 0xdb8), address(0xfd00, 0))
}

/// Clients' addresses are IPv6, the nodes have IPv4 only.
fn mixed(host: u8) -> (IpAddr, IpAddr) {
    (v6(host).0, v4(host).1)
}

fn prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 24 } else { 64 }
}

impl World {
    fn start(plan: Plan) -> Self {
        let (public, inside) = (Network::new("public"), Network::new("inside"));
        let at = |address: IpAddr| [(address, prefix(address))];
        let (lb, client, stranger) = (Host::new("lb"), Host::new("client"), Host::new("stranger"));
        lb.connect("public", &public, &at(plan(10).0));
        lb.connect("inside", &inside, &at(plan(10).1));
        client.connect("eth0", &public, &at(plan(50).0));
        stranger.connect("eth0", &public, &at(plan(51).0));
        lb.run("sysctl", &["-qw", "net.ipv4.conf.all.forwarding=1", "net.ipv6.conf.all.forwarding=1"]);

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
            // The kernel's own check of return paths does not stand in the way.
            host.run("sysctl", &["-qw", "net.ipv4.conf.all.rp_filter=1"]);
            let mut command = Command::new(binaries::daemon("ftpd"));
            command.args(["--standalone", "true", "--user", "demo:secret", "--port", "21"]);
            command.args(["--node-name", name, "--listen", &address.to_string()]);
            command.arg("--root").arg(home.path());
            command.args(["--passive-port-min", &slice.from().to_string()]);
            command.args(["--passive-port-max", &slice.to().to_string()]);
            let trusted = plan(10).1;
            let whole = if trusted.is_ipv4() { 32 } else { 128 };
            command.args(["--trusted-balancers", &format!("{trusted}/{whole}")]);
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
        // There is no other user here than root.
        nginx.args(["-e", "stderr", "-g", "daemon off; user root root;"]);
        lb.place(&mut nginx);
        let nginx = Daemon::start_ending_with("nginx", nginx, Signal::SIGTERM);
        let world = Self { balancer, lb, client, stranger, nodes, homes, _nginx: nginx, directory };
        let control = SocketAddr::from((world.balancer.address, 21));
        world.client.enter(|| eventually("nginx to listen", || TcpStream::connect(control).ok()));
        world.nft(&world.balancer.urgent_data_rules());
        world.load(&world.balancer, OtherForwarding::Drop);
        for position in 0..2 {
            world.route_replies(position, "add");
        }
        world
    }

    /// Loads the data path of a balancer, in place of the one that is there.
    fn load(&self, balancer: &Balancer, other: OtherForwarding) {
        self.nft(&balancer.data_path_rules(other));
    }

    fn nft(&self, rules: &str) {
        let file = self.directory.path().join("rules.nft");
        fs::write(&file, rules).unwrap();
        self.lb.run("nft", &["-f", file.to_str().unwrap()]);
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

    /// A session through the node at `position`. Called on a client's host.
    fn session(&self, position: usize) -> Dialogue {
        let (_, _, slice) = &self.balancer.nodes[position];
        eventually("the balancer to choose the node", || {
            let mut dialogue = Dialogue::connect(self.control());
            dialogue.login("demo", "secret");
            slice.iter().any(|port| port == dialogue.epsv().port()).then_some(dialogue)
        })
    }

    /// Bytes that the kernel has passed on to (`to`) or from (`from`) a node.
    fn counted(&self, direction: &str, position: usize) -> u64 {
        let name = format!("{direction}_{}", self.balancer.nodes[position].0);
        let text = self.lb.run("nft", &["list", "counter", "inet", "ftp_data_path", &name]);
        let count = text.split("bytes ").nth(1).and_then(|rest| rest.split_whitespace().next());
        count.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no bytes in {text}"))
    }

    /// How many data connections nginx has carried, of those that have ended.
    fn through_nginx(&self) -> usize {
        let log = fs::read_to_string(self.directory.path().join("access.log")).unwrap();
        log.lines().filter(|line| line.split_once(" -> ").unwrap().0.contains(":500")).count()
    }

    /// A file comes back as it went, through every node; also with PASV, if that can name the address.
    fn transfers_work(&self) {
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

    fn kernel_carries(&self) {
        self.client.enter(|| self.transfers_work());
        assert_eq!(self.through_nginx(), 0);
        for position in 0..2 {
            for direction in ["to", "from"] {
                let bytes = self.counted(direction, position);
                assert!(bytes > 3 << 20, "{direction} {position}: {bytes}");
            }
        }
    }
}

/// Whether a connection comes about soon.
fn reaches(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_millis(700)).is_ok()
}

/// Apart by name: builders that allow no namespaces (nix/package.nix) skip them.
mod own_network {
    use super::*;

    #[test]
    fn data_goes_through_the_kernel_and_the_node_sees_the_clients_address() {
        with_own_network(
            "own_network::data_goes_through_the_kernel_and_the_node_sees_the_clients_address",
            || {
                let world = World::start(v4);
                // A node would close a connection from another address than the control connection's, which
                // nginx tells it; and one of the balancer's without a PROXY header.
                world.kernel_carries();

                // It is the route for its slice that brings the node's answers back.
                for position in 0..2 {
                    world.route_replies(position, "remove");
                }
                let (_, _, slice) = &world.balancer.nodes[0];
                let port = slice.from();
                assert!(!world.client.enter(|| reaches((world.balancer.address, port).into())));
                let left = world.nodes[0].0.run("ip", &["rule"])
                    + &world.nodes[0].0.run("ip", &["route", "show", "table", "all"]);
                assert!(!left.contains("5021"), "{left}");

                // Twice is as good as once, and an interface that goes down and comes back does not end it.
                world.route_replies(0, "add");
                world.route_replies(0, "add");
                let host = &world.nodes[0].0;
                assert_eq!(host.run("ip", &["rule"]).matches("5021").count(), 2);
                let keeper = Daemon::start("replies.sh", world.replies(0, "keep"));
                host.run("ip", &["link", "set", "eth0", "down"]);
                host.run("ip", &["link", "set", "eth0", "up"]);
                eventually("the way through the balancer", || {
                    world.client.enter(|| reaches((world.balancer.address, port).into())).then_some(())
                });
                drop(keeper);
            },
        );
    }

    #[test]
    fn ipv6_goes_through_the_kernel_like_ipv4() {
        with_own_network("own_network::ipv6_goes_through_the_kernel_like_ipv4", || {
            World::start(v6).kernel_carries()
        });
    }

    #[test]
    fn what_the_kernel_cannot_carry_is_carried_by_nginx() {
        with_own_network("own_network::what_the_kernel_cannot_carry_is_carried_by_nginx", || {
            // Addresses of two families: no rule can translate one into the other.
            let world = World::start(mixed);
            world.client.enter(|| world.transfers_work());
            eventually("nginx to have logged it", || (world.through_nginx() >= 4).then_some(()));
        });
    }

    #[test]
    fn without_the_rules_nginx_carries_everything() {
        with_own_network("own_network::without_the_rules_nginx_carries_everything", || {
            let world = World::start(v4);
            world.lb.run("nft", &["flush", "chain", "inet", "ftp_data_path", "slices"]);
            world.client.enter(|| world.transfers_work());
            world.lb.run("nft", &["delete", "table", "inet", "ftp_data_path"]);
            world.client.enter(|| world.transfers_work());
            eventually("nginx to have logged it", || (world.through_nginx() >= 12).then_some(()));
        });
    }

    #[test]
    fn a_data_connection_from_another_address_gets_nothing() {
        with_own_network("own_network::a_data_connection_from_another_address_gets_nothing", || {
            let world = World::start(v4);
            let content = bytes(8, 100_000);
            let mut session = world.client.enter(|| {
                let mut session = world.session(0);
                session.store("file", &content);
                session
            });
            let address = session.epsv();
            let stolen = world.stranger.enter(|| {
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
            // And the client's own still comes through.
            let received = world.client.enter(|| {
                let mut data = session.data_connection(address);
                session.command("RETR file", 150);
                read_exactly(&mut data, content.len())
            });
            assert!(received == content);
            session.expect(226);
        });
    }

    #[test]
    fn new_rules_do_not_touch_a_transfer_even_where_the_node_is_gone_from_them() {
        with_own_network(
            "own_network::new_rules_do_not_touch_a_transfer_even_where_the_node_is_gone_from_them",
            || {
                let world = World::start(v4);
                let content = bytes(9, 16 << 20);
                fs::write(world.homes[0].path().join("file"), &content).unwrap();
                let (mut session, mut data) = world.client.enter(|| {
                    let mut session = world.session(0);
                    session.command("TYPE I", 200);
                    let data = session.begin("RETR file");
                    (session, data)
                });
                let mut received = read_exactly(&mut data, 1 << 20);
                let mut smaller = world.balancer.clone();
                smaller.nodes.remove(0);
                world.load(&smaller, OtherForwarding::Drop);
                received.extend(read_exactly(&mut data, 15 << 20));
                assert!(received == content);
                session.expect(226);
                // The next connection to that slice is nginx's.
                let again = world.client.enter(|| session.retrieve("file"));
                assert!(again == content);
                eventually("nginx to have logged it", || (world.through_nginx() == 1).then_some(()));
            },
        );
    }

    #[test]
    fn the_balancer_forwards_data_connections_and_nothing_else() {
        with_own_network("own_network::the_balancer_forwards_data_connections_and_nothing_else", || {
            let world = World::start(v4);
            let (_, node, slice) = world.balancer.nodes[0].clone();
            // A client that takes the balancer for a router, towards nodes that know the way back.
            world.client.run("ip", &["route", "add", "10.0.0.0/24", "via", "203.0.113.10"]);
            world.nodes[0].0.run("ip", &["route", "add", "203.0.113.0/24", "via", "10.0.0.10"]);
            let control = (node, 21).into();
            let data = (node, slice.from()).into();
            assert!(!world.client.enter(|| reaches(control) || reaches(data)));
            // Nor the other way, from a node's slice or any other port.
            let listener = world.client.enter(|| std::net::TcpListener::bind("203.0.113.50:7000").unwrap());
            let outward = listener.local_addr().unwrap();
            assert!(!world.nodes[0].0.enter(|| reaches(outward)));

            // A host that is a router remains one; but a node is not shown under its own address.
            world.load(&world.balancer, OtherForwarding::Accept);
            assert!(world.client.enter(|| reaches(control)));
            assert!(world.nodes[0].0.enter(|| reaches(outward)));
            assert!(!world.client.enter(|| reaches(data)));
            world.client.enter(|| world.transfers_work());
        });
    }

    #[test]
    fn an_abor_with_urgent_data_is_heard_through_nginx() {
        with_own_network("own_network::an_abor_with_urgent_data_is_heard_through_nginx", || {
            let world = World::start(v4);
            fs::write(world.homes[0].path().join("file"), bytes(10, 16 << 20)).unwrap();
            world.client.enter(|| {
                let mut session = world.session(0);
                session.command("TYPE I", 200);
                let start = Instant::now();
                for round in 0..40 {
                    let _data = session.begin("RETR file");
                    // As lftp and BSD's clients do: IAC IP IAC, of which the last byte is urgent, then
                    // DM and the command.
                    session.send_urgent(b"\xff\xf4\xff");
                    session.control().write_all(b"\xf2ABOR\r\n").unwrap();
                    let reply = session.try_reply(Duration::from_secs(5));
                    let reply = reply.unwrap_or_else(|error| panic!("round {round}: {error}")).unwrap();
                    assert_eq!(reply.code, 426);
                    session.expect(226);
                }
                assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
            });
            let rules = world.lb.run("nft", &["list", "chain", "inet", "ftp_urgent_data", "control"]);
            assert!(!rules.contains("packets 0 "), "no packet was urgent: {rules}");
        });
    }
}
