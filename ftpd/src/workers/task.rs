//! What blocking work is for, as the log tells it.

use std::{sync::Arc, time::Duration};

use crate::{jail::path::VirtualPath, session::Subject};

/// A command that runs.
#[derive(Debug)]
pub struct Task {
    pub subject: Arc<Subject>,
    /// `SIZE`, `RETR`, …
    pub verb: &'static str,
    /// What the command's argument names.
    pub path: Option<VirtualPath>,
}

impl Task {
    /// Logs that the task's file operation runs for longer than `file_operation_alarm`.
    pub fn log_hang(&self, age: Duration) {
        let subject = &self.subject;
        log::warn!(
            session:% = subject.session, user = subject.user.as_str(), address:% = subject.address,
            verb = self.verb, path = self.path().as_deref(), seconds = age.as_secs(),
            setting = "file_operation_alarm";
            "a file operation does not end: the storage at this path hangs or is very slow"
        );
    }

    /// Logs the end of a file operation that [`Self::log_hang`] was called for.
    pub fn log_end(&self, age: Duration) {
        let subject = &self.subject;
        log::warn!(
            session:% = subject.session, user = subject.user.as_str(), address:% = subject.address,
            verb = self.verb, path = self.path().as_deref(), seconds = age.as_secs();
            "a file operation that did not end has ended"
        );
    }

    pub fn path(&self) -> Option<String> {
        self.path.as_ref().map(ToString::to_string)
    }
}
