//! Writes that replicas of Redis must confirm before they count (`redis_replicas`).
//!
//! `WAIT` covers the writes of its own connection, and holds the answers of all later commands there back. So
//! these writes have a connection of their own.

use std::{
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use redis::{FromRedisValue, ScriptInvocation, cmd};
use tokio::time::Instant;

use super::{EssentialScript, LinkError, RedisLink, RedisOptions};
use crate::{keys::Keys, sync::lock};

static CONFIRM_LEASE: LazyLock<EssentialScript> =
    LazyLock::new(|| EssentialScript::new(include_str!("lua/confirm_lease.lua")));

/// Time after a missing confirmation in which leases do not wait for another one.
const PAUSE: Duration = Duration::from_secs(1);

/// The number of replicas that confirmed a write, and the number that must.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirmation {
    pub confirmed: u32,
    pub wanted: u32,
}

impl Confirmation {
    /// Returns true if a failover to one of the replicas that confirmed the write keeps it.
    pub fn is_complete(self) -> bool {
        self.confirmed >= self.wanted
    }
}

/// The connection for writes that replicas must confirm. Cheap to clone.
#[derive(Clone)]
pub struct ConfirmedLink {
    link: RedisLink,
    keys: Keys,
    replicas: u32,
    /// Time for which Redis waits for its replicas.
    patience: Duration,
    /// End of the pause after a missing confirmation.
    paused: Arc<Mutex<Option<Instant>>>,
}

impl ConfirmedLink {
    /// `shared` is the link for other requests, which also serves if no confirmation is wanted.
    pub(super) fn new(options: &RedisOptions, shared: &RedisLink) -> Self {
        let link = match options.replicas {
            0 => shared.clone(),
            _ => RedisLink::new(&options.servers, options.timeout),
        };
        Self {
            link,
            keys: Keys::new(&options.prefix),
            replicas: options.replicas,
            patience: options.timeout / 2,
            paused: Arc::default(),
        }
    }

    /// Runs a script, and waits for the replicas for half of `redis_timeout`.
    ///
    /// # Errors
    /// Redis is away, or refused the request. The script may have run all the same.
    pub async fn script<T: FromRedisValue>(
        &self,
        script: &ScriptInvocation<'_>,
    ) -> Result<(T, Confirmation), LinkError> {
        let (value, confirmed) = self
            .link
            .run(|mut connection| async move {
                let value = script.invoke_async(&mut connection).await?;
                let confirmed = match self.replicas {
                    0 => 0,
                    _ => self.wait().query_async(&mut connection).await?,
                };
                Ok((value, confirmed))
            })
            .await?;
        Ok((value, Confirmation { confirmed, wanted: self.replicas }))
    }

    /// Returns true if the replicas have a lease that Redis has granted in `epoch`, or no confirmation is
    /// wanted.
    pub(super) async fn has_lease(&self, epoch: u64) -> bool {
        if self.replicas == 0 {
            return true;
        }
        if lock(&self.paused).is_some_and(|until| Instant::now() < until) {
            return false;
        }
        let mut call = CONFIRM_LEASE.on(&self.link).prepare_invoke();
        call.key(self.keys.lease_epoch()).key(self.keys.write_probe()).arg(format!("{epoch:016x}"));
        let is_confirmed = match self.script::<bool>(&call).await {
            Ok((is_same_server, confirmation)) => is_same_server && confirmation.is_complete(),
            // The link has logged the reason.
            Err(_) => false,
        };
        *lock(&self.paused) = (!is_confirmed).then(|| Instant::now() + PAUSE);
        is_confirmed
    }

    fn wait(&self) -> redis::Cmd {
        let mut wait = cmd("WAIT");
        wait.arg(self.replicas).arg(u64::try_from(self.patience.as_millis()).unwrap_or(u64::MAX).max(1));
        wait
    }
}
