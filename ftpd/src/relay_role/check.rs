//! `ftp-relay --check`: a summary of the settings, and with `--deep`, tests of what they name.

use common::registry;

use super::config::RoleConfig;
use crate::check::CheckResult;

/// A summary of the settings, one line each.
pub fn summary(config: &RoleConfig) -> Vec<String> {
    let listen = config.listen.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let control = match (config.control_port, config.implicit_tls_port) {
        (None, None) => "no control connections".to_owned(),
        (Some(control), None) => format!("control connections at port {control}"),
        (None, Some(implicit)) => format!("control connections with implicit FTPS at port {implicit}"),
        (Some(control), Some(implicit)) => {
            format!("control connections at port {control}, with implicit FTPS at port {implicit}")
        }
    };
    let kernel = match &config.nft_map {
        Some(map) => format!("keeps the nftables map {map} up to date"),
        None => "does not use nftables".to_owned(),
    };
    vec![
        format!("relay on {listen}, passive ports {}", config.passive_ports),
        control,
        kernel,
        format!(
            "map of the passive ports from Redis at {}, keys {}:*",
            config.redis.servers, config.redis.prefix
        ),
    ]
}

/// Tests Redis and the nftables map. Changes nothing.
pub async fn deep(config: RoleConfig) -> Vec<CheckResult> {
    let answer = registry::probe(&config.redis).await.map_err(|error| error.to_string());
    let mut results = vec![(format!("Redis at {}", config.redis.servers), answer)];
    if let Some(map) = config.nft_map {
        let name = format!("the nftables map {map}");
        let found = tokio::task::spawn_blocking(move || map.family_of_addresses()).await;
        results.push((
            name,
            match found {
                Ok(found) => found.map(drop).map_err(|error| error.to_string()),
                Err(panic) => Err(panic.to_string()),
            },
        ));
    }
    results
}
