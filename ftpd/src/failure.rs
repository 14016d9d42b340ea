//! Failed operations: each is counted by verb and reason, and leaves one line in the log.
//!
//! Replies carry their [`Failure`]. It is reported where a command's last reply is known:
//! [`Failures::report`].

use std::{
    borrow::Cow,
    os::unix::ffi::OsStringExt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use common::session::SessionId;
use log::Level;
use nix::{
    errno::Errno,
    unistd::{Gid, Uid},
};

use crate::{
    activity::CancelledBy,
    jail::{Jail, path::VirtualPath},
    metrics,
    node::Node,
    protocol::{Code, Reply},
    session::Subject,
};

/// `failure_log_limit` counts lines in this time.
const WINDOW: Duration = Duration::from_secs(60);

/// The storage refused the node itself: file modes, ownership, an ACL, or an NFS export's root_squash.
pub const STORAGE_ACCESS: &str = "storage_access";
pub const STORAGE_READ_ONLY: &str = "storage_read_only";
/// Ended early: [`CancelledBy`] says by whom.
pub const CANCELLED: &str = "cancelled";

/// Why an operation failed, as far as its reply does not say it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// The label of `ftp_operations_failed_total`. Always a constant, so the set of labels is bounded.
    pub reason: &'static str,
    /// For the log only. Without it the log has the reply's text.
    pub detail: Option<Cow<'static, str>>,
    pub errno: Option<Errno>,
    /// The session that has what this one asked for.
    pub holder: Option<SessionId>,
}

impl From<&'static str> for Failure {
    fn from(reason: &'static str) -> Self {
        Self { reason, ..Self::default() }
    }
}

impl Failure {
    /// For replies that were made without a reason. Their codes tell enough.
    fn of_code(code: Code) -> Self {
        Self::from(match code {
            Code::NO_DATA_CONNECTION => "no_data_connection",
            Code::TRANSFER_ABORTED => "connection_lost",
            Code::FILE_BUSY => "busy",
            Code::LOCAL_ERROR => "local_error",
            Code::NO_SPACE => "no_space",
            Code::PROTECTION_REQUIRED => "not_encrypted",
            Code::FILE_UNAVAILABLE => "unavailable",
            Code::QUOTA_EXCEEDED => "quota",
            Code::BAD_NAME => "bad_name",
            Code::BAD_OFFSET => "bad_offset",
            _ => "other",
        })
    }
}

/// The operation that ended.
#[derive(Clone, Copy)]
pub struct Operation<'a> {
    pub verb: &'static str,
    pub path: Option<&'a VirtualPath>,
    /// For those that use a data connection.
    pub transfer: Option<TransferEnd>,
    /// Who ended it, if it did not end by itself.
    pub cancelled_by: Option<CancelledBy>,
}

/// How far a transfer came.
#[derive(Clone, Copy)]
pub struct TransferEnd {
    /// `upload`, `download` or `listing`.
    pub direction: &'static str,
    pub bytes: u64,
    pub seconds: f64,
    /// The label of `ftp_transfers_total`.
    pub result: &'static str,
}

/// Reports the failures of one logged-in session.
pub struct Failures {
    node: Arc<Node>,
    subject: Arc<Subject>,
    jail: Arc<Jail>,
    window: Mutex<Window>,
}

/// The lines of the log within [`WINDOW`].
#[derive(Default)]
struct Window {
    begun: Option<Instant>,
    kinds: Vec<Kind>,
}

/// Failures with the same verb and reason.
struct Kind {
    verb: &'static str,
    reason: &'static str,
    count: u32,
}

impl Failures {
    pub fn new(node: &Arc<Node>, subject: &Arc<Subject>, jail: &Arc<Jail>) -> Self {
        Self {
            node: Arc::clone(node),
            subject: Arc::clone(subject),
            jail: Arc::clone(jail),
            window: Mutex::default(),
        }
    }

    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// Counts and logs `reply` if it says that the operation failed. Commands that were refused for
    /// their syntax or their place in the session (500 to 504, 530) are no operations.
    pub fn report(&self, operation: Operation<'_>, reply: &Reply) {
        let code = reply.code();
        if code.value() < 400 || code.is_rejection() {
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
        let Operation { verb, path, transfer, cancelled_by } = operation;
        let mut detail = failure.detail.clone().unwrap_or_else(|| reply.text().into());
        let mut reason = failure.reason;
        if reason == CANCELLED {
            // Without an order of the node: the worker has found the control connection closed.
            let by = cancelled_by.unwrap_or(CancelledBy::ClientGone);
            reason = by.reason();
            detail = by.to_string().into();
        }
        metrics::operation_failed(verb, reason);
        let level = level(verb, reason);
        if !log::log_enabled!(level) || level == Level::Warn && !self.has_room(verb, reason) {
            return;
        }
        let stored_at = path.filter(|_| matches!(reason, STORAGE_ACCESS | STORAGE_READ_ONLY)).map(|path| {
            let stored_at = self.stored_at(path);
            detail = format!("{detail}{}", remedy(reason)).into();
            stored_at
        });
        let subject = &self.subject;
        log::log!(
            level,
            session:% = subject.session, user = subject.user.as_str(), address:% = subject.address,
            verb, path = path.map(ToString::to_string).as_deref(), reason,
            errno = failure.errno.map(|errno| format!("{errno:?}")).as_deref(), code = code.value(),
            stored_at = stored_at.as_deref(),
            holder = failure.holder.map(|holder| holder.to_string()).as_deref(),
            bytes = transfer.map(|end| end.bytes), seconds = transfer.map(|end| end.seconds),
            result = transfer.map(|end| end.result);
            "{} failed: {detail}", transfer.map_or(verb, |end| end.direction)
        );
    }

    /// Where `path` is on this host.
    fn stored_at(&self, path: &VirtualPath) -> String {
        let within = PathBuf::from(std::ffi::OsString::from_vec(self.jail.path_in_storage(path)));
        let within = within.strip_prefix("/").unwrap_or(&within);
        self.node.storage.root.join(within).display().to_string()
    }

    /// Whether `failure_log_limit` leaves room for a line. What it leaves out is summed up by the first
    /// failure after the window, or by the session's end.
    fn has_room(&self, verb: &'static str, reason: &'static str) -> bool {
        let limit = self.node.limits.failure_lines;
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.begun.is_none_or(|begun| begun.elapsed() >= WINDOW) {
            self.sum_up(&window);
            *window = Window { begun: Some(Instant::now()), kinds: Vec::new() };
        }
        let known = window.kinds.iter_mut().find(|kind| kind.verb == verb && kind.reason == reason);
        let count = match known {
            Some(kind) => {
                kind.count = kind.count.saturating_add(1);
                kind.count
            }
            None => {
                window.kinds.push(Kind { verb, reason, count: 1 });
                1
            }
        };
        limit == 0 || count <= limit
    }

    fn sum_up(&self, window: &Window) {
        let limit = self.node.limits.failure_lines;
        for Kind { verb, reason, count } in &window.kinds {
            let omitted = if limit == 0 { 0 } else { count.saturating_sub(limit) };
            if omitted > 0 {
                log::warn!(
                    session:% = self.subject.session, user = self.subject.user.as_str(),
                    address:% = self.subject.address, verb, reason, omitted;
                    "{omitted} more failures of this kind are not in the log (failure_log_limit = {limit})"
                );
            }
        }
    }
}

impl Drop for Failures {
    fn drop(&mut self) {
        self.sum_up(&self.window.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Clients ask hundreds of times what is there before they upload a tree, and make each directory
/// without asking. "No" is an ordinary answer then.
fn level(verb: &str, reason: &str) -> Level {
    let asks = matches!(verb, "CWD" | "CDUP" | "SIZE" | "MDTM" | "MLST" | "MLSD" | "STAT" | "LIST" | "NLST");
    let is_absent =
        matches!(reason, "not_found" | "not_a_directory" | "is_a_directory" | "not_a_file" | "unavailable");
    if asks && is_absent || verb == "MKD" && reason == "exists" { Level::Debug } else { Level::Warn }
}

/// What the operator can do about the storage.
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
    fn a_question_that_is_answered_with_no_is_no_warning_but_every_refused_change_is() {
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

    #[test]
    fn a_reply_without_a_reason_gets_one_from_its_code() {
        for (code, reason) in
            [(Code::QUOTA_EXCEEDED, "quota"), (Code::FILE_BUSY, "busy"), (Code::POLICY, "other")]
        {
            assert_eq!(Failure::of_code(code).reason, reason);
        }
    }
}
