//! An open data connection, before a worker takes it. Small downloads are sent from here, without a worker.

use std::{
    io,
    net::{self, SocketAddr},
    os::fd::AsRawFd,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, send},
};
use socket2::SockRef;
use tokio::{net::TcpStream, time::timeout};

use super::{
    early::EarlyBytes,
    stream::{self, DataStream},
};
use crate::{
    metrics,
    tls::records::Records,
    work::{presence::ClientPresence, scratch::Scratch},
};

/// How long [`Connected::gather`] waits for more bytes after the first. Short, so that the lines of a client
/// that writes line by line are in the file soon.
const GATHER_TIME: Duration = Duration::from_millis(20);

/// The socket of a data connection.
pub enum Socket {
    /// Blocking, not registered with tokio. Most transfers never need registration, which costs a small one
    /// about 10 %.
    Blocking(net::TcpStream),
    /// Registered with tokio.
    Registered(TcpStream),
}

impl Socket {
    /// Registers the socket with tokio.
    ///
    /// # Errors
    /// The socket is unusable.
    pub fn register(self) -> io::Result<TcpStream> {
        match self {
            Self::Registered(stream) => Ok(stream),
            Self::Blocking(socket) => {
                socket.set_nonblocking(true)?;
                TcpStream::from_std(socket)
            }
        }
    }

    /// The address of this end.
    ///
    /// # Errors
    /// The socket is unusable.
    pub(super) fn local_address(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Blocking(socket) => socket.local_addr(),
            Self::Registered(stream) => stream.local_addr(),
        }
    }

    fn into_blocking(self) -> io::Result<net::TcpStream> {
        match self {
            Self::Blocking(socket) => Ok(socket),
            // `limit_stalls` makes it blocking.
            Self::Registered(stream) => stream.into_std(),
        }
    }

    /// Sends `bytes` and ends the stream.
    async fn send(self, mut bytes: &[u8]) -> io::Result<()> {
        if let Self::Blocking(socket) = &self {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            while !bytes.is_empty() {
                match send(socket.as_raw_fd(), bytes, flags) {
                    Ok(sent) => bytes = &bytes[sent..],
                    Err(Errno::EINTR) => {}
                    Err(Errno::EAGAIN) => break,
                    Err(errno) => return Err(errno.into()),
                }
            }
            if bytes.is_empty() {
                return stream::end(SockRef::from(socket));
            }
        }
        let stream = self.register()?;
        write_all(&stream, bytes).await?;
        stream::end(SockRef::from(&stream))
    }
}

/// A connection to a passive port.
pub struct Arrived {
    pub socket: Socket,
    /// The connection came from a balancer, with a PROXY header.
    pub by_balancer: bool,
    /// Set if the TLS handshake is complete. It resumed the TLS session of the session that gets the
    /// connection.
    pub records: Option<Box<Records>>,
}

/// A data connection after its TLS handshake, if it has one.
pub struct Connected {
    socket: Socket,
    encryption: Option<Box<Encryption>>,
    early: EarlyBytes,
    by_balancer: bool,
}

/// How a data connection is encrypted.
pub struct Encryption {
    /// The state of TLS after the handshake.
    pub records: Records,
    /// The kernel encrypts downloads if it can.
    pub kernel_seals: bool,
    /// An end of the stream without close_notify is an error.
    pub close_notify_required: bool,
}

impl Connected {
    pub fn plain(arrived: Arrived) -> Self {
        let Arrived { socket, by_balancer, .. } = arrived;
        Self { socket, encryption: None, early: EarlyBytes::default(), by_balancer }
    }

    pub fn encrypted(stream: TcpStream, encryption: Encryption, by_balancer: bool) -> Self {
        let socket = Socket::Registered(stream);
        Self { socket, encryption: Some(Box::new(encryption)), early: EarlyBytes::default(), by_balancer }
    }

    /// Returns the connection for blocking use on a worker.
    ///
    /// # Errors
    /// The socket is unusable.
    pub fn into_stream(self) -> io::Result<DataStream> {
        let socket = self.socket.into_blocking()?;
        Ok(match self.encryption {
            None => DataStream::plain(socket, self.early, self.by_balancer),
            Some(encryption) => DataStream::encrypted(socket, *encryption, self.by_balancer),
        })
    }

    /// Registers the connection with tokio, for [`Self::gather`].
    ///
    /// # Errors
    /// The socket is unusable.
    pub fn register(self) -> io::Result<Self> {
        Ok(Self { socket: Socket::Registered(self.socket.register()?), ..self })
    }

    /// Waits for the first bytes and reads those that follow within `GATHER_TIME`, up to `max` bytes or
    /// somewhat more. So no worker waits for a client that sends nothing yet, and a small upload is complete
    /// before a worker takes it. An error is kept for the worker that reads the bytes. Cancel-safe.
    ///
    /// With TLS this does nothing: a worker decrypts, because it has the buffers.
    pub async fn gather(&mut self, max: usize, stall_limit: Duration, client: &ClientPresence) {
        let (Socket::Registered(stream), None) = (&self.socket, &self.encryption) else { return };
        let early = &mut self.early;
        if stall_limit.is_zero() {
            read(early, stream, max, client).await;
        } else if let Err(late) = timeout(stall_limit, read(early, stream, max, client)).await {
            early.put(Err(late.into()));
        }
        let rest = async {
            while early.len() < max && !early.has_ended() {
                read(early, stream, max, client).await;
            }
        };
        // After the timeout, the bytes that were read are kept.
        let _ = timeout(GATHER_TIME, rest).await;
    }

    /// Sends `content` and ends the stream. Dropping the future aborts the transfer.
    ///
    /// # Errors
    /// The peer is gone.
    pub async fn send(self, content: &[u8]) -> io::Result<()> {
        match self.encryption {
            None => self.socket.send(content).await,
            Some(encryption) => {
                metrics::tls_download("records");
                let sealed = seal(encryption.records, content)?;
                self.socket.send(&sealed).await
            }
        }
    }
}

/// Reads bytes of an upload early, and notes the end of its data.
async fn read(early: &mut EarlyBytes, stream: &TcpStream, max: usize, client: &ClientPresence) {
    if early.read_from(stream, max).await {
        client.note_end();
    }
}

/// Returns the wire bytes: the tickets that the handshake has left, `content` as records, and close_notify.
fn seal(mut records: Records, mut content: &[u8]) -> io::Result<Vec<u8>> {
    let mut wire = Scratch::take();
    let mut sealed = records.take_tickets();
    while !content.is_empty() {
        let batch = records.seal(content, &mut wire).map_err(io::Error::other)?;
        sealed.extend_from_slice(&wire[..batch.length]);
        content = &content[batch.taken..];
    }
    let end = records.seal_close_notify(&mut wire).map_err(io::Error::other)?;
    sealed.extend_from_slice(&wire[..end]);
    Ok(sealed)
}

async fn write_all(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
