//! Reading the map of the passive ports and the relay keys from Redis, in one request.

use std::{
    net::{IpAddr, SocketAddr},
    sync::LazyLock,
    time::Duration,
};

use redis::{Cmd, Script, cmd};
use zeroize::Zeroizing;

use super::{
    LinkError, RegistryView, SharedKey,
    block_holder::settle,
    link::pipeline_with,
    port_map::{BlockOwner, MapContent, MapNode},
    shared_keys::{self, SHARED_KEYS},
    view::parse,
};
use crate::{
    health::Dependency,
    node::{NodeRecord, NodeState, PortRange},
};

static READ_MAP: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/read_map.lua")));

/// Number of values of one node in the answer of the script.
const NODE_VALUES: usize = 7;

/// Reads the map.
pub(super) struct MapReader {
    view: RegistryView,
    key_rotation: Duration,
    /// Used while no node tells its `node_lease`.
    lease: Duration,
}

/// An answer of Redis.
pub(super) struct MapAnswer {
    /// Redis's time, in ms since the Unix epoch.
    pub time: u64,
    pub content: MapContent,
    /// Blocks whose owner may not use them for longer than until the next answer.
    pub settling: Vec<PortRange>,
    /// The relay keys, newest first.
    pub keys: Vec<SharedKey>,
    /// The shortest `node_lease` of the live nodes.
    pub lease: Duration,
    /// True if some node leases blocks.
    pub has_leased: bool,
}

type ScriptAnswer = (String, Vec<Vec<u8>>, Vec<Vec<u8>>);

impl MapReader {
    pub(super) fn new(view: RegistryView, key_rotation: Duration, lease: Duration) -> Self {
        Self { view, key_rotation, lease }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.view.link().is_connected()
    }

    pub(super) fn dependency(&self) -> Dependency {
        self.view.link().dependency()
    }

    /// See [`RedisLink::writes`](super::RedisLink::writes).
    pub(super) fn writes(&self) -> Option<Dependency> {
        self.view.link().writes()
    }

    /// `known`: the relay keys that this process has, newest first.
    pub(super) async fn read(&self, known: &[SharedKey]) -> Result<MapAnswer, LinkError> {
        let keys = self.view.keys();
        let mut pipe = pipeline_with(&READ_MAP);
        let shared_keys = SHARED_KEYS.on(self.view.link());
        pipe.load_script(shared_keys).ignore();
        pipe.add_command(self.read_map());
        pipe.add_command(shared_keys::call(shared_keys, &keys.relay_keys(), self.key_rotation, known));
        let ((time, nodes, blocks), keys): (ScriptAnswer, Vec<String>) = self.view.link().pipe(&pipe).await?;
        self.view.link().probe_writes(&self.view.keys().write_probe()).await;
        let keys: Vec<Zeroizing<String>> = keys.into_iter().map(Zeroizing::new).collect();
        let nodes: Vec<LiveNode> = nodes.chunks_exact(NODE_VALUES).filter_map(LiveNode::parse).collect();
        let lease = nodes.iter().filter_map(|node| node.lease).min().unwrap_or(self.lease);
        let time = time.parse().unwrap_or(0);
        Ok(MapAnswer {
            time,
            settling: settling(&blocks, time, settle(lease)),
            has_leased: nodes.iter().any(|node| node.is_leased),
            content: content(&nodes, &blocks),
            keys: keys.iter().filter_map(|key| key.parse().ok()).collect(),
            lease,
        })
    }

    fn read_map(&self) -> Cmd {
        let keys = self.view.keys();
        let mut call = cmd("EVALSHA");
        call.arg(READ_MAP.get_hash()).arg(2).arg(keys.nodes()).arg(keys.blocks()).arg(keys.node_prefix());
        call
    }
}

/// A live node in the answer.
struct LiveNode {
    record: NodeRecord,
    incarnation: String,
    slice: Option<PortRange>,
    is_leased: bool,
    lease: Option<Duration>,
    /// `None`: another host cannot know the address of the node.
    address: Option<IpAddr>,
}

impl LiveNode {
    fn parse(values: &[Vec<u8>]) -> Option<Self> {
        let [name, incarnation, record, from, to, block_ports, lease] = values else { return None };
        let text = |value: &Vec<u8>| String::from_utf8(value.clone()).ok();
        let record: NodeRecord = parse(record, "node")?;
        if record.name.as_str().as_bytes() != name {
            return None;
        }
        let number = |value| text(value)?.parse::<u64>().ok();
        let port = |value| u16::try_from(number(value)?).ok();
        // A previous version tells no address of its own, but perhaps the one where it listens.
        let listening = || {
            let first: SocketAddr = record.control.split(' ').next()?.parse().ok()?;
            (!first.ip().is_unspecified()).then_some(first.ip())
        };
        Some(Self {
            address: record.address.or_else(listening),
            incarnation: text(incarnation)?,
            slice: PortRange::new(port(from)?, port(to)?).ok(),
            is_leased: number(block_ports)? > 0,
            lease: number(lease).map(Duration::from_millis),
            record,
        })
    }

    fn map_node(&self) -> Option<MapNode> {
        let NodeRecord { name, state, port, implicit_port, control, sessions, failing, .. } = &self.record;
        let address = self.address?;
        // A previous version tells its port only in the text.
        let listening = || control.split(' ').next()?.parse::<SocketAddr>().ok().map(|at| at.port());
        let port = if *port == 0 { listening()? } else { *port };
        Some(MapNode {
            name: name.clone(),
            control: SocketAddr::new(address, port),
            implicit: implicit_port.map(|port| SocketAddr::new(address, port)),
            is_ready: *state == NodeState::Ready && !failing.iter().any(|failing| failing.required),
            sessions: *sessions,
        })
    }
}

fn content(nodes: &[LiveNode], blocks: &[Vec<u8>]) -> MapContent {
    let mut owners = Vec::new();
    for node in nodes.iter().filter(|node| !node.is_leased) {
        let (Some(ports), Some(address)) = (node.slice, node.address) else { continue };
        owners.push(BlockOwner { ports, node: node.record.name.clone(), address, generation: 0 });
    }
    let slices = owners.len();
    for (field, value) in blocks.iter().zip(blocks.iter().skip(1)).step_by(2) {
        let (Ok(field), Ok(value)) = (str::from_utf8(field), str::from_utf8(value)) else { continue };
        let Ok(ports) = field.parse::<PortRange>() else { continue };
        let mut words = value.split(' ');
        let (Some(owner), Some(incarnation), Some(generation)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let is_owner = |node: &&LiveNode| {
            node.is_leased && node.record.name.as_str() == owner && node.incarnation == incarnation
        };
        let Some(node) = nodes.iter().find(is_owner) else { continue };
        // Slices have precedence. The leasing node learns of it at its next refresh.
        if owners.iter().take(slices).any(|slice: &BlockOwner| slice.ports.overlaps(ports)) {
            continue;
        }
        let (Some(address), Ok(generation)) = (node.address, generation.parse()) else { continue };
        owners.push(BlockOwner { ports, node: node.record.name.clone(), address, generation });
    }
    owners.sort_by_key(|owner| owner.ports.from());
    let mut nodes: Vec<MapNode> = nodes.iter().filter_map(LiveNode::map_node).collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    MapContent { blocks: owners, nodes }
}

/// The blocks whose owner may use them only after `margin` from now (`time`, Unix ms of Redis's clock).
fn settling(blocks: &[Vec<u8>], time: u64, margin: Duration) -> Vec<PortRange> {
    let margin = u64::try_from(margin.as_millis()).unwrap_or(u64::MAX);
    let is_settling = |value: &str| {
        let words: Vec<&str> = value.split(' ').collect();
        let [owner, incarnation, _, usable_at, last] = words[..] else { return false };
        let usable_at: u64 = usable_at.parse().unwrap_or(0);
        owner != "*" && last != format!("{owner}/{incarnation}") && usable_at > time.saturating_add(margin)
    };
    let pairs = blocks.iter().zip(blocks.iter().skip(1)).step_by(2);
    let ports = pairs.filter_map(|(field, value)| {
        let (field, value) = (str::from_utf8(field).ok()?, str::from_utf8(value).ok()?);
        if is_settling(value) { field.parse().ok() } else { None }
    });
    ports.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_settles_until_its_owner_may_use_it_within_the_margin() {
        let fields = [
            ("50-54", "a 7 3 5000 b/6"),
            ("55-59", "a 7 3 3000 b/6"),
            ("60-64", "a 7 3 5000 a/7"),
            ("65-69", "* * 3 5000 b/6"),
            ("table", "0 0"),
        ];
        let fields: Vec<Vec<u8>> = fields
            .iter()
            .flat_map(|(field, value)| [field.as_bytes().to_vec(), value.as_bytes().to_vec()])
            .collect();
        let settling = settling(&fields, 1000, Duration::from_secs(2));
        assert_eq!(settling, ["50-54".parse().unwrap()]);
    }

    fn live(name: &str, address: Option<[u8; 4]>, control: &str, from: u16, block_ports: &str) -> LiveNode {
        let mut record = NodeRecord::new(name.parse().unwrap(), 7, "50-54".parse().unwrap());
        record.address = address.map(IpAddr::from);
        record.control = control.to_owned();
        let record = serde_json::to_string(&record).unwrap();
        let (from, to) = (from.to_string(), (from + 4).to_string());
        let values =
            [name, "7", &record, &from, &to, block_ports, "600"].map(|text| text.as_bytes().to_vec());
        LiveNode::parse(&values).unwrap()
    }

    #[test]
    fn the_map_has_blocks_of_live_nodes_and_slices_with_known_addresses() {
        let nodes = [
            live("leased", Some([10, 0, 0, 1]), "[::]:21", 1, "5"),
            live("old", None, "10.0.0.2:2121 [::1]:2121", 70, "0"),
            live("unknown", None, "0.0.0.0:21", 80, "0"),
        ];
        let fields = [
            ("50-54", "leased 7 3 0 *"),
            ("55-59", "leased 6 3 0 *"),
            ("60-64", "* * 3 0 leased/7"),
            ("70-74", "leased 7 3 0 *"),
            ("table", "0 0"),
            ("@leased", "7 place"),
        ];
        let fields: Vec<Vec<u8>> = fields
            .iter()
            .flat_map(|(field, value)| [field.as_bytes().to_vec(), value.as_bytes().to_vec()])
            .collect();
        let map = content(&nodes, &fields);
        let blocks: Vec<_> = map
            .blocks
            .iter()
            .map(|block| format!("{} {} {}", block.ports, block.node, block.address))
            .collect();
        assert_eq!(blocks, ["50-54 leased 10.0.0.1", "70-74 old 10.0.0.2"]);
        let nodes: Vec<_> = map.nodes.iter().map(|node| node.control.to_string()).collect();
        assert_eq!(nodes, ["10.0.0.1:21", "10.0.0.2:2121"]);
    }
}
