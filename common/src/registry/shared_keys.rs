//! Keys that the nodes share and replace at intervals: those that encrypt TLS session tickets, and those that
//! authenticate relayed connections.

use std::{fmt, str::FromStr, sync::LazyLock, time::Duration};

use redis::{Cmd, Script, cmd};
use zeroize::Zeroizing;

use super::EssentialScript;
use crate::clock::since_epoch;

pub(super) static SHARED_KEYS: LazyLock<EssentialScript> =
    LazyLock::new(|| EssentialScript::new(include_str!("lua/shared_keys.lua")));

/// The call of `script`, a form of [`SHARED_KEYS`], for the list at `key`. Redis adds a key if the newest is
/// older than `rotation`.
/// `known`: the keys that this process has, newest first, for a Redis that has lost its keys.
pub(super) fn call(script: &Script, key: &str, rotation: Duration, known: &[SharedKey]) -> Cmd {
    let mut call = cmd("EVALSHA");
    call.arg(script.get_hash()).arg(1).arg(key).arg(SharedKey::random(0).text().as_str());
    call.arg(u64::try_from(rotation.as_millis()).unwrap_or(u64::MAX)).arg(KEPT_KEYS);
    for known in known.iter().take(KEPT_KEYS) {
        call.arg(known.entry().as_str());
    }
    call
}

/// One shared key. Only [`Self::secret`] and the form in Redis show the secret; `Debug` does not.
#[derive(Clone, PartialEq, Eq)]
pub struct SharedKey {
    name: [u8; Self::NAME],
    secret: Zeroizing<[u8; Self::SECRET]>,
    /// Time of creation in ms since the Unix epoch, by Redis's clock if there is a Redis.
    made: u64,
}

impl SharedKey {
    /// Length of a key's public name in bytes.
    pub const NAME: usize = 16;
    /// Length of the secret in bytes, that of an AES-256 key.
    pub const SECRET: usize = 32;

    /// A random key, created at `made` (ms since the Unix epoch).
    pub fn random(made: u64) -> Self {
        Self { name: rand::random(), secret: Zeroizing::new(rand::random()), made }
    }

    pub fn name(&self) -> &[u8; Self::NAME] {
        &self.name
    }

    pub fn secret(&self) -> &[u8; Self::SECRET] {
        &self.secret
    }

    /// Time of creation in ms since the Unix epoch, by Redis's clock if there is a Redis.
    pub(super) fn made(&self) -> u64 {
        self.made
    }

    /// The form in Redis.
    fn entry(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{}:{}", self.made, *self.text()))
    }

    /// Name and secret in the form of Redis. The script adds the time of creation in front.
    pub(super) fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{}:{}", hex::encode(self.name), hex::encode(*self.secret)))
    }
}

impl fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedKey({})", hex::encode(self.name))
    }
}

/// The text is not a shared key.
#[derive(Debug, thiserror::Error)]
#[error("not MILLISECONDS:NAME:SECRET in hexadecimal digits")]
pub struct InvalidSharedKey;

impl FromStr for SharedKey {
    type Err = InvalidSharedKey;

    fn from_str(text: &str) -> Result<Self, InvalidSharedKey> {
        let (made, rest) = text.split_once(':').ok_or(InvalidSharedKey)?;
        let (name, secret) = rest.split_once(':').ok_or(InvalidSharedKey)?;
        let mut key = Self { name: [0; _], secret: Zeroizing::new([0; _]), made: 0 };
        key.made = made.parse().map_err(|_| InvalidSharedKey)?;
        hex::decode_to_slice(name, &mut key.name).map_err(|_| InvalidSharedKey)?;
        hex::decode_to_slice(secret, &mut *key.secret).map_err(|_| InvalidSharedKey)?;
        Ok(key)
    }
}

/// Number of keys that are kept. The newest makes tickets and headers, all of them check tickets and headers.
pub(super) const KEPT_KEYS: usize = 3;

/// The keys of a node without Redis, or while Redis is away.
#[derive(Default)]
pub(super) struct LocalSharedKeys(Vec<SharedKey>);

impl LocalSharedKeys {
    /// The keys, newest first. Adds a key if the newest is older than `rotation`.
    pub(super) fn rotated(&mut self, rotation: Duration) -> Vec<SharedKey> {
        let now = u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX);
        let rotation = u64::try_from(rotation.as_millis()).unwrap_or(u64::MAX);
        if self.0.first().is_none_or(|newest| newest.made.saturating_add(rotation) <= now) {
            self.0.insert(0, SharedKey::random(now));
            self.0.truncate(KEPT_KEYS);
        }
        self.0.clone()
    }

    /// Replaces all keys by those of Redis.
    pub(super) fn replace(&mut self, keys: &[SharedKey]) {
        self.0 = keys.to_vec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_form_in_redis_and_debug_hides_the_secret() {
        let key = SharedKey::random(7);
        assert_eq!(key.entry().parse::<SharedKey>().unwrap(), key);
        assert!(!format!("{key:?}").contains(&hex::encode(key.secret())));
        for text in ["", "7", "7:aa:bb", "x:00:11"] {
            assert!(text.parse::<SharedKey>().is_err(), "{text}");
        }
    }

    #[test]
    fn new_keys_are_added_and_the_last_three_are_kept() {
        let mut keys = LocalSharedKeys::default();
        let first = keys.rotated(Duration::from_secs(3600));
        assert_eq!(keys.rotated(Duration::from_secs(3600)), first);
        for _ in 0..KEPT_KEYS {
            let rotated = keys.rotated(Duration::ZERO);
            assert!(rotated.len() <= KEPT_KEYS);
            assert_ne!(rotated[0], first[0]);
        }
        assert!(!keys.rotated(Duration::from_secs(3600)).contains(&first[0]));
    }
}
