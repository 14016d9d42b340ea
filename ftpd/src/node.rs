//! What all sessions of the node share.

use std::sync::Arc;

use common::{node::NodeName, registry::Registry};

use crate::{
    auth::Authenticator,
    config::{Limits, Network, Storage, Timeouts},
    connection_log::ConnectionLog,
    connections::Connections,
    data::passive::PassivePorts,
    jail::SharedDirectories,
    listing::sorted::ListingMemory,
    proxy_protocol::Trust,
    quota::Counts,
    representation::AsciiConversion,
    tls::Tls,
    transfer_log::TransferLog,
    turns::Turns,
    workers::Workers,
};

/// The node, as its sessions see it.
pub struct Node {
    pub name: NodeName,
    pub network: Network,
    pub storage: Storage,
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub greeting: String,
    pub ascii_conversion: AsciiConversion,
    pub trust: Arc<Trust>,
    pub passive: PassivePorts,
    pub registry: Registry,
    pub authenticator: Authenticator,
    pub workers: Workers,
    /// For checksums (`max_checksums_per_user`).
    pub checksum_turns: Turns,
    /// What sorted listings may take together.
    pub listing_memory: ListingMemory,
    pub directories: SharedDirectories,
    pub counts: Counts,
    pub connections: Arc<Connections>,
    pub connection_log: ConnectionLog,
    pub transfer_log: TransferLog,
    pub tls: Option<Arc<Tls>>,
}
