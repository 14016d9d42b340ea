//! The end of operations: each failure is counted by verb and reason, and gets one line in the log. Failures,
//! transfers and changes get a record in the audit trail.
//!
//! Replies carry their [`Failure`]. Where a command's last reply is known, [`FailureLog::report`] gets it.

use std::{
    os::unix::ffi::OsStringExt,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use common::sync::lock;
use log::Level;
use nix::unistd::{Gid, Uid};

use crate::{
    audit::{AuditedCommand, AuditedEnd, AuditedFailure, MovedBytes, SessionAudit},
    identity::{SessionIdentity, log_session},
    jail::Jail,
    metrics,
    node::Node,
    protocol::{
        Code, Failure, Reply,
        failure::{CANCELLED, STORAGE_ACCESS, STORAGE_READ_ONLY},
    },
    virtual_path::VirtualPath,
    work::activity::CancelledBy,
};

/// The time in which `failure_log_limit` counts lines.
const WINDOW: Duration = Duration::from_secs(60);

/// An operation that has ended.
#[derive(Clone, Copy)]
pub(crate) struct Operation<'a> {
    pub verb: &'static str,
    pub audited: &'a AuditedCommand,
    pub path: Option<&'a VirtualPath>,
    /// For operations that use a data connection.
    pub transfer: Option<TransferEnd>,
    /// The cause if the operation was ended early.
    pub cancelled_by: Option<CancelledBy>,
}

/// The end of a transfer.
#[derive(Clone, Copy)]
pub(crate) struct TransferEnd {
    /// `upload`, `download` or `listing`.
    pub direction: &'static str,
    pub moved: MovedBytes,
    /// The label of `ftp_transfers_total`.
    pub result: &'static str,
}

/// Logs and counts the failures of one logged-in session, and records its operations in the audit trail.
pub(crate) struct FailureLog {
    node: Arc<Node>,
    identity: Arc<SessionIdentity>,
    audit: Arc<SessionAudit>,
    jail: Arc<Jail>,
    window: Mutex<FailureWindow>,
}

/// The failures within one [`WINDOW`].
#[derive(Default)]
struct FailureWindow {
    begun: Option<Instant>,
    kinds: Vec<FailureKind>,
}

/// Failures with the same verb and reason.
struct FailureKind {
    verb: &'static str,
    reason: &'static str,
    count: u32,
}

impl FailureLog {
    pub(crate) fn new(
        node: &Arc<Node>,
        identity: &Arc<SessionIdentity>,
        audit: &Arc<SessionAudit>,
        jail: &Arc<Jail>,
    ) -> Self {
        Self {
            node: Arc::clone(node),
            identity: Arc::clone(identity),
            audit: Arc::clone(audit),
            jail: Arc::clone(jail),
            window: Mutex::default(),
        }
    }

    pub(crate) fn identity(&self) -> &SessionIdentity {
        &self.identity
    }

    /// Takes the last reply of an operation. Counts and logs a failure. Records a failure, and the success of
    /// a transfer or a change, in the audit trail. Replies to wrong or misplaced commands (500 to 504, 530)
    /// do not count.
    pub(crate) fn report(&self, operation: Operation<'_>, reply: &Reply) {
        let code = reply.code();
        if code.is_rejection() {
            return;
        }
        let Operation { verb, audited, path, transfer, cancelled_by } = operation;
        let moved = transfer.map(|end| end.moved);
        if !code.is_failure() {
            if audited.records_success() {
                self.audit.operation(AuditedEnd { command: audited, path, code, moved, failure: None });
            }
            return;
        }
        let fallback;
        let failure = match reply.failure() {
            Some(failure) => failure,
            None => {
                fallback = Failure::of_code(code);
                &fallback
            }
        };
        let mut detail = failure.detail.clone().unwrap_or_else(|| reply.text().into());
        let mut reason = failure.reason;
        if reason == CANCELLED {
            // If the node did not cancel it, the worker found the control connection closed.
            let by = cancelled_by.unwrap_or(CancelledBy::ClientGone);
            reason = by.reason();
            detail = by.to_string().into();
        }
        metrics::operation_failed(verb, reason);
        if let Some(errno) = failure.errno {
            metrics::storage_error(format!("{errno:?}"));
        }
        let level = level(verb, reason);
        let errno = failure.errno.map(|errno| format!("{errno:?}"));
        let is_refused = matches!(reason, STORAGE_ACCESS | STORAGE_READ_ONLY);
        let stored_at = path.filter(|_| is_refused).map(|path| self.stored_at(path));
        // That a name does not exist is an answer rather than a refusal.
        if self.audit.is_on() && !(level == Level::Debug && audited.only_asks()) {
            let (errno, stored_at) = (errno.clone(), stored_at.clone());
            let failure =
                AuditedFailure { reason, detail: &detail, errno, stored_at, holder: failure.holder };
            let failure = Some(failure);
            self.audit.operation(AuditedEnd { command: audited, path, code, moved, failure });
        }
        if !log::log_enabled!(level) || level == Level::Warn && !self.may_log(verb, reason) {
            return;
        }
        if stored_at.is_some() {
            detail = format!("{detail}{}", remedy(reason)).into();
        }
        log_session!(
            level, self.identity,
            verb, path = path.map(ToString::to_string).as_deref(), reason,
            errno = errno.as_deref(), code = code.value(),
            stored_at = stored_at.as_deref(),
            holder = failure.holder.map(|holder| holder.to_string()).as_deref(),
            bytes = moved.map(|moved| moved.bytes), seconds = moved.map(|moved| moved.seconds),
            result = transfer.map(|end| end.result);
            "{} failed: {detail}", transfer.map_or(verb, |end| end.direction)
        );
    }

    /// Returns true if there is an audit trail.
    pub(crate) fn records(&self) -> bool {
        self.audit.is_on()
    }

    /// Records that the session ended while the command ran.
    pub(crate) fn record_interruption(&self, command: &AuditedCommand, path: Option<&VirtualPath>) {
        let detail = "the session ended while the command ran; it may have taken effect";
        let (errno, stored_at, holder) = (None, None, None);
        let failure = AuditedFailure { reason: "interrupted", detail, errno, stored_at, holder };
        let (code, failure) = (Code::SERVICE_UNAVAILABLE, Some(failure));
        self.audit.operation(AuditedEnd { command, path, code, moved: None, failure });
    }

    /// Where the file of the virtual path `path` is on this host.
    fn stored_at(&self, path: &VirtualPath) -> String {
        let within = PathBuf::from(std::ffi::OsString::from_vec(self.jail.path_in_storage(path)));
        let within = within.strip_prefix("/").unwrap_or(&within);
        self.node.storage.root.join(within).display().to_string()
    }

    /// Returns true if `failure_log_limit` allows a further line. The first failure after the window, or the
    /// end of the session, logs how many lines were left out.
    fn may_log(&self, verb: &'static str, reason: &'static str) -> bool {
        let limit = self.node.limits.failure_lines;
        let mut window = lock(&self.window);
        if window.begun.is_none_or(|begun| begun.elapsed() >= WINDOW) {
            self.log_summary(&window);
            *window = FailureWindow { begun: Some(Instant::now()), kinds: Vec::new() };
        }
        let known = window.kinds.iter_mut().find(|kind| kind.verb == verb && kind.reason == reason);
        let count = match known {
            Some(kind) => {
                kind.count = kind.count.saturating_add(1);
                kind.count
            }
            None => {
                window.kinds.push(FailureKind { verb, reason, count: 1 });
                1
            }
        };
        limit == 0 || count <= limit
    }

    fn log_summary(&self, window: &FailureWindow) {
        let limit = self.node.limits.failure_lines;
        for FailureKind { verb, reason, count } in &window.kinds {
            let omitted = if limit == 0 { 0 } else { count.saturating_sub(limit) };
            if omitted > 0 {
                log_session!(
                    Level::Warn, self.identity, verb, reason, omitted;
                    "{omitted} more failures of this kind are not in the log (failure_log_limit = {limit})"
                );
            }
        }
    }
}

impl Drop for FailureLog {
    fn drop(&mut self) {
        self.log_summary(&lock(&self.window));
    }
}

/// The log level. Before they upload a tree, clients look up hundreds of names that do not exist, and make
/// each directory without asking: such failures are ordinary.
fn level(verb: &str, reason: &str) -> Level {
    let asks = matches!(verb, "CWD" | "CDUP" | "SIZE" | "MDTM" | "MLST" | "MLSD" | "STAT" | "LIST" | "NLST");
    let is_absent =
        matches!(reason, "not_found" | "not_a_directory" | "is_a_directory" | "not_a_file" | "unavailable");
    if asks && is_absent || verb == "MKD" && reason == "exists" { Level::Debug } else { Level::Warn }
}

/// The advice to the operator about the storage.
fn remedy(reason: &str) -> String {
    if reason == STORAGE_READ_ONLY {
        return "; mount it writable, or see in the kernel's log why it became read-only".to_owned();
    }
    format!(
        "; the node runs as uid {}, gid {}: compare with `ls -ld` of stored_at and of its directories, then \
         chown or chmod them, or see the export's root_squash and anonuid",
        Uid::effective(),
        Gid::effective()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lookups_of_missing_names_are_not_warnings_but_every_refused_change_is() {
        for (verb, reason) in [("SIZE", "not_found"), ("CWD", "not_a_directory"), ("MKD", "exists")] {
            assert_eq!(level(verb, reason), Level::Debug, "{verb} {reason}");
        }
        for (verb, reason) in [
            ("RETR", "not_found"),
            ("STOR", "not_found"),
            ("MKD", "permission"),
            ("CWD", "permission"),
            ("LIST", STORAGE_ACCESS),
            ("SIZE", "io"),
            ("DELE", "not_found"),
        ] {
            assert_eq!(level(verb, reason), Level::Warn, "{verb} {reason}");
        }
    }
}
