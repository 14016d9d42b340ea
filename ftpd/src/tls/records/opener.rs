//! What the peer has sent: records are found in it and opened.

use std::ops::Range;

use super::{Fault, HEADER, LONGEST_CONTENT, Version, WIRE_VERSION, content, control::Control, key::Key};
use crate::work::scratch::Scratch;

/// The longest body of a record: RFC 8446 section 5.2 and RFC 5246 section 6.2.3.
const LONGEST_BODY_13: usize = LONGEST_CONTENT + 256;
const LONGEST_BODY_12: usize = LONGEST_CONTENT + 2048;

/// What can be had of what was received.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// So many bytes.
    Data(usize),
    /// Nothing, before more is received.
    Wanting,
    /// Nothing any more: the peer has sent all that it wants to.
    Closed,
}

/// What one attempt brought.
pub(super) enum Opening {
    Step(Step),
    /// Everything after it needs another key, which is to be [set](Opener::replace_key).
    KeyUpdate {
        requested: bool,
    },
}

pub(super) struct Opener {
    version: Version,
    key: Key,
    received: Received,
    /// Data of `received` that was opened where it is.
    opened: Range<usize>,
    control: Control,
    /// Nothing is opened after one.
    fault: bool,
}

/// The bytes that came. Not yet opened are those in `range`.
struct Received {
    buffer: Buffer,
    range: Range<usize>,
}

enum Buffer {
    /// What was read with the handshake, which may be nothing: an idle connection has no large
    /// buffer.
    Early(Vec<u8>),
    Large(Scratch),
}

impl Opener {
    pub(super) fn new(version: Version, key: Key, early: Vec<u8>) -> Self {
        let range = 0..early.len();
        Self {
            version,
            key,
            received: Received { buffer: Buffer::Early(early), range },
            opened: 0..0,
            control: Control::default(),
            fault: false,
        }
    }

    pub(super) fn room(&mut self) -> &mut [u8] {
        self.received.room()
    }

    pub(super) fn received(&mut self, length: usize) {
        self.received.range.end += length;
    }

    pub(super) fn is_within_record(&self) -> bool {
        !self.received.range.is_empty() || self.control.is_within_message()
    }

    pub(super) fn replace_key(&mut self, key: Key) {
        self.key = key;
    }

    /// Opens at most one record with content. `data` is not empty.
    pub(super) fn open(&mut self, data: &mut [u8]) -> Result<Opening, Fault> {
        if self.fault {
            return Err(Fault::Unexpected);
        }
        let opening = self.try_open(data);
        self.fault = opening.is_err();
        opening
    }

    fn try_open(&mut self, data: &mut [u8]) -> Result<Opening, Fault> {
        loop {
            if !self.opened.is_empty() {
                return Ok(Opening::Step(Step::Data(self.give_opened(data))));
            }
            if self.control.is_closed {
                return Ok(Opening::Step(Step::Closed));
            }
            let Some(record) = self.received.record(self.version)? else {
                return Ok(Opening::Step(Step::Wanting));
            };
            let start = self.received.range.start + HEADER;
            let (header, body) = self.received.take(record);
            let length = self.key.content(body.len())?.len();
            // Straight to where it is wanted, if it fits there.
            let (kind, content) = if let Some(data) = data.get_mut(..length) {
                let (kind, length) = self.key.open_to(header, body, data)?;
                if kind == content::DATA && length > 0 {
                    self.control.interrupted_by_data()?;
                    return Ok(Opening::Step(Step::Data(length)));
                }
                (kind, &data[..length])
            } else {
                let (kind, range) = self.key.open_in_place(header, body)?;
                if kind == content::DATA && !range.is_empty() {
                    self.control.interrupted_by_data()?;
                    self.opened = start + range.start..start + range.end;
                    continue;
                }
                (kind, &body[range])
            };
            if let Some(requested) = self.control.hear(self.version, kind, content)? {
                return Ok(Opening::KeyUpdate { requested });
            }
        }
    }

    fn give_opened(&mut self, data: &mut [u8]) -> usize {
        let length = data.len().min(self.opened.len());
        let end = self.opened.start + length;
        data[..length].copy_from_slice(&self.received.bytes()[self.opened.start..end]);
        self.opened.start = end;
        length
    }
}

fn body_length(header: [u8; HEADER]) -> usize {
    usize::from(u16::from_be_bytes([header[3], header[4]]))
}

impl Received {
    fn bytes(&self) -> &[u8] {
        match &self.buffer {
            Buffer::Early(bytes) => bytes,
            Buffer::Large(bytes) => bytes,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.buffer {
            Buffer::Early(bytes) => bytes,
            Buffer::Large(bytes) => bytes,
        }
    }

    /// Space behind what is not yet opened, which moves to the front.
    fn room(&mut self) -> &mut [u8] {
        let range = std::mem::take(&mut self.range);
        self.range = 0..range.len();
        match &mut self.buffer {
            Buffer::Large(bytes) => bytes.copy_within(range, 0),
            Buffer::Early(bytes) => {
                let mut large = Scratch::take();
                // The buffer of a handshake, and so this, is at most twice a record and the longest
                // message that rustls takes (64 KiB).
                large[..range.len()].copy_from_slice(&bytes[range]);
                self.buffer = Buffer::Large(large);
            }
        }
        let end = self.range.end;
        &mut self.bytes_mut()[end..]
    }

    /// The length of the record that comes next, if it is whole.
    fn record(&self, version: Version) -> Result<Option<usize>, Fault> {
        let bytes = &self.bytes()[self.range.clone()];
        let Some(header) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
        let longest = match (version, header[0]) {
            // Everything is disguised as data (RFC 8446 section 5.2).
            (Version::Tls13, content::DATA) => LONGEST_BODY_13,
            (Version::Tls12, content::ALERT | content::HANDSHAKE | content::DATA) => LONGEST_BODY_12,
            (_, 20..=23) => return Err(Fault::Unexpected),
            _ => return Err(Fault::NoRecord),
        };
        if header[1..3] != WIRE_VERSION {
            return Err(Fault::NoRecord);
        }
        let length = body_length(*header);
        if length > longest {
            return Err(Fault::TooLong);
        }
        Ok((bytes.len() >= HEADER + length).then_some(length))
    }

    /// Takes the record out that [`Self::record`] has found.
    fn take(&mut self, length: usize) -> ([u8; HEADER], &mut [u8]) {
        let start = self.range.start;
        self.range.start += HEADER + length;
        let mut header = [0; HEADER];
        let (head, body) = self.bytes_mut()[start..][..HEADER + length].split_at_mut(HEADER);
        header.copy_from_slice(head);
        (header, body)
    }
}
