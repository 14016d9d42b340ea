//! Passwords: argon2id hashes, and computing them off the runtime, only so many at once.

use std::{fmt, str::FromStr, sync::Arc, time::Instant};

use argon2::{ARGON2ID_IDENT, Argon2, Params, PasswordHash, PasswordHasher, PasswordVerifier};
use common::secret::Secret;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::metrics;

/// The longest password that can be right, in bytes.
pub const MAX_PASSWORD: usize = 1024;

// What a stored hash may cost. Hashes come from operators, but a slip of theirs must not turn
// one login into minutes or take the machine's memory.

/// The most memory that a hash may need, in KiB.
pub const MAX_MEMORY_KIB: u32 = 1024 * 1024;
/// The most passes over its memory that a hash may need.
pub const MAX_ITERATIONS: u32 = 64;
const MAX_LANES: u32 = 16;

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
}

/// An argon2id hash with its salt and cost, as a PHC string. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Phc(String);

/// Why a text is no [`Phc`]. The text is not shown: it may be a password in the wrong place.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPhc {
    #[error("the password hash is no PHC string ($argon2id$v=19$m=…,t=…,p=…$SALT$HASH)")]
    Syntax,
    #[error("the password hash is not argon2id version 19; make one with `authd hash-password`")]
    Algorithm,
    #[error("the password hash has no salt or no hash")]
    Incomplete,
    #[error("the password hash costs more than 1 GiB of memory, 64 iterations or 16 lanes")]
    Cost,
}

impl Phc {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Phc {
    type Err = InvalidPhc;

    fn from_str(text: &str) -> Result<Self, InvalidPhc> {
        let hash = PasswordHash::new(text).map_err(|_| InvalidPhc::Syntax)?;
        if hash.algorithm != ARGON2ID_IDENT || hash.version != Some(19) {
            return Err(InvalidPhc::Algorithm);
        }
        if hash.salt.is_none() || hash.hash.is_none() {
            return Err(InvalidPhc::Incomplete);
        }
        let params = Params::try_from(&hash).map_err(|_| InvalidPhc::Syntax)?;
        if params.m_cost() > MAX_MEMORY_KIB || params.t_cost() > MAX_ITERATIONS || params.p_cost() > MAX_LANES
        {
            return Err(InvalidPhc::Cost);
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Phc {
    type Error = InvalidPhc;

    fn try_from(text: String) -> Result<Self, InvalidPhc> {
        text.parse()
    }
}

impl From<Phc> for String {
    fn from(phc: Phc) -> Self {
        phc.0
    }
}

impl fmt::Debug for Phc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hash]")
    }
}

/// Why a text cannot become a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
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
pub fn check_length(min_length: usize, password: &Secret) -> Result<(), Unusable> {
    // That there is none is told by `hash`.
    let length = password.expose().chars().count();
    if (1..min_length).contains(&length) { Err(Unusable::TooShort(min_length)) } else { Ok(()) }
}

/// Hashes a new password. Takes the time that argon2 takes: not for the runtime's threads.
///
/// # Errors
/// No one could log in with the password.
pub fn hash(params: &Params, password: &Secret) -> Result<Phc, Unusable> {
    let text = password.expose();
    if text.is_empty() {
        return Err(Unusable::Empty);
    }
    if text.len() > MAX_PASSWORD {
        return Err(Unusable::TooLong);
    }
    if text.chars().any(char::is_control) {
        return Err(Unusable::Control);
    }
    Ok(Phc(compute(params, text.as_bytes())))
}

fn compute(params: &Params, password: &[u8]) -> String {
    let argon2 = Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params.clone());
    let hash: PasswordHash = argon2
        .hash_password(password)
        // The parameters are checked, the salt is of the recommended length, the password is far
        // below 4 GiB, and a machine without randomness or memory cannot serve passwords.
        .expect("argon2 with checked parameters");
    hash.to_string()
}

fn matches(password: &[u8], hash: &Phc) -> bool {
    // A `Phc` has been parsed before. The verifier compares in constant time.
    PasswordHash::new(&hash.0).is_ok_and(|hash| Argon2::default().verify_password(password, &hash).is_ok())
}

/// Too many logins wait for a computation already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many passwords are waiting to be verified")]
pub struct Busy;

/// Verifies and hashes passwords on threads of their own.
pub struct Passwords {
    params: Params,
    min_length: usize,
    /// A hash of a random password with the parameters of new hashes.
    dummy: Phc,
    /// One for each computation that runs.
    running: Arc<Semaphore>,
    /// One for each computation that runs or waits.
    admitted: Arc<Semaphore>,
}

impl Passwords {
    /// Computes one hash: not for the runtime's threads.
    pub fn new(limits: &PasswordLimits) -> Self {
        let waiting = limits.waiting.min(Semaphore::MAX_PERMITS - limits.at_once.min(1 << 16));
        Self {
            dummy: Phc(compute(&limits.params, &rand::random::<[u8; 32]>())),
            params: limits.params.clone(),
            min_length: limits.min_length,
            running: Arc::new(Semaphore::new(limits.at_once.min(1 << 16))),
            admitted: Arc::new(Semaphore::new(limits.at_once.min(1 << 16) + waiting)),
        }
    }

    /// Whether `password` is the one of `hash`. Without a hash the answer is no, at the same cost.
    ///
    /// # Errors
    /// Too many logins wait already.
    pub async fn verify(&self, password: &Secret, hash: Option<&Phc>) -> Result<bool, Busy> {
        let known = hash.is_some() && password.expose().len() <= MAX_PASSWORD;
        let hash = if known { hash } else { None }.unwrap_or(&self.dummy).clone();
        let password = password.clone();
        self.compute(move || {
            let start = Instant::now();
            let right = matches(password.expose().as_bytes(), &hash);
            metrics::verified(start.elapsed());
            right && known
        })
        .await
    }

    /// Hashes a new password.
    ///
    /// # Errors
    /// Too many logins wait already, or (within) the password is too short, or no one could log in with it.
    pub async fn hash(&self, password: &Secret) -> Result<Result<Phc, Unusable>, Busy> {
        if let Err(unusable) = check_length(self.min_length, password) {
            return Ok(Err(unusable));
        }
        let (params, password) = (self.params.clone(), password.clone());
        self.compute(move || hash(&params, &password)).await
    }

    async fn compute<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Busy> {
        let admitted = Arc::clone(&self.admitted).try_acquire_owned().map_err(|_| Busy)?;
        // The semaphore is never closed.
        let running = Arc::clone(&self.running).acquire_owned().await.map_err(|_| Busy)?;
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
                Err(_) => Err(Busy),
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

    fn passwords(at_once: usize, waiting: usize) -> Passwords {
        Passwords::new(&PasswordLimits { params: cheap(), min_length: 4, at_once, waiting })
    }

    #[test]
    fn only_argon2id_of_bounded_cost_is_a_hash() {
        let good = compute(&cheap(), b"x");
        assert!(good.parse::<Phc>().is_ok());
        for (text, why) in [
            ("secret".to_owned(), InvalidPhc::Syntax),
            (String::new(), InvalidPhc::Syntax),
            (good.replace("argon2id", "argon2i"), InvalidPhc::Algorithm),
            (good.replace("v=19", "v=16"), InvalidPhc::Algorithm),
            (good.replace("$v=19", ""), InvalidPhc::Algorithm),
            ("$2b$12$abcdefghijklmnopqrstuv".to_owned(), InvalidPhc::Syntax),
            ("$scrypt$ln=16,r=8,p=1$aM15713r3Xsvxbi31lqr1Q".to_owned(), InvalidPhc::Algorithm),
            (good.rsplit_once('$').unwrap().0.to_owned(), InvalidPhc::Incomplete),
            (good.replace("m=64", "m=1048577"), InvalidPhc::Cost),
            (good.replace("t=1", "t=65"), InvalidPhc::Cost),
            (good.replace("m=64", "m=0"), InvalidPhc::Syntax),
        ] {
            assert_eq!(text.parse::<Phc>().unwrap_err(), why, "{text}");
        }
        assert_eq!(format!("{:?}", good.parse::<Phc>().unwrap()), "[hash]");
    }

    #[test]
    fn what_nobody_could_log_in_with_is_no_password() {
        for (text, why) in [
            ("", Unusable::Empty),
            ("a\r\nb", Unusable::Control),
            ("a\0", Unusable::Control),
            (&"x".repeat(1025), Unusable::TooLong),
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
            assert_eq!(refused.unwrap_err(), Unusable::TooShort(4), "{short}");
        }
        assert_eq!(passwords.hash(&Secret::new("")).await.unwrap().unwrap_err(), Unusable::Empty);
        assert!(passwords.hash(&Secret::new("äöüß")).await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn right_wrong_unknown_and_oversized() {
        let passwords = passwords(2, 2);
        let right = Secret::new("hunter2");
        let hash = passwords.hash(&right).await.unwrap().unwrap();
        assert_eq!(passwords.verify(&right, Some(&hash)).await, Ok(true));
        assert_eq!(passwords.verify(&Secret::new("hunter3"), Some(&hash)).await, Ok(false));
        assert_eq!(passwords.verify(&right, None).await, Ok(false));
        assert_eq!(passwords.verify(&Secret::new("x".repeat(2000)), Some(&hash)).await, Ok(false));
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
        assert_eq!(passwords.compute(|| true).await, Err(Busy));
        release.send(()).unwrap();
        assert_eq!(running.await.unwrap(), Ok(true));
        assert_eq!(waiting.await.unwrap(), Ok(true));
        assert_eq!(passwords.compute(|| true).await, Ok(true));
    }
}
