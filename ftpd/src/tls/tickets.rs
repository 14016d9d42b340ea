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
use rustls::server::ProducesTickets;

/// Seals and opens tickets with the cluster's keys.
pub struct Tickets {
    keys: RwLock<Vec<Key>>,
    lifetime: u32,
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
    /// which is for two more rotations.
    pub fn new(rotation: Duration) -> Arc<Self> {
        let lifetime = rotation.saturating_mul(2).as_secs().min(MAX_LIFETIME);
        // At most seven days.
        Arc::new(Self { keys: RwLock::default(), lifetime: lifetime as u32 })
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

/// The tickets of one connection: they carry the id of the session that it belongs to.
///
/// rustls has data of its own to travel in tickets (`set_resumption_data`), but returns it with TLS
/// 1.3 only; many FTP clients speak 1.2.
pub struct SessionTickets {
    tickets: Arc<Tickets>,
    /// `None` while it is not proved whose the connection is: it gets no tickets then. rustls opens a ticket
    /// before it decides whether to resume with it. A new one with the opened session's id would seal the
    /// secret of a stranger who has shown a ticket that was overheard (TLS 1.2 sends them in the clear).
    session: Option<SessionId>,
    /// Whose the ticket is that the client has shown.
    opened: Mutex<Option<SessionId>>,
}

impl SessionTickets {
    pub fn new(tickets: Arc<Tickets>, session: Option<SessionId>) -> Self {
        Self { tickets, session, opened: Mutex::default() }
    }

    /// Whose ticket was opened last. Of several that a client of TLS 1.3 shows, the first that can
    /// be used is opened, and no further one.
    pub fn opened(&self) -> Option<SessionId> {
        *self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SessionTickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionTickets({:?})", self.session)
    }
}

/// Bytes of a session's id in a ticket.
const SESSION: usize = size_of::<u64>();

impl ProducesTickets for SessionTickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        self.tickets.lifetime
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let session = self.session?;
        self.tickets.seal(&[&session.to_bytes()[..], plain].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let opened = self.tickets.open(ticket)?;
        let (session, plain) = opened.split_first_chunk::<SESSION>()?;
        *self.opened.lock().unwrap_or_else(PoisonError::into_inner) = Some(SessionId::from_bytes(*session));
        Some(plain.to_vec())
    }
}

impl Tickets {
    fn seal(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let keys = self.keys.read().ok()?;
        let key = keys.first()?;
        let mut sealed = plain.to_vec();
        let nonce = key.sealing.seal_in_place_append_tag(Aad::from(&key.name[..]), &mut sealed).ok()?;
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
        let length = key.sealing.open_in_place(nonce, Aad::from(name), &mut sealed).ok()?.len();
        sealed.truncate(length);
        Some(sealed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_of_one_node_is_opened_by_another_with_the_same_keys_and_by_no_other() {
        let [ours, theirs, strangers] = [(); 3].map(|()| Tickets::new(Duration::from_secs(60)));
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
        let tickets = Tickets::new(Duration::from_secs(60));
        tickets.set_keys(&[TicketKey::random(1)]);
        let [anna, bert] = [(); 2].map(|()| SessionId::random());
        let ticket = SessionTickets::new(Arc::clone(&tickets), Some(anna)).encrypt(b"state").unwrap();
        let berts = SessionTickets::new(tickets, Some(bert));
        assert_eq!(berts.opened(), None);
        assert_eq!(berts.decrypt(&ticket).as_deref(), Some(&b"state"[..]));
        assert_eq!(berts.opened(), Some(anna));
    }

    #[test]
    fn a_connection_that_is_not_proved_gets_no_ticket_whatever_ticket_it_has_shown() {
        let tickets = Tickets::new(Duration::from_secs(60));
        tickets.set_keys(&[TicketKey::random(1)]);
        let anna = SessionId::random();
        let overheard = SessionTickets::new(Arc::clone(&tickets), Some(anna)).encrypt(b"state").unwrap();
        let unproved = SessionTickets::new(tickets, None);
        assert_eq!(unproved.encrypt(b"a stranger's state"), None);
        unproved.decrypt(&overheard).unwrap();
        assert_eq!(unproved.opened(), Some(anna));
        assert_eq!(unproved.encrypt(b"a stranger's state"), None);
    }

    #[test]
    fn without_keys_there_are_no_tickets() {
        assert_eq!(Tickets::new(Duration::from_secs(60)).seal(b"state"), None);
    }
}
