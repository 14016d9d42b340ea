//! A data connection in blocking use: plain, or with TLS.

use std::{
    fs::File,
    io::{self, Read, Write},
    mem::MaybeUninit,
    net::{Shutdown, TcpStream},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use socket2::SockRef;

use super::{
    coding::Coding,
    connected::Encryption,
    copy::{self, CopyJob},
    early::EarlyBytes,
    encrypted::{Encrypted, EncryptedSocket},
    error::CopyError,
};

/// Maximum bytes that [`DataStream::await_first`] reads.
const FIRST: usize = 4096;

/// A data connection on the worker that moves its data.
pub struct DataStream {
    socket: Arc<TcpStream>,
    tls: Option<Box<Encrypted>>,
    /// Bytes that come before those in the socket. With TLS, the decrypted bytes that [`Self::await_first`]
    /// has read.
    early: EarlyBytes,
    by_balancer: bool,
}

/// The end of an upload's data connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataEnd {
    /// TLS close_notify: the client itself ended the stream.
    CloseNotify,
    /// The end of the TCP connection, without TLS close_notify.
    WithoutCloseNotify,
    /// The end of a TCP connection that came from the client itself. A reset would have arrived as a reset.
    OfClient,
    /// The end of a TCP connection that came from a balancer. nginx also ends a connection in this way after
    /// its client reset it.
    OfBalancer,
}

impl DataStream {
    /// `by_balancer`: the connection came from a balancer, with a PROXY header.
    pub(super) fn plain(socket: TcpStream, early: EarlyBytes, by_balancer: bool) -> Self {
        Self { socket: Arc::new(socket), tls: None, early, by_balancer }
    }

    pub fn encrypted(socket: TcpStream, encryption: Encryption, by_balancer: bool) -> Self {
        Self {
            socket: Arc::new(socket),
            tls: Some(Box::new(Encrypted::new(encryption))),
            early: EarlyBytes::default(),
            by_balancer,
        }
    }

    /// The end of the data, once [`Self::receive_file`] has returned `Ok`.
    pub fn data_end(&self) -> DataEnd {
        match &self.tls {
            Some(tls) if tls.is_closed() => DataEnd::CloseNotify,
            Some(_) => DataEnd::WithoutCloseNotify,
            None if self.by_balancer => DataEnd::OfBalancer,
            None => DataEnd::OfClient,
        }
    }

    /// Returns true if an upload that ends without close_notify counts as broken off.
    pub fn close_notify_required(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.close_notify_required())
    }

    /// The socket, so that another thread can shut it down.
    pub fn socket(&self) -> &Arc<TcpStream> {
        &self.socket
    }

    /// Limits every wait for the peer to `limit`.
    ///
    /// # Errors
    /// The socket is unusable.
    pub fn limit_stalls(&self, limit: Duration) -> io::Result<()> {
        // An upload that has arrived completely waits for nothing.
        if self.early.has_ended() { Ok(()) } else { copy::limit_stalls(&self.socket, limit) }
    }

    /// Sends the bytes of `range` that `file` has, and returns the bytes sent.
    ///
    /// # Errors
    /// See [`CopyError`].
    pub fn send_file(
        &mut self,
        file: &File,
        range: Range<u64>,
        coding: Coding,
        job: &CopyJob<'_>,
    ) -> Result<u64, CopyError> {
        match (coding, &mut self.tls) {
            (Coding::Image, None) => copy::send_file(file, range, &self.socket, job),
            (Coding::Image, Some(tls)) => tls.send_file(&self.socket, file, range, job),
            (Coding::Ascii, _) => copy::send_ascii(file, range, self, job),
        }
    }

    /// Waits for the first bytes of an upload, which [`Self::receive_file`] stores. Returns their number: 0
    /// after the end of the stream or an error.
    pub fn await_first(&mut self, job: &CopyJob<'_>) -> usize {
        let mut bytes = [0; FIRST];
        while self.early.left() == 0 && !self.early.has_ended() {
            let read = match &mut self.tls {
                None => (&*self.socket).read(&mut bytes),
                Some(tls) => EncryptedSocket(tls, &self.socket).read(&mut bytes),
            };
            if matches!(read, Ok(0)) {
                job.note_end();
            }
            self.early.put(read.map(|length| &bytes[..length]));
        }
        self.early.left()
    }

    /// Stores the bytes that arrive, from `offset` of `file` on, and returns the number of bytes that
    /// arrived.
    ///
    /// # Errors
    /// See [`CopyError`].
    pub fn receive_file(
        &mut self,
        file: &File,
        offset: u64,
        coding: Coding,
        job: &CopyJob<'_>,
    ) -> Result<u64, CopyError> {
        match (coding, &self.tls) {
            (Coding::Image, None) if job.computes_digest() => copy::receive_into(self, file, offset, job),
            (Coding::Image, None) if self.early.has_ended() => {
                copy::receive_into(&mut self.early, file, offset, job)
            }
            (Coding::Image, None) => {
                let length = self.early.left();
                let early = copy::receive_first(&mut self.early, length, file, offset, job)?;
                let rest = copy::receive_file(&self.socket, file, offset + early, job)?;
                Ok(early + rest)
            }
            (Coding::Image, Some(_)) => copy::receive_into(self, file, offset, job),
            (Coding::Ascii, _) => copy::receive_ascii(self, file, offset, job),
        }
    }

    /// Ends the stream after a download. The reply 226 comes after this.
    ///
    /// # Errors
    /// The peer left before it got everything.
    pub fn finish(&mut self, job: &CopyJob<'_>) -> Result<(), CopyError> {
        self.close().map_err(|error| job.connection_error(error))
    }

    fn close(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            tls.close(&self.socket)?;
        }
        end(SockRef::from(&*self.socket))
    }

    /// Ends the stream after a complete upload. The client may have left already, which is no error.
    pub fn finish_receiving(&mut self) {
        if self.tls.is_none() && self.early.has_ended() {
            // The client has ended its side; closing the socket ends the node's side.
            return;
        }
        if let Err(error) = self.close() {
            log::debug!("the client closed the data connection of a complete upload first: {error}");
        }
    }
}

/// Ends the node's side of a connection whose socket is closed next. Discards unread input, such as the
/// close_notify of a client that only receives: with unread input, the kernel would reset the connection and
/// lose the bytes that it has not sent yet.
///
/// # Errors
/// The connection is gone.
pub(super) fn end(socket: SockRef<'_>) -> io::Result<()> {
    /// Discard at most 1 MiB of unread input; a peer that sends more may see a reset.
    const MAX_READS: usize = 256;
    socket.shutdown(Shutdown::Write)?;
    let mut unread = [MaybeUninit::uninit(); 4096];
    // MSG_TRUNC copies nothing (tcp(7)).
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    for _ in 0..MAX_READS {
        if !matches!(socket.recv_with_flags(&mut unread, flags), Ok(1..)) {
            break;
        }
    }
    Ok(())
}

impl Write for DataStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.tls {
            None => (&*self.socket).write(bytes),
            Some(tls) => EncryptedSocket(tls, &self.socket).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for DataStream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.early.left() > 0 || self.early.has_ended() {
            return self.early.read(bytes);
        }
        match &mut self.tls {
            None => (&*self.socket).read(bytes),
            Some(tls) => EncryptedSocket(tls, &self.socket).read(bytes),
        }
    }
}
