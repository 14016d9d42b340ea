//! `RedisServers`: where Redis is (one server, or the master that sentinels name), the login there, and TLS.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr};

use super::{
    connect::{RedisTls, RedisTlsFiles},
    options::{InvalidRedisUrl, RedisUrl},
    sentinel::{SENTINEL_PORT, SentinelOptions},
};
use crate::settings::{SettingsError, Values};

/// Where Redis is, and how a process logs in there.
#[derive(Clone, Debug)]
pub struct RedisServers {
    pub(super) place: RedisPlace,
    /// `None`: the connections are not encrypted.
    pub(super) tls: Option<RedisTls>,
}

#[derive(Clone, Debug)]
pub(super) enum RedisPlace {
    Server(RedisUrl),
    Sentinels(SentinelOptions),
}

/// Settings that have an effect only with TLS.
const TLS_SETTINGS: [&str; 3] = ["redis_ca_file", "redis_client_certificate", "redis_client_key"];

/// Settings that have an effect only with sentinels.
const SENTINEL_SETTINGS: [&str; 3] =
    ["redis_sentinel_master", "redis_sentinel_user", "redis_sentinel_password_file"];

impl RedisServers {
    /// Reads the settings `redis_url`, `redis_sentinels` and those that belong to them. `None`: neither is
    /// set.
    ///
    /// # Errors
    /// A value cannot be used, two contradict each other, or a file cannot be read.
    pub fn read(values: &Values) -> Result<Option<Self>, SettingsError> {
        let url: Option<RedisUrl> = values.optional("redis_url")?;
        let sentinels = sentinels(values)?;
        if sentinels.is_empty()
            && let Some(key) = SENTINEL_SETTINGS.into_iter().find(|key| values.is_given(key))
        {
            return Err(values.invalid(key, "it has no effect without redis_sentinels"));
        }
        let place = match (url, sentinels.first()) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => {
                let reason = "redis_url is set, too: set one of them; with sentinels, they tell the address";
                return Err(values.invalid("redis_sentinels", reason));
            }
            (Some(url), None) => RedisPlace::Server(with_login(values, url)?),
            (None, Some(first)) => {
                let is_encrypted = first.is_encrypted();
                let master: Option<String> = values.optional("redis_sentinel_master")?;
                // Only its login is used.
                let login = with_login(values, RedisUrl::at("", 0, &Default::default(), is_encrypted))?;
                RedisPlace::Sentinels(SentinelOptions {
                    master: master.ok_or_else(|| {
                        values.missing("redis_sentinel_master", "sentinels may watch several masters")
                    })?,
                    login: login.login().clone(),
                    is_encrypted,
                    sentinels,
                })
            }
        };
        let tls = tls(values, &place)?;
        Ok(Some(Self { place, tls }))
    }

    /// The servers' host names or IP addresses, and ports: that of Redis, or those of the sentinels. Empty
    /// for a Unix socket.
    pub fn hosts(&self) -> Vec<(&str, u16)> {
        self.urls().filter_map(RedisUrl::host).collect()
    }

    /// Those of [`Self::hosts`] that are IP addresses.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.urls().filter_map(RedisUrl::address).collect()
    }

    fn urls(&self) -> impl Iterator<Item = &RedisUrl> {
        let (server, sentinels) = match &self.place {
            RedisPlace::Server(url) => (Some(url), None),
            RedisPlace::Sentinels(options) => (None, Some(&options.sentinels)),
        };
        server.into_iter().chain(sentinels.into_iter().flatten())
    }
}

impl From<RedisUrl> for RedisServers {
    /// One server, without TLS.
    fn from(url: RedisUrl) -> Self {
        Self { place: RedisPlace::Server(url), tls: None }
    }
}

impl FromStr for RedisServers {
    type Err = InvalidRedisUrl;

    /// One server, without TLS.
    fn from_str(text: &str) -> Result<Self, InvalidRedisUrl> {
        let url: RedisUrl = text.parse()?;
        if url.is_encrypted() { Err(InvalidRedisUrl) } else { Ok(url.into()) }
    }
}

impl fmt::Display for RedisServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            RedisPlace::Server(url) => url.fmt(f),
            RedisPlace::Sentinels(SentinelOptions { sentinels, master, .. }) => {
                write!(f, "the master {master} of the sentinels ")?;
                for (i, sentinel) in sentinels.iter().enumerate() {
                    let (host, port) = sentinel.host().unwrap_or_default();
                    write!(f, "{}{host}:{port}", if i == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
        }
    }
}

/// The addresses of `redis_sentinels`, with their login.
fn sentinels(values: &Values) -> Result<Vec<RedisUrl>, SettingsError> {
    let (user, password) =
        (values.optional::<String>("redis_sentinel_user")?, values.secret("redis_sentinel_password_file")?);
    let mut sentinels = Vec::new();
    for text in values.list::<String>("redis_sentinels")? {
        let refused = |reason: &str| values.invalid("redis_sentinels", reason);
        let url: RedisUrl =
            with_port(&text).parse().map_err(|error| values.invalid("redis_sentinels", error))?;
        if url.host().is_none() {
            return Err(refused("a sentinel has no Unix socket: give HOST[:PORT]"));
        }
        if url.login().db() != 0 {
            return Err(refused("a sentinel has no databases: leave the number out"));
        }
        let url = user.iter().fold(url, |url, user| url.with_user(user));
        sentinels.push(password.iter().fold(url, RedisUrl::with_password));
    }
    if sentinels.iter().any(|one| one.is_encrypted() != sentinels[0].is_encrypted()) {
        let reason = "write rediss:// before all of them or before none: the master is reached the same way";
        return Err(values.invalid("redis_sentinels", reason));
    }
    Ok(sentinels)
}

/// The address of a sentinel, with its usual port if it names none.
fn with_port(text: &str) -> String {
    let (text, end) = text.split_at(text.trim_end_matches('/').len());
    let place = text.rsplit(['/', '@']).next().unwrap_or_default();
    let after_address = place.rsplit(']').next().unwrap_or_default();
    if place.is_empty() || after_address.contains(':') {
        return format!("{text}{end}");
    }
    format!("{text}:{SENTINEL_PORT}{end}")
}

/// The address with `redis_user` and the password of `redis_password_file`.
fn with_login(values: &Values, url: RedisUrl) -> Result<RedisUrl, SettingsError> {
    let user: Option<String> = values.optional("redis_user")?;
    let password = values.secret("redis_password_file")?;
    let url = user.iter().fold(url, |url, user| url.with_user(user));
    let url = password.iter().fold(url, RedisUrl::with_password);
    if url.login().username().is_some() && url.login().password().is_none() {
        return Err(values.missing("redis_password_file", "a user of Redis logs in with a password"));
    }
    Ok(url)
}

fn tls(values: &Values, place: &RedisPlace) -> Result<Option<RedisTls>, SettingsError> {
    let (is_encrypted, key) = match place {
        RedisPlace::Server(url) => (url.is_encrypted(), "redis_url"),
        RedisPlace::Sentinels(options) => (options.is_encrypted, "redis_sentinels"),
    };
    if !is_encrypted {
        return match TLS_SETTINGS.into_iter().find(|key| values.is_given(key)) {
            Some(given) => {
                let reason = format_args!("it has no effect, because {key} does not begin with rediss://");
                Err(values.invalid(given, reason))
            }
            None => Ok(None),
        };
    }
    let certificate: Option<PathBuf> = values.optional("redis_client_certificate")?;
    let key: Option<PathBuf> = values.optional("redis_client_key")?;
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => {
            return Err(values.missing("redis_client_key", "redis_client_certificate needs its key"));
        }
        (None, Some(_)) => {
            let reason = "redis_client_key needs its certificate";
            return Err(values.missing("redis_client_certificate", reason));
        }
    };
    let files = RedisTlsFiles { authorities: values.optional("redis_ca_file")?, identity };
    let opened = RedisTls::open(files).map_err(|error| values.invalid(error.setting, &error.reason))?;
    Ok(Some(opened))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentinel_without_a_port_has_the_port_of_sentinels() {
        for (text, expected) in [
            ("a", "a:26379"),
            ("a:1", "a:1"),
            ("rediss://a", "rediss://a:26379"),
            ("redis://user:word@a", "redis://user:word@a:26379"),
            ("redis://user:word@a:7/", "redis://user:word@a:7/"),
            ("redis://[2001:db8::1]", "redis://[2001:db8::1]:26379"),
            ("redis://[2001:db8::1]:7", "redis://[2001:db8::1]:7"),
        ] {
            assert_eq!(with_port(text), expected, "{text}");
        }
    }
}
