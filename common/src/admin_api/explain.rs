//! Explanations: `/v1/users/{name}/explain`, `/v1/sessions/{id}/explain`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{
    ids::{NodeName, SessionId},
    live::DialogueLine,
};

/// Whether a condition of a login is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GateVerdict {
    Ok,
    Refused,
    /// It depends on something that the question does not tell, or Redis cannot be asked.
    Unknown,
}

/// One condition of a login.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainGate {
    /// `user`, `enabled`, `block`, `ban`, `address`, `hours`, `groups`, `sessions`, `tls`.
    pub gate: String,
    pub verdict: GateVerdict,
    /// The condition in a sentence.
    pub text: String,
}

/// `GET /v1/users/{name}/explain`: why a user can log in or cannot. Nothing is counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserExplanation {
    pub user: String,
    /// True if no gate refuses the login. The password is not checked.
    pub may_log_in: bool,
    pub gates: Vec<ExplainGate>,
    /// A command of `ftpctl` that lets the user in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// The last logins of the user in the audit trail, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<LoginAttemptView>,
}

/// A login or a refused login.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginAttemptView {
    pub time: String,
    pub accepted: bool,
    /// Why it was refused, such as `wrong_password`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
}

/// `GET /v1/sessions/{id}/explain`: why the session's last command failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionExplanation {
    pub id: SessionId,
    pub user: String,
    pub node: NodeName,
    /// The last command that failed, and its reply. `None`: none of the remembered commands failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<String>,
    /// The explanation in a sentence.
    pub text: String,
    pub dialogue: Vec<DialogueLine>,
}
