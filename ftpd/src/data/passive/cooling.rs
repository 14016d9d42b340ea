//! Ports whose reservations ended without a connection.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    time::Duration,
};

use common::node::PortRange;
use tokio::time::Instant;

/// How long a released port is not reserved again for the same address: somewhat longer than a client takes
/// to repeat a lost SYN (1 s, RFC 6298 section 2).
pub(super) const COOL_DOWN: Duration = Duration::from_secs(2);

/// Maximum number of ports of one address that cool down at once. Beyond it the oldest is forgotten. Other
/// addresses are not affected, so no client can make the node forget another client's ports.
pub(super) const MAX_COOLING: usize = 1024;

/// Reservations that were released before their connection arrived. Such a port is not reserved for the same
/// address for [`COOL_DOWN`]: a late connection would be matched to the next STOR and stored as a complete,
/// empty file.
#[derive(Default)]
pub(super) struct Cooling {
    addresses: HashMap<IpAddr, Ports>,
    /// Addresses, in the order in which their ports have cooled down.
    ends: VecDeque<(Instant, IpAddr)>,
}

/// The ports of one address.
#[derive(Default)]
struct Ports {
    until: HashMap<u16, Instant>,
    /// The same entries in the order of time. Entries of ports that were removed early remain.
    ends: VecDeque<(Instant, u16)>,
}

impl Cooling {
    /// Adds a port. It is not cooling down already, because it was reserved.
    pub(super) fn add(&mut self, port: u16, address: IpAddr, now: Instant) {
        let end = now + COOL_DOWN;
        let ports = self.addresses.entry(address).or_default();
        if ports.ends.len() == MAX_COOLING {
            ports.forget_first();
        }
        ports.until.insert(port, end);
        ports.ends.push_back((end, port));
        self.ends.push_back((end, address));
    }

    /// Removes a port whose connection has come.
    pub(super) fn remove(&mut self, port: u16, address: IpAddr) {
        if let Some(ports) = self.addresses.get_mut(&address) {
            ports.until.remove(&port);
        }
    }

    /// The time at which `port` has cooled down; `None` if it is not cooling down.
    pub(super) fn until(&self, port: u16, address: IpAddr) -> Option<Instant> {
        self.addresses.get(&address)?.until.get(&port).copied()
    }

    /// Returns true if one of these ports is cooling down for any address.
    pub(super) fn any_of(&self, range: PortRange) -> bool {
        self.addresses.values().any(|ports| ports.until.keys().any(|port| range.contains(*port)))
    }

    /// Removes all ports that have cooled down by `now`.
    pub(super) fn forget_until(&mut self, now: Instant) {
        while let Some((_, address)) = self.ends.pop_front_if(|(end, _)| *end <= now) {
            let Some(ports) = self.addresses.get_mut(&address) else { continue };
            while ports.ends.front().is_some_and(|(end, _)| *end <= now) {
                ports.forget_first();
            }
            if ports.ends.is_empty() {
                self.addresses.remove(&address);
            }
        }
    }

    /// The number of ports that cool down.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.addresses.values().map(|ports| ports.until.len()).sum()
    }

    /// The lengths of both queues, of all addresses together and of the addresses.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> (usize, usize) {
        (self.addresses.values().map(|ports| ports.ends.len()).sum(), self.ends.len())
    }
}

impl Ports {
    fn forget_first(&mut self) {
        if let Some((end, port)) = self.ends.pop_front()
            && self.until.get(&port) == Some(&end)
        {
            self.until.remove(&port);
        }
    }
}
