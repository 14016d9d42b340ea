//! The nodes as the relay last saw them.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{
    registry::{MapContent, PortMap},
    sync::lock,
};
use tokio::time::Instant;

/// Time for which the last known nodes are used after the map has lost all of them. If Redis lost its data,
/// each node enters itself again within a third of `node_lease` (5 s by default).
const KEPT: Duration = Duration::from_secs(30);

/// The map of the passive ports, and its last content with nodes.
pub(super) struct KnownNodes {
    map: PortMap,
    last: Mutex<(Arc<MapContent>, Instant)>,
}

impl KnownNodes {
    pub(super) fn new(map: PortMap) -> Self {
        Self { map, last: Mutex::new((Arc::default(), Instant::now())) }
    }

    /// The content of the map; the last content with nodes if the map has lost all nodes a moment ago.
    pub(super) fn content(&self) -> Arc<MapContent> {
        let current = Arc::clone(&self.map.content().borrow());
        newest(current, &mut lock(&self.last))
    }
}

fn newest(current: Arc<MapContent>, last: &mut (Arc<MapContent>, Instant)) -> Arc<MapContent> {
    if !current.nodes.is_empty() {
        *last = (Arc::clone(&current), Instant::now());
        return current;
    }
    if last.1.elapsed() < KEPT && !last.0.nodes.is_empty() { Arc::clone(&last.0) } else { current }
}

#[cfg(test)]
mod tests {
    use common::registry::MapNode;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn nodes_that_all_vanish_at_once_are_known_for_half_a_minute() {
        let node = MapNode {
            name: "a".parse().unwrap(),
            control: ([10, 0, 0, 1], 21).into(),
            implicit: None,
            is_ready: true,
            sessions: 0,
        };
        let one = Arc::new(MapContent { blocks: Vec::new(), nodes: vec![node] });
        let mut last = (Arc::default(), Instant::now());
        assert!(newest(Arc::default(), &mut last).nodes.is_empty());
        assert_eq!(newest(one, &mut last).nodes.len(), 1);
        assert_eq!(newest(Arc::default(), &mut last).nodes.len(), 1);
        tokio::time::advance(KEPT).await;
        assert!(newest(Arc::default(), &mut last).nodes.is_empty());
    }
}
