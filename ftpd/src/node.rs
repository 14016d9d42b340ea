//! The node: everything that its sessions share.

use std::sync::Arc;

use common::{audit::AuditTrail, node::NodeName, registry::Registry};

use crate::{
    auth::Authenticator,
    balancers::KnownBalancers,
    client_address::TrustedBalancers,
    config::{Config, Limits, Network, Storage, Timeouts},
    connection_log::ConnectionLog,
    connection_table::ConnectionTable,
    data::passive::PassivePorts,
    dialogue::DialogueMemory,
    events::Events,
    jail::SharedDirectories,
    limits::quota::{HomeCountSettings, HomeCounts},
    listing::sorted::ListingMemory,
    relay::Relay,
    representation::AsciiConversion,
    tls::Tls,
    transfer_log::TransferLog,
    work::{Workers, turns::UserTurns},
};

/// Everything that the sessions of the node share.
pub struct Node {
    pub name: NodeName,
    pub network: Network,
    pub storage: Storage,
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub greeting: String,
    pub ascii_conversion: AsciiConversion,
    pub trusted_balancers: Arc<TrustedBalancers>,
    pub balancers: KnownBalancers,
    pub passive: PassivePorts,
    /// Carries data connections to other nodes. `None`: there are no other nodes.
    pub relay: Option<Arc<Relay>>,
    pub registry: Registry,
    pub authenticator: Authenticator,
    pub workers: Workers,
    /// Turns for checksums (`max_checksums_per_user`).
    pub checksum_turns: UserTurns,
    /// The memory that the sorted listings of all sessions may use together.
    pub listing_memory: ListingMemory,
    pub directories: SharedDirectories,
    pub home_counts: HomeCounts,
    pub connections: Arc<ConnectionTable>,
    pub connection_log: ConnectionLog,
    pub transfer_log: TransferLog,
    pub events: Events,
    pub audit: AuditTrail,
    pub tls: Option<Arc<Tls>>,
}

/// The parts of a node that are open or connected before the node exists.
pub struct NodeParts {
    pub trusted_balancers: Arc<TrustedBalancers>,
    pub passive: PassivePorts,
    pub relay: Option<Arc<Relay>>,
    pub registry: Registry,
    pub connection_log: ConnectionLog,
    pub transfer_log: TransferLog,
    pub events: Events,
    pub audit: AuditTrail,
    pub tls: Option<Arc<Tls>>,
}

impl Node {
    /// Must be called within the runtime.
    pub fn new(config: Config, parts: NodeParts) -> Self {
        let NodeParts {
            trusted_balancers,
            passive,
            relay,
            registry,
            connection_log,
            transfer_log,
            events,
            audit,
            tls,
        } = parts;
        let limits = &config.limits;
        let dialogues = DialogueMemory::new(limits.dialogue_size, limits.dialogue_memory);
        let connections =
            Arc::new(ConnectionTable::new(limits.sessions, limits.sessions_per_address, dialogues));
        let counts = HomeCountSettings {
            at_once: limits.home_counts as usize,
            turn: config.timeouts.home_count_turn,
            interval: config.storage.quota_rescan,
            wait: config.timeouts.quota_wait,
        };
        let counted_for = Arc::clone(&connections);
        Self {
            authenticator: Authenticator::new(config.authentication, config.node_name.clone()),
            name: config.node_name,
            workers: Workers::new(&limits.workers(config.timeouts.file_operation_wait)),
            checksum_turns: UserTurns::new(config.limits.checksums_per_user),
            listing_memory: ListingMemory::new(config.storage.listing_memory),
            directories: SharedDirectories::default(),
            home_counts: HomeCounts::new(counts, move || counted_for.is_draining()),
            connections,
            connection_log,
            network: config.network,
            storage: config.storage,
            limits: config.limits,
            timeouts: config.timeouts,
            greeting: config.greeting,
            ascii_conversion: config.ascii_conversion,
            trusted_balancers,
            balancers: KnownBalancers::default(),
            passive,
            relay,
            registry,
            transfer_log,
            events,
            audit,
            tls,
        }
    }
}
