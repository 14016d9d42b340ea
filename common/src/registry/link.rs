//! One connection to Redis, shared by a whole process, with bounded waits.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, RedisResult, Script,
    ScriptInvocation, ServerErrorKind, aio::MultiplexedConnection,
};
use tokio::time::{Instant, timeout, timeout_at};

use super::RedisUrl;
use crate::{
    health::{Condition, Dependency, Trouble, Watched},
    sync::lock,
};

/// After a failure nobody tries again for this long: requests fail at once instead of each
/// waiting out the timeout.
const REST: Duration = Duration::from_secs(1);

/// A connection to Redis that many tasks share. Cheap to clone.
#[derive(Clone)]
pub struct RedisLink(Arc<Inner>);

struct Inner {
    url: RedisUrl,
    client: redis::Client,
    timeout: Duration,
    state: Mutex<State>,
    /// Held by the one task that connects.
    connecting: tokio::sync::Mutex<()>,
    watched: Watched,
}

struct State {
    connection: Connection,
    /// Counts connections, so that what happened on an old one is not held against a new one.
    number: u64,
    /// What the log was last told.
    told: Option<Told>,
}

enum Connection {
    /// None, and nothing speaks against trying.
    Idle,
    Open(MultiplexedConnection),
    /// The last attempt failed.
    Resting {
        until: Instant,
        is_denied: bool,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    Connected,
    Away,
    Denied,
}

/// Why a request to Redis has no answer.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Redis cannot be reached, does not answer in time, or says that it cannot serve now.
    #[error("Redis is away")]
    Away,
    /// Redis answers, but refuses this daemon's password or wants one. Callers go on without Redis, as
    /// while it is away.
    #[error("Redis refuses this daemon's password (redis_password_file)")]
    Denied,
    /// Redis refused this request.
    #[error("Redis answered with an error")]
    Reply(#[source] RedisError),
}

impl RedisLink {
    /// A link that connects when it is first used. `timeout` bounds each request, connecting
    /// included.
    pub fn new(url: &RedisUrl, timeout: Duration) -> Self {
        let state = State { connection: Connection::Idle, number: 0, told: None };
        Self(Arc::new(Inner {
            client: url.client(),
            url: url.clone(),
            timeout,
            state: Mutex::new(state),
            connecting: tokio::sync::Mutex::new(()),
            watched: Watched::new("redis_url"),
        }))
    }

    /// Runs one request. If its connection breaks it is sent once more on a new one, so it must
    /// bear being done twice.
    ///
    /// # Errors
    /// Redis is away, or refused the request.
    pub async fn run<T, R, F>(&self, request: R) -> Result<T, LinkError>
    where
        R: Fn(MultiplexedConnection) -> F,
        F: Future<Output = RedisResult<T>>,
    {
        let deadline = Instant::now() + self.0.timeout;
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
                    Ok(value) => return Ok(value),
                    Err(error) => error,
                },
                Err(_) => return Err(self.fail(used, "no answer in time".to_owned(), None)),
            };
            if !means_away(&error) {
                return Err(LinkError::Reply(error));
            }
            if second || !error.is_io_error() {
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
        self.run(|mut connection| async move { command.query_async(&mut connection).await }).await
    }

    /// Sends commands in one go; other clients' commands may run between them.
    ///
    /// # Errors
    /// As [`run`](Self::run); the other commands are done even if Redis refuses one.
    pub async fn pipe<T: FromRedisValue>(&self, commands: &Pipeline) -> Result<T, LinkError> {
        self.run(|mut connection| async move { commands.query_async(&mut connection).await }).await
    }

    /// Runs a script, loading it first if Redis does not know it.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn script<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Result<T, LinkError> {
        self.run(|mut connection| async move { script.invoke_async(&mut connection).await }).await
    }

    /// Sends `call`, an EVALSHA of `script`, and loads the script first if Redis does not know it.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub(super) async fn call<T: FromRedisValue>(&self, script: &Script, call: &Cmd) -> Result<T, LinkError> {
        self.run(|mut connection| async move {
            match call.query_async(&mut connection).await {
                Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                    script.load_async(&mut connection).await?;
                    call.query_async(&mut connection).await
                }
                answer => answer,
            }
        })
        .await
    }

    /// How Redis is, as far as the last request tells.
    pub fn dependency(&self) -> Dependency {
        self.0.watched.dependency()
    }

    /// Counts the connections that there were: it tells whether there is another one than before,
    /// perhaps to another Redis.
    pub fn connections(&self) -> u64 {
        self.state().number
    }

    /// Whether Redis answered when it was last asked.
    pub fn is_connected(&self) -> bool {
        matches!(self.state().connection, Connection::Open(_))
    }

    /// A connection of its own, for commands that block. Nothing bounds its requests.
    pub(super) async fn dedicated(&self) -> RedisResult<MultiplexedConnection> {
        match timeout(self.0.timeout, self.connect()).await {
            Ok(connection) => connection,
            Err(elapsed) => Err(std::io::Error::from(elapsed).into()),
        }
    }

    async fn connection(&self) -> Result<(u64, MultiplexedConnection), LinkError> {
        if let Some(known) = self.known() {
            return known;
        }
        let _only_one = self.0.connecting.lock().await;
        // Whoever connected while this task waited did so for this task too.
        if let Some(known) = self.known() {
            return known;
        }
        match self.connect().await {
            Ok(connection) => Ok((self.connected(connection.clone()), connection)),
            Err(error) => Err(self.refused(None, &error)),
        }
    }

    fn known(&self) -> Option<Result<(u64, MultiplexedConnection), LinkError>> {
        let state = self.state();
        match &state.connection {
            Connection::Open(connection) => Some(Ok((state.number, connection.clone()))),
            Connection::Resting { until, is_denied } if Instant::now() < *until => {
                Some(Err(if *is_denied { LinkError::Denied } else { LinkError::Away }))
            }
            Connection::Resting { .. } | Connection::Idle => None,
        }
    }

    async fn connect(&self) -> RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.0.timeout))
            .set_response_timeout(None);
        let mut connection = self.0.client.get_multiplexed_async_connection_with_config(&config).await?;
        // A Redis that wants a password or still loads its data says so now, in plain words. (PING
        // would also fail while Redis can only be read, which is no reason not to read it.)
        redis::cmd("ECHO").arg("").exec_async(&mut connection).await?;
        Ok(connection)
    }

    fn connected(&self, connection: MultiplexedConnection) -> u64 {
        let mut state = self.state();
        state.connection = Connection::Open(connection);
        state.number += 1;
        self.0.watched.note(Ok(()));
        if state.told != Some(Told::Connected) {
            state.told = Some(Told::Connected);
            metrics::gauge!("ftp_registry_connected").set(1.0);
            log::info!(redis:% = self.0.url; "connected to Redis");
        }
        state.number
    }

    /// Drops the connection `used`, if it is the current one.
    fn forget(&self, used: Option<u64>) {
        let mut state = self.state();
        if used == Some(state.number) {
            state.connection = Connection::Idle;
        }
    }

    fn refused(&self, used: Option<u64>, error: &RedisError) -> LinkError {
        self.fail(used, error.to_string(), denial(error))
    }

    /// Notes a failure on the connection `used`, or in making one. `denial`: what is wrong with the
    /// password.
    fn fail(&self, used: Option<u64>, error: String, denial: Option<&'static str>) -> LinkError {
        let mut state = self.state();
        let is_open = matches!(state.connection, Connection::Open(_));
        if is_open && used != Some(state.number) {
            // Another task has connected since.
            return LinkError::Away;
        }
        let is_denied = denial.is_some();
        state.connection = Connection::Resting { until: Instant::now() + REST, is_denied };
        let (condition, setting, told, result) = if is_denied {
            (Condition::Misconfigured, "redis_password_file", Told::Denied, LinkError::Denied)
        } else {
            (Condition::Failed, "redis_url", Told::Away, LinkError::Away)
        };
        if state.told != Some(told) {
            state.told = Some(told);
            metrics::gauge!("ftp_registry_connected").set(0.0);
            match denial {
                Some(what) => log::error!(redis:% = self.0.url, error = error.as_str(), setting; "{what}"),
                None => log::warn!(redis:% = self.0.url, error = error.as_str(); "Redis is away"),
            }
        }
        let error = denial.map_or(error, str::to_owned);
        self.0.watched.note(Err(Trouble { condition, error, setting }));
        result
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }
}

/// What is wrong with the password, if Redis says so. That does not pass by itself.
fn denial(error: &RedisError) -> Option<&'static str> {
    match error.code() {
        Some("NOAUTH") => Some("Redis wants a password: set redis_password_file"),
        Some("WRONGPASS") => Some(WRONG_PASSWORD),
        _ => (error.kind() == ErrorKind::AuthenticationFailed).then_some(WRONG_PASSWORD),
    }
}

const WRONG_PASSWORD: &str = "Redis refuses the password: the one in redis_password_file (or redis_url) is \
                              not that of Redis, or Redis has none";

/// Whether an error says something about Redis at this time, not about the request.
fn means_away(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Io | ErrorKind::Parse | ErrorKind::AuthenticationFailed => true,
        ErrorKind::Server(
            ServerErrorKind::BusyLoading
            | ServerErrorKind::MasterDown
            | ServerErrorKind::ReadOnly
            | ServerErrorKind::ClusterDown,
        ) => true,
        // For some of which the driver has no name.
        _ if denial(error).is_some() => true,
        // The driver's own state: the task that serves the connection has ended.
        _ => error.is_unrecoverable_error(),
    }
}
