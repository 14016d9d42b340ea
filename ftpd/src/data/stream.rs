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
    connected::{Early, Encryption},
    encrypted::{Encrypted, On},
    progress::Progress,
    transfer::{self, TransferError},
};

/// Bytes that [`DataStream::await_first`] reads at most.
const FIRST: usize = 4096;

/// A data connection that is ready for a transfer, on a thread of its own.
pub struct DataStream {
    socket: Arc<TcpStream>,
    tls: Option<Box<Encrypted>>,
    /// Comes before what is still in the socket; with TLS it is what [`Self::await_first`] has read.
    early: Early,
    by_balancer: bool,
}

/// How an upload's data connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataEnd {
    /// TLS's close_notify: the client itself said that this is all.
    CloseNotify,
    /// The end of the TCP connection, where TLS would have had close_notify.
    WithoutCloseNotify,
    /// The end of a TCP connection that came from the client itself. A connection that was reset would
    /// have arrived as reset.
    OfClient,
    /// The end of a TCP connection that came from a balancer. nginx ends a connection in this way also
    /// where its client reset it.
    OfBalancer,
}

impl DataStream {
    /// `by_balancer`: the connection came from a balancer, with a PROXY header.
    pub fn plain(socket: TcpStream, early: Early, by_balancer: bool) -> Self {
        Self { socket: Arc::new(socket), tls: None, early, by_balancer }
    }

    pub fn encrypted(socket: TcpStream, encryption: Encryption, by_balancer: bool) -> Self {
        Self {
            socket: Arc::new(socket),
            tls: Some(Box::new(Encrypted::new(encryption))),
            early: Early::default(),
            by_balancer,
        }
    }

    /// How the data ended, once a receiving method has returned `Ok`.
    pub fn data_end(&self) -> DataEnd {
        match &self.tls {
            Some(tls) if tls.is_closed() => DataEnd::CloseNotify,
            Some(_) => DataEnd::WithoutCloseNotify,
            None if self.by_balancer => DataEnd::OfBalancer,
            None => DataEnd::OfClient,
        }
    }

    /// Whether an end without close_notify proves nothing.
    pub fn close_notify_required(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.close_notify_required())
    }

    /// For shutting it down from elsewhere.
    pub fn socket(&self) -> &Arc<TcpStream> {
        &self.socket
    }

    /// Every wait for the peer ends after `limit`.
    ///
    /// # Errors
    /// The socket is unusable.
    pub fn limit_stalls(&self, limit: Duration) -> io::Result<()> {
        // Nobody waits any more where everything has come.
        if self.early.is_all() { Ok(()) } else { transfer::limit_stalls(&self.socket, limit) }
    }

    /// Sends the bytes of `range` that `file` has; answers how many.
    ///
    /// # Errors
    /// See [`TransferError`].
    pub fn send_file(
        &mut self,
        file: &File,
        range: Range<u64>,
        progress: &Progress,
    ) -> Result<u64, TransferError> {
        match &mut self.tls {
            None => transfer::send_file(file, range, &self.socket, progress),
            Some(tls) => tls.send_file(&self.socket, file, range, progress),
        }
    }

    /// [`Self::send_file`] in TYPE A.
    ///
    /// # Errors
    /// See [`TransferError`].
    pub fn send_ascii(
        &mut self,
        file: &File,
        range: Range<u64>,
        progress: &Progress,
    ) -> Result<u64, TransferError> {
        transfer::send_ascii(file, range, self, progress)
    }

    /// Waits for the first bytes of an upload, which the methods below store. Answers how many have come:
    /// none if the stream has ended, however.
    pub fn await_first(&mut self, progress: &Progress) -> usize {
        let mut bytes = [0; FIRST];
        while self.early.left() == 0 && !self.early.is_all() {
            let read = match &mut self.tls {
                None => (&*self.socket).read(&mut bytes),
                Some(tls) => On(tls, &self.socket).read(&mut bytes),
            };
            self.early.put(read.map(|length| &bytes[..length]), progress);
        }
        self.early.left()
    }

    /// Stores what arrives at `offset` and after; answers how many bytes.
    ///
    /// # Errors
    /// See [`TransferError`].
    pub fn receive_file(
        &mut self,
        file: &File,
        offset: u64,
        progress: &Progress,
    ) -> Result<u64, TransferError> {
        match self.tls {
            None => {
                if self.early.is_all() {
                    return transfer::receive_into(&mut self.early, file, offset, progress);
                }
                let length = self.early.left();
                let early = transfer::receive_first(&mut self.early, length, file, offset, progress)?;
                let rest = transfer::receive_file(&self.socket, file, offset + early, progress)?;
                Ok(early + rest)
            }
            Some(_) => transfer::receive_into(self, file, offset, progress),
        }
    }

    /// [`Self::receive_file`] in TYPE A.
    ///
    /// # Errors
    /// See [`TransferError`].
    pub fn receive_ascii(
        &mut self,
        file: &File,
        offset: u64,
        progress: &Progress,
    ) -> Result<u64, TransferError> {
        transfer::receive_ascii(self, file, offset, progress)
    }

    /// Everything has been sent, or received: tells the peer so. The reply 226 comes after this.
    ///
    /// # Errors
    /// The peer is gone before it got everything.
    pub fn finish(&mut self, progress: &Progress) -> Result<(), TransferError> {
        let result = self.close();
        result.map_err(|error| TransferError::of_connection(error, progress))
    }

    fn close(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            tls.close(&self.socket)?;
        }
        end(SockRef::from(&*self.socket))
    }

    /// After an upload the client may be gone at once, which is its right: nothing of its data is
    /// missing.
    pub fn finish_receiving(&mut self) {
        if self.tls.is_none() && self.early.is_all() {
            // It has said all, and what closes the socket tells it that we have too.
            return;
        }
        if let Err(error) = self.close() {
            log::debug!("a data connection was closed by the client first: {error}");
        }
    }
}

/// Ends our side of a connection whose socket is closed next. What the peer has said unasked, as the
/// close_notify of a client that only receives, is thrown away: unread, it would make the kernel reset
/// the connection and forget what it has not sent yet, which nobody but the client would notice.
///
/// # Errors
/// The connection is gone.
pub(super) fn end(socket: SockRef<'_>) -> io::Result<()> {
    /// Who says more than this times 4 KiB has only himself to blame.
    const MOST: usize = 256;
    socket.shutdown(Shutdown::Write)?;
    let mut unread = [MaybeUninit::uninit(); 4096];
    // MSG_TRUNC copies nothing (tcp(7)).
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    for _ in 0..MOST {
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
            Some(tls) => On(tls, &self.socket).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for DataStream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.early.left() > 0 || self.early.is_all() {
            return self.early.read(bytes);
        }
        match &mut self.tls {
            None => (&*self.socket).read(bytes),
            Some(tls) => On(tls, &self.socket).read(bytes),
        }
    }
}
