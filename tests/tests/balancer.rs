//! The balancer alone: nginx as configured, in front of nodes that are only sockets.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use cluster_tests::{
    loopback::Loopback,
    nginx::{Balancer, Nginx},
    proxy::Connector,
};
use common::node::PortRange;
use socket2::{Domain, Socket, Type};

const PORT: u16 = 2121;

fn balancer(loopback: &Loopback) -> Balancer {
    let range = PortRange::new(20000, 20008).unwrap();
    let node = |i: u8| (format!("ftp{i}"), loopback.address(11 + i), range.slice(i.into(), 3).unwrap());
    Balancer {
        address: loopback.address(1),
        control_port: PORT,
        nodes: (0..3).map(node).collect(),
        node_port: PORT,
        implicit_port: None,
    }
}

/// Says "220 `address`" to everyone, and hands the connection on with the header that led it.
/// Keeps its address, and so the reservation of it, to the end of the process.
fn node(loopback: &Arc<Loopback>, address: SocketAddr) -> mpsc::Receiver<(String, TcpStream)> {
    let listener = TcpListener::bind(address).unwrap();
    let (sender, receiver) = mpsc::channel();
    let loopback = Arc::clone(loopback);
    thread::spawn(move || {
        let _reservation = loopback;
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut header = Vec::new();
            // Byte by byte: what follows the header is the receiver's to read.
            while !header.ends_with(b"\r\n") {
                let mut byte = [0];
                if stream.read(&mut byte).unwrap() == 0 {
                    break;
                }
                header.push(byte[0]);
            }
            // A client that has gone already wants no greeting; a test that ended no connection.
            let _ = stream.write_all(format!("220 {address}\r\n").as_bytes());
            let _ = sender.send((String::from_utf8(header).unwrap(), stream));
        }
    });
    receiver
}

fn greeting(stream: &TcpStream) -> String {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

#[test]
fn a_client_that_finds_a_dead_node_is_passed_on_to_a_live_one() {
    let loopback = Arc::new(Loopback::reserve());
    let live = loopback.socket(12, PORT);
    let _node = node(&loopback, live);
    let _nginx = Nginx::start(&balancer(&loopback));
    for _ in 0..12 {
        let client = Connector::new().connect(loopback.socket(1, PORT)).unwrap();
        assert_eq!(greeting(&client), format!("220 {live}"));
    }
}

#[test]
fn a_node_that_does_not_answer_delays_a_client_by_the_connect_timeout_only() {
    let loopback = Arc::new(Loopback::reserve());
    let live = loopback.socket(13, PORT);
    let _node = node(&loopback, live);
    // Two nodes whose machine is there but accepts nothing: their queues are full.
    let _silent: Vec<_> = [11, 12].map(|host| silent(loopback.socket(host, PORT))).into();
    let _nginx = Nginx::start(&balancer(&loopback));
    for _ in 0..6 {
        let start = Instant::now();
        let client = Connector::new().connect(loopback.socket(1, PORT)).unwrap();
        assert_eq!(greeting(&client), format!("220 {live}"));
        assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    }
}

/// A listener that drops every further SYN.
fn silent(address: SocketAddr) -> (Socket, Vec<Socket>) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.set_reuse_address(true).unwrap();
    listener.bind(&address.into()).unwrap();
    listener.listen(0).unwrap();
    let mut waiting = Vec::new();
    loop {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let full = socket.connect_timeout(&address.into(), Duration::from_millis(200)).is_err();
        waiting.push(socket);
        if full {
            return (listener, waiting);
        }
    }
}

#[test]
fn control_connections_go_to_all_nodes_in_turn_with_the_clients_address() {
    let loopback = Arc::new(Loopback::reserve());
    let nodes: Vec<_> = [11, 12, 13].map(|host| node(&loopback, loopback.socket(host, PORT))).into();
    let _nginx = Nginx::start(&balancer(&loopback));
    let connector = Connector::new().from(loopback.address(100));
    let clients: Vec<_> = (0..9).map(|_| connector.connect(loopback.socket(1, PORT)).unwrap()).collect();
    let mut greetings: Vec<String> = clients.iter().map(greeting).collect();
    greetings.sort();
    greetings.dedup();
    assert_eq!(greetings.len(), 3, "{greetings:?}");
    for node in &nodes {
        let from_client = format!("PROXY TCP4 {} {} ", loopback.address(100), loopback.address(1));
        // The harness itself has connected to see whether nginx listens.
        assert!(node.iter().any(|(header, _)| header.starts_with(&from_client)));
    }
}

#[test]
fn a_data_connection_goes_to_the_node_whose_slice_holds_its_port() {
    let loopback = Arc::new(Loopback::reserve());
    let balancer = balancer(&loopback);
    let mut nodes = Vec::new();
    for (i, (_, address, slice)) in balancer.nodes.iter().enumerate() {
        for port in slice.iter() {
            nodes.push((i, port, node(&loopback, (*address, port).into())));
        }
    }
    assert_eq!(nodes.len(), 9);
    let _nginx = Nginx::start(&balancer);
    let connector = Connector::new().from(loopback.address(100));
    for (i, port, node) in nodes {
        let client = connector.connect(loopback.socket(1, port)).unwrap();
        assert_eq!(greeting(&client), format!("220 {}:{port}", balancer.nodes[i].1));
        let (header, _) = node.recv().unwrap();
        let local = client.local_addr().unwrap();
        assert_eq!(
            header,
            format!("PROXY TCP4 {} {} {} {port}\r\n", local.ip(), loopback.address(1), local.port())
        );
    }
}

#[test]
fn what_a_node_sends_after_the_clients_half_close_arrives() {
    let loopback = Arc::new(Loopback::reserve());
    let balancer = balancer(&loopback);
    let nodes = node(&loopback, (balancer.nodes[0].1, 20000).into());
    let _nginx = Nginx::start(&balancer);
    let mut client = Connector::new().connect(loopback.socket(1, 20000)).unwrap();
    let (_, mut server) = nodes.recv().unwrap();
    client.write_all(b"the end").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut received = String::new();
    server.read_to_string(&mut received).unwrap();
    assert_eq!(received, "the end");
    let content = cluster_tests::content::bytes(1, 8 << 20);
    server.write_all(&content).unwrap();
    drop(server);
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    assert!(answer.ends_with(&content), "{} of {} bytes", answer.len(), content.len());
}
