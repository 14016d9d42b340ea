//! Listeners on many ports, which one task watches through one epoll instance.

use std::{
    io,
    net::{self, SocketAddr},
    os::fd::{AsRawFd, RawFd},
};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Instant, timeout_at},
};

use super::{
    BoundSocket, clear_shortage,
    closing::{LAST_HANDSHAKES, refuse_new},
    handle_accept_error,
};

/// Number of listeners with waiting connections that one call of epoll_wait(2) returns.
const EVENTS: usize = 64;

/// Listeners on many ports. A port costs a descriptor and no task: all listeners are in one epoll instance,
/// and the runtime watches that instance.
pub(crate) struct ListenerSet {
    /// Level-triggered: a listener stays ready while connections wait there.
    epoll: AsyncFd<WatchedEpoll>,
    listeners: Vec<PortListener>,
    /// Indexes of listeners at which a connection may wait.
    ready: Vec<usize>,
}

/// An [`Epoll`] in the form that tokio takes.
struct WatchedEpoll(Epoll);

impl AsRawFd for WatchedEpoll {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

struct PortListener {
    listener: net::TcpListener,
    port: u16,
}

/// A connection that a [`ListenerSet`] has accepted. Its socket is blocking and not registered with the
/// runtime.
pub(crate) struct AcceptedConnection {
    pub(crate) socket: net::TcpStream,
    pub(crate) peer: SocketAddr,
    /// The port of the listener.
    pub(crate) port: u16,
}

impl ListenerSet {
    /// Listens on the bound sockets. Must run within the runtime.
    ///
    /// # Errors
    /// The address on which the process cannot listen, and the reason.
    pub(crate) fn listen(
        sockets: impl IntoIterator<Item = BoundSocket>,
    ) -> Result<Self, (SocketAddr, io::Error)> {
        let unspecified = SocketAddr::from(([0; 4], 0));
        let failed = |errno: nix::Error| (unspecified, errno.into());
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
        let mut listeners = Vec::new();
        for socket in sockets {
            // A bound socket always has an address.
            let address = socket.address().unwrap_or(unspecified);
            let listener = socket.listen_unwatched().map_err(|error| (address, error))?;
            let event = EpollEvent::new(EpollFlags::EPOLLIN, listeners.len() as u64);
            epoll.add(&listener, event).map_err(|errno| (address, errno.into()))?;
            listeners.push(PortListener { listener, port: address.port() });
        }
        // SAFETY: `WatchedEpoll` owns its descriptor, which stays open and does not change until it is
        // dropped.
        let epoll = unsafe { AsyncFd::register_with_interest(WatchedEpoll(epoll), Interest::READABLE) };
        let epoll = epoll.map_err(|error| (unspecified, error.into()))?;
        Ok(Self { epoll, listeners, ready: Vec::with_capacity(EVENTS) })
    }

    /// Refuses new connections, and passes those to `serve` whose handshake has begun. Then the listeners
    /// close: see [`super::closing`].
    pub(crate) async fn close(mut self, mut serve: impl FnMut(AcceptedConnection)) {
        let mut refused = Ok(());
        for port in &self.listeners {
            refused = refused.and(refuse_new(&port.listener));
        }
        if let Err(error) = refused {
            log::warn!("data connections that arrive while the listeners close may be reset: {error}");
        }
        let end = Instant::now() + LAST_HANDSHAKES;
        while let Ok(connection) = timeout_at(end, self.accept()).await {
            serve(connection);
        }
        // If the process was not scheduled in time, connections still wait.
        for PortListener { listener, port } in &self.listeners {
            while let Ok((socket, peer)) = listener.accept() {
                serve(AcceptedConnection { socket, peer, port: *port });
            }
        }
    }

    /// Accepts the next connection. Errors of single connections are skipped. If the process has no
    /// descriptors or memory left, it waits 100 ms before the next attempt. Cancel-safe.
    pub(crate) async fn accept(&mut self) -> AcceptedConnection {
        loop {
            while let Some(index) = self.ready.pop() {
                // Only one: further connections at this port are in the next result of epoll, after other
                // ports.
                let PortListener { listener, port } = &self.listeners[index];
                match listener.accept() {
                    Ok((socket, peer)) => {
                        clear_shortage();
                        return AcceptedConnection { socket, peer, port: *port };
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => handle_accept_error(&error).await,
                }
            }
            let Ok(mut guard) = self.epoll.readable().await else {
                // The runtime is shutting down.
                return std::future::pending().await;
            };
            let mut events = [EpollEvent::empty(); EVENTS];
            match self.epoll.get_ref().0.wait(&mut events, 0u16) {
                Ok(0) => guard.clear_ready(),
                // The casts are lossless: the data are indexes.
                Ok(count) => self.ready.extend(events[..count].iter().map(|event| event.data() as usize)),
                Err(errno) => log::debug!("epoll_wait failed: {errno}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        io::{Read, Write},
        net::{Ipv4Addr, TcpStream},
        thread,
        time::Duration,
    };

    use tokio::time::timeout;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn bound(count: usize) -> Vec<BoundSocket> {
        (0..count).map(|_| BoundSocket::new((Ipv4Addr::LOCALHOST, 0).into()).unwrap()).collect()
    }

    #[tokio::test]
    async fn connections_to_every_port_are_accepted_with_their_port() {
        let sockets = bound(200);
        let addresses: Vec<_> = sockets.iter().map(|socket| socket.address().unwrap()).collect();
        let mut set = ListenerSet::listen(sockets).unwrap();
        // Several rounds: after the last connection of a round the set waits for the runtime again.
        for _ in 0..3 {
            let mut clients = Vec::new();
            for address in addresses.iter().chain(&addresses[..50]) {
                clients.push((TcpStream::connect(address).unwrap(), address.port()));
            }
            let mut wanted: BTreeSet<_> =
                clients.iter().map(|(client, port)| (client.local_addr().unwrap(), *port)).collect();
            for _ in 0..clients.len() {
                let accepted = timeout(LIMIT, set.accept()).await.unwrap();
                assert!(wanted.remove(&(accepted.peer, accepted.port)), "{}", accepted.peer);
            }
            assert!(timeout(Duration::from_millis(20), set.accept()).await.is_err(), "no further connection");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_set_that_closes_serves_or_refuses_every_connection() {
        let address = |socket: &BoundSocket| socket.address().unwrap();
        for round in 0..3 {
            let sockets = bound(20);
            let addresses: Vec<_> = sockets.iter().map(address).collect();
            let set = ListenerSet::listen(sockets).unwrap();
            let clients = addresses.into_iter().map(|address| {
                thread::spawn(move || {
                    let (mut served, mut attempts) = (0, 0);
                    while let Ok(mut client) = TcpStream::connect(address) {
                        attempts += 1;
                        client.set_read_timeout(Some(LIMIT)).unwrap();
                        served += client.read(&mut [0]).expect("served, not reset");
                    }
                    assert_eq!(served, attempts);
                    served
                })
            });
            let clients: Vec<_> = clients.collect();
            let mut set = set;
            let serve = |accepted: AcceptedConnection| (&accepted.socket).write_all(b".").unwrap();
            for _ in 0..500 + round {
                serve(set.accept().await);
            }
            set.close(serve).await;
            for client in clients {
                assert!(client.join().unwrap() > 0);
            }
        }
    }

    #[tokio::test]
    async fn a_dropped_set_refuses_connections_and_ends_those_that_wait() {
        let sockets = bound(1);
        let address = sockets[0].address().unwrap();
        let set = ListenerSet::listen(sockets).unwrap();
        let mut waiting = TcpStream::connect(address).unwrap();
        waiting.set_read_timeout(Some(LIMIT)).unwrap();
        drop(set);
        assert_eq!(waiting.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(TcpStream::connect(address).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
