//! The blocks of passive ports of a node in the registry: what changes is published to the node, logged and
//! counted.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use super::{
    block_holder::{BlockChanges, BlockHolder, BlockReply, BlockStepRequest},
    cluster::Cluster,
    core::Core,
    work::RegistryWork,
};
use crate::{
    clock::since_boot,
    node::{NodeState, PortRange},
    passive::PassiveAssignment,
    sync::lock,
};

impl Cluster {
    /// True if the node leases blocks, false if it has a slice.
    pub(super) fn is_leased(&self) -> bool {
        matches!(self.assignment, PassiveAssignment::Leased(_))
    }

    /// Takes in Redis's answer about the node's blocks.
    pub(super) fn note_blocks(&self, core: &Core, request: &BlockStepRequest, reply: &BlockReply) {
        let (changes, has_none) = self.change_blocks(core, |holder| {
            let changes = holder.answer(request, reply, since_boot());
            (changes, holder.share() == 0 && holder.usable().is_empty())
        });
        self.report_changes(&changes);
        let has_none = has_none && self.is_leased() && *lock(&core.state) != NodeState::Draining;
        if let Some((ports, block_ports)) = self.note_shortage(has_none) {
            log::error!(
                node = self.process().0.as_str(), ports:% = ports, passive_block_ports = block_ports;
                "this node gets no passive ports, because there are more nodes than blocks: lower \
                 passive_block_ports, or widen the range from passive_port_min to passive_port_max"
            );
        }
        if changes.refresh_now {
            core.work(|_| RegistryWork::Refresh);
        }
    }

    /// Hands a block over. Returns false if the node has not given it up.
    pub(super) fn release_block(&self, core: &Core, ports: PortRange) -> bool {
        self.change_blocks(core, |holder| holder.release(ports))
    }

    /// Hands over the blocks on which no reservation can be left.
    pub(super) fn release_overdue(&self, core: &Core) {
        self.change_blocks(core, |holder| holder.release_overdue(since_boot()));
    }

    pub(super) fn may_reserve(&self, core: &Core) -> bool {
        // Where all nodes have slices, no node takes the ports of another one's slice.
        let is_safe = !self.is_leased() && !core.port_map.has_leased();
        is_safe || lock(&self.blocks).may_reserve(since_boot())
    }

    /// Time to the next refresh after one that succeeded.
    pub(super) fn next_refresh(&self) -> Duration {
        if self.is_leased() { lock(&self.blocks).next_refresh() } else { self.lease / 3 }
    }

    fn change_blocks<T>(&self, core: &Core, change: impl FnOnce(&mut BlockHolder) -> T) -> T {
        let mut holder = lock(&self.blocks);
        let changed = change(&mut holder);
        if self.is_leased() {
            let usable = holder.usable();
            // While the holder is locked: the states must be published in their order.
            core.blocks.send_if_modified(|blocks| {
                let is_new = **blocks != *usable;
                if is_new {
                    *blocks = Arc::from(usable);
                }
                is_new
            });
        }
        changed
    }

    /// Returns the range and the number of ports of a block if the node has just begun to have no share.
    fn note_shortage(&self, has_none: bool) -> Option<(PortRange, u16)> {
        let before = self.lacks_blocks.swap(has_none, std::sync::atomic::Ordering::Relaxed);
        let PassiveAssignment::Leased(layout) = self.assignment else { return None };
        (has_none && !before).then_some((layout.range(), layout.block_ports()))
    }

    fn report_changes(&self, changes: &BlockChanges) {
        let node = self.process().0.as_str();
        if !changes.taken.is_empty() {
            count("taken", changes.taken.len());
            log::info!(node, ports = list(&changes.taken).as_str(); "leased passive ports");
        }
        if !changes.given.is_empty() {
            count("given", changes.given.len());
            log::info!(node, ports = list(&changes.given).as_str(); "handed passive ports over");
        }
        count("lost", changes.lost.len());
        for (ports, owner) in &changes.lost {
            let owner = owner.as_ref().map_or("none", |owner| owner.as_str());
            log::warn!(
                node, ports:% = ports, owner;
                "lost passive ports, because this node did not reach Redis for longer than node_lease, or a \
                 node has them as its slice; sessions go on"
            );
        }
    }
}

fn count(direction: &'static str, blocks: usize) {
    if blocks > 0 {
        metrics::counter!("ftp_block_handovers_total", "direction" => direction).increment(blocks as u64);
    }
}

fn list(blocks: &[PortRange]) -> String {
    let mut text = String::new();
    for ports in blocks {
        let separator = if text.is_empty() { "" } else { " " };
        // Writing to memory does not fail.
        let _ = write!(text, "{separator}{ports}");
    }
    text
}
