//! Checks the settings of Redis. Users that were created through the API exist only there and must not be
//! lost.

use common::{
    process::logging::chain,
    registry::{LinkError, RedisLink},
};
use redis::{InfoDict, cmd};

/// Logs warnings about settings with which Redis loses users. Returns false if Redis could not be asked.
///
/// Uses INFO, because many managed Redis services refuse or rename CONFIG.
pub(crate) async fn check(link: &RedisLink) -> bool {
    let persistence = link.query::<InfoDict>(cmd("INFO").arg("persistence")).await;
    let memory = link.query::<InfoDict>(cmd("INFO").arg("memory")).await;
    match (persistence, memory) {
        (Ok(persistence), Ok(memory)) => {
            for warning in warnings(&persistence, &memory) {
                log::warn!("{warning}");
            }
            true
        }
        (Err(LinkError::Away | LinkError::Denied), _) | (_, Err(LinkError::Away | LinkError::Denied)) => {
            false
        }
        (Err(error), _) | (_, Err(error)) => {
            let error = chain(&error);
            log::warn!(
                error;
                "cannot check the persistence of Redis, because it refuses INFO; users created through the \
                 API need `appendonly yes` and `maxmemory-policy noeviction`"
            );
            true
        }
    }
}

fn warnings(persistence: &InfoDict, memory: &InfoDict) -> Vec<String> {
    let number = |info: &InfoDict, key: &str| info.get::<u64>(key);
    let text = |info: &InfoDict, key: &str| info.get::<String>(key).unwrap_or_default();
    let mut warnings = Vec::new();
    if number(persistence, "aof_enabled") == Some(0) {
        warnings.push(
            "Redis has no append-only file: when it restarts, users and groups created through the API since \
             the last snapshot are lost; set `appendonly yes` in redis.conf"
                .to_owned(),
        );
    } else if text(persistence, "aof_last_write_status") == "err" {
        warnings.push(
            "Redis cannot write its append-only file (aof_last_write_status:err): when it restarts, users \
             created through the API are lost; see the log of Redis"
                .to_owned(),
        );
    }
    let policy = text(memory, "maxmemory_policy");
    let is_limited = number(memory, "maxmemory").is_some_and(|bytes| bytes > 0);
    if is_limited && !matches!(policy.as_str(), "noeviction" | "") {
        let lost = if policy.starts_with("allkeys") {
            "users created through the API, leases and sessions"
        } else {
            "leases and sessions"
        };
        warnings.push(format!(
            "Redis removes {lost} when it reaches maxmemory (`maxmemory-policy {policy}`); set \
             `maxmemory-policy noeviction` in redis.conf"
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use redis::{FromRedisValue, Value};

    use super::*;

    fn info(text: &str) -> InfoDict {
        InfoDict::from_redis_value(Value::BulkString(text.as_bytes().to_vec())).unwrap()
    }

    #[test]
    fn only_settings_that_lose_data_cause_warnings() {
        for (persistence, memory, told) in [
            (
                "aof_enabled:1\r\naof_last_write_status:ok",
                "maxmemory:0\r\nmaxmemory_policy:noeviction",
                &[][..],
            ),
            ("aof_enabled:1", "maxmemory:0\r\nmaxmemory_policy:allkeys-lru", &[]),
            ("aof_enabled:0", "maxmemory:1\r\nmaxmemory_policy:noeviction", &["appendonly yes"]),
            ("aof_enabled:1\r\naof_last_write_status:err", "maxmemory:0", &["aof_last_write_status"]),
            (
                "aof_enabled:0",
                "maxmemory:9\r\nmaxmemory_policy:allkeys-lru",
                &["appendonly yes", "users created through the API, leases"],
            ),
            (
                "aof_enabled:1",
                "maxmemory:9\r\nmaxmemory_policy:volatile-ttl",
                &["removes leases and sessions"],
            ),
            // A service whose INFO lacks these fields.
            ("", "", &[]),
        ] {
            let warnings = warnings(&info(persistence), &info(memory));
            assert_eq!(warnings.len(), told.len(), "{warnings:?}");
            for (warning, told) in warnings.iter().zip(told) {
                assert!(warning.contains(told), "{told:?} is not in {warning:?}");
            }
        }
    }
}
