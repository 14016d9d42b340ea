//! The signals that tell a daemon what to do.

use std::io;

use tokio::signal::unix::{self, SignalKind};

/// What the operator wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalRequest {
    /// SIGTERM, SIGINT: finish what is running and end.
    Terminate,
    /// SIGHUP: read files again.
    Reload,
}

/// The signals of this process, from when it was made.
pub struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
    hangup: unix::Signal,
}

impl Signals {
    /// # Errors
    /// The handlers cannot be installed.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: unix::signal(SignalKind::terminate())?,
            interrupt: unix::signal(SignalKind::interrupt())?,
            hangup: unix::signal(SignalKind::hangup())?,
        })
    }

    /// The next request. Cancel-safe.
    pub async fn next(&mut self) -> SignalRequest {
        tokio::select! {
            _ = self.terminate.recv() => SignalRequest::Terminate,
            _ = self.interrupt.recv() => SignalRequest::Terminate,
            _ = self.hangup.recv() => SignalRequest::Reload,
        }
    }
}
