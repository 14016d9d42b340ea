//! Signals with which an operator controls a daemon.

use std::io;

use tokio::signal::unix::{self, SignalKind};

/// The request of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalRequest {
    /// SIGTERM or SIGINT: drain, then end.
    Terminate,
    /// SIGHUP: reload files.
    Reload,
}

/// The signals that this process has received since the value was created.
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
