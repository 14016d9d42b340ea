//! The HTTP server of both daemons, with limits for connections and for the time to send a request.
//!
//! A connection is *trusted* after a request on it has presented a valid token. Untrusted connections may
//! be at most three quarters of all connections; one more closes the oldest that has no request in
//! progress. So nodes and administrators can always connect, and a flood of silent connections does not
//! delay a health check.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use hyper::{
    Request,
    body::Incoming,
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::TcpListener,
    sync::{Notify, Semaphore, oneshot},
    task_local,
};
use warp::{filters::BoxedFilter, reply::Response};

use crate::sync::lock;

/// The address from which a request was sent.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Limits of HTTP connections.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Maximum number of connections, at least 1. One more waits to be accepted.
    pub connections: usize,
    /// Time limit for the head of a request, from the start of the connection or the last response.
    pub header_timeout: Duration,
}

/// Events of connections, for the daemon's metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpEvent {
    Opened,
    Closed,
    /// Closed to make room for a newer untrusted connection.
    Displaced,
}

/// Maximum size of a request's head in bytes.
const MAX_HEAD: usize = 64 * 1024;

/// Pause after a failed accept. Without file descriptors, accept fails again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

task_local! {
    static CONNECTION: Arc<TrackedConnection>;
}

/// Marks the connection of the current request as trusted, because the request has presented a valid token.
/// Does nothing outside of a request.
pub fn trust_connection() {
    let _ = CONNECTION.try_with(|connection| connection.is_trusted.store(true, Ordering::Relaxed));
}

/// Serves requests until `stop` is sent or dropped, and then until all requests in progress are answered.
pub async fn serve(
    listener: TcpListener,
    routes: BoxedFilter<(Response,)>,
    limits: ConnectionLimits,
    observe: fn(HttpEvent),
    mut stop: oneshot::Receiver<()>,
) {
    let slots = Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS)));
    let connections = Arc::new(OpenConnections { limits, open: Mutex::default() });
    let service = TowerToHyperService::new(warp::service(routes));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.header_timeout).max_buf_size(MAX_HEAD);
    let open = GracefulShutdown::new();
    let mut number = 0_u64;
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            next = next => next,
            _ = &mut stop => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                log::warn!(error:%; "cannot accept an HTTP connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        number += 1;
        let tracked = connections.add(number);
        if connections.make_room() {
            observe(HttpEvent::Displaced);
        }
        let routes = service.clone();
        let requested_on = Arc::clone(&tracked);
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(Peer(peer));
            let in_progress = RequestGuard::new(&requested_on);
            let response = CONNECTION.scope(Arc::clone(&requested_on), routes.call(request));
            async move {
                let response = response.await;
                drop(in_progress);
                response
            }
        });
        let connection = open.watch(http.serve_connection(TokioIo::new(stream), service));
        let entry = ConnectionGuard { number, connections: Arc::clone(&connections), observe };
        observe(HttpEvent::Opened);
        tokio::spawn(async move {
            let _until_the_end = (slot, entry);
            tokio::select! {
                ended = connection => {
                    if let Err(error) = ended {
                        log::debug!(error:%; "connection ended");
                    }
                }
                () = tracked.displaced.notified() => {}
            }
        });
    }
    // Refuse new connections.
    drop(listener);
    open.shutdown().await;
}

/// The open connections by their number, oldest first.
struct OpenConnections {
    limits: ConnectionLimits,
    open: Mutex<BTreeMap<u64, Arc<TrackedConnection>>>,
}

/// The state of a connection that decides whether a newer one may displace it.
struct TrackedConnection {
    since: Instant,
    is_trusted: AtomicBool,
    /// Number of requests in progress.
    requests: AtomicUsize,
    displaced: Notify,
}

impl OpenConnections {
    fn add(&self, number: u64) -> Arc<TrackedConnection> {
        let tracked = Arc::new(TrackedConnection {
            since: Instant::now(),
            is_trusted: AtomicBool::new(false),
            requests: AtomicUsize::new(0),
            displaced: Notify::new(),
        });
        self.open().insert(number, Arc::clone(&tracked));
        tracked
    }

    /// Closes a connection if too many are untrusted. Returns true if it closed one. A connection with a
    /// request in progress is closed only if it is older than `header_timeout`, so that a client that does
    /// not read its response cannot keep its connection for ever.
    fn make_room(&self) -> bool {
        let mut open = self.open();
        let untrusted = open.iter().filter(|(_, tracked)| !tracked.is_trusted.load(Ordering::Relaxed));
        let untrusted: Vec<_> = untrusted.collect();
        if untrusted.len() <= (self.limits.connections * 3 / 4).max(1) {
            return false;
        }
        // The newest connection was just accepted and is not closed.
        let others = &untrusted[..untrusted.len() - 1];
        let is_idle = |tracked: &TrackedConnection| tracked.requests.load(Ordering::Relaxed) == 0;
        let is_late = |tracked: &TrackedConnection| tracked.since.elapsed() > self.limits.header_timeout;
        let oldest = others.iter().find(|(_, tracked)| is_idle(tracked));
        let oldest = oldest.or_else(|| others.iter().find(|(_, tracked)| is_late(tracked)));
        let Some((number, tracked)) = oldest.map(|(number, tracked)| (**number, Arc::clone(tracked))) else {
            return false;
        };
        open.remove(&number);
        // `notify_one` also wakes a task that starts to wait later.
        tracked.displaced.notify_one();
        true
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<TrackedConnection>>> {
        lock(&self.open)
    }
}

/// Counts a request in progress until it is dropped.
struct RequestGuard(Arc<TrackedConnection>);

impl RequestGuard {
    fn new(tracked: &Arc<TrackedConnection>) -> Self {
        tracked.requests.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(tracked))
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Removes a connection from the open ones when it is dropped.
struct ConnectionGuard {
    number: u64,
    connections: Arc<OpenConnections>,
    observe: fn(HttpEvent),
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.connections.open().remove(&self.number);
        (self.observe)(HttpEvent::Closed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(connections: usize) -> OpenConnections {
        let limits = ConnectionLimits { connections, header_timeout: Duration::from_secs(3600) };
        OpenConnections { limits, open: Mutex::default() }
    }

    fn numbers(connections: &OpenConnections) -> Vec<u64> {
        connections.open().keys().copied().collect()
    }

    #[test]
    fn the_oldest_untrusted_connection_without_a_request_is_closed() {
        let all = connections(4);
        let tracked: Vec<_> = (1..=3).map(|number| all.add(number)).collect();
        assert!(!all.make_room());
        tracked[0].is_trusted.store(true, Ordering::Relaxed);
        let busy = RequestGuard::new(&tracked[1]);
        all.add(4);
        assert!(!all.make_room(), "three are untrusted");
        all.add(5);
        assert!(all.make_room());
        assert_eq!(numbers(&all), [1, 2, 4, 5]);
        drop(busy);
        all.add(6);
        assert!(all.make_room());
        assert_eq!(numbers(&all), [1, 4, 5, 6]);
    }

    #[test]
    fn a_connection_with_a_long_request_is_closed_if_there_is_no_other() {
        let mut all = connections(2);
        all.limits.header_timeout = Duration::ZERO;
        let busy = RequestGuard::new(&all.add(1));
        all.add(2);
        assert!(all.make_room());
        assert_eq!(numbers(&all), [2]);
        drop(busy);
    }
}
