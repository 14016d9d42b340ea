//! The bytes of a control connection: commands in, replies out.

use std::{
    future::poll_fn,
    io,
    net::Shutdown,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use common::session::SessionId;
use tokio::{
    io::{AsyncRead, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::server::TlsStream;

use crate::{
    protocol::{Reply, command::is_foreign, line::LineBuffer},
    tls::{Handshake, Tls},
    work::presence::has_ended,
};

/// Bytes read at once.
const READ: usize = 4096;

/// Replies are gathered up to this many bytes while pipelined commands are executed.
const GATHER: usize = 4096;

/// How often [`Control::ended`] asks.
const END_INTERVAL: Duration = Duration::from_secs(1);

/// What came over a control connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    Bytes,
    /// The first bytes are of another protocol.
    Foreign,
    /// The client has left, or the connection broke.
    End,
}

/// A control connection. Neither side holds memory while nothing is under way.
pub struct Control {
    stream: Stream,
    replies: Vec<u8>,
    reply_timeout: Duration,
    has_spoken: bool,
}

/// The connection itself.
enum Stream {
    Plain(TcpStream),
    Encrypted(Box<TlsStream<TcpStream>>),
    /// A handshake has failed, or is under way.
    Gone,
}

impl Stream {
    fn poll_fill(&mut self, context: &mut Context<'_>, read: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            // Not `poll_read`: it takes a buffer that was not filled for the last of the data, but
            // the kernel also stops at a byte that was sent urgent, and what follows would be
            // noticed only when still more comes.
            Self::Plain(stream) => loop {
                ready!(stream.poll_read_ready(context)?);
                match stream.try_read_buf(read) {
                    Ok(_) => return Poll::Ready(Ok(())),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Poll::Ready(Err(error)),
                }
            },
            Self::Encrypted(stream) => Pin::new(stream).poll_read(context, read),
            Self::Gone => Poll::Ready(Ok(())),
        }
    }
}

impl Control {
    /// `reply_timeout`: how long the client may take to accept replies.
    pub fn new(stream: TcpStream, reply_timeout: Duration) -> Self {
        Self { stream: Stream::Plain(stream), replies: Vec::new(), reply_timeout, has_spoken: false }
    }

    /// Another descriptor of the connection, to ask the kernel for its state.
    ///
    /// # Errors
    /// The process has too many.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        match &self.stream {
            Stream::Plain(stream) => stream.as_fd().try_clone_to_owned(),
            Stream::Encrypted(stream) => stream.get_ref().0.as_fd().try_clone_to_owned(),
            Stream::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Returns once the client has closed its side of the connection, or the connection broke, also where
    /// bytes that were not read yet stand before its end. For a caller that reads nothing meanwhile.
    /// Cancel-safe.
    ///
    /// The kernel is asked once a second: the runtime tells of the end only together with new bytes.
    pub async fn ended(&self) {
        let stream = match &self.stream {
            Stream::Plain(stream) => stream,
            Stream::Encrypted(stream) => stream.get_ref().0,
            Stream::Gone => return,
        };
        while !has_ended(stream) {
            sleep(END_INTERVAL).await;
        }
    }

    /// Waits for bytes and adds them to `lines`. Cancel-safe.
    pub async fn fill(&mut self, lines: &mut LineBuffer) -> Received {
        poll_fn(|context| {
            // On the stack of the poll, not in the task: idle sessions hold no buffer.
            let mut bytes = [0; READ];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(self.stream.poll_fill(context, &mut read).map(|result| if result.is_err() {
                read.clear();
            }));
            Poll::Ready(match read.filled() {
                [] => Received::End,
                // Looked at before Telnet's bytes are taken out: TLS records have such bytes.
                bytes if !self.has_spoken && is_foreign(bytes) => Received::Foreign,
                bytes => {
                    self.has_spoken = true;
                    lines.extend(bytes);
                    Received::Bytes
                }
            })
        })
        .await
    }

    /// Answers the client's TLS handshake. What it sent in the clear and has not been read by then
    /// cannot be a handshake, and ends the connection.
    ///
    /// # Errors
    /// The handshake failed; the connection is gone.
    pub async fn encrypt(&mut self, tls: &Tls, session: SessionId) -> io::Result<Handshake> {
        self.flush().await?;
        let Stream::Plain(stream) = std::mem::replace(&mut self.stream, Stream::Gone) else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let (stream, handshake) = tls.accept(stream, session).await?;
        self.stream = Stream::Encrypted(Box::new(stream));
        Ok(handshake)
    }

    /// Adds a reply to those that [`Self::flush`] sends.
    pub fn push(&mut self, reply: &Reply) {
        reply.encode(&mut self.replies);
    }

    pub fn must_flush(&self) -> bool {
        self.replies.len() >= GATHER
    }

    /// Sends the gathered replies.
    ///
    /// # Errors
    /// The connection broke, or the client does not read.
    pub async fn flush(&mut self) -> io::Result<()> {
        if self.replies.is_empty() {
            return Ok(());
        }
        let replies = std::mem::take(&mut self.replies);
        let sent = match &mut self.stream {
            Stream::Plain(stream) => match stream.try_write(&replies) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error),
            },
            Stream::Encrypted(_) => 0,
            Stream::Gone => return Err(io::ErrorKind::NotConnected.into()),
        };
        if sent < replies.len() {
            let limit = self.reply_timeout;
            // Boxed, so that idle sessions do not pay for it.
            Box::pin(timeout(limit, self.write(&replies[sent..]))).await??;
        }
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Plain(stream) => stream.write_all(bytes).await,
            Stream::Encrypted(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
            Stream::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Sends what is gathered and ends the connection.
    pub async fn close(mut self) {
        // In all of this the client may be gone already.
        let _ = self.flush().await;
        let _ = match &mut self.stream {
            Stream::Plain(stream) => socket2::SockRef::from(&*stream).shutdown(Shutdown::Write),
            // Sends close_notify before it closes.
            Stream::Encrypted(stream) => {
                Box::pin(timeout(self.reply_timeout, stream.shutdown())).await.unwrap_or(Ok(()))
            }
            Stream::Gone => Ok(()),
        };
    }
}
