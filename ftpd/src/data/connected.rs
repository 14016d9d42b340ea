//! A data connection that has come: a thread takes it for a transfer, or what is to be sent is so
//! little that no thread is worth its while.

use std::{
    io::{self, Read},
    net,
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
    progress::Progress,
    stream::{self, DataStream},
};
use crate::{metrics, scratch::Scratch, tls::records::Records};

/// How long bytes may wait for more before they are stored: a client that writes line by line is not
/// kept from seeing its lines in the file.
const GATHERING: Duration = Duration::from_millis(20);

/// The socket of a data connection.
pub enum Socket {
    /// As the kernel gave it, and blocking: the runtime knows nothing of it, which for most transfers
    /// it need not, and to tell it costs a small one a tenth of its time.
    Plain(net::TcpStream),
    /// The runtime has watched it already.
    Watched(TcpStream),
}

impl Socket {
    /// # Errors
    /// The socket is unusable.
    pub fn watched(self) -> io::Result<TcpStream> {
        match self {
            Self::Watched(stream) => Ok(stream),
            Self::Plain(socket) => {
                socket.set_nonblocking(true)?;
                TcpStream::from_std(socket)
            }
        }
    }

    fn blocking(self) -> io::Result<net::TcpStream> {
        match self {
            Self::Plain(socket) => Ok(socket),
            // It becomes blocking with its stall limit.
            Self::Watched(stream) => stream.into_std(),
        }
    }

    /// Sends `bytes` and ends the stream.
    async fn send(self, mut bytes: &[u8]) -> io::Result<()> {
        if let Self::Plain(socket) = &self {
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
        let stream = self.watched()?;
        write_all(&stream, bytes).await?;
        stream::end(SockRef::from(&stream))
    }
}

/// A connection that came to a passive port.
pub struct Arrived {
    pub socket: Socket,
    /// From a balancer, with a PROXY header.
    pub by_balancer: bool,
    /// The TLS handshake is over: it resumed the TLS session of the session that gets this.
    pub records: Option<Box<Records>>,
}

/// A data connection, its TLS handshake over if it has one.
pub struct Connected {
    socket: Socket,
    encryption: Option<Box<Encryption>>,
    early: Early,
    by_balancer: bool,
}

/// What came before a thread took the connection.
#[derive(Default)]
pub struct Early {
    bytes: Vec<u8>,
    read: usize,
    /// How the stream ended, if it has.
    end: Option<io::Result<()>>,
}

impl Early {
    pub fn is_all(&self) -> bool {
        self.end.is_some()
    }

    /// Bytes that were not read yet.
    pub fn left(&self) -> usize {
        self.bytes.len() - self.read
    }

    /// Adds what a read has brought: bytes, the end of the stream, or an error.
    pub fn put(&mut self, read: io::Result<&[u8]>, progress: &Progress) {
        match read {
            Ok([]) => {
                progress.note_end();
                self.end = Some(Ok(()));
            }
            Ok(bytes) => self.bytes.extend_from_slice(bytes),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => self.end = Some(Err(error)),
        }
    }

    async fn take_in(&mut self, stream: &TcpStream, most: usize, progress: &Progress) {
        let read = async {
            stream.readable().await?;
            // Only now, so that who waits holds no memory.
            self.bytes.reserve(most);
            stream.try_read_buf(&mut self.bytes)
        };
        match read.await {
            Ok(0) => {
                progress.note_end();
                self.end = Some(Ok(()));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => self.end = Some(Err(error)),
        }
    }
}

impl Read for Early {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = &self.bytes[self.read..];
        if left.is_empty() {
            return match self.end.take() {
                Some(Err(error)) => {
                    self.end = Some(Ok(()));
                    Err(error)
                }
                end => {
                    self.end = end;
                    Ok(0)
                }
            };
        }
        let length = left.len().min(buffer.len());
        buffer[..length].copy_from_slice(&left[..length]);
        self.read += length;
        Ok(length)
    }
}

/// How a data connection is encrypted.
pub struct Encryption {
    /// Of a handshake that is over.
    pub records: Records,
    /// Downloads are left to the kernel where it can.
    pub kernel_seals: bool,
    /// An end without close_notify is an error of the connection.
    pub close_notify_required: bool,
}

impl Connected {
    pub fn plain(arrived: Arrived) -> Self {
        let Arrived { socket, by_balancer, .. } = arrived;
        Self { socket, encryption: None, early: Early::default(), by_balancer }
    }

    pub fn encrypted(stream: TcpStream, encryption: Encryption, by_balancer: bool) -> Self {
        let socket = Socket::Watched(stream);
        Self { socket, encryption: Some(Box::new(encryption)), early: Early::default(), by_balancer }
    }

    /// For blocking use on a thread of its own.
    ///
    /// # Errors
    /// The socket is unusable.
    pub fn for_thread(self) -> io::Result<DataStream> {
        let socket = self.socket.blocking()?;
        Ok(match self.encryption {
            None => DataStream::plain(socket, self.early, self.by_balancer),
            Some(encryption) => DataStream::encrypted(socket, *encryption, self.by_balancer),
        })
    }

    /// The same, for [`Self::gather`].
    ///
    /// # Errors
    /// The socket is unusable.
    pub fn watched(self) -> io::Result<Self> {
        Ok(Self { socket: Socket::Watched(self.socket.watched()?), ..self })
    }

    /// Waits for the first bytes, and takes in what comes at once, up to `most` bytes or somewhat more:
    /// no thread waits for a client that has nothing to say yet, and a small upload is whole before
    /// one takes it. What goes wrong is told where the bytes are read. Can be dropped at any time.
    ///
    /// TLS is left to the thread: its buffers are for threads.
    pub async fn gather(&mut self, most: usize, stall_limit: Duration, progress: &Progress) {
        let (Socket::Watched(stream), None) = (&self.socket, &self.encryption) else { return };
        let early = &mut self.early;
        if stall_limit.is_zero() {
            early.take_in(stream, most, progress).await;
        } else if let Err(late) = timeout(stall_limit, early.take_in(stream, most, progress)).await {
            early.end = Some(Err(late.into()));
        }
        let rest = async {
            while early.bytes.len() < most && early.end.is_none() {
                early.take_in(stream, most, progress).await;
            }
        };
        // In time or not, what has come is there.
        let _ = timeout(GATHERING, rest).await;
    }

    /// Sends `content` and ends the connection: the peer has then got everything, or will. Cut short
    /// by dropping it.
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

/// `content` as records, and close_notify, after what the handshake has left.
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
