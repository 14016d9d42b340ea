//! The command for which a worker runs, as the log shows it.

use std::{sync::Arc, time::Duration};

use log::Level;

use crate::{
    identity::{SessionIdentity, log_session},
    virtual_path::VirtualPath,
};

/// A running command.
#[derive(Debug)]
pub struct Task {
    pub identity: Arc<SessionIdentity>,
    /// `SIZE`, `RETR`, …
    pub verb: &'static str,
    /// The path that the command's argument names.
    pub path: Option<VirtualPath>,
}

impl Task {
    /// Logs that the command's file operation has run for longer than `file_operation_alarm`.
    pub fn log_hang(&self, age: Duration) {
        log_session!(
            Level::Warn, self.identity,
            verb = self.verb, path = self.path().as_deref(), seconds = age.as_secs(),
            setting = "file_operation_alarm";
            "a file operation does not end: the storage at this path hangs or is very slow"
        );
    }

    /// Logs the end of a file operation after [`Self::log_hang`].
    pub fn log_end(&self, age: Duration) {
        log_session!(
            Level::Warn, self.identity,
            verb = self.verb, path = self.path().as_deref(), seconds = age.as_secs();
            "a file operation that did not end has ended"
        );
    }

    pub fn path(&self) -> Option<String> {
        self.path.as_ref().map(ToString::to_string)
    }
}
