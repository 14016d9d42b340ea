//! Tests of the record layer with rustls as the peer, and with peers that violate the protocol.

use std::{
    io::{Read, Write},
    sync::{Arc, LazyLock},
};

use proptest::prelude::*;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, SupportedCipherSuite,
    crypto::{CryptoProvider, aws_lc_rs, cipher::Iv},
    pki_types::{CertificateDer, PrivateKeyDer},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::*;
use crate::tls::handshake;

/// All cipher suites that a node may use.
static SUITES: LazyLock<Vec<SupportedCipherSuite>> =
    LazyLock::new(|| aws_lc_rs::default_provider().cipher_suites);

type Certificate = (CertificateDer<'static>, PrivateKeyDer<'static>);

fn certificate(algorithm: &'static rcgen::SignatureAlgorithm) -> Certificate {
    let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
    let parameters = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    let made = parameters.self_signed(&key).unwrap();
    (made.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).unwrap())
}

static ECDSA: LazyLock<Certificate> = LazyLock::new(|| certificate(&rcgen::PKCS_ECDSA_P256_SHA256));
static RSA: LazyLock<Certificate> = LazyLock::new(|| certificate(&rcgen::PKCS_RSA_SHA256));

/// Client and server after a handshake with `suite`.
fn connection(suite: SupportedCipherSuite) -> (ClientConnection, Records) {
    let (client, records, _) = connection_with(suite, b"");
    (client, records)
}

/// Same as [`connection`], but the client sends `early` with its last handshake message. Also returns the
/// bytes that the handshake did not read.
fn connection_with(suite: SupportedCipherSuite, early: &[u8]) -> (ClientConnection, Records, Vec<u8>) {
    let provider = CryptoProvider { cipher_suites: vec![suite], ..aws_lc_rs::default_provider() };
    let provider = Arc::new(provider);
    let is_rsa = format!("{:?}", suite.suite()).contains("_RSA_");
    let (certificate, key) = if is_rsa { &*RSA } else { &*ECDSA };
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[suite.version()])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[suite.version()])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key.clone_key())
        .unwrap();
    server.enable_secret_extraction = true;
    let connector = TlsConnector::from(Arc::new(client));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let name = "localhost".try_into().unwrap();
        let connecting =
            connector.connect_with(name, near, |client| client.writer().write_all(early).unwrap());
        let (stream, accepted) =
            tokio::join!(connecting, handshake::accept(&mut far, Arc::new(server), |_| ((), true)));
        let (mut near, mut client) = stream.unwrap().into_inner();
        near.shutdown().await.unwrap();
        let mut rest = Vec::new();
        far.read_to_end(&mut rest).await.unwrap();
        rest.extend(sent_by(&mut client));
        // The server sends nothing more: its tickets wait in the records.
        drop(far);
        let mut unasked = Vec::new();
        near.read_to_end(&mut unasked).await.unwrap();
        assert_eq!(unasked, b"", "{suite:?}");
        let mut records = accepted.unwrap().0;
        let tickets = records.take_tickets();
        assert_eq!(tickets.is_empty(), suite.tls13().is_none());
        assert_eq!(read(&mut client, &tickets), b"");
        (client, records, rest)
    })
}

/// The bytes that `client` has to send.
fn sent_by(client: &mut ClientConnection) -> Vec<u8> {
    let mut wire = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut wire).unwrap();
    }
    wire
}

/// The client's records of `content`.
fn send(client: &mut ClientConnection, content: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    for piece in content.chunks(60_000) {
        client.writer().write_all(piece).unwrap();
        wire.extend(sent_by(client));
    }
    wire
}

/// The data that the client reads from `wire`.
fn read(client: &mut ClientConnection, mut wire: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    while !wire.is_empty() {
        client.read_tls(&mut wire).unwrap();
        client.process_new_packets().unwrap();
        let mut part = [0; 40_000];
        while let Ok(length @ 1..) = client.reader().read(&mut part) {
            content.extend_from_slice(&part[..length]);
        }
    }
    content
}

/// Decrypts `wire`, which arrives in pieces of the lengths `arrive` and is read in pieces of the lengths
/// `want`. Returns the data and the last result.
fn open_all(
    records: &mut Records,
    mut wire: &[u8],
    arrive: &[usize],
    want: &[usize],
) -> (Vec<u8>, Result<OpenResult, RecordError>) {
    let (mut arrive, mut want) = (arrive.iter().cycle(), want.iter().cycle());
    let mut content = Vec::new();
    loop {
        let mut data = vec![0; *want.next().unwrap()];
        match records.open(&mut data) {
            Ok(OpenResult::Data(length)) => content.extend_from_slice(&data[..length]),
            Ok(OpenResult::NeedsMore) if !wire.is_empty() => {
                let room = records.room();
                let length = wire.len().min(room.len()).min(*arrive.next().unwrap());
                assert!(length > 0);
                room[..length].copy_from_slice(&wire[..length]);
                records.received(length);
                wire = &wire[length..];
            }
            end => return (content, end),
        }
    }
}

fn seal_all(records: &mut Records, mut content: &[u8]) -> Vec<u8> {
    let (mut all, mut wire) = (Vec::new(), vec![0; SEALED_BATCH]);
    while !content.is_empty() {
        let Sealed { taken, length } = records.seal(content, &mut wire).unwrap();
        all.extend_from_slice(&wire[..length]);
        content = &content[taken..];
    }
    all
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

#[test]
fn every_suite_carries_data_both_ways_and_close_notify() {
    assert!(SUITES.len() >= 9);
    for suite in &*SUITES {
        let (mut client, mut records) = connection(*suite);
        for size in [0, 1, 16_383, 16_384, 16_385, BATCH, 3 * BATCH + 17] {
            let content = bytes(size);
            let wire = send(&mut client, &content);
            let (opened, end) = open_all(&mut records, &wire, &[1 << 18], &[1 << 18]);
            assert!(
                opened == content && matches!(end, Ok(OpenResult::NeedsMore)),
                "{suite:?} {size} {end:?}"
            );
            let wire = seal_all(&mut records, &content);
            assert!(read(&mut client, &wire) == content, "{suite:?} {size}");
        }
        client.send_close_notify();
        let wire = sent_by(&mut client);
        assert!(matches!(open_all(&mut records, &wire, &[9], &[1]).1, Ok(OpenResult::Closed)));
        let mut wire = vec![0; SEALED_BATCH];
        let length = records.seal_close_notify(&mut wire).unwrap();
        client.read_tls(&mut &wire[..length]).unwrap();
        assert!(client.process_new_packets().unwrap().peer_has_closed());
    }
}

#[test]
fn data_sent_with_the_last_handshake_message_is_not_lost() {
    for suite in &*SUITES {
        let content = bytes(50_000);
        let (_, mut records, rest) = connection_with(*suite, &content);
        let (opened, end) = open_all(&mut records, &rest, &[1000], &[5000]);
        assert!(opened == content && matches!(end, Ok(OpenResult::NeedsMore)), "{suite:?} {end:?}");
    }
}

#[test]
fn a_key_update_of_the_peer_is_answered_with_ours() {
    for suite in SUITES.iter().filter(|suite| suite.tls13().is_some()) {
        let (mut client, mut records) = connection(*suite);
        for round in 0..40 {
            client.refresh_traffic_keys().unwrap();
            let wire = send(&mut client, b"after a KeyUpdate");
            assert_eq!(open_all(&mut records, &wire, &[7], &[100]).0, b"after a KeyUpdate", "{round}");
            assert!(records.owes_answer());
            assert_eq!(read(&mut client, &seal_all(&mut records, b"as well")), b"as well");
            assert!(!records.owes_answer());
        }
    }
}

fn suite() -> impl Strategy<Value = SupportedCipherSuite> {
    any::<prop::sample::Index>().prop_map(|index| *index.get(&SUITES))
}

fn lengths(longest: usize) -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![1..longest, 1..64_usize], 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn data_arrives_intact_however_records_and_reads_are_split(
        suite in suite(),
        size in 0..100_000_usize,
        fragment in 40..16_384_usize,
        arrive in lengths(40_000),
        want in lengths(40_000),
    ) {
        let (mut client, mut records) = connection(suite);
        client.set_buffer_limit(None);
        let content = bytes(size);
        let mut wire = Vec::new();
        for piece in content.chunks(fragment) {
            wire.extend(send(&mut client, piece));
        }
        client.send_close_notify();
        wire.extend(sent_by(&mut client));
        let (opened, end) = open_all(&mut records, &wire, &arrive, &want);
        prop_assert!(opened == content);
        prop_assert!(matches!(end, Ok(OpenResult::Closed)), "{:?}", end);
    }

    #[test]
    fn a_changed_byte_ends_the_connection_and_no_changed_data_is_returned(
        suite in suite(),
        at in any::<prop::sample::Index>(),
        change in 1..=255_u8,
        want in lengths(40_000),
    ) {
        let (mut client, mut records) = connection(suite);
        let content = bytes(40_000);
        let mut wire = send(&mut client, &content);
        client.send_close_notify();
        wire.extend(sent_by(&mut client));
        let at = at.index(wire.len());
        wire[at] ^= change;
        let (opened, end) = open_all(&mut records, &wire, &[usize::MAX], &want);
        prop_assert!(content.starts_with(&opened));
        // Of the three records, only those before the changed one may be returned.
        prop_assert!(opened.len() <= at);
        // A changed header may announce more bytes than arrive.
        match end {
            Err(_) => prop_assert!(records.open(&mut [0]).is_err()),
            Ok(OpenResult::NeedsMore) => prop_assert!(records.is_within_record()),
            Ok(other) => prop_assert!(false, "{:?}", other),
        }
    }
}

/// A sequence of keys that both sides of a test derive in the same way.
struct NumberedKeys(u8);

fn numbered_key(number: u8) -> ConnectionTrafficSecrets {
    ConnectionTrafficSecrets::Aes256Gcm { key: [number; 32].into(), iv: Iv::from([number; 12]) }
}

impl NumberedKeys {
    fn next(&mut self) -> Result<ConnectionTrafficSecrets, rustls::Error> {
        self.0 += 1;
        Ok(numbered_key(self.0))
    }
}

/// One sequence of keys for each direction.
struct Schedule(NumberedKeys, NumberedKeys);

impl KeySchedule for Schedule {
    fn next_sending(&mut self) -> Result<ConnectionTrafficSecrets, rustls::Error> {
        self.0.next()
    }

    fn next_receiving(&mut self) -> Result<ConnectionTrafficSecrets, rustls::Error> {
        self.1.next()
    }
}

fn records(version: Version, sequence: u64) -> Records {
    let secrets = || Secrets { keys: numbered_key(0), sequence };
    let schedule = Box::new(Schedule(NumberedKeys(0), NumberedKeys(0)));
    Records::new(version, secrets(), &secrets(), schedule, Vec::new()).unwrap()
}

#[test]
fn a_key_at_its_limit_is_replaced_within_a_batch() {
    let nearly = (1 << 24) - 3;
    let [mut ours, mut theirs] = [(); 2].map(|()| records(Version::Tls13, nearly));
    let content = bytes(BATCH);
    let wire = seal_all(&mut ours, &content);
    let (opened, end) = open_all(&mut theirs, &wire, &[usize::MAX], &[1 << 20]);
    assert!(opened == content && matches!(end, Ok(OpenResult::NeedsMore)), "{end:?}");
    assert!(!theirs.owes_answer());
    // TLS 1.2 cannot replace a key.
    let mut ours = records(Version::Tls12, nearly);
    let ended = ours.seal(&content, &mut vec![0; SEALED_BATCH]);
    assert!(matches!(ended, Err(RecordError::KeyUsedUp)), "{ended:?}");
}

#[test]
fn a_key_that_was_given_away_does_not_encrypt() {
    let mut wire = vec![0; SEALED_BATCH];
    let mut used = records(Version::Tls13, 0);
    used.seal(b"data", &mut wire).unwrap();
    assert!(used.give_away().is_none());
    used.seal(b"data", &mut wire).unwrap();

    let mut given = records(Version::Tls13, 5);
    let secrets = given.give_away().unwrap();
    assert_eq!(secrets.sequence, 5);
    assert!(given.seal(b"data", &mut wire).is_err());
    assert!(given.seal_close_notify(&mut wire).is_err());
    given.take_back(secrets);
    given.seal(b"data", &mut wire).unwrap();
}

/// Decrypts these records. Returns the data and the last result.
fn after(version: Version, said: &[(u8, &[u8])]) -> (Vec<u8>, Result<OpenResult, RecordError>) {
    let mut key = RecordKey::new(version, &Secrets { keys: numbered_key(0), sequence: 0 }).unwrap();
    let mut wire = Vec::new();
    for (kind, content) in said {
        let mut record = vec![0; content.len() + 100];
        let length = key.seal(*kind, content, &mut record).unwrap();
        wire.extend_from_slice(&record[..length]);
    }
    let tried = [[1_usize], [100_000]].map(|want| open_all(&mut records(version, 0), &wire, &[3, 50], &want));
    let [small, large] = tried;
    assert_eq!(small.0, large.0, "{said:?}");
    assert_eq!(format!("{:?}", small.1), format!("{:?}", large.1), "{said:?}");
    large
}

#[test]
fn a_peer_that_violates_the_protocol_gets_the_matching_alert() {
    use Version::{Tls12, Tls13};
    let (data, alert, handshake) = (content::DATA, content::ALERT, content::HANDSHAKE);
    let update: &[u8] = &[24, 0, 0, 1, 0];
    /// Version, records, error and alert.
    type Case<'c> = (Version, &'c [(u8, &'c [u8])], &'c str, Option<u8>);
    let cases: &[Case<'_>] = &[
        (Tls13, &[(data, b"x"), (20, &[1])], "Unexpected", Some(10)),
        (Tls12, &[(data, b"x"), (20, &[1])], "Unexpected", Some(10)),
        (Tls13, &[(data, b"x"), (24, &[1])], "Unexpected", Some(10)),
        (Tls12, &[(data, b"x"), (24, &[1])], "NoRecord", Some(50)),
        // Only padding, no type.
        (Tls13, &[(data, b"x"), (0, &[0; 20])], "Unexpected", Some(10)),
        (Tls13, &[(data, b"x"), (alert, &[2, 40])], "Alert(40)", None),
        (Tls12, &[(data, b"x"), (alert, &[2, 40])], "Alert(40)", None),
        // TLS 1.3 has no warnings.
        (Tls13, &[(data, b"x"), (alert, &[1, 100])], "Alert(100)", None),
        (Tls13, &[(data, b"x"), (alert, &[1])], "Unexpected", Some(10)),
        (Tls12, &[(data, b"x"), (handshake, &[1, 0, 0, 0])], "Renegotiation", Some(40)),
        (Tls12, &[(data, b"x"), (handshake, update)], "Unexpected", Some(10)),
        (Tls13, &[(data, b"x"), (handshake, &[1, 0, 0, 0])], "Unexpected", Some(10)),
        (Tls13, &[(data, b"x"), (handshake, &[4, 0, 0, 1, 0])], "Unexpected", Some(10)),
        (Tls13, &[(data, b"x"), (handshake, &[24, 0, 0, 1, 2])], "Unexpected", Some(10)),
        (Tls13, &[(data, b"x"), (handshake, &[24, 0, 0, 2, 0])], "Unexpected", Some(10)),
        (Tls13, &[(data, b"x"), (handshake, b"")], "Unexpected", Some(10)),
        // Another message in the same record as a KeyUpdate.
        (Tls13, &[(data, b"x"), (handshake, &[24, 0, 0, 1, 0, 24])], "Unexpected", Some(10)),
        // A fragmented message with another record between its fragments.
        (Tls13, &[(data, b"x"), (handshake, &update[..2]), (data, b"y")], "Unexpected", Some(10)),
        (Tls13, &[(data, b"x"), (handshake, &update[..2]), (alert, &[1, 0])], "Unexpected", Some(10)),
        (Tls13, &[(data, b"x"), (data, &[b'y'; LONGEST_CONTENT + 1])], "TooLong", Some(22)),
        (Tls12, &[(data, b"x"), (data, &[b'y'; LONGEST_CONTENT + 1])], "TooLong", Some(22)),
    ];
    for (version, said, expected, alert) in cases {
        let (opened, end) = after(*version, said);
        assert_eq!(opened, b"x", "{version:?} {said:?}");
        let error = end.expect_err(expected);
        assert_eq!(format!("{error:?}"), *expected, "{version:?} {said:?}");
        assert_eq!(error.alert(), *alert);
    }
    for (bytes, expected) in [
        (&b"GET / HTTP/1.1\r\n"[..], "NoRecord"),
        (&[23, 3, 1, 0, 20], "NoRecord"),
        (&[23, 3, 3, 0x48, 1], "TooLong"),
        // Not encrypted.
        (&[21, 3, 3, 0, 2, 1, 0], "Unexpected"),
        (&[23, 3, 3, 0, 2, 1, 0], "Forged"),
    ] {
        let (_, end) = open_all(&mut records(Tls13, 0), bytes, &[100], &[100]);
        assert_eq!(format!("{:?}", end.unwrap_err()), expected, "{bytes:?}");
    }
}

#[test]
fn padding_warnings_and_fragmented_messages_are_accepted() {
    use Version::{Tls12, Tls13};
    let (data, alert, handshake) = (content::DATA, content::ALERT, content::HANDSHAKE);
    for (version, said) in [
        (
            Tls13,
            &[(0, &b"x\x17\0\0\0"[..]), (data, b""), (data, b"y"), (alert, &[1, 90]), (alert, &[1, 0])][..],
        ),
        (Tls12, &[(data, b"x"), (alert, &[1, 100]), (data, b"y"), (alert, &[1, 0])]),
        // Records after close_notify are ignored.
        (Tls13, &[(data, b"xy"), (alert, &[1, 0]), (data, b"z")]),
    ] {
        let (opened, end) = after(version, said);
        assert_eq!(opened, b"xy");
        assert!(matches!(end, Ok(OpenResult::Closed)), "{end:?}");
    }
    let (_, end) = after(Tls13, &[(handshake, &[24, 0]), (handshake, &[0, 1]), (handshake, &[0])]);
    assert!(matches!(end, Ok(OpenResult::NeedsMore)), "{end:?}");
}

#[test]
fn too_many_records_without_data_end_the_connection() {
    for (version, kind, content) in
        [(Version::Tls13, content::DATA, &b""[..]), (Version::Tls12, content::ALERT, &[1, 90])]
    {
        let allowed = vec![(kind, content); 32];
        let mut said = [allowed.clone(), vec![(content::DATA, b"x")], allowed].concat();
        assert!(matches!(after(version, &said).1, Ok(OpenResult::NeedsMore)));
        said.push((kind, content));
        assert!(matches!(after(version, &said).1, Err(RecordError::Flood)));
    }
}
