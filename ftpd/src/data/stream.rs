//! A data connection in blocking use: plain, or with TLS.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use rustls::ServerConnection;

use super::{
    progress::Progress,
    transfer::{self, TransferError},
};

/// A data connection that is ready for a transfer, on a thread of its own.
pub struct DataStream {
    socket: Arc<TcpStream>,
    tls: Option<Tls>,
}

struct Tls {
    connection: Box<ServerConnection>,
    /// Without it, the end of the stream may be anybody's doing.
    close_notify_required: bool,
}

impl DataStream {
    pub fn plain(socket: TcpStream) -> Self {
        Self { socket: Arc::new(socket), tls: None }
    }

    /// `connection`: with its handshake over. `close_notify_required`: an end without it is an
    /// error of the connection.
    pub fn encrypted(
        socket: TcpStream,
        mut connection: Box<ServerConnection>,
        close_notify_required: bool,
    ) -> Self {
        // What is written is at most one buffer of the transfer, sent before the next one is taken.
        connection.set_buffer_limit(None);
        Self { socket: Arc::new(socket), tls: Some(Tls { connection, close_notify_required }) }
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
        transfer::limit_stalls(&self.socket, limit)
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
        match self.tls {
            None => transfer::send_file(file, range, &self.socket, progress),
            Some(_) => transfer::send_from(file, range, self, progress),
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
            None => transfer::receive_file(&self.socket, file, offset, progress),
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
            tls.connection.send_close_notify();
            while tls.connection.wants_write() {
                tls.connection.write_tls(&mut &*self.socket)?;
            }
        }
        self.socket.shutdown(Shutdown::Write)
    }

    /// After an upload the client may be gone at once, which is its right: nothing of its data is
    /// missing.
    pub fn finish_receiving(&mut self) {
        if let Err(error) = self.close() {
            log::debug!("a data connection was closed by the client first: {error}");
        }
    }
}

impl Write for DataStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.tls {
            None => (&*self.socket).write(bytes),
            Some(tls) => rustls::Stream::new(&mut *tls.connection, &mut &*self.socket).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.tls {
            None => Ok(()),
            Some(tls) => rustls::Stream::new(&mut *tls.connection, &mut &*self.socket).flush(),
        }
    }
}

impl Read for DataStream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            return (&*self.socket).read(bytes);
        };
        match rustls::Stream::new(&mut *tls.connection, &mut &*self.socket).read(bytes) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && !tls.close_notify_required => Ok(0),
            result => result,
        }
    }
}
