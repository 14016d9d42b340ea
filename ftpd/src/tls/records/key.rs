//! The key of one direction: encrypts and decrypts single records.

use std::ops::Range;

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};
use rustls::ConnectionTrafficSecrets;

use super::{HEADER, LONGEST_CONTENT, RecordError, Secrets, Version, WIRE_VERSION, content};

/// Length of an authentication tag in bytes; the same for all AEADs of TLS.
const TAG: usize = 16;

/// Bytes of the nonce that AES-GCM sends with each TLS 1.2 record (RFC 5288 section 3).
const EXPLICIT: usize = 8;

/// Maximum full-size records that one AES-GCM key may encrypt (RFC 8446 section 5.5; rustls uses the same
/// number). The limit of ChaCha20-Poly1305 is out of reach.
const AES_GCM_RECORDS: u64 = 1 << 24;

/// Type, version and length of a record.
type RecordHeader = [u8; HEADER];

pub(super) struct RecordKey {
    aead: LessSafeKey,
    iv: [u8; NONCE_LEN],
    layout: RecordLayout,
    /// Sequence number of the next record.
    sequence: u64,
    /// From this sequence number on, the key must not encrypt data.
    limit: u64,
}

/// Layout of a record's body.

#[derive(Clone, Copy, PartialEq, Eq)]
enum RecordLayout {
    Tls13,
    /// ChaCha20-Poly1305 (RFC 7905).
    Tls12,
    /// AES-GCM (RFC 5288).
    Tls12Explicit,
}

impl RecordKey {
    pub(super) fn new(version: Version, secrets: &Secrets) -> Result<Self, rustls::Error> {
        type Aead = (&'static Algorithm, RecordLayout, u64);
        const CHACHA: Aead = (&CHACHA20_POLY1305, RecordLayout::Tls12, u64::MAX);
        let ((algorithm, layout, limit), key, iv): (Aead, _, _) = match &secrets.keys {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => {
                ((&AES_128_GCM, RecordLayout::Tls12Explicit, AES_GCM_RECORDS), key, iv)
            }
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => {
                ((&AES_256_GCM, RecordLayout::Tls12Explicit, AES_GCM_RECORDS), key, iv)
            }
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (CHACHA, key, iv),
            _ => return Err(rustls::Error::General("unsupported cipher suite".to_owned())),
        };
        let wrong = |_| rustls::Error::General("wrong key length".to_owned());
        let aead = LessSafeKey::new(UnboundKey::new(algorithm, key.as_ref()).map_err(wrong)?);
        let iv = iv.as_ref().try_into().map_err(|_| rustls::Error::General("wrong IV length".to_owned()))?;
        let layout = if version == Version::Tls13 { RecordLayout::Tls13 } else { layout };
        Ok(Self { aead, iv, layout, sequence: secrets.sequence, limit })
    }

    pub(super) fn is_used_up(&self) -> bool {
        self.sequence >= self.limit
    }

    /// Encrypts a record of `content`, at most [`LONGEST_CONTENT`] bytes, into `wire`. Returns the record's
    /// length.
    pub(super) fn seal(&mut self, kind: u8, content: &[u8], wire: &mut [u8]) -> Result<usize, RecordError> {
        // Two records past the limit are allowed, for the KeyUpdate or the final alert.
        if self.sequence >= self.limit.saturating_add(2) {
            return Err(RecordError::KeyUsedUp);
        }
        let nonce = self.nonce(self.sequence);
        let (explicit, inner): (&[u8], &[u8]) = match self.layout {
            RecordLayout::Tls13 => (&[], &[kind]),
            RecordLayout::Tls12 => (&[], &[]),
            RecordLayout::Tls12Explicit => (&nonce[NONCE_LEN - EXPLICIT..], &[]),
        };
        let after = inner.len() + TAG;
        let length = explicit.len() + content.len() + after;
        let outer = if self.layout == RecordLayout::Tls13 { content::DATA } else { kind };
        let header = header(outer, length);
        let (head, wire) = wire.split_at_mut(HEADER);
        head.copy_from_slice(&header);
        let (head, wire) = wire.split_at_mut(explicit.len());
        head.copy_from_slice(explicit);
        let (cipher, wire) = wire.split_at_mut(content.len());
        let (aad, aad_length) = self.associated(header, content.len());
        self.aead
            .seal_out_of_place_scatter(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(&aad[..aad_length]),
                content,
                cipher,
                inner,
                &mut wire[..after],
            )
            // Fails only if a length is wrong.
            .map_err(|_| RecordError::TooLong)?;
        self.sequence += 1;
        Ok(HEADER + length)
    }

    /// Range of the encrypted content in a record's body of `body` bytes.
    ///
    /// # Errors
    /// The body is too short or too long.
    pub(super) fn content(&self, body: usize) -> Result<Range<usize>, RecordError> {
        let start = if self.layout == RecordLayout::Tls12Explicit { EXPLICIT } else { 0 };
        let end = body.checked_sub(TAG).filter(|end| *end >= start).ok_or(RecordError::Forged)?;
        if end - start > self.longest() { Err(RecordError::TooLong) } else { Ok(start..end) }
    }

    /// Longest content in bytes. With TLS 1.3 it includes the type and the padding.
    fn longest(&self) -> usize {
        if self.layout == RecordLayout::Tls13 { LONGEST_CONTENT + 1 } else { LONGEST_CONTENT }
    }

    /// Decrypts a record into `content`, which must have the length of [`Self::content`]. Returns the type
    /// and the number of bytes without padding.
    pub(super) fn open_to(
        &mut self,
        header: RecordHeader,
        body: &[u8],
        content: &mut [u8],
    ) -> Result<(u8, usize), RecordError> {
        let range = self.content(body.len())?;
        let nonce = Nonce::assume_unique_for_key(self.opening_nonce(body));
        let (aad, aad_length) = self.associated(header, range.len());
        let (cipher, tag) = body[range.start..].split_at(range.len());
        self.aead
            .open_separate_gather(nonce, Aad::from(&aad[..aad_length]), cipher, tag, content)
            .map_err(|_| RecordError::Forged)?;
        self.opened(header, content)
    }

    /// Decrypts a record in place. Returns the type and the range of the content in `body`.
    pub(super) fn open_in_place(
        &mut self,
        header: RecordHeader,
        body: &mut [u8],
    ) -> Result<(u8, Range<usize>), RecordError> {
        let range = self.content(body.len())?;
        let nonce = Nonce::assume_unique_for_key(self.opening_nonce(body));
        let (aad, aad_length) = self.associated(header, range.len());
        let content = self
            .aead
            .open_in_place(nonce, Aad::from(&aad[..aad_length]), &mut body[range.start..])
            .map_err(|_| RecordError::Forged)?;
        let (kind, length) = self.opened(header, content)?;
        Ok((kind, range.start..range.start + length))
    }

    fn opened(&mut self, header: RecordHeader, content: &[u8]) -> Result<(u8, usize), RecordError> {
        // Does not wrap in practice: 2^64 records take centuries.
        self.sequence = self.sequence.wrapping_add(1);
        match self.layout {
            RecordLayout::Tls12 | RecordLayout::Tls12Explicit => Ok((header[0], content.len())),
            // The type is the last nonzero byte; padding follows it (RFC 8446 section 5.4).
            RecordLayout::Tls13 => match content.iter().rposition(|byte| *byte != 0) {
                Some(at) => Ok((content[at], at)),
                None => Err(RecordError::Unexpected),
            },
        }
    }

    fn nonce(&self, sequence: u64) -> [u8; NONCE_LEN] {
        let mut nonce = self.iv;
        for (byte, with) in nonce[NONCE_LEN - EXPLICIT..].iter_mut().zip(sequence.to_be_bytes()) {
            *byte ^= with;
        }
        nonce
    }

    fn opening_nonce(&self, body: &[u8]) -> [u8; NONCE_LEN] {
        if self.layout != RecordLayout::Tls12Explicit {
            return self.nonce(self.sequence);
        }
        let mut nonce = self.iv;
        nonce[NONCE_LEN - EXPLICIT..].copy_from_slice(&body[..EXPLICIT]);
        nonce
    }

    /// The additional authenticated data and its length: the header (TLS 1.3, RFC 8446 section 5.2), or the
    /// sequence number and the header with the plaintext length (TLS 1.2, RFC 5246 section 6.2.3.3).
    fn associated(&self, header: RecordHeader, content: usize) -> ([u8; 8 + HEADER], usize) {
        let mut aad = [0; 8 + HEADER];
        if self.layout == RecordLayout::Tls13 {
            aad[..HEADER].copy_from_slice(&header);
            return (aad, HEADER);
        }
        aad[..8].copy_from_slice(&self.sequence.to_be_bytes());
        aad[8..].copy_from_slice(&self::header(header[0], content));
        (aad, 8 + HEADER)
    }
}

fn header(kind: u8, length: usize) -> RecordHeader {
    debug_assert!(u16::try_from(length).is_ok(), "at most the size of a record");
    let [high, low] = (length as u16).to_be_bytes();
    [kind, WIRE_VERSION[0], WIRE_VERSION[1], high, low]
}
