//! The passive ports that this node owns, and the hand-over of blocks that it gives up.

use std::{sync::Arc, time::Duration};

use common::{
    node::PortRange,
    passive::{BlockState, OwnBlock},
    registry::Registry,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::ReservationTable;
use crate::metrics;

/// Interval at which the node looks whether a block that it gives up is free of reservations.
const HAND_OVER_INTERVAL: Duration = Duration::from_millis(200);

/// The blocks of this node, as the registry has them. A fixed slice is one block.
#[derive(Clone)]
pub(super) struct OwnPorts {
    pub(super) blocks: watch::Receiver<Arc<[OwnBlock]>>,
    pub(super) registry: Registry,
}

/// The ports that this node may reserve.
pub(super) struct ReservablePorts(Arc<[OwnBlock]>);

impl OwnPorts {
    pub(super) fn new(registry: &Registry) -> Self {
        Self { blocks: registry.blocks(), registry: registry.clone() }
    }

    /// Returns true if this node owns `port`, also if it gives it up.
    pub(super) fn contain(&self, port: u16) -> bool {
        self.blocks.borrow().iter().any(|block| block.ports.contains(port))
    }

    /// The ports that the node may reserve now. `None`: other nodes may own its ports by now.
    ///
    /// To be called while the table of reservations is locked. Then a block that [`keep`] has found free of
    /// reservations gets no further one.
    pub(super) fn reservable(&self) -> Option<ReservablePorts> {
        self.registry.may_reserve().then(|| ReservablePorts(Arc::clone(&self.blocks.borrow())))
    }

    /// The ports of this node, for the log: `50000-50004 50010-50014`.
    pub(super) fn describe(&self) -> String {
        describe(&self.blocks.borrow())
    }
}

impl ReservablePorts {
    fn blocks(&self) -> impl Iterator<Item = PortRange> {
        self.0.iter().filter(|block| block.state == BlockState::Leased).map(|block| block.ports)
    }

    /// The number of ports.
    pub(super) fn count(&self) -> u32 {
        self.blocks().map(PortRange::count).sum()
    }

    /// The ports in their order.
    pub(super) fn iter(&self) -> impl Iterator<Item = u16> {
        self.blocks().flat_map(PortRange::iter)
    }

    /// Each port once, from a random one on.
    pub(super) fn each_once(&self) -> impl Iterator<Item = u16> {
        let count = self.count() as usize;
        // The range must not be empty.
        let first = rand::random_range(0..count.max(1));
        self.iter().chain(self.iter()).skip(first).take(count)
    }
}

/// The blocks as text: `50000-50004 50010-50014`. Empty if the node has none.
pub fn describe(blocks: &[OwnBlock]) -> String {
    blocks.iter().map(|block| block.ports.to_string()).collect::<Vec<_>>().join(" ")
}

/// A block that the node gives up.
pub(super) struct GivenUpBlock {
    ports: PortRange,
    generation: u64,
    since: Instant,
    /// It was handed over to the registry.
    pub(super) is_released: bool,
}

/// Watches the blocks: shows them in the metrics, wakes sessions that wait for a port when there are new
/// ones, and hands blocks over that the node gives up. A block is handed over when no reservation is
/// outstanding on it. Reservations that are left after `limit` end. Runs until the node has left the
/// registry.
pub(super) async fn keep(mut own: OwnPorts, table: Arc<ReservationTable>, limit: Duration) {
    let mut given_up = Vec::new();
    loop {
        let blocks = Arc::clone(&own.blocks.borrow_and_update());
        show(&blocks);
        table.freed.notify_waiters();
        given_up = still_given_up(&blocks, given_up, Instant::now());
        loop {
            hand_over(&mut given_up, &own.registry, &table, limit);
            let is_busy = given_up.iter().any(|block| !block.is_released);
            tokio::select! {
                changed = own.blocks.changed() => match changed {
                    Ok(()) => break,
                    // The node has left the registry.
                    Err(_) => return,
                },
                () = sleep(HAND_OVER_INTERVAL), if is_busy => {}
            }
        }
    }
}

/// The blocks that the node gives up now. `before`: those of the last time.
pub(super) fn still_given_up(
    blocks: &[OwnBlock],
    before: Vec<GivenUpBlock>,
    now: Instant,
) -> Vec<GivenUpBlock> {
    let mut before = before;
    let given_up = blocks.iter().filter(|block| block.state == BlockState::GivenUp);
    given_up
        .map(|block| {
            let is_same = |old: &GivenUpBlock| old.ports == block.ports && old.generation == block.generation;
            match before.iter().position(is_same) {
                Some(index) => before.swap_remove(index),
                None => GivenUpBlock {
                    ports: block.ports,
                    generation: block.generation,
                    since: now,
                    is_released: false,
                },
            }
        })
        .collect()
}

pub(super) fn hand_over(
    given_up: &mut [GivenUpBlock],
    registry: &Registry,
    table: &ReservationTable,
    limit: Duration,
) {
    let now = Instant::now();
    for block in given_up.iter_mut().filter(|block| !block.is_released) {
        let mut waiting = table.waiting();
        if block.since + limit <= now && waiting.end_all(block.ports, now) {
            drop(waiting);
            table.freed.notify_waiters();
        } else if waiting.is_free(block.ports, now) {
            drop(waiting);
            block.is_released = true;
            registry.release_block(block.ports);
        }
    }
}

fn show(blocks: &[OwnBlock]) {
    let count = |state| blocks.iter().filter(|block| block.state == state).count();
    metrics::blocks("leased", count(BlockState::Leased));
    metrics::blocks("given_up", count(BlockState::GivenUp));
    let leased = blocks.iter().filter(|block| block.state == BlockState::Leased);
    metrics::limit("passive_ports", leased.map(|block| block.ports.count()).sum::<u32>());
}
