//! The copy loops of data connections: blocking, each on a thread of its own.
//!
//! Plain connections copy inside the kernel ([`send_file`], [`receive_file`]). The others take any
//! reader or writer, so they serve TLS as well. SIGPIPE is ignored in Rust programs, which
//! `sendfile` to a closed socket depends on.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::sendfile::sendfile;

use super::ascii::{Incoming, Outgoing};
pub use super::progress::Progress;
use super::splice::{self, Moved};
use crate::{jail::FileError, scratch::Scratch};

/// Bytes in one `sendfile` call: smaller ones cost more (64 KiB half as much again), and between
/// two calls the progress shows and a cancellation is seen.
const SENDFILE: usize = 2 * 1024 * 1024;

/// NFS wants pieces of at least 256 KiB.
const BUFFER: usize = 256 * 1024;

/// What a [`ListingWriter`] collects before it writes.
const LISTING_BUFFER: usize = 64 * 1024;

/// Why a transfer ended early.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    #[error("cancelled")]
    Cancelled,
    #[error("the client closed the control connection")]
    ClientLeft,
    #[error("no data moved for as long as stall_timeout allows")]
    Stalled,
    /// Everything that arrived was whole, but an attacker or a broken network could have ended it as well.
    #[error(
        "the upload ended without TLS's close_notify (.NET's FtpWebRequest never sends it: tls_close_notify, or \
         tls.close_notify of the user, set to false allows that)"
    )]
    NoCloseNotify,
    #[error("data connection lost")]
    ConnectionLost(#[source] io::Error),
    #[error("storage failed")]
    File(#[from] FileError),
    #[error("the quota of the home is used up")]
    OverQuota,
    #[error("it cannot be known whether the quota has room")]
    QuotaUnknown,
    /// The lease of an upload is older than `node_lease`, and the storage has no locks that cross nodes.
    #[error("the right to write the file was not renewed in time")]
    NoRight,
}

/// The cause of an error of [`std::io::Read`]: an encrypted stream ended without close_notify, after a whole record.
#[derive(Debug, thiserror::Error)]
#[error("no close_notify")]
pub struct NoCloseNotify;

impl TransferError {
    /// What an error of the data connection means. After a cancellation every error is its doing.
    pub fn of_connection(error: io::Error, progress: &Progress) -> Self {
        match error.kind() {
            _ if progress.is_cancelled() => progress.why_cancelled(),
            _ if progress.is_cut_off() => Self::ClientLeft,
            _ if error.get_ref().is_some_and(|cause| cause.is::<NoCloseNotify>()) => Self::NoCloseNotify,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Stalled,
            _ => Self::ConnectionLost(error),
        }
    }

    /// What an error of a call means that has a file on one side and a socket on the other.
    pub(super) fn of_either(errno: Errno, progress: &Progress) -> Self {
        match errno {
            Errno::EAGAIN
            | Errno::EPIPE
            | Errno::ECONNRESET
            | Errno::ECONNABORTED
            | Errno::ECONNREFUSED
            | Errno::ENOTCONN
            | Errno::ESHUTDOWN
            | Errno::ETIMEDOUT
            | Errno::EHOSTUNREACH
            | Errno::EHOSTDOWN
            | Errno::ENETUNREACH
            | Errno::ENETDOWN
            | Errno::ENETRESET => Self::of_socket(errno, progress),
            _ => Self::File(errno.into()),
        }
    }

    pub(super) fn of_socket(errno: Errno, progress: &Progress) -> Self {
        // ETIMEDOUT of TCP is a peer that does not acknowledge, not our stall limit.
        match errno {
            Errno::ETIMEDOUT if !progress.is_cancelled() => Self::ConnectionLost(errno.into()),
            _ => Self::of_connection(errno.into(), progress),
        }
    }
}

/// Makes `socket` blocking, and every wait for the peer end after `stall_limit`; zero waits for
/// ever.
///
/// # Errors
/// The socket is unusable.
pub fn limit_stalls(socket: &TcpStream, stall_limit: Duration) -> io::Result<()> {
    let limit = (!stall_limit.is_zero()).then_some(stall_limit);
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(limit)?;
    socket.set_write_timeout(limit)
}

/// Sends the bytes of `range` that `file` has; fewer than its length if the file has become
/// shorter. Answers how many.
///
/// # Errors
/// See [`TransferError`].
pub fn send_file(
    file: &File,
    range: Range<u64>,
    socket: &TcpStream,
    progress: &Progress,
) -> Result<u64, TransferError> {
    let mut position = range.start;
    while position < range.end {
        // At most SENDFILE, so it fits.
        let wanted = progress.piece((range.end - position).min(SENDFILE as u64) as usize)?;
        let Ok(mut offset) = libc::off_t::try_from(position) else {
            break;
        };
        match sendfile(socket, file, Some(&mut offset), wanted) {
            Ok(0) => break,
            Ok(sent) => {
                position += sent as u64;
                progress.add(sent as u64);
            }
            Err(Errno::EINTR) => {}
            Err(Errno::EINVAL | Errno::ENOSYS) => {
                let mut socket = socket;
                let rest = send_from(file, position..range.end, &mut socket, progress)?;
                position += rest;
                break;
            }
            Err(errno) => return Err(TransferError::of_either(errno, progress)),
        }
    }
    check(progress)?;
    Ok(position - range.start)
}

/// [`send_file`] through memory, to any writer.
///
/// # Errors
/// See [`TransferError`].
pub fn send_from(
    file: &File,
    range: Range<u64>,
    writer: &mut impl Write,
    progress: &Progress,
) -> Result<u64, TransferError> {
    each_piece(file, range, |piece| write_all(writer, piece, progress))
}

/// [`send_from`] with lines that end in CRLF (TYPE A). Answers the bytes written.
///
/// # Errors
/// See [`TransferError`].
pub fn send_ascii(
    file: &File,
    range: Range<u64>,
    writer: &mut impl Write,
    progress: &Progress,
) -> Result<u64, TransferError> {
    let mut converter = Outgoing::default();
    let mut converted = Vec::with_capacity(2 * BUFFER);
    let mut sent = 0;
    each_piece(file, range, |piece| {
        converted.clear();
        converter.convert(piece, &mut converted);
        sent += converted.len() as u64;
        write_all(writer, &converted, progress)
    })?;
    Ok(sent)
}

/// Stores what arrives until the end of the stream, at `offset` and after. Answers how many bytes.
/// The end is the peer's word only: whether it may be believed is for the caller to decide.
///
/// # Errors
/// See [`TransferError`]. What has arrived before is in the file.
pub fn receive_file(
    socket: &TcpStream,
    file: &File,
    offset: u64,
    progress: &Progress,
) -> Result<u64, TransferError> {
    match splice::receive(socket, file, offset, progress)? {
        Moved::All(bytes) => Ok(bytes),
        Moved::Unable(bytes) => {
            let mut socket = socket;
            Ok(bytes + receive_into(&mut socket, file, offset + bytes, progress)?)
        }
    }
}

/// [`receive_file`] through memory, from any reader.
///
/// # Errors
/// See [`TransferError`].
pub fn receive_into(
    reader: &mut impl Read,
    file: &File,
    offset: u64,
    progress: &Progress,
) -> Result<u64, TransferError> {
    let mut buffer = Scratch::take();
    let buffer = &mut buffer[..BUFFER];
    let mut received = 0;
    loop {
        let (filled, end) = fill(reader, buffer, progress);
        write(file, &buffer[..filled], offset + received, progress)?;
        received += filled as u64;
        if let Some(end) = end {
            return end.map(|()| received);
        }
    }
}

/// [`receive_into`] of exactly `length` bytes that are there, and are not the end of the stream. At most
/// [`BUFFER`].
///
/// # Errors
/// See [`TransferError`].
pub(super) fn receive_first(
    reader: &mut impl Read,
    length: usize,
    file: &File,
    offset: u64,
    progress: &Progress,
) -> Result<u64, TransferError> {
    let mut buffer = Scratch::take();
    let (filled, end) = fill(reader, &mut buffer[..length.min(BUFFER)], progress);
    write(file, &buffer[..filled], offset, progress)?;
    end.unwrap_or(Ok(())).map(|()| filled as u64)
}

/// [`receive_into`] with lines that end in CRLF on the wire (TYPE A). Answers the bytes received;
/// the file gets fewer.
///
/// # Errors
/// See [`TransferError`].
pub fn receive_ascii(
    reader: &mut impl Read,
    file: &File,
    offset: u64,
    progress: &Progress,
) -> Result<u64, TransferError> {
    let mut converter = Incoming::default();
    let mut buffer = Scratch::take();
    let buffer = &mut buffer[..BUFFER];
    let mut converted = Vec::with_capacity(BUFFER + 1);
    let mut received = 0;
    let mut position = offset;
    loop {
        let (filled, end) = fill(reader, buffer, progress);
        converted.clear();
        converter.convert(&buffer[..filled], &mut converted);
        if end.is_some() {
            converter.finish(&mut converted);
        }
        write(file, &converted, position, progress)?;
        position += converted.len() as u64;
        received += filled as u64;
        if let Some(end) = end {
            return end.map(|()| received);
        }
    }
}

/// Writes a piece of an upload, if it may still write.
fn write(file: &File, bytes: &[u8], offset: u64, progress: &Progress) -> Result<(), TransferError> {
    progress.may_store()?;
    file.write_all_at(bytes, offset).map_err(FileError::from)?;
    progress.note_stored(bytes.len() as u64);
    Ok(())
}

/// Collects listing lines, and sends them in large pieces.
#[derive(Debug)]
pub struct ListingWriter<'p, W> {
    writer: W,
    buffer: Vec<u8>,
    progress: &'p Progress,
    sent: u64,
}

impl<'p, W: Write> ListingWriter<'p, W> {
    /// `writer` is the data connection, `&TcpStream` or TLS.
    pub fn new(writer: W, progress: &'p Progress) -> Self {
        Self { writer, buffer: Vec::with_capacity(LISTING_BUFFER), progress, sent: 0 }
    }

    /// # Errors
    /// See [`TransferError`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), TransferError> {
        if self.buffer.len() + bytes.len() > LISTING_BUFFER {
            self.send()?;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// Sends the rest. Answers all bytes sent.
    ///
    /// # Errors
    /// See [`TransferError`].
    pub fn finish(mut self) -> Result<u64, TransferError> {
        self.send()?;
        Ok(self.sent)
    }

    fn send(&mut self) -> Result<(), TransferError> {
        write_all(&mut self.writer, &self.buffer, self.progress)?;
        self.sent += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

/// An end of file is the peer's only where this node has not shut the socket down itself.
pub(super) fn check(progress: &Progress) -> Result<(), TransferError> {
    match progress {
        _ if progress.is_cancelled() => Err(progress.why_cancelled()),
        _ if progress.is_cut_off() => Err(TransferError::ClientLeft),
        _ => Ok(()),
    }
}

/// Reads `range` until its end or the file's. Answers how many bytes.
fn each_piece(
    file: &File,
    range: Range<u64>,
    mut consume: impl FnMut(&[u8]) -> Result<(), TransferError>,
) -> Result<u64, TransferError> {
    let mut buffer = Scratch::take();
    let buffer = &mut buffer[..BUFFER];
    let mut position = range.start;
    while position < range.end {
        // At most BUFFER, so it fits.
        let wanted = (range.end - position).min(BUFFER as u64) as usize;
        match file.read_at(&mut buffer[..wanted], position) {
            Ok(0) => break,
            Ok(read) => {
                consume(&buffer[..read])?;
                position += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(FileError::from(error).into()),
        }
    }
    Ok(position - range.start)
}

/// As `Write::write_all`, but progress shows while a slow peer takes the data.
fn write_all(writer: &mut impl Write, mut bytes: &[u8], progress: &Progress) -> Result<(), TransferError> {
    while !bytes.is_empty() {
        let piece = progress.piece(bytes.len())?;
        match writer.write(&bytes[..piece]) {
            Ok(0) => {
                return Err(TransferError::ConnectionLost(io::ErrorKind::WriteZero.into()));
            }
            Ok(written) => {
                bytes = &bytes[written..];
                progress.add(written as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(TransferError::of_connection(error, progress)),
        }
    }
    Ok(())
}

/// Reads until the buffer is full, so that the file gets few large writes. What was read counts
/// even if the stream then ended, well or not.
fn fill(
    reader: &mut impl Read,
    buffer: &mut [u8],
    progress: &Progress,
) -> (usize, Option<Result<(), TransferError>>) {
    let mut filled = 0;
    while filled < buffer.len() {
        let piece = match progress.piece(buffer.len() - filled) {
            Ok(piece) => piece,
            Err(error) => return (filled, Some(Err(error))),
        };
        match reader.read(&mut buffer[filled..filled + piece]) {
            Ok(0) => {
                progress.note_end();
                return (filled, Some(check(progress)));
            }
            Ok(read) => {
                if let Err(error) = progress.arrived(read as u64) {
                    return (filled, Some(Err(error)));
                }
                filled += read;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                return (filled, Some(Err(TransferError::of_connection(error, progress))));
            }
        }
        if progress.is_cancelled() {
            return (filled, Some(Err(progress.why_cancelled())));
        }
    }
    (filled, None)
}
