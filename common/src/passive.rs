//! The passive port range of a cluster, and the part of it that a node owns: blocks that it leases, or a
//! slice.

use crate::node::PortRange;

/// The passive port range, cut into blocks of the same number of ports. The last block may be smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassiveLayout {
    range: PortRange,
    block_ports: u16,
}

impl PassiveLayout {
    /// `block_ports`: the number of ports of a block; 0 counts as 1.
    pub fn new(range: PortRange, block_ports: u16) -> Self {
        Self { range, block_ports: block_ports.max(1) }
    }

    /// The whole passive port range.
    pub fn range(self) -> PortRange {
        self.range
    }

    /// The number of ports of a block, at least 1.
    pub fn block_ports(self) -> u16 {
        self.block_ports
    }

    /// The blocks, in the order of their ports.
    pub fn blocks(self) -> impl Iterator<Item = PortRange> {
        let starts = self.range.iter().step_by(self.block_ports.into());
        starts.filter_map(move |from| {
            let to = from.saturating_add(self.block_ports - 1).min(self.range.to());
            PortRange::new(from, to).ok()
        })
    }
}

/// The rule by which a node owns passive ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassiveAssignment {
    /// The settings give the node this slice. It never changes.
    Slice(PortRange),
    /// The node leases blocks in the registry: its fair share of them.
    Leased(PassiveLayout),
}

/// A block that this node owns; with [`PassiveAssignment::Slice`] the slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnBlock {
    pub ports: PortRange,
    /// Rises each time the block gets another owner. 0 for a slice.
    pub generation: u64,
    pub state: BlockState,
}

/// The state of a block that this node owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockState {
    /// The node may reserve ports on it.
    Leased,
    /// The node gives it up: it takes no new reservation. The node hands it over when no reservation is
    /// outstanding on it.
    GivenUp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_the_range_and_the_last_may_be_smaller() {
        let layout = PassiveLayout::new("50000-50010".parse().unwrap(), 5);
        let blocks: Vec<_> = layout.blocks().map(|block| block.to_string()).collect();
        assert_eq!(blocks, ["50000-50004", "50005-50009", "50010-50010"]);
        let layout = PassiveLayout::new("65530-65535".parse().unwrap(), 4);
        let blocks: Vec<_> = layout.blocks().map(|block| block.to_string()).collect();
        assert_eq!(blocks, ["65530-65533", "65534-65535"]);
    }
}
