//! Lines of the log on connections whose clients have not logged in: so many a minute, then a summary. Any
//! client can cause them, and the system's log drops lines of its own choice when there are too many.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use common::client_network::network_of;
use tokio::time::{Instant, sleep_until};

/// Lines are counted in this time, and summed up at its end.
const WINDOW: Duration = Duration::from_secs(60);

/// All networks together have this many times the lines of one.
const NETWORKS: u32 = 10;

/// Networks that are told apart in a window. The lines of others are left out, and counted together.
const MOST_NETWORKS: usize = 4096;

/// Decides which lines are written. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ConnectionLog(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Lines of one kind in a window for one network; 0: no limit.
    limit: u32,
    window: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    /// `None`: nothing has been counted.
    end: Option<Instant>,
    kinds: HashMap<&'static str, Kind>,
}

/// The lines of one kind.
#[derive(Debug, Default)]
struct Kind {
    written: u32,
    omitted: u64,
    /// By network.
    lines: HashMap<IpAddr, u32>,
}

impl ConnectionLog {
    /// `limit`: `failure_log_limit`.
    pub fn new(limit: u32) -> Self {
        Self(Arc::new(Shared { limit, window: Mutex::default() }))
    }

    /// Whether there is room for a line of this kind on a connection from `address`. What is left out is summed up
    /// at the end of the minute. To be called within the runtime.
    pub fn has_room(&self, kind: &'static str, address: IpAddr) -> bool {
        if self.0.limit == 0 {
            return true;
        }
        let mut window = self.0.window();
        if window.end.is_none() {
            let end = Instant::now() + WINDOW;
            window.end = Some(end);
            let shared = Arc::clone(&self.0);
            tokio::spawn(async move {
                sleep_until(end).await;
                let window = std::mem::take(&mut *shared.window());
                window.sum_up(shared.limit);
            });
        }
        window.kinds.entry(kind).or_default().has_room(network_of(address), self.0.limit)
    }
}

impl Shared {
    fn window(&self) -> MutexGuard<'_, Window> {
        // Nothing panics while it holds the lock.
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kind {
    fn has_room(&mut self, network: IpAddr, limit: u32) -> bool {
        let is_known = self.lines.contains_key(&network);
        let has_room = if is_known || self.lines.len() < MOST_NETWORKS {
            let lines = self.lines.entry(network).or_default();
            *lines = lines.saturating_add(1);
            *lines <= limit && self.written < limit.saturating_mul(NETWORKS)
        } else {
            false
        };
        if has_room {
            self.written += 1;
        } else {
            self.omitted += 1;
        }
        has_room
    }

    /// The network with the most lines.
    fn busiest(&self) -> Option<IpAddr> {
        self.lines.iter().max_by_key(|(_, lines)| **lines).map(|(network, _)| *network)
    }
}

impl Window {
    fn sum_up(self, limit: u32) {
        for (kind, counted) in self.kinds {
            let Some(network) = counted.busiest().filter(|_| counted.omitted > 0) else { continue };
            let (omitted, networks) = (counted.omitted, counted.lines.len());
            log::warn!(
                kind, omitted, networks, busiest:% = network;
                "{omitted} more lines of this kind are not in the log (failure_log_limit = {limit})"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0xc000_0200 + number).into()
    }

    #[tokio::test(start_paused = true)]
    async fn a_network_has_so_many_lines_a_minute_and_all_together_ten_times_as_many() {
        let log = ConnectionLog::new(3);
        let written = |kind, number| (0..5).filter(|_| log.has_room(kind, address(number))).count();
        assert_eq!((0..20).map(|number| written("refused", number)).sum::<usize>(), 30);
        assert_eq!(written("handshake", 0), 3);
        assert_eq!(log.0.window().kinds["refused"].omitted, 70);
        tokio::time::sleep(WINDOW + Duration::from_millis(1)).await;
        assert!(log.0.window().kinds.is_empty());
        assert_eq!(written("refused", 0), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn any_number_of_networks_takes_bounded_memory_and_without_a_limit_nothing_is_counted() {
        let log = ConnectionLog::new(1);
        (0..2 * MOST_NETWORKS as u32).for_each(|number| _ = log.has_room("refused", address(number)));
        assert_eq!(log.0.window().kinds["refused"].lines.len(), MOST_NETWORKS);
        let log = ConnectionLog::new(0);
        assert!((0..1000).all(|_| log.has_room("refused", address(0))));
        assert!(log.0.window().kinds.is_empty());
    }
}
