//! The node's slice of the passive port range: listeners that stay, and reservations that match.
//!
//! A port is listened on once, for as long as the node runs. A session reserves (port, client
//! address); a connection is matched by the port it came to and the client's real address. So a
//! port serves many clients at once. A connection from another address is closed, unless it proves by the TLS
//! session that it resumes which session it belongs to.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use common::node::PortRange;
use tokio::{
    sync::{Notify, Semaphore, oneshot},
    time::{Instant, timeout_at},
};

use super::connected::{Arrived, Socket};
use crate::{
    listener::{self, UnwatchedListener},
    metrics,
    proxy_protocol::{self, Ends, NoClient, Trust},
    session::Subject,
    tls::Tls,
};

/// The passive ports of this node.
pub struct PassivePorts {
    slice: PortRange,
    table: Arc<Table>,
}

/// Connections from addresses that no session waits for whose TLS handshakes may run at once. Each lasts no
/// longer than `tls_handshake_timeout`; one more is refused.
const PROOFS_AT_ONCE: usize = 16;

struct Table {
    waiting: Mutex<Waiting>,
    /// A reservation ended: who waits for a port may look again.
    freed: Notify,
    proofs: Arc<Semaphore>,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            waiting: Mutex::default(),
            freed: Notify::new(),
            proofs: Arc::new(Semaphore::new(PROOFS_AT_ONCE)),
        }
    }
}

/// A port, and the address whose connection to it is waited for.
type Key = (u16, IpAddr);

/// A session that has reserved a port.
struct Waiter {
    number: u64,
    subject: Arc<Subject>,
    /// What its data connections are encrypted with.
    tls: Option<Arc<Tls>>,
    connection: oneshot::Sender<Arrived>,
    /// The last address from which a connection came to the port that no session had reserved it for, while
    /// several sessions waited there.
    stranger: Option<IpAddr>,
}

#[derive(Default)]
struct Waiting {
    /// Ordered, so that the sessions which wait at one port stand together.
    sessions: BTreeMap<Key, Waiter>,
    last_number: u64,
    cooling: Cooling,
}

/// Ports that sessions have given up without a connection, until it comes or will not come any more:
/// taken for the next session's, it would be an upload that is empty, and complete.
#[derive(Default)]
struct Cooling {
    until: HashMap<Key, Instant>,
    /// The same, the first to end first, and what has ended early.
    ends: VecDeque<(Instant, Key)>,
}

/// As long as a client whose first attempt to connect was lost on the way takes for the second (RFC 6298
/// section 2), and somewhat more.
const COOL_DOWN: Duration = Duration::from_secs(2);

/// Beyond so many the oldest are forgotten.
const MOST_COOLING: usize = 4096;

impl Cooling {
    /// `key` is not among them: a port that cools down is not reserved.
    fn add(&mut self, key: Key, now: Instant) {
        if self.ends.len() == MOST_COOLING {
            self.forget_first();
        }
        let end = now + COOL_DOWN;
        self.until.insert(key, end);
        self.ends.push_back((end, key));
    }

    fn forget_until(&mut self, now: Instant) {
        while self.ends.front().is_some_and(|(end, _)| *end <= now) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some((end, key)) = self.ends.pop_front()
            && self.until.get(&key) == Some(&end)
        {
            self.until.remove(&key);
        }
    }
}

/// Why there is no port at this time.
struct NoPort {
    /// When the first of those that cool down has done so.
    cooled: Option<Instant>,
}

/// A port on which one client's next connection belongs to one session. Dropping it gives the
/// port back.
pub struct Reservation {
    port: u16,
    client: IpAddr,
    number: u64,
    arrival: oneshot::Receiver<Arrived>,
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

    /// Reserves a port for the next data connection of `subject`: a random one, so that it cannot be
    /// guessed. If all are taken by sessions from the same address, or have just been given up by
    /// them, waits for one. `None` if none comes free within `wait`.
    ///
    /// `tls`: what the session's data connections are encrypted with. A connection from another address than
    /// the client's then gets the port, too, if it resumes the session's TLS.
    pub async fn reserve(
        &self,
        subject: &Arc<Subject>,
        tls: Option<&Arc<Tls>>,
        wait: Duration,
    ) -> Option<Reservation> {
        if let Ok(reservation) = self.try_reserve(subject, tls) {
            return Some(reservation);
        }
        let deadline = Instant::now() + wait;
        loop {
            // Registered before looking: a port freed in between is not missed.
            let mut freed = Box::pin(self.table.freed.notified());
            freed.as_mut().enable();
            let cooled = match self.try_reserve(subject, tls) {
                Ok(reservation) => return Some(reservation),
                Err(none) => none.cooled,
            };
            let look_again = cooled.map_or(deadline, |cooled| cooled.min(deadline));
            if timeout_at(look_again, freed).await.is_err() && look_again == deadline {
                metrics::passive_ports_exhausted();
                return None;
            }
        }
    }

    fn try_reserve(&self, subject: &Arc<Subject>, tls: Option<&Arc<Tls>>) -> Result<Reservation, NoPort> {
        let client = subject.address;
        let count = self.slice.count();
        let first = rand::random_range(0..count);
        let mut waiting = self.table.waiting();
        waiting.cooling.forget_until(Instant::now());
        let mut cooled = None::<Instant>;
        // first + i < 2 * 65535, and the remainder is less than the slice's length.
        let mut ports = (0..count).map(|i| self.slice.from() + ((first + i) % count) as u16);
        let free = ports.find(|port| {
            let key = (*port, client);
            let Some(end) = waiting.cooling.until.get(&key) else {
                return !waiting.sessions.contains_key(&key);
            };
            cooled = Some(cooled.map_or(*end, |cooled| cooled.min(*end)));
            false
        });
        let port = free.ok_or(NoPort { cooled })?;
        let (connection, arrival) = oneshot::channel();
        waiting.last_number += 1;
        let number = waiting.last_number;
        let waiter =
            Waiter { number, subject: Arc::clone(subject), tls: tls.cloned(), connection, stranger: None };
        waiting.sessions.insert((port, client), waiter);
        metrics::passive_ports_reserved(waiting.sessions.len());
        Ok(Reservation { port, client, number, arrival, table: Arc::clone(&self.table) })
    }
}

impl Waiting {
    /// The sessions that wait at `port`.
    fn at(&mut self, port: u16) -> impl Iterator<Item = (&Key, &mut Waiter)> {
        let all = (port, IpAddr::from(Ipv4Addr::UNSPECIFIED))..=(port, IpAddr::from(LAST_ADDRESS));
        self.sessions.range_mut(all)
    }

    /// A connection to `port` from an address that no session there has was refused. Where one session waits
    /// it is most likely that session's, and the log says so. Where several wait, it may be of any: those say
    /// so which then get no connection of their own.
    fn refuse_stranger(&mut self, port: u16, stranger: IpAddr) {
        let mut waiters = self.at(port).map(|(_, waiter)| waiter);
        match (waiters.next(), waiters.next()) {
            (None, _) => {}
            (Some(only), None) => only.subject.log_foreign_data(port, stranger, false),
            (Some(first), Some(second)) => {
                for waiter in [first, second].into_iter().chain(waiters) {
                    waiter.stranger = Some(stranger);
                }
            }
        }
    }
}

/// No address comes after it in the order of [`IpAddr`].
const LAST_ADDRESS: Ipv6Addr = Ipv6Addr::from_bits(u128::MAX);

impl Table {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a connection to the session that waits for it. One from an address that no session there has may
    /// still prove by its TLS session whose it is; otherwise it is closed.
    fn deliver(self: &Arc<Self>, port: u16, client: IpAddr, arrived: Arrived) {
        let (taken, tls) = {
            let mut waiting = self.waiting();
            let taken = waiting.sessions.remove(&(port, client));
            let tls = if taken.is_none() {
                waiting.cooling.until.remove(&(port, client));
                waiting.at(port).find_map(|(_, waiter)| waiter.tls.clone())
            } else {
                None
            };
            metrics::passive_ports_reserved(waiting.sessions.len());
            (taken, tls)
        };
        self.freed.notify_waiters();
        match (taken, tls) {
            (Some(waiter), _) => {
                // The session may have ended at this moment; then the connection is closed.
                let _ = waiter.connection.send(arrived);
            }
            (None, Some(tls)) => match Arc::clone(&self.proofs).try_acquire_owned() {
                Ok(permit) => {
                    let table = Arc::clone(self);
                    tokio::spawn(async move {
                        let _permit = permit;
                        table.prove(port, client, arrived, &tls).await;
                    });
                }
                Err(_) => self.refuse_stranger(port, client),
            },
            (None, None) => self.refuse_stranger(port, client),
        }
    }

    /// Does the TLS handshake of a connection from an address that no session at `port` has, and hands it to
    /// the session there whose TLS session it resumes. The client whose address is right loses nothing
    /// meanwhile: its reservation stays until the proof is there.
    async fn prove(&self, port: u16, stranger: IpAddr, arrived: Arrived, tls: &Tls) {
        let Arrived { socket, by_balancer, .. } = arrived;
        let proof = async {
            let mut stream = socket.watched()?;
            let (records, handshake) = tls.accept_unclaimed_data(&mut stream).await?;
            Ok::<_, io::Error>((stream, records, handshake.resumed))
        };
        let (stream, records, session) = match proof.await {
            Ok((stream, records, Some(session))) => (stream, records, session),
            Ok((_, _, None)) | Err(_) => return self.refuse_stranger(port, stranger),
        };
        let taken = {
            let mut waiting = self.waiting();
            let is_own = |waiter: &Waiter| waiter.subject.session == session && waiter.tls.is_some();
            let key = waiting.at(port).find_map(|(key, waiter)| is_own(waiter).then_some(*key));
            let taken = key.and_then(|key| waiting.sessions.remove(&key));
            metrics::passive_ports_reserved(waiting.sessions.len());
            taken
        };
        let Some(waiter) = taken else { return self.refuse_stranger(port, stranger) };
        self.freed.notify_waiters();
        waiter.subject.log_foreign_data(port, stranger, true);
        let records = Some(Box::new(records));
        let arrived = Arrived { socket: Socket::Watched(stream), by_balancer, records };
        // As in `deliver`.
        let _ = waiter.connection.send(arrived);
    }

    fn refuse_stranger(&self, port: u16, stranger: IpAddr) {
        self.waiting().refuse_stranger(port, stranger);
        metrics::data_connection_refused("unexpected");
        log::debug!(port, address:% = stranger; "data connection that no session waits for");
    }

    /// [`Self::deliver`] for a connection that came from a balancer.
    fn deliver_for(
        self: &Arc<Self>,
        port: u16,
        balancer: SocketAddr,
        ends: Result<(Ends, Socket), NoClient>,
    ) {
        match ends {
            Ok((ends, socket)) => {
                self.deliver(port, ends.client.ip(), Arrived { socket, by_balancer: true, records: None });
            }
            // A health check: it has no session, so it gets no data.
            Err(NoClient::Left | NoClient::Balancer) => {}
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
    pub async fn accept(mut self) -> Option<Arrived> {
        (&mut self.arrival).await.ok()
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let key = (self.port, self.client);
        let mut waiting = self.table.waiting();
        if waiting.sessions.get(&key).is_none_or(|waiter| waiter.number != self.number) {
            return;
        }
        let waiter = waiting.sessions.remove(&key);
        waiting.cooling.add(key, Instant::now());
        metrics::passive_ports_reserved(waiting.sessions.len());
        drop(waiting);
        self.table.freed.notify_waiters();
        if let Some(Waiter { subject, stranger: Some(stranger), .. }) = waiter {
            subject.log_foreign_data(self.port, stranger, false);
        }
    }
}

async fn accept(listener: UnwatchedListener, port: u16, table: Arc<Table>, trust: Arc<Trust>) {
    loop {
        let (socket, peer) = listener.accept().await;
        if !trust.is_balancer(peer.ip()) {
            let arrived = Arrived { socket: Socket::Plain(socket), by_balancer: false, records: None };
            table.deliver(port, peer.ip().to_canonical(), arrived);
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
    use common::session::SessionId;

    use super::*;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(20);
    const ANNA: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const BERT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

    fn of(address: IpAddr) -> Arc<Subject> {
        Arc::new(Subject::new(SessionId::random(), "u".to_owned(), address))
    }

    fn ports(from: u16, to: u16) -> PassivePorts {
        PassivePorts { slice: PortRange::new(from, to).unwrap(), table: Arc::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_is_shared_by_addresses_but_not_by_sessions_of_one_address() {
        let ports = ports(50000, 50001);
        let first = ports.reserve(&of(ANNA), None, SHORT).await.unwrap();
        let second = ports.reserve(&of(ANNA), None, SHORT).await.unwrap();
        assert_ne!(first.port(), second.port());
        assert!(ports.reserve(&of(ANNA), None, SHORT).await.is_none());
        assert!(ports.reserve(&of(BERT), None, SHORT).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_gets_the_port_that_comes_free() {
        let ports = Arc::new(ports(50000, 50000));
        let taken = ports.reserve(&of(ANNA), None, SHORT).await.unwrap();
        let waiting = tokio::spawn({
            let ports = Arc::clone(&ports);
            async move { ports.reserve(&of(ANNA), None, LONG).await.map(|r| r.port()) }
        });
        tokio::task::yield_now().await;
        drop(taken);
        assert_eq!(waiting.await.unwrap(), Some(50000));
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_that_was_given_up_is_nobodys_at_its_address_for_a_while() {
        let ports = ports(50000, 50002);
        let given_up = ports.reserve(&of(ANNA), None, SHORT).await.unwrap().port();
        for _ in 0..20 {
            let next = ports.reserve(&of(ANNA), None, SHORT).await.unwrap();
            assert_ne!(next.port(), given_up);
            // As if its connection had come.
            ports.table.waiting().sessions.clear();
        }
        let _others = [
            ports.reserve(&of(ANNA), None, SHORT).await.unwrap(),
            ports.reserve(&of(ANNA), None, SHORT).await.unwrap(),
        ];
        assert!(ports.reserve(&of(ANNA), None, SHORT).await.is_none());
        let start = Instant::now();
        let again = ports.reserve(&of(ANNA), None, LONG).await.unwrap();
        assert_eq!(again.port(), given_up);
        assert!(start.elapsed() < COOL_DOWN);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_gives_up_most_ports_does_not_fill_the_memory() {
        let ports = ports(1, 65535);
        let mut reservations = Vec::new();
        for _ in 0..MOST_COOLING + 100 {
            reservations.push(ports.reserve(&of(ANNA), None, SHORT).await.unwrap());
        }
        drop(reservations);
        let sizes = |waiting: &Waiting| (waiting.cooling.until.len(), waiting.cooling.ends.len());
        assert_eq!(sizes(&ports.table.waiting()), (MOST_COOLING, MOST_COOLING));
        tokio::time::advance(COOL_DOWN).await;
        drop(ports.reserve(&of(ANNA), None, SHORT).await.unwrap());
        assert_eq!(sizes(&ports.table.waiting()), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_reservation_does_not_give_back_its_successors_port() {
        let ports = ports(50000, 50000);
        let old = ports.reserve(&of(ANNA), None, SHORT).await.unwrap();
        // As if the connection had come: the entry is gone, the reservation still lives.
        ports.table.waiting().sessions.clear();
        let new = ports.reserve(&of(ANNA), None, SHORT).await.unwrap();
        drop(old);
        assert!(ports.table.waiting().cooling.ends.is_empty());
        assert!(ports.reserve(&of(ANNA), None, SHORT).await.is_none());
        drop(new);
        assert!(ports.reserve(&of(ANNA), None, LONG).await.is_some());
    }
}
