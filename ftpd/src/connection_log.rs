//! Limits the log lines about connections without a login to `failure_log_limit` a minute, with a summary of
//! the rest. Any client can cause such lines, and the system's log drops arbitrary lines when there are too
//! many.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use common::{client_network::network_of, sync};
use tokio::time::{Instant, sleep_until};

/// Lines are counted for this time. A summary follows at its end.
const WINDOW: Duration = Duration::from_secs(60);

/// The limit for all networks together, as a multiple of the limit for one network.
const NETWORKS: u32 = 10;

/// Networks counted separately in a window. Lines of further networks are omitted and counted together.
const MAX_NETWORKS: usize = 4096;

/// Decides which lines are logged. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ConnectionLog(Arc<ConnectionLogInner>);

#[derive(Debug)]
struct ConnectionLogInner {
    /// Maximum lines of one kind in a window for one network; 0: no limit.
    limit: u32,
    window: Mutex<LogWindow>,
}

#[derive(Debug, Default)]
struct LogWindow {
    /// `None`: no line has been counted yet.
    end: Option<Instant>,
    kinds: HashMap<&'static str, KindCounts>,
}

/// Counts of lines of one kind.
#[derive(Debug, Default)]
struct KindCounts {
    written: u32,
    omitted: u64,
    /// Lines by network, logged or not.
    lines: HashMap<IpAddr, u32>,
}

impl ConnectionLog {
    /// `limit` is the setting `failure_log_limit`.
    pub fn new(limit: u32) -> Self {
        Self(Arc::new(ConnectionLogInner { limit, window: Mutex::default() }))
    }

    /// Returns true if a line of this kind about a connection from `address` may be logged. Omitted lines are
    /// counted in a summary at the end of the minute. Call it within the runtime.
    pub fn may_log(&self, kind: &'static str, address: IpAddr) -> bool {
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
                window.log_summary(shared.limit);
            });
        }
        window.kinds.entry(kind).or_default().count(network_of(address), self.0.limit)
    }
}

impl ConnectionLogInner {
    fn window(&self) -> MutexGuard<'_, LogWindow> {
        sync::lock(&self.window)
    }
}

impl KindCounts {
    /// Counts a line. Returns true if it may be logged.
    fn count(&mut self, network: IpAddr, limit: u32) -> bool {
        let is_known = self.lines.contains_key(&network);
        let may_log = if is_known || self.lines.len() < MAX_NETWORKS {
            let lines = self.lines.entry(network).or_default();
            *lines = lines.saturating_add(1);
            *lines <= limit && self.written < limit.saturating_mul(NETWORKS)
        } else {
            false
        };
        if may_log {
            self.written += 1;
        } else {
            self.omitted += 1;
        }
        may_log
    }

    /// The network with the most lines.
    fn busiest(&self) -> Option<IpAddr> {
        self.lines.iter().max_by_key(|(_, lines)| **lines).map(|(network, _)| *network)
    }
}

impl LogWindow {
    fn log_summary(self, limit: u32) {
        for (kind, counted) in self.kinds {
            let Some(network) = counted.busiest().filter(|_| counted.omitted > 0) else { continue };
            let (omitted, networks) = (counted.omitted, counted.lines.len());
            log::warn!(
                kind, omitted, networks, busiest:% = network;
                "omitted {omitted} log lines of this kind (failure_log_limit = {limit})"
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
    async fn one_network_may_log_the_limit_a_minute_and_all_networks_ten_times_that() {
        let log = ConnectionLog::new(3);
        let written = |kind, number| (0..5).filter(|_| log.may_log(kind, address(number))).count();
        assert_eq!((0..20).map(|number| written("refused", number)).sum::<usize>(), 30);
        assert_eq!(written("handshake", 0), 3);
        assert_eq!(log.0.window().kinds["refused"].omitted, 70);
        tokio::time::sleep(WINDOW + Duration::from_millis(1)).await;
        assert!(log.0.window().kinds.is_empty());
        assert_eq!(written("refused", 0), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_for_any_number_of_networks_and_limit_0_counts_nothing() {
        let log = ConnectionLog::new(1);
        (0..2 * MAX_NETWORKS as u32).for_each(|number| _ = log.may_log("refused", address(number)));
        assert_eq!(log.0.window().kinds["refused"].lines.len(), MAX_NETWORKS);
        let log = ConnectionLog::new(0);
        assert!((0..1000).all(|_| log.may_log("refused", address(0))));
        assert!(log.0.window().kinds.is_empty());
    }
}
