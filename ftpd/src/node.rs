//! What all sessions of the node share.

use std::sync::Arc;

use common::{node::NodeName, registry::Registry};

use crate::{
    auth::Authenticator,
    config::{Config, Limits, Network, Storage, Timeouts},
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

/// What a node needs beside its settings: it is open, or in touch with other processes, already.
pub struct Parts {
    pub trust: Arc<Trust>,
    pub passive: PassivePorts,
    pub registry: Registry,
    pub transfer_log: TransferLog,
    pub tls: Option<Arc<Tls>>,
}

impl Node {
    /// To be called within the runtime.
    pub fn new(config: Config, parts: Parts) -> Self {
        let Parts { trust, passive, registry, transfer_log, tls } = parts;
        let limits = &config.limits;
        let connections = Arc::new(Connections::new(limits.sessions, limits.sessions_per_address));
        Self {
            authenticator: Authenticator::new(config.authentication, config.node_name.clone()),
            name: config.node_name,
            workers: Workers::new(&config.limits, config.timeouts.file_operation_wait),
            checksum_turns: Turns::new(config.limits.checksums_per_user),
            listing_memory: ListingMemory::new(config.storage.listing_memory),
            directories: SharedDirectories::default(),
            counts: Counts::new(&config.limits, &config.timeouts, &config.storage, &connections),
            connections,
            connection_log: ConnectionLog::new(config.limits.failure_lines),
            network: config.network,
            storage: config.storage,
            limits: config.limits,
            timeouts: config.timeouts,
            greeting: config.greeting,
            ascii_conversion: config.ascii_conversion,
            trust,
            passive,
            registry,
            transfer_log,
            tls,
        }
    }
}
