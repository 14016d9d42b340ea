//! The sessions that wait at passive ports, and the rules by which they share the ports of one client
//! address.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use common::node::PortRange;
use tokio::{sync::oneshot, time::Instant};

use super::{
    cooling::{COOL_DOWN, Cooling},
    own_ports::ReservablePorts,
};
use crate::{
    data::connected::Arrived,
    identity::{SessionIdentity, log_session},
    metrics,
    tls::Tls,
};

/// A port, and the client address that is expected there.
pub(super) type PortAndAddress = (u16, IpAddr);

/// A session that has reserved a port.
pub(super) struct WaitingSession {
    pub number: u64,
    pub since: Instant,
    /// The transfer command has come.
    pub is_claimed: bool,
    pub is_given_up: Arc<AtomicBool>,
    pub identity: Arc<SessionIdentity>,
    /// For sessions whose data connections are encrypted.
    pub tls: Option<Arc<Tls>>,
    pub connection: oneshot::Sender<Arrived>,
    /// The last unexpected address that connected to the port while several sessions waited there.
    pub stranger: Option<IpAddr>,
}

/// The sessions that have reserved ports, and those that wait for a free port.
#[derive(Default)]
pub(super) struct WaitingSessions {
    /// Ordered, so that the sessions that wait at one port are adjacent.
    pub sessions: BTreeMap<PortAndAddress, WaitingSession>,
    pub last_number: u64,
    pub cooling: Cooling,
    /// The number of sessions that wait for a free port, by address and user.
    pub asking: HashMap<IpAddr, HashMap<String, usize>>,
}

/// No port is free now.
pub(super) struct NoFreePort {
    /// The next time at which a port may become free, unless one is released before.
    pub look_again: Option<Instant>,
    /// Reservations were given up just now. Their ports cool down first.
    pub has_given_up: bool,
}

/// The number of ports, of `count`, that a user may hold while another user of the same address waits.
fn share(count: u32) -> usize {
    (count / 2).max(1) as usize
}

impl WaitingSessions {
    /// Returns true if the user holds its share of the address's `count` ports, and another user waits for
    /// one.
    pub(super) fn has_full_share(&self, identity: &SessionIdentity, count: u32) -> bool {
        let others_wait = self
            .asking
            .get(&identity.address)
            .is_some_and(|users| users.keys().any(|user| *user != identity.user));
        if !others_wait {
            return false;
        }
        let is_held = |(key, waiter): &(&PortAndAddress, &WaitingSession)| {
            key.1 == identity.address && waiter.identity.user == identity.user
        };
        self.sessions.iter().filter(is_held).count() >= share(count)
    }

    /// Gives up reservations for the session `identity`, whose address has no free port:
    ///
    /// * reservations that no transfer command has followed for `unused_limit`;
    /// * the oldest reservation of a user who has more than half of the ports, if another user waits and no
    ///   port is about to become free. Reservations without a transfer command go first. No reservation is
    ///   given up in its first two seconds, in which most clients use it.
    ///
    /// These ports cool down like any released port.
    pub(super) fn give_up(
        &mut self,
        ports: &ReservablePorts,
        identity: &SessionIdentity,
        unused_limit: Duration,
        now: Instant,
    ) -> NoFreePort {
        let address = identity.address;
        let mut look_again = None::<Instant>;
        let mut at = |time: Instant| look_again = Some(look_again.map_or(time, |first| first.min(time)));
        let mut held = HashMap::<&str, usize>::new();
        let mut unused = Vec::new();
        let mut cooling = 0;
        for port in ports.iter() {
            if let Some(end) = self.cooling.until(port, address) {
                cooling += 1;
                at(end);
            } else if let Some(waiter) = self.sessions.get(&(port, address)) {
                let end = waiter.since + unused_limit;
                if waiter.is_claimed {
                    *held.entry(&waiter.identity.user).or_default() += 1;
                } else if end <= now {
                    unused.push(port);
                } else {
                    *held.entry(&waiter.identity.user).or_default() += 1;
                    at(end);
                }
            }
        }
        let asking: usize = self.asking.get(&address).map_or(0, |users| users.values().sum());
        let mut beyond_share = None;
        if cooling + unused.len() < asking {
            match self.oldest_beyond_share(ports, identity, &held) {
                Some((port, since)) if since + COOL_DOWN <= now => beyond_share = Some(port),
                Some((_, since)) => at(since + COOL_DOWN),
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
            log_session!(
                log::Level::Debug, waiter.identity, port, reason;
                "gave up the reservation of a passive port, because another session waits for one"
            );
            self.cooling.add(port, address, now);
            at(now + COOL_DOWN);
        }
        metrics::passive_ports_reserved(self.sessions.len());
        NoFreePort { look_again, has_given_up }
    }

    /// The oldest reservation of another user who holds more than the share of the address's ports, and its
    /// start. Reservations without a transfer command come first. `held`: the number of ports of each user.
    fn oldest_beyond_share(
        &self,
        ports: &ReservablePorts,
        identity: &SessionIdentity,
        held: &HashMap<&str, usize>,
    ) -> Option<(u16, Instant)> {
        let limit = share(ports.count());
        let has_too_many = |waiter: &WaitingSession| {
            waiter.identity.user != identity.user
                && held.get(waiter.identity.user.as_str()).is_some_and(|held| *held > limit)
        };
        let waiters =
            ports.iter().filter_map(|port| Some((port, self.sessions.get(&(port, identity.address))?)));
        waiters
            .filter(|(_, waiter)| has_too_many(waiter))
            .min_by_key(|(_, waiter)| (waiter.is_claimed, waiter.since))
            .map(|(port, waiter)| (port, waiter.since))
    }

    /// Returns true if no session waits at these ports, and no late connection may still come for one that
    /// has waited there.
    pub(super) fn is_free(&mut self, ports: PortRange, now: Instant) -> bool {
        self.cooling.forget_until(now);
        self.sessions.range(keys_at(ports.from(), ports.to())).next().is_none() && !self.cooling.any_of(ports)
    }

    /// Ends all reservations at these ports, because another node gets the ports. Returns true if there were
    /// any.
    pub(super) fn end_all(&mut self, ports: PortRange, now: Instant) -> bool {
        let keys: Vec<_> =
            self.sessions.range(keys_at(ports.from(), ports.to())).map(|(key, _)| *key).collect();
        for (port, address) in &keys {
            let Some(waiter) = self.sessions.remove(&(*port, *address)) else { continue };
            waiter.is_given_up.store(true, Ordering::Release);
            metrics::passive_port_given_up("handed_over");
            log_session!(
                log::Level::Debug, waiter.identity, port;
                "gave up the reservation of a passive port, because another node gets the port"
            );
            self.cooling.add(*port, *address, now);
        }
        metrics::passive_ports_reserved(self.sessions.len());
        !keys.is_empty()
    }

    /// The sessions that wait at `port`.
    pub(super) fn at(&mut self, port: u16) -> impl Iterator<Item = (&PortAndAddress, &mut WaitingSession)> {
        self.sessions.range_mut(keys_at(port, port))
    }

    /// A connection to `port` from an unexpected address was refused. If one session waits there, the
    /// connection most likely belongs to it, and the log says so. If several wait, it may belong to any of
    /// them: each logs it if its own connection does not come.
    pub(super) fn refuse_stranger(&mut self, port: u16, stranger: IpAddr) {
        let mut waiters = self.at(port).map(|(_, waiter)| waiter);
        match (waiters.next(), waiters.next()) {
            (None, _) => {}
            (Some(only), None) => only.identity.log_foreign_data(port, stranger, false),
            (Some(first), Some(second)) => {
                for waiter in [first, second].into_iter().chain(waiters) {
                    waiter.stranger = Some(stranger);
                }
            }
        }
    }
}

/// The keys of the sessions at the ports from `first` to `last`.
fn keys_at(first: u16, last: u16) -> RangeInclusive<PortAndAddress> {
    (first, IpAddr::from(Ipv4Addr::UNSPECIFIED))..=(last, IpAddr::from(LAST_ADDRESS))
}

/// The last address in the order of [`IpAddr`].
const LAST_ADDRESS: Ipv6Addr = Ipv6Addr::from_bits(u128::MAX);
