//! Passes each new map on: to the readiness report, to nftables, and to the log where it disagrees with the
//! settings.

use std::{sync::Arc, time::Duration};

use common::{
    node::PortRange,
    registry::{BlockOwner, MapContent},
};
use tokio::{sync::watch, time::sleep};

use super::{health::RoleHealth, known_nodes::KnownNodes, nft::NftWriter};

/// Follows the map until the process ends.
pub(super) struct MapFollower {
    pub(super) content: watch::Receiver<Arc<MapContent>>,
    pub(super) nodes: Arc<KnownNodes>,
    pub(super) health: Arc<RoleHealth>,
    pub(super) nft: Option<NftWriter>,
    /// The ports on which the relay listens.
    pub(super) passive_ports: PortRange,
    pub(super) interval: Duration,
}

impl MapFollower {
    pub(super) async fn run(mut self) {
        let mut is_told = false;
        loop {
            let map = Arc::clone(&self.content.borrow_and_update());
            self.health.check(&self.nodes.content());
            match outside(&map.blocks, self.passive_ports) {
                Some(block) if !is_told => {
                    log::error!(
                        node = block.node.as_str(), ports:% = block.ports, listening:% = self.passive_ports;
                        "a node owns passive ports on which this relay does not listen: passive_port_min and \
                         passive_port_max must be the same on all nodes and relays"
                    );
                    is_told = true;
                }
                Some(_) => {}
                None => is_told = false,
            }
            if let Some(nft) = &self.nft {
                nft.set(map);
            }
            // The listeners may have failed or recovered meanwhile.
            tokio::select! {
                changed = self.content.changed() => if changed.is_err() { return },
                () = sleep(self.interval) => {}
            }
        }
    }
}

/// The first block with a port outside of `range`.
fn outside(blocks: &[BlockOwner], range: PortRange) -> Option<&BlockOwner> {
    blocks.iter().find(|block| !range.contains(block.ports.from()) || !range.contains(block.ports.to()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_that_reaches_beyond_the_range_is_found() {
        let block = |ports: &str| BlockOwner {
            ports: ports.parse().unwrap(),
            node: "a".parse().unwrap(),
            address: [10, 0, 0, 1].into(),
            generation: 1,
        };
        let range = "50000-50009".parse().unwrap();
        assert_eq!(outside(&[block("50000-50004"), block("50005-50009")], range), None);
        for ports in ["50005-50010", "49999-50000", "60000-60001"] {
            assert!(outside(&[block("50000-50004"), block(ports)], range).is_some(), "{ports}");
        }
    }
}
