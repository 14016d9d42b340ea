//! Events in authd's API.

use serde::{Deserialize, Serialize};

pub use crate::events::{DeadLetterView, EventReceiverView, EventsView};
use crate::ids::NodeName;

/// `POST /v1/events/replay`: which dead letters are delivered again. Without fields, all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplayRequest {
    /// Only those of this receiver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receiver: Option<String>,
    /// Only that of the event with this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

/// The answer to `POST /v1/events/replay`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayView {
    /// The node that delivers them.
    pub node: NodeName,
}
