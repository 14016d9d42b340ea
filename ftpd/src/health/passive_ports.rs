//! The dependency `passive_ports`: it fails while a node that leases its passive ports owns none.

use common::{
    health::{Condition, DependencyFailure, DependencyMonitor},
    passive::{BlockState, PassiveAssignment},
    registry::Registry,
};

use super::Health;

/// The failure of a node without a block that it may use.
const NONE: &str = "this node owns no passive ports. If it has reached Redis, the passive range has fewer \
                        blocks than there are nodes: widen it (passive_port_min, passive_port_max), or make \
                        the blocks smaller (passive_block_ports)";

/// The monitor of a node that leases blocks; `None` for a fixed slice, which cannot be lost.
pub(super) fn monitor(assignment: PassiveAssignment) -> Option<DependencyMonitor> {
    match assignment {
        PassiveAssignment::Leased(_) => Some(DependencyMonitor::new("passive_block_ports")),
        PassiveAssignment::Slice(_) => None,
    }
}

impl Health {
    /// Notes whether the node owns passive ports.
    pub fn check_passive_ports(&self, registry: &Registry) {
        let Some(monitor) = &self.passive_ports else { return };
        let is_leased = registry.blocks().borrow().iter().any(|block| block.state == BlockState::Leased);
        let is_new = monitor.note(if is_leased {
            Ok(())
        } else {
            let setting = "passive_block_ports";
            Err(DependencyFailure { condition: Condition::Failed, error: NONE.to_owned(), setting })
        });
        // The registry logs why the node has none.
        if is_new && monitor.dependency().last_error.is_some() {
            log::info!("this node owns passive ports again");
        }
    }
}
