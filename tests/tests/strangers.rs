//! Connections to a passive port from clients that have no reservation get no data and do no harm.

use std::{io::Read, io::Write, net::Shutdown};

use cluster_tests::{
    cluster::Cluster,
    content::{bytes, sha256},
    dialogue::{Dialogue, read_what_comes},
    process::{field, message_is},
    proxy::{Connector, header_v1},
};

#[test]
fn another_client_address_cannot_take_over_a_data_connection() {
    let cluster = Cluster::start();
    let content = bytes(1, 2 << 20);
    let mut session = cluster.login_from(&cluster.client(1));
    session.store("secret.bin", &content);

    // The stranger connects first, once before the command and once after it.
    for command_first in [false, true] {
        let port = session.epsv();
        if command_first {
            session.send("RETR secret.bin");
        }
        let mut stranger = cluster.client(2).connect(port).unwrap();
        assert_eq!(read_what_comes(&mut stranger), b"");
        let mut data = session.data_connection(port);
        if !command_first {
            session.send("RETR secret.bin");
        }
        session.expect(150);
        let mut received = Vec::new();
        data.read_to_end(&mut received).unwrap();
        session.expect(226);
        assert_eq!(sha256(received), sha256(&content));
    }
}

#[test]
fn another_client_cannot_inject_data_into_an_upload() {
    let cluster = Cluster::start();
    let mut session = cluster.login_from(&cluster.client(1));
    session.command("TYPE I", 200);
    let port = session.epsv();
    session.send("STOR file");
    let mut stranger = cluster.client(2).connect(port).unwrap();
    // The node may have closed the connection already.
    let _ = stranger.write_all(b"not yours");
    assert_eq!(read_what_comes(&mut stranger), b"");
    let mut data = session.data_connection(port);
    session.expect(150);
    data.write_all(b"mine").unwrap();
    data.shutdown(Shutdown::Write).unwrap();
    session.expect(226);
    assert_eq!(session.retrieve("file"), b"mine");
}

#[test]
fn two_clients_share_a_passive_port_and_each_gets_its_own_data() {
    // Each node has one passive port, so sessions on the same node must share it.
    let cluster = Cluster::builder().passive_ports(3).start();
    let clients = [cluster.client(1), cluster.client(2)];
    let mut sessions = clients.each_ref().map(|client| cluster.session_through(0, client, "demo"));
    for (session, text) in sessions.iter_mut().zip(["one", "two"]) {
        session.store(text, text.as_bytes());
    }
    let ports = sessions.each_mut().map(Dialogue::epsv);
    assert_eq!(ports[0], ports[1]);
    // The connections arrive in reverse order of the reservations.
    let mut data: Vec<_> =
        sessions.iter_mut().zip(ports).rev().map(|(session, port)| session.data_connection(port)).collect();
    data.reverse();
    for ((session, data), text) in sessions.iter_mut().zip(&mut data).zip(["one", "two"]) {
        session.command(&format!("RETR {text}"), 150);
        assert_eq!(read_what_comes(data), text.as_bytes());
        session.expect(226);
    }
}

#[test]
fn proxy_header_is_accepted_only_from_the_balancer() {
    let cluster = Cluster::start();
    let node = cluster.node(0).address;
    let (client, victim) = (cluster.client_address(3), cluster.client_address(1));
    let mut session = Dialogue::dial(&Connector::new().from(client), node);
    session.send_bytes(&header_v1((victim, 4000).into(), cluster.address()));
    session.send("USER demo");
    // The header counts as invalid FTP from an ordinary client: the connection ends.
    let replies = session.expect_closed();
    assert!(replies.iter().all(|reply| reply.code == 220), "{replies:?}");
    let refused = |line: &str| message_is(line, "the client speaks another protocol");
    let line = cluster.node(0).daemon.wait_for_line(refused);
    assert_eq!(field(&line, "address"), Some(client.to_string()));
}

#[test]
fn health_check_that_only_connects_is_not_a_session() {
    let cluster = Cluster::start();
    let before = cluster.node(0).daemon.lines().len();
    for _ in 0..20 {
        drop(Connector::new().connect(cluster.node(0).address).unwrap());
    }
    // A real session follows and is the first one in the log.
    cluster.login_through(0).quit();
    let warnings = |line: &String| line.contains(" WARN ") || line.contains(" ERROR ");
    let lines = cluster.node(0).daemon.lines();
    assert_eq!(lines[before..].iter().filter(|line| warnings(line)).count(), 0, "{:?}", &lines[before..]);
}
