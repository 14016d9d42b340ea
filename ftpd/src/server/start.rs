//! The start of the node: its limits, certificates, passive ports, logs, and its claim in the registry.

use std::{net::SocketAddr, sync::Arc};

use common::{
    clock::unix_seconds,
    node::NodeRecord,
    passive::PassiveAssignment,
    process::{capabilities, descriptors as open_files},
    registry::{ClusterEvent, Registry},
};
use tokio::sync::mpsc;

use super::{KEPT_BY_ROOT, RunError, descriptor_limit::DescriptorNeeds, process_identity};
use crate::{
    client_address::TrustedBalancers,
    config::Config,
    data::passive::PassivePorts,
    listener::BoundSocket,
    metrics,
    node::{Node, NodeParts},
    tls::Tls,
    transfer_log::TransferLog,
};

/// Lowers `max_sessions` to the number that the limit of open files allows.
pub(super) fn fit_descriptors(config: &mut Config) -> Result<(), RunError> {
    let available = match open_files::raise() {
        Ok(limit) => limit,
        Err(error) => {
            log::warn!("cannot raise the limit of open files (RLIMIT_NOFILE): {error}");
            return Ok(());
        }
    };
    let (limits, network) = (&mut config.limits, &config.network);
    let addresses = u32::try_from(network.listen.len()).unwrap_or(u32::MAX);
    let needs = DescriptorNeeds {
        sessions: limits.sessions,
        transfers: limits.transfers,
        file_operations: limits.file_operations,
        listening: network.slice.count().saturating_mul(addresses),
    };
    let sessions = needs.sessions_that_fit(available)?;
    if sessions < limits.sessions {
        log::warn!(
            max_sessions = limits.sessions, lowered_to = sessions, open_files = available,
            needed = needs.total();
            "max_sessions is lowered, because the limit of open files is too low: raise RLIMIT_NOFILE \
             (LimitNOFILE= of the service), or lower max_sessions"
        );
        limits.sessions = sessions;
    }
    Ok(())
}

/// Shows the configured limits in the metrics.
pub(super) fn export_limits(config: &Config) {
    let limits = &config.limits;
    metrics::limit("max_sessions", limits.sessions);
    metrics::limit("max_sessions_per_address", limits.sessions_per_address);
    metrics::limit("max_transfers", limits.transfers);
    metrics::limit("max_transfers_per_user", limits.transfers_per_user);
    metrics::limit("max_file_operations", limits.file_operations);
    metrics::limit("max_home_counts", limits.home_counts);
    metrics::limit("max_checksums_per_user", limits.checksums_per_user);
    metrics::limit("max_file_operations_per_user", limits.file_operations_per_user);
    metrics::limit("max_file_operations_per_filesystem", limits.file_operations_per_filesystem);
    metrics::limit("max_login_operations", limits.login_operations);
    metrics::limit("max_long_operations", limits.long_operations);
    metrics::limit("max_long_operations_per_user", limits.long_operations_per_user);
    metrics::limit("serving_threads", limits.serving_threads as u64);
    metrics::limit("max_login_failures", limits.login_failures);
    metrics::limit("max_unauthenticated_commands", limits.unauthenticated_commands);
    metrics::limit("max_errors", limits.errors);
    metrics::limit("passive_ports", config.network.slice.count());
    metrics::limit("max_sorted_entries", config.storage.sorted_entries as u64);
    metrics::limit("max_stat_entries", config.storage.stat_entries as u64);
    metrics::limit("max_listing_memory", config.storage.listing_memory);
    metrics::limit("admin_max_connections", config.admin_limits.connections as u64);
}

/// Loads the certificates. Blocks, which is harmless: the node serves no client yet.
pub(super) fn load_tls(config: &Config) -> Result<Option<Arc<Tls>>, RunError> {
    let tls = config.tls.clone().map(|settings| Tls::load(settings).map(Arc::new)).transpose()?;
    if let Some(tls) = &tls {
        let downloads = if tls.kernel_seals() { "the kernel" } else { "this process" };
        log::info!(part = "tls"; "downloads are encrypted by {downloads}, uploads decrypted by this process");
    }
    Ok(tls)
}

/// Listens on the passive ports, gives up the capabilities for ports below 1024, joins the registry, and
/// creates the node. `control`: the bound control ports. Returns the registry's events for the node, too.
pub(super) async fn create_node(
    mut config: Config,
    control: &[BoundSocket],
    tls: Option<Arc<Tls>>,
) -> Result<(Arc<Node>, mpsc::Receiver<ClusterEvent>), RunError> {
    let addresses: Vec<SocketAddr> = control.iter().filter_map(|socket| socket.address().ok()).collect();
    let control = addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(" ");
    let trusted_balancers = Arc::new(TrustedBalancers {
        networks: config.network.trusted_balancers.clone(),
        header_timeout: config.timeouts.proxy_header,
    });
    let ips: Vec<_> = addresses.iter().map(SocketAddr::ip).collect();
    // Before the node claims its name. If an earlier process of this node still finishes its transfers, it
    // has these ports: this process then fails here, and the earlier one keeps its name.
    let passive =
        PassivePorts::listen(config.network.slice, &ips, &trusted_balancers, config.timeouts.data_connect)
            .map_err(|(address, error)| RunError::ListenPassive(address, error))?;
    // All sockets are bound. Connections to clients in active mode use any free local port.
    capabilities::give_up(KEPT_BY_ROOT).map_err(RunError::Capabilities)?;
    let transfer_log = match &config.log.transfer_log {
        Some(path) => TransferLog::open(path)
            .map_err(|error| RunError::TransferLog(path.display().to_string(), error))?,
        None => TransferLog::default(),
    };
    let place = process_identity::of_process(config.boot_id.as_deref(), &control);
    let record = NodeRecord {
        control,
        host: process_identity::host_name(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        since: unix_seconds(),
        ..NodeRecord::new(config.node_name.clone(), rand::random(), config.network.slice)
    };
    let (registry, events) = match config.redis.take() {
        Some(options) => {
            Registry::join(record, PassiveAssignment::Slice(config.network.slice), place, options).await?
        }
        // Without Redis there are no events.
        None => (Registry::local(record), mpsc::channel(1).1),
    };
    if let Some(tls) = &tls {
        tls.share_ticket_keys(registry.clone()).await;
        tls.watch_files();
    }
    let node =
        Arc::new(Node::new(config, NodeParts { trusted_balancers, passive, registry, transfer_log, tls }));
    Ok((node, events))
}
