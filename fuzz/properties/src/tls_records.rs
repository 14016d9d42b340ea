//! Property of the TLS records that a client sends on a data connection.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ftpd::tls::records::{KeySchedule, OpenResult, Records, SEALED_BATCH, Secrets, Version};
use rustls::{ConnectionTrafficSecrets, crypto::cipher::Iv};

/// The key of both directions. It stays the same after a KeyUpdate.
const KEY: [u8; 32] = [7; 32];

/// A key schedule that always returns [`KEY`].
struct OneKey;

fn secrets() -> Secrets {
    let keys = ConnectionTrafficSecrets::Aes256Gcm { key: KEY.into(), iv: Iv::from([0; NONCE_LEN]) };
    Secrets { keys, sequence: 0 }
}

impl KeySchedule for OneKey {
    fn next_sending(&mut self) -> Result<ConnectionTrafficSecrets, rustls::Error> {
        Ok(secrets().keys)
    }

    fn next_receiving(&mut self) -> Result<ConnectionTrafficSecrets, rustls::Error> {
        Ok(secrets().keys)
    }
}

fn records(version: Version) -> Records {
    Records::new(version, secrets(), &secrets(), Box::new(OneKey), Vec::new())
        .expect("the cipher suite is supported")
}

/// Property of received records. The input is used as it is, and as the contents of correctly encrypted
/// records: two bytes give the type and the length of each record.
///
/// * The result does not depend on how the bytes are divided into reads.
/// * No more bytes come out than go in.
/// * After an end or an error, the result stays the same.
pub fn tls_records(input: &[u8]) {
    for version in [Version::Tls12, Version::Tls13] {
        check(version, input);
        let wire = seal(version, input);
        check(version, &wire);
        if let Some((first, _)) = input.split_first() {
            check(version, &wire[..wire.len() - usize::from(*first).min(wire.len())]);
        }
    }
}

fn check(version: Version, wire: &[u8]) {
    let whole = open(version, wire, usize::MAX, 1 << 17);
    assert!(whole.0.len() <= wire.len());
    assert_eq!(whole, open(version, wire, 1 + wire.len() / 7, 100));
}

/// Decrypts `wire`, of which at most `arrives` bytes arrive at once, into a buffer of `wanted` bytes.
/// Returns the data and a description of the end.
fn open(version: Version, mut wire: &[u8], arrives: usize, wanted: usize) -> (Vec<u8>, String) {
    let mut records = records(version);
    let (mut data, mut opened) = (vec![0; wanted], Vec::new());
    let mut answer = vec![0; SEALED_BATCH];
    let end = loop {
        match records.open(&mut data) {
            Ok(OpenResult::Data(length)) => {
                assert!(length > 0);
                opened.extend_from_slice(&data[..length]);
            }
            Ok(OpenResult::NeedsMore) if !wire.is_empty() => {
                let room = records.room();
                let length = wire.len().min(room.len()).min(arrives);
                assert!(length > 0);
                room[..length].copy_from_slice(&wire[..length]);
                records.received(length);
                wire = &wire[length..];
            }
            Ok(end) => {
                assert_eq!(records.open(&mut data).expect("no new bytes arrived"), end);
                break format!("{end:?} {}", records.is_within_record() && end == OpenResult::NeedsMore);
            }
            Err(fault) => {
                assert!(records.open(&mut data).is_err());
                records.seal_alert(&fault, &mut answer);
                break fault.to_string();
            }
        }
        if records.owes_answer() {
            assert!(records.seal(&[], &mut answer).expect("the record fits").length > 0);
            assert!(!records.owes_answer());
        }
    };
    (opened, end)
}

/// Encrypts the pieces of `input` as records (RFC 8446 section 5.2, RFC 5288 section 3).
fn seal(version: Version, mut input: &[u8]) -> Vec<u8> {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &KEY).expect("the key has 32 bytes"));
    let (mut wire, mut sequence) = (Vec::new(), 0_u64);
    while let [kind, length, rest @ ..] = input {
        let content;
        (content, input) = rest.split_at(rest.len().min(usize::from(*length)));
        let kind = 20 + kind % 5;
        let mut sealed = content.to_vec();
        let mut nonce = [0; NONCE_LEN];
        nonce[NONCE_LEN - 8..].copy_from_slice(&sequence.to_be_bytes());
        let (header, associated) = match version {
            Version::Tls13 => {
                sealed.push(kind);
                let header = header(23, sealed.len() + 16).to_vec();
                (header.clone(), header)
            }
            Version::Tls12 => {
                let associated = [&sequence.to_be_bytes()[..], &header(kind, content.len())].concat();
                let header = header(kind, 8 + content.len() + 16);
                ([&header[..], &sequence.to_be_bytes()].concat(), associated)
            }
        };
        let nonce = Nonce::assume_unique_for_key(nonce);
        key.seal_in_place_append_tag(nonce, Aad::from(associated), &mut sealed)
            .expect("the record has a valid length");
        wire.extend_from_slice(&header);
        wire.extend_from_slice(&sealed);
        // An accepted KeyUpdate starts a new key, whose sequence numbers begin at 0.
        let is_update = version == Version::Tls13 && kind == 22 && matches!(content, [24, 0, 0, 1, 0 | 1]);
        sequence = if is_update { 0 } else { sequence + 1 };
    }
    wire
}

fn header(kind: u8, length: usize) -> [u8; 5] {
    // A piece has at most 255 bytes, so the length fits.
    let [high, low] = (length as u16).to_be_bytes();
    [kind, 3, 3, high, low]
}
