//! The passive ports of this node, and their reservations.
//!
//! A node of a cluster listens on the whole passive range, for as long as it runs, and owns some of its
//! ports: blocks that it leases, or a fixed slice. A session reserves one of these ports for its client
//! address; a connection is matched by its port and its client address. So one port serves many clients at
//! once. A connection from another address is closed, unless its TLS session proves to which session it
//! belongs. `arrivals` decides which connections belong to other nodes.
//!
//! If the ports run out for a client address, the node gives up reservations that no transfer command has
//! followed for long, and reservations of a user who holds more than half of the ports while another user
//! waits: see `WaitingSessions::give_up`.

mod arrivals;
mod cooling;
mod own_ports;
mod waiting;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use common::{node::PortRange, registry::Registry, sync::lock};
use tokio::{
    sync::{Notify, Semaphore, oneshot, watch},
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use self::{
    arrivals::Arrivals,
    own_ports::OwnPorts,
    waiting::{NoFreePort, WaitingSession, WaitingSessions},
};
pub use self::{arrivals::Door, own_ports::describe};
use super::connected::{Arrived, Socket};
use crate::{
    client_address::TrustedBalancers,
    identity::SessionIdentity,
    listener::{BoundSocket, ListenerSet},
    metrics,
    tls::Tls,
};

/// The passive ports of this node.
pub struct PassivePorts {
    own: OwnPorts,
    accepting: Mutex<Option<Accepting>>,
    /// How long a reservation may wait for the transfer command while ports are short.
    unused_limit: Duration,
    table: Arc<ReservationTable>,
}

/// The task that accepts connections.
struct Accepting {
    /// Dropped to end the task.
    open: watch::Sender<()>,
    task: JoinHandle<()>,
}

/// Interval at which a waiting session looks again whether the node may reserve ports.
const MAY_RESERVE_INTERVAL: Duration = Duration::from_millis(500);

/// Maximum number of TLS handshakes of connections from unexpected addresses at once. Each lasts at most
/// `tls_handshake_timeout`; a further connection is refused.
const PROOFS_AT_ONCE: usize = 16;

struct ReservationTable {
    waiting: Mutex<WaitingSessions>,
    /// Notified when a reservation ends: a port may be free.
    freed: Notify,
    proofs: Arc<Semaphore>,
}

impl Default for ReservationTable {
    fn default() -> Self {
        Self {
            waiting: Mutex::default(),
            freed: Notify::new(),
            proofs: Arc::new(Semaphore::new(PROOFS_AT_ONCE)),
        }
    }
}

/// A passive port that is reserved for one session and client address. Dropping it frees the port.
pub struct Reservation {
    port: u16,
    client: IpAddr,
    number: u64,
    is_given_up: Arc<AtomicBool>,
    arrival: oneshot::Receiver<Arrived>,
    table: Arc<ReservationTable>,
}

/// The sockets of the passive ports, bound before the node listens.
pub struct PassiveSockets(Vec<BoundSocket>);

impl PassiveSockets {
    /// Binds every port of `range` at each of `addresses`.
    ///
    /// # Errors
    /// The address that cannot be bound, and the reason.
    pub fn bind(range: PortRange, addresses: &[IpAddr]) -> Result<Self, (SocketAddr, io::Error)> {
        let all = range.iter().flat_map(|port| addresses.iter().map(move |ip| SocketAddr::new(*ip, port)));
        let bind = |address| BoundSocket::new(address).map_err(|error| (address, error));
        Ok(Self(all.map(bind).collect::<Result<_, _>>()?))
    }
}

impl PassivePorts {
    /// The ports that this node owns by the registry. `unused_limit`: how long a reservation may wait for the
    /// transfer command while ports are short, and how long it may delay the hand-over of its block. Must be
    /// called within the runtime.
    pub fn new(registry: &Registry, unused_limit: Duration) -> Self {
        Self::of(OwnPorts::new(registry), unused_limit)
    }

    fn of(own: OwnPorts, unused_limit: Duration) -> Self {
        let table = Arc::<ReservationTable>::default();
        tokio::spawn(own_ports::keep(own.clone(), Arc::clone(&table), unused_limit));
        Self { own, accepting: Mutex::default(), unused_limit, table }
    }

    /// Listens on the sockets until [`Self::stop_listening`]. `door`: the other nodes of the cluster.
    ///
    /// # Errors
    /// The address on which the node cannot listen, and the reason.
    pub fn serve(
        &self,
        sockets: PassiveSockets,
        balancers: &Arc<TrustedBalancers>,
        door: Option<Door>,
    ) -> Result<(), (SocketAddr, io::Error)> {
        let listeners = ListenerSet::listen(sockets.0)?;
        let arrivals = Arrivals {
            table: Arc::clone(&self.table),
            own: self.own.clone(),
            balancers: Arc::clone(balancers),
            door,
            waits: Arc::default(),
        };
        let (open, is_open) = watch::channel(());
        let task = tokio::spawn(Arc::new(arrivals).accept(listeners, is_open));
        *lock(&self.accepting) = Some(Accepting { open, task });
        Ok(())
    }

    /// Closes the listeners. Connections that have arrived are served to their end.
    pub async fn stop_listening(&self) {
        let accepting = lock(&self.accepting).take();
        if let Some(Accepting { open, task }) = accepting {
            drop(open);
            // An error would be a panic, which the log shows.
            let _ = task.await;
        }
    }

    /// The reason why a session got no port, for the log.
    pub fn shortage(&self) -> String {
        if self.own.reservable().is_none() {
            return "this node cannot renew its lease of passive ports in Redis (registry_away = refuse)"
                .to_owned();
        }
        let ports = self.own.describe();
        if ports.is_empty() {
            return "this node owns no passive ports: it has not reached Redis, or the passive range has \
                    fewer blocks than there are nodes (passive_block_ports, passive_port_min, \
                    passive_port_max)"
                .to_owned();
        }
        format!(
            "no passive port became free for this client address within passive_wait: this node has the \
             ports {ports}; give it more (passive_port_min, passive_port_max)"
        )
    }

    /// Reserves a random port, which an attacker cannot guess, for the next data connection of the session.
    /// Waits while sessions from the same address hold all ports, or released them a moment ago. `None` if no
    /// port becomes free within `wait`.
    ///
    /// `tls`: set if the session's data connections are encrypted. Then a connection from another address
    /// than the client's is accepted, too, if it resumes the session's TLS.
    pub async fn reserve(
        &self,
        identity: &Arc<SessionIdentity>,
        tls: Option<&Arc<Tls>>,
        wait: Duration,
    ) -> Option<Reservation> {
        if let Ok(reservation) = self.try_reserve(identity, tls) {
            return Some(reservation);
        }
        let deadline = Instant::now() + wait;
        let _request = PortRequest::begin(&self.table, identity);
        loop {
            // Registered before the attempt, so that a port that is freed in between is not missed.
            let mut freed = Box::pin(self.table.freed.notified());
            freed.as_mut().enable();
            let no_port = match self.try_reserve(identity, tls) {
                Ok(reservation) => return Some(reservation),
                Err(no_port) => no_port,
            };
            if no_port.has_given_up {
                self.table.freed.notify_waiters();
            }
            let look_again = no_port.look_again.map_or(deadline, |time| time.min(deadline));
            if timeout_at(look_again, freed).await.is_err() && look_again == deadline {
                metrics::passive_ports_exhausted();
                return None;
            }
        }
    }

    fn try_reserve(
        &self,
        identity: &Arc<SessionIdentity>,
        tls: Option<&Arc<Tls>>,
    ) -> Result<Reservation, NoFreePort> {
        let client = identity.address;
        let now = Instant::now();
        let mut waiting = self.table.waiting();
        let Some(ports) = self.own.reservable() else {
            let look_again = Some(now + MAY_RESERVE_INTERVAL);
            return Err(NoFreePort { look_again, has_given_up: false });
        };
        waiting.cooling.forget_until(now);
        if waiting.has_full_share(identity, ports.count()) {
            return Err(NoFreePort { look_again: None, has_given_up: false });
        }
        let is_free = |port: &u16| {
            waiting.cooling.until(*port, client).is_none() && !waiting.sessions.contains_key(&(*port, client))
        };
        let Some(port) = ports.each_once().find(is_free) else {
            return Err(waiting.give_up(&ports, identity, self.unused_limit, now));
        };
        let (connection, arrival) = oneshot::channel();
        waiting.last_number += 1;
        let number = waiting.last_number;
        let is_given_up = Arc::<AtomicBool>::default();
        let waiter = WaitingSession {
            number,
            since: now,
            is_claimed: false,
            is_given_up: Arc::clone(&is_given_up),
            identity: Arc::clone(identity),
            tls: tls.cloned(),
            connection,
            stranger: None,
        };
        waiting.sessions.insert((port, client), waiter);
        metrics::passive_ports_reserved(waiting.sessions.len());
        Ok(Reservation { port, client, number, is_given_up, arrival, table: Arc::clone(&self.table) })
    }
}

/// A session that waits for a free port.
struct PortRequest<'t> {
    table: &'t ReservationTable,
    identity: &'t SessionIdentity,
}

impl<'t> PortRequest<'t> {
    fn begin(table: &'t ReservationTable, identity: &'t SessionIdentity) -> Self {
        let mut waiting = table.waiting();
        *waiting.asking.entry(identity.address).or_default().entry(identity.user.clone()).or_default() += 1;
        drop(waiting);
        Self { table, identity }
    }
}

impl Drop for PortRequest<'_> {
    fn drop(&mut self) {
        let mut waiting = self.table.waiting();
        let Some(users) = waiting.asking.get_mut(&self.identity.address) else { return };
        if let Some(count) = users.get_mut(&self.identity.user) {
            *count -= 1;
            if *count == 0 {
                users.remove(&self.identity.user);
            }
        }
        if users.is_empty() {
            waiting.asking.remove(&self.identity.address);
        }
    }
}

impl ReservationTable {
    fn waiting(&self) -> MutexGuard<'_, WaitingSessions> {
        lock(&self.waiting)
    }

    /// Returns true if a session waits at this port for a client with this address.
    fn is_reserved(&self, port: u16, client: IpAddr) -> bool {
        self.waiting().sessions.contains_key(&(port, client))
    }

    /// Hands a connection to the session that waits for it. A connection from an unexpected address may still
    /// prove by its TLS session to which session it belongs; otherwise it is closed.
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
                // If the session has ended meanwhile, the connection is closed.
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

    /// Does the TLS handshake of a connection from an unexpected address, and hands the connection to the
    /// session at `port` whose TLS session it resumes. Until then the reservation stays, so that the client's
    /// own connection is not lost.
    async fn prove(&self, port: u16, stranger: IpAddr, arrived: Arrived, tls: &Tls) {
        let Arrived { socket, by_balancer, .. } = arrived;
        let proof = async {
            let mut stream = socket.register()?;
            let (records, handshake) = tls.accept_unclaimed_data(&mut stream).await?;
            Ok::<_, io::Error>((stream, records, handshake.resumed))
        };
        let (stream, records, session) = match proof.await {
            Ok((stream, records, Some(session))) => (stream, records, session),
            Ok((_, _, None)) | Err(_) => return self.refuse_stranger(port, stranger),
        };
        let taken = {
            let mut waiting = self.waiting();
            let is_own = |waiter: &WaitingSession| waiter.identity.session == session && waiter.tls.is_some();
            let key = waiting.at(port).find_map(|(key, waiter)| is_own(waiter).then_some(*key));
            let taken = key.and_then(|key| waiting.sessions.remove(&key));
            metrics::passive_ports_reserved(waiting.sessions.len());
            taken
        };
        let Some(waiter) = taken else { return self.refuse_stranger(port, stranger) };
        self.freed.notify_waiters();
        waiter.identity.log_foreign_data(port, stranger, true);
        let records = Some(Box::new(records));
        let arrived = Arrived { socket: Socket::Registered(stream), by_balancer, records };
        // As in `deliver`.
        let _ = waiter.connection.send(arrived);
    }

    fn refuse_stranger(&self, port: u16, stranger: IpAddr) {
        self.waiting().refuse_stranger(port, stranger);
        metrics::data_connection_refused("unexpected");
        log::debug!(port, address:% = stranger; "refused a data connection that no session expects");
    }
}

impl Reservation {
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns true if the reservation was given up, because other sessions of the address waited for a port.
    pub fn is_given_up(&self) -> bool {
        self.is_given_up.load(Ordering::Acquire)
    }

    /// Waits for the client's connection. `None` if the reservation was given up.
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
        if let Some(WaitingSession { identity, stranger: Some(stranger), .. }) = waiter {
            identity.log_foreign_data(self.port, stranger, false);
        }
    }
}

#[cfg(test)]
mod tests;
