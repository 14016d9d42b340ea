//! Passwords: computes argon2id on blocking threads, with a limit of concurrent computations.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use argon2::Params;
pub use common::password::{HashMemory, MAX_ITERATIONS, MAX_MEMORY_KIB, MAX_PASSWORD, Phc};
use common::{secret::Secret, sync::lock};
use tokio::{sync::Semaphore, time::timeout};

use super::decoys::Decoys;
use crate::metrics;

/// Limits of password verification and hashing.
#[derive(Clone, Debug)]
pub struct PasswordLimits {
    /// Cost of new hashes.
    pub params: Params,
    /// Minimum number of characters of a new password.
    pub min_length: usize,
    /// Maximum number of concurrent computations.
    pub at_once: usize,
    /// Maximum number of logins that wait for a computation.
    pub waiting: usize,
    /// Maximum time that a login waits for a computation.
    pub patience: Duration,
}

/// Upper bound of `max_verifications`, far above the number of CPUs. The semaphores cannot count higher than
/// `MAX_PERMITS`.
const MAX_AT_ONCE: usize = 1 << 16;

/// The reason why a text cannot become a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnusablePassword {
    #[error("the password is empty")]
    Empty,
    #[error("the password is longer than 1024 bytes")]
    TooLong,
    #[error("the password has fewer than {0} characters (setting min_password_length)")]
    TooShort(usize),
    /// An FTP command ends at CR LF, and clients do not send PASS with other control characters. So no
    /// client could log in with such a password.
    #[error("the password contains a control character")]
    Control,
}

/// Checks the length of a new password.
///
/// # Errors
/// The password has fewer than `min_length` characters.
pub fn check_length(min_length: usize, password: &Secret) -> Result<(), UnusablePassword> {
    // An empty password is reported by `hash`.
    let length = password.expose().chars().count();
    if (1..min_length).contains(&length) { Err(UnusablePassword::TooShort(min_length)) } else { Ok(()) }
}

/// Hashes a new password. Blocks while argon2 is computed, so it must not run on the runtime's threads.
///
/// # Errors
/// No client could log in with the password.
pub fn hash(params: &Params, password: &Secret) -> Result<Phc, UnusablePassword> {
    let text = password.expose();
    if text.is_empty() {
        return Err(UnusablePassword::Empty);
    }
    if text.len() > MAX_PASSWORD {
        return Err(UnusablePassword::TooLong);
    }
    if text.chars().any(char::is_control) {
        return Err(UnusablePassword::Control);
    }
    Ok(Phc::compute(params, text.as_bytes()))
}

/// Too many logins wait for a computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many passwords are waiting for verification")]
pub struct QueueFull;

/// Verifies and hashes passwords on blocking threads.
pub struct PasswordVerifier {
    params: Params,
    min_length: usize,
    /// For names of users who do not exist.
    decoys: Decoys,
    /// One permit per running computation.
    running: Arc<Semaphore>,
    /// One permit per running or waiting computation.
    admitted: Arc<Semaphore>,
    patience: Duration,
    /// Argon2 memory for reuse: at most one block per concurrent computation.
    memory: Arc<Mutex<Vec<HashMemory>>>,
}

impl PasswordVerifier {
    /// Computes one hash, so it blocks. `known` is a secret of the cluster. It determines how long
    /// verifications for unknown names take.
    pub fn new(limits: &PasswordLimits, known: Option<&Secret>) -> Self {
        let at_once = limits.at_once.min(MAX_AT_ONCE);
        let waiting = limits.waiting.min(Semaphore::MAX_PERMITS - at_once);
        Self {
            decoys: Decoys::new(known, &Phc::compute(&limits.params, &rand::random::<[u8; 32]>())),
            params: limits.params.clone(),
            min_length: limits.min_length,
            running: Arc::new(Semaphore::new(at_once)),
            admitted: Arc::new(Semaphore::new(at_once + waiting)),
            patience: limits.patience,
            memory: Arc::default(),
        }
    }

    /// Notes the cost of a user's hash. Verifications for unknown names take as long as for some user.
    pub fn observe(&self, hash: &Phc) {
        self.decoys.observe(hash);
    }

    /// Returns true if `password` matches `hash`.
    ///
    /// # Errors
    /// Too many logins wait for a computation.
    pub async fn verify(&self, password: &Secret, hash: &Phc) -> Result<bool, QueueFull> {
        self.decoys.observe(hash);
        Ok(self.compare(password, hash.clone()).await? && password.expose().len() <= MAX_PASSWORD)
    }

    /// Takes as long as [`Self::verify`] for an existing user. Called if no user has this name.
    ///
    /// # Errors
    /// Too many logins wait for a computation.
    pub async fn verify_unknown(&self, password: &Secret, name: &str) -> Result<(), QueueFull> {
        self.compare(password, self.decoys.of(name)).await.map(drop)
    }

    async fn compare(&self, password: &Secret, hash: Phc) -> Result<bool, QueueFull> {
        let password = password.clone();
        let (pool, kept) = (Arc::clone(&self.memory), self.params.m_cost());
        self.compute(move || {
            let start = Instant::now();
            let mut memory = lock(&pool).pop().unwrap_or_default();
            let right = hash.matches_in(&mut memory, password.expose().as_bytes());
            memory.shrink_to(kept);
            lock(&pool).push(memory);
            metrics::verified(start.elapsed());
            right
        })
        .await
    }

    /// Hashes a new password.
    ///
    /// # Errors
    /// Too many logins wait for a computation. Inner error: the password is too short or not usable.
    pub async fn hash(&self, password: &Secret) -> Result<Result<Phc, UnusablePassword>, QueueFull> {
        if let Err(unusable) = check_length(self.min_length, password) {
            return Ok(Err(unusable));
        }
        let (params, password) = (self.params.clone(), password.clone());
        self.compute(move || hash(&params, &password)).await
    }

    async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, QueueFull> {
        let admitted = Arc::clone(&self.admitted).try_acquire_owned().map_err(|_| QueueFull)?;
        // The wait is bounded: the node gives up after its own timeout. The semaphore is never closed.
        let turn = timeout(self.patience, Arc::clone(&self.running).acquire_owned());
        let running = turn.await.map_err(|_| QueueFull)?.map_err(|_| QueueFull)?;
        let task = tokio::task::spawn_blocking(move || {
            // The thread owns the permits. The request may be dropped before the computation ends.
            let _permits = (admitted, running);
            work()
        });
        match task.await {
            Ok(result) => Ok(result),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // A task is cancelled only when the runtime shuts down.
                Err(_) => Err(QueueFull),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cheap() -> Params {
        Params::new(64, 1, 1, None).unwrap()
    }

    fn passwords(at_once: usize, waiting: usize) -> PasswordVerifier {
        PasswordVerifier::new(
            &PasswordLimits {
                params: cheap(),
                min_length: 4,
                at_once,
                waiting,
                patience: Duration::from_secs(60),
            },
            None,
        )
    }

    #[test]
    fn unusable_passwords_are_refused() {
        for (text, why) in [
            ("", UnusablePassword::Empty),
            ("a\r\nb", UnusablePassword::Control),
            ("a\0", UnusablePassword::Control),
            (&"x".repeat(1025), UnusablePassword::TooLong),
        ] {
            assert_eq!(hash(&cheap(), &Secret::new(text)).unwrap_err(), why);
        }
        assert!(hash(&cheap(), &Secret::new("pässwörd 🔑")).is_ok());
    }

    #[tokio::test]
    async fn minimum_password_length_counts_characters_not_bytes() {
        let passwords = passwords(1, 1);
        for short in ["abc", "äöü"] {
            let refused = passwords.hash(&Secret::new(short)).await.unwrap();
            assert_eq!(refused.unwrap_err(), UnusablePassword::TooShort(4), "{short}");
        }
        assert_eq!(passwords.hash(&Secret::new("")).await.unwrap().unwrap_err(), UnusablePassword::Empty);
        assert!(passwords.hash(&Secret::new("äöüß")).await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn only_the_right_password_is_verified() {
        let passwords = passwords(2, 2);
        let right = Secret::new("hunter2");
        let hash = passwords.hash(&right).await.unwrap().unwrap();
        assert_eq!(passwords.verify(&right, &hash).await, Ok(true));
        assert_eq!(passwords.verify(&Secret::new("hunter3"), &hash).await, Ok(false));
        assert_eq!(passwords.verify_unknown(&right, "unknown").await, Ok(()));
        assert_eq!(passwords.verify(&Secret::new("x".repeat(2000)), &hash).await, Ok(false));
    }

    #[tokio::test]
    async fn login_waits_no_longer_than_the_limit() {
        let patience = Duration::from_millis(20);
        let limits = PasswordLimits { params: cheap(), min_length: 4, at_once: 1, waiting: 1, patience };
        let passwords = PasswordVerifier::new(&limits, None);
        let _running = Arc::clone(&passwords.running).acquire_owned().await.unwrap();
        assert_eq!(passwords.compute(|| true).await, Err(QueueFull));
    }

    #[tokio::test]
    async fn computations_beyond_the_limits_get_queue_full() {
        let passwords = Arc::new(passwords(1, 1));
        let (release, blocked) = std::sync::mpsc::channel::<()>();
        let running = Arc::clone(&passwords);
        let running = tokio::spawn(async move { running.compute(move || blocked.recv().is_ok()).await });
        let waiting = Arc::clone(&passwords);
        let waiting = tokio::spawn(async move { waiting.compute(|| true).await });
        while passwords.admitted.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(passwords.compute(|| true).await, Err(QueueFull));
        release.send(()).unwrap();
        assert_eq!(running.await.unwrap(), Ok(true));
        assert_eq!(waiting.await.unwrap(), Ok(true));
        assert_eq!(passwords.compute(|| true).await, Ok(true));
    }
}
