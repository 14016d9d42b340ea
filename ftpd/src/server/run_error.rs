//! Why the node cannot start, or ends early.

use std::{io, net::SocketAddr};

use common::{
    audit::AuditLogError,
    registry::{JoinError, NameHolder},
};

use super::descriptor_limit::TooFewDescriptors;
use crate::{events::EventsError, listener::advice, tls::TlsError};

/// Why the node cannot start, or ends early.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("cannot listen on {0}{hint}", hint = advice(.0, .1))]
    Listen(SocketAddr, #[source] io::Error),
    #[error(
        "cannot listen on the passive port {0} (if an outgoing connection of this host uses it: reserve the \
         passive ports with the sysctl net.ipv4.ip_local_reserved_ports; if another node runs on this host: \
         each node listens on all passive ports, so give each an address of its own with listen)"
    )]
    ListenPassive(SocketAddr, #[source] io::Error),
    #[error("cannot open the transfer log {0}")]
    TransferLog(String, #[source] io::Error),
    #[error(transparent)]
    Events(#[from] EventsError),
    #[error(transparent)]
    AuditLog(#[from] AuditLogError),
    #[error("the storage root {0} is not a directory, or cannot be opened")]
    Storage(String, #[source] io::Error),
    #[error(
        "the storage root {root} ({file_system}) does not keep what uploads in atomic mode promise: \
         {reason}. Use a storage that does, or set storage_self_test = \"warn\" if all accounts upload in \
         direct mode"
    )]
    StorageSelfTest { root: String, file_system: String, reason: String },
    #[error("cannot set up TLS")]
    Tls(#[from] TlsError),
    #[error("cannot set up the metrics: {0}")]
    Metrics(String),
    #[error(transparent)]
    OpenFiles(#[from] TooFewDescriptors),
    #[error("cannot give up capabilities")]
    Capabilities(#[source] io::Error),
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error(
        "this node lost its name: {0} has it now. A node loses its name if it cannot renew its lease in \
         Redis for node_lease. If both nodes are meant to run, give one of them another node_name"
    )]
    NameLost(NameHolder),
    #[error(
        "the fixed slice of passive ports (cluster_nodes, cluster_size, passive_slice) overlaps with that of \
         another live node: {0}"
    )]
    SliceConflict(String),
}

impl RunError {
    /// True if starting again cannot help: the settings must change.
    pub fn needs_other_settings(&self) -> bool {
        matches!(self, Self::StorageSelfTest { .. })
    }
}
