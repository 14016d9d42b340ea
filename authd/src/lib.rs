//! `authd`, the central service of a cluster. It decides logins, keeps users and groups, and shows and ends
//! sessions.
//!
//! # The path of a request
//!
//! A login (`POST /v1/authenticate`) passes through these modules:
//!
//! 1. `common::process::http` accepts the connection. Connections without a token get at most three
//!    quarters of `max_connections`.
//! 2. `routes` reads the body within its limits (16 KiB, 10 seconds), finds the operation for path and
//!    method, and checks the node's bearer token with `tokens`.
//! 3. [`handlers::login`] asks [`throttle`] whether this user and this client address may try now. The
//!    counts are in Redis, for all authd instances together.
//! 4. [`accounts`] finds the user: declared in the users file, or in Redis.
//! 5. [`accounts::cache`] knows that the password was right a moment ago, or [`accounts::password`]
//!    computes argon2 on a separate thread. For an unknown user, the computation takes as long.
//! 6. [`accounts::policy`] merges the policies of the user and of the groups, and the login conditions
//!    are checked.
//! 7. [`throttle`] counts the failure or success.
//! 8. The node gets an `Account`, or an [`error::ApiError`]. `error` maps it to a status and a public
//!    code. The log and the metrics get the exact reason.
//!
//! A change through the API (`PATCH /v1/users/{name}`) takes steps 1 and 2 with the administrators'
//! token. Then [`handlers::users`] reads the user's record from Redis ([`accounts::stored`]), applies the
//! change, and writes the record back if it is unchanged in Redis; otherwise it starts again. If the
//! change revokes logins, `revocation` sends the nodes the command to end the user's sessions.
//!
//! # The page
//!
//! `page` holds the page's files and the sessions of its users. A browser shows the session's cookie instead
//! of a bearer token; [`handlers::page`] finds the administrator of the cookie. Everything else is the same
//! API.
//!
//! # Sessions of past logins
//!
//! After each change, `revision` increments the revision in Redis. Nodes that see a new revision ask
//! `POST /v1/authorized` ([`handlers::authorized`]) which of their sessions may continue. This works even
//! if a command to end sessions was lost.
//!
//! # Background tasks
//!
//! - `reload` reads the users file again after SIGHUP and when it changes.
//! - `redis_monitor` keeps what authd knows of Redis current, for `/readyz` and for the time when Redis
//!   is away.
//! - `instances` publishes this authd in Redis.
//! - `history` takes a point of the cluster's state every 10 seconds.
//! - `feed_source` computes the events of `GET /v1/live` while there are listeners.
//! - `revision` increments the revision, and retries while Redis cannot be reached.
//!
//! # Dependencies between modules
//!
//! From bottom to top: `metrics`; `accounts`, `administrators`, `audit_window`, `backup`, `feed`, `history`,
//! `instances`, `login_blocks`, `path_glob`, `settings`; `page`, `throttle`; `error`, `tokens`, `revision`;
//! `config`; `service` (the state that requests share); `revocation`, `reload`, `redis_monitor`; `handlers`;
//! `admin_audit`, `feed_source`; `routes`; this module. No module depends on a higher one.

pub mod accounts;
mod admin_audit;
pub mod administrators;
mod audit_window;
mod backup;
pub mod config;
pub mod error;
mod feed;
mod feed_source;
pub mod handlers;
mod history;
mod instances;
mod login_blocks;
mod metrics;
mod page;
mod path_glob;
mod persistence;
mod redis_monitor;
mod reload;
mod revision;
mod revocation;
mod routes;
mod server;
pub mod service;
pub mod settings;
mod startup;
pub mod throttle;
mod tokens;

use std::{io, sync::Arc, time::Duration};

use common::{
    admin_api::AuthdView,
    process::{
        admin,
        capabilities::{self, Kept},
        service as systemd,
        signals::{SignalRequest, Signals},
    },
    settings::SettingsReloader,
};
use tokio::{net::TcpListener, sync::oneshot, time::timeout};

use crate::{
    config::Config,
    service::{Service, ServiceError},
};

/// The one privilege that authd keeps when it runs as root: reading all files, for users files of other
/// owners.
pub const KEPT_BY_ROOT: Kept = Kept::ReadFiles;

/// Time for the last records of the audit trail when authd stops.
const AUDIT_GRACE: Duration = Duration::from_secs(3);

/// The reason why authd cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Files(#[from] ServiceError),
    #[error("cannot listen on {address}")]
    Listen {
        address: std::net::SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("cannot drop capabilities")]
    Capabilities(#[source] io::Error),
    #[error("cannot install signal handlers")]
    Signals(#[source] io::Error),
    #[error("cannot collect metrics: {0}")]
    Metrics(String),
}

/// Serves until SIGTERM, then finishes the requests in progress.
///
/// # Errors
/// The users file cannot be used, or the address cannot be bound.
pub async fn run(mut config: Config, reloader: SettingsReloader<Config>) -> Result<(), StartError> {
    let mut signals = Signals::new().map_err(StartError::Signals)?;
    reloader.start().map_err(StartError::Signals)?;
    let prometheus =
        admin::install_metrics(metrics::METRICS).map_err(|error| StartError::Metrics(error.to_string()))?;
    startup::fit_descriptors(&mut config);
    let service = Arc::new(Service::new(&config)?);
    startup::warn_about(&config);
    let failed = |source| StartError::Listen { address: config.listen, source };
    let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    // Binding was the last step that may need a capability. The runtime's threads dropped theirs at their
    // start.
    capabilities::give_up(KEPT_BY_ROOT).map_err(StartError::Capabilities)?;
    let this = instances::this(address);
    start_redis_tasks(&service, this.clone()).await;
    service.learn_hash_costs().await;

    let readiness = Arc::clone(&service);
    let operations = admin::routes(prometheus, move || readiness.readiness());
    let (stop, stopped) = oneshot::channel::<()>();
    let routes = routes::routes(Arc::clone(&service), operations);
    let server = tokio::spawn(server::serve(listener, routes, config.connections, stopped));
    log::info!(address:%; "listening");
    systemd::ready();
    systemd::start_watchdog();
    tokio::spawn(reload::watch(Arc::clone(&service), config.poll));

    while signals.next().await == SignalRequest::Reload {
        tokio::spawn(reload::reload_all(Arc::clone(&service)));
    }
    log::info!("stopping");
    systemd::stopping();
    drop(stop);
    // Their requests would not end by themselves.
    service.feed.close();
    let audit = service.audit.clone();
    if let Some(registry) = &service.registry {
        instances::leave(registry, &this.id).await;
    }
    match timeout(config.stop, server).await {
        Ok(_) => log::info!("stopped"),
        Err(_) => log::warn!("stopped before all requests were answered (stop_timeout)"),
    }
    audit.finish(AUDIT_GRACE).await;
    Ok(())
}

/// Starts the background tasks that need Redis, if Redis is configured.
async fn start_redis_tasks(service: &Arc<Service>, this: AuthdView) {
    let Some(registry) = service.registry.clone() else { return };
    // Before the first response, so that `/readyz` is correct from the start.
    redis_monitor::refresh(service, &registry).await;
    service.audit.share(registry.clone());
    tokio::spawn(history::run(Arc::clone(&service.history), registry.clone()));
    tokio::spawn(feed_source::run(Arc::clone(service)));
    tokio::spawn(instances::run(registry.clone(), this));
    tokio::spawn(redis_monitor::run(Arc::clone(service), registry.clone()));
    let service = Arc::clone(service);
    tokio::spawn(async move { service.revision.run(&registry, &service.throttle).await });
}
