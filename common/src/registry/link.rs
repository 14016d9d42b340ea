//! The connection to Redis that a whole process shares, with a time limit for each request.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{
    Cmd, ErrorKind, FromRedisValue, InfoDict, Pipeline, RedisError, RedisResult, Script, ScriptInvocation,
    ServerErrorKind, aio::MultiplexedConnection,
};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{
    RedisServers, RedisTls, RedisUrl,
    connect::{connect, is_handshake_failure},
    link_error::{LinkError, denial, means_away},
    sentinel::{MasterAddress, Sentinels, require_master},
    servers::RedisPlace,
    writes::WriteMonitor,
};
use crate::{
    health::{Condition, Dependency, DependencyFailure, DependencyMonitor},
    sync::lock,
};

/// Time after a failure in which requests fail at once, so that not each of them waits for the timeout.
const PAUSE: Duration = Duration::from_secs(1);

/// Lifetime of the key that a probe writes: nothing reads it.
const PROBE_LIFE: Duration = Duration::from_millis(1);

/// Interval at which the sentinels are asked whether there was a failover.
const SENTINEL_INTERVAL: Duration = Duration::from_millis(400);

/// A connection to Redis that many tasks share. Cheap to clone.
#[derive(Clone)]
pub struct RedisLink(Arc<LinkInner>);

struct LinkInner {
    servers: RedisServers,
    target: LinkTarget,
    timeout: Duration,
    state: Mutex<LinkState>,
    /// Held by the task that connects.
    connecting: tokio::sync::Mutex<()>,
    monitor: DependencyMonitor,
    writes: WriteMonitor,
    /// Duration of the last answer in µs, plus 1. 0: there was none.
    last_answer: AtomicU64,
}

/// The way to the server.
enum LinkTarget {
    Server(RedisUrl),
    Sentinels(Sentinels),
}

struct LinkState {
    connection: LinkConnection,
    /// Number of connections so far. It attributes a failure to the connection on which it happened.
    number: u64,
    /// The status that was last logged.
    logged: Option<LoggedStatus>,
    /// The server that the sentinels named at the last attempt to connect.
    master: Option<MasterAddress>,
    /// The server of the last line about a connection.
    logged_master: Option<MasterAddress>,
    /// True if the server knows flags of scripts.
    has_script_flags: bool,
    /// True if a task compares `master` with what the sentinels say now.
    is_followed: bool,
}

enum LinkConnection {
    /// There is no connection. The next request makes one.
    Idle,
    Open(MultiplexedConnection),
    /// The last attempt failed. Requests before `until` fail at once.
    Paused {
        until: Instant,
        is_denied: bool,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum LoggedStatus {
    Connected,
    Away,
    Denied,
}

impl RedisLink {
    /// A link that connects at its first use. `timeout` limits each request, including the time to connect.
    pub fn new(servers: &RedisServers, timeout: Duration) -> Self {
        let state = LinkState {
            connection: LinkConnection::Idle,
            number: 0,
            logged: None,
            master: None,
            logged_master: None,
            has_script_flags: false,
            is_followed: false,
        };
        let (target, setting) = match &servers.place {
            RedisPlace::Server(url) => (LinkTarget::Server(url.clone()), "redis_url"),
            RedisPlace::Sentinels(options) => {
                let sentinels = Sentinels::new(options.clone(), servers.tls.clone());
                (LinkTarget::Sentinels(sentinels), "redis_sentinels")
            }
        };
        Self(Arc::new(LinkInner {
            servers: servers.clone(),
            target,
            timeout,
            state: Mutex::new(state),
            connecting: tokio::sync::Mutex::new(()),
            monitor: DependencyMonitor::new(setting),
            writes: WriteMonitor::new(),
            last_answer: AtomicU64::new(0),
        }))
    }

    /// Runs one request. If the connection breaks, the request is sent once more on a new connection, so
    /// Redis may carry it out twice.
    ///
    /// # Errors
    /// Redis is away, or refused the request.
    pub async fn run<T, R, F>(&self, request: R) -> Result<T, LinkError>
    where
        R: Fn(MultiplexedConnection) -> F,
        F: Future<Output = RedisResult<T>>,
    {
        let begun = Instant::now();
        let deadline = begun + self.0.timeout;
        let mut second = false;
        loop {
            let mut used = None;
            let attempt = async {
                let (number, connection) = self.connection().await?;
                used = Some(number);
                Ok::<_, LinkError>(request(connection).await)
            };
            let error = match timeout_at(deadline, attempt).await {
                Ok(answer) => match answer? {
                    Ok(value) => {
                        let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
                        self.0.last_answer.store(micros.saturating_add(1), Ordering::Relaxed);
                        return Ok(value);
                    }
                    Err(error) => error,
                },
                Err(_) => {
                    let late = io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
                    return Err(self.refused(used, &late.into()));
                }
            };
            if self.0.writes.is_refusal(&error) {
                return Err(LinkError::Unwritable(error));
            }
            if !means_away(&error) {
                return Err(LinkError::Reply(error));
            }
            // A master that a failover made a replica: the sentinels know its successor.
            let is_demoted = error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly)
                && matches!(self.0.target, LinkTarget::Sentinels(_));
            if second || !(error.is_io_error() || is_demoted) {
                return Err(self.refused(used, &error));
            }
            second = true;
            self.forget(used);
        }
    }

    /// Sends one command.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, LinkError> {
        let answer = self.run(|mut connection| async move { command.query_async(&mut connection).await });
        measured("command", answer).await
    }

    /// Sends commands in one request. Commands of other clients may run between them.
    ///
    /// # Errors
    /// As [`run`](Self::run). If Redis refuses one command, it still carries out the others.
    pub async fn pipe<T: FromRedisValue>(&self, commands: &Pipeline) -> Result<T, LinkError> {
        let answer = self.run(|mut connection| async move { commands.query_async(&mut connection).await });
        measured("pipeline", answer).await
    }

    /// Runs a script. Loads it first if Redis does not know it.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn script<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Result<T, LinkError> {
        let answer = self.run(|mut connection| async move { script.invoke_async(&mut connection).await });
        measured("script", answer).await
    }

    /// Sends `call`, an EVALSHA of `script`. Loads the script first if Redis does not know it.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub(super) async fn call<T: FromRedisValue>(&self, script: &Script, call: &Cmd) -> Result<T, LinkError> {
        let answer = self.run(|mut connection| async move {
            match call.query_async(&mut connection).await {
                Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                    script.load_async(&mut connection).await?;
                    call.query_async(&mut connection).await
                }
                answer => answer,
            }
        });
        measured("script", answer).await
    }

    /// The condition of Redis at the last request.
    pub fn dependency(&self) -> Dependency {
        self.0.monitor.dependency()
    }

    /// Writes a key of the cluster, `key`, to see whether Redis accepts writes. Scripts that Redis exempts
    /// from its limit of memory do not show it. Failures are logged and shown by [`Self::writes`].
    pub async fn probe_writes(&self, key: &str) {
        let mut set = Cmd::new();
        set.arg("SET").arg(key).arg(1).arg("PX").arg(PROBE_LIFE.as_millis() as u64);
        if self.query::<()>(&set).await.is_ok() {
            self.0.writes.note_success();
        }
    }

    /// Tells whether Redis accepts writes. `None`: it was not asked yet.
    pub fn writes(&self) -> Option<Dependency> {
        Some(self.0.writes.dependency()).filter(|writes| writes.condition != Condition::Unknown)
    }

    /// Returns true if the server at the last connection knows flags of scripts (Redis 7.0).
    pub(super) fn has_script_flags(&self) -> bool {
        self.state().has_script_flags
    }

    /// Duration of the last answer. `None`: there was none.
    pub fn last_answer(&self) -> Option<Duration> {
        self.0.last_answer.load(Ordering::Relaxed).checked_sub(1).map(Duration::from_micros)
    }

    /// Number of connections so far. A changed number means a new connection, perhaps to another Redis.
    pub fn connections(&self) -> u64 {
        self.state().number
    }

    /// Returns true if Redis answered the last request.
    pub fn is_connected(&self) -> bool {
        matches!(self.state().connection, LinkConnection::Open(_))
    }

    /// A separate connection for commands that block. Its requests have no time limit.
    pub(super) async fn dedicated(&self) -> RedisResult<MultiplexedConnection> {
        match timeout(self.0.timeout, self.connect(&mut None)).await {
            Ok(connection) => connection,
            Err(elapsed) => Err(io::Error::from(elapsed).into()),
        }
    }

    async fn connection(&self) -> Result<(u64, MultiplexedConnection), LinkError> {
        if let Some(current) = self.current() {
            return current;
        }
        let _connecting = self.0.connecting.lock().await;
        // Another task may have connected, or failed, while this one waited.
        if let Some(current) = self.current() {
            return current;
        }
        let mut tried = None;
        let connected = self.connect(&mut tried).await;
        self.state().master = tried;
        match connected {
            Ok(connection) => Ok((self.connected(connection.clone()), connection)),
            Err(error) => Err(self.refused(None, &error)),
        }
    }

    fn current(&self) -> Option<Result<(u64, MultiplexedConnection), LinkError>> {
        let state = self.state();
        match &state.connection {
            LinkConnection::Open(connection) => Some(Ok((state.number, connection.clone()))),
            LinkConnection::Paused { until, is_denied } if Instant::now() < *until => {
                Some(Err(if *is_denied { LinkError::Denied } else { LinkError::Away }))
            }
            LinkConnection::Paused { .. } | LinkConnection::Idle => None,
        }
    }

    /// `tried` becomes the server that the sentinels name.
    async fn connect(&self, tried: &mut Option<MasterAddress>) -> RedisResult<MultiplexedConnection> {
        let tls = self.0.servers.tls.as_ref();
        match &self.0.target {
            LinkTarget::Server(url) => self.ready(connect_server(url, tls).await?).await,
            LinkTarget::Sentinels(sentinels) => {
                self.follow();
                let verdict = sentinels.verdict(self.0.timeout).await?;
                *tried = Some(verdict.address.clone());
                let mut connection = connect_server(&sentinels.server(&verdict.address), tls).await?;
                require_master(&mut connection).await?;
                self.ready(connection).await
            }
        }
    }

    /// Checks that the server serves, and learns what it is able to do.
    async fn ready(&self, mut connection: MultiplexedConnection) -> RedisResult<MultiplexedConnection> {
        // A Redis that requires a password or still loads its data says so here. (PING would also fail on a
        // read-only Redis, which can still be read.)
        match redis::cmd("ECHO").arg("").exec_async(&mut connection).await {
            Err(error) if means_away(&error) => return Err(error),
            // An ACL user may have no permission for it.
            _ => {}
        }
        // A user without the permission gets scripts that every version understands.
        let info = redis::cmd("INFO").arg("server").query_async::<InfoDict>(&mut connection).await;
        let version = info.ok().and_then(|info| info.get::<String>("redis_version")).unwrap_or_default();
        let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
        self.state().has_script_flags = major.is_some_and(|major| major >= 7);
        Ok(connection)
    }

    /// Starts the task that notices a failover, unless it runs.
    fn follow(&self) {
        if !std::mem::replace(&mut self.state().is_followed, true) {
            tokio::spawn(follow_sentinels(Arc::downgrade(&self.0)));
        }
    }

    /// Drops the connection, or ends the pause after a failure, if the sentinels name another master than at
    /// the last attempt to connect. The next request then connects to the new one.
    async fn compare_master(&self) {
        let LinkTarget::Sentinels(sentinels) = &self.0.target else { return };
        // A failed request reports that no sentinel answers.
        let Ok(verdict) = sentinels.verdict(self.0.timeout).await else { return };
        let mut state = self.state();
        if !verdict.is_by_majority || state.master.as_ref() == Some(&verdict.address) {
            return;
        }
        let is_open = matches!(state.connection, LinkConnection::Open(_));
        if is_open || matches!(state.connection, LinkConnection::Paused { is_denied: false, .. }) {
            if state.master.is_some() {
                let MasterAddress { host, port } = &verdict.address;
                log::warn!(host = host.as_str(), port; "the sentinels name another Redis as the master");
            }
            state.connection = LinkConnection::Idle;
        }
        state.master = Some(verdict.address);
    }

    /// The address to show: that of the master, if sentinels name it.
    fn shown(&self, state: &LinkState) -> String {
        match (&self.0.target, &state.master) {
            (LinkTarget::Sentinels(sentinels), Some(master)) => sentinels.server(master).to_string(),
            _ => self.0.servers.to_string(),
        }
    }

    fn connected(&self, connection: MultiplexedConnection) -> u64 {
        let mut state = self.state();
        state.connection = LinkConnection::Open(connection);
        state.number += 1;
        self.0.monitor.note(Ok(()));
        let is_another = state.logged_master != state.master;
        if state.logged != Some(LoggedStatus::Connected) || is_another {
            state.logged_master = state.master.clone();
            state.logged = Some(LoggedStatus::Connected);
            metrics::gauge!("ftp_registry_connected").set(1.0);
            log::info!(redis = self.shown(&state).as_str(); "connected to Redis");
        }
        state.number
    }

    /// Drops connection number `used`, if it is the current one.
    fn forget(&self, used: Option<u64>) {
        let mut state = self.state();
        if used == Some(state.number) {
            state.connection = LinkConnection::Idle;
        }
    }

    fn refused(&self, used: Option<u64>, error: &RedisError) -> LinkError {
        let denial = denial(error);
        let setting = match (denial, &self.0.target) {
            (Some(_), _) => "redis_password_file",
            (None, _) if is_handshake_failure(error) => "redis_ca_file",
            (None, LinkTarget::Server(_)) => "redis_url",
            (None, LinkTarget::Sentinels(_)) => "redis_sentinels",
        };
        self.fail(used, error.to_string(), setting, denial)
    }

    /// Notes a failure on connection number `used`, or while connecting. `setting` is the one to check,
    /// `denial` the fault of the password, if that is the cause.
    fn fail(
        &self,
        used: Option<u64>,
        error: String,
        setting: &'static str,
        denial: Option<&'static str>,
    ) -> LinkError {
        let mut state = self.state();
        let is_open = matches!(state.connection, LinkConnection::Open(_));
        if is_open && used != Some(state.number) {
            // Another task has connected since.
            return LinkError::Away;
        }
        let is_denied = denial.is_some();
        state.connection = LinkConnection::Paused { until: Instant::now() + PAUSE, is_denied };
        let (condition, status, result) = if is_denied {
            (Condition::Misconfigured, LoggedStatus::Denied, LinkError::Denied)
        } else {
            (Condition::Failed, LoggedStatus::Away, LinkError::Away)
        };
        let shown = self.shown(&state);
        if state.logged != Some(status) {
            state.logged = Some(status);
            metrics::gauge!("ftp_registry_connected").set(0.0);
            match denial {
                Some(fault) => {
                    log::error!(redis = shown.as_str(), error = error.as_str(), setting; "{fault}")
                }
                None => {
                    log::warn!(redis = shown.as_str(), error = error.as_str(), setting; "Redis is away");
                }
            }
        }
        let error = denial.map_or(error, str::to_owned);
        self.0.monitor.note(Err(DependencyFailure { condition, error, setting }));
        result
    }

    fn state(&self) -> MutexGuard<'_, LinkState> {
        lock(&self.0.state)
    }
}

/// Connects to a server that is ready to answer requests.
async fn connect_server(url: &RedisUrl, tls: Option<&RedisTls>) -> RedisResult<MultiplexedConnection> {
    let mut connection = connect(url, tls).await?;
    // A Redis that requires a password or still loads its data says so here. (PING would also fail on a
    // read-only Redis, which can still be read.)
    redis::cmd("ECHO").arg("").exec_async(&mut connection).await?;
    Ok(connection)
}

/// Compares the master of a link with what the sentinels say, until the link is dropped.
async fn follow_sentinels(link: Weak<LinkInner>) {
    loop {
        sleep(SENTINEL_INTERVAL).await;
        let Some(inner) = link.upgrade() else { return };
        RedisLink(inner).compare_master().await;
    }
}

/// Measures the time until Redis's answer.
async fn measured<T>(
    call: &'static str,
    answer: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, LinkError> {
    let begun = Instant::now();
    let answer = answer.await;
    if let Ok(_) | Err(LinkError::Reply(_)) = answer {
        metrics::histogram!("ftp_redis_seconds", "call" => call).record(begun.elapsed());
    }
    answer
}

/// A pipeline that first loads `script`, so that its commands can call the script by its hash. Redis
/// forgets scripts when it restarts; loading one that it knows costs only a look-up.
pub(super) fn pipeline_with(script: &Script) -> Pipeline {
    let mut pipe = Pipeline::new();
    pipe.load_script(script).ignore();
    pipe
}
