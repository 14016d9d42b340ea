//! The life of the node: start, listeners, drain, stop.

pub mod descriptor_limit;
mod ephemeral_ports;
mod listeners;
mod process_identity;

use std::{
    fs::{self, DirBuilder},
    io,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt,
    path::Path,
    sync::Arc,
    time::Duration,
};

use common::{
    clock::unix_seconds,
    health::LifeStage,
    node::{NodeCommand, NodeRecord, NodeState},
    process::{
        admin,
        capabilities::{self, Kept},
        descriptors as open_files,
        http::{self, HttpEvent},
        service,
        signals::{SignalRequest, Signals},
    },
    registry::{ClusterEvent, JoinError, NameHolder, Registry},
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until, timeout_at},
};
use warp::{Filter, filters::BoxedFilter};

use self::{
    descriptor_limit::{DescriptorNeeds, TooFewDescriptors},
    listeners::{Listeners, bind, bind_all, local},
};
use crate::{
    auth::{Authentication, probe::AuthdProbe},
    client_address::TrustedBalancers,
    config::Config,
    connection_table::EndRequest,
    data::passive::PassivePorts,
    health::{self, Health},
    jail::LockMode,
    listener::Bound,
    metrics,
    node::{Node, NodeParts},
    partial_sweeper, revocation,
    tls::{Tls, TlsError},
    transfer_log::TransferLog,
};

/// Time for sessions to send their last reply when the node stops.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// Capabilities of a node that runs as root: those for files of all users, and no others.
pub const KEPT_BY_ROOT: Kept = Kept::Files;

/// Why the node cannot start, or ends early.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("cannot listen on {0}{hint}", hint = listen_advice(.0, .1))]
    Listen(SocketAddr, #[source] io::Error),
    #[error(
        "cannot listen on the passive port {0} (if an outgoing connection of this host uses it: reserve the \
         passive ports with the sysctl net.ipv4.ip_local_reserved_ports)"
    )]
    ListenPassive(SocketAddr, #[source] io::Error),
    #[error("cannot open the transfer log {0}")]
    TransferLog(String, #[source] io::Error),
    #[error("the storage root {0} is not a directory, or cannot be opened")]
    Storage(String, #[source] io::Error),
    #[error("cannot set up TLS")]
    Tls(#[from] TlsError),
    #[error("cannot set up the metrics: {0}")]
    Metrics(String),
    #[error(transparent)]
    OpenFiles(#[from] TooFewDescriptors),
    #[error("cannot give up capabilities")]
    Capabilities(#[source] io::Error),
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error(
        "this node lost its name: {0} has it now. A node loses its name if it cannot renew its lease in \
         Redis for node_lease. If both nodes are meant to run, give one of them another node_name"
    )]
    NameLost(NameHolder),
    #[error("the passive ports overlap with those of another live node: {0}")]
    SliceConflict(String),
}

/// Advice for an address on which the node cannot listen.
fn listen_advice(address: &SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!(" (`ss -ltnp 'sport = :{}'` shows the process that listens there)", address.port())
        }
        io::ErrorKind::AddrNotAvailable => {
            " (this host does not have this address: see the settings listen and admin_listen)".to_owned()
        }
        _ if (1..1024).contains(&address.port()) => {
            " (ports below 1024 need CAP_NET_BIND_SERVICE; --port selects another port)".to_owned()
        }
        _ => String::new(),
    }
}

/// Runs the node until it has drained. Call it on the thread of `main`, which has the capabilities for ports
/// below 1024: the function binds all ports, then gives up these capabilities.
///
/// # Errors
/// The node cannot start, or has to end without a request to do so.
pub async fn run(mut config: Config) -> Result<(), RunError> {
    let mut signals = Signals::new().map_err(RunError::Signals)?;
    let rendered = admin::install_metrics().map_err(|error| RunError::Metrics(error.to_string()))?;
    metrics::describe();
    if capabilities::is_root() {
        log::warn!("the node runs as root, which it does not need: a user of its own is safer");
    }
    fit_descriptors(&mut config)?;
    export_limits(&config);
    service::start_watchdog();
    ephemeral_ports::warn(config.network.passive_ports);
    check_storage(&config).await?;
    let tls = load_tls(&config)?;
    // The sockets are bound now and listen last. A balancer passes clients on to a node that refuses
    // connections; for a node that does not answer yet it would wait.
    let control = bind_all(&config.network, config.network.port)?;
    let implicit_tls = match config.network.implicit_tls_port {
        Some(port) => bind_all(&config.network, port)?,
        None => Vec::new(),
    };
    let admin_listener = config.admin_listen.map(bind).transpose()?;
    let probe = match &config.authentication {
        Authentication::Authd { urls, authorization, .. } => {
            Some(AuthdProbe::new(urls, authorization.as_ref()))
        }
        Authentication::Users(_) | Authentication::Demo => None,
    };
    let health = Arc::new(Health::new(config.readiness.clone(), probe.is_some()));
    if let Some(listener) = admin_listener {
        let reported = Arc::clone(&health);
        let routes = admin::routes(rendered, move || reported.report());
        serve_admin(listener, routes.map(warp::Reply::into_response).boxed(), config.admin_limits);
    }
    let (node, mut events) = tokio::select! {
        started = start(config, &control, tls) => started?,
        // The start may have to wait for the node's name.
        () = terminated(&mut signals) => return Ok(()),
    };
    start_background_tasks(&node, &health, probe).await;
    let mut listeners = Listeners::default();
    if let Err(error) = listeners.open(&node, control, implicit_tls) {
        node.registry.leave().await;
        return Err(error);
    }
    health.set_life(LifeStage::Ready);
    health.publish(&node.registry);
    service::ready();
    log::info!(node = node.name.as_str(), slice:% = node.network.slice; "ready");

    let ended = wait_for_end(&node, &mut signals, &mut events).await;
    // First of all, so that the balancer passes clients that were just asked to reconnect on to another node.
    node.connections.stop_admitting();
    health.set_life(LifeStage::Draining);
    listeners.close().await;
    drain(&node, &mut signals, &mut events).await;
    ended
}

/// Checks the storage root, on a blocking thread.
async fn check_storage(config: &Config) -> Result<(), RunError> {
    let (root, create) = (config.storage.root.clone(), config.storage.create_root);
    let locks = config.redis.is_some().then_some(config.storage.locks);
    let opened = tokio::task::spawn_blocking(move || {
        open_root(&root, create).map_err(|error| (root.clone(), error))?;
        if let Some(locks) = locks {
            log_lock_reach(locks, &root);
        }
        Ok(())
    });
    match opened.await {
        Ok(Err((root, error))) => Err(RunError::Storage(root.display().to_string(), error)),
        Ok(Ok(())) | Err(_) => Ok(()),
    }
}

/// Reads the certificates on this thread, which serves no client yet.
fn load_tls(config: &Config) -> Result<Option<Arc<Tls>>, RunError> {
    let tls = config.tls.clone().map(|settings| Tls::load(settings).map(Arc::new)).transpose()?;
    if let Some(tls) = &tls {
        let downloads = if tls.kernel_seals() { "the kernel" } else { "this process" };
        log::info!(part = "tls"; "downloads are encrypted by {downloads}, uploads decrypted by this process");
    }
    Ok(tls)
}

/// Serves the metrics and health checks over HTTP until the process ends.
fn serve_admin(
    listener: TcpListener,
    routes: BoxedFilter<(warp::reply::Response,)>,
    limits: http::ConnectionLimits,
) {
    log::info!(part = "admin", address:% = local(&listener); "listening");
    let observe = |event| {
        if event == HttpEvent::Displaced {
            metrics::limit_reached("admin_max_connections");
        }
    };
    tokio::spawn(async move {
        // Never used: the server runs until the process ends.
        let (_stop, stopped) = oneshot::channel();
        http::serve(listener, routes, limits, observe, stopped).await;
    });
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
    partial_sweeper::start(node);
}

/// Checks that the root is a directory. With `create` a missing root is created; missing directories above
/// it are not, because they more likely mean a mistyped path.
fn open_root(root: &Path, create: bool) -> io::Result<()> {
    // If it cannot be created, `read_dir` returns the reason.
    if create && DirBuilder::new().mode(0o755).create(root).is_ok() {
        log::info!(root:% = root.display(); "created the missing storage root");
    }
    fs::read_dir(root).map(drop)
}

/// Lowers `max_sessions` to the number that the limit of open files allows.
fn fit_descriptors(config: &mut Config) -> Result<(), RunError> {
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

/// Logs whether file locks of the storage are seen by other nodes.
fn log_lock_reach(locks: LockMode, root: &Path) {
    match locks.cross_nodes(root) {
        Ok(why) => {
            log::info!(root:% = root.display(); "file locks hold on all nodes: {why}")
        }
        Err(why) => log::warn!(
            root:% = root.display(), setting = "storage_locks";
            "file locks do not keep out other nodes, so that uploads depend on Redis: {why}"
        ),
    }
}

fn export_limits(config: &Config) {
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
    metrics::limit("serving_threads", u32::try_from(limits.serving_threads).unwrap_or(u32::MAX));
    metrics::limit("max_login_failures", limits.login_failures);
    metrics::limit("max_unauthenticated_commands", limits.unauthenticated_commands);
    metrics::limit("max_errors", limits.errors);
    metrics::limit("passive_ports", config.network.slice.count());
}

async fn start(
    mut config: Config,
    control: &[Bound],
    tls: Option<Arc<Tls>>,
) -> Result<(Arc<Node>, mpsc::Receiver<ClusterEvent>), RunError> {
    let addresses: Vec<SocketAddr> = control.iter().filter_map(|socket| socket.address().ok()).collect();
    let control = addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(" ");
    let trusted_balancers = Arc::new(TrustedBalancers {
        networks: config.network.trusted_balancers.clone(),
        header_timeout: config.timeouts.proxy_header,
    });
    let ips: Vec<_> = addresses.iter().map(SocketAddr::ip).collect();
    // Before the node claims its name: an earlier process with the name, which still finishes its transfers,
    // holds these ports, and keeps both.
    let passive =
        PassivePorts::listen(config.network.slice, &ips, &trusted_balancers, config.timeouts.data_connect)
            .map_err(|(address, error)| RunError::ListenPassive(address, error))?;
    // The last socket is bound. Connections to clients use any free local port.
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
        Some(options) => Registry::join(record, place, options).await?,
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

/// Returns when the node has to end: on a signal, on an administrator's order, or because another node has
/// its name or ports.
async fn wait_for_end(
    node: &Node,
    signals: &mut Signals,
    events: &mut mpsc::Receiver<ClusterEvent>,
) -> Result<(), RunError> {
    let mut events_are_open = true;
    loop {
        tokio::select! {
            request = signals.next() => match request {
                SignalRequest::Terminate => return Ok(()),
                SignalRequest::Reload => {
                    log::info!("reloading certificates and transfer log");
                    node.transfer_log.reopen();
                    if let Some(tls) = &node.tls {
                        tls.reload_and_log().await;
                    }
                }
            },
            event = events.recv(), if events_are_open => match event {
                Some(ClusterEvent::Command(NodeCommand::Drain)) => return Ok(()),
                Some(ClusterEvent::Command(command)) => end_sessions(node, &command),
                Some(ClusterEvent::NameTaken(holder)) => return Err(RunError::NameLost(holder)),
                Some(ClusterEvent::SliceConflict { ours, theirs }) => {
                    let both = format!("{} has {}, {} has {}", ours.0, ours.1, theirs.0, theirs.1);
                    return Err(RunError::SliceConflict(both));
                }
                None => events_are_open = false,
            },
        }
    }
}

/// Carries out an order to end sessions.
fn end_sessions(node: &Node, command: &NodeCommand) {
    match command {
        NodeCommand::EndSession { session } => {
            if !node.connections.end_session(*session) {
                log::info!(session:%; "ignored an order to end a session that is not on this node");
            }
        }
        NodeCommand::EndUser { user } => node.connections.end_user(user),
        NodeCommand::Drain => {}
    }
}

/// Lets transfers finish until `drain_timeout` or a second signal, then ends the remaining sessions.
async fn drain(node: &Arc<Node>, signals: &mut Signals, events: &mut mpsc::Receiver<ClusterEvent>) {
    log::info!(
        connections = node.connections.count(), limit:? = node.timeouts.drain;
        "draining"
    );
    metrics::draining(true);
    service::stopping();
    node.registry.set_state(NodeState::Draining);
    node.connections.end_all(EndRequest::Drain);
    let deadline = Instant::now() + node.timeouts.drain;
    loop {
        tokio::select! {
            () = node.connections.all_ended() => {}
            () = sleep_until(deadline) => log::warn!("drain_timeout is over"),
            () = terminated(signals) => log::warn!("received a second signal to stop"),
            // Orders to end single sessions are still carried out.
            Some(event) = events.recv() => {
                if let ClusterEvent::Command(command) = event {
                    end_sessions(node, &command);
                }
                continue;
            }
        }
        break;
    }
    if node.connections.count() > 0 {
        log::warn!(connections = node.connections.count(); "ending the remaining sessions");
        node.connections.end_all(EndRequest::StopNode);
        // The process ends even if hanging storage keeps a session from ending.
        let _ = timeout_at(Instant::now() + STOP_GRACE, node.connections.all_ended()).await;
    }
    node.registry.leave().await;
    log::info!("stopped");
}

async fn terminated(signals: &mut Signals) {
    while signals.next().await != SignalRequest::Terminate {}
}
