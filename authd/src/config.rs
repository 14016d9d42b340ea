//! Settings as given → `Config` as meant. Nothing else reads the environment or files for settings.

use std::{net::SocketAddr, num::NonZeroU64, path::PathBuf, time::Duration};

use argon2::Params;
use common::{
    auth_api::AccountLimits,
    health::{REGISTRY, Requirement},
    policy::{Bandwidth, Quota},
    process::logging::LogFormat,
    registry::{RedisOptions, RedisUrl},
    secret::Secret,
    settings::{DURATION, Schema, Setting, SettingsError, Values},
};

use crate::{
    accounts::{
        anonymous::{Anonymous, DropBox},
        cache::CacheLimits,
        password::{self, PasswordLimits},
        user::HomePath,
    },
    server::ConnectionLimits,
    throttle::ThrottleLimits,
};

/// Every setting of `authd`.
pub static SCHEMA: Schema = Schema {
    program: "authd",
    about: "The central users and sessions service of Distributed FTP",
    version: env!("CARGO_PKG_VERSION"),
    prefix: "AUTHD_",
    settings: &[
        Setting::one(
            "listen",
            "IP:PORT (127.0.0.1:5160; port 0 takes a free one)",
            "127.0.0.1:5160",
            "Where HTTP is served.",
        ),
        Setting::one(
            "max_connections",
            "number",
            "4096",
            "HTTP connections at once; one more waits until another ends. Those that have shown no token have three quarters of the places: one more closes the oldest silent one.",
        ),
        Setting::one(
            "header_timeout",
            DURATION,
            "2m",
            "How long a connection may be without a complete head of a request; nodes use none again after 90 s.",
        ),
        // Who may log in
        Setting::one(
            "users_file",
            "file (.toml or .json)",
            "",
            "The declarative users; read again on SIGHUP and when it changes.",
        ),
        Setting::one(
            "users_file_poll",
            DURATION,
            "1s",
            "How often the users file, and the hash files it names, are looked at; a change that is the same at two looks counts.",
        ),
        Setting::switch(
            "demo",
            "false",
            "Users demo, admin and test with any password, and no token for nodes; on loopback only.",
        ),
        Setting::one(
            "anonymous_home",
            "path within the storage",
            "",
            "Users anonymous and ftp log in with any password and read this directory; without it there are no such users.",
        ),
        Setting::one(
            "anonymous_drop_box",
            "path within anonymous_home",
            "",
            "A directory to which they may upload new files, and where they can neither list nor download.",
        ),
        Setting::one("anonymous_sessions", "number", "50", "Sessions of theirs at once, over all nodes."),
        Setting::one("anonymous_sessions_per_address", "number", "5", "The same, from one address."),
        Setting::one(
            "anonymous_quota_bytes",
            "number of bytes",
            "10000000000",
            "How much anonymous_drop_box may hold; 0 is no limit.",
        ),
        Setting::one(
            "anonymous_quota_files",
            "number",
            "10000",
            "How many files and directories anonymous_drop_box may hold; 0 is no limit.",
        ),
        Setting::one(
            "anonymous_upload_bandwidth",
            "bytes a second",
            "10000000",
            "How fast all their uploads together may be, over all nodes; 0 is no limit.",
        ),
        Setting::one(
            "anonymous_download_bandwidth",
            "bytes a second",
            "0",
            "How fast all their downloads together may be, over all nodes; 0 is no limit.",
        ),
        // Who may ask
        Setting::one(
            "node_token_file",
            "path of a file",
            "",
            "Holds the bearer token of the nodes; without it every login is refused with 401.",
        ),
        Setting::one(
            "admin_token_file",
            "path of a file",
            "",
            "Holds the bearer token of administrators; without it their routes answer 401.",
        ),
        // Redis
        Setting {
            alias: Some("RedisConnectionString"),
            ..Setting::one(
                "redis_url",
                "HOST:PORT or redis://…",
                "",
                "The Redis with sessions, nodes, API users and the throttle; without it there are none of the first three, and this process throttles for itself.",
            )
        },
        Setting::one("redis_password_file", "path of a file", "", "Holds the password for Redis."),
        Setting::many(
            "readiness_requires",
            "names of registry, credentials",
            "credentials",
            "What makes /readyz answer 503 while it fails: Redis (registry), or that Redis refuses authd's password (credentials), which does not get better by waiting. Where no user is declared, registry always counts: no login can be decided without it.",
        ),
        Setting::one("redis_prefix", "text", "ftp", "First part of every Redis key; one per cluster."),
        Setting::one("redis_timeout", DURATION, "1s", "How long one request to Redis may take."),
        // Throttle
        Setting::one(
            "throttle_free_failures",
            "number",
            "5",
            "Failed logins of one user name before the next must wait and gets 429 until then.",
        ),
        Setting::one(
            "throttle_free_failures_per_address",
            "number",
            "20",
            "The same for one client address (IPv6: one /64 network), which many clients may share.",
        ),
        Setting::one(
            "throttle_delay",
            DURATION,
            "1s",
            "The wait after the first failure beyond the free ones; each further one doubles it.",
        ),
        Setting::one("throttle_max_delay", DURATION, "15m", "The longest such wait."),
        Setting::one(
            "throttle_window",
            DURATION,
            "1h",
            "Failures are forgotten this long after the last; not shorter than the longest wait.",
        ),
        Setting::one(
            "throttle_known_addresses",
            "number",
            "100",
            "Addresses of a user's logins where others' failures do not make the user wait; a further one displaces the oldest, 0 is none.",
        ),
        Setting::one(
            "throttle_known_time",
            DURATION,
            "30d",
            "How long after its last login an address is known so.",
        ),
        Setting::many(
            "trusted_networks",
            "CIDR list (10.0.0.0/24, 2001:db8::/64)",
            "",
            "Logins from here never wait, and their failures do not count.",
        ),
        Setting::one(
            "throttle_memory",
            "number",
            "10000",
            "User names and addresses that this process counts by itself while Redis is away; a further one displaces the oldest.",
        ),
        // Passwords
        Setting::one(
            "min_password_length",
            "number of characters",
            "12",
            "The shortest new password, through the API and `authd hash-password`. FTP has no second factor, and programs keep most of its passwords. Passwords that exist stay as they are.",
        ),
        Setting::one(
            "cache_ttl",
            DURATION,
            "60s",
            "How long a password that was right is known without computing argon2 again.",
        ),
        Setting::one(
            "cache_size",
            "number",
            "10000",
            "How many such passwords; a further one displaces the oldest.",
        ),
        Setting::one(
            "max_verifications",
            "number",
            "",
            "Argon2 computations at once, each with its memory; one more waits. One for each CPU if not set.",
        ),
        Setting::one(
            "max_waiting_verifications",
            "number",
            "256",
            "Logins that wait for a computation; one more gets 503.",
        ),
        Setting::one(
            "verification_wait",
            DURATION,
            "3s",
            "How long a login waits for a computation; then it gets 503. Less than `authd_timeout` of the nodes.",
        ),
        Setting::one("argon2_memory_kib", "KiB", "19456", "Memory of one computation for new hashes."),
        Setting::one("argon2_iterations", "number", "2", "Passes over that memory for new hashes."),
        // Logs and the end
        Setting::one("stop_timeout", DURATION, "10s", "How long requests may go on after SIGTERM."),
        Setting::one("log_level", "error, warn, info, debug or trace", "info", "As env_logger reads it."),
        Setting::one("log_format", "text or json", "text", "How a log line is written."),
    ],
};

/// All settings, checked.
#[derive(Debug)]
pub struct Config {
    pub listen: SocketAddr,
    pub connections: ConnectionLimits,
    pub users: DeclaredUsers,
    /// `None`: nobody is anonymous.
    pub anonymous: Option<Anonymous>,
    /// How often the users file is looked at.
    pub poll: Duration,
    pub node_token: Option<Secret>,
    pub admin_token: Option<Secret>,
    /// What `/readyz` goes by.
    pub requirements: Vec<Requirement>,
    /// `None`: no sessions, nodes and API users, and the throttle is in this process's memory.
    pub redis: Option<RedisOptions>,
    pub throttle: ThrottleLimits,
    pub cache: CacheLimits,
    pub passwords: PasswordLimits,
    /// How long requests may go on after SIGTERM.
    pub stop: Duration,
    pub log: LogSettings,
}

/// Where users are declared, other than in Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeclaredUsers {
    None,
    File(PathBuf),
    /// demo, admin and test, with any password: only where nobody else can connect.
    Demo,
}

#[derive(Debug)]
pub struct LogSettings {
    pub level: String,
    pub format: LogFormat,
}

impl Config {
    /// # Errors
    /// A value cannot be used, or two contradict each other.
    pub fn new(values: &Values) -> Result<Self, SettingsError> {
        let listen: SocketAddr = values.required("listen")?;
        let demo: bool = values.required("demo")?;
        let users = match values.optional("users_file")? {
            Some(_) if demo => {
                return Err(values.invalid("users_file", "with `demo` there are no other declared users"));
            }
            Some(path) => DeclaredUsers::File(path),
            None if demo => DeclaredUsers::Demo,
            None => DeclaredUsers::None,
        };
        if demo && !listen.ip().is_loopback() {
            return Err(values.invalid("listen", "with `demo` every password is right: loopback only"));
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
            node_token: values.secret("node_token_file")?,
            admin_token: admin_token(values)?,
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
            stop: values.duration("stop_timeout")?,
            log: LogSettings { level: values.log_level()?, format: values.required("log_format")? },
        })
    }
}

/// The cost of new hashes, which `authd hash-password` needs without the rest.
///
/// # Errors
/// Argon2 does not work with them, or they are beyond what a stored hash may ask for.
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

fn admin_token(values: &Values) -> Result<Option<Secret>, SettingsError> {
    let admin = values.secret("admin_token_file")?;
    if admin.is_some() && admin == values.secret("node_token_file")? {
        let reason = "it is the nodes' token, so that every node would be an administrator";
        return Err(values.invalid("admin_token_file", reason));
    }
    Ok(admin)
}

/// Settings that mean nothing without a drop box.
const OF_DROP_BOX: [&str; 3] =
    ["anonymous_quota_bytes", "anonymous_quota_files", "anonymous_upload_bandwidth"];

fn anonymous(values: &Values) -> Result<Option<Anonymous>, SettingsError> {
    let drop_box: Option<DropBox> = values.optional("anonymous_drop_box")?;
    let Some(home) = values.optional::<String>("anonymous_home")? else {
        return match drop_box {
            None => Ok(None),
            Some(_) => {
                Err(values.invalid("anonymous_drop_box", "without anonymous_home nobody is anonymous"))
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
    } else if let Some(key) = OF_DROP_BOX.into_iter().find(|key| values.is_given(key)) {
        return Err(values.invalid(key, "without anonymous_drop_box no anonymous user uploads anything"));
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
            let reason = format_args!("{other} is no dependency of authd").to_string();
            Err(values.invalid("readiness_requires", reason))
        }
        None => Ok(all),
    }
}

fn redis(values: &Values) -> Result<Option<RedisOptions>, SettingsError> {
    let Some(mut url) = values.optional::<RedisUrl>("redis_url")? else { return Ok(None) };
    if let Some(password) = values.secret("redis_password_file")? {
        url = url.with_password(&password);
    }
    Ok(Some(RedisOptions {
        prefix: values.required("redis_prefix")?,
        timeout: values.duration("redis_timeout")?,
        ..RedisOptions::new(url)
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

    fn config(args: &[&str]) -> Result<Config, SettingsError> {
        let flags = SCHEMA.command().try_get_matches_from([&["authd"], args].concat()).unwrap();
        Config::new(&Values::collect(&SCHEMA, &flags, [])?)
    }

    #[test]
    fn the_defaults_are_a_configuration() {
        let config = config(&[]).unwrap();
        assert_eq!(config.listen, "127.0.0.1:5160".parse().unwrap());
        assert_eq!(config.users, DeclaredUsers::None);
        assert!(config.redis.is_none() && config.node_token.is_none());
        assert!(config.passwords.at_once >= 1);
        assert_eq!(config.passwords.min_length, 12);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
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
            (&["--max-connections", "0"], "max_connections"),
            (&["--trusted-networks", "10.0.0.1"], "trusted_networks"),
            (&["--anonymous-home", "pub"], "anonymous_home"),
            (&["--anonymous-home", "/pub", "--anonymous-drop-box", "/"], "anonymous_drop_box"),
            (&["--anonymous-drop-box", "/in"], "anonymous_drop_box"),
            (&["--redis-url", "ftp://x"], "redis_url"),
            (&["--node-token-file", "/nonexistent"], "node_token_file"),
        ] {
            let error = config(args).unwrap_err().to_string();
            assert!(error.starts_with(named), "{args:?}: {error}");
        }
    }

    #[test]
    fn one_token_for_both_is_refused_and_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "sesame\n").unwrap();
        let path = path.to_str().unwrap();
        let error = config(&["--node-token-file", path, "--admin-token-file", path]).unwrap_err().to_string();
        assert!(error.starts_with("admin_token_file") && !error.contains("sesame"), "{error}");
    }
}
