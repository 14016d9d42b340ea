//! The key of one direction, and how it makes and opens a record.

use std::ops::Range;

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};
use rustls::ConnectionTrafficSecrets;

use super::{Fault, HEADER, LONGEST_CONTENT, Secrets, Version, WIRE_VERSION, content};

/// All AEADs of TLS have tags of this size.
const TAG: usize = 16;

/// AES-GCM with TLS 1.2 sends 8 bytes of its nonce (RFC 5288 section 3).
const EXPLICIT: usize = 8;

/// So many records of full size may AES-GCM seal with one key (RFC 8446 section 5.5, and the figure that
/// rustls uses). ChaCha20-Poly1305 has no limit that matters.
const AES_GCM_RECORDS: u64 = 1 << 24;

/// Of a record: type, version, length.
type Header = [u8; HEADER];

pub(super) struct Key {
    aead: LessSafeKey,
    iv: [u8; NONCE_LEN],
    shape: Shape,
    /// Of the next record.
    sequence: u64,
    /// From here on the key must not seal.
    limit: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Tls13,
    /// ChaCha20-Poly1305 (RFC 7905).
    Tls12,
    /// AES-GCM (RFC 5288).
    Tls12Explicit,
}

impl Key {
    pub(super) fn new(version: Version, secrets: &Secrets) -> Result<Self, rustls::Error> {
        type Aead = (&'static Algorithm, Shape, u64);
        const CHACHA: Aead = (&CHACHA20_POLY1305, Shape::Tls12, u64::MAX);
        let ((algorithm, shape, limit), key, iv): (Aead, _, _) = match &secrets.keys {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => {
                ((&AES_128_GCM, Shape::Tls12Explicit, AES_GCM_RECORDS), key, iv)
            }
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => {
                ((&AES_256_GCM, Shape::Tls12Explicit, AES_GCM_RECORDS), key, iv)
            }
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (CHACHA, key, iv),
            _ => return Err(rustls::Error::General("a cipher suite without a record layer".to_owned())),
        };
        let wrong = |_| rustls::Error::General("a key of another length".to_owned());
        let aead = LessSafeKey::new(UnboundKey::new(algorithm, key.as_ref()).map_err(wrong)?);
        let iv = iv.as_ref().try_into().map_err(|_| rustls::Error::General("a short IV".to_owned()))?;
        let shape = if version == Version::Tls13 { Shape::Tls13 } else { shape };
        Ok(Self { aead, iv, shape, sequence: secrets.sequence, limit })
    }

    pub(super) fn is_used_up(&self) -> bool {
        self.sequence >= self.limit
    }

    /// Makes a record of `content`, at most [`LONGEST_CONTENT`]. Answers its length.
    pub(super) fn seal(&mut self, kind: u8, content: &[u8], wire: &mut [u8]) -> Result<usize, Fault> {
        // Two past the limit are for the alert that ends the connection, or the KeyUpdate.
        if self.sequence >= self.limit.saturating_add(2) {
            return Err(Fault::KeyUsedUp);
        }
        let nonce = self.nonce(self.sequence);
        let (explicit, inner): (&[u8], &[u8]) = match self.shape {
            Shape::Tls13 => (&[], &[kind]),
            Shape::Tls12 => (&[], &[]),
            Shape::Tls12Explicit => (&nonce[NONCE_LEN - EXPLICIT..], &[]),
        };
        let after = inner.len() + TAG;
        let length = explicit.len() + content.len() + after;
        let outer = if self.shape == Shape::Tls13 { content::DATA } else { kind };
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
            // Only for wrong lengths.
            .map_err(|_| Fault::TooLong)?;
        self.sequence += 1;
        Ok(HEADER + length)
    }

    /// Where in a record's body the sealed content is.
    ///
    /// # Errors
    /// There can be none.
    pub(super) fn content(&self, body: usize) -> Result<Range<usize>, Fault> {
        let start = if self.shape == Shape::Tls12Explicit { EXPLICIT } else { 0 };
        let end = body.checked_sub(TAG).filter(|end| *end >= start).ok_or(Fault::Forged)?;
        if end - start > self.longest() { Err(Fault::TooLong) } else { Ok(start..end) }
    }

    /// The most bytes that are ever sealed: with TLS 1.3 the type is among them, and padding.
    fn longest(&self) -> usize {
        if self.shape == Shape::Tls13 { LONGEST_CONTENT + 1 } else { LONGEST_CONTENT }
    }

    /// Opens a record to `content`, which is as long as [`Self::content`] says. Answers the type and
    /// how much of it is content.
    pub(super) fn open_to(
        &mut self,
        header: Header,
        body: &[u8],
        content: &mut [u8],
    ) -> Result<(u8, usize), Fault> {
        let range = self.content(body.len())?;
        let nonce = Nonce::assume_unique_for_key(self.opening_nonce(body));
        let (aad, aad_length) = self.associated(header, range.len());
        let (cipher, tag) = body[range.start..].split_at(range.len());
        self.aead
            .open_separate_gather(nonce, Aad::from(&aad[..aad_length]), cipher, tag, content)
            .map_err(|_| Fault::Forged)?;
        self.opened(header, content)
    }

    /// Opens a record where it is. Answers the type and where in `body` the content is.
    pub(super) fn open_in_place(
        &mut self,
        header: Header,
        body: &mut [u8],
    ) -> Result<(u8, Range<usize>), Fault> {
        let range = self.content(body.len())?;
        let nonce = Nonce::assume_unique_for_key(self.opening_nonce(body));
        let (aad, aad_length) = self.associated(header, range.len());
        let content = self
            .aead
            .open_in_place(nonce, Aad::from(&aad[..aad_length]), &mut body[range.start..])
            .map_err(|_| Fault::Forged)?;
        let (kind, length) = self.opened(header, content)?;
        Ok((kind, range.start..range.start + length))
    }

    fn opened(&mut self, header: Header, content: &[u8]) -> Result<(u8, usize), Fault> {
        // 2^64 records take centuries.
        self.sequence = self.sequence.wrapping_add(1);
        match self.shape {
            Shape::Tls12 | Shape::Tls12Explicit => Ok((header[0], content.len())),
            // The type is the last byte that is not zero (RFC 8446 section 5.4).
            Shape::Tls13 => match content.iter().rposition(|byte| *byte != 0) {
                Some(at) => Ok((content[at], at)),
                None => Err(Fault::Unexpected),
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
        if self.shape != Shape::Tls12Explicit {
            return self.nonce(self.sequence);
        }
        let mut nonce = self.iv;
        nonce[NONCE_LEN - EXPLICIT..].copy_from_slice(&body[..EXPLICIT]);
        nonce
    }

    /// What is authenticated beside the content: the header as it is (RFC 8446 section 5.2), or its
    /// parts with the sequence number (RFC 5246 section 6.2.3.3).
    fn associated(&self, header: Header, content: usize) -> ([u8; 8 + HEADER], usize) {
        let mut aad = [0; 8 + HEADER];
        if self.shape == Shape::Tls13 {
            aad[..HEADER].copy_from_slice(&header);
            return (aad, HEADER);
        }
        aad[..8].copy_from_slice(&self.sequence.to_be_bytes());
        aad[8..].copy_from_slice(&self::header(header[0], content));
        (aad, 8 + HEADER)
    }
}

fn header(kind: u8, length: usize) -> Header {
    // Of at most a record's size, so it fits.
    let [high, low] = (length as u16).to_be_bytes();
    [kind, WIRE_VERSION[0], WIRE_VERSION[1], high, low]
}
