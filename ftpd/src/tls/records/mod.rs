//! The record layer of data connections (RFC 8446 section 5, RFC 5246 section 6.2): pure, no I/O.
//!
//! rustls does the handshake and derives keys. Its own record layer reads and copies a record at a
//! time, which makes an upload cost twice what it must; here many records are opened from one
//! read, straight to where the data is wanted, and many are sealed for one write.

mod control;
mod key;
mod opener;

use rustls::ConnectionTrafficSecrets;

pub use self::opener::Step;
use self::{
    key::Key,
    opener::{Opener, Opening},
};
use crate::work::scratch::Scratch;

/// The most bytes of data in a record (RFC 8446 section 5.1).
pub const LONGEST_CONTENT: usize = 1 << 14;

/// Data that is sealed at once: 16 whole records.
pub const BATCH: usize = 16 * LONGEST_CONTENT;

/// What a [`Records::seal`] may need: the batch, a KeyUpdate before it, and what is around each.
pub const SEALED_BATCH: usize = BATCH + 18 * (HEADER + MOST_AROUND);

const _: () = assert!(SEALED_BATCH <= Scratch::SIZE);

/// After the handshake both versions say this (RFC 8446 section 5.1).
const WIRE_VERSION: [u8; 2] = [3, 3];

/// Type, version, length.
const HEADER: usize = 5;

/// An explicit nonce and the tag (1.2) or the type and the tag (1.3).
const MOST_AROUND: usize = 8 + 16;

/// RFC 8446 section 4.6.3: `key_update`, one byte long, `update_not_requested`.
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

/// An alert that ends the connection orderly (RFC 8446 section 6.1).
const CLOSE_NOTIFY: u8 = 0;

/// The content types that may come after a handshake (RFC 8446 section 5.1).
mod content {
    pub const ALERT: u8 = 21;
    pub const HANDSHAKE: u8 = 22;
    pub const DATA: u8 = 23;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Tls12,
    Tls13,
}

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("a TLS record was not made with the connection's key")]
    Forged,
    #[error("no TLS record where one must be")]
    NoRecord,
    #[error("a TLS record is too long")]
    TooLong,
    #[error("a TLS message that may not come here")]
    Unexpected,
    #[error("the client wants to renegotiate")]
    Renegotiation,
    #[error("too many TLS messages without data")]
    Flood,
    #[error("the peer sent alert {0}")]
    Alert(u8),
    #[error("this TLS version cannot replace a key, and this one has been used up")]
    KeyUsedUp,
    #[error("no key")]
    NoKey(#[from] rustls::Error),
}

impl Fault {
    /// The description of the alert that tells the peer (RFC 8446 section 6.2).
    fn alert(&self) -> Option<u8> {
        match self {
            Self::Unexpected | Self::Flood => Some(10),
            Self::Forged => Some(20),
            Self::TooLong => Some(22),
            // No_renegotiation would be a warning, after which the client may go on.
            Self::Renegotiation => Some(40),
            Self::NoRecord => Some(50),
            Self::NoKey(_) => Some(80),
            Self::Alert(_) | Self::KeyUsedUp => None,
        }
    }
}

/// Where the keys after a KeyUpdate come from (RFC 8446 section 7.2).
pub trait KeySchedule: Send {
    /// # Errors
    /// There are no others: TLS 1.2.
    fn next_sending(&mut self) -> Result<ConnectionTrafficSecrets, rustls::Error>;

    /// # Errors
    /// As [`Self::next_sending`].
    fn next_receiving(&mut self) -> Result<ConnectionTrafficSecrets, rustls::Error>;
}

/// A direction's first key, and how many records were made with it.
pub struct Secrets {
    pub keys: ConnectionTrafficSecrets,
    pub sequence: u64,
}

/// One connection's records, after its handshake.
pub struct Records {
    version: Version,
    schedule: Box<dyn KeySchedule>,
    opener: Opener,
    /// Records of the handshake that were not sent so far.
    tickets: Vec<u8>,
    sending: Sending,
    /// The peer has asked for a new key of ours, which comes before the next data.
    owes_key_update: bool,
    /// Comes after data that was given out first.
    fault: Option<Fault>,
}

/// Who seals. Nobody else has the key: two that used it would use a nonce twice.
enum Sending {
    /// Nothing was sent so far.
    Fresh(Secrets),
    Here(Box<Key>),
    /// [`Records::give_away`] was called.
    Elsewhere,
}

/// What [`Records::seal`] did.
#[derive(Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Bytes of the data.
    pub taken: usize,
    /// Bytes of `wire`, to be sent.
    pub length: usize,
}

impl Records {
    /// `received`: what came after the handshake, sealed.
    ///
    /// # Errors
    /// A suite that is not known here.
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
            opener: Opener::new(version, Key::new(version, receiving)?, received),
            tickets: Vec::new(),
            sending: Sending::Fresh(sending),
            owes_key_update: false,
            fault: None,
        })
    }

    pub fn version(&self) -> Version {
        self.version
    }

    /// The same after `tickets`, records that the handshake has made.
    #[must_use]
    pub fn after(self, tickets: Vec<u8>) -> Self {
        Self { tickets, ..self }
    }

    /// What is to be sent before anything that is sealed here or elsewhere; empty after the first time.
    pub fn take_tickets(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.tickets)
    }

    /// The sending key, for somebody else to seal with; `None` if it has been used here, or something
    /// is to be sent before. No sealing here succeeds after that, unless it is
    /// [taken back](Self::take_back).
    pub fn give_away(&mut self) -> Option<Secrets> {
        if !self.tickets.is_empty() {
            return None;
        }
        match std::mem::replace(&mut self.sending, Sending::Elsewhere) {
            Sending::Fresh(secrets) => Some(secrets),
            used => {
                self.sending = used;
                None
            }
        }
    }

    /// The key that was given away, and was not used.
    pub fn take_back(&mut self, secrets: Secrets) {
        self.sending = Sending::Fresh(secrets);
    }

    /// Opens what has been received, into `data`: as many records as fit, straight, and a part of
    /// one more. `data` is not empty.
    ///
    /// # Errors
    /// The peer broke the protocol, or ended the connection with an alert. All data before that has
    /// been given out. [`Self::seal_alert`] makes the answer.
    pub fn open(&mut self, data: &mut [u8]) -> Result<Step, Fault> {
        let mut opened = 0;
        while opened < data.len() {
            match self.open_record(&mut data[opened..]) {
                Ok(Step::Data(length)) => opened += length,
                Ok(_) if opened > 0 => break,
                Err(fault) if opened > 0 => {
                    self.fault = Some(fault);
                    break;
                }
                end => return end,
            }
        }
        Ok(Step::Data(opened))
    }

    fn open_record(&mut self, data: &mut [u8]) -> Result<Step, Fault> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        loop {
            match self.opener.open(data)? {
                Opening::Step(step) => return Ok(step),
                Opening::KeyUpdate { requested } => {
                    self.owes_key_update |= requested;
                    let keys = self.schedule.next_receiving()?;
                    self.opener.replace_key(Key::new(self.version, &Secrets { keys, sequence: 0 })?);
                }
            }
        }
    }

    /// Where the next bytes that are received go, and then how many they were; not empty when
    /// [`Self::open`] wants more.
    pub fn room(&mut self) -> &mut [u8] {
        self.opener.room()
    }

    pub fn received(&mut self, length: usize) {
        self.opener.received(length);
    }

    /// Whether the beginning of a record waits for its rest.
    pub fn is_within_record(&self) -> bool {
        self.opener.is_within_record()
    }

    /// Whether the peer waits for [`Self::seal`], be it of no data.
    pub fn owes_answer(&self) -> bool {
        self.owes_key_update
    }

    /// Seals as much of `data` as one batch takes. `wire` has room for [`SEALED_BATCH`].
    ///
    /// # Errors
    /// The key is used up and TLS 1.2 has no other, or is not here.
    pub fn seal(&mut self, data: &[u8], wire: &mut [u8]) -> Result<Sealed, Fault> {
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

    /// The last record of ours, which says that nothing is missing. Answers its length.
    ///
    /// # Errors
    /// As [`Self::seal`].
    pub fn seal_close_notify(&mut self, wire: &mut [u8]) -> Result<usize, Fault> {
        self.key()?.seal(content::ALERT, &[1, CLOSE_NOTIFY], wire)
    }

    /// The record that tells the peer of a fault, if there is one to tell. Answers its length.
    pub fn seal_alert(&mut self, fault: &Fault, wire: &mut [u8]) -> Option<usize> {
        self.key().ok()?.seal(content::ALERT, &[2, fault.alert()?], wire).ok()
    }

    fn update_key(&mut self, wire: &mut [u8]) -> Result<usize, Fault> {
        if self.version == Version::Tls12 {
            return Err(Fault::KeyUsedUp);
        }
        let length = self.key()?.seal(content::HANDSHAKE, &KEY_UPDATE, wire)?;
        let keys = self.schedule.next_sending()?;
        let key = Key::new(self.version, &Secrets { keys, sequence: 0 })?;
        self.sending = Sending::Here(Box::new(key));
        Ok(length)
    }

    fn key(&mut self) -> Result<&mut Key, Fault> {
        if let Sending::Fresh(secrets) = &self.sending {
            self.sending = Sending::Here(Box::new(Key::new(self.version, secrets)?));
        }
        match &mut self.sending {
            Sending::Here(key) => Ok(key),
            Sending::Fresh(_) | Sending::Elsewhere => {
                Err(rustls::Error::General("the key was given away".to_owned()).into())
            }
        }
    }
}

#[cfg(test)]
mod tests;
