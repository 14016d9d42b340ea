//! HTTP connections of both daemons: a bounded number, a bounded time for the head of a request, and places that
//! silent connections cannot take.
//!
//! A connection is *vouched for* once a request on it has shown a token. Of the others there are at most
//! three quarters of all places; one more closes the oldest that has no request in progress. So nodes and
//! administrators always find a place, and a flood of connections that send nothing does not keep a health check
//! waiting.

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

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// What connections may take.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// How many at once; one more waits to be accepted. At least 1.
    pub connections: usize,
    /// How long the head of a request may take to come, from the beginning or since the last answer.
    pub header_timeout: Duration,
}

/// What happens to connections, for the daemon's metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpEvent {
    Opened,
    Closed,
    /// Closed because others came that found the places for connections without a token taken.
    Displaced,
}

/// The largest head of a request, in bytes.
const MAX_HEAD: usize = 64 * 1024;

/// Out of file descriptors, a listener has its next connection ready at once, and fails with it.
const ACCEPT_REST: Duration = Duration::from_millis(100);

task_local! {
    static STANDING: Arc<TrackedConnection>;
}

/// Says that the request which this task handles has shown a token: its connection keeps its place. Outside of a
/// request it does nothing.
pub fn vouch() {
    let _ = STANDING.try_with(|standing| standing.is_vouched_for.store(true, Ordering::Relaxed));
}

/// Serves until `stop` says so or is dropped, and then until the requests in flight are answered.
pub async fn serve(
    listener: TcpListener,
    routes: BoxedFilter<(Response,)>,
    limits: ConnectionLimits,
    observe: fn(HttpEvent),
    mut stop: oneshot::Receiver<()>,
) {
    let places = Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS)));
    let connections = Arc::new(OpenConnections { limits, open: Mutex::default() });
    let service = TowerToHyperService::new(warp::service(routes));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.header_timeout).max_buf_size(MAX_HEAD);
    let open = GracefulShutdown::new();
    let mut number = 0_u64;
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            next = next => next,
            _ = &mut stop => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                log::warn!(error:%; "cannot accept an HTTP connection");
                tokio::time::sleep(ACCEPT_REST).await;
                continue;
            }
        };
        number += 1;
        let standing = connections.add(number);
        if connections.make_room() {
            observe(HttpEvent::Displaced);
        }
        let routes = service.clone();
        let asked = Arc::clone(&standing);
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(Peer(peer));
            let busy = RequestGuard::new(&asked);
            let answered = STANDING.scope(Arc::clone(&asked), routes.call(request));
            async move {
                let answer = answered.await;
                drop(busy);
                answer
            }
        });
        let connection = open.watch(http.serve_connection(TokioIo::new(stream), service));
        let entry = ConnectionGuard { number, connections: Arc::clone(&connections), observe };
        observe(HttpEvent::Opened);
        tokio::spawn(async move {
            let _until_the_end = (place, entry);
            tokio::select! {
                ended = connection => {
                    if let Err(error) = ended {
                        log::debug!(error:%; "connection ended");
                    }
                }
                () = standing.displaced.notified() => {}
            }
        });
    }
    // Nobody connects any more.
    drop(listener);
    open.shutdown().await;
}

/// The connections that are open, by their number: the oldest first.
struct OpenConnections {
    limits: ConnectionLimits,
    open: Mutex<BTreeMap<u64, Arc<TrackedConnection>>>,
}

/// What decides whether a connection can be closed for another.
struct TrackedConnection {
    since: Instant,
    is_vouched_for: AtomicBool,
    /// Requests in progress.
    requests: AtomicUsize,
    displaced: Notify,
}

impl OpenConnections {
    fn add(&self, number: u64) -> Arc<TrackedConnection> {
        let standing = Arc::new(TrackedConnection {
            since: Instant::now(),
            is_vouched_for: AtomicBool::new(false),
            requests: AtomicUsize::new(0),
            displaced: Notify::new(),
        });
        self.open().insert(number, Arc::clone(&standing));
        standing
    }

    /// Closes a connection if too many are not vouched for; whether it did. A request in progress is spared for as
    /// long as the head of one may take: a client that does not read its answer must not keep its place.
    fn make_room(&self) -> bool {
        let mut open = self.open();
        let unknown = open.iter().filter(|(_, standing)| !standing.is_vouched_for.load(Ordering::Relaxed));
        let unknown: Vec<_> = unknown.collect();
        if unknown.len() <= (self.limits.connections * 3 / 4).max(1) {
            return false;
        }
        // The newest is the one that was just accepted.
        let others = &unknown[..unknown.len() - 1];
        let is_idle = |standing: &TrackedConnection| standing.requests.load(Ordering::Relaxed) == 0;
        let is_late = |standing: &TrackedConnection| standing.since.elapsed() > self.limits.header_timeout;
        let oldest = others.iter().find(|(_, standing)| is_idle(standing));
        let oldest = oldest.or_else(|| others.iter().find(|(_, standing)| is_late(standing)));
        let Some((number, standing)) = oldest.map(|(number, standing)| (**number, Arc::clone(standing)))
        else {
            return false;
        };
        open.remove(&number);
        // Kept for a task that does not wait yet.
        standing.displaced.notify_one();
        true
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<TrackedConnection>>> {
        lock(&self.open)
    }
}

/// A request in progress.
struct RequestGuard(Arc<TrackedConnection>);

impl RequestGuard {
    fn new(standing: &Arc<TrackedConnection>) -> Self {
        standing.requests.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(standing))
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection until its end.
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
    fn the_oldest_silent_connection_makes_room_and_none_with_a_token_or_a_request() {
        let all = connections(4);
        let standings: Vec<_> = (1..=3).map(|number| all.add(number)).collect();
        assert!(!all.make_room());
        standings[0].is_vouched_for.store(true, Ordering::Relaxed);
        let busy = RequestGuard::new(&standings[1]);
        all.add(4);
        assert!(!all.make_room(), "three are not vouched for");
        all.add(5);
        assert!(all.make_room());
        assert_eq!(numbers(&all), [1, 2, 4, 5]);
        drop(busy);
        all.add(6);
        assert!(all.make_room());
        assert_eq!(numbers(&all), [1, 4, 5, 6]);
    }

    #[test]
    fn a_request_that_takes_long_makes_room_if_no_other_can() {
        let mut all = connections(2);
        all.limits.header_timeout = Duration::ZERO;
        let busy = RequestGuard::new(&all.add(1));
        all.add(2);
        assert!(all.make_room());
        assert_eq!(numbers(&all), [2]);
        drop(busy);
    }
}
