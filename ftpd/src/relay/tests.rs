//! Tests of the relay's engine with real sockets.

mod ends;
mod moves;

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use socket2::SockRef;
use tokio::task::JoinHandle;

use super::{PumpLimits, PumpResult, pump, reset_on_close};

/// Longest wait for anything that must happen.
const DEADLINE: Duration = Duration::from_secs(30);

/// A client and a server with a pump between them.
struct Pumped {
    client: TcpStream,
    server: TcpStream,
    pump: JoinHandle<PumpResult>,
}

fn limits(splice: bool) -> PumpLimits {
    PumpLimits { stall: None, splice, to_server: |_| (), to_client: |_| () }
}

/// A connection over loopback: the connecting and the accepting end.
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let connecting = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let accepted = listener.accept().unwrap().0;
    for socket in [&connecting, &accepted] {
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.set_write_timeout(Some(DEADLINE)).unwrap();
    }
    (connecting, accepted)
}

fn register(socket: TcpStream) -> tokio::net::TcpStream {
    socket.set_nonblocking(true).unwrap();
    reset_on_close(&socket).unwrap();
    tokio::net::TcpStream::from_std(socket).unwrap()
}

impl Pumped {
    /// Must run within the runtime.
    fn start(limits: PumpLimits) -> Self {
        let (client, from_client) = pair();
        let (to_server, server) = pair();
        let pump = tokio::spawn(pump(register(from_client), register(to_server), limits));
        Self { client, server, pump }
    }
}

/// Makes close(2) reset the connection.
fn reset(socket: TcpStream) {
    SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Reads until the end. Returns the number of bytes, and the end: `Ok` after FIN.
fn read_to_end(mut socket: &TcpStream) -> (u64, io::Result<()>) {
    let mut buffer = vec![0; 256 * 1024];
    let mut length = 0;
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return (length, Ok(())),
            Ok(read) => length += read as u64,
            Err(error) => return (length, Err(error)),
        }
    }
}

#[track_caller]
fn assert_reset(end: io::Result<()>) {
    assert_eq!(end.expect_err("the end of the stream arrived").kind(), io::ErrorKind::ConnectionReset);
}

/// Writes until the socket is full and stays full.
fn fill(mut socket: &TcpStream) -> u64 {
    socket.set_nonblocking(true).unwrap();
    let (block, mut written) = (vec![7; 64 * 1024], 0);
    let mut last = Instant::now();
    while last.elapsed() < Duration::from_millis(300) {
        match socket.write(&block) {
            Ok(count) => {
                written += count as u64;
                last = Instant::now();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(error) => panic!("{error}"),
        }
    }
    socket.set_nonblocking(false).unwrap();
    written
}

/// Pseudo-random bytes: the same for the same seed.
fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(next).collect()
}

static MOVED: AtomicU64 = AtomicU64::new(0);

fn count(bytes: u64) {
    MOVED.fetch_add(bytes, Ordering::Relaxed);
}
