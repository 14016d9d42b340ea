//! `Config`: the settings of [`crate::settings`], parsed and checked. No other code reads settings.

use std::{net::SocketAddr, num::NonZeroU64, path::PathBuf, time::Duration};

use argon2::Params;
use common::{
    audit::AuditOptions,
    auth_api::AccountLimits,
    health::{REGISTRY, Requirement},
    policy::{Bandwidth, Quota},
    process::{http::ConnectionLimits, logging::LogFormat},
    registry::{RedisOptions, RedisServers},
    secret::Secret,
    settings::{SettingsError, Values},
};

use crate::{
    accounts::{
        anonymous::{Anonymous, DropBox},
        cache::CacheLimits,
        declared::DeclaredUsers,
        password::{self, PasswordLimits},
        user::HomePath,
    },
    throttle::ThrottleLimits,
};

/// All settings, checked.
#[derive(Debug)]
pub struct Config {
    pub listen: SocketAddr,
    pub connections: ConnectionLimits,
    pub users: DeclaredUsers,
    /// `None`: there are no anonymous users.
    pub anonymous: Option<Anonymous>,
    /// Interval at which the users file is checked for changes.
    pub poll: Duration,
    /// `None`: nodes are refused, unless `users` is `Demo`.
    pub node_tokens: Vec<Secret>,
    /// `None`: only the administrators of `administrators_file` are known.
    pub admin_token: Option<Secret>,
    /// The file with the named administrators.
    pub administrators: Option<PathBuf>,
    /// The longest session of the page. `None`: there is no page.
    pub page: Option<Duration>,
    /// The dependencies without which `/readyz` answers 503.
    pub requirements: Vec<Requirement>,
    /// `None`: there are no sessions, nodes and API users, and the throttle counts in memory.
    pub redis: Option<RedisOptions>,
    pub throttle: ThrottleLimits,
    pub cache: CacheLimits,
    pub passwords: PasswordLimits,
    /// Maximum number of listeners of `GET /v1/live`.
    pub live_listeners: usize,
    /// Time limit for requests in progress after SIGTERM.
    pub stop: Duration,
    pub log: LogSettings,
    pub audit: AuditOptions,
}

#[derive(Debug)]
pub struct LogSettings {
    /// A filter of env_logger.
    pub level: String,
    pub format: LogFormat,
}

impl Config {
    /// # Errors
    /// A value cannot be used, or two values contradict each other.
    pub fn new(values: &Values) -> Result<Self, SettingsError> {
        let listen: SocketAddr = values.required("listen")?;
        let demo: bool = values.required("demo")?;
        let users = match values.optional("users_file")? {
            Some(_) if demo => {
                return Err(values.invalid("users_file", "with `demo` there can be no users file"));
            }
            Some(path) => DeclaredUsers::File(path),
            None if demo => DeclaredUsers::Demo,
            None => DeclaredUsers::None,
        };
        if demo && !listen.ip().is_loopback() {
            return Err(values.invalid(
                "listen",
                "with `demo` every password is accepted, so authd may listen on loopback only",
            ));
        }
        Ok(Self {
            listen,
            connections: ConnectionLimits {
                connections: count(values, "max_connections")?,
                header_timeout: values.duration("header_timeout")?,
            },
            users,
            anonymous: anonymous(values)?,
            poll: values.duration("users_file_poll")?,
            node_tokens: node_tokens(values)?,
            admin_token: admin_token(values)?,
            administrators: values.optional("administrators_file")?,
            page: page(values)?,
            requirements: requirements(values)?,
            redis: redis(values)?,
            throttle: throttle(values)?,
            cache: CacheLimits { ttl: values.duration("cache_ttl")?, size: count(values, "cache_size")? },
            passwords: PasswordLimits {
                params: password_params(values)?,
                min_length: values.required("min_password_length")?,
                at_once: match values.optional::<usize>("max_verifications")? {
                    Some(0) => return Err(values.invalid("max_verifications", "it cannot be zero")),
                    Some(number) => number,
                    None => std::thread::available_parallelism().map_or(1, usize::from),
                },
                waiting: values.required("max_waiting_verifications")?,
                patience: values.duration("verification_wait")?,
            },
            live_listeners: count(values, "max_live_listeners")?,
            stop: values.duration("stop_timeout")?,
            log: LogSettings { level: values.log_level()?, format: values.required("log_format")? },
            audit: AuditOptions::new(values)?,
        })
    }
}

/// The cost of new hashes. `authd hash-password` needs no other part of the settings.
///
/// # Errors
/// Argon2 does not accept the values, or they exceed the limits for stored hashes.
pub fn password_params(values: &Values) -> Result<Params, SettingsError> {
    let memory: u32 = values.required("argon2_memory_kib")?;
    let iterations: u32 = values.required("argon2_iterations")?;
    if memory > password::MAX_MEMORY_KIB {
        let reason = format_args!("more than {} KiB", password::MAX_MEMORY_KIB).to_string();
        return Err(values.invalid("argon2_memory_kib", reason));
    }
    if iterations == 0 || iterations > password::MAX_ITERATIONS {
        let reason = format!("not from 1 to {}", password::MAX_ITERATIONS);
        return Err(values.invalid("argon2_iterations", reason));
    }
    Params::new(memory, iterations, 1, None).map_err(|error| values.invalid("argon2_memory_kib", error))
}

/// The tokens of nodes: a line for each. Two are enough to replace one while all nodes are served.
fn node_tokens(values: &Values) -> Result<Vec<Secret>, SettingsError> {
    let Some(lines) = values.secret("node_token_file")? else { return Ok(Vec::new()) };
    let tokens: Vec<Secret> = lines.expose().lines().map(Secret::new).collect();
    if tokens.len() > 2 || tokens.iter().any(|token| token.expose().is_empty()) {
        let reason = "expected one line with the token, or two lines while it is replaced";
        return Err(values.invalid("node_token_file", reason));
    }
    Ok(tokens)
}

fn admin_token(values: &Values) -> Result<Option<Secret>, SettingsError> {
    let admin = values.secret("admin_token_file")?;
    if admin.as_ref().is_some_and(|admin| node_tokens(values).is_ok_and(|tokens| tokens.contains(admin))) {
        let reason = "it is the nodes' token, with which every node would be an administrator";
        return Err(values.invalid("admin_token_file", reason));
    }
    Ok(admin)
}

fn page(values: &Values) -> Result<Option<Duration>, SettingsError> {
    let lifetime = values.duration("console_session")?;
    if lifetime.as_secs() == 0 {
        return Err(values.invalid("console_session", "shorter than a second"));
    }
    let is_on: bool = values.required("console")?;
    Ok(is_on.then_some(lifetime))
}

/// Settings that have an effect only with a drop box.
const DROP_BOX_SETTINGS: [&str; 3] =
    ["anonymous_quota_bytes", "anonymous_quota_files", "anonymous_upload_bandwidth"];

fn anonymous(values: &Values) -> Result<Option<Anonymous>, SettingsError> {
    let drop_box: Option<DropBox> = values.optional("anonymous_drop_box")?;
    let Some(home) = values.optional::<String>("anonymous_home")? else {
        return match drop_box {
            None => Ok(None),
            Some(_) => {
                Err(values
                    .invalid("anonymous_drop_box", "without anonymous_home there are no anonymous users"))
            }
        };
    };
    let home = HomePath::try_from(home).map_err(|error| values.invalid("anonymous_home", error))?;
    let limits = AccountLimits {
        sessions: Some(values.required("anonymous_sessions")?),
        sessions_per_address: Some(values.required("anonymous_sessions_per_address")?),
        transfers: None,
    };
    let quota_of = |key| values.required::<u64>(key).map(|limit| Some(limit).filter(|limit| *limit > 0));
    let (mut quota, mut bandwidth) = (Quota::default(), Bandwidth::default());
    if drop_box.is_some() {
        quota.bytes = quota_of("anonymous_quota_bytes")?;
        quota.files = quota_of("anonymous_quota_files")?;
        bandwidth.upload = quota_of("anonymous_upload_bandwidth")?.and_then(NonZeroU64::new);
    } else if let Some(key) = DROP_BOX_SETTINGS.into_iter().find(|key| values.is_given(key)) {
        return Err(values.invalid(key, "without anonymous_drop_box anonymous users cannot upload"));
    }
    bandwidth.download = quota_of("anonymous_download_bandwidth")?.and_then(NonZeroU64::new);
    Ok(Some(Anonymous { home, drop_box, limits, quota, bandwidth }))
}

fn requirements(values: &Values) -> Result<Vec<Requirement>, SettingsError> {
    let all: Vec<Requirement> = values.list("readiness_requires")?;
    let is_ours = |requirement: &Requirement| {
        matches!(requirement, Requirement::Credentials | Requirement::Dependency(REGISTRY))
    };
    match all.iter().find(|requirement| !is_ours(requirement)) {
        Some(other) => {
            let reason = format_args!("{other} is not a dependency of authd").to_string();
            Err(values.invalid("readiness_requires", reason))
        }
        None => Ok(all),
    }
}

fn redis(values: &Values) -> Result<Option<RedisOptions>, SettingsError> {
    let Some(servers) = RedisServers::read(values)? else { return Ok(None) };
    Ok(Some(RedisOptions {
        prefix: values.required("redis_prefix")?,
        timeout: values.duration("redis_timeout")?,
        replicas: values.required("redis_replicas")?,
        ..RedisOptions::new(servers)
    }))
}

fn throttle(values: &Values) -> Result<ThrottleLimits, SettingsError> {
    let limits = ThrottleLimits {
        free_of_user: values.required("throttle_free_failures")?,
        free_of_address: values.required("throttle_free_failures_per_address")?,
        delay: values.duration("throttle_delay")?,
        max_delay: values.duration("throttle_max_delay")?,
        window: values.duration("throttle_window")?,
        memory: count(values, "throttle_memory")?,
        trusted: values.list("trusted_networks")?,
        known_addresses: values.required("throttle_known_addresses")?,
        known_time: values.duration("throttle_known_time")?,
    };
    if limits.max_delay < limits.delay {
        return Err(values.invalid("throttle_max_delay", "shorter than throttle_delay"));
    }
    if limits.window < limits.max_delay {
        return Err(values.invalid("throttle_window", "shorter than throttle_max_delay"));
    }
    Ok(limits)
}

fn count(values: &Values, key: &str) -> Result<usize, SettingsError> {
    match values.required(key)? {
        0 => Err(values.invalid(key, "it cannot be zero")),
        count => Ok(count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::SCHEMA;

    fn config(args: &[&str]) -> Result<Config, SettingsError> {
        let flags = SCHEMA.command().try_get_matches_from([&["authd"], args].concat()).unwrap();
        Config::new(&Values::collect(&SCHEMA, &flags, [])?)
    }

    #[test]
    fn the_defaults_are_valid() {
        let config = config(&[]).unwrap();
        assert_eq!(config.listen, "127.0.0.1:5160".parse().unwrap());
        assert_eq!(config.users, DeclaredUsers::None);
        assert!(config.redis.is_none() && config.node_tokens.is_empty());
        assert!(config.passwords.at_once >= 1);
        assert_eq!(config.passwords.min_length, 12);
    }

    #[test]
    fn an_invalid_value_is_refused_and_the_error_names_the_setting() {
        for (args, named) in [
            (&["--demo", "--listen", "0.0.0.0:0"][..], "listen"),
            (&["--demo", "--users-file", "users.toml"], "users_file"),
            (&["--argon2-memory-kib", "1"], "argon2_memory_kib"),
            (&["--argon2-memory-kib", "999999999"], "argon2_memory_kib"),
            (&["--argon2-iterations", "0"], "argon2_iterations"),
            (&["--throttle-max-delay", "10ms"], "throttle_max_delay"),
            (&["--throttle-window", "1m"], "throttle_window"),
            (&["--anonymous-home", "/pub", "--anonymous-quota-bytes", "1"], "anonymous_quota_bytes"),
            (&["--max-verifications", "0"], "max_verifications"),
            (&["--cache-size", "0"], "cache_size"),
            (&["--console-session", "10ms"], "console_session"),
            (&["--max-connections", "0"], "max_connections"),
            (&["--max-live-listeners", "0"], "max_live_listeners"),
            (&["--trusted-networks", "10.0.0.1"], "trusted_networks"),
            (&["--anonymous-home", "pub"], "anonymous_home"),
            (&["--anonymous-home", "/pub", "--anonymous-drop-box", "/"], "anonymous_drop_box"),
            (&["--anonymous-drop-box", "/in"], "anonymous_drop_box"),
            (&["--redis-url", "ftp://x"], "redis_url"),
            (&["--redis-url", "a", "--redis-sentinels", "b"], "redis_sentinels"),
            (&["--redis-sentinels", "a"], "redis_sentinel_master"),
            (&["--redis-sentinel-master", "ftp"], "redis_sentinel_master"),
            (&["--redis-sentinels", "rediss://a,b", "--redis-sentinel-master", "ftp"], "redis_sentinels"),
            (&["--redis-sentinels", "unix:///a", "--redis-sentinel-master", "ftp"], "redis_sentinels"),
            (&["--redis-url", "a", "--redis-user", "node"], "redis_password_file"),
            (&["--redis-url", "a", "--redis-ca-file", "ca.pem"], "redis_ca_file"),
            (&["--redis-url", "rediss://a", "--redis-ca-file", "/nonexistent"], "redis_ca_file"),
            (&["--redis-url", "rediss://a", "--redis-client-key", "key"], "redis_client_certificate"),
            (&["--node-token-file", "/nonexistent"], "node_token_file"),
        ] {
            let error = config(args).unwrap_err().to_string();
            assert!(error.starts_with(named), "{args:?}: {error}");
        }
    }

    #[test]
    fn one_token_for_nodes_and_administrators_is_refused_and_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "sesame\n").unwrap();
        let path = path.to_str().unwrap();
        let error = config(&["--node-token-file", path, "--admin-token-file", path]).unwrap_err().to_string();
        assert!(error.starts_with("admin_token_file") && !error.contains("sesame"), "{error}");
    }
}
