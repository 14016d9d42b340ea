//! The HTTP connections, counted for the metrics.

use common::process::http::{self, HttpEvent};
pub use common::process::http::{ConnectionLimits, Peer};
use tokio::{net::TcpListener, sync::oneshot};
use warp::{filters::BoxedFilter, reply::Response};

use crate::metrics;

/// Serves until `stop` says so or is dropped, and then until the requests in flight are answered.
pub async fn serve(
    listener: TcpListener,
    routes: BoxedFilter<(Response,)>,
    limits: ConnectionLimits,
    stop: oneshot::Receiver<()>,
) {
    let observe = |event| match event {
        HttpEvent::Opened => metrics::connected(),
        HttpEvent::Closed => metrics::disconnected(),
        HttpEvent::Displaced => metrics::displaced(),
    };
    http::serve(listener, routes, limits, observe, stop).await;
}
