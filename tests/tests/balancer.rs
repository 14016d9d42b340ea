//! The balancer: nginx with the repository's configuration in front of simulated nodes.

// The test of the rolling restart prints counts of clients.
#![allow(clippy::print_stderr)]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
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

/// Starts a simulated node. It sends the greeting "220 `address`" on each connection, and passes the
/// connection and its PROXY header to the returned channel. It keeps `loopback` reserved until the
/// process ends.
fn node(loopback: &Arc<Loopback>, address: SocketAddr) -> mpsc::Receiver<(String, TcpStream)> {
    let listener = TcpListener::bind(address).unwrap();
    let (sender, receiver) = mpsc::channel();
    let loopback = Arc::clone(loopback);
    thread::spawn(move || {
        let _reservation = loopback;
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut header = Vec::new();
            // Reads single bytes, because the test reads what follows the header.
            while !header.ends_with(b"\r\n") {
                let mut byte = [0];
                if stream.read(&mut byte).unwrap() == 0 {
                    break;
                }
                header.push(byte[0]);
            }
            // The client may have disconnected, and the test may have ended.
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
fn if_a_node_refuses_connections_its_clients_go_to_another_node() {
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
fn a_node_that_does_not_answer_delays_a_client_only_by_the_connect_timeout() {
    let loopback = Arc::new(Loopback::reserve());
    let live = loopback.socket(13, PORT);
    let _node = node(&loopback, live);
    // Two nodes that accept no connections, because their listen queues are full.
    let _silent: Vec<_> = [11, 12].map(|host| silent(loopback.socket(host, PORT))).into();
    let _nginx = Nginx::start(&balancer(&loopback));
    for _ in 0..6 {
        let start = Instant::now();
        let client = Connector::new().connect(loopback.socket(1, PORT)).unwrap();
        assert_eq!(greeting(&client), format!("220 {live}"));
        assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    }
}

/// Nodes restart one after another, each down for 20 ms, while clients connect without a pause. Each
/// node refuses some client within `fail_timeout`, so nginx soon considers all nodes failed.
#[test]
fn a_fast_rolling_restart_refuses_no_client() {
    const CLIENTS: usize = 4;
    const RESTARTS: usize = 60;
    let loopback = Arc::new(Loopback::reserve());
    let mut nodes: Vec<_> = [11, 12, 13].map(|host| RestartedNode::start(loopback.socket(host, PORT))).into();
    let nginx = Nginx::start(&balancer(&loopback));
    let is_over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (is_over, loopback) = (Arc::clone(&is_over), Arc::clone(&loopback));
            thread::spawn(move || {
                let (mut served, mut ended) = (0, 0);
                while !is_over.load(Ordering::Relaxed) {
                    let client = Connector::new().connect(loopback.socket(1, PORT)).unwrap();
                    let mut line = String::new();
                    let _ = BufReader::new(client).read_line(&mut line);
                    if line.starts_with("220 ") { served += 1 } else { ended += 1 }
                }
                (served, ended)
            })
        })
        .collect();
    for restart in 0..RESTARTS {
        let node = &mut nodes[restart % 3];
        node.stop();
        thread::sleep(Duration::from_millis(20));
        node.resume();
    }
    is_over.store(true, Ordering::Relaxed);
    let counts: Vec<(u32, u32)> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    let (served, ended) = counts.iter().fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1));
    eprintln!("{served} clients served, {ended} ended by a node, {} refused", nginx.refused());
    assert!(served > 100, "{served}");
    assert_eq!(nginx.refused(), 0);
    // A node that stops may reset connections that its kernel has just accepted. nginx cannot prevent it.
    assert!(ended <= RESTARTS as u32, "{ended} of {served}");
}

/// Reads the beginning of the PROXY header and sends a greeting. Errors are ignored, because the client may
/// have disconnected.
fn greet(mut stream: TcpStream) {
    let _ = stream.read(&mut [0; 256]);
    let _ = stream.write_all(b"220 ready\r\n");
}

/// A simulated node that greets each client, and can be stopped and started again.
struct RestartedNode {
    address: SocketAddr,
    running: Option<(Arc<AtomicBool>, thread::JoinHandle<()>)>,
}

impl RestartedNode {
    fn start(address: SocketAddr) -> Self {
        let mut node = Self { address, running: None };
        node.resume();
        node
    }

    fn resume(&mut self) {
        let listener = TcpListener::bind(self.address).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                greet(listener.accept().unwrap().0);
            }
            // Like ftpd, the node serves connections that the kernel has accepted before it closes the port.
            listener.set_nonblocking(true).unwrap();
            while let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(false).unwrap();
                greet(stream);
            }
        });
        self.running = Some((stop, thread));
    }

    fn stop(&mut self) {
        let (stop, thread) = self.running.take().expect("the node runs");
        stop.store(true, Ordering::Relaxed);
        // Wakes the thread. The connection fails if the thread has closed the listener already.
        drop(TcpStream::connect(self.address));
        thread.join().unwrap();
    }
}

impl Drop for RestartedNode {
    fn drop(&mut self) {
        if self.running.is_some() {
            self.stop();
        }
    }
}

/// An unreachable machine delays one client in each `fail_timeout`, not every third client.
#[test]
fn an_unreachable_machine_delays_few_clients() {
    let loopback = Arc::new(Loopback::reserve());
    let _nodes = [12, 13].map(|host| node(&loopback, loopback.socket(host, PORT)));
    let _silent = silent(loopback.socket(11, PORT));
    let _nginx = Nginx::start(&balancer(&loopback));
    let start = Instant::now();
    let mut slow = 0;
    for _ in 0..60 {
        let begin = Instant::now();
        let client = Connector::new().connect(loopback.socket(1, PORT)).unwrap();
        assert!(greeting(&client).starts_with("220 "));
        slow += u32::from(begin.elapsed() > Duration::from_millis(900));
    }
    // One client at the start and one after each `fail_timeout` of 5 s, for each of two nginx workers.
    assert!(f64::from(slow) <= 2.0 + start.elapsed().as_secs_f64() / 5.0 * 2.0, "{slow} of 60");
}

/// Returns a listener with a full queue, which drops every further SYN, and the connections in its queue.
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
fn control_connections_go_to_the_nodes_in_turn_with_the_client_address() {
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
        // Other connections are from `Nginx::start`, which waits until nginx listens.
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
fn data_that_a_node_sends_after_the_client_has_half_closed_arrives() {
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
    // More than all buffers on the way hold, so a thread sends it while the client reads.
    let sent = content.clone();
    let sender = thread::spawn(move || server.write_all(&sent).unwrap());
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    sender.join().unwrap();
    assert!(answer.ends_with(&content), "{} of {} bytes", answer.len(), content.len());
}
