//! Backups: `/v1/backup`, `/v1/restore`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::BlockView;

/// The version of [`BackupDocument`]. authd restores no document of a higher version.
pub const BACKUP_VERSION: u32 = 1;

/// The answer to `GET /v1/backup`, and the body of `POST /v1/restore`: everything that administrators made
/// through the API. It contains password hashes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupDocument {
    /// [`BACKUP_VERSION`].
    pub version: u32,
    /// When the backup was made.
    pub time: String,
    /// The version of the authd that made it.
    pub authd: String,
    /// Users of the API by name, as they are in Redis: with `password_hash`.
    pub users: BTreeMap<String, Value>,
    /// Groups of the API by name.
    pub groups: BTreeMap<String, Value>,
    /// Overrides of declared users by name.
    pub overrides: BTreeMap<String, Value>,
    pub blocks: Vec<BlockView>,
}

/// The answer to `POST /v1/restore`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreView {
    /// Number of objects in the document.
    pub users: usize,
    pub groups: usize,
    pub overrides: usize,
    /// Blocks whose time is over are not counted.
    pub blocks: usize,
    /// With `replace=true`: number of objects that were there, are not in the document, and are removed.
    pub removed: usize,
    /// Objects that have no effect, or not the one that they had, each in a sentence.
    pub warnings: Vec<String>,
}
