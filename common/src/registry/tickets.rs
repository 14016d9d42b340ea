//! The keys that seal TLS session tickets: shared by all nodes, and replaced at intervals.

use std::{fmt, str::FromStr, time::Duration};

use zeroize::Zeroizing;

use crate::clock::since_epoch;

/// One key. Neither `Debug` nor anything but [`Self::secret`] and Redis's form shows the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct TicketKey {
    name: [u8; Self::NAME],
    secret: Zeroizing<[u8; Self::SECRET]>,
    /// Milliseconds since the Unix epoch, by Redis's clock where there is one.
    made: u64,
}

impl TicketKey {
    /// Bytes of a key's public name.
    pub const NAME: usize = 16;
    /// Bytes of the secret: a key of AES-256.
    pub const SECRET: usize = 32;

    /// `made`: milliseconds since the Unix epoch.
    pub fn random(made: u64) -> Self {
        Self { name: rand::random(), secret: Zeroizing::new(rand::random()), made }
    }

    pub fn name(&self) -> &[u8; Self::NAME] {
        &self.name
    }

    pub fn secret(&self) -> &[u8; Self::SECRET] {
        &self.secret
    }

    /// Name and secret as Redis keeps them; the time of making is put before it there.
    pub(super) fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{}:{}", hex::encode(self.name), hex::encode(*self.secret)))
    }
}

impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TicketKey({})", hex::encode(self.name))
    }
}

/// The text is no key.
#[derive(Debug, thiserror::Error)]
#[error("not MILLISECONDS:NAME:SECRET in hexadecimal digits")]
pub struct InvalidTicketKey;

impl FromStr for TicketKey {
    type Err = InvalidTicketKey;

    fn from_str(text: &str) -> Result<Self, InvalidTicketKey> {
        let (made, rest) = text.split_once(':').ok_or(InvalidTicketKey)?;
        let (name, secret) = rest.split_once(':').ok_or(InvalidTicketKey)?;
        let mut key = Self { name: [0; _], secret: Zeroizing::new([0; _]), made: 0 };
        key.made = made.parse().map_err(|_| InvalidTicketKey)?;
        hex::decode_to_slice(name, &mut key.name).map_err(|_| InvalidTicketKey)?;
        hex::decode_to_slice(secret, &mut *key.secret).map_err(|_| InvalidTicketKey)?;
        Ok(key)
    }
}

/// How many keys are kept: the newest seals, all open.
pub(super) const KEPT: usize = 3;

/// The keys of a node without Redis, or while it is away.
#[derive(Default)]
pub(super) struct OwnKeys(Vec<TicketKey>);

impl OwnKeys {
    /// What is there, with a new key first if the newest has had its time.
    pub fn rotated(&mut self, rotation: Duration) -> Vec<TicketKey> {
        let now = u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX);
        let rotation = u64::try_from(rotation.as_millis()).unwrap_or(u64::MAX);
        if self.0.first().is_none_or(|newest| newest.made.saturating_add(rotation) <= now) {
            self.0.insert(0, TicketKey::random(now));
            self.0.truncate(KEPT);
        }
        self.0.clone()
    }

    /// What Redis has is what counts from now on.
    pub fn replace(&mut self, keys: &[TicketKey]) {
        self.0 = keys.to_vec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_redis_and_is_not_shown() {
        let key = TicketKey::random(7);
        let text = format!("7:{}", *key.text());
        assert_eq!(text.parse::<TicketKey>().unwrap(), key);
        assert!(!format!("{key:?}").contains(&hex::encode(key.secret())));
        for text in ["", "7", "7:aa:bb", "x:00:11"] {
            assert!(text.parse::<TicketKey>().is_err(), "{text}");
        }
    }

    #[test]
    fn keys_are_replaced_and_old_ones_kept_for_a_while() {
        let mut keys = OwnKeys::default();
        let first = keys.rotated(Duration::from_secs(3600));
        assert_eq!(keys.rotated(Duration::from_secs(3600)), first);
        for _ in 0..KEPT {
            let rotated = keys.rotated(Duration::ZERO);
            assert!(rotated.len() <= KEPT);
            assert_ne!(rotated[0], first[0]);
        }
        assert!(!keys.rotated(Duration::from_secs(3600)).contains(&first[0]));
    }
}
