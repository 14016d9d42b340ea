//! What each session is doing. Its node publishes this while an administrator watches.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::session::SessionId;

/// The direction of a running transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    Upload,
    Download,
    Listing,
}

/// The details of one session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionDetails {
    pub id: SessionId,
    /// The client program's name from CLNT, at most 64 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// `TLSv1.3`; `None` on a plain control connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<String>,
    /// The verb of the current or last command, with its path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Seconds since the last command. 0 while a transfer runs.
    pub idle: f64,
    /// The running transfer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transfer: Option<TransferDetails>,
    /// Bytes of all transfers of the session.
    pub uploaded: u64,
    pub downloaded: u64,
}

/// A running transfer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TransferDetails {
    pub direction: Direction,
    pub bytes: u64,
    /// The bytes at which the transfer ends, where they are known (a download; an upload with ALLO).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Bytes per second over the last interval.
    pub rate: f64,
    /// Seconds since the start.
    pub seconds: f64,
}

/// What a node does at the moment. A node publishes it with each refresh.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeActivity {
    /// The largest share of a limit in use, from 0 to 1: sessions, transfers.
    pub load: f64,
    /// Bytes per second over the last 2 s.
    pub upload_rate: f64,
    pub download_rate: f64,
    /// Totals since the node's start.
    pub uploaded: u64,
    pub downloaded: u64,
    pub logins: u64,
    pub logins_refused: u64,
    /// Highest duration of an fsync in the last 30 s, in seconds.
    pub fsync_max: f64,
    /// The oldest running file operation, in seconds; 0 if none runs.
    pub oldest_operation: f64,
    /// That operation: `STOR fsync /a/b of acme`. Empty if none runs.
    pub oldest_operation_name: String,
    /// Time of the last answer of Redis and of authd, in seconds. `None`: never asked.
    pub redis_seconds: Option<f64>,
    pub authd_seconds: Option<f64>,
    /// The first expiry of the node's certificates; Unix time in seconds.
    pub certificate_expiry: Option<u64>,
    /// The node's clock at the refresh; Unix time in milliseconds.
    pub clock: u64,
    /// The balancers that reach the node.
    pub balancers: Vec<BalancerActivity>,
}

/// A balancer, as a node sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BalancerActivity {
    pub address: IpAddr,
    /// Control connections now.
    pub connections: u32,
    /// Seconds since the last one began.
    pub seconds: f64,
}

/// One line of a session's dialogue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DialogueLine {
    /// RFC 3339 in UTC, with milliseconds.
    pub time: String,
    /// True: the client's command, with the arguments of PASS and ACCT left out. False: a reply.
    pub is_command: bool,
    pub text: String,
}
