//! Property of TLS session tickets that clients send to a node.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use common::{registry::SharedKey, session::SessionId};
use ftpd::tls::tickets::{ConnectionKind, SessionTickets, Tickets};
use rustls::server::ProducesTickets;

/// A node's ticket keys, and a valid ticket.
struct ValidTicket {
    /// Name of the key that encrypts the ticket.
    key_name: Vec<u8>,
    tickets: Arc<Tickets>,
    ticket: Vec<u8>,
}

/// Much longer than the time between encrypting and decrypting a ticket.
const ROTATION: Duration = Duration::from_secs(3600);

static VALID: LazyLock<ValidTicket> = LazyLock::new(|| {
    let key = SharedKey::random(1);
    let tickets = Tickets::new(ROTATION, ROTATION);
    tickets.set_keys(&[SharedKey::random(2), key.clone()]);
    let old = Tickets::new(ROTATION, ROTATION);
    old.set_keys(std::slice::from_ref(&key));
    let session = SessionTickets::new(old, Some(SessionId::random()), ConnectionKind::Control, None);
    let ticket = session.encrypt(b"state of a TLS session").expect("the tickets have a key");
    ValidTicket { key_name: key.name().to_vec(), tickets, ticket }
});

/// Property of forged tickets: a node decrypts no ticket that no node made, and takes no session from
/// it. The input is used as a ticket, after the name of a real key, and as a change of a valid ticket.
pub fn ticket(input: &[u8]) {
    let ValidTicket { key_name, tickets, ticket } = &*VALID;
    let opens = |ticket: &[u8]| {
        let session = SessionTickets::new(
            Arc::clone(tickets),
            Some(SessionId::random()),
            ConnectionKind::Control,
            None,
        );
        let opened = session.decrypt(ticket);
        assert_eq!(opened.is_some(), session.opened().is_some());
        opened.is_some()
    };
    assert!(opens(ticket));
    assert!(!opens(input));
    assert!(!opens(&[key_name, input].concat()));
    let mut changed = ticket.clone();
    for (byte, change) in changed.iter_mut().zip(input) {
        *byte ^= change;
    }
    assert_eq!(opens(&changed), changed == *ticket);
    if !input.is_empty() {
        assert!(!opens(&[ticket, input].concat()));
        assert!(!opens(&ticket[..ticket.len() - input.len().min(ticket.len())]));
    }
}
