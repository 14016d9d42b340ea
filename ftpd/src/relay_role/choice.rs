//! The choice of a node for a control connection: ready, with the fewest sessions, not silent a moment ago.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use common::{
    node::NodeName,
    registry::{MapContent, MapNode},
    sync::lock,
};
use tokio::time::Instant;

/// Time for which new connections avoid a node that did not accept one or did not greet. Then one connection
/// tries the node again.
const AVOIDED: Duration = Duration::from_secs(5);

/// The kind of a control connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ControlKind {
    /// FTP, perhaps with explicit TLS: the node speaks first.
    Explicit,
    /// Implicit FTPS: the client speaks first.
    Implicit,
}

/// Chooses nodes, and counts the connections of this relay to each.
#[derive(Default)]
pub(super) struct NodeChoice(Mutex<ChoiceState>);

#[derive(Default)]
struct ChoiceState {
    /// The map at the last choice. The counts of `recent` are since it came.
    map: Arc<MapContent>,
    /// Changes with the map.
    epoch: u64,
    uses: HashMap<NodeName, NodeUse>,
    /// Nodes with the same number of sessions take turns.
    turn: usize,
}

#[derive(Default)]
struct NodeUse {
    /// Open control connections of this relay.
    open: u32,
    /// Those that were opened since the map came. The map's number of sessions does not contain them.
    recent: u32,
    avoided_until: Option<Instant>,
    /// The last time at which the node greeted.
    greeted: Option<Instant>,
}

/// A node that was chosen for a connection. Dropping it ends the connection's count.
pub(super) struct ChosenNode {
    pub(super) name: NodeName,
    /// Where to connect to.
    pub(super) address: SocketAddr,
    /// The port on which the node greets.
    pub(super) greets_at: SocketAddr,
    choice: Arc<NodeChoice>,
    epoch: u64,
}

impl NodeChoice {
    /// The node for a new connection: a ready one that is not in `tried`, not avoided if possible, with the
    /// fewest sessions. `None`: there is no further ready node. `patience`: how long a connection waits for a
    /// node at most.
    pub(super) fn choose(
        self: &Arc<Self>,
        map: &Arc<MapContent>,
        kind: ControlKind,
        tried: &[NodeName],
        patience: Duration,
    ) -> Option<ChosenNode> {
        let now = Instant::now();
        let mut state = self.state();
        state.follow(map);
        state.turn = state.turn.wrapping_add(1);
        let turn = state.turn;
        let count = map.nodes.len();
        let candidates = map.nodes.iter().enumerate().filter_map(|(position, node)| {
            let address = match kind {
                ControlKind::Explicit => node.control,
                ControlKind::Implicit => node.implicit?,
            };
            (node.is_ready && !tried.contains(&node.name)).then_some((position, node, address))
        });
        let rank = |position: usize, node: &MapNode| {
            let own = state.uses.get(&node.name);
            let is_avoided = own.and_then(|own| own.avoided_until).is_some_and(|until| until > now);
            (is_avoided, load(node, own), (position + turn) % count)
        };
        let (_, node, address) = candidates.min_by_key(|(position, node, _)| rank(*position, node))?;
        let epoch = state.epoch;
        let own = state.uses.entry(node.name.clone()).or_default();
        own.open += 1;
        own.recent += 1;
        if own.avoided_until.is_some() {
            // This connection finds out whether the node works again. Meanwhile others avoid it.
            own.avoided_until = Some(now + patience.max(AVOIDED));
        }
        Some(ChosenNode {
            name: node.name.clone(),
            address,
            greets_at: node.control,
            choice: Arc::clone(self),
            epoch,
        })
    }

    fn state(&self) -> MutexGuard<'_, ChoiceState> {
        lock(&self.0)
    }
}

/// The sessions of a node, as far as the relay knows. The map is a few seconds old, and does not count
/// connections before their login; the relay's own connections are a lower bound.
fn load(node: &MapNode, own: Option<&NodeUse>) -> u32 {
    let (recent, open) = own.map_or((0, 0), |own| (own.recent, own.open));
    node.sessions.saturating_add(recent).max(open)
}

impl ChoiceState {
    /// Begins to count anew if the map is a new one.
    fn follow(&mut self, map: &Arc<MapContent>) {
        if Arc::ptr_eq(&self.map, map) {
            return;
        }
        self.map = Arc::clone(map);
        self.epoch += 1;
        self.uses.values_mut().for_each(|own| own.recent = 0);
        let is_known = |name: &NodeName| map.nodes.iter().any(|node| node.name == *name);
        self.uses.retain(|name, own| own.open > 0 || is_known(name));
    }
}

impl ChosenNode {
    /// The node has sent its greeting. Returns true if it was avoided before.
    pub(super) fn greeted(&self) -> bool {
        let mut state = self.choice.state();
        let Some(own) = state.uses.get_mut(&self.name) else { return false };
        own.greeted = Some(Instant::now());
        own.avoided_until.take().is_some()
    }

    /// Returns true if the node has greeted within this time.
    pub(super) fn has_greeted_within(&self, time: Duration) -> bool {
        let state = self.choice.state();
        let greeted = state.uses.get(&self.name).and_then(|own| own.greeted);
        greeted.is_some_and(|greeted| greeted.elapsed() < time)
    }

    /// The node did not accept the connection or did not greet. Returns true if it was not avoided before.
    pub(super) fn failed(&self) -> bool {
        let mut state = self.choice.state();
        let Some(own) = state.uses.get_mut(&self.name) else { return false };
        own.greeted = None;
        own.avoided_until.replace(Instant::now() + AVOIDED).is_none()
    }
}

impl Drop for ChosenNode {
    fn drop(&mut self) {
        let mut state = self.choice.state();
        let is_recent = state.epoch == self.epoch;
        if let Some(own) = state.uses.get_mut(&self.name) {
            own.open -= 1;
            own.recent -= u32::from(is_recent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(nodes: &[(&str, u32, bool)]) -> Arc<MapContent> {
        let node = |(position, (name, sessions, is_ready)): (usize, &(&str, u32, bool))| MapNode {
            name: name.parse().unwrap(),
            control: ([10, 0, 0, position as u8], 21).into(),
            implicit: (*name != "b").then(|| ([10, 0, 0, position as u8], 990).into()),
            is_ready: *is_ready,
            sessions: *sessions,
        };
        Arc::new(MapContent { blocks: Vec::new(), nodes: nodes.iter().enumerate().map(node).collect() })
    }

    fn choose(choice: &Arc<NodeChoice>, map: &Arc<MapContent>, tried: &[&str]) -> Option<ChosenNode> {
        let tried: Vec<NodeName> = tried.iter().map(|name| name.parse().unwrap()).collect();
        choice.choose(map, ControlKind::Explicit, &tried, Duration::from_secs(3))
    }

    fn names(chosen: &[ChosenNode]) -> Vec<&str> {
        chosen.iter().map(|node| node.name.as_str()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_ready_node_with_the_fewest_sessions_is_chosen_and_own_connections_count() {
        let choice = Arc::<NodeChoice>::default();
        let old = map(&[("a", 3, true), ("b", 1, true), ("c", 0, false)]);
        let chosen: Vec<_> = (0..4).map(|_| choose(&choice, &old, &[]).unwrap()).collect();
        let mut first_two = names(&chosen[..2]);
        assert_eq!(first_two, ["b", "b"]);
        // From here on both have three sessions, and take turns.
        first_two = names(&chosen[2..]);
        first_two.sort_unstable();
        assert_eq!(first_two, ["a", "b"]);
        // The new map counts the sessions; those of `b` that have not logged in are a lower bound.
        let new = map(&[("a", 2, true), ("b", 0, true)]);
        assert_eq!(choose(&choice, &new, &[]).unwrap().name.as_str(), "a");
        drop(chosen);
        assert_eq!(choose(&choice, &new, &[]).unwrap().name.as_str(), "b");
        assert!(choice.state().uses.values().all(|own| own.open == 0 && own.recent == 0));
    }

    #[tokio::test(start_paused = true)]
    async fn each_node_is_tried_once_and_none_is_chosen_without_a_ready_one() {
        let choice = Arc::<NodeChoice>::default();
        let two = map(&[("a", 0, true), ("b", 9, true), ("c", 0, false)]);
        assert_eq!(choose(&choice, &two, &["a"]).unwrap().name.as_str(), "b");
        assert!(choose(&choice, &two, &["a", "b"]).is_none());
        assert!(choose(&choice, &Arc::default(), &[]).is_none());
        // `b` has no port for implicit FTPS.
        let implicit = choice.choose(&two, ControlKind::Implicit, &[], AVOIDED).unwrap();
        assert_eq!((implicit.address.port(), implicit.greets_at.port()), (990, 21));
        let tried = [implicit.name.clone()];
        assert!(choice.choose(&two, ControlKind::Implicit, &tried, AVOIDED).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_node_is_avoided_then_one_connection_tries_it_and_it_serves_again_when_it_greets() {
        let choice = Arc::<NodeChoice>::default();
        let two = map(&[("a", 0, true), ("b", 5, true)]);
        let first = choose(&choice, &two, &[]).unwrap();
        assert_eq!((first.name.as_str(), first.failed(), first.failed()), ("a", true, false));
        drop(first);
        let next = choose(&choice, &two, &[]).unwrap();
        assert_eq!((next.name.as_str(), next.greeted()), ("b", false));
        assert!(next.has_greeted_within(Duration::from_secs(1)));
        tokio::time::advance(AVOIDED).await;
        assert!(!next.has_greeted_within(Duration::from_secs(1)));
        // One connection tries `a`; the next one does not wait for its result.
        let probe = choose(&choice, &two, &[]).unwrap();
        assert_eq!(probe.name.as_str(), "a");
        assert_eq!(choose(&choice, &two, &[]).unwrap().name.as_str(), "b");
        assert!(probe.greeted());
        assert_eq!(choose(&choice, &two, &[]).unwrap().name.as_str(), "a");
        // The only node is chosen even if it is avoided.
        assert!(probe.failed());
        assert_eq!(choose(&choice, &two, &["b"]).unwrap().name.as_str(), "a");
    }
}
