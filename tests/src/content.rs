//! File contents for transfers, and their hashes.

use sha2::{Digest, Sha256};

use crate::random::Random;

/// `length` pseudo-random bytes, always the same for the same `seed`.
pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut content = Vec::with_capacity(length + 8);
    while content.len() < length {
        content.extend_from_slice(&random.number().to_le_bytes());
    }
    content.truncate(length);
    content
}

/// SHA-256 in hexadecimal. Comparing hashes keeps failure messages short.
pub fn sha256(content: impl AsRef<[u8]>) -> String {
    hex::encode(Sha256::digest(content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_content_and_another_seed_another() {
        assert_eq!(bytes(1, 1001), bytes(1, 2000)[..1001]);
        assert_ne!(bytes(1, 1000), bytes(2, 1000));
        assert_eq!(sha256("abc")[..8], *"ba7816bf");
    }
}
