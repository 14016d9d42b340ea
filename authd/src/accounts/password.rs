//! PasswordVerifier: argon2id hashes, and computing them off the runtime, only so many at once.

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

/// How passwords are hashed, and how many at once.
#[derive(Clone, Debug)]
pub struct PasswordLimits {
    /// The cost of new hashes.
    pub params: Params,
    /// How many characters a new password has at least.
    pub min_length: usize,
    /// Computations at once.
    pub at_once: usize,
    /// How many more wait for one.
    pub waiting: usize,
    /// How long each of these waits.
    pub patience: Duration,
}

/// Why a text cannot become a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnusablePassword {
    #[error("the password is empty")]
    Empty,
    #[error("the password is longer than 1024 bytes")]
    TooLong,
    #[error("the password has fewer than {0} characters (setting min_password_length)")]
    TooShort(usize),
    /// An FTP command ends at CR LF, and a PASS with other control characters is not sent by
    /// clients: nobody could log in.
    #[error("the password holds a control character")]
    Control,
}

/// # Errors
/// A new password has fewer than `min_length` characters.
pub fn check_length(min_length: usize, password: &Secret) -> Result<(), UnusablePassword> {
    // `hash` reports a missing password.
    let length = password.expose().chars().count();
    if (1..min_length).contains(&length) { Err(UnusablePassword::TooShort(min_length)) } else { Ok(()) }
}

/// Hashes a new password. Takes the time that argon2 takes: not for the runtime's threads.
///
/// # Errors
/// No one could log in with the password.
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

/// Too many logins wait for a computation already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many passwords are waiting to be verified")]
pub struct QueueFull;

/// Verifies and hashes passwords on threads of their own.
pub struct PasswordVerifier {
    params: Params,
    min_length: usize,
    /// For names that no user has.
    decoys: Decoys,
    /// One for each computation that runs.
    running: Arc<Semaphore>,
    /// One for each computation that runs or waits.
    admitted: Arc<Semaphore>,
    patience: Duration,
    /// Memory of verifications that do not run at this time: at most one for each that may.
    memory: Arc<Mutex<Vec<HashMemory>>>,
}

impl PasswordVerifier {
    /// Computes one hash: not for the runtime's threads. `known`: a secret that all authds of the cluster know,
    /// from which the time that an unknown name takes follows.
    pub fn new(limits: &PasswordLimits, known: Option<&Secret>) -> Self {
        let waiting = limits.waiting.min(Semaphore::MAX_PERMITS - limits.at_once.min(1 << 16));
        Self {
            decoys: Decoys::new(known, &Phc::compute(&limits.params, &rand::random::<[u8; 32]>())),
            params: limits.params.clone(),
            min_length: limits.min_length,
            running: Arc::new(Semaphore::new(limits.at_once.min(1 << 16))),
            admitted: Arc::new(Semaphore::new(limits.at_once.min(1 << 16) + waiting)),
            patience: limits.patience,
            memory: Arc::default(),
        }
    }

    /// Notes the cost of a hash that a user has: names that no user has take as long as some user's.
    pub fn observe(&self, hash: &Phc) {
        self.decoys.observe(hash);
    }

    /// Whether `password` is the one of `hash`.
    ///
    /// # Errors
    /// Too many logins wait already.
    pub async fn verify(&self, password: &Secret, hash: &Phc) -> Result<bool, QueueFull> {
        self.decoys.observe(hash);
        Ok(self.compare(password, hash.clone()).await? && password.expose().len() <= MAX_PASSWORD)
    }

    /// Takes as long as [`Self::verify`] for a user: no user has this name.
    ///
    /// # Errors
    /// The same.
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
    /// Too many logins wait already, or (within) the password is too short, or no one could log in with it.
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
        // A node that has given up meanwhile would not hear the answer. The semaphore is never closed.
        let turn = timeout(self.patience, Arc::clone(&self.running).acquire_owned());
        let running = turn.await.map_err(|_| QueueFull)?.map_err(|_| QueueFull)?;
        let task = tokio::task::spawn_blocking(move || {
            // Held by the thread, not by the request, which may be dropped before the end.
            let _permits = (admitted, running);
            work()
        });
        match task.await {
            Ok(result) => Ok(result),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // Only a runtime that shuts down cancels a task.
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
    fn what_nobody_could_log_in_with_is_no_password() {
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
    async fn a_new_password_has_a_least_number_of_characters_not_bytes() {
        let passwords = passwords(1, 1);
        for short in ["abc", "äöü"] {
            let refused = passwords.hash(&Secret::new(short)).await.unwrap();
            assert_eq!(refused.unwrap_err(), UnusablePassword::TooShort(4), "{short}");
        }
        assert_eq!(passwords.hash(&Secret::new("")).await.unwrap().unwrap_err(), UnusablePassword::Empty);
        assert!(passwords.hash(&Secret::new("äöüß")).await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn right_wrong_unknown_and_oversized() {
        let passwords = passwords(2, 2);
        let right = Secret::new("hunter2");
        let hash = passwords.hash(&right).await.unwrap().unwrap();
        assert_eq!(passwords.verify(&right, &hash).await, Ok(true));
        assert_eq!(passwords.verify(&Secret::new("hunter3"), &hash).await, Ok(false));
        assert_eq!(passwords.verify_unknown(&right, "unknown").await, Ok(()));
        assert_eq!(passwords.verify(&Secret::new("x".repeat(2000)), &hash).await, Ok(false));
    }

    #[tokio::test]
    async fn a_login_waits_for_its_turn_so_long_and_no_longer() {
        let patience = Duration::from_millis(20);
        let limits = PasswordLimits { params: cheap(), min_length: 4, at_once: 1, waiting: 1, patience };
        let passwords = PasswordVerifier::new(&limits, None);
        let _running = Arc::clone(&passwords.running).acquire_owned().await.unwrap();
        assert_eq!(passwords.compute(|| true).await, Err(QueueFull));
    }

    #[tokio::test]
    async fn more_than_may_run_and_wait_are_turned_away() {
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
