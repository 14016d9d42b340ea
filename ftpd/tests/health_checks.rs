//! Health checks of a balancer that reads the greeting: they create no session and no log line and use
//! no limit.

use std::{
    io::Write,
    net::{Shutdown, SocketAddr, TcpStream},
};

use cluster_tests::{
    dialogue::{Dialogue, read_what_comes},
    node::{Node, NodeBuilder},
    process::field,
    proxy::{Connector, header_v1},
    tls::Authority,
};

/// Headers of connections without a client (PROXY protocol specification section 2). The first is what
/// HAProxy 2.6 sends for `check send-proxy-v2`. The second is the form that the specification gives for
/// version 1.
const WITHOUT_CLIENT: [&[u8]; 6] = [
    b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
    b"PROXY UNKNOWN\r\n",
    // The text after UNKNOWN is ignored, even if it contains addresses.
    b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n",
    b"PROXY UNKNOWN 192.0.2.7 203.0.113.9 4000 21\r\n",
    // UNSPEC: a protocol without addresses.
    b"\r\n\r\n\0\r\nQUIT\n\x21\0\0\0",
    // LOCAL with addresses, which are ignored.
    b"\r\n\r\n\0\r\nQUIT\n\x20\x11\0\x0c\xc0\0\x02\x07\xcb\0\x71\x09\x0f\xa0\0\x15",
];

fn behind_balancer(builder: NodeBuilder) -> (Node, Connector) {
    let balancer = builder.loopback().address(7);
    let node = builder.setting("trusted_balancers", format!("{balancer}/32")).start();
    (node, Connector::new().from(balancer))
}

fn send(balancer: &Connector, address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = balancer.connect(address).unwrap();
    stream.write_all(bytes).unwrap();
    stream
}

/// The codes of all replies until the connection ends.
fn codes(stream: &mut TcpStream) -> Vec<String> {
    let text = String::from_utf8(read_what_comes(stream)).unwrap();
    let starts = text.lines().filter(|line| line.len() > 3 && line.as_bytes()[3] == b' ');
    starts.filter(|line| line.as_bytes()[0].is_ascii_digit()).map(|line| line[..3].to_owned()).collect()
}

#[test]
fn a_health_check_gets_the_greeting_and_replies() {
    let (node, balancer) = behind_balancer(Node::standalone());
    for header in WITHOUT_CLIENT {
        // HAProxy with `tcp-check connect send-proxy` and `tcp-check expect rstring ^220` resets afterwards.
        let mut banner = [0; 4];
        let mut stream = send(&balancer, node.address, header);
        std::io::Read::read_exact(&mut stream, &mut banner).unwrap();
        assert_eq!(&banner, b"220 ", "{header:?}");
        cluster_tests::dialogue::reset(stream);

        let commands = b"NOOP\r\nFEAT\r\nSYST\r\nHELP\r\nBOGUS\r\nQUIT\r\nNOOP\r\n";
        let mut stream = send(&balancer, node.address, &[header, commands].concat());
        assert_eq!(codes(&mut stream), ["220", "200", "211", "215", "214", "500", "221"], "{header:?}");
    }
    // HAProxy 2.6 with `check send-proxy` sends its own address as the client's.
    let itself = SocketAddr::new(node.loopback().address(7), 4000);
    let mut stream = send(&balancer, node.address, &header_v1(itself, node.address));
    stream.write_all(b"QUIT\r\n").unwrap();
    assert_eq!(codes(&mut stream), ["220", "221"]);
}

#[test]
fn a_health_check_over_implicit_tls_gets_the_greeting_after_the_handshake() {
    let authority = Authority::new();
    let certificate = authority.sign("localhost");
    let builder = Node::standalone()
        .setting("tls_certificates", certificate.chain.display())
        .setting("tls_keys", certificate.key.display());
    let port = builder.loopback().ports().end() - 1;
    let builder = builder.setting("passive_port_max", port - 1).setting("implicit_tls_port", port);
    let (node, balancer) = behind_balancer(builder);
    let stream = send(&balancer, (node.address.ip(), port).into(), b"PROXY UNKNOWN\r\n");
    let mut stream = authority.client().encrypt(stream).unwrap();
    stream.write_all(b"QUIT\r\n").unwrap();
    let mut replies = String::new();
    std::io::Read::read_to_string(&mut stream, &mut replies).unwrap();
    assert!(replies.starts_with("220 ") && replies.contains("\r\n221 "), "{replies}");
}

#[test]
fn a_health_check_cannot_log_in_and_ends_at_the_login_timeout() {
    let (node, balancer) = behind_balancer(
        Node::standalone().setting("max_unauthenticated_commands", 5).setting("login_timeout", "1s"),
    );
    let mut stream =
        send(&balancer, node.address, b"PROXY UNKNOWN\r\nUSER demo\r\nPASS x\r\nEPSV\r\nPWD\r\nQUIT\r\n");
    assert_eq!(codes(&mut stream), ["220", "530", "530", "530", "530", "221"]);
    let refused = "ftp_connections_refused_total{reason=\"no_client_address\"}";
    assert_eq!(node.metric(refused), Some(1.0));
    let mut stream = send(&balancer, node.address, b"PROXY UNKNOWN\r\n");
    stream.write_all(&b"NOOP\r\n".repeat(6)).unwrap();
    assert_eq!(codes(&mut stream), ["220", "200", "200", "200", "200", "200", "421"]);
    let mut silent = send(&balancer, node.address, b"PROXY UNKNOWN\r\n");
    assert_eq!(codes(&mut silent), ["220"]);
    let mut foreign = send(&balancer, node.address, b"PROXY UNKNOWN\r\nGET / HTTP/1.1\r\n\r\n");
    assert_eq!(codes(&mut foreign), ["220"]);
    // Only a trusted balancer may send a PROXY header.
    let client = Connector::new().from(node.loopback().address(8));
    let mut forged = send(&client, node.address, b"PROXY UNKNOWN\r\nNOOP\r\n");
    assert_eq!(codes(&mut forged), ["220"]);
}

#[test]
fn health_checks_create_no_session_and_no_log_line_and_use_no_limit() {
    let (node, balancer) =
        behind_balancer(Node::standalone().setting("max_sessions", 1).setting("max_sessions_per_address", 1));
    let logged = node.daemon.lines().len();
    let mut open = Vec::new();
    for _ in 0..10 {
        drop(balancer.connect(node.address).unwrap());
        for header in WITHOUT_CLIENT {
            let mut check = send(&balancer, node.address, header);
            let mut banner = [0; 4];
            std::io::Read::read_exact(&mut check, &mut banner).unwrap();
            open.push(check);
        }
    }
    // A health check has no session, so it cannot have a data connection.
    let data = SocketAddr::new(node.address.ip(), node.address.port() + 1);
    for header in WITHOUT_CLIENT {
        let mut check = send(&balancer, data, header);
        assert_eq!(read_what_comes(&mut check), b"");
        drop(balancer.connect(data).unwrap());
    }
    // The health checks are still connected.
    let connector = balancer.proxy_v1("192.0.2.7".parse().unwrap(), "203.0.113.9".parse().unwrap());
    Dialogue::connect_with(&connector, node.address).login("demo", "x");
    node.daemon.wait_for_message("logged in", &[]);
    for check in &mut open {
        check.shutdown(Shutdown::Write).unwrap();
        assert!(read_what_comes(check).ends_with(b"\r\n"));
    }
    for line in &node.daemon.lines()[logged..] {
        assert!(field(line, "session").is_some(), "{line}");
    }
    assert_eq!(node.metric("ftp_connections_total"), Some(1.0));
    for refused in [
        "ftp_connections_refused_total{reason=\"proxy_header\"}",
        "ftp_data_connections_refused_total{reason=\"proxy_header\"}",
        "ftp_data_connections_refused_total{reason=\"unexpected\"}",
    ] {
        assert_eq!(node.metric(refused), None, "{refused}");
    }
}
