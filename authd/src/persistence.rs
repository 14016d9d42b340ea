//! Whether Redis keeps what it must: users that were made through the API stand there alone.

use common::{
    process::logging::chain,
    registry::{LinkError, RedisLink},
};
use redis::{InfoDict, cmd};

/// Warns of settings with which Redis loses users, and says whether it could be asked.
///
/// INFO tells enough. CONFIG is refused or renamed on many managed Redis services.
pub async fn check(link: &RedisLink) -> bool {
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
        (Err(error @ LinkError::Reply(_)), _) | (_, Err(error @ LinkError::Reply(_))) => {
            let error = chain(&error);
            log::warn!(
                error;
                "Redis does not answer INFO, so that its persistence could not be checked: users made through \
                 the API need `appendonly yes` and `maxmemory-policy noeviction`"
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
            "Redis is not append-only: users and groups made through the API since its last snapshot, if it \
             makes any, are lost when it restarts; set `appendonly yes` in redis.conf"
                .to_owned(),
        );
    } else if text(persistence, "aof_last_write_status") == "err" {
        warnings.push(
            "Redis cannot write its append-only file (aof_last_write_status:err): users made through the API \
             are lost when it restarts; see its log"
                .to_owned(),
        );
    }
    let policy = text(memory, "maxmemory_policy");
    let is_limited = number(memory, "maxmemory").is_some_and(|bytes| bytes > 0);
    if is_limited && !matches!(policy.as_str(), "noeviction" | "") {
        let lost = if policy.starts_with("allkeys") {
            "users made through the API, leases and sessions"
        } else {
            "leases and sessions"
        };
        warnings.push(format!(
            "Redis removes {lost} when it reaches maxmemory, because of `maxmemory-policy {policy}`; set \
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
    fn only_settings_that_lose_something_are_warned_of() {
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
                &["appendonly yes", "users made through the API, leases"],
            ),
            (
                "aof_enabled:1",
                "maxmemory:9\r\nmaxmemory_policy:volatile-ttl",
                &["removes leases and sessions"],
            ),
            // A service that says nothing of the kind.
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
