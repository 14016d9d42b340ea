//! The routes `/metrics`, `/healthz` and `/readyz` of all daemons.

use std::{sync::Arc, time::Duration};

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::{net::TcpListener, sync::oneshot};
use warp::{Filter, Rejection, Reply, http::StatusCode, reply};

use super::http::{self, ConnectionLimits, HttpEvent};
use crate::{
    health::ReadinessReport,
    metric::{self, Metric},
};

/// Upper bounds of the buckets of histograms that name none, in seconds.
const SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0];

/// Starts recording the daemon's metrics for [`routes`]. Call it once, within a runtime, before the first
/// metric.
///
/// # Errors
/// There is already a recorder.
pub fn install_metrics(metrics: &[Metric]) -> Result<PrometheusHandle, BuildError> {
    let mut builder = PrometheusBuilder::new().set_buckets(&SECONDS)?;
    for (name, buckets) in metrics.iter().filter_map(|metric| Some((metric.name, metric.buckets?))) {
        builder = builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), buckets)?;
    }
    let handle = builder.install_recorder()?;
    metric::describe(metrics);
    let upkeep = handle.clone();
    // Histograms collect samples until they are rendered or drained here.
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_secs(10));
        loop {
            ticks.tick().await;
            upkeep.run_upkeep();
        }
    });
    Ok(handle)
}

/// The three routes. `/healthz` always answers 200. `/readyz` answers 200 or 503 with the report of
/// `readiness` as JSON.
pub fn routes(
    metrics: PrometheusHandle,
    readiness: impl Fn() -> ReadinessReport + Send + Sync + 'static,
) -> impl Filter<Extract = (impl Reply,), Error = Rejection> + Clone {
    let readiness = Arc::new(readiness);
    let metrics = warp::path!("metrics").map(move || {
        let text = metrics.render();
        reply::with_header(text, "content-type", "text/plain; version=0.0.4").into_response()
    });
    let health = warp::path!("healthz").map(|| "ok\n".into_response());
    let ready = warp::path!("readyz").map(move || {
        let report = readiness();
        let status = if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let body = reply::with_status(reply::json(&report), status);
        // The report is outdated at once.
        reply::with_header(body, "cache-control", "no-store").into_response()
    });
    // The server omits the body of a response to HEAD.
    warp::get().or(warp::head()).unify().and(metrics.or(health).unify().or(ready).unify())
}

/// Serves [`routes`] until the process ends. `observe` is told of the connections.
pub fn serve(
    listener: TcpListener,
    metrics: PrometheusHandle,
    limits: ConnectionLimits,
    observe: fn(HttpEvent),
    readiness: impl Fn() -> ReadinessReport + Send + Sync + 'static,
) {
    let routes = routes(metrics, readiness).map(Reply::into_response).boxed();
    tokio::spawn(async move {
        // Never used: the server runs until the process ends.
        let (_stop, stopped) = oneshot::channel();
        http::serve(listener, routes, limits, observe, stopped).await;
    });
}
