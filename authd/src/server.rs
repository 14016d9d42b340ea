//! The HTTP connections: only so many at once, and none for those who say nothing.

use std::{net::SocketAddr, sync::Arc, time::Duration};

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
    sync::{Semaphore, oneshot},
};
use warp::{filters::BoxedFilter, reply::Response};

use crate::metrics;

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// What connections may take.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// How many at once; one more waits to be accepted.
    pub connections: usize,
    /// How long the head of a request may take to come, from the beginning or since the last answer.
    pub header_timeout: Duration,
}

/// The largest head of a request, in bytes.
const MAX_HEAD: usize = 64 * 1024;

/// Out of file descriptors, a listener has its next connection ready at once, and fails with it.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Serves until `stop` says so or is dropped, and then until the requests in flight are answered.
pub async fn serve(
    listener: TcpListener,
    routes: BoxedFilter<(Response,)>,
    limits: ConnectionLimits,
    mut stop: oneshot::Receiver<()>,
) {
    let places = Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS)));
    let service = TowerToHyperService::new(warp::service(routes));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.header_timeout).max_buf_size(MAX_HEAD);
    let open = GracefulShutdown::new();
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
                log::warn!(error:%; "cannot accept a connection");
                tokio::time::sleep(ACCEPT_REST).await;
                continue;
            }
        };
        let counted = Counted::new();
        let routes = service.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(Peer(peer));
            routes.call(request)
        });
        let connection = open.watch(http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            let _until_the_end = (place, counted);
            if let Err(error) = connection.await {
                log::debug!(error:%; "connection ended");
            }
        });
    }
    // Nobody connects any more.
    drop(listener);
    open.shutdown().await;
}

/// A connection as the metric counts it.
struct Counted;

impl Counted {
    fn new() -> Self {
        metrics::connected();
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        metrics::disconnected();
    }
}
