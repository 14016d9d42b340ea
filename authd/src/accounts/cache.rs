//! Cache of recently verified passwords, so that a client that opens ten connections costs one argon2
//! computation.
//!
//! The cache contains no passwords. An entry is an HMAC of the user, the stored hash and the password,
//! under a random key of this process. A changed hash gives another HMAC, so an entry never applies to a
//! new password. When accounts change, the cache is also cleared, to free the memory.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use common::{secret::Secret, sync::lock};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::{name::UserName, password::Phc};

/// Limits of the cache.
#[derive(Clone, Copy, Debug)]
pub struct CacheLimits {
    /// Lifetime of an entry.
    pub ttl: Duration,
    /// Maximum number of entries. A further one displaces the oldest.
    pub size: usize,
}

/// HMAC of user, hash and password. Identifies one verification.
pub type VerificationDigest = [u8; 32];

/// The recent successful verifications.
pub struct PasswordCache {
    limits: CacheLimits,
    key: Hmac<Sha256>,
    entries: Mutex<CacheEntries>,
}

#[derive(Default)]
struct CacheEntries {
    /// Last seen generation of the accounts in Redis.
    generation: u64,
    expiry: HashMap<VerificationDigest, Instant>,
    /// Ordered by expiry, because all entries have the same lifetime.
    order: VecDeque<(Instant, VerificationDigest)>,
}

impl PasswordCache {
    /// An empty cache with a random key.
    pub fn new(limits: CacheLimits) -> Self {
        let key = Hmac::<Sha256>::new_from_slice(&rand::random::<[u8; 32]>());
        Self {
            limits,
            key: key.expect("HMAC accepts keys of any length (RFC 2104 section 2)"),
            entries: Mutex::default(),
        }
    }

    /// The digest of the verification that `password` is right for `user` with the hash `hash`.
    pub fn digest(&self, user: &UserName, hash: &Phc, password: &Secret) -> VerificationDigest {
        let mut mac = self.key.clone();
        for part in [user.as_str(), hash.as_str(), password.expose()] {
            // Lengths separate the parts unambiguously.
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part.as_bytes());
        }
        mac.finalize().into_bytes().into()
    }

    /// Returns true if the verification succeeded within the lifetime of an entry.
    pub fn contains(&self, digest: &VerificationDigest) -> bool {
        self.contains_at(digest, Instant::now())
    }

    /// Adds a successful verification.
    pub fn insert(&self, digest: VerificationDigest) {
        self.insert_at(digest, Instant::now());
    }

    /// Removes all entries.
    pub fn clear(&self) {
        self.entries().clear();
    }

    /// Removes all entries if `generation` differs from the last one: accounts in Redis have changed.
    pub fn observe(&self, generation: u64) {
        let mut entries = self.entries();
        if entries.generation != generation {
            entries.clear();
            entries.generation = generation;
        }
    }

    fn contains_at(&self, digest: &VerificationDigest, now: Instant) -> bool {
        self.entries().expiry.get(digest).is_some_and(|expiry| *expiry > now)
    }

    fn insert_at(&self, digest: VerificationDigest, now: Instant) {
        let mut entries = self.entries();
        let expiry = now + self.limits.ttl;
        while entries
            .order
            .front()
            .is_some_and(|(at, _)| *at <= now || entries.order.len() >= self.limits.size)
        {
            entries.pop();
        }
        entries.expiry.insert(digest, expiry);
        entries.order.push_back((expiry, digest));
    }

    fn entries(&self) -> MutexGuard<'_, CacheEntries> {
        lock(&self.entries)
    }
}

impl CacheEntries {
    fn pop(&mut self) {
        if let Some((expiry, digest)) = self.order.pop_front() {
            // If the digest was added again, its expiry is later, and the entry stays.
            if self.expiry.get(&digest) == Some(&expiry) {
                self.expiry.remove(&digest);
            }
        }
    }

    fn clear(&mut self) {
        self.expiry.clear();
        self.order.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(60);

    fn cache(size: usize) -> PasswordCache {
        PasswordCache::new(CacheLimits { ttl: TTL, size })
    }

    #[test]
    fn digest_depends_on_user_hash_password_and_process() {
        let hash: Phc = "$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ$9OzPPD5NcFBCFBsPPUbMKr3/kZ2CpcUvYjPmEdjfYAM"
            .parse()
            .unwrap();
        let other: Phc = hash.as_str().replace("t=1", "t=2").parse().unwrap();
        let (ann, bob): (UserName, UserName) = ("ann".parse().unwrap(), "bob".parse().unwrap());
        let (x, y) = (Secret::new("x"), Secret::new("y"));
        let cache = cache(9);
        let digest = cache.digest(&ann, &hash, &x);
        assert_eq!(digest, cache.digest(&ann, &hash, &x));
        for different in [
            cache.digest(&bob, &hash, &x),
            cache.digest(&ann, &other, &x),
            cache.digest(&ann, &hash, &y),
            self::cache(9).digest(&ann, &hash, &x),
        ] {
            assert_ne!(digest, different);
        }
    }

    #[test]
    fn entries_expire_and_the_oldest_is_displaced() {
        let (cache, start) = (cache(2), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        cache.insert_at([1; 32], at(0));
        cache.insert_at([2; 32], at(1));
        assert!(cache.contains_at(&[1; 32], at(59)) && !cache.contains_at(&[1; 32], at(60)));
        cache.insert_at([3; 32], at(2));
        assert!(!cache.contains_at(&[1; 32], at(3)) && cache.contains_at(&[2; 32], at(3)));
        cache.insert_at([3; 32], at(4));
        assert!(cache.contains_at(&[3; 32], at(63)), "the expiry is that of the second insertion");
        cache.insert_at([4; 32], at(500));
        let entries = cache.entries();
        assert_eq!((entries.expiry.len(), entries.order.len()), (1, 1));
    }

    #[test]
    fn new_generation_or_clear_removes_all_entries() {
        let cache = cache(9);
        cache.observe(5);
        cache.insert([1; 32]);
        cache.observe(5);
        assert!(cache.contains(&[1; 32]));
        cache.observe(6);
        assert!(!cache.contains(&[1; 32]));
        cache.insert([1; 32]);
        cache.clear();
        assert!(!cache.contains(&[1; 32]));
    }
}
