//! Blocks and usage: `/v1/blocks`, `/v1/users/{name}/usage`, `/v1/usage`.

use serde::{Deserialize, Serialize};

/// The kind of a block's subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlockSubject {
    User,
    /// An address or a network in CIDR form.
    Address,
}

/// A block in the answer to `GET` and `POST /v1/blocks`: an administrator forbids logins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockView {
    pub kind: BlockSubject,
    /// The user, the address or the network.
    pub name: String,
    /// `None`: until an administrator removes it.
    pub until: Option<String>,
    /// Empty if the administrator gave none.
    pub reason: String,
    /// The administrator's name.
    pub by: String,
    /// When the block began.
    pub since: String,
}

/// The body of `POST /v1/blocks`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockRequest {
    pub kind: BlockSubject,
    pub name: String,
    /// Duration of the block; missing: until an administrator removes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
    #[serde(default)]
    pub reason: String,
}

/// `GET /v1/users/{name}/usage`, and an entry of `GET /v1/usage`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UsageView {
    pub user: String,
    /// The home's path within the storage.
    pub home: String,
    /// What the home holds. `None`: it was not counted yet.
    pub bytes: Option<u64>,
    pub files: Option<u64>,
    /// The quota. `None`: no limit.
    pub bytes_limit: Option<u64>,
    pub files_limit: Option<u64>,
    /// The larger of both shares of the quota, in percent. `None`: unknown, or no limit.
    pub percent: Option<f64>,
    /// Time of the last count.
    pub counted: Option<String>,
}
