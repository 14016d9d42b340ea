//! The TLS record layer of data connections (RFC 8446 section 5, RFC 5246 section 6.2), without I/O.
//!
//! rustls performs the handshake and derives the keys. Its own record layer reads and copies one record at
//! a time, which doubles the cost of an upload. This one decrypts many records of one read directly into the
//! caller's buffer, and encrypts many records for one write.

mod control;
mod key;
mod opener;

use rustls::ConnectionTrafficSecrets;

pub use self::opener::OpenResult;
use self::{
    key::RecordKey,
    opener::{Opener, Opening},
};
use crate::work::scratch::Scratch;

/// Most bytes of data in a record (RFC 8446 section 5.1).
pub const LONGEST_CONTENT: usize = 1 << 14;

/// Bytes of data encrypted at once: 16 full records.
pub const BATCH: usize = 16 * LONGEST_CONTENT;

/// Buffer size that [`Records::seal`] needs: the batch, up to two KeyUpdates, and the overhead of each
/// record.
pub const SEALED_BATCH: usize = BATCH + 18 * (HEADER + MOST_AROUND);

const _: () = assert!(SEALED_BATCH <= Scratch::SIZE);

/// Version field of a record; the same for TLS 1.2 and 1.3 (RFC 8446 section 5.1).
const WIRE_VERSION: [u8; 2] = [3, 3];

/// Bytes of type, version and length.
const HEADER: usize = 5;

/// Bytes around the content: explicit nonce and tag (TLS 1.2), or type and tag (TLS 1.3).
const MOST_AROUND: usize = 8 + 16;

/// A KeyUpdate message with `update_not_requested` (RFC 8446 section 4.6.3).
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

/// The alert for an orderly end of the connection (RFC 8446 section 6.1).
const CLOSE_NOTIFY: u8 = 0;

/// Content types allowed after the handshake (RFC 8446 section 5.1).
mod content {
    pub(super) const ALERT: u8 = 21;
    pub(super) const HANDSHAKE: u8 = 22;
    pub(super) const DATA: u8 = 23;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Tls12,
    Tls13,
}

/// Error that ends a connection.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("a TLS record failed authentication")]
    Forged,
    #[error("received bytes that are not a TLS record")]
    NoRecord,
    #[error("a TLS record is too long")]
    TooLong,
    #[error("unexpected TLS message")]
    Unexpected,
    #[error("the client requested a TLS renegotiation, which is not supported")]
    Renegotiation,
    #[error("too many TLS messages without data")]
    Flood,
    #[error("the peer sent TLS alert {0}")]
    Alert(u8),
    #[error("the TLS key has reached its limit, and TLS 1.2 cannot replace it")]
    KeyUsedUp,
    #[error("no TLS key")]
    NoKey(#[from] rustls::Error),
}

impl RecordError {
    /// The alert to send to the peer, if any (RFC 8446 section 6.2).
    fn alert(&self) -> Option<u8> {
        match self {
            Self::Unexpected | Self::Flood => Some(10),
            Self::Forged => Some(20),
            Self::TooLong => Some(22),
            // Not no_renegotiation (100): that is a warning, and the client might continue.
            Self::Renegotiation => Some(40),
            Self::NoRecord => Some(50),
            Self::NoKey(_) => Some(80),
            Self::Alert(_) | Self::KeyUsedUp => None,
        }
    }
}

/// Source of the keys after a KeyUpdate (RFC 8446 section 7.2).
pub trait KeySchedule: Send {
    /// The next key for sending.
    ///
    /// # Errors
    /// The version is TLS 1.2, which has no further keys.
    fn next_sending(&mut self) -> Result<ConnectionTrafficSecrets, rustls::Error>;

    /// The next key for receiving.
    ///
    /// # Errors
    /// As [`Self::next_sending`].
    fn next_receiving(&mut self) -> Result<ConnectionTrafficSecrets, rustls::Error>;
}

/// The key of one direction and the sequence number of its next record.
pub struct Secrets {
    pub keys: ConnectionTrafficSecrets,
    pub sequence: u64,
}

/// Record layer of one connection after its handshake.
pub struct Records {
    version: Version,
    schedule: Box<dyn KeySchedule>,
    opener: Opener,
    /// Encrypted session tickets that were not sent yet.
    tickets: Vec<u8>,
    sending: SendingKey,
    /// The peer has requested a KeyUpdate, which precedes our next data.
    owes_key_update: bool,
    /// Error to report after the data that precedes it.
    error: Option<RecordError>,
}

/// Owner of the sending key. There is only one: a second one would repeat nonces.
enum SendingKey {
    /// Not used yet.
    Fresh(Secrets),
    Here(Box<RecordKey>),
    /// [`Records::give_away`] was called.
    Elsewhere,
}

/// Result of [`Records::seal`].
#[derive(Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Bytes of data that were encrypted.
    pub taken: usize,
    /// Bytes of `wire` to send.
    pub length: usize,
}

impl Records {
    /// `received`: encrypted bytes that arrived after the handshake.
    ///
    /// # Errors
    /// Unknown cipher suite.
    pub fn new(
        version: Version,
        sending: Secrets,
        receiving: &Secrets,
        schedule: Box<dyn KeySchedule>,
        received: Vec<u8>,
    ) -> Result<Self, rustls::Error> {
        Ok(Self {
            version,
            schedule,
            opener: Opener::new(version, RecordKey::new(version, receiving)?, received),
            tickets: Vec::new(),
            sending: SendingKey::Fresh(sending),
            owes_key_update: false,
            error: None,
        })
    }

    pub fn version(&self) -> Version {
        self.version
    }

    /// Adds `tickets`: records encrypted by the handshake that precede all others.
    #[must_use]
    pub fn after(self, tickets: Vec<u8>) -> Self {
        Self { tickets, ..self }
    }

    /// Takes out the tickets. They must be sent before any other record, whether encrypted here or by the
    /// kernel. Empty after the first call.
    pub fn take_tickets(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.tickets)
    }

    /// Hands out the sending key, for the kernel. `None` if it was used here or tickets are still to be
    /// sent. Afterwards every `seal` fails, unless the key is [taken back](Self::take_back).
    pub fn give_away(&mut self) -> Option<Secrets> {
        if !self.tickets.is_empty() {
            return None;
        }
        match std::mem::replace(&mut self.sending, SendingKey::Elsewhere) {
            SendingKey::Fresh(secrets) => Some(secrets),
            used => {
                self.sending = used;
                None
            }
        }
    }

    /// Takes back a key that was given away and was not used.
    pub fn take_back(&mut self, secrets: Secrets) {
        self.sending = SendingKey::Fresh(secrets);
    }

    /// Decrypts received records into `data`: as many as fit, and a part of one more. `data` must not be
    /// empty.
    ///
    /// # Errors
    /// The peer violated the protocol or sent an alert. All data before that was returned by earlier calls.
    /// [`Self::seal_alert`] creates the answer.
    pub fn open(&mut self, data: &mut [u8]) -> Result<OpenResult, RecordError> {
        debug_assert!(!data.is_empty());
        let mut opened = 0;
        while opened < data.len() {
            match self.open_record(&mut data[opened..]) {
                Ok(OpenResult::Data(length)) => opened += length,
                Ok(_) if opened > 0 => break,
                Err(error) if opened > 0 => {
                    self.error = Some(error);
                    break;
                }
                end => return end,
            }
        }
        Ok(OpenResult::Data(opened))
    }

    fn open_record(&mut self, data: &mut [u8]) -> Result<OpenResult, RecordError> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        loop {
            match self.opener.open(data)? {
                Opening::Result(step) => return Ok(step),
                Opening::KeyUpdate { requested } => {
                    self.owes_key_update |= requested;
                    let keys = self.schedule.next_receiving()?;
                    self.opener.replace_key(RecordKey::new(self.version, &Secrets { keys, sequence: 0 })?);
                }
            }
        }
    }

    /// Buffer for the next received bytes; [`Self::received`] reports their number. Not empty if
    /// [`Self::open`] returned [`OpenResult::NeedsMore`].
    pub fn room(&mut self) -> &mut [u8] {
        self.opener.room()
    }

    /// Reports that `length` bytes were received into [`Self::room`].
    pub fn received(&mut self, length: usize) {
        self.opener.received(length);
    }

    /// Returns true if a record or message was received only in part.
    pub fn is_within_record(&self) -> bool {
        self.opener.is_within_record()
    }

    /// Returns true if the peer waits for a KeyUpdate. The next [`Self::seal`] sends it, even without data.
    pub fn owes_answer(&self) -> bool {
        self.owes_key_update
    }

    /// Encrypts up to one batch of `data`. `wire` must have [`SEALED_BATCH`] bytes.
    ///
    /// # Errors
    /// The key has reached its limit and TLS 1.2 cannot replace it, or the key was given away.
    pub fn seal(&mut self, data: &[u8], wire: &mut [u8]) -> Result<Sealed, RecordError> {
        let mut sealed = Sealed { taken: 0, length: 0 };
        if std::mem::take(&mut self.owes_key_update) {
            sealed.length += self.update_key(wire)?;
        }
        let data = &data[..data.len().min(BATCH)];
        for content in data.chunks(LONGEST_CONTENT) {
            if self.key()?.is_used_up() {
                sealed.length += self.update_key(&mut wire[sealed.length..])?;
            }
            sealed.length += self.key()?.seal(content::DATA, content, &mut wire[sealed.length..])?;
            sealed.taken += content.len();
        }
        Ok(sealed)
    }

    /// Encrypts close_notify, our last record, and returns its length.
    ///
    /// # Errors
    /// As [`Self::seal`].
    pub fn seal_close_notify(&mut self, wire: &mut [u8]) -> Result<usize, RecordError> {
        self.key()?.seal(content::ALERT, &[1, CLOSE_NOTIFY], wire)
    }

    /// Encrypts the alert for `error`, if there is one, and returns its length.
    pub fn seal_alert(&mut self, error: &RecordError, wire: &mut [u8]) -> Option<usize> {
        self.key().ok()?.seal(content::ALERT, &[2, error.alert()?], wire).ok()
    }

    fn update_key(&mut self, wire: &mut [u8]) -> Result<usize, RecordError> {
        if self.version == Version::Tls12 {
            return Err(RecordError::KeyUsedUp);
        }
        let length = self.key()?.seal(content::HANDSHAKE, &KEY_UPDATE, wire)?;
        let keys = self.schedule.next_sending()?;
        let key = RecordKey::new(self.version, &Secrets { keys, sequence: 0 })?;
        self.sending = SendingKey::Here(Box::new(key));
        Ok(length)
    }

    fn key(&mut self) -> Result<&mut RecordKey, RecordError> {
        if let SendingKey::Fresh(secrets) = &self.sending {
            self.sending = SendingKey::Here(Box::new(RecordKey::new(self.version, secrets)?));
        }
        match &mut self.sending {
            SendingKey::Here(key) => Ok(key),
            SendingKey::Fresh(_) | SendingKey::Elsewhere => {
                Err(rustls::Error::General("the key was given away".to_owned()).into())
            }
        }
    }
}

#[cfg(test)]
mod tests;
