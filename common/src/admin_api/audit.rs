//! The audit trail: `/v1/audit`, and the event `audit` of `/v1/live`.

use serde::{Deserialize, Serialize};

use crate::audit::AuditRecord;

/// A record with its place in the trail.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// Places sort by the order in which Redis got the records.
    pub position: String,
    pub record: AuditRecord,
}

/// `GET /v1/audit`: a part of the trail, newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuditPage {
    pub records: Vec<AuditEntry>,
    /// The `cursor` of the next page. `None`: there are no older records. A page can be empty and have a next
    /// one, because authd looks at a limited number of records for each page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}
