//! The short memory of passwords that were right, so that a client which opens ten connections
//! costs one argon2 computation.
//!
//! It holds no passwords: an entry is a MAC, under a key that only this process ever had, of the
//! user, the stored hash and the password. A changed hash makes another MAC, so an entry cannot
//! outlive the hash it was made for; that it is also dropped at once keeps the memory short.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use common::{secret::Secret, sync::lock};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::{name::UserName, password::Phc};

/// How much is remembered.
#[derive(Clone, Copy, Debug)]
pub struct CacheLimits {
    /// How long an entry holds.
    pub ttl: Duration,
    /// How many entries; one more displaces the oldest.
    pub size: usize,
}

/// Names one verification. See the module.
pub type VerificationDigest = [u8; 32];

/// The verifications of late.
pub struct PasswordCache {
    limits: CacheLimits,
    key: Hmac<Sha256>,
    entries: Mutex<CacheEntries>,
}

#[derive(Default)]
struct CacheEntries {
    /// The change to users in Redis that was seen last.
    generation: u64,
    expiry: HashMap<VerificationDigest, Instant>,
    /// In the order of their expiry, since all live equally long.
    order: VecDeque<(Instant, VerificationDigest)>,
}

impl PasswordCache {
    pub fn new(limits: CacheLimits) -> Self {
        let key = Hmac::<Sha256>::new_from_slice(&rand::random::<[u8; 32]>());
        // HMAC takes keys of any length (RFC 2104 section 2).
        Self { limits, key: key.expect("a key of 32 bytes"), entries: Mutex::default() }
    }

    /// The name of the verification that `password` is right for `user`, whose hash is `hash`.
    pub fn digest(&self, user: &UserName, hash: &Phc, password: &Secret) -> VerificationDigest {
        let mut mac = self.key.clone();
        for part in [user.as_str(), hash.as_str(), password.expose()] {
            // Lengths keep the parts apart.
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part.as_bytes());
        }
        mac.finalize().into_bytes().into()
    }

    pub fn contains(&self, digest: &VerificationDigest) -> bool {
        self.contains_at(digest, Instant::now())
    }

    /// Remembers that a verification succeeded.
    pub fn insert(&self, digest: VerificationDigest) {
        self.insert_at(digest, Instant::now());
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.entries().forget();
    }

    /// Forgets everything if users have changed since `generation` was last another one.
    pub fn observe(&self, generation: u64) {
        let mut entries = self.entries();
        if entries.generation != generation {
            entries.forget();
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
            // The digest may be there once more, with a later expiry.
            if self.expiry.get(&digest) == Some(&expiry) {
                self.expiry.remove(&digest);
            }
        }
    }

    fn forget(&mut self) {
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
    fn user_hash_and_password_all_count_and_so_does_the_process() {
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
    fn entries_expire_and_the_oldest_makes_room() {
        let (cache, start) = (cache(2), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        cache.insert_at([1; 32], at(0));
        cache.insert_at([2; 32], at(1));
        assert!(cache.contains_at(&[1; 32], at(59)) && !cache.contains_at(&[1; 32], at(60)));
        cache.insert_at([3; 32], at(2));
        assert!(!cache.contains_at(&[1; 32], at(3)) && cache.contains_at(&[2; 32], at(3)));
        cache.insert_at([3; 32], at(4));
        assert!(cache.contains_at(&[3; 32], at(63)), "its second insertion counts");
        cache.insert_at([4; 32], at(500));
        let entries = cache.entries();
        assert_eq!((entries.expiry.len(), entries.order.len()), (1, 1));
    }

    #[test]
    fn a_new_generation_and_a_reload_forget_everything() {
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
