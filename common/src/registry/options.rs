//! The settings of the shared registry: the address of Redis, time limits, and the policy for outages.

use std::{fmt, net::SocketAddr, path::Path, str::FromStr, time::Duration};

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};
use serde::Deserialize;

use super::servers::RedisServers;
use crate::secret::Secret;

/// The settings of the shared registry.
#[derive(Clone, Debug)]
pub struct RedisOptions {
    pub servers: RedisServers,
    /// First part of every key, so that clusters can share a Redis.
    pub prefix: String,
    /// Time limit for one request, including the time to connect.
    pub timeout: Duration,
    /// Time after which a node and its write leases expire without a refresh. The node refreshes them every
    /// third of this time. Session entries of a dead node are kept for 120 times this time. All nodes of a
    /// cluster have the same value, from 100 ms to 24 h.
    pub lease: Duration,
    pub when_away: WhenAway,
    /// Number of replicas that must confirm changed users and groups, and write leases.
    pub replicas: u32,
    /// Longest time for which a node holds a reservation of a passive port after its block is lost. All nodes
    /// of a cluster have the same value.
    pub data_connect_timeout: Duration,
    /// Age at which the newest key that authenticates relayed connections gets a successor.
    pub relay_key_rotation: Duration,
}

impl RedisOptions {
    /// The defaults: prefix `ftp`, time limit 1 s, leases of 30 s, [`WhenAway::Admit`], no
    /// confirmations, reservations of 30 s,
    /// a new relay key each day.
    pub fn new(servers: RedisServers) -> Self {
        Self {
            servers,
            prefix: "ftp".to_owned(),
            timeout: Duration::from_secs(1),
            lease: Duration::from_secs(30),
            when_away: WhenAway::Admit,
            replicas: 0,
            data_connect_timeout: Duration::from_secs(30),
            relay_key_rotation: Duration::from_secs(24 * 3600),
        }
    }
}

/// The policy for new sessions and uploads while Redis is away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenAway {
    /// They begin if this node's own sessions do not reach the limits.
    #[default]
    Admit,
    /// They are refused.
    Refuse,
}

/// The text is neither `admit` nor `refuse`.
#[derive(Debug, thiserror::Error)]
#[error("the policy is 'admit' or 'refuse'")]
pub struct InvalidWhenAway;

impl FromStr for WhenAway {
    type Err = InvalidWhenAway;

    fn from_str(text: &str) -> Result<Self, InvalidWhenAway> {
        match text {
            "admit" => Ok(Self::Admit),
            "refuse" => Ok(Self::Refuse),
            _ => Err(InvalidWhenAway),
        }
    }
}

/// The address of a Redis server: `HOST[:PORT]`, `redis://[USER:PASSWORD@]HOST[:PORT][/DB]`, the same with
/// `rediss://` for TLS, or `unix:///PATH`.
///
/// Neither `Debug` nor `Display` shows the password.
#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct RedisUrl {
    info: ConnectionInfo,
    is_encrypted: bool,
}

/// The part of an address that says how to reach the server.
pub(super) enum RedisEndpoint<'a> {
    Tcp(&'a str, u16),
    Unix(&'a Path),
}

/// The text is not the address of a Redis. The error does not repeat the text, which may contain a password.
#[derive(Debug, thiserror::Error)]
#[error(
    "Redis is at HOST[:PORT], redis://[USER:PASSWORD@]HOST[:PORT][/DB], rediss://… for TLS, or unix:///PATH"
)]
pub struct InvalidRedisUrl;

impl RedisUrl {
    /// A server at a host name or IP address.
    pub(super) fn at(host: &str, port: u16, login: &RedisConnectionInfo, is_encrypted: bool) -> Self {
        let info = (host, port).into_connection_info();
        // The conversion of a host and a port cannot fail.
        let info = info.expect("a host and a port are an address");
        Self { info: info.set_redis_settings(login.clone()), is_encrypted }
    }

    /// The same address with this user of Redis's access control list.
    #[must_use]
    pub fn with_user(self, user: &str) -> Self {
        let settings = self.login().clone().set_username(user);
        Self { info: self.info.set_redis_settings(settings), ..self }
    }

    /// The same address with this password.
    #[must_use]
    pub fn with_password(self, password: &Secret) -> Self {
        let settings = self.login().clone().set_password(password.expose());
        Self { info: self.info.set_redis_settings(settings), ..self }
    }

    /// The server's IP address and port; `None` if the URL has a host name or a Unix socket.
    pub fn address(&self) -> Option<SocketAddr> {
        let (host, port) = self.host()?;
        Some(SocketAddr::new(host.parse().ok()?, port))
    }

    /// The server's host name or IP address, and its port; `None` for a Unix socket.
    pub fn host(&self) -> Option<(&str, u16)> {
        match self.endpoint() {
            RedisEndpoint::Tcp(host, port) => Some((host, port)),
            RedisEndpoint::Unix(_) => None,
        }
    }

    /// Returns true if the connection is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.is_encrypted
    }

    /// User, password and number of the database.
    pub(super) fn login(&self) -> &RedisConnectionInfo {
        self.info.redis_settings()
    }

    pub(super) fn endpoint(&self) -> RedisEndpoint<'_> {
        match self.info.addr() {
            ConnectionAddr::Tcp(host, port) => RedisEndpoint::Tcp(host, *port),
            ConnectionAddr::Unix(path) => RedisEndpoint::Unix(path),
            _ => unreachable!("`from_str` and `at` make the other two kinds only"),
        }
    }
}

impl FromStr for RedisUrl {
    type Err = InvalidRedisUrl;

    fn from_str(text: &str) -> Result<Self, InvalidRedisUrl> {
        // A fragment would be the way of other clients to switch the check of certificates off.
        if text.contains('#') {
            return Err(InvalidRedisUrl);
        }
        let (url, is_encrypted) = match text.split_once("://") {
            Some(("redis" | "unix", _)) => (text.to_owned(), false),
            // The link does the TLS itself: see `connect.rs`.
            Some(("rediss", rest)) => (format!("redis://{rest}"), true),
            None if !text.contains(['/', '@', '?']) => (format!("redis://{text}"), false),
            _ => return Err(InvalidRedisUrl),
        };
        let info = url.into_connection_info().map_err(|_| InvalidRedisUrl)?;
        match info.addr() {
            ConnectionAddr::Tcp(host, _) if !host.is_empty() => {}
            ConnectionAddr::Unix(path) if path.is_absolute() => {}
            _ => return Err(InvalidRedisUrl),
        }
        Ok(Self { info, is_encrypted })
    }
}

impl TryFrom<String> for RedisUrl {
    type Error = InvalidRedisUrl;

    fn try_from(text: String) -> Result<Self, InvalidRedisUrl> {
        text.parse()
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_encrypted { "rediss" } else { "redis" };
        match self.info.addr() {
            ConnectionAddr::Unix(path) => write!(f, "unix://{}", path.display()),
            address => write!(f, "{scheme}://{address}/{}", self.login().db()),
        }
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_of_an_address_are_parsed() {
        for (text, shown) in [
            ("redis", "redis://redis:6379/0"),
            ("redis:6380", "redis://redis:6380/0"),
            ("10.0.0.1:6379", "redis://10.0.0.1:6379/0"),
            ("redis://cache.example/3", "redis://cache.example:6379/3"),
            ("rediss://cache.example", "rediss://cache.example:6379/0"),
            ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ] {
            assert_eq!(text.parse::<RedisUrl>().unwrap().to_string(), shown, "{text}");
        }
        for text in ["", "rediss://x#insecure", "http://x", "a@b", "redis://", "x:70000", "unix://rel"] {
            assert!(text.parse::<RedisUrl>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        let url: RedisUrl = "redis://ftp:hunter2@cache:1/2".parse().unwrap();
        assert_eq!(url.login().password(), Some("hunter2"));
        let url = url.with_user("node").with_password(&Secret::new("sesame"));
        assert_eq!(url.login().username(), Some("node"));
        assert_eq!(url.login().password(), Some("sesame"));
        assert_eq!(format!("{url} {url:?}"), "redis://cache:1/2 redis://cache:1/2");
    }
}
