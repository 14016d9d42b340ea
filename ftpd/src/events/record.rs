//! The lines of a journal: an intent for each event, and how it ended.
//!
//! A line is the CRC-32 of its text as eight hexadecimal digits, a space, and the text in JSON. A line that
//! was cut off by a crash is thus recognised.

use std::net::IpAddr;

use common::{
    clock::{rfc3339_millis, since_epoch},
    ids::NodeName,
    session::SessionId,
};
use serde::{Deserialize, Serialize};

/// The version of an event's JSON form. A change that a reader could misunderstand increments it.
pub(super) const EVENT_VERSION: u32 = 1;

/// The kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EventKind {
    /// STOR and STOU: the file is complete.
    Upload,
    /// APPE: the file has grown.
    Append,
    /// RNTO: a file or directory has another name.
    Rename,
    /// DELE, RMD and RMDA: a file or directory is gone.
    Delete,
    /// RETR: the client has the bytes that it asked for.
    Download,
    /// PASS: a user is logged in.
    Login,
}

impl EventKind {
    /// The name in JSON.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Upload => "upload",
            Self::Append => "append",
            Self::Rename => "rename",
            Self::Delete => "delete",
            Self::Download => "download",
            Self::Login => "login",
        }
    }

    /// Returns true if events of this kind keep their order among those of their path. A download and a login
    /// change nothing, so they hold no write lease that would give them a place.
    pub(super) fn has_order(self) -> bool {
        match self {
            Self::Upload | Self::Append | Self::Rename | Self::Delete => true,
            Self::Download | Self::Login => false,
        }
    }
}

/// An event as its receivers see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Event {
    /// [`EVENT_VERSION`].
    pub v: u32,
    /// The same in each attempt to deliver the event, and different for all events.
    pub id: String,
    pub event: EventKind,
    /// RFC 3339 in UTC, with milliseconds.
    pub time: String,
    pub node: NodeName,
    pub session: SessionId,
    pub user: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// The client address.
    pub address: IpAddr,
    /// The path as the user sees it. Bytes that are not UTF-8 are replaced by U+FFFD; `path_hex` then has
    /// all bytes.
    pub path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// The path below the root of the storage, in the form of `path`.
    pub storage_path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_path_hex: Option<String>,
    /// Of a rename: the previous path, in the form of `path`, and so on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_path_hex: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_storage_path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_storage_path_hex: Option<String>,
    /// Size of the file in bytes; of a download, the bytes that were sent. A login and a directory have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Of a download that did not begin at the start of the file: where it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// SHA-256 of the file in hexadecimal, if the node computes it (`upload_digest`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// The text of a path, and its bytes in hexadecimal if they are not UTF-8.
pub(super) fn path_fields(path: &[u8]) -> (String, Option<String>) {
    let is_text = str::from_utf8(path).is_ok();
    (String::from_utf8_lossy(path).into_owned(), (!is_text).then(|| hex::encode(path)))
}

/// The bytes of a path from the fields that [`path_fields`] made.
fn bytes_of(text: &str, hex: Option<&str>) -> Vec<u8> {
    hex.and_then(|hex| hex::decode(hex).ok()).unwrap_or_else(|| text.as_bytes().to_vec())
}

impl Event {
    /// The bytes of [`Self::path`].
    pub(super) fn path_bytes(&self) -> Vec<u8> {
        bytes_of(&self.path, self.path_hex.as_deref())
    }

    /// The bytes of [`Self::storage_path`].
    pub(super) fn storage_bytes(&self) -> Vec<u8> {
        bytes_of(&self.storage_path, self.storage_path_hex.as_deref())
    }

    /// The bytes of [`Self::old_path`].
    pub(super) fn old_path_bytes(&self) -> Option<Vec<u8>> {
        Some(bytes_of(self.old_path.as_deref()?, self.old_path_hex.as_deref()))
    }

    /// The bytes of [`Self::old_storage_path`].
    pub(super) fn old_storage_bytes(&self) -> Option<Vec<u8>> {
        Some(bytes_of(self.old_storage_path.as_deref()?, self.old_storage_path_hex.as_deref()))
    }
}

/// The current time in the form of [`Event::time`].
pub(super) fn now() -> String {
    rfc3339_millis(since_epoch())
}

/// Bytes of a name or path in a journal: text in JSON where they are UTF-8.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum NameBytes {
    Text(String),
    Hex { hex: String },
}

impl From<&[u8]> for NameBytes {
    fn from(bytes: &[u8]) -> Self {
        match str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Hex { hex: hex::encode(bytes) },
        }
    }
}

impl NameBytes {
    pub(super) fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Text(text) => text.clone().into_bytes(),
            Self::Hex { hex } => hex::decode(hex).unwrap_or_default(),
        }
    }
}

/// An event that is about to happen, with what another node needs to find out whether it did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Intent {
    /// Number of the event in its process.
    pub n: u64,
    pub event: Event,
    #[serde(flatten)]
    pub order: EventOrder,
    pub evidence: ChangeEvidence,
}

/// How the storage shows whether a node that died made a change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ChangeEvidence {
    /// A file gets its name, or is complete at it.
    Publication {
        /// The directory, relative to the root of the storage; empty for the root itself.
        directory: NameBytes,
        name: NameBytes,
        /// The names of the partial file, see [`crate::jail::FileToPublish::hidden`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hidden: Option<[NameBytes; 2]>,
        inode: u64,
        /// See [`crate::jail::FileToPublish::is_proven`].
        proven: bool,
    },
    /// A file or directory goes from the event's old path to its path.
    Rename { inode: u64 },
    /// The file or directory at the event's path is removed.
    Removal {
        inode: u64,
        /// When it was created, in ns since 1970, if the storage knows. A new file may get the number of the
        /// removed one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        born: Option<u64>,
    },
    /// The storage does not show it: a download or a login. The node was about to tell the client.
    Nothing,
}

/// The position of an event among those of its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EventOrder {
    /// Epoch of Redis's data and number of the write lease in it; both 0 if Redis granted no lease.
    pub epoch: u64,
    pub lease: u64,
    /// Time of the last change of the file, in ns, by the storage's clock; of an event that changes no file,
    /// by the node's clock.
    pub changed: u64,
}

impl EventOrder {
    /// Leases of one epoch have numbers in the order in which they were granted. Otherwise the storage's
    /// clock decides, which is the same for all nodes.
    pub(super) fn is_before(&self, other: &Self) -> bool {
        if self.epoch == other.epoch && self.lease != other.lease {
            self.lease < other.lease
        } else {
            self.changed < other.changed
        }
    }
}

/// A line of a journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum JournalEntry {
    Intent(Box<Intent>),
    /// The event with this number happened.
    Commit(u64),
    /// The event with this number did not happen.
    Abort(u64),
}

/// The line of an entry, with its line end.
pub(super) fn line_of(entry: &impl Serialize) -> Vec<u8> {
    // Neither type has maps or values that JSON cannot hold.
    let text = serde_json::to_vec(entry).unwrap_or_default();
    let mut line = format!("{:08x} ", crc32fast::hash(&text)).into_bytes();
    line.extend_from_slice(&text);
    line.push(b'\n');
    line
}

/// The entry of a line without its line end. `None`: the line is damaged.
pub(super) fn parse_line<T: for<'de> Deserialize<'de>>(line: &[u8]) -> Option<T> {
    let (sum, text) = line.split_at_checked(8)?;
    let text = text.strip_prefix(b" ")?;
    let sum = u32::from_str_radix(str::from_utf8(sum).ok()?, 16).ok()?;
    if crc32fast::hash(text) != sum { None } else { serde_json::from_slice(text).ok() }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn intent(n: u64, name: &str, order: EventOrder) -> Intent {
        let event = Event {
            v: EVENT_VERSION,
            id: format!("node-{n}"),
            event: EventKind::Upload,
            time: now(),
            node: "node".parse().unwrap(),
            session: SessionId::random(),
            user: "alice".into(),
            groups: Vec::new(),
            address: "192.0.2.1".parse().unwrap(),
            path: format!("/{name}"),
            path_hex: None,
            storage_path: format!("/alice/{name}"),
            storage_path_hex: None,
            old_path: None,
            old_path_hex: None,
            old_storage_path: None,
            old_storage_path_hex: None,
            size: Some(3),
            offset: None,
            sha256: None,
        };
        let evidence = ChangeEvidence::Publication {
            directory: b"alice"[..].into(),
            name: name.as_bytes().into(),
            hidden: None,
            inode: 7,
            proven: true,
        };
        Intent { n, event, order, evidence }
    }

    #[test]
    fn a_damaged_line_is_recognised() {
        let order = EventOrder { epoch: 1, lease: 2, changed: 3 };
        let mut entry = intent(1, "a", order);
        let name = b"\xff\n"[..].into();
        entry.evidence = ChangeEvidence::Publication {
            directory: b""[..].into(),
            name,
            hidden: None,
            inode: 7,
            proven: false,
        };
        let entry = JournalEntry::Intent(Box::new(entry));
        let line = line_of(&entry);
        let text = line.strip_suffix(b"\n").unwrap();
        assert!(!text.contains(&b'\n'));
        assert_eq!(parse_line(text), Some(entry));
        for end in 0..text.len() {
            assert_eq!(parse_line::<JournalEntry>(&text[..end]), None);
        }
        let mut changed = text.to_vec();
        changed[20] ^= 1;
        assert_eq!(parse_line::<JournalEntry>(&changed), None);
        assert_eq!(parse_line::<JournalEntry>(&[0; 100]), None);
    }

    #[test]
    fn leases_of_one_epoch_order_events_and_otherwise_the_clock_of_the_storage() {
        let order = |epoch, lease, changed| EventOrder { epoch, lease, changed };
        assert!(order(1, 1, 9).is_before(&order(1, 2, 8)));
        assert!(!order(1, 2, 8).is_before(&order(1, 1, 9)));
        assert!(order(2, 1, 8).is_before(&order(1, 2, 9)));
        assert!(order(0, 0, 8).is_before(&order(0, 0, 9)));
    }
}
