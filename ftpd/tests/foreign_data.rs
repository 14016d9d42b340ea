//! Foreign data connections: they come from another address than the control connection. Which of them
//! are accepted, and what the log says.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use cluster_tests::{
    content::bytes,
    node::Node,
    proxy::Connector,
    tls::{Authority, SecureDialogue, end},
};
use rustls::version::{TLS12, TLS13};

const WARNING: &str = "a data connection came from another address than the control connection";

fn node(authority: &Authority) -> Node {
    let certificate = authority.sign("localhost");
    Node::standalone()
        .user("u", "p")
        .setting("tls_certificates", certificate.chain.display())
        .setting("tls_keys", certificate.key.display())
        .setting("data_connect_timeout", "1s")
        .start()
}

fn warnings(node: &Node) -> Vec<String> {
    node.daemon.lines().into_iter().filter(|line| line.contains(WARNING)).collect()
}

/// A connection to `address` from a third host.
fn stranger(node: &Node, address: SocketAddr) -> TcpStream {
    Connector::new().from(node.loopback().address(9)).connect(address).unwrap()
}

/// Returns true if the node closes the connection without sending a byte.
fn is_closed(mut stream: TcpStream) -> bool {
    matches!(stream.read(&mut [0; 1]), Ok(0) | Err(_))
}

#[test]
fn foreign_data_connection_without_tls_is_closed_and_logged_with_both_addresses() {
    let node = Node::standalone().setting("data_connect_timeout", "1s").start();
    let mut session = node.login("demo", "x");
    for _ in 0..2 {
        let address = session.epsv();
        session.command("STOR stolen", 150);
        let mut data = stranger(&node, address);
        let _ = data.write_all(b"not from the client");
        assert!(is_closed(data));
        session.expect(425);
    }
    assert!(!node.root().join("stolen").exists());
    let warnings = warnings(&node);
    let [line] = &warnings[..] else { panic!("{warnings:?}") };
    let other = format!("data_address={}", node.loopback().address(9));
    assert!(line.contains("WARN") && line.contains(&other) && line.contains("refused"), "{line}");
    assert!(line.contains(" address=") && line.contains(" port="), "{line}");
}

#[test]
fn foreign_data_connection_with_a_resumed_tls_session_is_accepted_in_every_tls_version() {
    let authority = Authority::new();
    let node = node(&authority);
    let content = bytes(3, 300_001);
    for version in [&TLS12, &TLS13] {
        let client = authority.client_of(version);
        let mut session = SecureDialogue::explicit(&client, node.address);
        session.login("u", "p");
        for round in 0..3 {
            let name = format!("file-{round}");
            let address = session.epsv();
            let data = stranger(&node, address);
            session.command(&format!("STOR {name}"), 150);
            let mut data = client.encrypt(data).unwrap();
            data.write_all(&content).unwrap();
            end(data);
            session.expect(226);
            assert_eq!(fs::read(node.root().join(&name)).unwrap(), content);

            let address = session.epsv();
            session.command(&format!("RETR {name}"), 150);
            let mut data = client.encrypt(stranger(&node, address)).unwrap();
            let mut received = Vec::new();
            data.read_to_end(&mut received).unwrap();
            session.expect(226);
            assert_eq!(received, content);
        }
    }
    // One line for each of the two sessions.
    let warnings = warnings(&node);
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings.iter().all(|line| line.contains("accepted")), "{warnings:?}");
}

/// The client's own connection, which arrives at the same time, is still accepted.
#[test]
fn foreign_data_connection_without_a_ticket_of_the_session_is_closed() {
    let authority = Authority::new();
    let node = node(&authority);
    let client = authority.client();
    let mut victim = SecureDialogue::explicit(&client, node.address);
    victim.login("u", "p");
    // Another user of the same node, with its own TLS session.
    let thief = authority.client();
    let mut other = SecureDialogue::explicit(&thief, node.address);
    other.login("u", "p");

    let address = victim.epsv();
    let silent = stranger(&node, address);
    let mut plain = stranger(&node, address);
    plain.write_all(b"not TLS").unwrap();
    let fresh = client.forgetful().encrypt(stranger(&node, address));
    let foreign = thief.encrypt(stranger(&node, address));
    for stolen in [fresh, foreign].into_iter().flatten() {
        assert!(is_closed(stolen.sock));
    }
    victim.command("STOR file", 150);
    let own = Connector::new().connect(address).unwrap();
    let mut data = client.encrypt(own).unwrap();
    data.write_all(b"from the client").unwrap();
    end(data);
    victim.expect(226);
    assert_eq!(fs::read(node.root().join("file")).unwrap(), b"from the client");
    drop((silent, plain));
}

/// After PROT C, a resumed TLS session proves nothing for a transfer in the clear.
#[test]
fn foreign_data_connection_after_prot_c_is_closed_even_with_a_resumed_tls_session() {
    let authority = Authority::new();
    let node = node(&authority);
    let client = authority.client();
    let mut session = SecureDialogue::explicit(&client, node.address);
    session.login("u", "p");
    let address = session.epsv();
    session.command("PROT C", 200);
    let data = client.encrypt(stranger(&node, address));
    session.command("STOR file", 150);
    session.expect(522);
    drop(data);
    assert!(!node.root().join("file").exists());
}
