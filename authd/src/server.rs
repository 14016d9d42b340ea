//! Serves HTTP and counts the connections for the metrics.

use common::process::http::{self, ConnectionLimits, HttpEvent};
use tokio::{net::TcpListener, sync::oneshot};
use warp::{filters::BoxedFilter, reply::Response};

use crate::metrics;

/// Serves until `stop` is sent or dropped, then until the requests in progress are answered.
pub(crate) async fn serve(
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
