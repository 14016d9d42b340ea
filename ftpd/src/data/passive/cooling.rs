//! Ports that sessions have given up without a connection.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    time::Duration,
};

use tokio::time::Instant;

/// How long a port is not reserved again for the same address after a session has given it up: as long as a
/// client whose first attempt to connect was lost takes for the second (RFC 6298 section 2), and somewhat more.
pub const COOL_DOWN: Duration = Duration::from_secs(2);

/// Ports of one address that cool down at once. Beyond these the oldest is forgotten. The ports of other
/// addresses are not touched: no client can make the node forget another's.
pub const MOST_COOLING: usize = 1024;

/// Ports that sessions have given up without a connection. A port is not reserved for the same address during
/// [`COOL_DOWN`]: a connection that comes late would otherwise be taken for the next session's, and be an
/// upload that is empty and complete.
#[derive(Default)]
pub struct Cooling {
    addresses: HashMap<IpAddr, Ports>,
    /// Addresses, the first to have a port that has cooled down at the front.
    ends: VecDeque<(Instant, IpAddr)>,
}

/// The ports of one address.
#[derive(Default)]
struct Ports {
    until: HashMap<u16, Instant>,
    /// The same in the order of time, and ports that were taken out early.
    ends: VecDeque<(Instant, u16)>,
}

impl Cooling {
    /// `port` is not among them: a port that cools down is not reserved.
    pub fn add(&mut self, port: u16, address: IpAddr, now: Instant) {
        let end = now + COOL_DOWN;
        let ports = self.addresses.entry(address).or_default();
        if ports.ends.len() == MOST_COOLING {
            ports.forget_first();
        }
        ports.until.insert(port, end);
        ports.ends.push_back((end, port));
        self.ends.push_back((end, address));
    }

    /// The connection of `port` has come.
    pub fn remove(&mut self, port: u16, address: IpAddr) {
        if let Some(ports) = self.addresses.get_mut(&address) {
            ports.until.remove(&port);
        }
    }

    /// When `port` has cooled down; `None` if it has already.
    pub fn until(&self, port: u16, address: IpAddr) -> Option<Instant> {
        self.addresses.get(&address)?.until.get(&port).copied()
    }

    pub fn forget_until(&mut self, now: Instant) {
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

    /// How many ports cool down.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.addresses.values().map(|ports| ports.until.len()).sum()
    }

    /// How much there is to remember: of all addresses, and in the order of time.
    #[cfg(test)]
    pub fn remembered(&self) -> (usize, usize) {
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
