//! Sessions: `/v1/sessions`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{
    ids::{NodeName, SessionId},
    live::{DialogueLine, SessionDetails},
};

/// A session in the answer to `GET /v1/sessions`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionView {
    pub id: SessionId,
    pub node: NodeName,
    pub user: String,
    pub address: IpAddr,
    /// Time of the login.
    pub since: String,
    /// True if an administrator has ordered the session's end.
    pub ending: bool,
    /// Time of that order.
    #[serde(default)]
    pub ending_since: Option<String>,
    /// With `details=true`: what the session does. Missing while its node has published nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<SessionDetails>,
}

/// The event `sessions` of `GET /v1/live`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LiveSessionsView {
    pub time: String,
    /// Number of sessions of the cluster.
    pub total: usize,
    /// The sessions with the fastest transfers first, then in the order of their logins; at most 1,000.
    pub sessions: Vec<SessionView>,
}

/// The event `unavailable` of `GET /v1/live`, in place of another event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveUnavailable {
    pub time: String,
    /// The name of the event that there would be.
    pub event: String,
    /// Why it cannot be computed.
    pub message: String,
}

/// `GET /v1/sessions/{id}/dialogue`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DialogueView {
    pub id: SessionId,
    /// The last commands and replies, oldest first.
    pub lines: Vec<DialogueLine>,
}

/// The answer to `DELETE /v1/sessions?user=NAME`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KickView {
    /// The sessions that were ordered to end.
    pub sessions: Vec<SessionView>,
    /// With `block=SECONDS`: the end of the user's block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked_until: Option<String>,
}
