//! Transfers of the load generator.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    os::fd::{AsFd, AsRawFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{MsgFlags, recv},
};
use rustls::{ClientConnection, StreamOwned};

use super::{Channel, Session, other};

/// Result of a download whose content was read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received {
    pub bytes: u64,
    /// Time from the command to the first byte.
    pub first_byte: Duration,
}

impl Session {
    /// Downloads a file of `size` bytes and discards the bytes in the kernel (MSG_TRUNC copies
    /// nothing). Encrypted bytes are discarded without decryption, after the handshake.
    ///
    /// # Errors
    /// The connection is lost, the server sends an unexpected reply, or the number of bytes differs.
    pub(crate) fn download(&mut self, command: &str, size: u64) -> io::Result<()> {
        let socket = self.open_data()?;
        self.command(command, 1)?;
        let received = match self.protect(socket)? {
            Channel::Plain(socket) => discard_bytes(&socket, u64::MAX)?,
            Channel::Encrypted(mut stream) => discard_records(&mut stream, size)?,
        };
        // TLS adds 22 bytes to each record of up to 16 KiB, so smaller records add a larger share.
        let longest = if self.tls.is_some() { size + size / 50 + (64 << 10) } else { size };
        if !(size..=longest).contains(&received) {
            return Err(other(format!("{command}: received {received} bytes instead of {size}")));
        }
        self.expect(2)
    }

    /// Downloads to the end and passes the content to `sink`.
    ///
    /// # Errors
    /// The connection is lost, or the server sends an unexpected reply.
    pub(crate) fn read(&mut self, command: &str, mut sink: impl FnMut(&[u8])) -> io::Result<Received> {
        let socket = self.open_data()?;
        let start = Instant::now();
        self.command(command, 1)?;
        let mut channel = self.protect(socket)?;
        let mut buffer = vec![0; 64 << 10];
        let (mut bytes, mut first_byte) = (0, Duration::ZERO);
        loop {
            match channel.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    if bytes == 0 {
                        first_byte = start.elapsed();
                    }
                    bytes += count as u64;
                    sink(&buffer[..count]);
                }
                // Some servers close the connection without close_notify.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(error),
            }
        }
        send_close_notify(&mut channel);
        drop(channel);
        self.expect(2)?;
        Ok(Received { bytes, first_byte })
    }

    /// Uploads `size` bytes by repeating `block`.
    ///
    /// # Errors
    /// The connection is lost, or the server sends an unexpected reply.
    pub(crate) fn upload(&mut self, command: &str, block: &[u8], size: u64) -> io::Result<()> {
        let socket = self.open_data()?;
        self.command(command, 1)?;
        let mut channel = self.protect(socket)?;
        let mut left = size;
        while left > 0 {
            let count = left.min(block.len() as u64);
            // At most the length of the block, which is a usize.
            channel.write_all(&block[..count as usize])?;
            left -= count;
        }
        channel.flush()?;
        send_close_notify(&mut channel);
        channel.socket().shutdown(Shutdown::Write)?;
        if self.tls.is_some() {
            // Reads the server's close_notify. A closed socket would answer it with a reset, and the
            // server would lose the last records.
            let _ = discard_bytes(channel.socket(), u64::MAX);
        }
        drop(channel);
        self.expect(2)
    }

    /// Starts a plain download whose caller decides how fast it is read.
    ///
    /// # Errors
    /// The connection is lost, or the server sends an unexpected reply.
    pub(crate) fn begin_download(self, command: &str) -> io::Result<SlowDownload> {
        let OpenTransfer { socket, _session } = self.begin(command)?;
        Ok(SlowDownload { socket, received: 0, _session })
    }

    /// Starts a plain transfer that moves no bytes.
    ///
    /// # Errors
    /// The connection is lost, or the server sends an unexpected reply.
    pub(crate) fn begin(mut self, command: &str) -> io::Result<OpenTransfer> {
        let socket = self.open_data()?;
        self.command(command, 1)?;
        Ok(OpenTransfer { socket, _session: self })
    }
}

/// A transfer whose data connection is open.
pub(crate) struct OpenTransfer {
    socket: TcpStream,
    _session: Session,
}

/// A download by a client that limits its own rate.
pub(crate) struct SlowDownload {
    socket: TcpStream,
    pub received: u64,
    _session: Session,
}

impl SlowDownload {
    /// Discards up to `most` received bytes without waiting for more.
    ///
    /// # Errors
    /// The transfer has ended.
    pub(crate) fn discard(&mut self, most: usize) -> io::Result<()> {
        match receive(&self.socket, most, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                self.received += count as u64;
                Ok(())
            }
            Err(Errno::EAGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Sends close_notify if the connection uses TLS.
fn send_close_notify(channel: &mut Channel) {
    if let Channel::Encrypted(stream) = channel {
        let StreamOwned { conn, sock } = &mut **stream;
        conn.send_close_notify();
        // The server may have closed the connection already.
        while conn.wants_write() && conn.write_tls(sock).is_ok() {}
    }
}

/// Discards at least `size` bytes of encrypted content, then everything up to the end of the
/// connection. Returns the number of discarded bytes.
fn discard_records(stream: &mut StreamOwned<ClientConnection, TcpStream>, size: u64) -> io::Result<u64> {
    let StreamOwned { conn, sock } = stream;
    // rustls may have read the first records together with the end of the handshake.
    let state = conn.process_new_packets().map_err(io::Error::other)?;
    let early = state.plaintext_bytes_to_read() as u64;
    let mut received = early + discard_bytes(sock, size.saturating_sub(early))?;
    // Some servers (vsftpd) wait for the client's close_notify before they close. The client sends it
    // when all bytes have arrived and no more arrive for 5 ms.
    let mut has_ended = false;
    while !has_ended && poll(&mut [PollFd::new(sock.as_fd(), PollFlags::POLLIN)], PollTimeout::from(5u8))? > 0
    {
        let count = discard_bytes(sock, 1)?;
        received += count;
        has_ended = count == 0;
    }
    conn.send_close_notify();
    while conn.wants_write() && conn.write_tls(sock).is_ok() {}
    Ok(received + discard_bytes(sock, u64::MAX).unwrap_or(0))
}

/// Discards bytes in the kernel until there were `enough`, or the connection ends.
fn discard_bytes(socket: &TcpStream, enough: u64) -> io::Result<u64> {
    let mut total = 0;
    while total < enough {
        match receive(socket, MOST_AT_ONCE, MsgFlags::empty())? {
            0 => break,
            count => total += count as u64,
        }
    }
    Ok(total)
}

const MOST_AT_ONCE: usize = 4 << 20;

fn receive(socket: &TcpStream, most: usize, flags: MsgFlags) -> Result<usize, Errno> {
    thread_local! {
        // MSG_TRUNC never writes to this buffer, so the kernel never allocates its pages.
        static UNTOUCHED: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(vec![0; MOST_AT_ONCE]);
    }
    UNTOUCHED.with_borrow_mut(|buffer| {
        loop {
            let most = most.min(MOST_AT_ONCE);
            match recv(socket.as_raw_fd(), &mut buffer[..most], MsgFlags::MSG_TRUNC | flags) {
                Err(Errno::EINTR) => {}
                result => return result,
            }
        }
    })
}

/// Returns `length` bytes that do not compress and do not repeat.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        // Marsaglia's xorshift
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(length).collect()
}
