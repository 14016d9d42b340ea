//! The start of the node: its limits, certificates, passive ports, logs, and its claim in the registry.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use common::{
    audit::{AuditLogError, AuditTrail},
    clock::unix_seconds,
    node::{NodeRecord, PortRange},
    passive::{BlockState, OwnBlock, PassiveAssignment},
    process::{capabilities, descriptors as open_files},
    registry::{ClusterEvent, RedisOptions, Registry},
};
use tokio::{net::lookup_host, sync::mpsc, time::timeout};

use super::{
    KEPT_BY_ROOT, RunError, descriptor_limit::DescriptorNeeds, listeners::Listeners, process_identity,
};
use crate::{
    client_address::TrustedBalancers,
    config::Config,
    connection_log::ConnectionLog,
    data::passive::{Door, PassivePorts, PassiveSockets},
    events::{EventSettings, Events, EventsError},
    metrics,
    node::{Node, NodeParts},
    node_address,
    relay::{Relay, RelaySettings},
    tls::Tls,
    transfer_log::TransferLog,
};

/// Added to `stall_timeout` for relayed connections, so that the node with the session ends a silent transfer
/// first and tells the client why.
const RELAY_STALL_MARGIN: Duration = Duration::from_secs(60);

/// Lowers `max_relayed` and `max_sessions` to the numbers that the limit of open files allows.
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
    let mut needs = DescriptorNeeds {
        sessions: limits.sessions,
        transfers: limits.transfers,
        file_operations: limits.file_operations,
        listening: network.passive_ports.count().saturating_mul(addresses),
        relayed: if network.is_in_cluster { limits.relayed } else { 0 },
    };
    let relayed = needs.relayed_that_fit(available);
    if relayed < needs.relayed {
        log::warn!(
            max_relayed = limits.relayed, lowered_to = relayed, open_files = available,
            needed = needs.total();
            "max_relayed is lowered, because the limit of open files is too low: raise RLIMIT_NOFILE \
             (LimitNOFILE= of the service), or lower max_relayed or max_sessions"
        );
        (limits.relayed, needs.relayed) = (relayed, relayed);
    }
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
    metrics::limit("dialogue_size", limits.dialogue_size);
    metrics::limit("dialogue_memory", limits.dialogue_memory);
    metrics::limit("max_relayed", limits.relayed);
    metrics::limit("max_sorted_entries", config.storage.sorted_entries as u64);
    metrics::limit("max_stat_entries", config.storage.stat_entries as u64);
    metrics::limit("max_listing_memory", config.storage.listing_memory);
    metrics::limit("admin_max_connections", config.admin_limits.connections as u64);
}

/// Opens the audit trail. Blocks, which is harmless: the node serves no client yet.
pub(super) fn open_audit(config: &Config) -> Result<AuditTrail, AuditLogError> {
    let name = config.node_name.as_str();
    AuditTrail::open(&config.log.audit, "ftpd", name, config.redis.is_some(), metrics::audit_records_lost)
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

/// Binds the passive ports, gives up the capabilities for ports below 1024, joins the registry, creates the
/// node, and listens on the passive ports. `listeners`: the bound control ports. Returns the registry's
/// events for the node, too.
pub(super) async fn create_node(
    mut config: Config,
    listeners: &Listeners,
    tls: Option<Arc<Tls>>,
    audit: AuditTrail,
) -> Result<(Arc<Node>, mpsc::Receiver<ClusterEvent>), RunError> {
    let addresses = listeners.addresses(false);
    let ips: Vec<_> = addresses.iter().map(SocketAddr::ip).collect();
    // Before the node claims its name. If an earlier process of this node still finishes its transfers, it
    // has these ports: this process then fails here, and the earlier one keeps its name.
    let sockets = PassiveSockets::bind(config.network.passive_ports, &ips)
        .map_err(|(address, error)| RunError::ListenPassive(address, error))?;
    // All sockets are bound. Connections to clients in active mode use any free local port.
    capabilities::give_up(KEPT_BY_ROOT).map_err(RunError::Capabilities)?;
    let transfer_log = match &config.log.transfer_log {
        Some(path) => TransferLog::open(path)
            .map_err(|error| RunError::TransferLog(path.display().to_string(), error))?,
        None => TransferLog::default(),
    };
    let redis = config.redis.take();
    let redis_lease = redis.as_ref().map(|redis| redis.lease);
    let node_address = match (config.network.node_address, &redis) {
        (Some(address), _) => address,
        (None, redis) => node_address::detect(&ips, &addresses_of(redis.as_ref()).await),
    };
    let control = addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(" ");
    let place = process_identity::of_process(config.boot_id.as_deref(), &control);
    let record = NodeRecord {
        control,
        address: Some(node_address),
        port: addresses.first().map_or(0, SocketAddr::port),
        implicit_port: listeners.addresses(true).first().map(SocketAddr::port),
        host: process_identity::host_name(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        since: unix_seconds(),
        ..NodeRecord::new(config.node_name.clone(), rand::random(), first_ports(config.network.assignment))
    };
    let (registry, events) = match redis {
        Some(options) => Registry::join(record, config.network.assignment, place, options).await?,
        // Without Redis there are no events.
        None => (Registry::local(record), mpsc::channel(1).1),
    };
    if let Some(view) = registry.view() {
        audit.share(view);
    }
    if let Some(tls) = &tls {
        tls.share_ticket_keys(registry.clone()).await;
        tls.watch_files();
    }
    let file_events = match open_events(&config, redis_lease.is_some()).await {
        Ok(opened) => opened,
        Err(error) => {
            registry.leave().await;
            return Err(error);
        }
    };
    file_events.start(&registry, config.storage.locks, &config.storage.root, redis_lease);
    let records = NodeRecords { transfer_log, audit, events: file_events };
    let node = Arc::new(new_node(config, registry, node_address, records, tls));
    let door = node.relay.as_ref().map(|relay| Door {
        name: node.name.clone(),
        map: node.registry.port_map(),
        relay: Arc::clone(relay),
        log: node.connection_log.clone(),
    });
    if let Err((address, error)) = node.passive.serve(sockets, &node.trusted_balancers, door) {
        node.registry.leave().await;
        return Err(RunError::ListenPassive(address, error));
    }
    Ok((node, events))
}

/// Opens the journal of events, if `events_file` is set. The node has its name in the registry by now.
async fn open_events(config: &Config, has_redis: bool) -> Result<Events, RunError> {
    let Some(file) = config.events_file.clone() else { return Ok(Events::default()) };
    let (node, root, locks) = (config.node_name.clone(), config.storage.root.clone(), config.storage.locks);
    let opened = tokio::task::spawn_blocking(move || {
        Events::open(EventSettings { file, node, root: &root, locks, has_redis })
    });
    match opened.await {
        Ok(opened) => Ok(opened?),
        // The function panicked.
        Err(error) => Err(RunError::Events(EventsError::Journal(error.into()))),
    }
}

/// Where the node writes what clients have done.
struct NodeRecords {
    transfer_log: TransferLog,
    audit: AuditTrail,
    events: Events,
}

fn new_node(
    config: Config,
    registry: Registry,
    node_address: IpAddr,
    NodeRecords { transfer_log, audit, events }: NodeRecords,
    tls: Option<Arc<Tls>>,
) -> Node {
    let trusted_balancers = Arc::new(TrustedBalancers {
        networks: config.network.trusted_balancers.clone(),
        header_timeout: config.timeouts.proxy_header,
    });
    let connection_log = ConnectionLog::new(config.limits.failure_lines);
    let settings = RelaySettings {
        own: Some(config.node_name.clone()),
        max_relayed: config.limits.relayed,
        connect_timeout: config.timeouts.relay_connect,
        stall_limit: Some(config.timeouts.stall + RELAY_STALL_MARGIN),
        // So that other nodes recognise this one. An address that the node does not listen on itself may be
        // one that it cannot send from.
        source: (config.network.listen == [node_address]).then_some(node_address),
        log: connection_log.clone(),
    };
    let relay = config.network.is_in_cluster.then(|| Relay::new(registry.port_map(), settings));
    let passive = PassivePorts::new(&registry, config.timeouts.data_connect);
    Node::new(
        config,
        NodeParts {
            trusted_balancers,
            passive,
            relay,
            registry,
            connection_log,
            transfer_log,
            audit,
            events,
            tls,
        },
    )
}

/// The first ports that the node may own, for older readers of its record.
fn first_ports(assignment: PassiveAssignment) -> PortRange {
    match assignment {
        PassiveAssignment::Slice(slice) => slice,
        PassiveAssignment::Leased(layout) => layout.blocks().next().unwrap_or(layout.range()),
    }
}

/// The addresses of Redis or of a sentinel. Empty if no name resolves within `redis_timeout`.
async fn addresses_of(redis: Option<&RedisOptions>) -> Vec<SocketAddr> {
    let Some(options) = redis else { return Vec::new() };
    let mut found = Vec::new();
    for host in options.servers.hosts() {
        if let Ok(Ok(addresses)) = timeout(options.timeout, lookup_host(host)).await {
            found.extend(addresses);
            break;
        }
    }
    found
}

/// Waits until a node that leases blocks may use one. If that takes longer than `limit`, the node serves
/// without passive ports, and is not ready.
pub(super) async fn await_blocks(node: &Node, limit: Duration) {
    let PassiveAssignment::Leased(layout) = node.network.assignment else { return };
    let mut blocks = node.registry.blocks();
    let is_usable = |blocks: &Arc<[OwnBlock]>| blocks.iter().any(|block| block.state == BlockState::Leased);
    if blocks.borrow_and_update().is_empty() {
        log::info!(
            node = node.name.as_str(), range:% = layout.range();
            "waiting for blocks of passive ports; a new block is used when all nodes know its owner"
        );
    }
    if timeout(limit, blocks.wait_for(is_usable)).await.is_err() {
        log::error!(
            node = node.name.as_str(), range:% = layout.range();
            "starting without passive ports: until this node gets a block, it is not ready, and PASV gets 425"
        );
    }
}
