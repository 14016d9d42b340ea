//! Password hashes: argon2id in the form of PHC strings, for authd's users and those of a standalone node.

use std::{fmt, str::FromStr};

use argon2::{
    ARGON2ID_IDENT, Argon2, Block, Params, PasswordHash, PasswordHasher, PasswordVerifier,
    password_hash::phc::Output,
};
use serde::{Deserialize, Serialize};

/// Maximum length of a password in bytes of UTF-8.
pub const MAX_PASSWORD: usize = 1024;

/// Maximum length of a user name in bytes: 64 characters.
pub const MAX_USER_NAME: usize = 256;

// Limits of the cost of a stored hash. Hashes come from operators, but a mistake must not make a login take
// minutes or exhaust the memory.

/// Maximum memory of a hash in KiB.
pub const MAX_MEMORY_KIB: u32 = 1024 * 1024;
/// Maximum number of passes over the memory.
pub const MAX_ITERATIONS: u32 = 64;
const MAX_LANES: u32 = 16;

/// An argon2id hash with its salt and cost, as a PHC string. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Phc(String);

/// The reason why a text is not a [`Phc`]. The error does not repeat the text, which may be a password.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPhc {
    #[error(
        "the password hash is not a PHC string ($argon2id$v=19$m=…,t=…,p=…$SALT$HASH); \
         `authd hash-password` makes one"
    )]
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

    /// Algorithm, version and parameters as text: they determine the duration of a computation.
    pub fn cost(&self) -> &str {
        // A PHC string with salt and hash, which every `Phc` has, ends with `$SALT$HASH`.
        let before_hash = self.0.rfind('$').unwrap_or(self.0.len());
        let before_salt = self.0[..before_hash].rfind('$').unwrap_or(before_hash);
        &self.0[..before_salt]
    }

    /// Returns true if a computation takes as long as that of `other`.
    pub fn has_cost_of(&self, other: &Self) -> bool {
        self.cost() == other.cost()
    }

    /// A hash of the same cost with random salt and output, which no known password matches.
    #[must_use]
    pub fn decoy(&self) -> Self {
        // Hexadecimal digits are base64 digits, and a multiple of four of them leaves no bits over.
        let [salt, output] = [rand::random::<[u8; 12]>().to_vec(), rand::random::<[u8; 22]>().to_vec()];
        Self(format!("{}${}${}", self.cost(), hex::encode(salt), hex::encode(output)))
    }

    /// Hashes a password with a new salt. Takes long: not for threads of the runtime.
    ///
    /// # Panics
    /// The kernel gives no random bytes or no memory.
    pub fn compute(params: &Params, password: &[u8]) -> Self {
        let argon2 = Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params.clone());
        let hash: PasswordHash = argon2
            .hash_password(password)
            // The parameters are checked, the salt has the recommended length, and the password is shorter
            // than 4 GiB.
            .expect("argon2 with checked parameters");
        Self(hash.to_string())
    }

    /// As [`Self::matches`], in memory that the caller keeps.
    pub fn matches_in(&self, memory: &mut HashMemory, password: &[u8]) -> bool {
        let Ok(hash) = PasswordHash::new(&self.0) else { return false };
        let (Ok(params), Some(salt), Some(wanted)) = (Params::try_from(&hash), hash.salt, hash.hash) else {
            return false;
        };
        let blocks = memory.blocks(params.block_count());
        let argon2 = Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
        let mut computed = vec![0; wanted.len()];
        let done = argon2.hash_password_into_with_memory(password, &salt, &mut computed, blocks);
        // `Output` compares in constant time.
        done.is_ok() && Output::new(&computed).is_ok_and(|computed| computed == wanted)
    }

    /// Returns true if this is the hash of `password`. Compares in constant time. As slow as
    /// [`Self::compute`].
    pub fn matches(&self, password: &[u8]) -> bool {
        // Parsing succeeds: `from_str` has checked the text.
        PasswordHash::new(&self.0)
            .is_ok_and(|hash| Argon2::default().verify_password(password, &hash).is_ok())
    }
}

/// The working memory of argon2, reused by the next computation. Memory that each computation allocated and
/// freed would stay in the allocator's arenas, one for each thread that ever computed a hash.
#[derive(Default)]
pub struct HashMemory(Vec<Block>);

impl HashMemory {
    fn blocks(&mut self, count: usize) -> &mut [Block] {
        if self.0.len() < count {
            self.0.resize(count, Block::new());
        }
        &mut self.0[..count]
    }

    /// Frees all but `kib` KiB, so that a single expensive hash does not keep its memory for ever.
    pub fn shrink_to(&mut self, kib: u32) {
        let kept = usize::try_from(kib).unwrap_or(usize::MAX);
        if self.0.len() > kept {
            self.0.truncate(kept);
            self.0.shrink_to_fit();
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn cheap() -> Params {
        Params::new(64, 1, 1, None).unwrap()
    }

    #[test]
    fn reused_memory_gives_the_same_results() {
        let mut memory = HashMemory::default();
        let large = Params::new(256, 2, 2, None).unwrap();
        for params in [cheap(), large, cheap()] {
            let hash = Phc::compute(&params, b"right");
            for (password, right) in [(&b"right"[..], true), (b"wrong", false), (b"", false)] {
                assert_eq!(hash.matches_in(&mut memory, password), right);
                assert_eq!(hash.matches(password), right);
            }
        }
        assert_eq!(memory.0.len(), 256);
        memory.shrink_to(64);
        assert_eq!(memory.0.capacity(), 64);
    }

    #[test]
    fn only_argon2id_hashes_of_limited_cost_are_accepted() {
        let good = Phc::compute(&cheap(), b"x").as_str().to_owned();
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
}
