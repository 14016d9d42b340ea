//! What a node learns from its cluster: why it may not join, and events after it has joined.

use std::{fmt, time::Duration};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    node::{NodeCommand, NodeName, NodeRecord, PortRange},
    passive::PassiveLayout,
};

/// Capacity of a node's queue of events.
pub(super) const EVENT_CAPACITY: usize = 64;

/// The reason why a node may not join its cluster.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum JoinError {
    #[error(
        "the passive ports {} of node {} overlap the ports {} of node {}, which is live",
        ours.1, ours.0, theirs.1, theirs.0
    )]
    SliceTaken { ours: (NodeName, PortRange), theirs: (NodeName, PortRange) },
    #[error(
        "node {} leases passive ports in blocks of {} from {}, and node {}, which is live, in blocks of {} \
         from {}: give all nodes the same passive_port_min, passive_port_max and passive_block_ports \
         (nodes with cluster_nodes, cluster_size or passive_slice do not lease)",
        ours.0, ours.1.block_ports(), ours.1.range(), theirs.0, theirs.1.block_ports(), theirs.1.range()
    )]
    LayoutDiffers { ours: (NodeName, PassiveLayout), theirs: (NodeName, PassiveLayout) },
    #[error(
        "the node name {name} is in use by {holder}, which renews its lease in Redis: give this node \
         another node_name, or end that process (a process that crashed frees the name after {lease:?}, \
         the node_lease)"
    )]
    NameTaken { name: NodeName, holder: NameHolder, lease: Duration },
}

/// An event of the cluster that a node must react to.
#[derive(Clone, Debug, PartialEq)]
pub enum ClusterEvent {
    Command(NodeCommand),
    /// A live node of another name owns some of this node's passive ports: one of the two nodes must end. The
    /// node learns of this after its start because Redis was away then.
    SliceConflict {
        ours: (NodeName, PortRange),
        theirs: (NodeName, PortRange),
    },
    /// Another process holds this node's name, so this process must end. It could not renew its lease for a
    /// `node_lease`, or started while Redis was away.
    NameTaken(NameHolder),
}

/// The process that holds a node's name. `None` if Redis has no readable record of that process.
#[derive(Clone, Debug, PartialEq)]
pub struct NameHolder(pub(super) Option<Box<NodeRecord>>);

impl fmt::Display for NameHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(record) = &self.0 else {
            return f.write_str("another process (its record in Redis cannot be read)");
        };
        f.write_str("another process")?;
        if !record.host.is_empty() {
            write!(f, " on host {}", record.host)?;
        }
        let since =
            i64::try_from(record.since).ok().and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
        let since = since.and_then(|since| since.format(&Rfc3339).ok());
        write!(
            f,
            " (listening on {}, started {})",
            record.control,
            since.as_deref().unwrap_or("at an unknown time")
        )
    }
}
