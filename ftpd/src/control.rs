//! The bytes of a control connection: commands in, replies out.

use std::{
    io,
    net::Shutdown,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};

use crate::protocol::{Reply, command::is_foreign, line::LineBuffer};

/// Replies are gathered up to this many bytes while pipelined commands are executed.
const GATHER: usize = 4096;

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
    stream: TcpStream,
    replies: Vec<u8>,
    reply_timeout: Duration,
    has_spoken: bool,
}

impl Control {
    /// `reply_timeout`: how long the client may take to accept replies.
    pub fn new(stream: TcpStream, reply_timeout: Duration) -> Self {
        // ABOR may come with Telnet's Synch as urgent data (RFC 959 section 4.1.3); inline it is
        // an ordinary part of the line. If the kernel refuses, the byte is lost, nothing else.
        let _ = socket2::SockRef::from(&stream).set_out_of_band_inline(true);
        Self { stream, replies: Vec::new(), reply_timeout, has_spoken: false }
    }

    /// Another descriptor of the connection, to ask the kernel for its state.
    ///
    /// # Errors
    /// The process has too many.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.stream.as_fd().try_clone_to_owned()
    }

    /// Waits for bytes and adds them to `lines`. Cancel-safe.
    pub async fn fill(&mut self, lines: &mut LineBuffer) -> Received {
        loop {
            if self.stream.readable().await.is_err() {
                return Received::End;
            }
            let mut bytes = [0; 4096];
            match self.stream.try_read(&mut bytes) {
                Ok(0) => return Received::End,
                // Looked at before Telnet's bytes are taken out: TLS records have such bytes.
                Ok(count) if !self.has_spoken && is_foreign(&bytes[..count]) => return Received::Foreign,
                Ok(count) => {
                    self.has_spoken = true;
                    lines.extend(&bytes[..count]);
                    return Received::Bytes;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Received::End,
            }
        }
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
        let sent = match self.stream.try_write(&replies) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        if sent < replies.len() {
            // Rare: the client's window is full. Boxed, so that idle sessions do not pay for it.
            Box::pin(timeout(self.reply_timeout, self.stream.write_all(&replies[sent..]))).await??;
        }
        Ok(())
    }

    /// Sends what is gathered and ends the connection.
    pub async fn close(mut self) {
        // The client may be gone already.
        let _ = self.flush().await;
        let _ = socket2::SockRef::from(&self.stream).shutdown(Shutdown::Write);
    }
}
