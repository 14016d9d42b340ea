//! The balancers that reach this node: their addresses and control connections, for administrators.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{live::BalancerActivity, sync::lock};
use tokio::time::Instant;

/// A balancer without connections is forgotten after this time.
const KNOWN_FOR: Duration = Duration::from_secs(600);

/// Maximum number of balancers. With `behind_proxy` alone, each private address counts as one.
const MAX_KNOWN: usize = 64;

/// The balancers by address.
#[derive(Clone, Default)]
pub struct KnownBalancers(Arc<Mutex<BTreeMap<IpAddr, KnownBalancer>>>);

struct KnownBalancer {
    connections: u32,
    last: Instant,
}

/// A control connection from a balancer, until it is dropped.
pub struct BalancerConnection {
    balancers: KnownBalancers,
    address: IpAddr,
}

impl KnownBalancers {
    /// Notes a control connection, which may be a health check.
    pub fn connected(&self, address: IpAddr) -> BalancerConnection {
        let address = address.to_canonical();
        let mut known = lock(&self.0);
        if known.len() < MAX_KNOWN || known.contains_key(&address) {
            let found =
                known.entry(address).or_insert(KnownBalancer { connections: 0, last: Instant::now() });
            found.connections += 1;
            found.last = Instant::now();
        }
        BalancerConnection { balancers: self.clone(), address }
    }

    /// The balancers with connections now or in the last `KNOWN_FOR`.
    pub fn activity(&self) -> Vec<BalancerActivity> {
        let mut known = lock(&self.0);
        known.retain(|_, found| found.connections > 0 || found.last.elapsed() < KNOWN_FOR);
        let view = |(address, found): (&IpAddr, &KnownBalancer)| BalancerActivity {
            address: *address,
            connections: found.connections,
            seconds: found.last.elapsed().as_secs_f64(),
        };
        known.iter().map(view).collect()
    }
}

impl Drop for BalancerConnection {
    fn drop(&mut self) {
        // Beyond `MAX_KNOWN` the address may be missing, or have come since: then nothing is counted twice.
        if let Some(found) = lock(&self.balancers.0).get_mut(&self.address) {
            found.connections = found.connections.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_balancer_is_known_while_it_has_connections_and_some_minutes_longer() {
        let known = KnownBalancers::default();
        let one = known.connected("::ffff:192.0.2.1".parse().unwrap());
        let two = known.connected("192.0.2.1".parse().unwrap());
        let connections = || known.activity().iter().map(|found| found.connections).collect::<Vec<_>>();
        assert_eq!(connections(), [2]);
        drop(one);
        tokio::time::advance(KNOWN_FOR * 2).await;
        assert_eq!(connections(), [1]);
        drop(two);
        assert!(connections().is_empty());
        let three = known.connected("192.0.2.2".parse().unwrap());
        drop(three);
        assert_eq!(connections(), [0]);
    }

    #[test]
    fn the_number_of_known_balancers_is_bounded() {
        let known = KnownBalancers::default();
        let all: Vec<_> = (0..200).map(|last| known.connected([192, 0, 2, last].into())).collect();
        assert_eq!(known.activity().len(), MAX_KNOWN);
        drop(all);
        assert!(known.activity().iter().all(|found| found.connections == 0));
    }
}
