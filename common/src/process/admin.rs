//! `/metrics`, `/healthz` and `/readyz`: the same three answers from both daemons.

use std::{sync::Arc, time::Duration};

use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use warp::{Filter, Rejection, Reply, http::StatusCode, reply};

/// Upper bounds of the buckets of every histogram, in seconds.
const SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0];

/// Makes the process's metrics available to [`routes`]. Call once, within a runtime,
/// before the first metric.
///
/// # Errors
/// There is a recorder already.
pub fn install_metrics() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new().set_buckets(&SECONDS)?.install_recorder()?;
    let upkeep = handle.clone();
    // Histograms gather samples until they are rendered or drained here.
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_secs(10));
        loop {
            ticks.tick().await;
            upkeep.run_upkeep();
        }
    });
    Ok(handle)
}

/// Why a daemon is not ready, as one sentence; `Ok` if it is.
pub type Readiness = Result<(), String>;

/// The three routes. `/healthz` answers 200 as long as the process can; `/readyz` 200 or 503 with
/// the reason, as `readiness` says.
pub fn routes(
    metrics: PrometheusHandle,
    readiness: impl Fn() -> Readiness + Send + Sync + 'static,
) -> impl Filter<Extract = (impl Reply,), Error = Rejection> + Clone {
    let readiness = Arc::new(readiness);
    let metrics = warp::path!("metrics").map(move || {
        let text = metrics.render();
        reply::with_header(text, "content-type", "text/plain; version=0.0.4").into_response()
    });
    let health = warp::path!("healthz").map(|| "ok\n".into_response());
    let ready = warp::path!("readyz").map(move || match readiness() {
        Ok(()) => "ready\n".into_response(),
        Err(reason) => reply::with_status(reason + "\n", StatusCode::SERVICE_UNAVAILABLE).into_response(),
    });
    warp::get().and(metrics.or(health).unify().or(ready).unify())
}
