//! The cluster: `/v1/nodes`, `/v1/status`, `/v1/problems`, `/v1/history`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{
    live::NodeActivity,
    node::{NodeName, NodeState, PortRange},
};

/// A node in the answer to `GET /v1/nodes`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    pub name: NodeName,
    /// Hexadecimal digits: JavaScript and jq would round the 64-bit number.
    pub incarnation: String,
    pub state: NodeState,
    /// The first passive ports, for readers of the previous version.
    pub slice: PortRange,
    /// The blocks that the node leases, or its slice.
    pub passive_ports: Vec<PortRange>,
    /// The address at which other nodes and relays reach the node. `None`: the node is of an older version.
    pub address: Option<IpAddr>,
    pub control: String,
    pub host: String,
    pub version: String,
    /// Start of the process.
    pub since: String,
    pub sessions: u32,
    pub transfers: u32,
    pub failing: Vec<FailingView>,
    pub drain: DrainStage,
    /// The latest end of the drain, while the node drains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_until: Option<String>,
    /// Rates, latencies and load. `None`: the node is of an older version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activity: Option<NodeActivity>,
}

/// A failing dependency of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailingView {
    pub dependency: String,
    pub error: String,
    pub since: String,
    pub required: bool,
}

/// Progress of a node's drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DrainStage {
    None,
    /// An administrator has requested the drain, and the node has not begun yet.
    Asked,
    Draining,
    /// The node has drained and left the cluster.
    Drained,
}

/// `GET` and `POST /v1/nodes/{name}/drain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainView {
    pub drain: DrainStage,
    /// Time of the administrator's request. `None`: there was no request.
    pub asked: Option<String>,
    /// The latest end of the drain, where it is known.
    #[serde(default)]
    pub until: Option<String>,
    /// What the node still has.
    #[serde(default)]
    pub sessions: u32,
    #[serde(default)]
    pub transfers: u32,
    /// The path that shows the progress.
    #[serde(default)]
    pub status: String,
}

/// `GET /v1/status`: the cluster in one answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusView {
    pub time: String,
    /// authd's version.
    pub version: String,
    pub nodes: Vec<NodeView>,
    pub sessions: u64,
    pub transfers: u64,
    /// Bytes per second of all nodes.
    pub upload_rate: f64,
    pub download_rate: f64,
    /// Time of a round trip from authd to Redis, in seconds. `None`: Redis cannot be reached.
    pub redis_seconds: Option<f64>,
    /// The first expiry of the nodes' certificates.
    pub certificate_expiry: Option<String>,
    /// Number of problems in the answer to `GET /v1/problems`.
    pub problems: usize,
    /// The running authds of the cluster.
    #[serde(default)]
    pub authds: Vec<AuthdView>,
    /// The balancers, as the nodes see them.
    #[serde(default)]
    pub balancers: Vec<BalancerView>,
}

/// A balancer that nodes trust (`trusted_balancers`) and that reached one of them in the last 10 minutes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BalancerView {
    pub address: IpAddr,
    /// Control connections of all nodes.
    pub connections: u64,
    /// The nodes that it reached, health checks included.
    pub nodes: Vec<NodeName>,
    /// Seconds since the last control connection began.
    pub seconds: f64,
}

/// A running authd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthdView {
    /// Random, chosen at the start of the process.
    pub id: String,
    pub host: String,
    /// Where it listens.
    pub address: String,
    pub version: String,
    /// Start of the process.
    pub since: String,
}

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProblemSeverity {
    Info,
    Warning,
    Critical,
}

/// One cause of trouble.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProblemView {
    /// The kind of the cause, such as `dependency`, `storage_slow`, `logins_refused`. It does not change.
    pub kind: String,
    pub severity: ProblemSeverity,
    /// The node, if the cause concerns one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// Since when, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Number of observations of the cause; 1 for a state.
    pub count: u64,
    /// What is wrong, in a sentence.
    pub text: String,
    /// What to do, in a sentence.
    pub remedy: String,
    /// A command of `ftpctl` that helps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// The reason of refused uploads, operations and logins, as in the audit trail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The users with the most refusals; for logins `ADDRESS as USER`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<ProblemPart>,
}

/// A part of a problem's observations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProblemPart {
    pub name: String,
    pub count: u64,
}

/// `GET /v1/problems`: what is wrong now, the worst first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProblemsView {
    pub time: String,
    pub problems: Vec<ProblemView>,
    /// Sources that could not be asked. The list may lack problems then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<String>,
}

/// The cluster at one time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryPoint {
    /// Unix time in seconds: plots compute with it.
    pub at: u64,
    /// Bytes per second of all nodes.
    pub upload_rate: f64,
    pub download_rate: f64,
    pub sessions: u64,
    pub transfers: u64,
    /// Logins and refused logins since the previous point.
    pub logins: u64,
    pub logins_refused: u64,
}

/// `GET /v1/history`: the last hour as this authd saw it, oldest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryView {
    /// Time between two points, in seconds.
    pub interval: u64,
    pub points: Vec<HistoryPoint>,
}
