//! What a peer may say beside data, and how much of it.

use super::{CLOSE_NOTIFY, Fault, KEY_UPDATE, Version, content};

/// Records in a row that bring no data: each costs us work and its sender little. As many KeyUpdates
/// does rustls bear.
const MOST_WITHOUT_DATA: u8 = 32;

/// RFC 5246 section 7.4.
const CLIENT_HELLO: u8 = 1;

/// A peer's alerts and messages.
#[derive(Default)]
pub(super) struct Control {
    /// A part of a KeyUpdate, which may come in pieces (RFC 8446 section 5.1), and how much.
    message: ([u8; KEY_UPDATE.len()], usize),
    without_data: u8,
    pub(super) is_closed: bool,
}

impl Control {
    pub(super) fn is_within_message(&self) -> bool {
        self.message.1 > 0
    }

    /// A record with data has come.
    ///
    /// # Errors
    /// It came in the middle of a message.
    pub(super) fn interrupted_by_data(&mut self) -> Result<(), Fault> {
        self.without_data = 0;
        if self.is_within_message() { Err(Fault::Unexpected) } else { Ok(()) }
    }

    /// Any other record has come. If it completes a KeyUpdate: whether the peer wants one, too.
    ///
    /// # Errors
    /// It may not come, or there were too many like it.
    pub(super) fn hear(&mut self, version: Version, kind: u8, content: &[u8]) -> Result<Option<bool>, Fault> {
        self.without_data += 1;
        if self.without_data > MOST_WITHOUT_DATA {
            return Err(Fault::Flood);
        }
        if self.is_within_message() && kind != content::HANDSHAKE {
            return Err(Fault::Unexpected);
        }
        match (kind, version) {
            (content::DATA, _) => {}
            (content::ALERT, _) => self.is_closed = is_end(version, content)?,
            (content::HANDSHAKE, Version::Tls13) => return self.key_update(content),
            (content::HANDSHAKE, Version::Tls12) if content.first() == Some(&CLIENT_HELLO) => {
                return Err(Fault::Renegotiation);
            }
            _ => return Err(Fault::Unexpected),
        }
        Ok(None)
    }

    fn key_update(&mut self, content: &[u8]) -> Result<Option<bool>, Fault> {
        let (message, length) = &mut self.message;
        // Nothing of the old key may follow in the record, and an empty one is forbidden (RFC 8446
        // section 5.1).
        let part = message.get_mut(*length..*length + content.len()).filter(|part| !part.is_empty());
        part.ok_or(Fault::Unexpected)?.copy_from_slice(content);
        *length += content.len();
        let requested = match *message {
            _ if *length < KEY_UPDATE.len() => {
                let known = KEY_UPDATE.starts_with(&message[..*length]);
                return if known { Ok(None) } else { Err(Fault::Unexpected) };
            }
            KEY_UPDATE => false,
            KEY_UPDATE_REQUESTED => true,
            _ => return Err(Fault::Unexpected),
        };
        *length = 0;
        Ok(Some(requested))
    }
}

/// RFC 8446 section 4.6.3: the last byte is `update_requested`.
const KEY_UPDATE_REQUESTED: [u8; KEY_UPDATE.len()] = [24, 0, 0, 1, 1];

/// Whether an alert is the orderly end.
///
/// # Errors
/// It is the other one.
fn is_end(version: Version, alert: &[u8]) -> Result<bool, Fault> {
    /// It comes before a close_notify (RFC 8446 section 6.1).
    const USER_CANCELED: u8 = 90;
    const WARNING: u8 = 1;
    match (version, alert) {
        (_, [_, CLOSE_NOTIFY]) => Ok(true),
        // Only TLS 1.2 has warnings.
        (Version::Tls12, [WARNING, _]) | (Version::Tls13, [_, USER_CANCELED]) => Ok(false),
        (_, [_, description]) => Err(Fault::Alert(*description)),
        _ => Err(Fault::Unexpected),
    }
}
