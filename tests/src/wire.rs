//! A TCP relay between two parts of a cluster, which a test can cut like a network.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

/// Behaviour at the end of [`Wire::cut`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heal {
    /// Connections continue. Data sent during the cut arrives late, as TCP retransmits it.
    Deliver,
    /// Connections are closed. Data sent during the cut is lost.
    Close,
}

/// Relays connections from its own address to another. Dropping it ends all connections.
pub struct Wire {
    address: SocketAddr,
    shared: Arc<Shared>,
    listening: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<WireState>,
    changed: Condvar,
}

#[derive(Default)]
struct WireState {
    is_cut: bool,
    is_dropped: bool,
    /// Both ends of all connections so far.
    ends: Vec<TcpStream>,
}

impl Wire {
    /// Listens on `address` and relays each connection to `target`.
    ///
    /// # Panics
    /// The address is in use.
    pub fn start(address: SocketAddr, target: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).expect("the address is this test's");
        let shared = Arc::<Shared>::default();
        let accepting = Arc::clone(&shared);
        let listening = thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let mut state = accepting.wait_until_whole();
                if state.is_dropped {
                    break;
                }
                // If the target cannot be reached, the client's connection is closed, as if the server
                // were away. The state stays locked, so that an accepted connection is always registered
                // for closing.
                if let Ok(server) = TcpStream::connect(target) {
                    accepting.relay(client, server, &mut state);
                }
            }
        });
        Self { address, shared, listening: Some(listening) }
    }

    /// The address to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on, no data arrives in either direction, and new connections get no response.
    pub fn cut(&self) {
        self.shared.state().is_cut = true;
    }

    /// Ends [`Wire::cut`].
    pub fn heal(&self, how: Heal) {
        let mut state = self.shared.state();
        state.is_cut = false;
        if how == Heal::Close {
            state.close_all();
        }
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl WireState {
    fn close_all(&mut self) {
        for end in self.ends.drain(..) {
            // An end that is closed already needs no further action.
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        (state.is_cut, state.is_dropped) = (false, true);
        state.close_all();
        drop(state);
        self.shared.changed.notify_all();
        // Wakes the listening thread, so that it frees the address.
        let _ = TcpStream::connect(self.address);
        if let Some(listening) = self.listening.take() {
            let _ = listening.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, WireState> {
        // The state is valid after each statement, so a panic elsewhere does not matter.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_until_whole(&self) -> MutexGuard<'_, WireState> {
        let state = self.state();
        self.changed.wait_while(state, |state| state.is_cut).unwrap_or_else(PoisonError::into_inner)
    }

    fn relay(self: &Arc<Self>, client: TcpStream, server: TcpStream, state: &mut WireState) {
        for end in [&client, &server] {
            let _ = end.set_nodelay(true);
        }
        let clones = || Some([client.try_clone().ok()?, server.try_clone().ok()?]);
        let (Some([from_client, to_server]), Some(kept)) = (clones(), clones()) else { return };
        state.ends.extend(kept);
        for (from, to) in [(from_client, to_server), (server, client)] {
            let shared = Arc::clone(self);
            thread::spawn(move || shared.copy(from, to));
        }
    }

    fn copy(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut chunk = [0; 16 << 10];
        loop {
            let length = from.read(&mut chunk).unwrap_or(0);
            drop(self.wait_until_whole());
            if length == 0 || to.write_all(&chunk[..length]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use std::{io::ErrorKind, time::Duration};

    use super::*;
    use crate::{DEADLINE, loopback::Loopback};

    /// A wire, a connection over it, and the other end of the connection.
    fn connected(loopback: &Loopback) -> (Wire, TcpStream, TcpStream) {
        let target = TcpListener::bind(loopback.socket(2, 6379)).unwrap();
        let wire = Wire::start(loopback.socket(3, 6379), target.local_addr().unwrap());
        let client = TcpStream::connect(wire.address()).unwrap();
        let server = target.accept().unwrap().0;
        for end in [&client, &server] {
            end.set_read_timeout(Some(DEADLINE)).unwrap();
        }
        (wire, client, server)
    }

    fn receive(stream: &mut TcpStream) -> Vec<u8> {
        let mut received = vec![0; 4];
        stream.read_exact(&mut received).unwrap();
        received
    }

    #[test]
    fn bytes_pass_in_both_directions() {
        let loopback = Loopback::reserve();
        let (_wire, mut client, mut server) = connected(&loopback);
        client.write_all(b"ping").unwrap();
        assert_eq!(receive(&mut server), b"ping");
        server.write_all(b"pong").unwrap();
        assert_eq!(receive(&mut client), b"pong");
    }

    #[test]
    fn bytes_sent_over_a_cut_wire_arrive_after_it_is_healed() {
        let loopback = Loopback::reserve();
        let (wire, mut client, mut server) = connected(&loopback);
        wire.cut();
        client.write_all(b"late").unwrap();
        server.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let nothing = server.read(&mut [0; 4]).unwrap_err();
        assert!(matches!(nothing.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{nothing}");
        wire.heal(Heal::Deliver);
        server.set_read_timeout(Some(DEADLINE)).unwrap();
        assert_eq!(receive(&mut server), b"late");
    }

    #[test]
    fn connections_over_a_cut_wire_can_be_closed() {
        let loopback = Loopback::reserve();
        let (wire, mut client, mut server) = connected(&loopback);
        wire.cut();
        client.write_all(b"lost").unwrap();
        wire.heal(Heal::Close);
        let mut received = Vec::new();
        let _ = server.read_to_end(&mut received);
        assert!(received.is_empty());
        assert!(matches!(client.read(&mut [0; 4]), Ok(0) | Err(_)));
    }
}
