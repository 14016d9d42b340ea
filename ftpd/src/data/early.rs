//! The first bytes of an upload, read before a worker takes its data connection.

use std::io::{self, Read};

use tokio::net::TcpStream;

/// Bytes that were read early, and the end of the stream if it came with them. Its reader gets both.
#[derive(Default)]
pub(crate) struct EarlyBytes {
    bytes: Vec<u8>,
    /// The number of bytes that the reader has taken.
    taken: usize,
    /// `None`: further bytes may be in the socket.
    end: Option<io::Result<()>>,
}

impl EarlyBytes {
    /// Returns true if nothing follows in the socket.
    pub(super) fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// The number of bytes that the reader has not taken.
    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.taken
    }

    /// The number of all bytes.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Adds the result of a read: bytes, the end of the stream (no bytes), or an error.
    pub(super) fn put(&mut self, read: io::Result<&[u8]>) {
        match read {
            Ok([]) => self.end = Some(Ok(())),
            Ok(bytes) => self.bytes.extend_from_slice(bytes),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => self.end = Some(Err(error)),
        }
    }

    /// Waits for bytes of `stream` and adds those that are there, up to `max` or somewhat more. Returns true
    /// at the end of the stream. Cancel-safe.
    pub(super) async fn read_from(&mut self, stream: &TcpStream, max: usize) -> bool {
        let read = async {
            stream.readable().await?;
            // Only now, so that a waiting connection holds no memory.
            self.bytes.reserve(max);
            stream.try_read_buf(&mut self.bytes)
        };
        match read.await {
            Ok(0) => {
                self.end = Some(Ok(()));
                return true;
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => self.end = Some(Err(error)),
        }
        false
    }
}

impl Read for EarlyBytes {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = &self.bytes[self.taken..];
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
        self.taken += length;
        Ok(length)
    }
}
