//! Records of the peer that carry no data: alerts, KeyUpdates and empty records, and their limits.

use super::{CLOSE_NOTIFY, KEY_UPDATE, RecordError, Version, content};

/// Maximum consecutive records without data. They are cheap to send and cost us work; rustls allows as many
/// KeyUpdates.
const MOST_WITHOUT_DATA: u8 = 32;

/// Handshake type of a ClientHello (RFC 5246 section 7.4).
const CLIENT_HELLO: u8 = 1;

/// State of the peer's alerts and handshake messages.
#[derive(Default)]
pub(super) struct ControlRecords {
    /// The received part of a KeyUpdate, which may be fragmented (RFC 8446 section 5.1), and its length.
    message: ([u8; KEY_UPDATE.len()], usize),
    /// Consecutive records without data.
    without_data: u8,
    pub(super) is_closed: bool,
}

impl ControlRecords {
    pub(super) fn is_within_message(&self) -> bool {
        self.message.1 > 0
    }

    /// Notes a record with data.
    ///
    /// # Errors
    /// The record interrupts a fragmented message.
    pub(super) fn data_received(&mut self) -> Result<(), RecordError> {
        self.without_data = 0;
        if self.is_within_message() { Err(RecordError::Unexpected) } else { Ok(()) }
    }

    /// Handles a record without data. Returns `Some` if it completes a KeyUpdate, with true if the peer
    /// requests a KeyUpdate in return.
    ///
    /// # Errors
    /// The record is not allowed here, or there were too many without data.
    pub(super) fn handle(
        &mut self,
        version: Version,
        kind: u8,
        content: &[u8],
    ) -> Result<Option<bool>, RecordError> {
        self.without_data += 1;
        if self.without_data > MOST_WITHOUT_DATA {
            return Err(RecordError::Flood);
        }
        if self.is_within_message() && kind != content::HANDSHAKE {
            return Err(RecordError::Unexpected);
        }
        match (kind, version) {
            (content::DATA, _) => {}
            (content::ALERT, _) => self.is_closed = is_close_notify(version, content)?,
            (content::HANDSHAKE, Version::Tls13) => return self.key_update(content),
            (content::HANDSHAKE, Version::Tls12) if content.first() == Some(&CLIENT_HELLO) => {
                return Err(RecordError::Renegotiation);
            }
            _ => return Err(RecordError::Unexpected),
        }
        Ok(None)
    }

    fn key_update(&mut self, content: &[u8]) -> Result<Option<bool>, RecordError> {
        let (message, length) = &mut self.message;
        // A KeyUpdate must end its record, and an empty handshake record is forbidden (RFC 8446 section 5.1).
        let part = message.get_mut(*length..*length + content.len()).filter(|part| !part.is_empty());
        part.ok_or(RecordError::Unexpected)?.copy_from_slice(content);
        *length += content.len();
        let requested = match *message {
            _ if *length < KEY_UPDATE.len() => {
                let is_prefix = KEY_UPDATE.starts_with(&message[..*length]);
                return if is_prefix { Ok(None) } else { Err(RecordError::Unexpected) };
            }
            KEY_UPDATE => false,
            KEY_UPDATE_REQUESTED => true,
            _ => return Err(RecordError::Unexpected),
        };
        *length = 0;
        Ok(Some(requested))
    }
}

/// A KeyUpdate message with `update_requested` (RFC 8446 section 4.6.3).
const KEY_UPDATE_REQUESTED: [u8; KEY_UPDATE.len()] = [24, 0, 0, 1, 1];

/// Returns true if the alert is close_notify, false if it is a warning.
///
/// # Errors
/// The alert is fatal or malformed.
fn is_close_notify(version: Version, alert: &[u8]) -> Result<bool, RecordError> {
    /// Precedes a close_notify (RFC 8446 section 6.1).
    const USER_CANCELED: u8 = 90;
    const WARNING: u8 = 1;
    match (version, alert) {
        (_, [_, CLOSE_NOTIFY]) => Ok(true),
        // TLS 1.3 has no warnings except user_canceled.
        (Version::Tls12, [WARNING, _]) | (Version::Tls13, [_, USER_CANCELED]) => Ok(false),
        (_, [_, description]) => Err(RecordError::Alert(*description)),
        _ => Err(RecordError::Unexpected),
    }
}
