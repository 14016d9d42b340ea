//! The record of the audit trail, as it is in files, in the journal and in Redis. docs/audit.schema.json
//! describes its JSON form.

use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{ids::NodeName, session::SessionId};

/// The version of the schema. A change that a reader could misunderstand increments it.
pub const SCHEMA_VERSION: u32 = 1;

/// The kind of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditEvent {
    Login,
    SessionEnd,
    Upload,
    Append,
    Download,
    Rename,
    Delete,
    Mkdir,
    Rmdir,
    /// RMDA: a directory with everything below it.
    RemoveTree,
    Chmod,
    /// MFMT, MDTM with a time, UTIME: a file's modification time.
    SetTime,
    /// COMB: files are joined into one.
    Combine,
    /// An action of an administrator: see [`AuditRecord::action`].
    Admin,
    /// A refused operation of another kind, such as LIST without the permission. A reader also takes kinds of
    /// newer versions for this one.
    #[serde(other)]
    Other,
}

impl AuditEvent {
    /// Every kind.
    pub const ALL: [Self; 15] = [
        Self::Login,
        Self::SessionEnd,
        Self::Upload,
        Self::Append,
        Self::Download,
        Self::Rename,
        Self::Delete,
        Self::Mkdir,
        Self::Rmdir,
        Self::RemoveTree,
        Self::Chmod,
        Self::SetTime,
        Self::Combine,
        Self::Admin,
        Self::Other,
    ];

    /// The name in records: `session_end`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::SessionEnd => "session_end",
            Self::Upload => "upload",
            Self::Append => "append",
            Self::Download => "download",
            Self::Rename => "rename",
            Self::Delete => "delete",
            Self::Mkdir => "mkdir",
            Self::Rmdir => "rmdir",
            Self::RemoveTree => "remove_tree",
            Self::Chmod => "chmod",
            Self::SetTime => "set_time",
            Self::Combine => "combine",
            Self::Admin => "admin",
            Self::Other => "other",
        }
    }
}

impl fmt::Display for AuditEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is not the name of an [`AuditEvent`].
#[derive(Debug, thiserror::Error)]
#[error("not a kind of audit record")]
pub struct InvalidAuditEvent;

impl FromStr for AuditEvent {
    type Err = InvalidAuditEvent;

    fn from_str(text: &str) -> Result<Self, InvalidAuditEvent> {
        Self::ALL.into_iter().find(|event| event.name() == text).ok_or(InvalidAuditEvent)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditResult {
    Ok,
    Failed,
}

/// One record. Fields that do not apply are left out of the JSON form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// [`SCHEMA_VERSION`].
    pub v: u32,
    /// `NODE-INCARNATION-NUMBER`, or `authd-INCARNATION-NUMBER`. No two records have the same id. The numbers
    /// of a process have no gap unless a record was lost.
    pub id: String,
    /// The end of the operation, RFC 3339 in UTC with microseconds, by the clock of the process's host.
    pub time: String,
    pub event: AuditEvent,
    pub result: AuditResult,
    /// The node. `None` in records of authd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// The client's address; for [`AuditEvent::Admin`] that of the administrator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// `TLSv1.3`; missing on a plain control connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cipher: Option<String>,
    /// The verb: `STOR`, `SITE CHMOD`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// The virtual path; COMB: the target. Bytes that are not UTF-8 are replaced by U+FFFD; `path_hex` then
    /// has all bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// RNTO: the new path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_path_hex: Option<String>,
    /// COMB: the files that were appended to `path` and removed, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<AuditPath>,
    /// Bytes that were moved over the data connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Where in the file the transfer began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// TYPE A with conversion: `bytes` has CRLF where the file has LF.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ascii: bool,
    /// SessionEnd: bytes of all uploads since the login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uploaded: Option<u64>,
    /// SessionEnd: bytes of all downloads since the login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downloaded: Option<u64>,
    /// Duration of a transfer, or of a session since its login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// The code of the last reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<u16>,
    /// Why it failed: the reasons of docs/logs.md; for a login those of `ftp_logins_rejected_total`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// More about the failure or the end of the session, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The kernel's error of the storage: `EACCES`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<String>,
    /// The path on the node's host, if the storage refuses the node access.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_at: Option<String>,
    /// The session that writes the path, if that is why the operation failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<SessionId>,
    /// SHA-256 of the file of a complete upload, in hexadecimal, if `upload_digest` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// SITE CHMOD: the new mode in octal. SetTime: the new time, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// An administrator's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// An administrator's action, such as `user.update`, `session.end`, `node.drain`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// The object of the action: a user, a group, a session, a node, a ban.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// The changed fields before the action, without passwords and hashes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub before: BTreeMap<String, Value>,
    /// The changed fields after the action.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub after: BTreeMap<String, Value>,
}

impl AuditRecord {
    /// A record without details. [`AuditTrail::record`](super::AuditTrail::record) sets its id and time.
    pub fn new(event: AuditEvent, result: AuditResult) -> Self {
        Self {
            v: SCHEMA_VERSION,
            id: String::new(),
            time: String::new(),
            event,
            result,
            node: None,
            session: None,
            user: None,
            groups: Vec::new(),
            address: None,
            tls: None,
            cipher: None,
            command: None,
            path: None,
            path_hex: None,
            new_path: None,
            new_path_hex: None,
            sources: Vec::new(),
            bytes: None,
            offset: None,
            ascii: false,
            uploaded: None,
            downloaded: None,
            seconds: None,
            code: None,
            reason: None,
            detail: None,
            errno: None,
            stored_at: None,
            holder: None,
            sha256: None,
            value: None,
            by: None,
            action: None,
            object: None,
            before: BTreeMap::new(),
            after: BTreeMap::new(),
        }
    }

    /// Sets `path` and, if the bytes are not UTF-8, `path_hex`.
    pub fn set_path(&mut self, bytes: &[u8]) {
        let AuditPath { path, path_hex } = AuditPath::new(bytes);
        (self.path, self.path_hex) = (Some(path), path_hex);
    }

    /// Sets `new_path` and, if the bytes are not UTF-8, `new_path_hex`.
    pub fn set_new_path(&mut self, bytes: &[u8]) {
        let AuditPath { path, path_hex } = AuditPath::new(bytes);
        (self.new_path, self.new_path_hex) = (Some(path), path_hex);
    }
}

/// A virtual path within a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditPath {
    /// Bytes that are not UTF-8 are replaced by U+FFFD.
    pub path: String,
    /// All bytes, if they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
}

impl AuditPath {
    pub fn new(bytes: &[u8]) -> Self {
        let path_hex = str::from_utf8(bytes).is_err().then(|| hex::encode(bytes));
        Self { path: String::from_utf8_lossy(bytes).into_owned(), path_hex }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_name_in_json_and_unknown_kinds_are_read_as_other() {
        for event in AuditEvent::ALL {
            assert_eq!(serde_json::to_value(event).unwrap(), event.name());
            assert_eq!(event.name().parse::<AuditEvent>().unwrap(), event);
        }
        assert_eq!(serde_json::from_str::<AuditEvent>("\"teleport\"").unwrap(), AuditEvent::Other);
        assert!("teleport".parse::<AuditEvent>().is_err());
    }

    #[test]
    fn a_path_that_is_not_utf_8_has_all_its_bytes_in_hexadecimal() {
        let mut record = AuditRecord::new(AuditEvent::Rename, AuditResult::Ok);
        record.set_path("/ä".as_bytes());
        record.set_new_path(b"/\xff");
        assert_eq!((record.path.as_deref(), record.path_hex.as_deref()), (Some("/ä"), None));
        assert_eq!(record.new_path.as_deref(), Some("/\u{fffd}"));
        assert_eq!(record.new_path_hex.as_deref(), Some("2fff"));
    }
}
