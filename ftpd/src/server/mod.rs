//! The node's life: starting, ready, draining, stopped.

mod descriptor_limit;
mod ephemeral_ports;
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
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep_until, timeout_at},
};

use warp::Filter;

use self::descriptor_limit::{DescriptorNeeds, TooFewDescriptors};
use crate::{
    auth::{Authentication, probe::AuthdProbe},
    client_address::{NoClient, Trust},
    config::{Config, Network},
    connection::Connection,
    connections::{Order, Refused},
    data::passive::PassivePorts,
    health::{self, Health},
    health_check,
    jail::LockMode,
    listener::{self, Bound},
    metrics,
    node::{Node, NodeParts},
    partial_sweeper,
    protocol::{Code, Reply},
    revocation,
    tls::{Tls, TlsError},
    transfer_log::TransferLog,
};

/// How long a session that was told to stop may take to say its last reply.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// A node that is run as root uses everybody's files, as root does, and has no other power.
pub const KEPT_BY_ROOT: Kept = Kept::Files;

/// Why the node does not start, or does not go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("cannot listen on {0}{hint}", hint = hint(.0, .1))]
    Listen(SocketAddr, #[source] io::Error),
    #[error(
        "cannot listen on the passive port {0} (if a connection of this host holds it: \
         net.ipv4.ip_local_reserved_ports keeps such ports free)"
    )]
    ListenPassive(SocketAddr, #[source] io::Error),
    #[error("cannot open the transfer log {0}")]
    TransferLog(String, #[source] io::Error),
    #[error("the storage root {0} is no directory that can be opened")]
    Storage(String, #[source] io::Error),
    #[error("TLS cannot be used")]
    Tls(#[from] TlsError),
    #[error("cannot install the metrics: {0}")]
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
        "this node lost its name: {0} holds it now. A node that cannot renew its lease in Redis for \
         node_lease frees its name; if both are meant to run, give one of them another node_name"
    )]
    NameLost(NameHolder),
    #[error("the passive ports overlap those of a live node: {0}")]
    SliceConflict(String),
}

/// What the operator can do about an address that cannot be listened on.
fn hint(address: &SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!(" (`ss -ltnp 'sport = :{}'` shows the process that does)", address.port())
        }
        io::ErrorKind::AddrNotAvailable => {
            " (this host has no such address: see listen, admin_listen)".to_owned()
        }
        _ if (1..1024).contains(&address.port()) => {
            " (ports below 1024 need CAP_NET_BIND_SERVICE; another one is chosen with --port)".to_owned()
        }
        _ => String::new(),
    }
}

/// Runs the node until it has drained. Call it on the thread of `main`, which is to have what ports
/// below 1024 need: it binds them all, and then gives that up.
///
/// # Errors
/// Why it could not start, or had to end although nobody asked for it.
pub async fn run(mut config: Config) -> Result<(), RunError> {
    let mut signals = Signals::new().map_err(RunError::Signals)?;
    let rendered = admin::install_metrics().map_err(|error| RunError::Metrics(error.to_string()))?;
    metrics::describe();
    if capabilities::is_root() {
        log::warn!("runs as root, which is not needed: a user of its own is safer");
    }
    fit_descriptors(&mut config)?;
    tell_limits(&config);
    service::start_watchdog();

    ephemeral_ports::warn(config.network.passive_ports);
    let (root, create) = (config.storage.root.clone(), config.storage.create_root);
    let locks = config.redis.is_some().then_some(config.storage.locks);
    let opened = tokio::task::spawn_blocking(move || {
        open_root(&root, create).map_err(|error| (root.clone(), error))?;
        if let Some(locks) = locks {
            tell_locks(locks, &root);
        }
        Ok(())
    });
    if let Ok(Err((root, error))) = opened.await {
        return Err(RunError::Storage(root.display().to_string(), error));
    }
    // Reads files on this thread: nobody is served yet.
    let tls = config.tls.clone().map(|settings| Tls::load(settings).map(Arc::new)).transpose()?;
    if let Some(tls) = &tls {
        let downloads = if tls.kernel_seals() { "the kernel" } else { "this process" };
        log::info!(part = "tls"; "downloads are encrypted by {downloads}, uploads decrypted by this process");
    }
    // Listening comes last: a balancer passes clients on to a node that refuses them, and would wait for
    // one that does not answer yet.
    let control = bind_all(&config.network, config.network.port)?;
    let implicit = match config.network.implicit_tls_port {
        Some(port) => bind_all(&config.network, port)?,
        None => Vec::new(),
    };
    let admin_listener = match config.admin_listen {
        Some(address) => Some(bind(address)?),
        None => None,
    };
    let probe = match &config.authentication {
        Authentication::Authd { urls, authorization, .. } => {
            Some(AuthdProbe::new(urls, authorization.as_ref()))
        }
        Authentication::Users(_) | Authentication::Demo => None,
    };
    let health = Arc::new(Health::new(config.readiness.clone(), probe.is_some()));
    if let Some(listener) = admin_listener {
        log::info!(part = "admin", address:% = local(&listener); "listening");
        let shown = Arc::clone(&health);
        let routes = admin::routes(rendered, move || shown.report());
        let routes = routes.map(warp::Reply::into_response).boxed();
        let observe = |event| {
            if event == HttpEvent::Displaced {
                metrics::limit_reached("admin_max_connections");
            }
        };
        let limits = config.admin_limits;
        tokio::spawn(async move {
            // It serves until the process ends: nothing is sent here.
            let (_never, stop) = oneshot::channel();
            http::serve(listener, routes, limits, observe, stop).await;
        });
    }
    let (node, mut events) = tokio::select! {
        started = start(config, &control, tls) => started?,
        // It may wait for its name.
        () = terminated(&mut signals) => return Ok(()),
    };
    tokio::spawn(health::operations::watch(
        Arc::clone(&health),
        node.workers.clone(),
        node.timeouts.file_operation_alarm,
    ));
    if node.authenticator.asks_authd() {
        tokio::spawn(revocation::run(Arc::clone(&node)));
    }
    health.watch(&node.storage.root, probe, &node.registry).await;
    partial_sweeper::start(&node);
    let (control, implicit) = match (listen(control), listen(implicit)) {
        (Ok(control), Ok(implicit)) => (control, implicit),
        (Err(error), _) | (_, Err(error)) => {
            node.registry.leave().await;
            return Err(error);
        }
    };

    let (open, doors) = watch::channel(());
    let mut doorkeepers = JoinSet::new();
    for listener in control {
        log::info!(part = "control", address:% = local(&listener); "listening");
        doorkeepers.spawn(accept(listener, Arc::clone(&node), doors.clone(), false));
    }
    for listener in implicit {
        log::info!(part = "implicit_tls", address:% = local(&listener); "listening");
        doorkeepers.spawn(accept(listener, Arc::clone(&node), doors.clone(), true));
    }
    health.set_life(LifeStage::Ready);
    health.publish(&node.registry);
    service::ready();
    log::info!(node = node.name.as_str(), slice:% = node.network.slice; "ready");

    let ended = wait_for_the_end(&node, &mut signals, &mut events).await;
    // First of all, so that the balancer is refused and passes a client that was just told to
    // connect again on to another node.
    node.connections.close();
    health.set_life(LifeStage::Draining);
    drop(open);
    doorkeepers.join_all().await;
    drain(&node, &mut signals, &mut events).await;
    ended
}

/// Whether the root is a directory. `create` makes it if it alone is missing, not the directories above it,
/// which more likely means a mistyped path.
fn open_root(root: &Path, create: bool) -> io::Result<()> {
    // Where it cannot be made, reading it tells why.
    if create && DirBuilder::new().mode(0o755).create(root).is_ok() {
        log::info!(root:% = root.display(); "made the storage root, which was missing");
    }
    fs::read_dir(root).map(drop)
}

/// Lowers `max_sessions` to what the limit of open files allows.
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
            "max_sessions is lowered, because the limit of open files is too low for it: raise RLIMIT_NOFILE \
             (LimitNOFILE= of the service), or lower max_sessions"
        );
        limits.sessions = sessions;
    }
    Ok(())
}

/// Says whether locks on the storage keep a second writer out on other nodes.
fn tell_locks(locks: LockMode, root: &Path) {
    match locks.cross_nodes(root) {
        Ok(why) => log::info!(root:% = root.display(); "file locks hold on all nodes: {why}"),
        Err(why) => log::warn!(
            root:% = root.display(), setting = "storage_locks";
            "file locks do not keep out other nodes, so that uploads depend on Redis: {why}"
        ),
    }
}

fn tell_limits(config: &Config) {
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

fn bind(address: SocketAddr) -> Result<TcpListener, RunError> {
    listener::bind(address).map_err(|error| RunError::Listen(address, error))
}

fn local(listener: &TcpListener) -> String {
    listener.local_addr().map_or_else(|error| error.to_string(), |address| address.to_string())
}

fn bind_all(network: &Network, port: u16) -> Result<Vec<Bound>, RunError> {
    let mut sockets = Vec::new();
    for ip in &network.listen {
        let address = SocketAddr::new(*ip, port);
        match Bound::new(address) {
            Ok(socket) => sockets.push(socket),
            Err(error) if network.listen_is_default && is_missing_family(&error) => {
                log::info!("not listening on {address}: {error}");
            }
            Err(error) => return Err(RunError::Listen(address, error)),
        }
    }
    Ok(sockets)
}

fn listen(sockets: Vec<Bound>) -> Result<Vec<TcpListener>, RunError> {
    let listen = |socket: Bound| {
        // Every bound socket has an address.
        let address = socket.address().unwrap_or_else(|_| SocketAddr::from(([0; 4], 0)));
        socket.listen().map_err(|error| RunError::Listen(address, error))
    };
    sockets.into_iter().map(listen).collect()
}

/// The host has no IPv6, or no IPv4.
fn is_missing_family(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

async fn start(
    mut config: Config,
    control: &[Bound],
    tls: Option<Arc<Tls>>,
) -> Result<(Arc<Node>, mpsc::Receiver<ClusterEvent>), RunError> {
    let addresses: Vec<SocketAddr> = control.iter().filter_map(|socket| socket.address().ok()).collect();
    let control = addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(" ");
    let trust = Arc::new(Trust {
        balancers: config.network.trusted_balancers.clone(),
        header_timeout: config.timeouts.proxy_header,
    });
    let ips: Vec<_> = addresses.iter().map(SocketAddr::ip).collect();
    // Before the node takes its name: a process that had it and still finishes its transfers has these
    // ports, and keeps both.
    let passive = PassivePorts::listen(config.network.slice, &ips, &trust, config.timeouts.data_connect)
        .map_err(|(address, error)| RunError::ListenPassive(address, error))?;
    // That was the last socket. Connections to clients leave from whatever port is free.
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
        // Without Redis nobody sends anything.
        None => (Registry::local(record), mpsc::channel(1).1),
    };
    if let Some(tls) = &tls {
        tls.share_ticket_keys(registry.clone()).await;
        tls.watch_files();
    }
    let node = Arc::new(Node::new(config, NodeParts { trust, passive, registry, transfer_log, tls }));
    Ok((node, events))
}

/// Takes connections in as long as `open` has its sender, then stops listening. `implicit`: TLS
/// begins at once.
async fn accept(listener: TcpListener, node: Arc<Node>, mut open: watch::Receiver<()>, implicit: bool) {
    loop {
        let (stream, peer) = tokio::select! {
            biased;
            _ = open.changed() => break,
            accepted = listener::accept(&listener) => accepted,
        };
        tokio::spawn(serve(stream, peer, Arc::clone(&node), implicit));
    }
    // Those that the kernel has taken in already get a 421 instead of a reset.
    let Ok(listener) = listener.into_std() else { return };
    while let Ok((stream, peer)) = listener.accept() {
        if stream.set_nonblocking(true).is_ok()
            && let Ok(stream) = TcpStream::from_std(stream)
        {
            tokio::spawn(serve(stream, peer, Arc::clone(&node), implicit));
        }
    }
}

async fn serve(mut stream: TcpStream, peer: SocketAddr, node: Arc<Node>, implicit: bool) {
    let ends = match node.trust.ends(&mut stream, peer).await {
        Ok(ends) => ends,
        Err(NoClient::Left) => return,
        Err(NoClient::Balancer) => return health_check::serve(stream, &node, implicit).await,
        Err(error) => {
            metrics::connection_refused("proxy_header");
            if node.connection_log.has_room("proxy_header", peer.ip()) {
                log::warn!(peer:% = peer; "connection refused: {error}");
            }
            return;
        }
    };
    match node.connections.admit(ends.client.ip()) {
        Ok(place) => Connection::new(stream, node, ends, place).serve(implicit).await,
        Err(refused) => refuse(&node, &stream, ends.client, refused),
    }
}

fn refuse(node: &Node, stream: &TcpStream, client: SocketAddr, refused: Refused) {
    let (text, reason) = match refused {
        Refused::TooMany => ("Too many connections; try again later", "too_many"),
        Refused::TooManyFromAddress => ("Too many connections from your address", "too_many_from_address"),
        Refused::Draining => ("This node goes down for maintenance; connect again", "draining"),
    };
    metrics::connection_refused(reason);
    if node.connection_log.has_room(reason, client.ip()) {
        log::warn!(address:% = client.ip(); "connection refused: {reason}");
    }
    let mut reply = Vec::new();
    Reply::new(Code::SERVICE_UNAVAILABLE, text).encode(&mut reply);
    // The send buffer of a new connection is empty: it takes one line, or the client is gone.
    let _ = stream.try_write(&reply);
}

/// Returns when the node is to end: on a signal, an administrator's wish, or because another node
/// has its name or ports.
async fn wait_for_the_end(
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
                    log::info!("reloading");
                    node.transfer_log.reopen();
                    if let Some(tls) = &node.tls {
                        tls.reload_and_log().await;
                    }
                }
            },
            event = events.recv(), if events_are_open => match event {
                Some(ClusterEvent::Command(NodeCommand::Drain)) => return Ok(()),
                Some(ClusterEvent::Command(command)) => obey(node, &command),
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

/// Carries out a command to end sessions.
fn obey(node: &Node, command: &NodeCommand) {
    match command {
        NodeCommand::EndSession { session } => {
            if !node.connections.order(*session, Order::End) {
                log::info!(session:%; "told to end a session that this node does not have");
            }
        }
        NodeCommand::EndUser { user } => node.connections.end_user(user),
        NodeCommand::Drain => {}
    }
}

/// Lets transfers finish, up to the configured limit or a second signal, then ends what is left.
async fn drain(node: &Arc<Node>, signals: &mut Signals, events: &mut mpsc::Receiver<ClusterEvent>) {
    log::info!(
        connections = node.connections.count(), limit:? = node.timeouts.drain;
        "draining"
    );
    metrics::draining(true);
    service::stopping();
    node.registry.set_state(NodeState::Draining);
    node.connections.drain(Order::Drain);
    let deadline = Instant::now() + node.timeouts.drain;
    loop {
        tokio::select! {
            () = node.connections.none_left() => {}
            () = sleep_until(deadline) => log::warn!("the drain limit is over"),
            () = terminated(signals) => log::warn!("told again to end"),
            // A session that still finishes its transfer can be ended.
            Some(event) = events.recv() => {
                if let ClusterEvent::Command(command) = event {
                    obey(node, &command);
                }
                continue;
            }
        }
        break;
    }
    if node.connections.count() > 0 {
        log::warn!(connections = node.connections.count(); "ending sessions that have not finished");
        node.connections.drain(Order::Stop);
        // Storage that hangs may keep a session from ending; the process ends all the same.
        let _ = timeout_at(Instant::now() + STOP_GRACE, node.connections.none_left()).await;
    }
    node.registry.leave().await;
    log::info!("stopped");
}

async fn terminated(signals: &mut Signals) {
    while signals.next().await != SignalRequest::Terminate {}
}
