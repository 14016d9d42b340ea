//! The TLS of a data connection on a worker: system calls around [`Records`], or the kernel's TLS.

use std::{
    fs::File,
    io::{self, IoSlice, Read, Write},
    net::TcpStream,
    ops::Range,
    os::fd::AsRawFd,
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv},
};

use super::{
    connected::Encryption,
    copy::{self, CopyJob},
    error::{CopyError, NoCloseNotify},
};
use crate::{
    metrics,
    tls::{
        kernel,
        records::{BATCH, OpenResult, RecordError, Records},
    },
    work::scratch::Scratch,
};

/// Download sizes that the kernel encrypts. Up to one `BATCH`, user space is cheaper. The upper bound keeps
/// AES-GCM below 2^24 records per key (RFC 8446 section 5.5) even with one page per record; kernels before
/// 6.14 cannot rekey.
const KERNEL_SEALS: Range<u64> = BATCH as u64 + 1..1 << 36;

/// TLS of one connection.
pub(super) struct Encrypted {
    records: Records,
    kernel_seals: bool,
    /// The end of the stream without close_notify is an error, because an attacker could have ended it.
    close_notify_required: bool,
    sealer: Sealer,
    /// True while a peer that only receives data may still send control records.
    listens: bool,
    /// The peer's close_notify has come.
    is_closed: bool,
}

/// The part that encrypts the records that are sent.
enum Sealer {
    Here {
        /// Allocated at the first write.
        wire: Option<Scratch>,
    },
    Kernel,
}

impl Encrypted {
    pub(super) fn new(encryption: Encryption) -> Self {
        let Encryption { records, kernel_seals, close_notify_required } = encryption;
        let sealer = Sealer::Here { wire: None };
        Self { records, kernel_seals, close_notify_required, sealer, listens: true, is_closed: false }
    }

    /// Returns true if the peer has ended the stream with close_notify.
    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }

    pub(super) fn close_notify_required(&self) -> bool {
        self.close_notify_required
    }

    /// See [`copy::send_file`].
    pub(super) fn send_file(
        &mut self,
        socket: &TcpStream,
        file: &File,
        range: Range<u64>,
        job: &CopyJob<'_>,
    ) -> Result<u64, CopyError> {
        let length = range.end.saturating_sub(range.start);
        if self.kernel_seals && KERNEL_SEALS.contains(&length) {
            let handed = self.hand_to_kernel(socket);
            handed.map_err(|error| job.connection_error(error))?;
        }
        match self.sealer {
            Sealer::Kernel => {
                metrics::tls_download("kernel");
                copy::send_file(file, range, socket, job)
            }
            Sealer::Here { .. } => {
                metrics::tls_download("records");
                copy::send_from(file, range, &mut EncryptedSocket(self, socket), job)
            }
        }
    }

    fn hand_to_kernel(&mut self, mut socket: &TcpStream) -> io::Result<()> {
        socket.write_all(&self.records.take_tickets())?;
        let Some(secrets) = self.records.give_away() else { return Ok(()) };
        match kernel::seal(socket, self.records.version(), &secrets) {
            Ok(()) => self.sealer = Sealer::Kernel,
            Err(errno) => {
                log::debug!("the kernel does not seal for this connection: {errno}");
                self.records.take_back(secrets);
            }
        }
        Ok(())
    }

    /// Sends close_notify.
    pub(super) fn close(&mut self, socket: &TcpStream) -> io::Result<()> {
        match &mut self.sealer {
            Sealer::Kernel => kernel::send_close_notify(socket),
            Sealer::Here { wire } => {
                let wire = wire.get_or_insert_with(Scratch::take);
                let length = self.records.seal_close_notify(wire).map_err(broken)?;
                send(&mut self.records, socket, &wire[..length])
            }
        }
    }

    pub(super) fn write(&mut self, mut socket: &TcpStream, data: &[u8]) -> io::Result<usize> {
        self.listen(socket)?;
        let wire = match &mut self.sealer {
            Sealer::Kernel => return socket.write(data),
            Sealer::Here { wire } => wire.get_or_insert_with(Scratch::take),
        };
        let sealed = self.records.seal(data, wire).map_err(broken)?;
        send(&mut self.records, socket, &wire[..sealed.length])?;
        Ok(sealed.taken)
    }

    pub(super) fn read(&mut self, mut socket: &TcpStream, data: &mut [u8]) -> io::Result<usize> {
        if data.is_empty() {
            return Ok(0);
        }
        loop {
            let step = self.open(socket, data)?;
            match step {
                OpenResult::Data(length) => return Ok(length),
                OpenResult::Closed => {
                    self.is_closed = true;
                    return Ok(0);
                }
                OpenResult::NeedsMore => {}
            }
            let received = socket.read(self.records.room())?;
            if received == 0 {
                return match (self.records.is_within_record(), self.close_notify_required) {
                    // A complete upload never ends within a record.
                    (true, _) => Err(io::ErrorKind::UnexpectedEof.into()),
                    (false, true) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, NoCloseNotify)),
                    (false, false) => Ok(0),
                };
            }
            self.records.received(received);
        }
    }

    /// Decrypts received bytes, and answers the peer if it expects an answer.
    fn open(&mut self, socket: &TcpStream, data: &mut [u8]) -> io::Result<OpenResult> {
        let opened = self.records.open(data);
        let Sealer::Here { wire } = &mut self.sealer else { return opened.map_err(broken) };
        match opened {
            Ok(step) if self.records.owes_answer() => {
                let wire = wire.get_or_insert_with(Scratch::take);
                let sealed = self.records.seal(&[], wire).map_err(broken)?;
                send(&mut self.records, socket, &wire[..sealed.length])?;
                Ok(step)
            }
            Ok(step) => Ok(step),
            Err(fault) => {
                let wire = wire.get_or_insert_with(Scratch::take);
                if let Some(length) = self.records.seal_alert(&fault, wire) {
                    // The connection fails anyway; the alert only tells the peer why.
                    let _ = send(&mut self.records, socket, &wire[..length]);
                }
                Err(broken(fault))
            }
        }
    }

    /// Reads what a peer that only receives sends: a KeyUpdate, which expects an answer (RFC 8446 section
    /// 4.6.3), or an alert. Reads nothing while the kernel encrypts, because it could not answer.
    fn listen(&mut self, socket: &TcpStream) -> io::Result<()> {
        while self.listens && matches!(self.sealer, Sealer::Here { .. }) {
            let mut data = [0];
            match self.open(socket, &mut data)? {
                OpenResult::NeedsMore => {}
                // Unexpected data stays unread.
                OpenResult::Data(_) | OpenResult::Closed => {
                    self.listens = false;
                    return Ok(());
                }
            }
            let flags = MsgFlags::MSG_DONTWAIT;
            let peeked = recv(socket.as_raw_fd(), &mut data, flags | MsgFlags::MSG_PEEK);
            let received = match peeked {
                Ok(1..) => recv(socket.as_raw_fd(), self.records.room(), flags),
                other => other,
            };
            match received {
                // The peer may end its side, because it has nothing to send.
                Ok(0) => self.listens = false,
                Ok(length) => self.records.received(length),
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

/// An encrypted connection as a reader and a writer.
pub(super) struct EncryptedSocket<'c>(pub(super) &'c mut Encrypted, pub(super) &'c TcpStream);

impl Read for EncryptedSocket<'_> {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        self.0.read(self.1, data)
    }
}

impl Write for EncryptedSocket<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.write(self.1, data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends the tickets that the handshake has left, and `sealed`, in one write.
fn send(records: &mut Records, mut socket: &TcpStream, sealed: &[u8]) -> io::Result<()> {
    let tickets = records.take_tickets();
    let parts = &mut [IoSlice::new(&tickets), IoSlice::new(sealed)][..];
    let mut left = if tickets.is_empty() { &mut parts[1..] } else { parts };
    while !left.is_empty() {
        match socket.write_vectored(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn broken(fault: RecordError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, fault)
}
