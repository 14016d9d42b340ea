//! Records of nodes in the registry, commands to nodes, and the slices of the passive port range.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

pub use crate::ids::{InvalidNodeName, NodeName};
use crate::{ids::SessionId, live::NodeActivity};

/// A range of TCP ports, both ends included: the cluster's passive ports, or one node's slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "(u16, u16)", into = "(u16, u16)")]
pub struct PortRange {
    from: u16,
    to: u16,
}

/// The two numbers are not a valid [`PortRange`].
#[derive(Debug, thiserror::Error)]
#[error("a port range is FROM-TO with 1 <= FROM <= TO <= 65535")]
pub struct InvalidPortRange;

impl PortRange {
    /// # Errors
    /// `from` is 0 or greater than `to`.
    pub fn new(from: u16, to: u16) -> Result<Self, InvalidPortRange> {
        if from == 0 || from > to {
            return Err(InvalidPortRange);
        }
        Ok(Self { from, to })
    }

    pub fn from(self) -> u16 {
        self.from
    }

    pub fn to(self) -> u16 {
        self.to
    }

    /// Number of ports, at least 1.
    pub fn count(self) -> u32 {
        u32::from(self.to) - u32::from(self.from) + 1
    }

    pub fn iter(self) -> impl Iterator<Item = u16> {
        self.from..=self.to
    }

    pub fn contains(self, port: u16) -> bool {
        self.from <= port && port <= self.to
    }

    pub fn overlaps(self, other: Self) -> bool {
        self.from <= other.to && other.from <= self.to
    }

    /// The slice of the node at `position` (from 0) in a cluster of `nodes`. `None` if there are fewer
    /// ports than nodes, or no node at that position.
    ///
    /// Port `i` of the range (from 0) belongs to node `i * nodes / count`, rounded down. The balancer's
    /// configuration uses the same formula.
    pub fn slice(self, position: usize, nodes: usize) -> Option<Self> {
        let (position, nodes) = (u32::try_from(position).ok()?, u32::try_from(nodes).ok()?);
        if position >= nodes || self.count() < nodes {
            return None;
        }
        // position < nodes <= count <= 65535, so the products fit u32 and the sums fit u16.
        let edge = |i: u32| self.from + (i * self.count() / nodes) as u16;
        let to = u32::from(self.from) + (position + 1) * self.count() / nodes - 1;
        Some(Self { from: edge(position), to: to as u16 })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.from, self.to)
    }
}

impl FromStr for PortRange {
    type Err = InvalidPortRange;

    fn from_str(text: &str) -> Result<Self, InvalidPortRange> {
        let (from, to) = text.split_once('-').ok_or(InvalidPortRange)?;
        let parse = |port: &str| port.trim().parse().map_err(|_| InvalidPortRange);
        Self::new(parse(from)?, parse(to)?)
    }
}

impl TryFrom<(u16, u16)> for PortRange {
    type Error = InvalidPortRange;

    fn try_from((from, to): (u16, u16)) -> Result<Self, InvalidPortRange> {
        Self::new(from, to)
    }
}

impl From<PortRange> for (u16, u16) {
    fn from(range: PortRange) -> Self {
        (range.from, range.to)
    }
}

/// The state of a node. Starting and stopped nodes are not in the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    Ready,
    Draining,
    /// A required dependency of the node fails. Only authd's API shows this state. In the registry the node
    /// is `Ready` and lists its [`FailingDependency`]s, because an older authd does not know `Degraded`.
    Degraded,
}

/// A dependency of a node that does not work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailingDependency {
    pub dependency: String,
    pub error: String,
    /// Start of the failure, in seconds since the Unix epoch.
    pub since: u64,
    /// True if the failure makes the node unready.
    pub required: bool,
}

/// The registry's record of a live node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    pub name: NodeName,
    /// Random number of this process. It distinguishes the process from earlier ones of the same node.
    pub incarnation: u64,
    pub state: NodeState,
    /// With leased blocks: the first block, for readers of older versions.
    pub slice: PortRange,
    /// True if the node leases blocks, false if it has a slice.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_leased: bool,
    /// The leased blocks. Empty for a node with a slice, and in records of older versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<PortRange>,
    /// The address at which other nodes and relays reach this node. `None` in records of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The control port; 0 in records of older versions.
    #[serde(default)]
    pub port: u16,
    /// The control port of implicit FTPS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub implicit_port: Option<u16>,
    /// Listening address of the control port, for people to read.
    pub control: String,
    /// Host name, for people to read. Empty in records of older versions.
    #[serde(default)]
    pub host: String,
    pub version: String,
    /// Start of the process, in seconds since the Unix epoch.
    pub since: u64,
    pub sessions: u32,
    pub transfers: u32,
    /// Empty in records of older versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failing: Vec<FailingDependency>,
    /// The time at which a drain ends at the latest, in seconds since the Unix epoch. `None`: the node does
    /// not drain, or has an older version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_until: Option<u64>,
    /// `None` in records of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activity: Option<NodeActivity>,
}

impl NodeRecord {
    /// The passive ports that the node owns: its leased blocks, or its slice.
    pub fn passive_ports(&self) -> Vec<PortRange> {
        if self.is_leased { self.blocks.clone() } else { vec![self.slice] }
    }

    /// The record of a ready node without sessions. `control`, `host`, `version` and `since` are empty.
    pub fn new(name: NodeName, incarnation: u64, slice: PortRange) -> Self {
        Self {
            name,
            incarnation,
            state: NodeState::Ready,
            slice,
            is_leased: false,
            blocks: Vec::new(),
            address: None,
            port: 0,
            implicit_port: None,
            control: String::new(),
            host: String::new(),
            version: String::new(),
            since: 0,
            sessions: 0,
            transfers: 0,
            failing: Vec::new(),
            drain_until: None,
            activity: None,
        }
    }
}

/// A command from authd to a node, sent through the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum NodeCommand {
    /// Ends one session with 421, also during a transfer. The reason is in the reply and the log.
    /// Nodes of older versions end the session without it.
    EndSession {
        session: SessionId,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Ends all sessions of a user, for example after the user was removed.
    EndUser {
        user: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Drains the node, as SIGTERM does: no new sessions, transfers finish, the process ends.
    Drain,
    /// Ends a drain that [`Self::Drain`] began: the node serves again. Nodes of older versions skip it.
    Undrain,
    /// Publishes the details of the node's sessions once a second, for this many seconds:
    /// [`RegistryView::live`](crate::registry::RegistryView::live). Nodes of older versions skip this command
    /// and the next.
    Watch { seconds: u32 },
    /// Publishes the last part of a session's dialogue:
    /// [`RegistryView::dialogue`](crate::registry::RegistryView::dialogue).
    Report { session: SessionId },
    /// Delivers dead letters of events again: those of this receiver, and that of the event with this id;
    /// without both, all. The node that delivers the events obeys.
    ReplayEvents {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        receiver: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<String>,
    },
    /// Refreshes the registry at once: a node that joined needs blocks of passive ports. The registry handles
    /// it.
    Refresh,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn eleven_ports_are_divided_among_three_nodes() {
        let range: PortRange = "50000-50010".parse().unwrap();
        let slices: Vec<_> = (0..3).map(|i| range.slice(i, 3).unwrap().to_string()).collect();
        assert_eq!(slices, ["50000-50002", "50003-50006", "50007-50010"]);
        assert_eq!(range.slice(3, 3), None);
        assert_eq!(range.slice(0, 12), None);
    }

    #[test]
    fn invalid_ranges_are_refused() {
        for text in ["", "50000", "0-10", "20-10", "1-65536", "a-b", "-"] {
            assert!(text.parse::<PortRange>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn slices_cover_the_range_without_overlap(
            from in 1u16..=65535, len in 0u16..2000, nodes in 1usize..50,
        ) {
            let range = PortRange::new(from, from.saturating_add(len)).unwrap();
            if range.count() as usize >= nodes {
                let slices: Vec<_> = (0..nodes).map(|i| range.slice(i, nodes).unwrap()).collect();
                let ports: Vec<u16> = slices.iter().flat_map(|s| s.iter()).collect();
                prop_assert_eq!(ports, range.iter().collect::<Vec<_>>());
            } else {
                prop_assert!((0..nodes).any(|i| range.slice(i, nodes).is_none()));
            }
        }
    }
}
