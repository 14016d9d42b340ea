//! Transfers as the load generator makes them.

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

/// What came of a transfer that was read.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    pub bytes: u64,
    /// From sending the command.
    pub first_byte: Duration,
}

impl Session {
    /// Downloads `size` bytes and drops them in the kernel: MSG_TRUNC copies nothing. Encrypted
    /// bytes are dropped as they are, after the handshake.
    ///
    /// # Errors
    /// The connection is lost, an unexpected reply, or not that many bytes.
    pub fn download(&mut self, command: &str, size: u64) -> io::Result<()> {
        let socket = self.open_data()?;
        self.command(command, 1)?;
        let received = match self.protect(socket)? {
            Channel::Plain(socket) => drop_bytes(&socket, u64::MAX)?,
            Channel::Encrypted(mut stream) => drop_records(&mut stream, size)?,
        };
        // Records make encrypted files longer, by 22 bytes in 16 KiB or less if they are smaller.
        let longest = if self.tls.is_some() { size + size / 50 + (64 << 10) } else { size };
        if !(size..=longest).contains(&received) {
            return Err(other(format!("{command}: {received} bytes of {size}")));
        }
        self.expect(2)
    }

    /// Downloads to the end and hands the content to `sink`.
    ///
    /// # Errors
    /// The connection is lost, or an unexpected reply.
    pub fn read(&mut self, command: &str, mut sink: impl FnMut(&[u8])) -> io::Result<Received> {
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
                // Some servers close without close_notify.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(error),
            }
        }
        say_goodbye(&mut channel);
        drop(channel);
        self.expect(2)?;
        Ok(Received { bytes, first_byte })
    }

    /// Uploads `size` bytes, `block` again and again.
    ///
    /// # Errors
    /// The connection is lost, or an unexpected reply.
    pub fn upload(&mut self, command: &str, block: &[u8], size: u64) -> io::Result<()> {
        let socket = self.open_data()?;
        self.command(command, 1)?;
        let mut channel = self.protect(socket)?;
        let mut left = size;
        while left > 0 {
            let count = left.min(block.len() as u64);
            // No more than a block's length, which is a usize.
            channel.write_all(&block[..count as usize])?;
            left -= count;
        }
        channel.flush()?;
        say_goodbye(&mut channel);
        channel.socket().shutdown(Shutdown::Write)?;
        if self.tls.is_some() {
            // The server's alert must find the socket open: a reset could overtake the last records.
            let _ = drop_bytes(channel.socket(), u64::MAX);
        }
        drop(channel);
        self.expect(2)
    }

    /// Begins a plain download that is read bit by bit.
    ///
    /// # Errors
    /// The connection is lost, or an unexpected reply.
    pub fn begin_download(mut self, command: &str) -> io::Result<SlowDownload> {
        let socket = self.open_data()?;
        self.command(command, 1)?;
        Ok(SlowDownload { socket, received: 0, _session: self })
    }
}

/// A download by a client that takes only so much at a time.
pub struct SlowDownload {
    socket: TcpStream,
    pub received: u64,
    _session: Session,
}

impl SlowDownload {
    /// Takes up to `most` of the bytes that are there, without waiting.
    ///
    /// # Errors
    /// The transfer has ended.
    pub fn take(&mut self, most: usize) -> io::Result<()> {
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

/// Says that no more comes, where TLS wants that said.
fn say_goodbye(channel: &mut Channel) {
    if let Channel::Encrypted(stream) = channel {
        let StreamOwned { conn, sock } = &mut **stream;
        conn.send_close_notify();
        // The server may have closed already.
        while conn.wants_write() && conn.write_tls(sock).is_ok() {}
    }
}

/// Drops `size` bytes of encrypted content, and what follows up to the end.
fn drop_records(stream: &mut StreamOwned<ClientConnection, TcpStream>, size: u64) -> io::Result<u64> {
    let StreamOwned { conn, sock } = stream;
    // What came with the end of the handshake was read already.
    let state = conn.process_new_packets().map_err(io::Error::other)?;
    let early = state.plaintext_bytes_to_read() as u64;
    let mut received = early + drop_bytes(sock, size.saturating_sub(early))?;
    // Some servers wait for our close_notify before they close (vsftpd). It may be said once all
    // bytes are here, and nothing more comes.
    let mut has_ended = false;
    while !has_ended && poll(&mut [PollFd::new(sock.as_fd(), PollFlags::POLLIN)], PollTimeout::from(5u8))? > 0
    {
        let count = drop_bytes(sock, 1)?;
        received += count;
        has_ended = count == 0;
    }
    conn.send_close_notify();
    while conn.wants_write() && conn.write_tls(sock).is_ok() {}
    Ok(received + drop_bytes(sock, u64::MAX).unwrap_or(0))
}

/// Drops bytes in the kernel until `enough` are gone, or the connection ends.
fn drop_bytes(socket: &TcpStream, enough: u64) -> io::Result<u64> {
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
        // Never written to, so it takes no memory either.
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

/// Bytes that do not compress and do not repeat within `length`.
pub fn pattern(length: usize) -> Vec<u8> {
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
