//! Session tickets that every node of the cluster can read.
//!
//! A ticket is the session's state, sealed with a key that all nodes share through the registry
//! and replace at intervals, so that a client that comes back to another node resumes there. The
//! first bytes of a ticket name its key.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use common::{registry::TicketKey, session::SessionId};
use rustls::{pki_types::CertificateDer, server::ProducesTickets};
use sha2::{Digest, Sha256};

use super::{
    trust::{Verified, Witness},
    unix_seconds,
};

/// Seals and opens tickets with the cluster's keys.
pub struct Tickets {
    keys: RwLock<Vec<Key>>,
    lifetime: u32,
    /// How long after a full handshake sessions may begin by resumption, in seconds.
    max_age: i64,
}

struct Key {
    name: [u8; TicketKey::NAME],
    sealing: RandomizedNonceKey,
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tickets")
    }
}

impl Tickets {
    /// `rotation`: how often the newest key is replaced. A ticket is good while its key is kept,
    /// which is for two more rotations. `max_age`: how long after a full handshake sessions may begin by
    /// resumption.
    pub fn new(rotation: Duration, max_age: Duration) -> Arc<Self> {
        let lifetime = rotation.saturating_mul(2).as_secs().min(MAX_LIFETIME);
        let max_age = i64::try_from(max_age.as_secs()).unwrap_or(i64::MAX);
        // At most seven days.
        Arc::new(Self { keys: RwLock::default(), lifetime: lifetime as u32, max_age })
    }

    /// Takes over the cluster's keys, the newest first.
    pub fn set_keys(&self, keys: &[TicketKey]) {
        let keys = keys.iter().filter_map(|key| {
            // The key has the length that the algorithm wants, which its type says.
            let sealing = RandomizedNonceKey::new(&AES_256_GCM, key.secret()).ok()?;
            Some(Key { name: *key.name(), sealing })
        });
        let keys = keys.collect();
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }
}

/// RFC 8446 section 4.6.1: seven days, in seconds.
const MAX_LIFETIME: u64 = 7 * 24 * 3600;

/// What a ticket is shown for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To begin a session: the client certificate that the ticket's TLS session has is told to authd.
    Control,
    /// To prove that a data connection belongs to a session, which goes on and has logged in already.
    Data,
}

/// The tickets of one connection: they carry the id of the session that it belongs to, and what its TLS session
/// began with.
///
/// rustls has data of its own to travel in tickets (`set_resumption_data`), but returns it with TLS
/// 1.3 only; many FTP clients speak 1.2.
pub struct SessionTickets {
    tickets: Arc<Tickets>,
    /// `None` while it is not proved whose the connection is: it gets no tickets then. rustls opens a ticket
    /// before it decides whether to resume with it. A new one with the opened session's id would seal the
    /// secret of a stranger who has shown a ticket that was overheard (TLS 1.2 sends them in the clear).
    session: Option<SessionId>,
    purpose: Purpose,
    /// `None`: client certificates are not asked for.
    witness: Option<Witness>,
    /// What the ticket says that the client has shown.
    opened: Mutex<Option<Opened>>,
}

struct Opened {
    origin: Origin,
    /// See [`tls12_secret`].
    secret: Option<[u8; 32]>,
}

impl Opened {
    fn is_of(&self, session: SessionId, secret: &[u8; 32]) -> bool {
        self.origin.session == session && self.secret.as_ref() == Some(secret)
    }
}

/// What a TLS session began with. Each resumption hands it on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    session: SessionId,
    /// The time of the full handshake, in seconds since 1970.
    began: i64,
    verified: Option<Verified>,
}

impl SessionTickets {
    pub fn new(
        tickets: Arc<Tickets>,
        session: Option<SessionId>,
        purpose: Purpose,
        witness: Option<Witness>,
    ) -> Self {
        Self { tickets, session, purpose, witness, opened: Mutex::default() }
    }

    /// Whose ticket was opened last. Of several that a client of TLS 1.3 shows, the first that can
    /// be used is opened, and no further one.
    pub fn opened(&self) -> Option<SessionId> {
        self.origin().map(|origin| origin.session)
    }

    fn origin(&self) -> Option<Origin> {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.as_ref().map(|opened| opened.origin.clone())
    }

    /// What a new ticket says. A full handshake that verified a certificate begins anew, whatever ticket was
    /// opened before it.
    fn next_origin(&self, session: SessionId, now: i64) -> Origin {
        let verified = self.witness.as_ref().and_then(Witness::verified);
        match (verified, self.origin()) {
            (Some(verified), _) => Origin { session, began: now, verified: Some(verified) },
            (None, Some(opened)) => Origin { session, ..opened },
            (None, None) => Origin { session, began: now, verified: None },
        }
    }

    /// Whether a session may begin with this ticket instead of a full handshake.
    fn may_begin(&self, origin: &Origin, now: i64) -> bool {
        // Clocks of nodes differ: a beginning in the future is no reason to refuse.
        if now.saturating_sub(origin.began) > self.tickets.max_age {
            return false;
        }
        match (&origin.verified, &self.witness) {
            (None, _) => true,
            (Some(verified), Some(witness)) => witness.trust.still_accepts(verified, now),
            (Some(_), None) => false,
        }
    }
}

impl fmt::Debug for SessionTickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionTickets({:?})", self.session)
    }
}

/// The most that a client's chain may have, in bytes, to be resumed: tickets come back in a ClientHello.
const MAX_CHAIN: usize = 12 * 1024;

impl Origin {
    /// Followed by rustls's state. `None`: the chain is too long.
    fn write(&self) -> Option<Vec<u8>> {
        let mut bytes = self.session.to_bytes().to_vec();
        bytes.extend(self.began.to_be_bytes());
        let Some(verified) = &self.verified else {
            bytes.push(0);
            return Some(bytes);
        };
        if verified.chain.iter().map(|one| one.len()).sum::<usize>() > MAX_CHAIN {
            return None;
        }
        bytes.push(u8::try_from(verified.chain.len()).ok()?);
        bytes.extend(verified.by);
        bytes.extend(verified.until.to_be_bytes());
        for certificate in &verified.chain {
            bytes.extend(u16::try_from(certificate.len()).ok()?.to_be_bytes());
            bytes.extend_from_slice(certificate);
        }
        Some(bytes)
    }

    /// And what follows it.
    fn read(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (session, bytes) = bytes.split_first_chunk()?;
        let (began, bytes) = bytes.split_first_chunk()?;
        let (&count, mut bytes) = bytes.split_first()?;
        let (session, began) = (SessionId::from_bytes(*session), i64::from_be_bytes(*began));
        if count == 0 {
            return Some((Self { session, began, verified: None }, bytes));
        }
        let (by, until);
        (by, bytes) = bytes.split_first_chunk()?;
        (until, bytes) = bytes.split_first_chunk()?;
        let mut chain = Vec::new();
        for _ in 0..count {
            let (length, rest) = bytes.split_first_chunk()?;
            let (certificate, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
            chain.push(CertificateDer::from(certificate.to_vec()));
            bytes = rest;
        }
        let verified = Verified { by: *by, until: i64::from_be_bytes(*until), chain };
        Some((Self { session, began, verified: Some(verified) }, bytes))
    }
}

/// SHA-256 of the part of rustls's state that a resumption of TLS 1.2 leaves as it is; `None`: another version.
/// The state begins with the name that the client asked for (0, or 1, a length and the name), the version, two
/// bytes of the cipher suite, and the master secret after its length.
fn tls12_secret(state: &[u8]) -> Option<[u8; 32]> {
    let named = match state {
        [0, ..] => 1,
        [1, length, ..] => 2 + usize::from(*length),
        _ => return None,
    };
    let [3, 3, _, _, length, rest @ ..] = state.get(named..)? else { return None };
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

    /// TLS 1.2 sends a ticket in the middle of the handshake. On a data connection it proves the session, and a
    /// stranger must not get it: the state has to have the secret of the session's ticket that was opened, which
    /// the stranger does not know. TLS 1.3 sends tickets after the handshake, see `Tls::accept_data`.
    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let session = self.session?;
        if let (Purpose::Data, Some(secret)) = (self.purpose, tls12_secret(plain)) {
            let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
            opened.as_ref().filter(|opened| opened.is_of(session, &secret))?;
        }
        let origin = self.next_origin(session, unix_seconds()).write()?;
        self.tickets.seal(&[&origin[..], plain].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let opened = self.tickets.open(ticket)?;
        let (origin, plain) = Origin::read(&opened)?;
        if self.purpose == Purpose::Control && !self.may_begin(&origin, unix_seconds()) {
            return None;
        }
        let opened = Opened { origin, secret: tls12_secret(plain) };
        *self.opened.lock().unwrap_or_else(PoisonError::into_inner) = Some(opened);
        Some(plain.to_vec())
    }
}

impl Tickets {
    fn seal(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let keys = self.keys.read().ok()?;
        let key = keys.first()?;
        let mut sealed = plain.to_vec();
        let nonce = key.sealing.seal_in_place_append_tag(authenticated(&key.name), &mut sealed).ok()?;
        let mut ticket = Vec::with_capacity(key.name.len() + NONCE_LEN + sealed.len());
        ticket.extend_from_slice(&key.name);
        ticket.extend_from_slice(nonce.as_ref());
        ticket.extend_from_slice(&sealed);
        Some(ticket)
    }

    fn open(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_at_checked(TicketKey::NAME)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN)?;
        let keys = self.keys.read().ok()?;
        let key = keys.iter().find(|key| key.name == name)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut sealed = sealed.to_vec();
        let length = key.sealing.open_in_place(nonce, authenticated(name), &mut sealed).ok()?.len();
        sealed.truncate(length);
        Some(sealed)
    }
}

/// A key's name and the format of what is sealed, so that nodes of other versions do not misread it: their
/// clients do a full handshake.
fn authenticated(name: &[u8]) -> Aad<Vec<u8>> {
    Aad::from([name, b"2"].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    /// As rustls begins it for TLS 1.3 without the name of a server.
    const STATE: &[u8] = b"\0\x03\x04state";

    fn control(tickets: &Arc<Tickets>, session: Option<SessionId>) -> SessionTickets {
        SessionTickets::new(Arc::clone(tickets), session, Purpose::Control, None)
    }

    #[test]
    fn a_ticket_of_one_node_is_opened_by_another_with_the_same_keys_and_by_no_other() {
        let [ours, theirs, strangers] = [(); 3].map(|()| Tickets::new(Duration::from_secs(60), DAY));
        let (old, new) = (TicketKey::random(1), TicketKey::random(2));
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
    fn a_ticket_tells_whose_it_is() {
        let tickets = Tickets::new(Duration::from_secs(60), DAY);
        tickets.set_keys(&[TicketKey::random(1)]);
        let [anna, bert] = [(); 2].map(|()| SessionId::random());
        let ticket = control(&tickets, Some(anna)).encrypt(STATE).unwrap();
        let berts = control(&tickets, Some(bert));
        assert_eq!(berts.opened(), None);
        assert_eq!(berts.decrypt(&ticket).as_deref(), Some(STATE));
        assert_eq!(berts.opened(), Some(anna));
    }

    #[test]
    fn a_connection_that_is_not_proved_gets_no_ticket_whatever_ticket_it_has_shown() {
        let tickets = Tickets::new(Duration::from_secs(60), DAY);
        tickets.set_keys(&[TicketKey::random(1)]);
        let anna = SessionId::random();
        let overheard = control(&tickets, Some(anna)).encrypt(STATE).unwrap();
        let unproved = control(&tickets, None);
        assert_eq!(unproved.encrypt(b"a stranger's state"), None);
        unproved.decrypt(&overheard).unwrap();
        assert_eq!(unproved.opened(), Some(anna));
        assert_eq!(unproved.encrypt(b"a stranger's state"), None);
    }

    #[test]
    fn a_data_connection_of_tls_1_2_gets_a_ticket_only_with_the_secret_of_its_sessions_ticket() {
        let tickets = Tickets::new(Duration::from_secs(60), DAY);
        tickets.set_keys(&[TicketKey::random(1)]);
        let [anna, bert] = [(); 2].map(|()| SessionId::random());
        let (state, named) = (&b"\0\x03\x03cs\x06secret and more"[..], b"\x01\x02ab\x03\x03cs\x06secret");
        let ticket = control(&tickets, Some(anna)).encrypt(state).unwrap();
        let data = |session| SessionTickets::new(Arc::clone(&tickets), Some(session), Purpose::Data, None);
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
    fn a_chain_of_resumptions_has_an_end_for_control_connections() {
        let tickets = Tickets::new(Duration::from_secs(60), DAY);
        tickets.set_keys(&[TicketKey::random(1)]);
        let session = SessionId::random();
        let began = unix_seconds() - 24 * 3600;
        let ticket = |began: i64| {
            let origin = Origin { session, began, verified: None };
            tickets.seal(&[&origin.write().unwrap()[..], STATE].concat()).unwrap()
        };
        let younger = control(&tickets, Some(SessionId::random()));
        assert!(younger.decrypt(&ticket(began + 60)).is_some());
        // The next ticket is as old.
        let (origin, _) = (younger.origin().unwrap(), younger.encrypt(STATE).unwrap());
        assert_eq!(younger.next_origin(session, unix_seconds()).began, origin.began);
        let older = control(&tickets, Some(SessionId::random()));
        assert_eq!(older.decrypt(&ticket(began - 60)), None);
        assert_eq!(older.opened(), None);
        let data = SessionTickets::new(Arc::clone(&tickets), Some(session), Purpose::Data, None);
        assert!(data.decrypt(&ticket(began - 60)).is_some());
    }

    #[test]
    fn an_origin_is_read_as_it_was_written_and_never_when_cut() {
        let verified = Verified { by: [7; 32], until: 5, chain: vec![vec![1, 2].into(), vec![3].into()] };
        for verified in [None, Some(verified)] {
            let origin = Origin { session: SessionId::random(), began: 3, verified };
            let bytes = origin.write().unwrap();
            let longer = [&bytes[..], STATE].concat();
            assert_eq!(Origin::read(&longer), Some((origin, STATE)));
            assert!((0..bytes.len()).all(|end| Origin::read(&bytes[..end]).is_none()));
        }
    }

    #[test]
    fn a_chain_that_is_too_long_gets_no_ticket() {
        let verified = Verified { by: [7; 32], until: 5, chain: vec![vec![0; MAX_CHAIN + 1].into()] };
        let origin = Origin { session: SessionId::random(), began: 3, verified: Some(verified) };
        assert_eq!(origin.write(), None);
    }

    #[test]
    fn without_keys_there_are_no_tickets() {
        assert_eq!(Tickets::new(Duration::from_secs(60), DAY).seal(b"state"), None);
    }
}
