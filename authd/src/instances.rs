//! The running authds of the cluster: each publishes itself in Redis until it ends.

use std::{net::SocketAddr, time::Duration};

use common::{
    admin_api::AuthdView,
    clock::{rfc3339, unix_seconds},
    registry::{LinkError, RegistryView},
};
use redis::{Pipeline, cmd};
use tokio::time::sleep;

/// Time between two publications.
const INTERVAL: Duration = Duration::from_secs(5);

/// Time after which an authd that publishes itself no more is not shown, in seconds.
const LIFE: u32 = 15;

// One lost publication does not remove a running authd.
const _: () = assert!(INTERVAL.as_secs() * 2 < LIFE as u64);

/// This process, listening on `address`.
pub(crate) fn this(address: SocketAddr) -> AuthdView {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    AuthdView {
        id: format!("{:016x}", rand::random::<u64>()),
        host: host.unwrap_or_default(),
        address: address.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        since: rfc3339(unix_seconds()),
    }
}

/// Publishes this process again and again. Never returns.
pub(crate) async fn run(registry: RegistryView, this: AuthdView) {
    // The view is plain data.
    let json = serde_json::to_string(&this).unwrap_or_default();
    let (all, own) = (registry.keys().authds(), registry.keys().authd(&this.id));
    let mut publication = Pipeline::new();
    publication.sadd(&all, &this.id).ignore();
    publication.cmd("SET").arg(&own).arg(json).arg("EX").arg(LIFE).ignore();
    loop {
        // The link logs that Redis is away.
        let _ = registry.link().pipe::<()>(&publication).await;
        sleep(INTERVAL).await;
    }
}

/// Removes a process that ends.
pub(crate) async fn leave(registry: &RegistryView, id: &str) {
    let mut removal = Pipeline::new();
    removal.srem(registry.keys().authds(), id).ignore().del(registry.keys().authd(id)).ignore();
    // Without Redis, the entry expires.
    let _ = registry.link().pipe::<()>(&removal).await;
}

/// The running authds, by host and address.
///
/// # Errors
/// Redis cannot be reached.
pub(crate) async fn list(registry: &RegistryView) -> Result<Vec<AuthdView>, LinkError> {
    let all = registry.keys().authds();
    let ids: Vec<String> = registry.link().query(cmd("SMEMBERS").arg(&all)).await?;
    if ids.is_empty() {
        return Ok(Vec::new()); // Redis rejects MGET without keys.
    }
    let keys: Vec<String> = ids.iter().map(|id| registry.keys().authd(id)).collect();
    let found: Vec<Option<String>> = registry.link().query(cmd("MGET").arg(keys)).await?;
    let gone: Vec<&String> =
        ids.iter().zip(&found).filter(|(_, json)| json.is_none()).map(|(id, _)| id).collect();
    if !gone.is_empty() {
        // If it publishes itself again, it also enters its id again.
        registry.link().query::<()>(cmd("SREM").arg(&all).arg(gone)).await?;
    }
    let mut authds: Vec<AuthdView> =
        found.iter().flatten().filter_map(|json| serde_json::from_str(json).ok()).collect();
    authds.sort_by(|a, b| (&a.host, &a.address, &a.id).cmp(&(&b.host, &b.address, &b.id)));
    Ok(authds)
}
