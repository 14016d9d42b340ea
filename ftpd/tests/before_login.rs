//! Floods of connections before the login: they must leave connections and descriptors for other clients.

use std::net::{IpAddr, TcpStream};

use cluster_tests::{dialogue::Dialogue, node::Node, proxy::Connector};

/// Reads the code of the first reply of a new connection.
fn greeting(connector: &Connector, node: &Node) -> (Dialogue, u16) {
    let mut session = Dialogue::dial(connector, node.address);
    let code = session.reply().code;
    (session, code)
}

#[test]
fn all_addresses_of_an_ipv6_64_network_share_the_limit_of_an_address() {
    let builder = Node::standalone().setting("log_level", "info").setting("max_sessions_per_address", 10);
    let balancer = builder.loopback().address(7);
    let node = builder.setting("trusted_balancers", format!("{balancer}/32")).start();
    let reached: IpAddr = "2001:db8::1".parse().unwrap();
    let client = |address: String| {
        let address = address.parse().unwrap();
        greeting(&Connector::new().from(balancer).proxy_v2(address, reached), &node)
    };
    let sessions: Vec<_> = (1..=40).map(|host| client(format!("2001:db8:1:2::{host:x}"))).collect();
    let admitted = sessions.iter().filter(|(_, code)| *code == 220).count();
    assert_eq!(admitted, 10);
    assert!(sessions.iter().skip(10).all(|(_, code)| *code == 421));
    let (mut neighbour, code) = client("2001:db8:1:3::1".to_owned());
    assert_eq!(code, 220);
    neighbour.login("demo", "x");
    neighbour.receive("LIST");
}

#[test]
fn a_flood_leaves_connections_for_networks_that_logged_in_before() {
    let node = Node::standalone()
        .setting("log_level", "info")
        .setting("max_sessions", 40)
        .setting("max_sessions_per_address", 10)
        .start();
    let from = |host: u8| Connector::new().from(node.loopback().address(host));
    let mut client = Dialogue::connect_with(&from(9), node.address);
    client.login("demo", "x");
    client.quit();
    let flood: Vec<TcpStream> = (20..30)
        .flat_map(|host| (0..10).map(move |_| host))
        .map(|host| from(host).connect(node.address).unwrap())
        .collect();
    node.wait_for_metric("ftp_connections", |count| count >= 36.0);
    let mut again = Dialogue::connect_with(&from(9), node.address);
    again.login("demo", "x");
    again.store("file", b"content");
    drop(flood);
}

/// Takes 10 s, the time for which a connection without a login is protected.
#[test]
fn at_the_connection_limit_a_silent_connection_is_closed_for_a_new_client() {
    let node = Node::standalone().setting("log_level", "info").setting("max_sessions", 20).start();
    let flood: Vec<TcpStream> = (0..30).map(|_| Connector::new().connect(node.address).unwrap()).collect();
    node.wait_for_metric("ftp_connections", |count| count == 18.0);
    let elsewhere = Connector::new().from(node.loopback().address(8));
    let mut client = cluster_tests::eventually("a client to be accepted", || {
        let (session, code) = greeting(&elsewhere, &node);
        (code == 220).then_some(session)
    });
    client.login("demo", "x");
    client.receive("LIST");
    node.daemon.wait_for_message("session ended by the node", &[("reason", "made_room")]);
    drop(flood);
}

#[test]
fn the_soft_limit_of_open_files_is_raised_and_silent_connections_leave_descriptors_for_files() {
    let node = Node::standalone()
        .setting("log_level", "info")
        .setting("max_sessions_per_address", 10_000)
        .open_files(128, 1024)
        .start();
    node.daemon.wait_for_line(|line| line.contains("max_sessions is lowered"));
    let mut client = node.login("demo", "x");
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(Connector::new().connect(node.address).unwrap());
    }
    for i in 0..10 {
        client.store(&format!("file{i}"), b"content");
        assert_eq!(client.retrieve(&format!("file{i}")), b"content");
        client.command(&format!("MKD directory{i}"), 257);
    }
    assert!(node.metric("ftp_limit_reached_total{limit=\"max_sessions\"}").unwrap_or(0.0) > 0.0);
}

#[test]
fn a_node_with_too_few_descriptors_for_one_session_logs_that_and_exits() {
    let mut node = Node::standalone().open_files(64, 64).spawn();
    node.daemon.wait_for_line(|line| line.contains("RLIMIT_NOFILE") && line.contains("64"));
    assert!(!node.daemon.wait().success());
}
