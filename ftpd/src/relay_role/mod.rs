//! The program `ftp-relay`: carries data connections, and control connections if it is told to, from the
//! balancer's host to the nodes.
//!
//! `bin/ftp-relay.rs` → [`run`] → `doors`: one task for each connection. `data` gives a data connection to
//! [`crate::relay`], which carries it to the owner of its port. `control` chooses a node (`choice`) and waits
//! for its greeting. The map of owners and nodes comes from the registry; `nft` writes it to the kernel.

pub mod check;
mod choice;
pub mod config;
mod control;
mod data;
mod doors;
mod health;
mod known_nodes;
mod map_follower;
mod metrics;
pub mod nft;
mod role_error;
pub mod settings;

use std::sync::Arc;

use common::{
    health::LifeStage,
    process::{
        admin,
        capabilities::{self, Kept},
        descriptors,
        http::HttpEvent,
        service,
        signals::{SignalRequest, Signals},
    },
    registry::{MapContent, PortMap},
    settings::SettingsReloader,
};
use tokio::{sync::watch, time::Instant};

pub use self::role_error::RoleError;
use self::{
    config::{RoleConfig, RoleLimits},
    control::ControlDoor,
    data::DataDoor,
    doors::{BoundDoors, OpenDoors},
    health::RoleHealth,
    known_nodes::KnownNodes,
    map_follower::MapFollower,
    nft::NftWriter,
};
use crate::{
    client_address::TrustedBalancers,
    connection_log::ConnectionLog,
    listener::{self, ephemeral_ports},
    metrics::{draining, limit, limit_reached},
    relay::{self, Relay, RelaySettings},
};

/// Capabilities of a relay that runs as root: none.
pub const KEPT_BY_ROOT: Kept = Kept::Nothing;

/// Runs the relay until it has drained. Call it on the thread of `main`, which has the capabilities for ports
/// below 1024 and for nftables: the function binds all ports, then gives up these capabilities.
///
/// # Errors
/// The relay cannot start.
pub async fn run(mut config: RoleConfig, reloader: SettingsReloader<RoleConfig>) -> Result<(), RoleError> {
    let mut signals = Signals::new().map_err(RoleError::Signals)?;
    reloader.start().map_err(RoleError::Signals)?;
    let rendered =
        admin::install_metrics(metrics::METRICS).map_err(|error| RoleError::Metrics(error.to_string()))?;
    service::start_watchdog();
    ephemeral_ports::warn(config.passive_ports);
    let bound = BoundDoors::bind(&config)?;
    fit_descriptors(&mut config.limits, bound.count() as u64)?;
    export_limits(&config);
    let (map, read) = PortMap::read(&config.redis, config.map_refresh, config.relay_key_rotation);
    let health = Arc::new(RoleHealth::new(map.clone()));
    if let Some(address) = config.admin_listen {
        let listener = listener::bind(address).map_err(|error| RoleError::Listen(address, error))?;
        log::info!(part = "admin", address:%; "listening");
        let reported = Arc::clone(&health);
        let observe = |event| {
            if event == HttpEvent::Displaced {
                limit_reached("admin_max_connections");
            }
        };
        admin::serve(listener, rendered, config.admin_limits, observe, move || reported.report());
    }
    let nft = config.nft_map.take().map(NftWriter::start).transpose();
    let nft = nft.map_err(RoleError::NetworkAdministration)?;
    capabilities::give_up(KEPT_BY_ROOT).map_err(RoleError::Capabilities)?;
    // Other units may start. Balancers in front see at /readyz, and by the ports, when the relay serves.
    service::ready();

    tokio::spawn(read);
    let mut content = map.content();
    tokio::select! {
        () = wait_for_nodes(&mut content, &health) => {}
        () = terminated(&mut signals) => return Ok(()),
    }
    let nodes = Arc::new(KnownNodes::new(map.clone()));
    let follower = MapFollower {
        content,
        nodes: Arc::clone(&nodes),
        health: Arc::clone(&health),
        nft,
        passive_ports: config.passive_ports,
        interval: config.map_refresh,
    };
    tokio::spawn(follower.run());
    let mut doors = open(&config, bound, map, nodes)?;
    health.set_life(LifeStage::Ready);
    service::status("ready");
    log::info!(passive_ports:% = config.passive_ports; "ready");

    terminated(&mut signals).await;
    log::info!(limit:? = config.timeouts.drain; "draining");
    draining(true);
    health.set_life(LifeStage::Draining);
    service::stopping();
    doors.close();
    let end = Instant::now() + config.timeouts.drain;
    tokio::select! {
        all_ended = doors.ended(end) => if !all_ended { log::warn!("drain_timeout is over") },
        () = terminated(&mut signals) => log::warn!("received a second signal to stop"),
    }
    doors.cut().await;
    log::info!("stopped");
    Ok(())
}

/// Listens on all ports.
fn open(
    config: &RoleConfig,
    bound: BoundDoors,
    map: PortMap,
    nodes: Arc<KnownNodes>,
) -> Result<OpenDoors, RoleError> {
    let balancers = Arc::new(TrustedBalancers {
        networks: config.trusted_balancers.clone(),
        header_timeout: config.timeouts.proxy_header,
    });
    let log = ConnectionLog::new(config.limits.failure_lines);
    let relay = Relay::new(
        map,
        RelaySettings {
            own: None,
            max_relayed: config.limits.relayed,
            connect_timeout: config.timeouts.connect,
            stall_limit: Some(config.timeouts.stall),
            source: config.source_address,
            log: log.clone(),
        },
    );
    let data = DataDoor { relay, balancers: Arc::clone(&balancers), log: log.clone() };
    let control = ControlDoor::new(config, nodes, balancers, log);
    OpenDoors::open(bound, data, control, config.limits.relayed as usize)
}

/// Waits until the registry has shown a node. Until then a client could not be served, and a refused
/// connection says so best to a balancer in front of several relays.
async fn wait_for_nodes(content: &mut watch::Receiver<Arc<MapContent>>, health: &RoleHealth) {
    let is_empty = |map: &MapContent| map.nodes.is_empty() && map.blocks.is_empty();
    // Not borrowed while the health is checked, which locks the map: the task that reads the map locks
    // both in the other order.
    let known = Arc::clone(&content.borrow());
    if is_empty(&known) {
        health.check(&known);
        service::status("waiting for the map of the passive ports");
        log::info!(setting = "redis_url"; "waiting for the map of the passive ports");
    }
    // The sender is in the `PortMap`, which the caller has.
    let _ = content.wait_for(|map| !is_empty(map)).await;
}

/// Lowers the limits of connections to what the limit of open files allows.
fn fit_descriptors(limits: &mut RoleLimits, listening: u64) -> Result<(), RoleError> {
    let available = match descriptors::raise() {
        Ok(limit) => limit,
        Err(error) => {
            log::warn!("cannot raise the limit of open files (RLIMIT_NOFILE): {error}");
            return Ok(());
        }
    };
    let fixed = listening + PROCESS + relay::PIPE_DESCRIPTORS as u64;
    let wanted = PER_CONNECTION * (u64::from(limits.relayed) + u64::from(limits.control_connections));
    if fixed + wanted <= available {
        return Ok(());
    }
    let for_connections = available.saturating_sub(fixed);
    if for_connections < 2 * PER_CONNECTION {
        return Err(RoleError::OpenFiles { available, needed: fixed + 2 * PER_CONNECTION });
    }
    // Both limits in proportion. Each is at least 1, and `for_connections` is less than `wanted`.
    let lowered = |limit: u32| (u64::from(limit) * for_connections / wanted).max(1) as u32;
    let (relayed, control) = (lowered(limits.relayed), lowered(limits.control_connections));
    log::warn!(
        max_relayed = relayed, max_control_connections = control, open_files = available,
        needed = fixed + wanted;
        "max_relayed and max_control_connections are lowered, because the limit of open files is too low: \
         raise RLIMIT_NOFILE (LimitNOFILE= of the service), or lower them"
    );
    (limits.relayed, limits.control_connections) = (relayed, control);
    Ok(())
}

/// Descriptors of a connection: both sockets.
const PER_CONNECTION: u64 = 2;

/// Descriptors of the process itself: for Redis, metrics, logs and `nft`.
const PROCESS: u64 = 64;

/// Shows the configured limits in the metrics.
fn export_limits(config: &RoleConfig) {
    limit("max_relayed", config.limits.relayed);
    limit("max_control_connections", config.limits.control_connections);
    limit("serving_threads", config.limits.serving_threads as u64);
    limit("admin_max_connections", config.admin_limits.connections as u64);
}

async fn terminated(signals: &mut Signals) {
    while signals.next().await != SignalRequest::Terminate {}
}
