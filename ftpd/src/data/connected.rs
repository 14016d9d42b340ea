//! A data connection that has come: a thread takes it for a transfer, or what is to be sent is so
//! little that no thread is worth its while.

use std::{
    io::{self, Read},
    time::Duration,
};

use socket2::SockRef;
use tokio::{net::TcpStream, time::timeout};

use super::stream::{self, DataStream};
use crate::{metrics, scratch::Scratch, tls::records::Records};

/// How long bytes may wait for more before they are stored: a client that writes line by line is not
/// kept from seeing its lines in the file.
const GATHERING: Duration = Duration::from_millis(20);

/// A data connection, its TLS handshake over if it has one.
pub struct Connected {
    stream: TcpStream,
    encryption: Option<Box<Encryption>>,
    early: Early,
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
    pub fn plain(stream: TcpStream) -> Self {
        Self { stream, encryption: None, early: Early::default() }
    }

    pub fn encrypted(stream: TcpStream, encryption: Encryption) -> Self {
        Self { stream, encryption: Some(Box::new(encryption)), early: Early::default() }
    }

    /// For blocking use on a thread of its own.
    ///
    /// # Errors
    /// The socket is unusable.
    pub fn for_thread(self) -> io::Result<DataStream> {
        let socket = self.stream.into_std()?;
        Ok(match self.encryption {
            None => DataStream::plain(socket, self.early),
            Some(encryption) => DataStream::encrypted(socket, *encryption),
        })
    }

    /// Waits for the first bytes, and takes in what comes at once, up to `most` bytes or somewhat more:
    /// no thread waits for a client that has nothing to say yet, and a small upload is whole before
    /// one takes it. What goes wrong is told where the bytes are read. Can be dropped at any time.
    ///
    /// TLS is left to the thread: its buffers are for threads.
    pub async fn gather(&mut self, most: usize, stall_limit: Duration) {
        if self.encryption.is_some() {
            return;
        }
        if stall_limit.is_zero() {
            self.take_in(most).await;
        } else if let Err(late) = timeout(stall_limit, self.take_in(most)).await {
            self.early.end = Some(Err(late.into()));
        }
        let rest = async {
            while self.early.bytes.len() < most && self.early.end.is_none() {
                self.take_in(most).await;
            }
        };
        // In time or not, what has come is there.
        let _ = timeout(GATHERING, rest).await;
    }

    async fn take_in(&mut self, most: usize) {
        let read = async {
            self.stream.readable().await?;
            // Only now, so that who waits holds no memory.
            self.early.bytes.reserve(most);
            self.stream.try_read_buf(&mut self.early.bytes)
        };
        match read.await {
            Ok(0) => self.early.end = Some(Ok(())),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => self.early.end = Some(Err(error)),
        }
    }

    /// Sends `content` and ends the connection: the peer has then got everything, or will. Cut short
    /// by dropping it.
    ///
    /// # Errors
    /// The peer is gone.
    pub async fn send(self, content: &[u8]) -> io::Result<()> {
        match self.encryption {
            None => write_all(&self.stream, content).await?,
            Some(encryption) => {
                metrics::tls_download("records");
                let sealed = seal(encryption.records, content)?;
                write_all(&self.stream, &sealed).await?;
            }
        }
        stream::end(SockRef::from(&self.stream))
    }
}

/// `content` as records, and close_notify.
fn seal(mut records: Records, mut content: &[u8]) -> io::Result<Vec<u8>> {
    let mut wire = Scratch::take();
    let mut sealed = Vec::new();
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
