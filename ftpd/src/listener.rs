//! Listening sockets: how they are made, and how accepting survives what can go wrong.

use std::{
    io,
    net::{self, SocketAddr},
    sync::atomic::{AtomicI32, Ordering},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::{TcpListener, TcpStream},
};

/// Connections that the kernel keeps waiting between two accepts.
const BACKLOG: i32 = 1024;

/// Listens on `address`.
///
/// # Errors
/// Those of socket, bind and listen. Must run within the runtime.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    Bound::new(address)?.listen()
}

/// A socket that has its address, on which no process listens then, and takes no connections yet.
pub struct Bound(Socket);

impl Bound {
    /// An IPv6 socket takes IPv6 only, so that `0.0.0.0` and `::` go together; a port whose old
    /// connections still fade away can be taken again at once.
    ///
    /// # Errors
    /// Those of socket and bind: EADDRINUSE if a process listens on the address.
    pub fn new(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        // Its connections inherit both. Replies and the last bytes of a transfer are small writes;
        // Nagle's algorithm with the peer's delayed ACK would hold each back for 40 ms.
        socket.set_tcp_nodelay(true)?;
        // ABOR may come with Telnet's Synch as urgent data (RFC 959 section 4.1.3); inline it is an
        // ordinary part of the line.
        socket.set_out_of_band_inline(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Ok(Self(socket))
    }

    /// The address with the port that the kernel chose, if none was given.
    ///
    /// # Errors
    /// Those of getsockname(2).
    pub fn address(&self) -> io::Result<SocketAddr> {
        let address = self.0.local_addr()?;
        address.as_socket().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
    }

    /// # Errors
    /// Those of listen(2). Must run within the runtime.
    pub fn listen(self) -> io::Result<TcpListener> {
        self.0.listen(BACKLOG)?;
        TcpListener::from_std(self.0.into())
    }
}

/// The next connection. Errors of single connections are passed over; where the process has run
/// out of descriptors or memory, it waits a little for some to come free.
pub async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(connection) => {
                enough();
                return connection;
            }
            Err(error) => pass_over(&error).await,
        }
    }
}

/// A listener whose connections the runtime does not watch.
pub struct UnwatchedListener(AsyncFd<net::TcpListener>);

impl UnwatchedListener {
    /// # Errors
    /// The runtime cannot watch the listener itself. Must run within the runtime.
    pub fn new(listener: TcpListener) -> io::Result<Self> {
        // SAFETY: a `TcpListener` owns its descriptor, which stays open and the same for as long as it lives.
        let watched = unsafe { AsyncFd::register_with_interest(listener.into_std()?, Interest::READABLE) };
        Ok(Self(watched?))
    }

    /// As [`accept`]; the connection is blocking.
    pub async fn accept(&self) -> (net::TcpStream, SocketAddr) {
        loop {
            match self.0.async_io(Interest::READABLE, net::TcpListener::accept).await {
                Ok(connection) => {
                    enough();
                    return connection;
                }
                Err(error) => pass_over(&error).await,
            }
        }
    }
}

/// The error number with which the process last could not accept a connection, until it could: 0.
static SHORTAGE: AtomicI32 = AtomicI32::new(0);

/// Why the process cannot accept connections at this time.
pub fn shortage() -> Option<String> {
    let number = SHORTAGE.load(Ordering::Relaxed);
    (number != 0).then(|| format!("cannot accept connections: {}", io::Error::from_raw_os_error(number)))
}

fn enough() {
    // Read first: connections on all threads would otherwise write to the same place.
    if SHORTAGE.load(Ordering::Relaxed) != 0 {
        SHORTAGE.store(0, Ordering::Relaxed);
    }
}

async fn pass_over(error: &io::Error) {
    let is_short =
        matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS));
    if is_short {
        SHORTAGE.store(error.raw_os_error().unwrap_or(0), Ordering::Relaxed);
        log::error!("cannot accept connections: {error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    } else {
        log::debug!("a connection ended before it was accepted: {error}");
    }
}
