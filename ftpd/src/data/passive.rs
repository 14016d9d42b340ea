//! The node's slice of the passive port range: listeners that stay, and reservations that match.
//!
//! A port is listened on once, for as long as the node runs. A session reserves (port, client
//! address); a connection is matched by the port it came to and the client's real address. So a
//! port serves many clients at once, and a connection nobody waits for is closed.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use common::node::PortRange;
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, timeout_at},
};

use super::connected::Socket;
use crate::{
    listener::{self, UnwatchedListener},
    metrics,
    proxy_protocol::{self, Ends, NoClient, Trust},
};

/// The passive ports of this node.
pub struct PassivePorts {
    slice: PortRange,
    table: Arc<Table>,
}

#[derive(Default)]
struct Table {
    waiting: Mutex<Waiting>,
    /// A reservation ended: who waits for a port may look again.
    freed: Notify,
}

#[derive(Default)]
struct Waiting {
    sessions: HashMap<(u16, IpAddr), (u64, oneshot::Sender<Socket>)>,
    last_number: u64,
    /// Given back without a connection of late, the oldest first.
    cooling: VecDeque<(Instant, (u16, IpAddr))>,
}

/// How long a port is avoided for an address after a session has given it up: a connection that was
/// on its way must not be taken for the next one's.
const COOL_DOWN: Duration = Duration::from_secs(2);

/// Beyond so many the oldest are forgotten.
const MOST_COOLING: usize = 4096;

impl Waiting {
    fn cool_down(&mut self, key: (u16, IpAddr)) {
        self.forget_cooled();
        if self.cooling.len() == MOST_COOLING {
            self.cooling.pop_front();
        }
        self.cooling.push_back((Instant::now() + COOL_DOWN, key));
    }

    fn forget_cooled(&mut self) {
        let now = Instant::now();
        while self.cooling.front().is_some_and(|(until, _)| *until <= now) {
            self.cooling.pop_front();
        }
    }

    fn is_cooling(&self, key: (u16, IpAddr)) -> bool {
        self.cooling.iter().any(|(_, cooling)| *cooling == key)
    }
}

/// A port on which one client's next connection belongs to one session. Dropping it gives the
/// port back.
pub struct Reservation {
    port: u16,
    client: IpAddr,
    number: u64,
    arrival: oneshot::Receiver<Socket>,
    table: Arc<Table>,
}

impl PassivePorts {
    /// Listens on every port of the slice at each of `addresses`, until the process ends.
    ///
    /// # Errors
    /// A port cannot be listened on: the address and the reason.
    pub fn listen(
        slice: PortRange,
        addresses: &[IpAddr],
        trust: &Arc<Trust>,
    ) -> Result<Self, (SocketAddr, io::Error)> {
        let table = Arc::new(Table::default());
        for port in slice.iter() {
            for ip in addresses {
                let address = SocketAddr::new(*ip, port);
                let bound = listener::bind(address).and_then(UnwatchedListener::new);
                let listener = bound.map_err(|error| (address, error))?;
                tokio::spawn(accept(listener, port, Arc::clone(&table), Arc::clone(trust)));
            }
        }
        Ok(Self { slice, table })
    }

    /// Reserves a port for `client`'s next data connection: a random one, so that it cannot be
    /// guessed. If all are taken by sessions from the same address, waits for one to come free.
    /// `None` if none does within `wait`.
    pub async fn reserve(&self, client: IpAddr, wait: Duration) -> Option<Reservation> {
        if let Some(reservation) = self.try_reserve(client) {
            return Some(reservation);
        }
        let deadline = Instant::now() + wait;
        loop {
            // Registered before looking: a port freed in between is not missed.
            let mut freed = Box::pin(self.table.freed.notified());
            freed.as_mut().enable();
            if let Some(reservation) = self.try_reserve(client) {
                return Some(reservation);
            }
            if timeout_at(deadline, freed).await.is_err() {
                metrics::passive_ports_exhausted();
                return None;
            }
        }
    }

    fn try_reserve(&self, client: IpAddr) -> Option<Reservation> {
        let count = self.slice.count();
        let first = rand::random_range(0..count);
        let mut waiting = self.table.waiting();
        waiting.forget_cooled();
        // first + i < 2 * 65535, and the remainder is less than the slice's length.
        let ports = (0..count).map(|i| self.slice.from() + ((first + i) % count) as u16);
        let mut free = ports.filter(|port| !waiting.sessions.contains_key(&(*port, client)));
        let any = free.next()?;
        // One that cools down is better than none.
        let mut free = std::iter::once(any).chain(free);
        let port = free.find(|port| !waiting.is_cooling((*port, client))).unwrap_or(any);
        let (sender, arrival) = oneshot::channel();
        waiting.last_number += 1;
        let number = waiting.last_number;
        waiting.sessions.insert((port, client), (number, sender));
        metrics::passive_ports_reserved(waiting.sessions.len());
        Some(Reservation { port, client, number, arrival, table: Arc::clone(&self.table) })
    }
}

impl Table {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a connection to the session that waits for it, or closes it.
    fn deliver(&self, port: u16, client: IpAddr, socket: Socket) {
        let taken = {
            let mut waiting = self.waiting();
            let taken = waiting.sessions.remove(&(port, client));
            metrics::passive_ports_reserved(waiting.sessions.len());
            taken
        };
        match taken {
            Some((_, session)) => {
                self.freed.notify_waiters();
                // The session may have ended at this moment; then the connection is closed.
                let _ = session.send(socket);
            }
            None => {
                metrics::data_connection_refused("unexpected");
                log::debug!(port, address:% = client; "data connection that no session waits for");
            }
        }
    }

    /// [`Self::deliver`] for a connection that came from a balancer.
    fn deliver_for(&self, port: u16, balancer: SocketAddr, ends: Result<(Ends, Socket), NoClient>) {
        match ends {
            Ok((ends, socket)) => self.deliver(port, ends.client.ip(), socket),
            Err(NoClient::HealthCheck) => {}
            Err(error) => {
                metrics::data_connection_refused("proxy_header");
                log::warn!(port, peer:% = balancer; "data connection refused: {error}");
            }
        }
    }
}

impl Reservation {
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The client's connection. `None` cannot happen while the node runs.
    pub async fn accept(mut self) -> Option<Socket> {
        (&mut self.arrival).await.ok()
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let key = (self.port, self.client);
        let mut waiting = self.table.waiting();
        if waiting.sessions.get(&key).is_some_and(|(number, _)| *number == self.number) {
            waiting.sessions.remove(&key);
            waiting.cool_down(key);
            metrics::passive_ports_reserved(waiting.sessions.len());
            drop(waiting);
            self.table.freed.notify_waiters();
        }
    }
}

async fn accept(listener: UnwatchedListener, port: u16, table: Arc<Table>, trust: Arc<Trust>) {
    loop {
        let (socket, peer) = listener.accept().await;
        if !trust.is_balancer(peer.ip()) {
            table.deliver(port, peer.ip().to_canonical(), Socket::Plain(socket));
            continue;
        }
        if let Some(ends) = proxy_protocol::ends_at_once(&socket) {
            table.deliver_for(port, peer, ends.map(|ends| (ends, Socket::Plain(socket))));
            continue;
        }
        let (table, trust) = (Arc::clone(&table), Arc::clone(&trust));
        tokio::spawn(async move {
            let ends = async {
                let mut stream = Socket::Plain(socket).watched()?;
                let ends = trust.ends(&mut stream, peer).await?;
                Ok((ends, Socket::Watched(stream)))
            };
            let ends = ends.await;
            table.deliver_for(port, peer, ends);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(20);
    const ANNA: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const BERT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

    fn ports(from: u16, to: u16) -> PassivePorts {
        PassivePorts { slice: PortRange::new(from, to).unwrap(), table: Arc::default() }
    }

    #[tokio::test]
    async fn a_port_is_shared_by_addresses_but_not_by_sessions_of_one_address() {
        let ports = ports(50000, 50001);
        let first = ports.reserve(ANNA, SHORT).await.unwrap();
        let second = ports.reserve(ANNA, SHORT).await.unwrap();
        assert_ne!(first.port(), second.port());
        assert!(ports.reserve(ANNA, SHORT).await.is_none());
        assert!(ports.reserve(BERT, SHORT).await.is_some());
    }

    #[tokio::test]
    async fn who_waits_gets_the_port_that_comes_free() {
        let ports = Arc::new(ports(50000, 50000));
        let taken = ports.reserve(ANNA, SHORT).await.unwrap();
        let waiting = tokio::spawn({
            let ports = Arc::clone(&ports);
            async move { ports.reserve(ANNA, LONG).await.map(|r| r.port()) }
        });
        tokio::task::yield_now().await;
        drop(taken);
        assert_eq!(waiting.await.unwrap(), Some(50000));
    }

    #[tokio::test]
    async fn a_port_that_was_given_up_is_avoided_for_a_while_unless_it_is_the_only_one() {
        let ports = ports(50000, 50002);
        let given_up = ports.reserve(ANNA, SHORT).await.unwrap().port();
        for _ in 0..20 {
            let next = ports.reserve(ANNA, SHORT).await.unwrap();
            assert_ne!(next.port(), given_up);
            // As if its connection had come.
            ports.table.waiting().sessions.clear();
        }
        let others = [ports.reserve(ANNA, SHORT).await.unwrap(), ports.reserve(ANNA, SHORT).await.unwrap()];
        assert!(others.iter().all(|other| other.port() != given_up));
        assert_eq!(ports.reserve(ANNA, SHORT).await.unwrap().port(), given_up);
    }

    #[tokio::test]
    async fn an_old_reservation_does_not_give_back_its_successors_port() {
        let ports = ports(50000, 50000);
        let old = ports.reserve(ANNA, SHORT).await.unwrap();
        // As if the connection had come: the entry is gone, the reservation still lives.
        ports.table.waiting().sessions.clear();
        let new = ports.reserve(ANNA, SHORT).await.unwrap();
        drop(old);
        assert!(ports.reserve(ANNA, SHORT).await.is_none());
        drop(new);
        assert!(ports.reserve(ANNA, SHORT).await.is_some());
    }
}
