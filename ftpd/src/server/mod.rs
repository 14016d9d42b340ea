//! The life of the node: start, listeners, drain, stop.

mod activity;
pub mod descriptor_limit;
mod listeners;
mod live;
mod process_identity;
mod run_error;
mod start;
mod stop;
mod storage_root;

use std::{sync::Arc, time::Duration};

use common::{
    health::LifeStage,
    process::{
        admin,
        capabilities::{self, Kept},
        http::HttpEvent,
        service,
        signals::Signals,
    },
    settings::SettingsReloader,
};

pub use self::run_error::RunError;
use self::{
    listeners::{Listeners, bind, local},
    live::LivePublisher,
    stop::{DrainEnd, StopCause},
};
use crate::{
    auth::{Authentication, probe::AuthdProbe},
    config::Config,
    data::passive,
    health::{self, Health},
    listener::ephemeral_ports,
    metrics,
    node::Node,
    partial_sweeper, revocation,
};

/// Capabilities of a node that runs as root: those for files of all users, and no others.
pub const KEPT_BY_ROOT: Kept = Kept::Files;

/// Added to `node_lease`: the time for which a starting node waits for its first block of passive ports.
const BLOCKS_WAIT: Duration = Duration::from_secs(5);

/// Runs the node until it has drained. Call it on the thread of `main`, which has the capabilities for ports
/// below 1024: the function binds all ports, then gives up these capabilities.
///
/// # Errors
/// The node cannot start, or has to end without a request to do so.
pub async fn run(mut config: Config, reloader: SettingsReloader<Config>) -> Result<(), RunError> {
    let mut signals = Signals::new().map_err(RunError::Signals)?;
    reloader.start().map_err(RunError::Signals)?;
    let rendered =
        admin::install_metrics(metrics::METRICS).map_err(|error| RunError::Metrics(error.to_string()))?;
    metrics::build_info();
    if capabilities::is_root() {
        log::warn!("the node runs as root, which it does not need; a dedicated user is safer");
    }
    start::fit_descriptors(&mut config)?;
    start::export_limits(&config);
    service::start_watchdog();
    ephemeral_ports::warn(config.network.passive_ports);
    if config.network.nginx_data_path {
        log::warn!(
            "nginx_data_path: nginx turns the reset of a client's data connection into an orderly end, so a \
             plain upload that was cut short may get 226; uploads over FTPS and after ALLO are safe, and so \
             are all uploads through ftp-relay or the kernel"
        );
    }
    storage_root::check(&config).await?;
    let tls = start::load_tls(&config)?;
    // Bind now, listen last: a balancer whose connection is refused tries another node at once. If the node
    // listened already, the balancer would wait for the greeting.
    let mut listeners = Listeners::bind(&config.network)?;
    let admin_listener = config.admin_listen.map(bind).transpose()?;
    let probe = match &config.authentication {
        Authentication::Authd { urls, authorization, .. } => {
            Some(AuthdProbe::new(urls, authorization.as_ref()))
        }
        Authentication::Users(_) | Authentication::Demo => None,
    };
    let audit = start::open_audit(&config)?;
    let health =
        Health::new(config.readiness.clone(), probe.is_some(), config.network.assignment, audit.clone());
    let health = Arc::new(health);
    if let Some(listener) = admin_listener {
        let reported = Arc::clone(&health);
        log::info!(part = "admin", address:% = local(&listener); "listening");
        let observe = |event| {
            if event == HttpEvent::Displaced {
                metrics::limit_reached("admin_max_connections");
            }
        };
        admin::serve(listener, rendered, config.admin_limits, observe, move || reported.report());
    }
    let lease = config.redis.as_ref().map(|redis| redis.lease);
    let (node, mut events) = tokio::select! {
        started = start::create_node(config, &listeners, tls, audit) => started?,
        // The start may have to wait for the node's name.
        () = stop::terminated(&mut signals) => return Ok(()),
    };
    if let Some(lease) = lease {
        tokio::select! {
            () = start::await_blocks(&node, lease + BLOCKS_WAIT) => {}
            () = stop::terminated(&mut signals) => {
                node.registry.leave().await;
                return Ok(());
            }
        }
    }
    start_background_tasks(&node, &health, probe).await;
    if let Err(error) = listeners.open(&node) {
        node.registry.leave().await;
        return Err(error);
    }
    health.set_life(LifeStage::Ready);
    health.publish(&node.registry);
    service::ready();
    let ports = passive::describe(&node.registry.blocks().borrow());
    log::info!(node = node.name.as_str(), passive_ports = ports.as_str(); "ready");

    let mut live = LivePublisher::default();
    loop {
        let cause = stop::wait_for_end(&node, &mut signals, &mut events, &mut live).await;
        // Stop admitting first: clients that are asked to reconnect must reach another node.
        node.connections.stop_admitting();
        health.set_life(LifeStage::Draining);
        listeners.close().await;
        let may_resume = matches!(cause, Ok(StopCause::Order));
        let listeners = may_resume.then_some(&mut listeners);
        match stop::drain(&node, &mut signals, &mut events, &mut live, listeners).await {
            DrainEnd::Stopped => return cause.map(drop),
            DrainEnd::Undone => health.set_life(LifeStage::Ready),
        }
    }
}

async fn start_background_tasks(node: &Arc<Node>, health: &Arc<Health>, probe: Option<AuthdProbe>) {
    tokio::spawn(health::operations::watch(
        Arc::clone(health),
        node.workers.clone(),
        node.timeouts.file_operation_alarm,
    ));
    if node.authenticator.asks_authd() {
        tokio::spawn(revocation::run(Arc::clone(node)));
    }
    health.watch(&node.storage.root, probe, &node.registry).await;
    tokio::spawn(activity::measure(Arc::clone(node)));
    partial_sweeper::start(node);
}
