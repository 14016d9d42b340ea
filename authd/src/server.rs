//! Serves HTTP and counts the connections for the metrics.

use common::process::http::{self, ConnectionLimits, Event};
use tokio::{net::TcpListener, sync::oneshot};
use warp::{filters::BoxedFilter, reply::Response};

use crate::metrics;

/// Serves until `stop` is sent or dropped, then until the requests in progress are answered.
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
