//! The byte stream of a control connection, in plain text or TLS: command lines in, replies out.

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
const READ_SIZE: usize = 4096;

/// Replies to pipelined commands are sent together, once they have this many bytes.
const FLUSH_SIZE: usize = 4096;

/// Interval at which [`ControlStream::closed_by_client`] asks the kernel.
const CLOSED_INTERVAL: Duration = Duration::from_secs(1);

/// The result of a read from a control connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    Bytes,
    /// The first bytes belong to another protocol, such as HTTP.
    ForeignProtocol,
    /// The client has closed the connection, or the connection was lost.
    End,
}

/// A control connection. It holds no buffers while it is idle.
pub struct ControlStream {
    stream: Transport,
    replies: Vec<u8>,
    reply_timeout: Duration,
    /// Bytes have come from the client.
    has_received: bool,
}

enum Transport {
    Plain(TcpStream),
    Encrypted(Box<TlsStream<TcpStream>>),
    /// A handshake is in progress, or has failed.
    Gone,
}

impl Transport {
    fn poll_fill(&mut self, context: &mut Context<'_>, read: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            // Not `poll_read`: after a read that does not fill the buffer it waits for new readiness. The
            // kernel also stops a read at an urgent byte; the bytes behind it would stay unread until more
            // bytes come.
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

impl ControlStream {
    /// `reply_timeout` is the longest time that the client may take to accept replies.
    pub fn new(stream: TcpStream, reply_timeout: Duration) -> Self {
        Self { stream: Transport::Plain(stream), replies: Vec::new(), reply_timeout, has_received: false }
    }

    /// Duplicates the descriptor of the connection, to ask the kernel for the connection's state.
    ///
    /// # Errors
    /// The process has too many open files, or the connection is gone.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        match &self.stream {
            Transport::Plain(stream) => stream.as_fd().try_clone_to_owned(),
            Transport::Encrypted(stream) => stream.get_ref().0.as_fd().try_clone_to_owned(),
            Transport::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Returns once the client has closed its side of the connection, or the connection was lost, even if
    /// unread bytes precede the end. For a caller that does not read meanwhile. Cancel-safe.
    ///
    /// Asks the kernel once a second, because the runtime reports the end only together with new bytes.
    pub async fn closed_by_client(&self) {
        let stream = match &self.stream {
            Transport::Plain(stream) => stream,
            Transport::Encrypted(stream) => stream.get_ref().0,
            Transport::Gone => return,
        };
        while !has_ended(stream) {
            sleep(CLOSED_INTERVAL).await;
        }
    }

    /// Waits for bytes and adds them to `lines`. Cancel-safe.
    pub async fn fill(&mut self, lines: &mut LineBuffer) -> Received {
        poll_fn(|context| {
            // On the stack of the poll, so that idle sessions hold no buffer.
            let mut bytes = [0; READ_SIZE];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(self.stream.poll_fill(context, &mut read).map(|result| if result.is_err() {
                read.clear();
            }));
            Poll::Ready(match read.filled() {
                [] => Received::End,
                // Checked before `lines` removes Telnet commands: TLS records contain bytes that look like
                // them.
                bytes if !self.has_received && is_foreign(bytes) => Received::ForeignProtocol,
                bytes => {
                    self.has_received = true;
                    lines.extend(bytes);
                    Received::Bytes
                }
            })
        })
        .await
    }

    /// Performs the TLS handshake. It fails if unread plain text, such as pipelined commands, precedes it.
    ///
    /// # Errors
    /// The handshake failed; the connection is gone.
    pub async fn encrypt(&mut self, tls: &Tls, session: SessionId) -> io::Result<Handshake> {
        self.flush().await?;
        let Transport::Plain(stream) = std::mem::replace(&mut self.stream, Transport::Gone) else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let (stream, handshake) = tls.accept(stream, session).await?;
        self.stream = Transport::Encrypted(Box::new(stream));
        Ok(handshake)
    }

    /// Adds a reply to the next [`Self::flush`].
    pub fn push(&mut self, reply: &Reply) {
        reply.encode(&mut self.replies);
    }

    /// Returns true if the gathered replies should be sent before the next command.
    pub fn must_flush(&self) -> bool {
        self.replies.len() >= FLUSH_SIZE
    }

    /// Sends the gathered replies.
    ///
    /// # Errors
    /// The connection was lost, or the client did not read the replies within `reply_timeout`.
    pub async fn flush(&mut self) -> io::Result<()> {
        if self.replies.is_empty() {
            return Ok(());
        }
        let replies = std::mem::take(&mut self.replies);
        let sent = match &mut self.stream {
            Transport::Plain(stream) => match stream.try_write(&replies) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error),
            },
            Transport::Encrypted(_) => 0,
            Transport::Gone => return Err(io::ErrorKind::NotConnected.into()),
        };
        if sent < replies.len() {
            let limit = self.reply_timeout;
            // Boxed, so that idle sessions do not hold this future's memory.
            Box::pin(timeout(limit, self.write(&replies[sent..]))).await??;
        }
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Transport::Plain(stream) => stream.write_all(bytes).await,
            Transport::Encrypted(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
            Transport::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Sends the gathered replies and closes the connection. Errors are ignored: the client may have left.
    pub async fn close(mut self) {
        let _ = self.flush().await;
        let _ = match &mut self.stream {
            Transport::Plain(stream) => socket2::SockRef::from(&*stream).shutdown(Shutdown::Write),
            // Sends close_notify first.
            Transport::Encrypted(stream) => {
                Box::pin(timeout(self.reply_timeout, stream.shutdown())).await.unwrap_or(Ok(()))
            }
            Transport::Gone => Ok(()),
        };
    }
}
