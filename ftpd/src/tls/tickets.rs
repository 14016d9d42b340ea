//! TLS session tickets that every node of the cluster can open.
//!
//! A ticket is the state of a TLS session, encrypted with a key that all nodes share through the registry
//! and replace at intervals. So a client can resume its TLS session on another node. The first bytes of
//! a ticket name its key.

use std::{
    fmt,
    sync::{Arc, Mutex, RwLock},
    time::Duration,
};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use common::{registry::SharedKey, session::SessionId, sync};
use rustls::{pki_types::CertificateDer, server::ProducesTickets};
use sha2::{Digest, Sha256};

use super::{
    trust::{RecordingVerifier, VerifiedChain},
    unix_seconds,
};

/// Encrypts and decrypts tickets with the cluster's keys.
pub struct Tickets {
    /// The newest key first.
    keys: RwLock<Vec<NamedKey>>,
    /// Lifetime of a ticket in seconds.
    lifetime: u32,
    /// Time after a full handshake, in seconds, during which control connections may resume its TLS
    /// session.
    max_age: i64,
}

struct NamedKey {
    name: [u8; SharedKey::NAME],
    aead: RandomizedNonceKey,
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tickets")
    }
}

impl Tickets {
    /// `rotation`: interval between new keys. A ticket can be used for two more rotations, as long as
    /// its key is kept. `max_age`: time after a full handshake during which control connections may
    /// resume its TLS session.
    pub fn new(rotation: Duration, max_age: Duration) -> Arc<Self> {
        let lifetime = rotation.saturating_mul(2).as_secs().min(MAX_LIFETIME);
        let max_age = i64::try_from(max_age.as_secs()).unwrap_or(i64::MAX);
        Arc::new(Self { keys: RwLock::default(), lifetime: lifetime as u32, max_age })
    }

    /// Replaces the keys by the cluster's, the newest first.
    pub fn set_keys(&self, keys: &[SharedKey]) {
        let keys = keys.iter().filter_map(|key| {
            // Never fails: the type of the secret has the length that AES-256-GCM needs.
            let aead = RandomizedNonceKey::new(&AES_256_GCM, key.secret()).ok()?;
            Some(NamedKey { name: *key.name(), aead })
        });
        let keys = keys.collect();
        *sync::write(&self.keys) = keys;
    }
}

/// Longest lifetime of a ticket in seconds: seven days (RFC 8446 section 4.6.1).
const MAX_LIFETIME: u64 = 7 * 24 * 3600;

const _: () = assert!(MAX_LIFETIME <= u32::MAX as u64);

/// Kind of connection that a ticket is used on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionKind {
    /// A control connection. authd sees the client certificate of the resumed TLS session.
    Control,
    /// A data connection. The ticket proves that it belongs to a session, which has already logged in.
    Data,
}

/// Ticketer of one connection. Its tickets carry the id of the FTP session and the origin of the TLS
/// session.
///
/// rustls can carry own data in tickets (`set_resumption_data`), but returns it only with TLS 1.3, and
/// many FTP clients use TLS 1.2.
pub struct SessionTickets {
    tickets: Arc<Tickets>,
    /// `None` if the session of the connection is not known; the client then gets no tickets. The id in an
    /// opened ticket is no proof: rustls opens a ticket before it decides to resume, and TLS 1.2 sends
    /// tickets in the clear. A stranger could present an overheard ticket and get a new one with that
    /// session's id and the stranger's own secret.
    session: Option<SessionId>,
    kind: ConnectionKind,
    /// `None`: no client certificates are requested.
    verifier: Option<RecordingVerifier>,
    /// The ticket that the client presented.
    opened: Mutex<Option<OpenedTicket>>,
}

struct OpenedTicket {
    origin: TlsSessionOrigin,
    /// See [`tls12_secret`].
    secret: Option<[u8; 32]>,
}

impl OpenedTicket {
    fn proves(&self, session: SessionId, secret: &[u8; 32]) -> bool {
        self.origin.session == session && self.secret.as_ref() == Some(secret)
    }
}

/// Data about the full handshake of a TLS session. Each resumption passes it on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct TlsSessionOrigin {
    session: SessionId,
    /// Time of the full handshake in Unix seconds.
    began: i64,
    verified: Option<VerifiedChain>,
}

impl SessionTickets {
    pub fn new(
        tickets: Arc<Tickets>,
        session: Option<SessionId>,
        kind: ConnectionKind,
        verifier: Option<RecordingVerifier>,
    ) -> Self {
        Self { tickets, session, kind, verifier, opened: Mutex::default() }
    }

    /// The session of the ticket that was opened last. If a TLS 1.3 client presents several tickets, only
    /// the first usable one is opened.
    pub fn opened(&self) -> Option<SessionId> {
        self.origin().map(|origin| origin.session)
    }

    fn origin(&self) -> Option<TlsSessionOrigin> {
        let opened = sync::lock(&self.opened);
        opened.as_ref().map(|opened| opened.origin.clone())
    }

    /// The origin for a new ticket. A full handshake that verified a certificate starts a new TLS session,
    /// even if a ticket was opened before.
    fn next_origin(&self, session: SessionId, now: i64) -> TlsSessionOrigin {
        let verified = self.verifier.as_ref().and_then(RecordingVerifier::verified);
        match (verified, self.origin()) {
            (Some(verified), _) => TlsSessionOrigin { session, began: now, verified: Some(verified) },
            (None, Some(opened)) => TlsSessionOrigin { session, ..opened },
            (None, None) => TlsSessionOrigin { session, began: now, verified: None },
        }
    }

    /// Returns true if a control connection may resume this TLS session.
    fn may_resume(&self, origin: &TlsSessionOrigin, now: i64) -> bool {
        // The clocks of nodes differ, so a time in the future is accepted.
        if now.saturating_sub(origin.began) > self.tickets.max_age {
            return false;
        }
        match (&origin.verified, &self.verifier) {
            (None, _) => true,
            (Some(verified), Some(verifier)) => verifier.trust.still_accepts(verified, now),
            (Some(_), None) => false,
        }
    }
}

impl fmt::Debug for SessionTickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionTickets({:?})", self.session)
    }
}

/// Longest client certificate chain, in bytes, that is put into a ticket. Clients send tickets in the
/// ClientHello. A TLS session with a longer chain cannot be resumed.
const MAX_CHAIN: usize = 12 * 1024;

impl TlsSessionOrigin {
    /// The encoded origin, which precedes the state of rustls in a ticket. `None` if the chain is longer
    /// than [`MAX_CHAIN`].
    fn encode(&self) -> Option<Vec<u8>> {
        let mut bytes = self.session.to_bytes().to_vec();
        bytes.extend(self.began.to_be_bytes());
        let Some(verified) = &self.verified else {
            bytes.push(0);
            return Some(bytes);
        };
        if verified.chain.iter().map(|certificate| certificate.len()).sum::<usize>() > MAX_CHAIN {
            return None;
        }
        bytes.push(u8::try_from(verified.chain.len()).ok()?);
        bytes.extend(verified.trust_hash);
        bytes.extend(verified.expires.to_be_bytes());
        for certificate in &verified.chain {
            bytes.extend(u16::try_from(certificate.len()).ok()?.to_be_bytes());
            bytes.extend_from_slice(certificate);
        }
        Some(bytes)
    }

    /// Decodes an origin. Also returns the bytes after it.
    fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (session, bytes) = bytes.split_first_chunk()?;
        let (began, bytes) = bytes.split_first_chunk()?;
        let (&count, mut bytes) = bytes.split_first()?;
        let (session, began) = (SessionId::from_bytes(*session), i64::from_be_bytes(*began));
        if count == 0 {
            return Some((Self { session, began, verified: None }, bytes));
        }
        let (trust_hash, expires);
        (trust_hash, bytes) = bytes.split_first_chunk()?;
        (expires, bytes) = bytes.split_first_chunk()?;
        let mut chain = Vec::new();
        for _ in 0..count {
            let (length, rest) = bytes.split_first_chunk()?;
            let (certificate, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
            chain.push(CertificateDer::from(certificate.to_vec()));
            bytes = rest;
        }
        let verified =
            VerifiedChain { trust_hash: *trust_hash, expires: i64::from_be_bytes(*expires), chain };
        Some((Self { session, began, verified: Some(verified) }, bytes))
    }
}

/// SHA-256 of the part of the rustls state that a TLS 1.2 resumption does not change; `None` for TLS 1.3.
/// The state begins with the requested server name (a 0; or a 1, its length and the name), the version, the
/// cipher suite (two bytes), the length of the master secret, and the master secret.
fn tls12_secret(state: &[u8]) -> Option<[u8; 32]> {
    let version_at = match state {
        [0, ..] => 1,
        [1, length, ..] => 2 + usize::from(*length),
        _ => return None,
    };
    let [3, 3, _, _, length, rest @ ..] = state.get(version_at..)? else { return None };
    let end = state.len() - rest.get(usize::from(*length)..)?.len();
    Some(Sha256::digest(&state[..end]).into())
}

impl ProducesTickets for SessionTickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        self.tickets.lifetime
    }

    /// TLS 1.2 sends a ticket during the handshake. On a data connection the ticket proves the session, so a
    /// stranger must not get it: the state must contain the secret of the session's opened ticket, which a
    /// stranger does not know. TLS 1.3 sends tickets after the handshake, see `Tls::accept_data`.
    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let session = self.session?;
        if let (ConnectionKind::Data, Some(secret)) = (self.kind, tls12_secret(plain)) {
            let opened = sync::lock(&self.opened);
            opened.as_ref().filter(|opened| opened.proves(session, &secret))?;
        }
        let origin = self.next_origin(session, unix_seconds()).encode()?;
        self.tickets.seal(&[&origin[..], plain].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let opened = self.tickets.open(ticket)?;
        let (origin, plain) = TlsSessionOrigin::decode(&opened)?;
        if self.kind == ConnectionKind::Control && !self.may_resume(&origin, unix_seconds()) {
            return None;
        }
        let opened = OpenedTicket { origin, secret: tls12_secret(plain) };
        *sync::lock(&self.opened) = Some(opened);
        Some(plain.to_vec())
    }
}

impl Tickets {
    fn seal(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let keys = self.keys.read().ok()?;
        let key = keys.first()?;
        let mut sealed = plain.to_vec();
        let nonce = key.aead.seal_in_place_append_tag(authenticated(&key.name), &mut sealed).ok()?;
        let mut ticket = Vec::with_capacity(key.name.len() + NONCE_LEN + sealed.len());
        ticket.extend_from_slice(&key.name);
        ticket.extend_from_slice(nonce.as_ref());
        ticket.extend_from_slice(&sealed);
        Some(ticket)
    }

    fn open(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_at_checked(SharedKey::NAME)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN)?;
        let keys = self.keys.read().ok()?;
        let key = keys.iter().find(|key| key.name == name)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut sealed = sealed.to_vec();
        let length = key.aead.open_in_place(nonce, authenticated(name), &mut sealed).ok()?.len();
        sealed.truncate(length);
        Some(sealed)
    }
}

/// The additional authenticated data: the key's name and the version of the ticket format. A node of another
/// version cannot open the ticket, so the client performs a full handshake.
fn authenticated(name: &[u8]) -> Aad<Vec<u8>> {
    Aad::from([name, b"2"].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    /// The beginning of the rustls state for TLS 1.3 without a server name.
    const STATE: &[u8] = b"\0\x03\x04state";

    fn control(tickets: &Arc<Tickets>, session: Option<SessionId>) -> SessionTickets {
        SessionTickets::new(Arc::clone(tickets), session, ConnectionKind::Control, None)
    }

    #[test]
    fn only_nodes_with_the_same_keys_can_open_a_ticket() {
        let [ours, theirs, strangers] = [(); 3].map(|()| Tickets::new(Duration::from_secs(60), DAY));
        let (old, new) = (SharedKey::random(1), SharedKey::random(2));
        ours.set_keys(std::slice::from_ref(&old));
        theirs.set_keys(&[new.clone(), old]);
        strangers.set_keys(&[new]);
        let ticket = ours.seal(b"state").unwrap();
        assert_eq!(theirs.open(&ticket).as_deref(), Some(&b"state"[..]));
        assert_eq!(strangers.open(&ticket), None);
        for i in 0..ticket.len() {
            let mut forged = ticket.clone();
            forged[i] ^= 1;
            assert_eq!(theirs.open(&forged), None, "byte {i}");
            assert_eq!(theirs.open(&ticket[..i]), None, "length {i}");
        }
    }

    #[test]
    fn an_opened_ticket_identifies_its_session() {
        let tickets = Tickets::new(Duration::from_secs(60), DAY);
        tickets.set_keys(&[SharedKey::random(1)]);
        let [anna, bert] = [(); 2].map(|()| SessionId::random());
        let ticket = control(&tickets, Some(anna)).encrypt(STATE).unwrap();
        let berts = control(&tickets, Some(bert));
        assert_eq!(berts.opened(), None);
        assert_eq!(berts.decrypt(&ticket).as_deref(), Some(STATE));
        assert_eq!(berts.opened(), Some(anna));
    }

    #[test]
    fn a_connection_without_proof_gets_no_ticket_even_after_presenting_one() {
        let tickets = Tickets::new(Duration::from_secs(60), DAY);
        tickets.set_keys(&[SharedKey::random(1)]);
        let anna = SessionId::random();
        let overheard = control(&tickets, Some(anna)).encrypt(STATE).unwrap();
        let unproved = control(&tickets, None);
        assert_eq!(unproved.encrypt(b"a stranger's state"), None);
        unproved.decrypt(&overheard).unwrap();
        assert_eq!(unproved.opened(), Some(anna));
        assert_eq!(unproved.encrypt(b"a stranger's state"), None);
    }

    #[test]
    fn a_tls_1_2_data_connection_gets_a_ticket_only_with_the_secret_of_its_sessions_ticket() {
        let tickets = Tickets::new(Duration::from_secs(60), DAY);
        tickets.set_keys(&[SharedKey::random(1)]);
        let [anna, bert] = [(); 2].map(|()| SessionId::random());
        let (state, named) = (&b"\0\x03\x03cs\x06secret and more"[..], b"\x01\x02ab\x03\x03cs\x06secret");
        let ticket = control(&tickets, Some(anna)).encrypt(state).unwrap();
        let data =
            |session| SessionTickets::new(Arc::clone(&tickets), Some(session), ConnectionKind::Data, None);
        assert_eq!(data(anna).encrypt(state), None);
        let shown = data(anna);
        shown.decrypt(&ticket).unwrap();
        assert!(shown.encrypt(b"\0\x03\x03cs\x06secret and else").is_some());
        for other in [&b"\0\x03\x03cs\x06another and more"[..], named] {
            assert_eq!(shown.encrypt(other), None);
        }
        let berts = data(bert);
        berts.decrypt(&ticket).unwrap();
        assert_eq!(berts.encrypt(state), None);
        assert!(berts.encrypt(STATE).is_some());
    }

    #[test]
    fn control_connections_cannot_resume_for_longer_than_the_maximum_age() {
        let tickets = Tickets::new(Duration::from_secs(60), DAY);
        tickets.set_keys(&[SharedKey::random(1)]);
        let session = SessionId::random();
        let began = unix_seconds() - 24 * 3600;
        let ticket = |began: i64| {
            let origin = TlsSessionOrigin { session, began, verified: None };
            tickets.seal(&[&origin.encode().unwrap()[..], STATE].concat()).unwrap()
        };
        let younger = control(&tickets, Some(SessionId::random()));
        assert!(younger.decrypt(&ticket(began + 60)).is_some());
        // A new ticket keeps the time of the full handshake.
        let (origin, _) = (younger.origin().unwrap(), younger.encrypt(STATE).unwrap());
        assert_eq!(younger.next_origin(session, unix_seconds()).began, origin.began);
        let older = control(&tickets, Some(SessionId::random()));
        assert_eq!(older.decrypt(&ticket(began - 60)), None);
        assert_eq!(older.opened(), None);
        let data = SessionTickets::new(Arc::clone(&tickets), Some(session), ConnectionKind::Data, None);
        assert!(data.decrypt(&ticket(began - 60)).is_some());
    }

    #[test]
    fn an_encoded_origin_decodes_and_a_truncated_one_does_not() {
        let verified =
            VerifiedChain { trust_hash: [7; 32], expires: 5, chain: vec![vec![1, 2].into(), vec![3].into()] };
        for verified in [None, Some(verified)] {
            let origin = TlsSessionOrigin { session: SessionId::random(), began: 3, verified };
            let bytes = origin.encode().unwrap();
            let longer = [&bytes[..], STATE].concat();
            assert_eq!(TlsSessionOrigin::decode(&longer), Some((origin, STATE)));
            assert!((0..bytes.len()).all(|end| TlsSessionOrigin::decode(&bytes[..end]).is_none()));
        }
    }

    #[test]
    fn a_too_long_certificate_chain_gets_no_ticket() {
        let verified =
            VerifiedChain { trust_hash: [7; 32], expires: 5, chain: vec![vec![0; MAX_CHAIN + 1].into()] };
        let origin = TlsSessionOrigin { session: SessionId::random(), began: 3, verified: Some(verified) };
        assert_eq!(origin.encode(), None);
    }

    #[test]
    fn without_keys_there_are_no_tickets() {
        assert_eq!(Tickets::new(Duration::from_secs(60), DAY).seal(b"state"), None);
    }
}
