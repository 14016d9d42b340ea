//! `authd`, the central service of a cluster: decides logins, keeps users, shows sessions and
//! nodes and ends them.
//!
//! **A login, step by step.** (1) `routes` reads the body within its limits and checks the node's
//! token (`tokens`). (2) `handlers/login` asks `throttle`, over all instances, whether this user
//! and this address may try now. (3) `accounts` finds the user: declared in the users file, or in
//! Redis. (4) `accounts/cache` knows the password from a moment ago, or `accounts/password`
//! computes argon2 on a thread of its own; for an unknown user as well. (5) `accounts/policy` joins
//! what the user and the groups set. (6) `throttle` counts the outcome. (7) The node gets an
//! `Account`, or an `ApiError`, which `error` turns into a status and a public code; the log and the
//! metrics get the real reason.

pub mod accounts;
pub mod config;
pub mod error;
pub mod handlers;
mod metrics;
mod persistence;
pub mod prompt;
mod revision;
pub mod routes;
pub mod server;
pub mod settings;
pub mod throttle;
mod tokens;

use std::{io, sync::Arc, time::Duration};

use common::{
    health::{Condition, LifeStage, REGISTRY, ReadinessReport, Requirement},
    process::{
        admin,
        capabilities::{self, Kept},
        descriptors, service,
        signals::{SignalRequest, Signals},
    },
    registry::{RedisLink, RegistryView},
};
use tokio::{net::TcpListener, sync::oneshot, task::spawn_blocking, time::timeout};

use crate::{
    accounts::{
        Accounts, ReloadedUsers,
        cache::PasswordCache,
        file::UsersFileError,
        password::PasswordVerifier,
        stored::StoredAccounts,
        user::{Credential, User},
    },
    config::{Config, DeclaredUsers},
    handlers::users,
    revision::RevisionAdvancer,
    throttle::Throttle,
    tokens::{TokenPolicy, Tokens},
};

/// An authd that is run as root reads everybody's users file, as root does, and has no other power.
pub const KEPT_BY_ROOT: Kept = Kept::ReadFiles;

/// What all requests share.
pub struct Service {
    accounts: Accounts,
    passwords: PasswordVerifier,
    cache: PasswordCache,
    throttle: Throttle,
    tokens: Tokens,
    /// `None`: there is no Redis.
    registry: Option<RegistryView>,
    revision: RevisionAdvancer,
    /// What `/readyz` goes by.
    requirements: Vec<Requirement>,
}

/// Why authd cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("users_file")]
    Users(#[from] UsersFileError),
    #[error("cannot listen on {address}")]
    Listen {
        address: std::net::SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("cannot give up capabilities")]
    Capabilities(#[source] io::Error),
    #[error("cannot receive signals")]
    Signals(#[source] io::Error),
    #[error("cannot collect metrics: {0}")]
    Metrics(String),
}

impl Service {
    /// Reads the users file and computes one hash: blocks.
    fn new(config: &Config) -> Result<Self, UsersFileError> {
        let registry = config.redis.as_ref().map(RegistryView::new);
        let shared = || registry.as_ref().map(|view| (view.link().clone(), view.keys().clone()));
        let demo = config.users == DeclaredUsers::Demo;
        Ok(Self {
            accounts: Accounts::new(
                &config.users,
                config.anonymous.clone(),
                shared().map(|(link, keys)| StoredAccounts::new(link, keys)),
            )?,
            passwords: PasswordVerifier::new(&config.passwords, config.node_token.as_ref()),
            cache: PasswordCache::new(config.cache),
            throttle: Throttle::new(config.throttle.clone(), shared()),
            tokens: Tokens::new(
                match &config.node_token {
                    None if demo => TokenPolicy::Open,
                    token => TokenPolicy::token(token.as_ref()),
                },
                TokenPolicy::token(config.admin_token.as_ref()),
            ),
            registry,
            revision: RevisionAdvancer::default(),
            requirements: config.requirements.clone(),
        })
    }

    /// Whether any login can be decided: without Redis, declared users still log in.
    pub(crate) fn decides_logins(&self) -> bool {
        let away = self.accounts.stored.as_ref().is_some_and(|stored| !stored.is_connected());
        !away || !self.accounts.declared().users.is_empty()
    }

    fn readiness(&self) -> ReadinessReport {
        let mut requirements = self.requirements.clone();
        if self.accounts.declared().users.is_empty() {
            requirements.push(Requirement::Dependency(REGISTRY));
        }
        let redis = self.registry.as_ref().map(|registry| (REGISTRY, registry.link().dependency()));
        if let Some((name, dependency)) = &redis {
            metrics::dependency(name, dependency.condition == Condition::Ok);
        }
        ReadinessReport::new(LifeStage::Ready, redis, &requirements)
    }

    /// Reads the users file again, and drops the cache if that changed anything. Who is no user any
    /// more, or shows that in another way, loses all sessions.
    /// Notes what the hashes of all users cost, so that names that no user has take as long. While Redis is away,
    /// of the declared users alone.
    async fn learn_costs(&self) {
        let note = |user: &User| {
            if let Credential::Hash(hash) = &user.credential {
                self.passwords.observe(hash);
            }
        };
        self.accounts.declared().users.values().for_each(note);
        // The link's log says that Redis is away, and users that cannot be read are in the log, too.
        if let Ok(users) = self.accounts.users().await {
            users.values().for_each(|found| note(&found.user));
        }
    }

    async fn reload(self: Arc<Self>) {
        let Some(path) = self.accounts.path() else { return };
        let file = path.display().to_string();
        let reading = Arc::clone(&self);
        // A panic ends this reading, not what comes after it.
        let Ok(result) = spawn_blocking(move || reading.accounts.reload()).await else { return };
        match result {
            Ok(ReloadedUsers { users, ended }) => {
                self.cache.clear();
                self.learn_costs().await;
                log::info!(file, users; "users file loaded");
                self.revision.advance();
                for user in ended {
                    log::info!(user:%; "the user's sessions are to end");
                    users::shut_out(&self, &user).await;
                }
            }
            Err(error) => log::error!(error:% = error; "users file is broken, the users stay as they were"),
        }
    }
}

/// Serves until SIGTERM, then finishes the requests in flight.
///
/// # Errors
/// The users file cannot be used, or the address not bound.
pub async fn run(mut config: Config) -> Result<(), StartError> {
    let mut signals = Signals::new().map_err(StartError::Signals)?;
    let prometheus = admin::install_metrics().map_err(|error| StartError::Metrics(error.to_string()))?;
    metrics::describe();
    fit_descriptors(&mut config);
    let authd = Arc::new(Service::new(&config)?);
    warn_about(&config);
    if capabilities::is_root() {
        log::warn!("runs as root, which is not needed: a user of its own is safer");
    }
    let failed = |source| StartError::Listen { address: config.listen, source };
    let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    // Nothing else needs any. The threads of the runtime have none since they started.
    capabilities::give_up(KEPT_BY_ROOT).map_err(StartError::Capabilities)?;
    if let Some(registry) = &authd.registry {
        // Before the first answer, so that readiness is right from the start.
        ask(registry.link()).await;
        authd.accounts.learn_overrides().await;
        tokio::spawn(keep_asking(Arc::clone(&authd), registry.link().clone()));
        let (advancing, registry) = (Arc::clone(&authd), registry.clone());
        tokio::spawn(async move { advancing.revision.run(&registry, &advancing.throttle).await });
    }

    authd.learn_costs().await;

    let readiness = Arc::clone(&authd);
    let operations = admin::routes(prometheus, move || readiness.readiness());
    let (stop, stopped) = oneshot::channel::<()>();
    let routes = routes::routes(Arc::clone(&authd), operations);
    let server = tokio::spawn(server::serve(listener, routes, config.connections, stopped));
    log::info!(address:%; "listening");
    service::ready();
    service::start_watchdog();
    tokio::spawn(watch(Arc::clone(&authd), config.poll));

    while signals.next().await == SignalRequest::Reload {
        tokio::spawn(Arc::clone(&authd).reload());
    }
    log::info!("stopping");
    service::stopping();
    drop(stop);
    match timeout(config.stop, server).await {
        Ok(_) => log::info!("stopped"),
        Err(_) => log::warn!("stopped with requests unfinished"),
    }
    Ok(())
}

/// Whether Redis is there must be known without requests too: a balancer that goes by readiness
/// sends none until it is.
async fn keep_asking(authd: Arc<Service>, link: RedisLink) {
    let (mut checked, mut known) = (0, 0);
    // The process before may have ended between a change and the next revision.
    authd.revision.advance();
    loop {
        // Another connection may lead to another Redis, or to one with other settings.
        let connections = link.connections();
        if std::mem::replace(&mut known, connections) != connections {
            authd.revision.advance();
            authd.learn_costs().await;
        }
        if checked != connections && persistence::check(&link).await {
            checked = connections;
        }
        // For the metrics.
        authd.readiness();
        tokio::time::sleep(Duration::from_secs(1)).await;
        ask(&link).await;
        authd.accounts.learn_overrides().await;
    }
}

async fn ask(link: &RedisLink) {
    // The link keeps the result, and tells it to the log and the metrics.
    let _ = link.query::<String>(&redis::cmd("PING")).await;
}

/// Reads the users file again whenever it changes. It is looked at, not watched: that works on
/// NFS, through symbolic links, and with editors that rename. A file that is still being written may
/// lack users whose sessions would end: it is read when it is the same at two looks.
async fn watch(authd: Arc<Service>, poll: Duration) {
    if authd.accounts.path().is_none() {
        return;
    }
    let mut before = None;
    loop {
        tokio::time::sleep(poll).await;
        let looking = Arc::clone(&authd);
        // A panic ends this look, not the watch.
        let changed = spawn_blocking(move || looking.accounts.changed()).await.unwrap_or_default();
        if changed.is_some() && changed == before {
            Arc::clone(&authd).reload().await;
        }
        before = changed;
    }
}

/// Descriptors beside those of HTTP connections: Redis, files of users and tokens, the listener.
const OTHER_DESCRIPTORS: u64 = 64;

/// Raises the limit of open files, and lowers `max_connections` where even that is too low.
fn fit_descriptors(config: &mut Config) {
    let available = match descriptors::raise() {
        Ok(limit) => limit,
        Err(error) => {
            log::warn!("cannot raise the limit of open files (RLIMIT_NOFILE): {error}");
            return;
        }
    };
    let most = usize::try_from(available.saturating_sub(OTHER_DESCRIPTORS)).unwrap_or(usize::MAX).max(1);
    if config.connections.connections > most {
        log::warn!(
            max_connections = config.connections.connections, lowered_to = most, open_files = available;
            "max_connections is lowered, because the limit of open files is too low for it: raise RLIMIT_NOFILE \
             (LimitNOFILE= of the service), or lower max_connections"
        );
        config.connections.connections = most;
    }
}

fn warn_about(config: &Config) {
    if config.users == DeclaredUsers::Demo {
        log::warn!("DEMO: the users demo, admin and test log in with ANY password, and nodes need no token");
    } else if config.node_token.is_none() {
        log::warn!("no node_token_file: every login is refused with 401");
    }
    if let Some(anonymous) = &config.anonymous {
        log::info!(home = anonymous.home.as_str(); "anonymous access is on");
    }
    if config.redis.is_none() {
        log::warn!("no redis_url: no sessions, nodes and API users, and the throttle is this process's own");
    }
}
