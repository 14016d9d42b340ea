//! Checksums of files: HASH, XCRC, XMD5, XSHA1, XSHA256, XSHA512.

use std::fs::File;
use std::ops::Range;
use std::time::Instant;

use md5::Md5;
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};

use super::FileError;
use crate::protocol::command::Algorithm;
use crate::work::{pieces::each_piece, progress::Progress};

/// Reason for a failed checksum.
#[derive(Debug, thiserror::Error)]
pub enum ChecksumError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("the checksum took longer than checksum_timeout")]
    TooLong,
}

/// Returns the checksum of the bytes of `range` in lower-case hexadecimal. A range that exceeds the
/// file ends with the file.
///
/// # Errors
/// [`ChecksumError::TooLong`] once `deadline` has passed, [`FileError::Cancelled`], or any error of the
/// kernel.
pub fn checksum(
    file: &File,
    algorithm: Algorithm,
    range: Range<u64>,
    progress: &Progress,
    deadline: Option<Instant>,
) -> Result<String, ChecksumError> {
    match algorithm {
        Algorithm::Crc32 => {
            let mut hasher = crc32fast::Hasher::new();
            read_pieces(file, range, progress, deadline, |piece| hasher.update(piece))?;
            Ok(format!("{:08x}", hasher.finalize()))
        }
        Algorithm::Md5 => digest::<Md5>(file, range, progress, deadline),
        Algorithm::Sha1 => digest::<Sha1>(file, range, progress, deadline),
        Algorithm::Sha256 => digest::<Sha256>(file, range, progress, deadline),
        Algorithm::Sha512 => digest::<Sha512>(file, range, progress, deadline),
    }
}

fn digest<D: Digest>(
    file: &File,
    range: Range<u64>,
    progress: &Progress,
    deadline: Option<Instant>,
) -> Result<String, ChecksumError> {
    let mut hasher = D::new();
    read_pieces(file, range, progress, deadline, |piece| hasher.update(piece))?;
    Ok(hex::encode(&hasher.finalize()[..]))
}

/// Hands the bytes of `range` to `consume`, in pieces.
fn read_pieces(
    file: &File,
    range: Range<u64>,
    progress: &Progress,
    deadline: Option<Instant>,
    mut consume: impl FnMut(&[u8]),
) -> Result<(), ChecksumError> {
    let read_error = |error| ChecksumError::File(FileError::from(error));
    each_piece(file, range, read_error, |piece| {
        if progress.is_cancelled() {
            return Err(FileError::Cancelled.into());
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(ChecksumError::TooLong);
        }
        consume(piece);
        progress.add(piece.len() as u64);
        Ok(())
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    #[test]
    fn checksums_match_published_test_vectors() {
        // RFC 1321 A.5, RFC 3174, FIPS 180-4 ("abc"); CRC-32 check value of "123456789".
        for (algorithm, content, sum) in [
            (Algorithm::Crc32, &b"123456789"[..], "cbf43926"),
            (Algorithm::Crc32, b"", "00000000"),
            (Algorithm::Md5, b"abc", "900150983cd24fb0d6963f7d28e17f72"),
            (Algorithm::Sha1, b"abc", "a9993e364706816aba3e25717850c26c9cd0d89d"),
            (Algorithm::Sha256, b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (
                Algorithm::Sha512,
                b"abc",
                "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                 2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
            ),
        ] {
            let end = content.len() as u64;
            let computed = checksum(&file(content), algorithm, 0..end, &Progress::default(), None);
            assert_eq!(computed.unwrap(), sum, "{algorithm:?}");
        }
    }

    #[test]
    fn range_beyond_the_end_stops_at_the_end_of_the_file() {
        let progress = Progress::default();
        let content = file(b"xx123456789");
        let sum = |range| checksum(&content, Algorithm::Crc32, range, &progress, None).unwrap();
        assert_eq!(sum(2..99), "cbf43926");
        assert_eq!(progress.transferred(), 9);
        assert_eq!(sum(2..2), "00000000");
        assert_eq!(sum(99..100), "00000000");
    }

    #[test]
    fn cancelled_checksum_fails() {
        let progress = Progress::default();
        progress.cancel();
        let ended = checksum(&file(b"abc"), Algorithm::Md5, 0..3, &progress, None);
        assert!(matches!(ended, Err(ChecksumError::File(FileError::Cancelled))));
    }

    #[test]
    fn checksum_fails_after_its_deadline() {
        let passed = Some(Instant::now());
        let ended = checksum(&file(b"abc"), Algorithm::Md5, 0..3, &Progress::default(), passed);
        assert!(matches!(ended, Err(ChecksumError::TooLong)));
    }
}
