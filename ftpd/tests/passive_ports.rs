//! Passive ports and their sharing among sessions of one address.

use std::{fs, io::Write, net::SocketAddr, time::Duration};

use cluster_tests::{
    content::{bytes, sha256},
    dialogue::Dialogue,
    node::{Node, NodeBuilder},
    proxy::Connector,
};

fn with_ports(count: u16) -> NodeBuilder {
    let builder = Node::standalone();
    let first = builder.loopback().ports().start() + 1;
    builder.setting("passive_port_max", first + count - 1)
}

#[test]
fn if_all_ports_are_reserved_the_next_session_waits() {
    let node = with_ports(1).setting("passive_wait", "300ms").start();
    let mut first = node.login("demo", "x");
    let mut second = node.login("demo", "x");
    let address = first.epsv();
    second.command("PASV", 425);
    second.command("EPSV", 425);
    assert_eq!(node.metric("ftp_passive_ports_exhausted_total"), Some(2.0));
    // Another address does not wait.
    let elsewhere = Connector::new().from(node.loopback().address(3));
    let mut third = Dialogue::connect_with(&elsewhere, node.address);
    third.login("demo", "x");
    third.receive("LIST");
    // The first session uses its port. That frees the port although the transfer continues.
    first.command("STOR file", 150);
    let _data = first.data_connection(address);
    second.receive("LIST");
}

#[test]
fn a_waiting_session_gets_a_port_as_soon_as_it_is_free() {
    let node = with_ports(1).setting("passive_wait", "20s").start();
    let mut second = node.login("demo", "x");
    for way in 0..4 {
        let mut first = node.login("demo", "x");
        let address = first.epsv();
        second.send("EPSV");
        assert!(second.try_reply(Duration::from_millis(20)).is_err());
        match way {
            0 => drop(first),
            1 => drop(first.data_connection(address)),
            2 => first.quit(),
            _ => _ = first.command("REIN", 220),
        }
        second.expect(229);
        drop(second.data_connection(address));
    }
}

#[test]
fn idle_sessions_of_one_user_do_not_keep_the_ports_of_an_address_from_another() {
    let node = with_ports(4).setting("passive_wait", "25s").start();
    fs::write(node.root().join("file"), "content").unwrap();
    let mut idle: Vec<Dialogue> = (0..4).map(|_| node.login("demo", "x")).collect();
    idle.iter_mut().for_each(|session| _ = session.epsv());
    let mut other = node.login("test", "x");
    assert_eq!(other.receive("RETR file"), b"content");
    assert_eq!(node.metric("ftp_passive_ports_given_up_total{reason=\"share\"}"), Some(1.0));
    // That session gets an error reply and can reserve again.
    let codes: Vec<u16> = idle
        .iter_mut()
        .map(|session| {
            session.send("RETR file");
            session.reply().code
        })
        .collect();
    assert_eq!(codes.iter().filter(|code| **code == 425).count(), 1, "{codes:?}");
    let released = codes.iter().position(|code| *code == 425).unwrap();
    assert_eq!(idle[released].receive("RETR file"), b"content");
}

#[test]
fn an_unused_reservation_is_released_when_ports_are_scarce() {
    let node = with_ports(1).setting("passive_wait", "25s").setting("data_connect_timeout", "3s").start();
    fs::write(node.root().join("file"), "content").unwrap();
    let mut idle = node.login("demo", "x");
    idle.epsv();
    let mut other = node.login("demo", "x");
    assert_eq!(other.receive("RETR file"), b"content");
    assert_eq!(node.metric("ftp_passive_ports_given_up_total{reason=\"unused\"}"), Some(1.0));
    assert!(idle.command("RETR file", 425).message().contains("data_connect_timeout"));
    assert_eq!(idle.receive("RETR file"), b"content");
}

/// If the late connection were matched to the next transfer, an upload would be stored as an empty file
/// with 226.
#[test]
fn a_late_connection_is_not_matched_to_the_next_transfer() {
    let node = with_ports(1).start();
    let mut session = node.login("demo", "x");
    session.command("TYPE I", 200);
    let given_up = session.epsv();
    session.command("STOR given-up", 150);
    session.command("ABOR", 426);
    session.expect(226);
    session.send("EPSV");
    drop(session.data_connection(given_up));
    let address = session.expect(229).extended_passive_port().unwrap();
    let mut data = session.data_connection(SocketAddr::new(given_up.ip(), address));
    session.command("STOR file", 150);
    data.write_all(b"content").unwrap();
    drop(data);
    session.expect(226);
    assert_eq!(fs::read(node.root().join("file")).unwrap(), b"content");
    assert_eq!(node.metric("ftp_data_connections_refused_total{reason=\"unexpected\"}"), Some(1.0));
}

#[test]
fn clients_of_two_addresses_use_the_same_port_at_once() {
    let node = with_ports(1).start();
    let contents = [bytes(1, 3_000_000), bytes(2, 3_000_000)];
    let mut sessions: Vec<Dialogue> = (0..2)
        .map(|i| {
            let connector = Connector::new().from(node.loopback().address(20 + i));
            let mut session = Dialogue::connect_with(&connector, node.address);
            session.login("demo", "x");
            session.command("TYPE I", 200);
            session
        })
        .collect();
    for (i, content) in contents.iter().enumerate() {
        fs::write(node.root().join(i.to_string()), content).unwrap();
    }
    let ports: Vec<_> = sessions.iter_mut().map(Dialogue::epsv).collect();
    assert_eq!(ports[0].port(), ports[1].port());
    for (i, session) in sessions.iter_mut().enumerate() {
        session.command(&format!("RETR {i}"), 150);
    }
    // In reverse order of the commands.
    let data: Vec<_> = [1, 0].map(|i| (i, sessions[i].data_connection(ports[i]))).into();
    for (i, data) in data {
        assert_eq!(sha256(sessions[i].finish_download(data)), sha256(&contents[i]));
    }
}
