//! Session tickets that every node of the cluster can read.
//!
//! A ticket is the session's state, sealed with a key that all nodes share through the registry
//! and replace at intervals, so that a client that comes back to another node resumes there. The
//! first bytes of a ticket name its key.

use std::{
    fmt,
    sync::{Arc, RwLock},
    time::Duration,
};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use common::registry::TicketKey;
use rustls::server::ProducesTickets;

/// Seals and opens tickets with the cluster's keys.
pub struct Tickets {
    keys: RwLock<Vec<Key>>,
    lifetime: u32,
}

struct Key {
    name: [u8; TicketKey::NAME],
    sealing: RandomizedNonceKey,
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tickets")
    }
}

impl Tickets {
    /// `rotation`: how often the newest key is replaced. A ticket is good while its key is kept,
    /// which is for two more rotations.
    pub fn new(rotation: Duration) -> Arc<Self> {
        let lifetime = rotation.saturating_mul(2).as_secs().min(MAX_LIFETIME);
        // At most seven days.
        Arc::new(Self { keys: RwLock::default(), lifetime: lifetime as u32 })
    }

    /// Takes over the cluster's keys, the newest first.
    pub fn set_keys(&self, keys: &[TicketKey]) {
        let keys = keys.iter().filter_map(|key| {
            // The key has the length that the algorithm wants, which its type says.
            let sealing = RandomizedNonceKey::new(&AES_256_GCM, key.secret()).ok()?;
            Some(Key { name: *key.name(), sealing })
        });
        let keys = keys.collect();
        *self.keys.write().unwrap_or_else(std::sync::PoisonError::into_inner) = keys;
    }
}

/// RFC 8446 section 4.6.1: seven days, in seconds.
const MAX_LIFETIME: u64 = 7 * 24 * 3600;

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        self.lifetime
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let keys = self.keys.read().ok()?;
        let key = keys.first()?;
        let mut sealed = plain.to_vec();
        let nonce = key.sealing.seal_in_place_append_tag(Aad::from(&key.name[..]), &mut sealed).ok()?;
        let mut ticket = Vec::with_capacity(key.name.len() + NONCE_LEN + sealed.len());
        ticket.extend_from_slice(&key.name);
        ticket.extend_from_slice(nonce.as_ref());
        ticket.extend_from_slice(&sealed);
        Some(ticket)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_at_checked(TicketKey::NAME)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN)?;
        let keys = self.keys.read().ok()?;
        let key = keys.iter().find(|key| key.name == name)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut sealed = sealed.to_vec();
        let length = key.sealing.open_in_place(nonce, Aad::from(name), &mut sealed).ok()?.len();
        sealed.truncate(length);
        Some(sealed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_of_one_node_is_opened_by_another_with_the_same_keys_and_by_no_other() {
        let [ours, theirs, strangers] = [(); 3].map(|()| Tickets::new(Duration::from_secs(60)));
        let (old, new) = (TicketKey::random(1), TicketKey::random(2));
        ours.set_keys(std::slice::from_ref(&old));
        theirs.set_keys(&[new.clone(), old]);
        strangers.set_keys(&[new]);
        let ticket = ours.encrypt(b"state").unwrap();
        assert_eq!(theirs.decrypt(&ticket).as_deref(), Some(&b"state"[..]));
        assert_eq!(strangers.decrypt(&ticket), None);
        for i in 0..ticket.len() {
            let mut forged = ticket.clone();
            forged[i] ^= 1;
            assert_eq!(theirs.decrypt(&forged), None, "byte {i}");
            assert_eq!(theirs.decrypt(&ticket[..i]), None, "length {i}");
        }
    }

    #[test]
    fn without_keys_there_are_no_tickets() {
        assert_eq!(Tickets::new(Duration::from_secs(60)).encrypt(b"state"), None);
    }
}
