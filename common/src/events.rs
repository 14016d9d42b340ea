//! The state of the events, which the delivering node publishes and authd shows.

use serde::{Deserialize, Serialize};

use crate::ids::NodeName;

/// `GET /v1/events`: the delivery of events, as the delivering node published it last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EventsView {
    /// The node that delivers the events of the cluster. `None`: no node does, because `events_file` is not
    /// set, or the storage hangs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// When it published this: RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<String>,
    #[serde(default)]
    pub receivers: Vec<EventReceiverView>,
    /// The number of all dead letters.
    #[serde(default)]
    pub dead: u64,
    /// The newest dead letters, at most 500.
    #[serde(default)]
    pub dead_letters: Vec<DeadLetterView>,
}

/// A receiver of events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventReceiverView {
    pub name: String,
    /// Events that wait for it.
    pub pending: u64,
    /// Age of the oldest of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_seconds: Option<u64>,
    /// Its dead letters.
    #[serde(default)]
    pub dead: u64,
    /// Why the last attempt failed; missing if it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// An event that a receiver did not accept in time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeadLetterView {
    /// The id of the event.
    pub id: String,
    pub receiver: String,
    /// `upload`, `append`, `rename`, `delete`, `download` or `login`.
    pub event: String,
    /// When it happened: RFC 3339.
    pub time: String,
    pub user: String,
    /// The path below the root of the storage.
    pub path: String,
    /// Bytes; missing where the event has no size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// When it was given up: RFC 3339.
    pub since: String,
    pub attempts: u32,
    /// Why the last attempt failed.
    pub error: String,
}
