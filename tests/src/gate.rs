//! A relay to a TCP server. A test can close it, open it, and make it break at a chosen response.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use crate::eventually;

/// Relays connections to a server until it is dropped.
pub struct Gate {
    pub address: SocketAddr,
    state: Arc<Mutex<GateState>>,
    doorkeeper: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct GateState {
    is_closed: bool,
    is_over: bool,
    /// A response with this text is not forwarded. The connection breaks instead, once.
    breaks_at: Option<Vec<u8>>,
    connections: Vec<TcpStream>,
}

impl Gate {
    /// Listens on `address` and relays to `server`.
    ///
    /// # Panics
    /// The address is in use.
    pub fn start(address: SocketAddr, server: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).expect("the test's own address is free");
        let state = Arc::<Mutex<GateState>>::default();
        let shared = Arc::clone(&state);
        let doorkeeper = thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if lock(&shared).is_over {
                    return;
                }
                let Ok(server) = TcpStream::connect(server) else { continue };
                let copies = || Some((client.try_clone().ok()?, server.try_clone().ok()?));
                let (Some(requests), Some(kept)) = (copies(), copies()) else { continue };
                {
                    let mut state = lock(&shared);
                    if state.is_closed {
                        continue;
                    }
                    state.connections.extend([kept.0, kept.1]);
                }
                thread::spawn(move || forward(requests.0, requests.1, &|_| false));
                let state = Arc::clone(&shared);
                thread::spawn(move || forward(server, client, &|bytes| breaks(&state, bytes)));
            }
        });
        Self { address, state, doorkeeper: Some(doorkeeper) }
    }

    /// Breaks all connections and refuses new ones.
    pub fn close(&self) {
        let mut state = lock(&self.state);
        state.is_closed = true;
        for connection in state.connections.drain(..) {
            // The connection may have ended already.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Accepts connections again.
    pub fn open(&self) {
        lock(&self.state).is_closed = false;
    }

    /// Breaks the connection on which the next response with this text arrives, before the response.
    pub fn break_at(&self, text: &str) {
        lock(&self.state).breaks_at = Some(text.as_bytes().to_vec());
    }

    /// Waits until a connection has been broken by [`Self::break_at`].
    ///
    /// # Panics
    /// No connection is broken in time.
    pub fn wait_for_break(&self) {
        eventually("an answer to be lost", || lock(&self.state).breaks_at.is_none().then_some(()));
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        lock(&self.state).is_over = true;
        self.close();
        // The thread waits for the next connection, which wakes it. When it has ended, the address is free.
        if TcpStream::connect(self.address).is_ok()
            && let Some(doorkeeper) = self.doorkeeper.take()
        {
            let _ = doorkeeper.join();
        }
    }
}

fn lock(state: &Mutex<GateState>) -> MutexGuard<'_, GateState> {
    // The state is valid after each statement, so a panic elsewhere does not matter.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn breaks(state: &Mutex<GateState>, answer: &[u8]) -> bool {
    let mut state = lock(state);
    let is_it = |text: &Vec<u8>| answer.windows(text.len()).any(|part| part == text);
    state.breaks_at.take_if(|text| is_it(text)).is_some()
}

/// Copies until one side ends or `breaks` returns true. Then ends both.
fn forward(mut from: TcpStream, mut to: TcpStream, breaks: &dyn Fn(&[u8]) -> bool) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if breaks(&bytes[..count]) || to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    // Each side may have ended already.
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
