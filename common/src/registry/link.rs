//! One connection to Redis, shared by a whole process, with bounded waits.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, RedisResult, Script,
    ScriptInvocation, ServerErrorKind, aio::MultiplexedConnection,
};
use tokio::time::{Instant, timeout, timeout_at};

use super::RedisUrl;

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
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    Connected,
    Away,
}

/// Why a request to Redis has no answer.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Redis cannot be reached, does not answer in time, or says that it cannot serve now.
    #[error("Redis is away")]
    Away,
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
                Err(_) => return Err(self.fail(used, "no answer in time")),
            };
            if !means_away(&error) {
                return Err(LinkError::Reply(error));
            }
            if second || !error.is_io_error() {
                return Err(self.fail(used, &error));
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

    /// Counts the connections that there were: it tells whether there is another one than before,
    /// perhaps to another Redis.
    pub(super) fn connections(&self) -> u64 {
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
            Err(error) => Err(self.fail(None, &error)),
        }
    }

    fn known(&self) -> Option<Result<(u64, MultiplexedConnection), LinkError>> {
        let state = self.state();
        match &state.connection {
            Connection::Open(connection) => Some(Ok((state.number, connection.clone()))),
            Connection::Resting { until } if Instant::now() < *until => Some(Err(LinkError::Away)),
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

    /// Notes a failure on the connection `used`, or in making one.
    fn fail(&self, used: Option<u64>, reason: impl std::fmt::Display) -> LinkError {
        let mut state = self.state();
        let is_open = matches!(state.connection, Connection::Open(_));
        if is_open && used != Some(state.number) {
            // Another task has connected since.
            return LinkError::Away;
        }
        state.connection = Connection::Resting { until: Instant::now() + REST };
        if state.told != Some(Told::Away) {
            state.told = Some(Told::Away);
            metrics::gauge!("ftp_registry_connected").set(0.0);
            log::warn!(redis:% = self.0.url, error:% = reason; "Redis is away");
        }
        LinkError::Away
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

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
        // For which the driver has no name: no password was given.
        _ if error.code() == Some("NOAUTH") => true,
        // The driver's own state: the task that serves the connection has ended.
        _ => error.is_unrecoverable_error(),
    }
}
