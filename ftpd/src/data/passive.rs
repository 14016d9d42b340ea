//! The node's slice of the passive port range: listeners that stay, and reservations that match.
//!
//! A port is listened on once, for as long as the node runs. A session reserves (port, client
//! address); a connection is matched by the port it came to and the client's real address. So a
//! port serves many clients at once. A connection from another address is closed, unless it proves by the TLS
//! session that it resumes which session it belongs to.
//!
//! Where the ports of an address run out, reservations are given up that no transfer has followed for long, and
//! those by which one user holds more than half of the ports while another waits: see `Waiting::give_up`.

mod cooling;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use common::node::PortRange;
use tokio::{
    sync::{Notify, Semaphore, oneshot},
    time::{Instant, timeout_at},
};

use self::cooling::{COOL_DOWN, Cooling};
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
    /// How long a reservation waits for the transfer command.
    unused_limit: Duration,
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
    since: Instant,
    /// The transfer command has come.
    is_claimed: bool,
    is_given_up: Arc<AtomicBool>,
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
    /// How many sessions wait for a port, by address and user.
    asking: HashMap<IpAddr, HashMap<String, usize>>,
}

/// Why there is no port at this time.
struct NoPort {
    /// When there may be one, unless one is freed before.
    look_again: Option<Instant>,
    has_given_up: bool,
}

/// A port on which one client's next connection belongs to one session. Dropping it gives the
/// port back.
pub struct Reservation {
    port: u16,
    client: IpAddr,
    number: u64,
    is_given_up: Arc<AtomicBool>,
    arrival: oneshot::Receiver<Arrived>,
    table: Arc<Table>,
}

impl PassivePorts {
    /// Listens on every port of the slice at each of `addresses`, until the process ends. `unused_limit`: how
    /// long a reservation waits for the transfer command where ports are short.
    ///
    /// # Errors
    /// A port cannot be listened on: the address and the reason.
    pub fn listen(
        slice: PortRange,
        addresses: &[IpAddr],
        trust: &Arc<Trust>,
        unused_limit: Duration,
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
        Ok(Self { slice, unused_limit, table })
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
        let _asking = Asking::begin(&self.table, subject);
        loop {
            // Registered before looking: a port freed in between is not missed.
            let mut freed = Box::pin(self.table.freed.notified());
            freed.as_mut().enable();
            let none = match self.try_reserve(subject, tls) {
                Ok(reservation) => return Some(reservation),
                Err(none) => none,
            };
            if none.has_given_up {
                self.table.freed.notify_waiters();
            }
            let look_again = none.look_again.map_or(deadline, |time| time.min(deadline));
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
        // first + i < 2 * 65535, and the remainder is less than the slice's length.
        let mut ports = (0..count).map(|i| self.slice.from() + ((first + i) % count) as u16);
        let now = Instant::now();
        let mut waiting = self.table.waiting();
        waiting.cooling.forget_until(now);
        if waiting.must_stand_back(subject, count) {
            return Err(NoPort { look_again: None, has_given_up: false });
        }
        let is_free = |port: &u16| {
            waiting.cooling.until(*port, client).is_none() && !waiting.sessions.contains_key(&(*port, client))
        };
        let Some(port) = ports.find(is_free) else {
            return Err(waiting.give_up(self.slice, subject, self.unused_limit, now));
        };
        let (connection, arrival) = oneshot::channel();
        waiting.last_number += 1;
        let number = waiting.last_number;
        let is_given_up = Arc::<AtomicBool>::default();
        let waiter = Waiter {
            number,
            since: now,
            is_claimed: false,
            is_given_up: Arc::clone(&is_given_up),
            subject: Arc::clone(subject),
            tls: tls.cloned(),
            connection,
            stranger: None,
        };
        waiting.sessions.insert((port, client), waiter);
        metrics::passive_ports_reserved(waiting.sessions.len());
        Ok(Reservation { port, client, number, is_given_up, arrival, table: Arc::clone(&self.table) })
    }
}

/// How many of `count` ports a user may hold while another user of the same address waits.
fn share(count: u32) -> usize {
    (count / 2).max(1) as usize
}

/// A session that waits for a port.
struct Asking<'t> {
    table: &'t Table,
    subject: &'t Subject,
}

impl<'t> Asking<'t> {
    fn begin(table: &'t Table, subject: &'t Subject) -> Self {
        let mut waiting = table.waiting();
        *waiting.asking.entry(subject.address).or_default().entry(subject.user.clone()).or_default() += 1;
        drop(waiting);
        Self { table, subject }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut waiting = self.table.waiting();
        let Some(users) = waiting.asking.get_mut(&self.subject.address) else { return };
        if let Some(count) = users.get_mut(&self.subject.user) {
            *count -= 1;
            if *count == 0 {
                users.remove(&self.subject.user);
            }
        }
        if users.is_empty() {
            waiting.asking.remove(&self.subject.address);
        }
    }
}

impl Waiting {
    /// Whether the user has a full share of the address's `count` ports, and another user waits for one.
    fn must_stand_back(&self, subject: &Subject, count: u32) -> bool {
        let others_wait = self
            .asking
            .get(&subject.address)
            .is_some_and(|users| users.keys().any(|user| *user != subject.user));
        if !others_wait {
            return false;
        }
        let is_held =
            |(key, waiter): &(&Key, &Waiter)| key.1 == subject.address && waiter.subject.user == subject.user;
        self.sessions.iter().filter(is_held).count() >= share(count)
    }

    /// Makes room for `subject`, whose address has no free port:
    ///
    /// * gives up reservations that no transfer command has followed for `unused_limit`;
    /// * gives up the oldest reservation of a user who has more than half of the ports, if another user waits
    ///   and no port is about to be free. Those that no transfer command has followed go first. A reservation is not given up for this in its first two seconds, in
    ///   which most clients use it.
    ///
    /// Such a port cools down as any other that is given up.
    fn give_up(
        &mut self,
        slice: PortRange,
        subject: &Subject,
        unused_limit: Duration,
        now: Instant,
    ) -> NoPort {
        let address = subject.address;
        let mut look_again = None::<Instant>;
        let mut at = |time: Instant| look_again = Some(look_again.map_or(time, |first| first.min(time)));
        let mut held = HashMap::<&str, usize>::new();
        let mut unused = Vec::new();
        let mut cooling = 0;
        for port in slice.iter() {
            if let Some(end) = self.cooling.until(port, address) {
                cooling += 1;
                at(end);
            } else if let Some(waiter) = self.sessions.get(&(port, address)) {
                let end = waiter.since + unused_limit;
                if waiter.is_claimed {
                    *held.entry(&waiter.subject.user).or_default() += 1;
                } else if end <= now {
                    unused.push(port);
                } else {
                    *held.entry(&waiter.subject.user).or_default() += 1;
                    at(end);
                }
            }
        }
        let asking: usize = self.asking.get(&address).map_or(0, |users| users.values().sum());
        let has_too_many = |waiter: &Waiter| {
            waiter.subject.user != subject.user
                && held.get(waiter.subject.user.as_str()).is_some_and(|held| *held > share(slice.count()))
        };
        let mut beyond_share = None;
        if cooling + unused.len() < asking {
            let waiters = slice.iter().filter_map(|port| Some((port, self.sessions.get(&(port, address))?)));
            let oldest = waiters
                .filter(|(_, waiter)| has_too_many(waiter))
                .min_by_key(|(_, waiter)| (waiter.is_claimed, waiter.since));
            match oldest {
                Some((port, waiter)) if waiter.since + COOL_DOWN <= now => beyond_share = Some(port),
                Some((_, waiter)) => at(waiter.since + COOL_DOWN),
                None => {}
            }
        }
        let has_given_up = !unused.is_empty() || beyond_share.is_some();
        for (port, reason) in
            unused.into_iter().map(|port| (port, "unused")).chain(beyond_share.map(|port| (port, "share")))
        {
            let Some(waiter) = self.sessions.remove(&(port, address)) else { continue };
            waiter.is_given_up.store(true, Ordering::Release);
            metrics::passive_port_given_up(reason);
            let subject = &waiter.subject;
            log::debug!(
                session:% = subject.session, user = subject.user.as_str(), address:%, port, reason;
                "gave up the reservation of a passive port, because another session waits for one"
            );
            self.cooling.add(port, address, now);
            at(now + COOL_DOWN);
        }
        metrics::passive_ports_reserved(self.sessions.len());
        NoPort { look_again, has_given_up }
    }

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
                waiting.cooling.remove(port, client);
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

    /// Whether the port was taken away, because other sessions of the address waited for one.
    pub fn is_given_up(&self) -> bool {
        self.is_given_up.load(Ordering::Acquire)
    }

    /// The client's connection. `None` if the port was given up.
    pub async fn accept(mut self) -> Option<Arrived> {
        if let Some(waiter) = self.table.waiting().sessions.get_mut(&(self.port, self.client))
            && waiter.number == self.number
        {
            waiter.is_claimed = true;
        }
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
        waiting.cooling.add(self.port, self.client, Instant::now());
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
mod tests;
