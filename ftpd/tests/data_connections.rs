//! Data connections in passive and active mode, from strangers, and through balancers.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
};

use cluster_tests::{
    DEADLINE,
    content::{bytes, sha256},
    dialogue::{Dialogue, read_what_comes},
    node::{Node, NodeBuilder},
    proxy::{Connector, header_v1, header_v2},
};
use nix::sys::socket::{MsgFlags, send};

const CLIENT: &str = "192.0.2.7";
const OTHER: &str = "192.0.2.8";
const REACHED: &str = "203.0.113.9";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// `h1,h2,h3,h4,p1,p2`
fn port_argument(address: SocketAddr) -> String {
    let [high, low] = address.port().to_be_bytes();
    format!("{},{high},{low}", address.ip().to_string().replace('.', ","))
}

fn with_ports(count: u16) -> NodeBuilder {
    let builder = Node::standalone();
    let first = builder.loopback().ports().start() + 1;
    builder.setting("passive_port_max", first + count - 1)
}

/// A node that trusts one balancer, and a connector that connects as this balancer.
fn behind_balancer(builder: NodeBuilder) -> (Node, Connector) {
    let balancer = builder.loopback().address(7);
    let node = builder.setting("trusted_balancers", format!("{balancer}/32")).start();
    (node, Connector::new().from(balancer))
}

fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let accepted = cluster_tests::eventually("a data connection", || match listener.accept() {
        Ok((stream, _)) => Some(stream),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    });
    accepted.set_nonblocking(false).unwrap();
    accepted.set_read_timeout(Some(DEADLINE)).unwrap();
    accepted
}

/// Returns true if the node has connected to `listener`.
fn has_connection(listener: &TcpListener) -> bool {
    listener.set_nonblocking(true).unwrap();
    listener.accept().is_ok()
}

/// Predictable ports: GHSA-gh7c-cg3x-pmcr.
#[test]
fn pasv_and_epsv_announce_ports_of_the_range() {
    let node = with_ports(16).start();
    let mut session = node.login("demo", "x");
    let first = node.loopback().ports().start() + 1;
    let mut ports = Vec::new();
    for _ in 0..8 {
        let address = session.pasv();
        assert_eq!(address.ip(), node.address.ip());
        ports.extend([address.port(), session.epsv().port()]);
    }
    // Ports are chosen at random: 16 of them are practically never in ascending order.
    assert!(!ports.is_sorted(), "{ports:?}");
    ports.sort_unstable();
    // A released port is not reserved again at once.
    assert_eq!(ports, (first..first + 16).collect::<Vec<_>>());
}

#[test]
fn a_session_has_one_reservation_and_a_new_one_replaces_it() {
    let node = with_ports(2).start();
    fs::write(node.root().join("file"), "content").unwrap();
    let mut session = node.login("demo", "x");
    let mut other = node.login("demo", "x");
    let held = other.epsv();
    // Only one other port is left; each reservation releases it for the next.
    let first = session.pasv();
    assert_ne!(first.port(), held.port());
    assert_eq!(session.epsv().port(), first.port());
    assert_eq!(node.metric("ftp_passive_ports_reserved"), Some(2.0));
    // PORT releases the reservation, too.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    session.command(&format!("PORT {}", port_argument(listener.local_addr().unwrap())), 200);
    assert_eq!(node.metric("ftp_passive_ports_reserved"), Some(1.0));
    let mut late = session.data_connection(first);
    assert_eq!(read_what_comes(&mut late), b"");
    session.command("RETR file", 150);
    assert_eq!(session.finish_download(accept(&listener)), b"content");
    session.quit();
    assert_eq!(node.wait_for_metric("ftp_passive_ports_reserved", |n| n == 1.0), 1.0);
}

#[test]
fn a_connection_to_an_old_reservation_is_closed() {
    let node = Node::standalone().start();
    let mut session = node.login("demo", "x");
    for _ in 0..10 {
        let old = session.epsv();
        let mut data = session.data_connection(old);
        while session.epsv() == old {}
        assert_eq!(read_what_comes(&mut data), b"");
        session.receive("LIST");
    }
}

#[test]
fn epsv_accepts_the_own_family_and_all() {
    let node = Node::standalone().start();
    let mut session = node.login("demo", "x");
    session.command("EPSV 1", 229);
    assert!(session.command("EPSV 2", 522).message().contains("(1)"));
    assert!(session.command("EPSV 3", 522).message().contains("(1"));
    session.command("EPSV x", 501);
    session.command("EPRT |3|127.0.0.1|5000|", 522);
    session.command("EPSV ALL", 200);
    session.command("PASV", 503);
    session.command("PORT 127,0,0,1,200,1", 503);
    session.command("EPRT |1|127.0.0.1|51201|", 503);
    session.receive("LIST");
}

#[test]
fn active_mode_connects_to_the_client() {
    let node = Node::standalone().start();
    let mut session = node.login("demo", "x");
    session.command("TYPE I", 200);
    let content = bytes(1, 1_000_000);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let arrange =
        [format!("PORT {}", port_argument(address)), format!("EPRT |1|127.0.0.1|{}|", address.port())];
    for arrangement in arrange {
        session.command(&arrangement, 200);
        session.command("STOR file", 150);
        let mut data = accept(&listener);
        data.write_all(&content).unwrap();
        drop(data);
        session.expect(226);
        session.command(&arrangement, 200);
        session.command("RETR file", 150);
        let received = session.finish_download(accept(&listener));
        assert_eq!(sha256(received), sha256(&content));
        // The port is valid for one transfer only.
        session.command("RETR file", 425);
    }
    drop(listener);
    session.command(&format!("PORT {}", port_argument(address)), 200);
    session.command("RETR file", 150);
    session.expect(425);
}

/// Bounce: CVE-1999-0017, CVE-2007-6741, CVE-2015-10003.
#[test]
fn active_mode_connects_only_to_the_clients_own_address() {
    let node = Node::standalone().start();
    fs::write(node.root().join("file"), "content").unwrap();
    let mut session = node.login("demo", "x");
    let victim = TcpListener::bind(node.loopback().socket(9, 0)).unwrap();
    let address = victim.local_addr().unwrap();
    let node_itself = node.address;
    for command in [
        format!("PORT {}", port_argument(address)),
        format!("EPRT |1|{}|{}|", address.ip(), address.port()),
        format!("EPRT |2|::ffff:{}|{}|", address.ip(), address.port()),
        format!("PORT {}", port_argument(node_itself)),
        "EPRT |2|::1|5000|".to_owned(),
        "PORT 127,0,0,1,3,255".to_owned(),
        "EPRT |1|127.0.0.1|21|".to_owned(),
        "PORT 0,0,0,0,200,1".to_owned(),
        "PORT 255,255,255,255,200,1".to_owned(),
    ] {
        session.command(&command, 504);
        session.command("RETR file", 425);
    }
    for wrong in [
        "PORT",
        "PORT 127,0,0,1,0,0",
        "PORT 127,0,0,1,256,1",
        "PORT 127,0,0,1,1",
        "PORT 127.0.0.1,200,1",
        "EPRT",
        "EPRT |1|127.0.0.1|0|",
        "EPRT |1|127.0.0.1|65536|",
        "EPRT |1|localhost|5000|",
        "EPRT |1||5000|",
    ] {
        session.command(wrong, 501);
    }
    assert!(!has_connection(&victim));
    assert_eq!(node.metric("ftp_data_connections_refused_total{reason=\"bounce\"}"), Some(9.0));
}

/// Behind a proxy that replaces client addresses by the host's own, users could reach the host's services.
#[test]
fn active_mode_does_not_connect_to_services_of_the_cluster() {
    let node = Node::standalone().start();
    fs::write(node.root().join("file"), "content").unwrap();
    let here = Connector::new().from(node.admin.ip());
    let mut session = Dialogue::connect_with(&here, node.address);
    session.login("demo", "x");
    for command in [
        format!("PORT {}", port_argument(node.admin)),
        format!("EPRT |1|{}|{}|", node.admin.ip(), node.admin.port()),
    ] {
        session.command(&command, 504);
        session.command("RETR file", 425);
    }
    assert_eq!(node.metric("ftp_data_connections_refused_total{reason=\"own_address\"}"), Some(2.0));
    let listener = TcpListener::bind(SocketAddr::new(node.admin.ip(), 0)).unwrap();
    session.command(&format!("PORT {}", port_argument(listener.local_addr().unwrap())), 200);
    session.send("RETR file");
    session.expect(150);
    assert_eq!(session.finish_download(accept(&listener)), b"content");
}

#[test]
fn active_mode_can_be_switched_off() {
    let node = Node::standalone().setting("active_mode", "false").start();
    let mut session = node.login("demo", "x");
    session.command("PORT 127,0,0,1,200,1", 502);
    session.command("EPRT |1|127.0.0.1|51201|", 502);
    session.receive("LIST");
}

/// PASV theft: CVE-1999-0351, GHSA-gh7c-cg3x-pmcr.
#[test]
fn a_strangers_connection_is_closed_and_the_client_is_still_served() {
    let node = Node::standalone().start();
    let mut session = node.login("demo", "x");
    session.store("file", b"content");
    let stranger = Connector::new().from(node.loopback().address(5));
    for command_first in [true, false] {
        let address = session.epsv();
        if command_first {
            session.command("RETR file", 150);
        }
        for _ in 0..3 {
            assert_eq!(read_what_comes(&mut stranger.connect(address).unwrap()), b"");
        }
        let data = session.data_connection(address);
        // A second connection from the right address is closed.
        let mut second = session.data_connection(address);
        assert_eq!(read_what_comes(&mut second), b"");
        if !command_first {
            session.command("RETR file", 150);
        }
        assert_eq!(session.finish_download(data), b"content");
    }
    assert_eq!(node.metric("ftp_data_connections_refused_total{reason=\"unexpected\"}"), Some(8.0));
}

#[test]
fn passive_and_active_mode_work_over_ipv6() {
    let node = with_ports(18).listen(ip("::1")).start();
    let mut session = node.login("demo", "x");
    session.store("file", b"content");
    session.command("EPSV 2", 229);
    assert!(session.command("EPSV 1", 522).message().contains("(2)"));
    session.command("PASV", 425);
    assert_eq!(session.retrieve("file"), b"content");
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    session.command(&format!("EPRT |2|::1|{port}|"), 200);
    session.command("RETR file", 150);
    assert_eq!(session.finish_download(accept(&listener)), b"content");
    session.command(&format!("EPRT |1|127.0.0.1|{port}|"), 504);
    session.command("PORT 127,0,0,1,200,1", 504);
    node.daemon.wait_for_message("logged in", &[("address", "::1")]);
}

#[test]
fn the_client_address_comes_from_the_balancers_header() {
    let (node, balancer) = behind_balancer(Node::standalone());
    for connector in [
        balancer.clone().proxy_v1(ip(CLIENT), ip(REACHED)),
        balancer.clone().proxy_v2(ip(CLIENT), ip(REACHED)),
    ] {
        let mut session = Dialogue::connect_with(&connector, node.address);
        session.login("demo", "x");
        session.store("file", b"content");
        assert_eq!(session.retrieve("file"), b"content");
        let status = session.command("STAT", 211).details();
        assert!(status.contains(&format!("Connected from {CLIENT}")), "{status:?}");
        // PORT with the balancer's own address is refused.
        session.command(
            &format!("PORT {},200,1", node.loopback().address(7).to_string().replace('.', ",")),
            504,
        );
        session.command("PORT 192,0,2,7,200,1", 200);
        session.quit();
    }
    let six = balancer.proxy_v2(ip("2001:db8::7"), ip("2001:db8::1"));
    let mut session = Dialogue::connect_with(&six, node.address);
    session.login("demo", "x");
    session.command("PASV", 425);
    session.command("EPSV 1", 522);
    assert_eq!(session.retrieve("file"), b"content");
    node.daemon.wait_for_message("logged in", &[("address", "2001:db8::7")]);
    node.daemon.wait_for_message("upload", &[("address", CLIENT), ("result", "complete")]);
}

#[test]
fn a_data_connection_of_another_client_through_the_same_balancer_is_closed() {
    let (node, balancer) = behind_balancer(with_ports(1));
    let mut session =
        Dialogue::connect_with(&balancer.clone().proxy_v1(ip(CLIENT), ip(REACHED)), node.address);
    session.login("demo", "x");
    session.store("file", b"content");
    let address = session.epsv();
    session.command("RETR file", 150);
    let reached = SocketAddr::new(ip(REACHED), address.port());
    for header in [
        header_v1(SocketAddr::new(ip(OTHER), 4000), reached),
        header_v2(SocketAddr::new(ip(OTHER), 4000), reached),
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY TCP4 nonsense\r\n".to_vec(),
        b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".to_vec(),
        b"".to_vec(),
    ] {
        let mut other = balancer.connect(address).unwrap();
        other.write_all(&header).unwrap();
        if header.is_empty() {
            other.shutdown(Shutdown::Write).unwrap();
        }
        assert_eq!(read_what_comes(&mut other), b"");
    }
    // Even a correct header is not accepted from a peer other than the balancer.
    let mut forger = Connector::new().from(node.loopback().address(8)).connect(address).unwrap();
    // The node may close the connection before everything is sent.
    let _ = forger.write_all(&header_v1(SocketAddr::new(ip(CLIENT), 4000), reached));
    assert_eq!(read_what_comes(&mut forger), b"");
    // A silent connection does not delay others.
    let _silent = balancer.connect(address).unwrap();
    let data = session.data_connection(address);
    assert_eq!(session.finish_download(data), b"content");
}

#[test]
fn the_header_of_a_data_connection_may_arrive_with_data_or_in_pieces() {
    let (node, balancer) = behind_balancer(Node::standalone());
    let mut session =
        Dialogue::connect_with(&balancer.clone().proxy_v1(ip(CLIENT), ip(REACHED)), node.address);
    session.login("demo", "x");
    session.command("TYPE I", 200);
    for round in 0..20_u8 {
        let address = session.epsv();
        let reached = SocketAddr::new(ip(REACHED), address.port());
        let client = SocketAddr::new(ip(CLIENT), 4000);
        let header = if round % 2 == 0 { header_v1(client, reached) } else { header_v2(client, reached) };
        // The bytes after the header are the client's data, even if they look like a header.
        let content = [header_v1(client, reached), vec![round; 100]].concat();
        let mut data = balancer.connect(address).unwrap();
        let sent = [header, content.clone()].concat();
        let pieces = if round < 10 { sent.len() } else { 7 };
        for piece in sent.chunks(pieces) {
            data.write_all(piece).unwrap();
        }
        session.command("STOR file", 150);
        drop(data);
        session.expect(226);
        assert_eq!(session.retrieve("file"), content);
    }
}

#[test]
fn a_balancer_without_a_valid_header_gets_no_reply() {
    let (node, balancer) = behind_balancer(Node::standalone().setting("proxy_header_timeout", "500ms"));
    let valid = header_v1("192.0.2.7:4000".parse().unwrap(), "203.0.113.9:21".parse().unwrap());
    let endless = [b"PROXY TCP6 ".to_vec(), vec![b'1'; 200]].concat();
    for (what, sent) in [
        ("missing", &b"USER demo\r\n"[..]),
        ("late", b""),
        ("half", &valid[..20]),
        ("half a signature", b"\r\n\r\n\0\r\nQU"),
        ("broken", b"PROXY TCP4 192.0.2.7 203.0.113.9 4000\r\n"),
        ("address", b"PROXY TCP4 192.0.2.300 203.0.113.9 4000 21\r\n"),
        ("family", b"PROXY TCP5 192.0.2.7 203.0.113.9 4000 21\r\n"),
        ("too long", &endless),
        ("too long in version 2", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff"),
        ("version 3", b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c"),
        ("UDP", b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\x0c\x01\x02\x03\x04\x05\x06\x07\x08\0\x01\0\x02"),
        ("TLS", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"),
    ] {
        let mut stream = balancer.connect(node.address).unwrap();
        stream.write_all(sent).unwrap();
        assert_eq!(read_what_comes(&mut stream), b"", "{what}");
    }
    let refused = "ftp_connections_refused_total{reason=\"proxy_header\"}";
    assert_eq!(node.wait_for_metric(refused, |count| count == 12.0), 12.0);
    assert_eq!(node.metric("ftp_connections_total").unwrap_or(0.0), 0.0);

    // Two headers: the second one is the client's data.
    let mut twice = balancer.connect(node.address).unwrap();
    twice.write_all(&[&valid[..], &valid].concat()).unwrap();
    let replies = String::from_utf8(read_what_comes(&mut twice)).unwrap();
    assert!(replies.starts_with("220 ") && replies.lines().count() == 1, "{replies}");
    // In pieces, followed by the first commands.
    let mut slow = balancer.connect(node.address).unwrap();
    for byte in &valid {
        slow.write_all(&[*byte]).unwrap();
    }
    slow.write_all(b"NOOP\r\nQUIT\r\n").unwrap();
    let replies = String::from_utf8(read_what_comes(&mut slow)).unwrap();
    assert_eq!(replies.lines().map(|line| &line[..4]).collect::<Vec<_>>(), ["220 ", "200 ", "221 "]);
}

/// Forged PROXY headers.
#[test]
fn a_header_from_an_untrusted_address_is_refused_as_another_protocol() {
    let (node, _) = behind_balancer(Node::standalone());
    let untrusted = Connector::new().from(node.loopback().address(8));
    for connector in [
        untrusted.clone().proxy_v1(ip(CLIENT), ip(REACHED)),
        untrusted.clone().proxy_v2(ip(CLIENT), ip(REACHED)),
    ] {
        let mut session = Dialogue::dial(&connector, node.address);
        let replies = session.expect_closed();
        assert_eq!(replies.iter().map(|reply| reply.code).collect::<Vec<_>>(), [220]);
    }
    // Without a header it is an ordinary client with its own address.
    Dialogue::connect_with(&untrusted, node.address).login("demo", "x");
    let own = node.loopback().address(8).to_string();
    node.daemon.wait_for_message("logged in", &[("address", &own)]);
    node.daemon.wait_for_message("the client speaks another protocol", &[("address", &own)]);
}

#[test]
fn pasv_announces_the_address_that_leads_to_the_balancer() {
    let announced = |builder: NodeBuilder, client: &str| {
        let (node, balancer) = behind_balancer(builder);
        let connector = balancer.proxy_v1(ip(client), ip(REACHED));
        let mut session = Dialogue::connect_with(&connector, node.address);
        session.login("demo", "x");
        session.pasv().ip().to_string()
    };
    let outside = || Node::standalone().setting("external_address", "198.51.100.1");
    assert_eq!(announced(Node::standalone(), CLIENT), REACHED);
    assert_eq!(announced(outside(), CLIENT), "198.51.100.1");
    let inside = || outside().setting("internal_networks", "10.0.0.0/8,192.0.2.0/24");
    assert_eq!(announced(inside(), CLIENT), REACHED);
    assert_eq!(announced(inside(), "198.51.100.77"), "198.51.100.1");
}

/// Closing a socket with unread input makes the kernel discard unsent data: the end of the file would
/// be missing in spite of a 226.
#[test]
fn a_download_is_complete_even_if_the_client_sends_data_on_its_data_connection() {
    let node = Node::standalone().user("u", "p").start();
    let mut session = node.login("u", "p");
    session.command("TYPE I", 200);
    // One without and one with a transfer thread; both are larger than the client's receive window.
    for size in [16_000, 500_000] {
        let content = bytes(size as u64, size);
        fs::write(node.root().join("file"), &content).unwrap();
        let address = session.epsv();
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.connect(&address.into()).unwrap();
        let mut data = TcpStream::from(socket);
        data.write_all(b"?").unwrap();
        session.send("RETR file");
        session.expect(150);
        session.expect(226);
        let mut received = Vec::new();
        data.read_to_end(&mut received).unwrap();
        assert_eq!(sha256(received), sha256(&content));
    }
}

#[test]
fn an_upload_with_urgent_data_is_stored_to_its_end() {
    let node = Node::standalone().start();
    let mut session = node.login("demo", "x");
    session.command("TYPE I", 200);
    let content = bytes(7, 1 << 20);
    let mut data = session.begin("STOR file");
    let (before, after) = content.split_at(600_000);
    data.write_all(before).unwrap();
    // The last byte is urgent, which RFC 959 does not use on data connections.
    let mut urgent = 600_000;
    while urgent < 600_100 {
        urgent += send(data.as_raw_fd(), &content[urgent..600_100], MsgFlags::MSG_OOB).unwrap();
    }
    data.write_all(&after[100..]).unwrap();
    data.shutdown(Shutdown::Write).unwrap();
    session.expect(226);
    assert_eq!(sha256(fs::read(node.root().join("file")).unwrap()), sha256(&content));
}
