//! The HTTP connections, counted for the metrics.

use common::process::http::{self, Event};
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
        Event::Opened => metrics::connected(),
        Event::Closed => metrics::disconnected(),
        Event::Displaced => metrics::displaced(),
    };
    http::serve(listener, routes, limits, observe, stop).await;
}
