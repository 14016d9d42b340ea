//! The map of the passive ports: which node owns a port, and where the node can be reached. It is read with
//! each refresh and kept while Redis is away.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{sync::watch, time::sleep};

use super::{
    LinkError, RedisOptions, RegistryView, SharedKey,
    block_holder::settle,
    map_reader::{MapAnswer, MapReader},
    shared_keys::KEPT_KEYS,
};
use crate::{
    clock::{since_boot, since_epoch},
    health::Dependency,
    node::{NodeName, PortRange},
    sync::lock,
};

/// Shortest time between two requests because of a port that the map does not have.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// Shortest interval at which [`PortMap::read`] reads the map.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

/// A handle on the map, cheap to clone.
#[derive(Clone)]
pub struct PortMap(Arc<MapInner>);

struct MapInner {
    current: watch::Sender<Arc<MapContent>>,
    state: Mutex<MapState>,
    /// `None`: a node without a registry.
    reader: Option<MapReader>,
    /// Held by the task that asks because of a missing port.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct MapState {
    keys: Arc<[SharedKey]>,
    /// Redis's time in the last answer, in ms since the Unix epoch, and the time of the answer.
    clock: Option<(u64, Duration)>,
    /// The entries of the map with the time of the last answer that had them.
    seen: Vec<(BlockOwner, Duration)>,
    /// The first answer after the last time without answers.
    returned: Duration,
    /// The last request because of a missing port.
    asked: Option<Duration>,
    /// The shortest `node_lease` of the live nodes; `None` before the first answer.
    lease: Option<Duration>,
    has_leased: bool,
}

/// One state of the map.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct MapContent {
    pub blocks: Vec<BlockOwner>,
    pub nodes: Vec<MapNode>,
}

/// The owner of a block or slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockOwner {
    pub ports: PortRange,
    pub node: NodeName,
    /// The address at which the node listens on all passive ports, for other nodes and relays.
    pub address: IpAddr,
    /// See [`OwnBlock::generation`](crate::passive::OwnBlock::generation).
    pub generation: u64,
}

/// A live node, as a relay needs to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapNode {
    pub name: NodeName,
    /// The control port.
    pub control: SocketAddr,
    /// The control port of implicit FTPS.
    pub implicit: Option<SocketAddr>,
    /// False while the node drains or a required dependency fails.
    pub is_ready: bool,
    pub sessions: u32,
}

impl PortMap {
    /// An empty map, for a node without a registry.
    pub(super) fn empty() -> Self {
        Self::new(None)
    }

    pub(super) fn new(reader: Option<MapReader>) -> Self {
        Self(Arc::new(MapInner {
            current: watch::Sender::default(),
            state: Mutex::default(),
            reader,
            asking: tokio::sync::Mutex::default(),
        }))
    }

    /// The map for a process that is not a node. The caller runs the returned task, which reads the map at
    /// each `interval`, or more often if the nodes' `node_lease` requires it, and adds a relay key if the
    /// newest is older than `key_rotation`. It never ends.
    pub fn read(
        options: &RedisOptions,
        interval: Duration,
        key_rotation: Duration,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let reader = MapReader::new(RegistryView::new(options), key_rotation, options.lease);
        let map = Self::new(Some(reader));
        let task = {
            let map = map.clone();
            async move {
                loop {
                    let wait = match map.refresh().await {
                        // Taken blocks are used a third of a lease and a second after they were taken.
                        Ok(()) => lock(&map.0.state).lease.map_or(interval, |lease| interval.min(lease / 3)),
                        // The link has logged the reason.
                        Err(LinkError::Away | LinkError::Denied | LinkError::Unwritable(_)) => {
                            interval.min(ASK_INTERVAL)
                        }
                        Err(error) => {
                            log::warn!("cannot read the map of passive ports from Redis: {error}");
                            interval.min(ASK_INTERVAL)
                        }
                    };
                    sleep(wait.max(SHORTEST_INTERVAL)).await;
                }
            }
        };
        (map, task)
    }

    /// Reads the map from Redis.
    pub(super) async fn refresh(&self) -> Result<(), LinkError> {
        let Some(reader) = &self.0.reader else { return Ok(()) };
        self.take_in(reader.read(&self.relay_keys()).await?, since_boot());
        Ok(())
    }

    fn take_in(&self, answer: MapAnswer, now: Duration) {
        let MapAnswer { time, content, settling, keys, lease, has_leased } = answer;
        let mut state = lock(&self.0.state);
        if state.clock.is_some_and(|(_, last)| now.saturating_sub(last) > settle(lease)) {
            state.returned = now;
        }
        state.clock = Some((time, now));
        if !keys.is_empty() {
            state.keys = with_known(keys, &state.keys).into();
        }
        (state.lease, state.has_leased) = (Some(lease), has_leased);
        let mut seen = std::mem::take(&mut state.seen);
        // A node that does not reach Redis still uses its blocks, although another node has taken them: the
        // previous owner stays in the map until the new one may use the block.
        let is_settling = |ports: PortRange| settling.iter().any(|block| block.overlaps(ports));
        // Redis may have lost its data: what it had is kept for a lease, unless another node has the ports.
        // After an outage the lease begins with the first answer. The nodes enter their blocks again then.
        let returned = state.returned;
        seen.retain_mut(|(block, seen)| {
            let new = content.blocks.iter().find(|new| new.ports.overlaps(block.ports));
            let is_kept = match new {
                None => now < returned.max(*seen) + lease,
                Some(new) => is_settling(new.ports) && new.node != block.node,
            };
            if is_kept && new.is_some() {
                *seen = now;
            }
            is_kept
        });
        let new = content.blocks.into_iter().filter(|new| {
            !is_settling(new.ports) || !seen.iter().any(|(block, _)| block.ports.overlaps(new.ports))
        });
        let new: Vec<_> = new.map(|block| (block, now)).collect();
        seen.extend(new);
        seen.sort_by_key(|(block, _)| block.ports.from());
        let blocks = seen.iter().map(|(block, _)| block.clone()).collect();
        state.seen = seen;
        let content = MapContent { blocks, nodes: content.nodes };
        self.0.current.send_if_modified(|current| {
            let is_new = **current != content;
            if is_new {
                *current = Arc::new(content);
            }
            is_new
        });
    }

    /// The owner of a port, as far as the map tells. Sends no request.
    pub fn owner(&self, port: u16) -> Option<BlockOwner> {
        let map = self.0.current.borrow();
        map.blocks.iter().find(|block| block.ports.contains(port)).cloned()
    }

    /// The owner of a port. If the map has none, or [is stale](Self::is_stale), asks Redis, at most once a
    /// second for all ports. Does not ask while Redis is away.
    pub async fn find(&self, port: u16) -> Option<BlockOwner> {
        let known = || self.owner(port).filter(|_| !self.is_stale());
        if let Some(owner) = known() {
            return Some(owner);
        }
        if self.0.reader.as_ref().is_some_and(MapReader::is_connected) {
            // A request that runs already answers this one, too.
            let _asking = self.0.asking.lock().await;
            if let Some(owner) = known() {
                return Some(owner);
            }
            if !self.was_asked() {
                lock(&self.0.state).asked = Some(since_boot());
                // The link logs an error.
                let _ = self.refresh().await;
            }
        }
        self.owner(port)
    }

    /// Returns true if a block may have a new owner that uses it already: if the map is older than the time
    /// for which a taken block is not used. So it is in a process that was stopped for a while, or reaches
    /// Redis only now and then.
    pub fn is_stale(&self) -> bool {
        let state = lock(&self.0.state);
        let (Some((_, read)), Some(lease)) = (state.clock, state.lease) else { return true };
        state.has_leased && since_boot().saturating_sub(read) > settle(lease)
    }

    fn was_asked(&self) -> bool {
        let asked = lock(&self.0.state).asked;
        asked.is_some_and(|asked| since_boot().saturating_sub(asked) < ASK_INTERVAL)
    }

    /// Returns true if a live node has this address.
    pub fn is_node(&self, address: IpAddr) -> bool {
        self.0.current.borrow().nodes.iter().any(|node| node.control.ip() == address)
    }

    /// The current state of the map, and its changes.
    pub fn content(&self) -> watch::Receiver<Arc<MapContent>> {
        self.0.current.subscribe()
    }

    /// The key that authenticates the relayed connections of this process: the newest that every live node
    /// has read by now. `None` before the first answer of Redis.
    pub fn relay_key(&self) -> Option<SharedKey> {
        // A node that has not read the keys for a lease does not live any more.
        let settle = lock(&self.0.state).lease.unwrap_or_default();
        let latest = self.now().saturating_sub(millis(settle));
        let keys = self.relay_keys();
        keys.iter().find(|key| key.made() <= latest).or(keys.last()).cloned()
    }

    /// The keys that authenticate relayed connections, newest first. Empty before the first answer of Redis.
    pub fn relay_keys(&self) -> Arc<[SharedKey]> {
        Arc::clone(&lock(&self.0.state).keys)
    }

    /// The registry's clock, in ms since the Unix epoch: Redis's time at its last answer, and the time that
    /// has passed since. Before the first answer, this host's clock.
    pub fn now(&self) -> u64 {
        match lock(&self.0.state).clock {
            Some((time, at)) => time.saturating_add(millis(since_boot().saturating_sub(at))),
            None => millis(since_epoch()),
        }
    }

    /// The time since Redis last answered with a map; `None` before its first answer.
    pub fn age(&self) -> Option<Duration> {
        lock(&self.0.state).clock.map(|(_, at)| since_boot().saturating_sub(at))
    }

    /// The condition of Redis; `None` on a single node.
    pub fn dependency(&self) -> Option<Dependency> {
        self.0.reader.as_ref().map(MapReader::dependency)
    }

    /// Whether Redis accepts writes; `None` on a single node, and until Redis was asked.
    pub fn writes(&self) -> Option<Dependency> {
        self.0.reader.as_ref()?.writes()
    }

    /// Returns true if some node leased blocks at the last answer.
    pub(super) fn has_leased(&self) -> bool {
        lock(&self.0.state).has_leased
    }
}

/// The keys of Redis, and behind them those that were known before. If Redis has lost its keys, other nodes
/// and relays go on with the old ones until they have read the new ones.
fn with_known(mut keys: Vec<SharedKey>, known: &[SharedKey]) -> Vec<SharedKey> {
    let older: Vec<_> = known.iter().filter(|known| !keys.contains(known)).cloned().collect();
    keys.extend(older);
    keys.truncate(2 * KEPT_KEYS);
    keys
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(blocks: &[(&str, &str)]) -> MapAnswer {
        let block = |(ports, node): &(&str, &str)| BlockOwner {
            ports: ports.parse().unwrap(),
            node: node.parse().unwrap(),
            address: [127, 0, 0, 1].into(),
            generation: 1,
        };
        let content = MapContent { blocks: blocks.iter().map(block).collect(), nodes: Vec::new() };
        let lease = Duration::from_secs(30);
        let (settling, keys) = (Vec::new(), Vec::new());
        MapAnswer { time: 1_000_000, content, settling, keys, lease, has_leased: true }
    }

    fn owner(map: &PortMap, port: u16) -> Option<String> {
        map.owner(port).map(|owner| owner.node.to_string())
    }

    #[test]
    fn a_missing_entry_is_kept_for_a_lease_unless_another_node_has_the_ports() {
        let map = PortMap::empty();
        let at = Duration::from_secs;
        map.take_in(answer(&[("50-54", "a"), ("55-59", "b")]), at(100));
        for second in [110, 120, 129] {
            map.take_in(answer(&[("55-59", "c")]), at(second));
        }
        assert_eq!((owner(&map, 54).as_deref(), owner(&map, 55).as_deref()), (Some("a"), Some("c")));
        map.take_in(answer(&[("55-59", "c")]), at(130));
        assert_eq!((owner(&map, 54), owner(&map, 55).as_deref()), (None, Some("c")));
        assert_eq!(map.content().borrow().blocks.len(), 1);
    }

    #[test]
    fn a_redis_that_comes_back_empty_after_an_outage_leaves_the_nodes_a_lease_to_enter_their_blocks() {
        let map = PortMap::empty();
        let at = Duration::from_secs;
        map.take_in(answer(&[("50-54", "a")]), at(100));
        for second in [200, 210, 220, 229] {
            map.take_in(answer(&[]), at(second));
            assert_eq!(owner(&map, 54).as_deref(), Some("a"), "at {second} s");
        }
        map.take_in(answer(&[]), at(230));
        assert_eq!(owner(&map, 54), None);
    }

    #[test]
    fn a_key_is_used_when_every_node_has_read_it_and_known_keys_stay_valid() {
        let map = PortMap::empty();
        assert_eq!(map.relay_key(), None);
        let take_in = |keys: &[&SharedKey]| {
            let keys = keys.iter().map(|key| (*key).clone()).collect();
            map.take_in(MapAnswer { keys, ..answer(&[]) }, since_boot());
        };
        // The answer's time is 1,000 s, and its lease 30 s.
        let [first, second, other] = [500_000, 990_000, 995_000].map(SharedKey::random);
        take_in(&[&second]);
        assert_eq!(map.relay_key().as_ref(), Some(&second), "there is no other key");
        take_in(&[&second, &first]);
        assert_eq!(map.relay_key().as_ref(), Some(&first), "the newest is 10 s old");
        // Redis was emptied, and a new process has made a key.
        take_in(&[&other]);
        assert_eq!(*map.relay_keys(), [other, second, first.clone()]);
        assert_eq!(map.relay_key().as_ref(), Some(&first));
        (0..9).for_each(|made| take_in(&[&SharedKey::random(made)]));
        assert_eq!(map.relay_keys().len(), 2 * KEPT_KEYS);
    }

    #[test]
    fn the_previous_owner_stays_until_the_new_one_may_use_the_block() {
        let map = PortMap::empty();
        let at = Duration::from_secs;
        let settling = |settles: bool| {
            let settling = if settles { vec!["50-54".parse().unwrap()] } else { Vec::new() };
            MapAnswer { settling, ..answer(&[("50-54", "b"), ("55-59", "b")]) }
        };
        map.take_in(answer(&[("50-54", "a"), ("55-59", "b")]), at(100));
        for time in [110, 150, 190] {
            map.take_in(settling(true), at(time));
            assert_eq!((owner(&map, 50).as_deref(), owner(&map, 55).as_deref()), (Some("a"), Some("b")));
        }
        map.take_in(settling(false), at(200));
        assert_eq!(owner(&map, 50).as_deref(), Some("b"));
        assert_eq!(map.content().borrow().blocks.len(), 2);
        // A process that does not know the previous owner.
        let map = PortMap::empty();
        map.take_in(settling(true), at(100));
        assert_eq!(owner(&map, 50).as_deref(), Some("b"));
    }

    #[test]
    fn the_clock_continues_from_the_last_answer() {
        let map = PortMap::empty();
        assert!(map.now() > 1_700_000_000_000 && map.age().is_none());
        map.take_in(answer(&[]), since_boot());
        assert!((1_000_000..1_060_000).contains(&map.now()), "{}", map.now());
        assert!(map.age().unwrap() < Duration::from_secs(60));
    }

    #[tokio::test]
    async fn a_map_without_a_registry_has_no_owner() {
        assert_eq!(PortMap::empty().find(50).await, None);
    }
}
