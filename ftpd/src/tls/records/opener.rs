//! Receive buffer of a connection: finds records in it and decrypts them.

use std::ops::Range;

use super::{
    HEADER, LONGEST_CONTENT, RecordError, Version, WIRE_VERSION, content, control::ControlRecords,
    key::RecordKey,
};
use crate::work::scratch::Scratch;

/// Longest body of a record in bytes (RFC 8446 section 5.2, RFC 5246 section 6.2.3).
const LONGEST_BODY_13: usize = LONGEST_CONTENT + 256;
const LONGEST_BODY_12: usize = LONGEST_CONTENT + 2048;

/// Result of decrypting received bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum OpenResult {
    /// Number of bytes of data.
    Data(usize),
    /// No data until more bytes are received.
    NeedsMore,
    /// The peer has sent close_notify; no data will follow.
    Closed,
}

/// Result of one call to [`Opener::open`].
pub(super) enum Opening {
    Result(OpenResult),
    /// The following records use the next key, which the caller must [set](Opener::replace_key).
    KeyUpdate {
        /// The peer requests a KeyUpdate in return.
        requested: bool,
    },
}

pub(super) struct Opener {
    version: Version,
    key: RecordKey,
    received: ReceiveBuffer,
    /// Range of `received` that was decrypted in place and not returned yet.
    opened: Range<usize>,
    control: ControlRecords,
    /// An error occurred; every further call fails.
    has_failed: bool,
}

/// ReceiveBuffer bytes. Those in `range` are not decrypted yet.
struct ReceiveBuffer {
    buffer: BufferMemory,
    range: Range<usize>,
}

enum BufferMemory {
    /// Bytes read with the handshake, often none. An idle connection holds no large buffer.
    Early(Vec<u8>),
    Large(Scratch),
}

impl Opener {
    pub(super) fn new(version: Version, key: RecordKey, early: Vec<u8>) -> Self {
        let range = 0..early.len();
        Self {
            version,
            key,
            received: ReceiveBuffer { buffer: BufferMemory::Early(early), range },
            opened: 0..0,
            control: ControlRecords::default(),
            has_failed: false,
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

    pub(super) fn replace_key(&mut self, key: RecordKey) {
        self.key = key;
    }

    /// Decrypts at most one record with data. `data` must not be empty.
    pub(super) fn open(&mut self, data: &mut [u8]) -> Result<Opening, RecordError> {
        if self.has_failed {
            return Err(RecordError::Unexpected);
        }
        let opening = self.try_open(data);
        self.has_failed = opening.is_err();
        opening
    }

    fn try_open(&mut self, data: &mut [u8]) -> Result<Opening, RecordError> {
        loop {
            if !self.opened.is_empty() {
                return Ok(Opening::Result(OpenResult::Data(self.copy_opened(data))));
            }
            if self.control.is_closed {
                return Ok(Opening::Result(OpenResult::Closed));
            }
            let Some(record) = self.received.record(self.version)? else {
                return Ok(Opening::Result(OpenResult::NeedsMore));
            };
            let start = self.received.range.start + HEADER;
            let (header, body) = self.received.take(record);
            let length = self.key.content(body.len())?.len();
            // Decrypt directly into `data` if the record fits, else in place.
            let (kind, content) = if let Some(data) = data.get_mut(..length) {
                let (kind, length) = self.key.open_to(header, body, data)?;
                if kind == content::DATA && length > 0 {
                    self.control.data_received()?;
                    return Ok(Opening::Result(OpenResult::Data(length)));
                }
                (kind, &data[..length])
            } else {
                let (kind, range) = self.key.open_in_place(header, body)?;
                if kind == content::DATA && !range.is_empty() {
                    self.control.data_received()?;
                    self.opened = start + range.start..start + range.end;
                    continue;
                }
                (kind, &body[range])
            };
            if let Some(requested) = self.control.handle(self.version, kind, content)? {
                return Ok(Opening::KeyUpdate { requested });
            }
        }
    }

    fn copy_opened(&mut self, data: &mut [u8]) -> usize {
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

impl ReceiveBuffer {
    fn bytes(&self) -> &[u8] {
        match &self.buffer {
            BufferMemory::Early(bytes) => bytes,
            BufferMemory::Large(bytes) => bytes,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.buffer {
            BufferMemory::Early(bytes) => bytes,
            BufferMemory::Large(bytes) => bytes,
        }
    }

    /// Moves the encrypted bytes to the front of the buffer and returns the space after them.
    fn room(&mut self) -> &mut [u8] {
        let range = std::mem::take(&mut self.range);
        self.range = 0..range.len();
        match &mut self.buffer {
            BufferMemory::Large(bytes) => bytes.copy_within(range, 0),
            BufferMemory::Early(bytes) => {
                let mut large = Scratch::take();
                // Fits: a handshake buffer, and so this one, has at most two records and the longest message
                // that rustls accepts (64 KiB).
                large[..range.len()].copy_from_slice(&bytes[range]);
                self.buffer = BufferMemory::Large(large);
            }
        }
        let end = self.range.end;
        &mut self.bytes_mut()[end..]
    }

    /// Length of the next record's body, or `None` if the record is incomplete.
    fn record(&self, version: Version) -> Result<Option<usize>, RecordError> {
        let bytes = &self.bytes()[self.range.clone()];
        let Some(header) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
        let longest = match (version, header[0]) {
            // All TLS 1.3 records have the type of data (RFC 8446 section 5.2).
            (Version::Tls13, content::DATA) => LONGEST_BODY_13,
            (Version::Tls12, content::ALERT | content::HANDSHAKE | content::DATA) => LONGEST_BODY_12,
            (_, 20..=23) => return Err(RecordError::Unexpected),
            _ => return Err(RecordError::NoRecord),
        };
        if header[1..3] != WIRE_VERSION {
            return Err(RecordError::NoRecord);
        }
        let length = body_length(*header);
        if length > longest {
            return Err(RecordError::TooLong);
        }
        Ok((bytes.len() >= HEADER + length).then_some(length))
    }

    /// Takes out the record that [`Self::record`] found: its header and its body of `length` bytes.
    fn take(&mut self, length: usize) -> ([u8; HEADER], &mut [u8]) {
        let start = self.range.start;
        self.range.start += HEADER + length;
        let mut header = [0; HEADER];
        let (head, body) = self.bytes_mut()[start..][..HEADER + length].split_at_mut(HEADER);
        header.copy_from_slice(head);
        (header, body)
    }
}
