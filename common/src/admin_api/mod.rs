//! The answers and requests of authd's API for administrators. authd writes them; `ftpctl` reads them. All
//! times are RFC 3339 in UTC unless a field says otherwise.

mod access;
mod audit;
mod backup;
mod cluster;
mod events;
mod explain;
mod sessions;

pub use self::{
    access::{BlockRequest, BlockSubject, BlockView, UsageView},
    audit::{AuditEntry, AuditPage},
    backup::{BACKUP_VERSION, BackupDocument, RestoreView},
    cluster::{
        AuthdView, BalancerView, DrainStage, DrainView, FailingView, HistoryPoint, HistoryView, NodeView,
        ProblemPart, ProblemSeverity, ProblemView, ProblemsView, StatusView,
    },
    events::{DeadLetterView, EventReceiverView, EventsView, ReplayRequest, ReplayView},
    explain::{ExplainGate, GateVerdict, LoginAttemptView, SessionExplanation, UserExplanation},
    sessions::{DialogueView, KickView, LiveSessionsView, LiveUnavailable, SessionView},
};

/// The header of an answer to `GET /v1/sessions` that holds the `cursor` of the next page.
pub const NEXT_CURSOR: &str = "next-cursor";

/// The role of an administrator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdminRole {
    /// May do everything.
    Administrator,
    /// May only read.
    Viewer,
}

/// `GET /v1/whoami`: the administrator to whom the token belongs.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct WhoamiView {
    pub name: String,
    pub role: AdminRole,
}
