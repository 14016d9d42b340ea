//! Redis Sentinel: which server is the master now.
//!
//! The driver's own client takes the answer of the sentinel that is the fastest. A sentinel that was cut off
//! during a failover names the old master, which may still accept writes. So all sentinels are asked, and
//! of the answers of a majority the one with the highest epoch of the configuration counts.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use redis::{ErrorKind, RedisConnectionInfo, RedisError, RedisResult, aio::MultiplexedConnection, cmd};
use tokio::time::{sleep, timeout};

use super::{
    connect::{RedisTls, connect},
    options::RedisUrl,
};
use crate::sync::lock;

/// The port of a sentinel without a port in its address.
pub(super) const SENTINEL_PORT: u16 = 26379;

/// The sentinels of a master, as the settings name them.
#[derive(Clone, Debug)]
pub(super) struct SentinelOptions {
    pub sentinels: Vec<RedisUrl>,
    /// The name that the sentinels have for the master.
    pub master: String,
    /// User and password of the master.
    pub login: RedisConnectionInfo,
    pub is_encrypted: bool,
}

/// The address of a server, as sentinels tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MasterAddress {
    pub host: String,
    pub port: u16,
}

/// The sentinels' verdict.
pub(super) struct MasterVerdict {
    pub address: MasterAddress,
    /// True if a majority of the sentinels has answered.
    pub is_by_majority: bool,
}

/// The sentinels, with a connection to each.
pub(super) struct Sentinels {
    options: SentinelOptions,
    tls: Option<RedisTls>,
    connections: Vec<Mutex<Option<MultiplexedConnection>>>,
}

impl Sentinels {
    pub(super) fn new(options: SentinelOptions, tls: Option<RedisTls>) -> Self {
        let connections = options.sentinels.iter().map(|_| Mutex::default()).collect();
        Self { options, tls, connections }
    }

    /// The address of a server with the login of the master.
    pub(super) fn server(&self, address: &MasterAddress) -> RedisUrl {
        RedisUrl::at(&address.host, address.port, &self.options.login, self.options.is_encrypted)
    }

    /// Asks all sentinels for the master. Waits for the answers of a majority, and at most `limit`. Once a
    /// third of `limit` is over, fewer answers are enough.
    pub(super) async fn verdict(&self, limit: Duration) -> RedisResult<MasterVerdict> {
        let number = self.options.sentinels.len();
        let mut asked: FuturesUnordered<_> = (0..number).map(|position| self.ask(position, limit)).collect();
        let mut patience = std::pin::pin!(sleep(limit / 3));
        let mut best: Option<(u64, MasterAddress)> = None;
        let (mut answers, mut failure) = (0, None);
        let mut is_patient = true;
        loop {
            let answer = tokio::select! {
                answer = asked.next() => answer,
                () = &mut patience, if is_patient => {
                    is_patient = false;
                    if best.is_some() {
                        break;
                    }
                    continue;
                }
            };
            match answer {
                None => break,
                Some(Ok((epoch, address))) => {
                    answers += 1;
                    if best.as_ref().is_none_or(|(highest, _)| *highest < epoch) {
                        best = Some((epoch, address));
                    }
                    if 2 * answers > number || !is_patient {
                        break;
                    }
                }
                Some(Err(error)) => failure = Some(error),
            }
        }
        match (best, failure) {
            (Some((_, address)), _) => Ok(MasterVerdict { address, is_by_majority: 2 * answers > number }),
            (None, Some(error)) => Err(error),
            (None, None) => Err((ErrorKind::MasterNameNotFoundBySentinel, "no sentinel answers").into()),
        }
    }

    /// Asks one sentinel, which is told apart in the error.
    async fn ask(&self, position: usize, limit: Duration) -> RedisResult<(u64, MasterAddress)> {
        let slot = &self.connections[position];
        let known = lock(slot).clone();
        let answer = timeout(limit, async {
            let mut connection = match known {
                Some(connection) => connection,
                None => connect(&self.options.sentinels[position], self.tls.as_ref()).await?,
            };
            let mut request = cmd("SENTINEL");
            request.arg("MASTER").arg(&self.options.master);
            let fields: HashMap<String, String> = request.query_async(&mut connection).await?;
            *lock(slot) = Some(connection);
            Ok::<_, RedisError>(fields)
        })
        .await;
        let answer =
            answer.unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()));
        let fields = answer.inspect_err(|_| *lock(slot) = None)?;
        let text = |key: &str| fields.get(key).cloned().unwrap_or_default();
        match (text("ip"), text("port").parse()) {
            (host, Ok(port)) if !host.is_empty() => {
                Ok((text("config-epoch").parse().unwrap_or(0), MasterAddress { host, port }))
            }
            _ => Err((ErrorKind::UnexpectedReturnType, "a sentinel tells no address of the master").into()),
        }
    }
}

/// Checks that a server is a master. A replica would refuse writes, and may be far behind.
pub(super) async fn require_master(connection: &mut MultiplexedConnection) -> RedisResult<()> {
    let role: Vec<redis::Value> = cmd("ROLE").query_async(connection).await?;
    let role = role.into_iter().next().map(redis::from_redis_value::<String>).transpose();
    match role {
        Ok(Some(role)) if role == "master" => Ok(()),
        _ => Err((
            ErrorKind::MasterNameNotFoundBySentinel,
            "the server that the sentinels name is not a master (a failover is under way, or it restarted)",
        )
            .into()),
    }
}
