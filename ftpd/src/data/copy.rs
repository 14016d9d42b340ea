//! The copy loops of data connections: blocking, each on a worker.
//!
//! Plain connections copy inside the kernel ([`send_file`], [`receive_file`]). The other loops take any
//! reader or writer, so they serve TLS as well. `sendfile` to a closed socket raises SIGPIPE, which Rust
//! programs ignore.

use std::{
    cell::{Cell, RefCell},
    error::Error,
    fs::File,
    io::{self, Read, Write},
    net::TcpStream,
    ops::Range,
    os::unix::fs::FileExt,
    time::Duration,
};

use nix::{errno::Errno, sys::sendfile::sendfile};
use sha2::{Digest, Sha256};

use super::{
    ascii::{Incoming, Outgoing},
    error::CopyError,
    splice::{self, Spliced},
};
use crate::work::{
    pieces::{PIECE, each_piece},
    presence::ClientPresence,
    progress::Progress,
    scratch::Scratch,
};

/// Bytes in one `sendfile` call. Smaller calls cost more (64 KiB: 50 % more). Progress is counted and
/// cancellation is checked between two calls.
const SENDFILE: usize = 2 * 1024 * 1024;

/// Bytes that a [`ListingWriter`] collects before it writes.
const LISTING_BUFFER: usize = 64 * 1024;

/// Slows a copy down or ends it, for example to keep to a bandwidth or a quota.
pub trait CopyPace: Send + Sync {
    /// Returns how many of `max` bytes may move next, and may wait for that. Returns 0 only if `progress`
    /// was cancelled meanwhile.
    ///
    /// # Errors
    /// No further byte may move. The copy ends with [`CopyError::Refused`].
    fn piece(&self, max: usize, progress: &Progress) -> Result<usize, Box<dyn Error + Send + Sync>>;

    /// Notes that bytes have moved over the connection.
    fn moved(&self, bytes: u64);

    /// Notes that bytes have arrived, before they are stored.
    ///
    /// # Errors
    /// They must not be stored. The copy ends with [`CopyError::Refused`].
    fn arrived(&self, bytes: u64) -> Result<(), Box<dyn Error + Send + Sync>>;
}

/// The parameters of one copy, and the number of bytes stored.
pub struct CopyJob<'c> {
    pub progress: &'c Progress,
    /// Set for uploads.
    pub client: Option<&'c ClientPresence>,
    pub pace: Option<&'c dyn CopyPace>,
    /// Asked directly before each write to the file of an upload. False: another session may write the file
    /// by now.
    may_store: Option<&'c dyn Fn() -> bool>,
    stored: Cell<u64>,
    /// The hash of the bytes that were stored.
    digest: Option<RefCell<Sha256>>,
}

impl<'c> CopyJob<'c> {
    /// A copy without a pace and without a guard.
    pub fn new(progress: &'c Progress) -> Self {
        let stored = Cell::new(0);
        Self { progress, client: None, pace: None, may_store: None, stored, digest: None }
    }

    /// The same copy, which asks `may_store` before each write.
    pub fn guarded_by(self, may_store: Option<&'c dyn Fn() -> bool>) -> Self {
        Self { may_store, ..self }
    }

    /// The same copy, which computes SHA-256 of the bytes that it stores. They then pass through memory.
    pub fn with_digest(self) -> Self {
        Self { digest: Some(RefCell::default()), ..self }
    }

    pub(super) fn computes_digest(&self) -> bool {
        self.digest.is_some()
    }

    /// SHA-256 of the bytes that were stored. `None` without [`Self::with_digest`].
    pub fn digest(&self) -> Option<[u8; 32]> {
        self.digest.as_ref().map(|digest| digest.borrow().clone().finalize().into())
    }

    /// The number of bytes in the file of an upload: in TYPE A fewer than arrived.
    pub fn stored(&self) -> u64 {
        self.stored.get()
    }

    /// Notes that the end of an upload's data was seen.
    pub fn note_end(&self) {
        if let Some(client) = self.client {
            client.note_end();
        }
    }

    /// The meaning of an error of the data connection.
    pub(super) fn connection_error(&self, error: io::Error) -> CopyError {
        CopyError::of_connection(error, self.progress, self.client)
    }

    pub(super) fn socket_error(&self, errno: Errno) -> CopyError {
        CopyError::of_socket(errno, self.progress, self.client)
    }

    fn transfer_error(&self, errno: Errno) -> CopyError {
        CopyError::of_either(errno, self.progress, self.client)
    }

    fn check_cancelled(&self) -> Result<(), CopyError> {
        if self.progress.is_cancelled() { Err(CopyError::of_cancellation(self.progress)) } else { Ok(()) }
    }

    /// Returns how many of `max` bytes the copy may move in its next step, at least one.
    pub(super) fn piece(&self, max: usize) -> Result<usize, CopyError> {
        self.check_cancelled()?;
        if self.client.is_some_and(|client| client.has_sent_enough(self.progress.transferred())) {
            return Err(CopyError::ClientLeft);
        }
        let Some(pace) = self.pace else { return Ok(max) };
        match pace.piece(max, self.progress).map_err(CopyError::Refused)? {
            0 => Err(CopyError::of_cancellation(self.progress)),
            piece => Ok(piece),
        }
    }

    fn sent(&self, bytes: usize) {
        self.progress.add(bytes as u64);
        if let Some(pace) = self.pace {
            pace.moved(bytes as u64);
        }
    }

    /// Counts bytes that have arrived and are not stored yet.
    pub(super) fn arrived(&self, bytes: usize) -> Result<(), CopyError> {
        self.sent(bytes);
        self.pace.map_or(Ok(()), |pace| pace.arrived(bytes as u64)).map_err(CopyError::Refused)
    }

    pub(super) fn check_store(&self) -> Result<(), CopyError> {
        if self.may_store.is_none_or(|may_store| may_store()) { Ok(()) } else { Err(CopyError::MayNotStore) }
    }

    /// Counts bytes that are in the file.
    pub(super) fn note_stored(&self, bytes: usize) {
        self.stored.set(self.stored.get() + bytes as u64);
    }

    /// Checks that an end of file comes from the peer, and not from this node, which shuts the socket down to
    /// cancel a copy.
    pub(super) fn check_end(&self) -> Result<(), CopyError> {
        self.check_cancelled()?;
        if self.client.is_some_and(ClientPresence::is_cut_off) { Err(CopyError::ClientLeft) } else { Ok(()) }
    }
}

/// Makes `socket` blocking, and limits every wait for the peer to `stall_limit`. Zero: no limit.
///
/// # Errors
/// The socket is unusable.
pub fn limit_stalls(socket: &TcpStream, stall_limit: Duration) -> io::Result<()> {
    let limit = (!stall_limit.is_zero()).then_some(stall_limit);
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(limit)?;
    socket.set_write_timeout(limit)
}

/// Sends the bytes of `range` that `file` has: fewer than its length if the file has become shorter. Returns
/// the bytes sent.
///
/// # Errors
/// See [`CopyError`].
pub fn send_file(
    file: &File,
    range: Range<u64>,
    socket: &TcpStream,
    job: &CopyJob<'_>,
) -> Result<u64, CopyError> {
    let mut position = range.start;
    while position < range.end {
        // At most SENDFILE, so it fits into usize.
        let wanted = job.piece((range.end - position).min(SENDFILE as u64) as usize)?;
        let Ok(mut offset) = libc::off_t::try_from(position) else {
            break;
        };
        match sendfile(socket, file, Some(&mut offset), wanted) {
            Ok(0) => break,
            Ok(sent) => {
                position += sent as u64;
                job.sent(sent);
            }
            Err(Errno::EINTR) => {}
            Err(Errno::EINVAL | Errno::ENOSYS) => {
                let mut socket = socket;
                let rest = send_from(file, position..range.end, &mut socket, job)?;
                position += rest;
                break;
            }
            Err(errno) => return Err(job.transfer_error(errno)),
        }
    }
    job.check_end()?;
    Ok(position - range.start)
}

/// [`send_file`] through memory, to any writer.
///
/// # Errors
/// See [`CopyError`].
pub fn send_from(
    file: &File,
    range: Range<u64>,
    writer: &mut impl Write,
    job: &CopyJob<'_>,
) -> Result<u64, CopyError> {
    each_piece(file, range, CopyError::Storage, |piece| write_all(writer, piece, job))
}

/// [`send_from`] with lines that end in CRLF (TYPE A). Returns the bytes written.
///
/// # Errors
/// See [`CopyError`].
pub fn send_ascii(
    file: &File,
    range: Range<u64>,
    writer: &mut impl Write,
    job: &CopyJob<'_>,
) -> Result<u64, CopyError> {
    let mut converter = Outgoing::default();
    let mut converted = Vec::with_capacity(2 * PIECE);
    let mut sent = 0;
    each_piece(file, range, CopyError::Storage, |piece| {
        converted.clear();
        converter.convert(piece, &mut converted);
        sent += converted.len() as u64;
        write_all(writer, &converted, job)
    })?;
    Ok(sent)
}

/// Stores the bytes that arrive until the end of the stream, from `offset` of `file` on. Returns their
/// number. The caller decides whether the end of the stream means a complete upload.
///
/// # Errors
/// See [`CopyError`]. The bytes that arrived before are in the file.
pub fn receive_file(
    socket: &TcpStream,
    file: &File,
    offset: u64,
    job: &CopyJob<'_>,
) -> Result<u64, CopyError> {
    match splice::receive(socket, file, offset, job)? {
        Spliced::All(bytes) => Ok(bytes),
        Spliced::Unable(bytes) => {
            let mut socket = socket;
            Ok(bytes + receive_into(&mut socket, file, offset + bytes, job)?)
        }
    }
}

/// [`receive_file`] through memory, from any reader.
///
/// # Errors
/// See [`CopyError`].
pub fn receive_into(
    reader: &mut impl Read,
    file: &File,
    offset: u64,
    job: &CopyJob<'_>,
) -> Result<u64, CopyError> {
    let mut buffer = Scratch::take();
    let buffer = &mut buffer[..PIECE];
    let mut received = 0;
    loop {
        let (filled, end) = fill(reader, buffer, job);
        write(file, &buffer[..filled], offset + received, job)?;
        received += filled as u64;
        if let Some(end) = end {
            return end.map(|()| received);
        }
    }
}

/// [`receive_into`] for the first `length` bytes, at most [`PIECE`], which can be read without waiting. More
/// bytes may follow.
///
/// # Errors
/// See [`CopyError`].
pub(super) fn receive_first(
    reader: &mut impl Read,
    length: usize,
    file: &File,
    offset: u64,
    job: &CopyJob<'_>,
) -> Result<u64, CopyError> {
    let mut buffer = Scratch::take();
    let (filled, end) = fill(reader, &mut buffer[..length.min(PIECE)], job);
    write(file, &buffer[..filled], offset, job)?;
    end.unwrap_or(Ok(())).map(|()| filled as u64)
}

/// [`receive_into`] with lines that end in CRLF on the wire (TYPE A). Returns the bytes received; the file
/// gets fewer.
///
/// # Errors
/// See [`CopyError`].
pub fn receive_ascii(
    reader: &mut impl Read,
    file: &File,
    offset: u64,
    job: &CopyJob<'_>,
) -> Result<u64, CopyError> {
    let mut converter = Incoming::default();
    let mut buffer = Scratch::take();
    let buffer = &mut buffer[..PIECE];
    let mut converted = Vec::with_capacity(PIECE + 1);
    let mut received = 0;
    let mut position = offset;
    loop {
        let (filled, end) = fill(reader, buffer, job);
        converted.clear();
        converter.convert(&buffer[..filled], &mut converted);
        if end.is_some() {
            converter.finish(&mut converted);
        }
        write(file, &converted, position, job)?;
        position += converted.len() as u64;
        received += filled as u64;
        if let Some(end) = end {
            return end.map(|()| received);
        }
    }
}

/// Writes a piece of an upload, if the upload may still write.
fn write(file: &File, bytes: &[u8], offset: u64, job: &CopyJob<'_>) -> Result<(), CopyError> {
    job.check_store()?;
    file.write_all_at(bytes, offset).map_err(CopyError::Storage)?;
    if let Some(digest) = &job.digest {
        digest.borrow_mut().update(bytes);
    }
    job.note_stored(bytes.len());
    Ok(())
}

/// Collects listing lines, and sends them in large pieces.
pub struct ListingWriter<'p, W> {
    writer: W,
    buffer: Vec<u8>,
    job: &'p CopyJob<'p>,
    sent: u64,
}

impl<'p, W: Write> ListingWriter<'p, W> {
    /// `writer` is the data connection, `&TcpStream` or TLS.
    pub fn new(writer: W, job: &'p CopyJob<'p>) -> Self {
        Self { writer, buffer: Vec::with_capacity(LISTING_BUFFER), job, sent: 0 }
    }

    /// # Errors
    /// See [`CopyError`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), CopyError> {
        if self.buffer.len() + bytes.len() > LISTING_BUFFER {
            self.send()?;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// Sends the rest. Returns the number of all bytes sent.
    ///
    /// # Errors
    /// See [`CopyError`].
    pub fn finish(mut self) -> Result<u64, CopyError> {
        self.send()?;
        Ok(self.sent)
    }

    fn send(&mut self) -> Result<(), CopyError> {
        write_all(&mut self.writer, &self.buffer, self.job)?;
        self.sent += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

/// `Write::write_all` that counts progress while a slow peer takes the data.
fn write_all(writer: &mut impl Write, mut bytes: &[u8], job: &CopyJob<'_>) -> Result<(), CopyError> {
    while !bytes.is_empty() {
        let piece = job.piece(bytes.len())?;
        match writer.write(&bytes[..piece]) {
            Ok(0) => {
                return Err(CopyError::ConnectionLost(io::ErrorKind::WriteZero.into()));
            }
            Ok(written) => {
                bytes = &bytes[written..];
                job.sent(written);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(job.connection_error(error)),
        }
    }
    Ok(())
}

/// Reads until the buffer is full, so that the file gets few large writes. Returns the bytes read, and the
/// end of the stream or an error, if one came.
fn fill(
    reader: &mut impl Read,
    buffer: &mut [u8],
    job: &CopyJob<'_>,
) -> (usize, Option<Result<(), CopyError>>) {
    let mut filled = 0;
    while filled < buffer.len() {
        let piece = match job.piece(buffer.len() - filled) {
            Ok(piece) => piece,
            Err(error) => return (filled, Some(Err(error))),
        };
        match reader.read(&mut buffer[filled..filled + piece]) {
            Ok(0) => {
                job.note_end();
                return (filled, Some(job.check_end()));
            }
            Ok(read) => {
                if let Err(error) = job.arrived(read) {
                    return (filled, Some(Err(error)));
                }
                filled += read;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                return (filled, Some(Err(job.connection_error(error))));
            }
        }
        if let Err(error) = job.check_cancelled() {
            return (filled, Some(Err(error)));
        }
    }
    (filled, None)
}
