//! Listening sockets: their options, and accepting connections in spite of errors.

mod advice;
mod closing;
pub(crate) mod ephemeral_ports;
mod set;

use std::{
    io,
    net::{self, SocketAddr},
    sync::atomic::{AtomicI32, Ordering},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, timeout_at},
};

use self::closing::{LAST_HANDSHAKES, refuse_new};
pub(crate) use self::{
    advice::advice,
    set::{AcceptedConnection, ListenerSet},
};

/// Length of the kernel's queue of connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// Listens on `address`. Must run within the runtime.
///
/// # Errors
/// Those of socket(2), bind(2) and listen(2).
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    BoundSocket::new(address)?.listen()
}

/// A socket that is bound to its address and does not listen yet. No other process listens on the address.
pub(crate) struct BoundSocket(Socket);

impl BoundSocket {
    /// Binds a socket to `address`, even if the port has connections in the state TIME_WAIT. An IPv6 socket
    /// is for IPv6 only, so that `0.0.0.0` and `::` can both be bound.
    ///
    /// # Errors
    /// Those of socket(2) and bind(2): EADDRINUSE if a process listens on the address.
    pub(crate) fn new(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        // Accepted connections inherit this option and the next. Replies and the last bytes of a transfer are
        // small writes: Nagle's algorithm and the peer's delayed ACK would delay each of them by 40 ms.
        socket.set_tcp_nodelay(true)?;
        // Clients may send ABOR with a Telnet Synch, which is urgent data (RFC 959 section 4.1.3). With this
        // option the urgent byte is an ordinary byte of the stream.
        socket.set_out_of_band_inline(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Ok(Self(socket))
    }

    /// The address, with the port that the kernel chose for port 0.
    ///
    /// # Errors
    /// Those of getsockname(2).
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        let address = self.0.local_addr()?;
        address.as_socket().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
    }

    /// Starts to listen. Must run within the runtime.
    ///
    /// # Errors
    /// Those of listen(2).
    pub(crate) fn listen(self) -> io::Result<TcpListener> {
        TcpListener::from_std(self.listen_unwatched()?)
    }

    /// Starts to listen. The runtime does not watch the listener, which is non-blocking.
    fn listen_unwatched(self) -> io::Result<net::TcpListener> {
        self.0.listen(BACKLOG)?;
        Ok(self.0.into())
    }
}

/// Accepts the next connection. Errors of single connections are skipped. If the process has no descriptors
/// or memory left, it waits 100 ms before the next attempt.
pub(crate) async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(connection) => {
                clear_shortage();
                return connection;
            }
            Err(error) => handle_accept_error(&error).await,
        }
    }
}

/// Refuses new connections, and passes those to `serve` whose handshake has begun. Then the listener closes:
/// see [`closing`].
pub(crate) async fn close(listener: TcpListener, serve: impl Fn(TcpStream, SocketAddr)) {
    if let Err(error) = refuse_new(&listener) {
        log::warn!("connections that arrive while a listener closes may be reset: {error}");
    }
    let end = Instant::now() + LAST_HANDSHAKES;
    while let Ok((stream, peer)) = timeout_at(end, accept(&listener)).await {
        serve(stream, peer);
    }
    // If the process was not scheduled in time, connections still wait.
    let Ok(listener) = listener.into_std() else { return };
    while let Ok((stream, peer)) = listener.accept() {
        if stream.set_nonblocking(true).is_ok()
            && let Ok(stream) = TcpStream::from_std(stream)
        {
            serve(stream, peer);
        }
    }
}

/// The error number of the last accept(2) that failed for lack of descriptors or memory; 0 after the next
/// success.
static SHORTAGE: AtomicI32 = AtomicI32::new(0);

/// The reason why the process cannot accept connections at this time, if there is one.
pub(crate) fn shortage() -> Option<String> {
    let number = SHORTAGE.load(Ordering::Relaxed);
    (number != 0).then(|| format!("cannot accept connections: {}", io::Error::from_raw_os_error(number)))
}

fn clear_shortage() {
    // Read first: a write by every thread for each connection would contend for the cache line.
    if SHORTAGE.load(Ordering::Relaxed) != 0 {
        SHORTAGE.store(0, Ordering::Relaxed);
    }
}

async fn handle_accept_error(error: &io::Error) {
    let is_short =
        matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS));
    if is_short {
        SHORTAGE.store(error.raw_os_error().unwrap_or(0), Ordering::Relaxed);
        log::error!("cannot accept connections: {error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    } else {
        log::debug!("connection lost before it was accepted: {error}");
    }
}
