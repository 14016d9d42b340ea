//! Keeps what authd knows of Redis current: reachability, settings, overrides of users.
//!
//! Runs without requests, too: a balancer that checks `/readyz` sends no request until authd is ready.

use std::{sync::Arc, time::Duration};

use common::registry::RegistryView;
use tokio::time::sleep;

use crate::{persistence, service::Service};

const INTERVAL: Duration = Duration::from_secs(1);

/// Asks Redis for a sign of life and for the overrides of declared users.
pub(crate) async fn refresh(service: &Service, registry: &RegistryView) {
    // The link itself records the results for the log, the metrics and the readiness.
    let _ = registry.link().query::<String>(&redis::cmd("PING")).await;
    registry.link().probe_writes(&registry.keys().write_probe()).await;
    service.accounts.refresh_overrides().await;
}

/// Calls [`refresh`] once per second and reacts to new connections. Never returns.
pub(crate) async fn run(service: Arc<Service>, registry: RegistryView) {
    let link = registry.link();
    // Number of the connection whose Redis settings were checked, and of the last connection seen.
    let (mut checked, mut seen) = (0, 0);
    // The previous process may have ended between a change and the next revision.
    service.revision.advance();
    loop {
        // A new connection may lead to another Redis or to changed settings.
        let connections = link.connections();
        if std::mem::replace(&mut seen, connections) != connections {
            service.revision.advance();
            service.learn_hash_costs().await;
        }
        if checked != connections && persistence::check(link).await {
            checked = connections;
        }
        // The report is not needed here, but the metrics that this call updates are.
        service.readiness();
        sleep(INTERVAL).await;
        refresh(&service, &registry).await;
    }
}
