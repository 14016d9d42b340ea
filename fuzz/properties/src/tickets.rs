//! TLS session tickets as clients give them back.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use common::{registry::TicketKey, session::SessionId};
use ftpd::tls::tickets::{ConnectionKind, SessionTickets, Tickets};
use rustls::server::ProducesTickets;

struct Sealed {
    name: Vec<u8>,
    tickets: Arc<Tickets>,
    /// One that is right, to be changed.
    ticket: Vec<u8>,
}

/// Long enough for the test: tickets are opened within moments.
const ROTATION: Duration = Duration::from_secs(3600);

static SEALED: LazyLock<Sealed> = LazyLock::new(|| {
    let key = TicketKey::random(1);
    let tickets = Tickets::new(ROTATION, ROTATION);
    tickets.set_keys(&[TicketKey::random(2), key.clone()]);
    let old = Tickets::new(ROTATION, ROTATION);
    old.set_keys(std::slice::from_ref(&key));
    let session = SessionTickets::new(old, Some(SessionId::random()), ConnectionKind::Control, None);
    let sealed = session.encrypt(b"state of a TLS session");
    Sealed { name: key.name().to_vec(), tickets, ticket: sealed.expect("there is a key") }
});

/// A ticket that no node has made: as it is, behind the name of a key, and as a change to a ticket
/// that is right. None is opened, and none says whose session it is.
pub fn ticket(input: &[u8]) {
    let Sealed { name, tickets, ticket } = &*SEALED;
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
    assert!(!opens(&[name, input].concat()));
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
