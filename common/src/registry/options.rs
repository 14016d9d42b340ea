//! The settings of the shared registry: the address of Redis, time limits, and the policy for outages.

use std::{fmt, net::SocketAddr, str::FromStr, time::Duration};

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};
use serde::Deserialize;

use crate::secret::Secret;

/// The settings of the shared registry.
#[derive(Clone, Debug)]
pub struct RedisOptions {
    pub url: RedisUrl,
    /// First part of every key, so that clusters can share a Redis.
    pub prefix: String,
    /// Time limit for one request, including the time to connect.
    pub timeout: Duration,
    /// Time after which a node and its write leases expire without a refresh. The node refreshes them every
    /// third of this time. Session entries of a dead node are kept for 120 times this time. All nodes of a
    /// cluster have the same value, from 100 ms to 24 h.
    pub lease: Duration,
    pub when_away: WhenAway,
    /// Longest time for which a node holds a reservation of a passive port after its block is lost. All nodes
    /// of a cluster have the same value.
    pub data_connect_timeout: Duration,
    /// Age at which the newest key that authenticates relayed connections gets a successor.
    pub relay_key_rotation: Duration,
}

impl RedisOptions {
    /// The defaults: prefix `ftp`, time limit 1 s, leases of 30 s, [`WhenAway::Admit`], reservations of 30 s,
    /// a new relay key each day.
    pub fn new(url: RedisUrl) -> Self {
        Self {
            url,
            prefix: "ftp".to_owned(),
            timeout: Duration::from_secs(1),
            lease: Duration::from_secs(30),
            when_away: WhenAway::Admit,
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

/// The address of Redis: `HOST[:PORT]`, `redis://[USER:PASSWORD@]HOST[:PORT][/DB]` or `unix:///PATH`.
///
/// Neither `Debug` nor `Display` shows the password.
#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct RedisUrl(ConnectionInfo);

/// The text is not the address of a Redis. The error does not repeat the text, which may contain a password.
#[derive(Debug, thiserror::Error)]
#[error("Redis is at HOST[:PORT], redis://[USER:PASSWORD@]HOST[:PORT][/DB] or unix:///PATH")]
pub struct InvalidRedisUrl;

impl RedisUrl {
    /// The same address with this password.
    #[must_use]
    pub fn with_password(self, password: &Secret) -> Self {
        let settings = self.0.redis_settings().clone().set_password(password.expose());
        Self(self.0.set_redis_settings(settings))
    }

    /// The server's IP address and port; `None` if the URL has a host name or a Unix socket.
    pub fn address(&self) -> Option<SocketAddr> {
        match self.0.addr() {
            ConnectionAddr::Tcp(host, port) => Some(SocketAddr::new(host.parse().ok()?, *port)),
            _ => None,
        }
    }

    /// The server's host name or IP address, and its port; `None` for a Unix socket.
    pub fn host(&self) -> Option<(&str, u16)> {
        match self.0.addr() {
            ConnectionAddr::Tcp(host, port) => Some((host, *port)),
            _ => None,
        }
    }

    pub(super) fn client(&self) -> redis::Client {
        redis::Client::open(self.0.clone())
            // `open` does not connect. It only converts its argument to a `ConnectionInfo`.
            .expect("a ConnectionInfo converts to itself")
    }
}

impl FromStr for RedisUrl {
    type Err = InvalidRedisUrl;

    fn from_str(text: &str) -> Result<Self, InvalidRedisUrl> {
        let url = match text.split_once("://") {
            Some(("redis" | "unix", _)) => text.to_owned(),
            None if !text.contains(['/', '@', '?', '#']) => format!("redis://{text}"),
            _ => return Err(InvalidRedisUrl),
        };
        let info = url.into_connection_info().map_err(|_| InvalidRedisUrl)?;
        match info.addr() {
            ConnectionAddr::Tcp(host, _) if !host.is_empty() => {}
            ConnectionAddr::Unix(path) if path.is_absolute() => {}
            _ => return Err(InvalidRedisUrl),
        }
        // Requests are small, and a task waits for each of them: Nagle's algorithm would only delay them.
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        Ok(Self(info.set_tcp_settings(tcp)))
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
        match self.0.addr() {
            ConnectionAddr::Unix(path) => write!(f, "unix://{}", path.display()),
            address => write!(f, "redis://{address}/{}", self.0.redis_settings().db()),
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
            ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ] {
            assert_eq!(text.parse::<RedisUrl>().unwrap().to_string(), shown, "{text}");
        }
        for text in ["", "rediss://x", "http://x", "a@b", "redis://", "x:70000", "unix://rel"] {
            assert!(text.parse::<RedisUrl>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        let url: RedisUrl = "redis://ftp:hunter2@cache:1/2".parse().unwrap();
        assert_eq!(url.0.redis_settings().password(), Some("hunter2"));
        let url = url.with_password(&Secret::new("sesame"));
        assert_eq!(url.0.redis_settings().password(), Some("sesame"));
        assert_eq!(format!("{url} {url:?}"), "redis://cache:1/2 redis://cache:1/2");
    }
}
