//! Leased blocks of passive ports and the map of their owners, with a real Redis.

#[allow(dead_code)] // Each file of tests uses a part of it.
mod support;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use common::{
    node::{NodeRecord, PortRange},
    passive::{BlockState, OwnBlock, PassiveAssignment, PassiveLayout},
    registry::{ClusterEvent, JoinError, PortMap, RedisOptions, Registry, RegistryView},
};
use redis::cmd;
use support::*;
use tokio::sync::mpsc;

/// The range of the tests: 20 blocks of 5 ports.
const RANGE: &str = "50000-50099";

/// The rest of a dead node's blocks is a second longer.
const RESERVATION: Duration = Duration::from_millis(500);

fn options(redis: &RedisServer) -> RedisOptions {
    RedisOptions { data_connect_timeout: RESERVATION, ..redis.options() }
}

fn layout(range: &str, block_ports: u16) -> PassiveAssignment {
    PassiveAssignment::Leased(PassiveLayout::new(range.parse().unwrap(), block_ports))
}

/// The record of a node with an address of its own.
fn addressed(name: &str) -> NodeRecord {
    let last = name.as_bytes()[0];
    NodeRecord { address: Some([127, 0, 0, last].into()), port: 2121, ..node(name, RANGE) }
}

async fn try_lease(
    name: &str,
    assignment: PassiveAssignment,
    options: RedisOptions,
) -> Result<(Registry, mpsc::Receiver<ClusterEvent>), JoinError> {
    Registry::join(addressed(name), assignment, place(name), options).await
}

/// A node that hands its blocks over as soon as it gives them up, because it has no reservations.
async fn lease(name: &str, redis: &RedisServer) -> Registry {
    let registry = lease_busy(name, redis).await;
    let (idle, mut blocks) = (registry.clone(), registry.blocks());
    tokio::spawn(async move {
        while blocks.changed().await.is_ok() {
            let given_up: Vec<OwnBlock> = blocks.borrow_and_update().to_vec();
            for block in given_up.iter().filter(|block| block.state == BlockState::GivenUp) {
                idle.release_block(block.ports);
            }
        }
    });
    registry
}

/// A node that hands blocks over at the latest time only.
async fn lease_busy(name: &str, redis: &RedisServer) -> Registry {
    try_lease(name, layout(RANGE, 5), options(redis)).await.unwrap().0
}

fn owned(registry: &Registry) -> Vec<OwnBlock> {
    registry.blocks().borrow().to_vec()
}

fn ports(registry: &Registry) -> BTreeSet<u16> {
    owned(registry).iter().flat_map(|block| block.ports.iter()).collect()
}

/// Waits until the nodes own these numbers of blocks, all of them leased.
async fn share(nodes: &[&Registry], blocks: &[usize]) {
    eventually(&format!("the shares are {blocks:?}"), async || {
        let is_fair = nodes.iter().zip(blocks).all(|(node, blocks)| {
            let owned = owned(node);
            owned.len() == *blocks && owned.iter().all(|block| block.state == BlockState::Leased)
        });
        is_fair.then_some(())
    })
    .await;
    let all: Vec<u16> = nodes.iter().flat_map(|node| ports(node)).collect();
    assert_eq!(all.len(), all.iter().collect::<BTreeSet<_>>().len(), "a port has two owners: {all:?}");
}

/// The node crashes: it stops refreshing.
fn crash(registry: Registry, events: Option<mpsc::Receiver<ClusterEvent>>) {
    drop((registry, events));
}

#[tokio::test]
async fn nodes_share_the_blocks_and_a_leaving_node_hands_its_blocks_over_at_once() {
    let redis = RedisServer::start();
    let a = lease("a", &redis).await;
    share(&[&a], &[20]).await;
    let b = lease("b", &redis).await;
    share(&[&a, &b], &[10, 10]).await;
    let c = lease("c", &redis).await;
    share(&[&a, &b, &c], &[7, 7, 6]).await;
    let kept = ports(&a);
    b.leave().await;
    // Two refreshes and the time to settle, on a busy machine.
    share(&[&a, &c], &[10, 10]).await;
    assert!(ports(&a).is_superset(&kept));
}

#[tokio::test]
async fn a_block_with_reservations_is_handed_over_at_the_latest_after_the_data_connect_timeout() {
    let redis = RedisServer::start();
    let a = lease_busy("a", &redis).await;
    share(&[&a], &[20]).await;
    let started = Instant::now();
    let b = lease_busy("b", &redis).await;
    let given_up = eventually("a gives blocks up", async || {
        let given_up = owned(&a).into_iter().filter(|block| block.state == BlockState::GivenUp).count();
        (given_up > 0).then_some(given_up)
    })
    .await;
    assert_eq!(given_up, 10);
    assert!(owned(&b).is_empty(), "b uses blocks on which a may have reservations");
    share(&[&a, &b], &[10, 10]).await;
    assert!(started.elapsed() >= RESERVATION);
}

#[tokio::test]
async fn a_crashed_nodes_blocks_rest_and_the_node_gets_them_back() {
    let redis = RedisServer::start();
    let a = lease("a", &redis).await;
    let (b, b_events) = try_lease("b", layout(RANGE, 5), options(&redis)).await.unwrap();
    share(&[&a, &b], &[10, 10]).await;
    // Its blocks fall to a after the lease, the rest and the time to settle.
    crash(b, Some(b_events));
    let crashed = Instant::now();
    share(&[&a], &[20]).await;
    assert!(crashed.elapsed() >= RESERVATION + Duration::from_secs(1), "{:?}", crashed.elapsed());
    let b = lease("b", &redis).await;
    share(&[&a, &b], &[10, 10]).await;

    // A node that is back before its blocks have rested has them at once.
    let before_second = ports(&b);
    crash(b, None);
    let b = try_lease("b", layout(RANGE, 5), options(&redis)).await.unwrap().0;
    assert_eq!(ports(&b), before_second);
    share(&[&a, &b], &[10, 10]).await;
}

#[tokio::test]
async fn nodes_keep_their_blocks_while_redis_is_away_and_when_it_has_lost_its_data() {
    let mut redis = RedisServer::start();
    let (a, b) = (lease("a", &redis).await, lease("b", &redis).await);
    share(&[&a, &b], &[10, 10]).await;
    let before = (ports(&a), ports(&b));
    let map = a.port_map();
    eventually("the map is complete", async || (map.content().borrow().blocks.len() == 20).then_some(()))
        .await;
    redis.stop();
    eventually("the loss is seen", async || (!a.is_connected()).then_some(())).await;
    tokio::time::sleep(LEASE * 2).await;
    assert_eq!((ports(&a), ports(&b)), before);
    assert!(a.may_reserve() && map.content().borrow().blocks.len() == 20);
    redis.restart();
    eventually("Redis is back", async || (a.is_connected() && b.is_connected()).then_some(())).await;
    for _ in 0..20 {
        assert_eq!((ports(&a), ports(&b)), before);
        assert_eq!(map.content().borrow().blocks.len(), 20);
        tokio::time::sleep(LEASE / 6).await;
    }
    // A node that joins takes no block that another node has.
    let c = lease("c", &redis).await;
    share(&[&a, &b, &c], &[7, 7, 6]).await;
}

#[tokio::test]
async fn a_node_that_refuses_without_redis_reserves_no_port_after_its_lease() {
    let redis = RedisServer::start();
    let options = RedisOptions { data_connect_timeout: RESERVATION, ..redis.refusing() };
    let (a, _events) = try_lease("a", layout(RANGE, 5), options).await.unwrap();
    share(&[&a], &[20]).await;
    assert!(a.may_reserve());
    redis.signal("STOP");
    eventually("the lease ends", async || (!a.may_reserve()).then_some(())).await;
    assert_eq!(owned(&a).len(), 20);
    redis.signal("CONT");
    eventually("Redis is back", async || a.may_reserve().then_some(())).await;
    share(&[&a], &[20]).await;
}

#[tokio::test]
async fn static_slices_have_precedence_over_leased_blocks() {
    let redis = RedisServer::start();
    let a = lease("a", &redis).await;
    share(&[&a], &[20]).await;
    let (slice, mut events) = join("s", "50003-50012", options(&redis)).await;
    // Blocks 50000-50004, 50005-50009 and 50010-50014.
    share(&[&a], &[17]).await;
    assert_eq!(ports(&a).first(), Some(&50015));
    assert_eq!(ports(&slice), (50003..=50012).collect());
    assert!(events.try_recv().is_err() && slice.may_reserve());
    let map = slice.port_map();
    eventually("the map has the slice and the blocks", async || {
        let owner = |port| map.owner(port).map(|owner| owner.node.to_string());
        (owner(50012).as_deref() == Some("s") && owner(50015).as_deref() == Some("a")).then_some(())
    })
    .await;
    slice.leave().await;
    share(&[&a], &[20]).await;
}

#[tokio::test]
async fn a_node_of_the_previous_version_keeps_its_slice_beside_leasing_nodes() {
    let redis = RedisServer::start();
    let (a, b) = (lease("a", &redis).await, lease("b", &redis).await);
    share(&[&a, &b], &[10, 10]).await;
    let view = RegistryView::new(&redis.options());
    let old = OldNode::new("old", "50050-50099");
    for _ in 0..3 {
        assert_eq!(old.publish(&view, "keep").await[0], "joined");
        tokio::time::sleep(LEASE / 3).await;
    }
    let renewing = tokio::spawn({
        let (old, view) = (old.clone(), view.clone());
        async move {
            loop {
                assert_eq!(old.publish(&view, "keep").await[0], "joined");
                tokio::time::sleep(LEASE / 3).await;
            }
        }
    });
    share(&[&a, &b], &[5, 5]).await;
    assert!(ports(&a).iter().chain(&ports(&b)).all(|port| *port < 50050));
    let names: Vec<_> = view.nodes().await.unwrap().into_iter().map(|node| node.name.to_string()).collect();
    assert_eq!(names, ["a", "b", "old"]);
    let map = a.port_map();
    let owner = eventually("the map has the old node", async || map.owner(50099)).await;
    assert_eq!((owner.node.as_str(), owner.address), ("old", IpAddr::from([127, 0, 0, 1])));
    // It is upgraded: its process ends, and the new one leases blocks.
    renewing.abort();
    let upgraded = lease("old", &redis).await;
    share(&[&a, &b, &upgraded], &[7, 7, 6]).await;
    assert!(!renewing.await.is_err_and(|error| error.is_panic()));
}

#[tokio::test]
async fn nodes_with_another_range_or_block_size_are_refused_and_the_settings_are_named() {
    let redis = RedisServer::start();
    let _a = lease("a", &redis).await;
    for other in [layout(RANGE, 10), layout("50000-50049", 5)] {
        let error = try_lease("b", other, options(&redis)).await.err().unwrap();
        assert!(matches!(error, JoinError::LayoutDiffers { .. }), "{error}");
        let text = error.to_string();
        let settings = ["passive_port_min", "passive_port_max", "passive_block_ports", "passive_slice"];
        for part in ["node a", "node b", RANGE].iter().chain(&settings) {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
    }
}

#[tokio::test]
async fn a_draining_node_keeps_its_blocks_and_takes_none() {
    let redis = RedisServer::start();
    let (a, b) = (lease("a", &redis).await, lease("b", &redis).await);
    share(&[&a, &b], &[10, 10]).await;
    a.set_draining(u64::MAX);
    let c = lease("c", &redis).await;
    share(&[&a, &b, &c], &[10, 5, 5]).await;
    b.leave().await;
    share(&[&a, &c], &[10, 10]).await;
    let node = eventually("the map shows the drain", async || {
        let nodes = c.port_map().content().borrow().nodes.clone();
        nodes.into_iter().find(|node| node.name.as_str() == "a" && !node.is_ready)
    })
    .await;
    assert_eq!(node.control.to_string(), "127.0.0.97:2121");
    assert!(c.port_map().is_node([127, 0, 0, 97].into()) && !c.port_map().is_node([127, 0, 0, 1].into()));
    a.leave().await;
    share(&[&c], &[20]).await;
}

#[tokio::test]
async fn a_node_beyond_the_number_of_blocks_serves_without_and_gets_one_when_another_leaves() {
    let redis = RedisServer::start();
    let small = layout("50000-50009", 5);
    let (a, _a) = try_lease("a", small, options(&redis)).await.unwrap();
    let (b, _b) = try_lease("b", small, options(&redis)).await.unwrap();
    share(&[&a, &b], &[1, 1]).await;
    let (c, _c) = try_lease("c", small, options(&redis)).await.unwrap();
    tokio::time::sleep(LEASE * 2).await;
    assert_eq!([owned(&a).len(), owned(&b).len(), owned(&c).len()], [1, 1, 0]);
    a.leave().await;
    share(&[&b, &c], &[1, 1]).await;
}

#[tokio::test]
async fn a_node_that_starts_without_redis_has_no_blocks_until_it_has_joined() {
    let mut redis = RedisServer::start();
    redis.stop();
    let a = lease("a", &redis).await;
    tokio::time::sleep(LEASE).await;
    assert!(owned(&a).is_empty());
    redis.restart();
    share(&[&a], &[20]).await;
}

#[tokio::test]
async fn a_relay_reads_the_map_and_the_keys_that_the_nodes_have() {
    let redis = RedisServer::start();
    let (map, task) = PortMap::read(&options(&redis), Duration::from_secs(5), Duration::from_secs(3600));
    let task = tokio::spawn(task);
    let a = lease("a", &redis).await;
    share(&[&a], &[20]).await;
    let owner = eventually("the map has a", async || map.owner(50099)).await;
    let range: PortRange = "50095-50099".parse().unwrap();
    assert_eq!((owner.ports, owner.address), (range, IpAddr::from([127, 0, 0, 97])));
    let keys = eventually("the keys are equal", async || {
        let keys = map.relay_keys();
        (!keys.is_empty() && keys == a.port_map().relay_keys()).then_some(keys)
    })
    .await;
    assert_eq!(keys.len(), 1);
    let skew = map.now().abs_diff(a.port_map().now());
    assert!(skew < 1000, "{skew} ms");

    // A miss is asked once a second.
    let calls = async || -> u64 {
        let info: String =
            RegistryView::new(&redis.options()).link().query(cmd("INFO").arg("commandstats")).await.unwrap();
        let line = info.lines().find(|line| line.starts_with("cmdstat_smembers")).unwrap();
        line.split(['=', ',']).nth(1).unwrap().parse().unwrap()
    };
    task.abort();
    a.leave().await;
    drop(a);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let before = calls().await;
    for _ in 0..50 {
        assert_eq!(map.find(49999).await, None);
    }
    assert_eq!(calls().await - before, 1);
}

#[tokio::test]
async fn a_map_that_was_not_read_for_a_while_is_read_before_it_names_an_owner() {
    let redis = RedisServer::start();
    let (map, task) = PortMap::read(&options(&redis), Duration::from_secs(5), Duration::from_secs(3600));
    let task = tokio::spawn(task);
    let a = lease("a", &redis).await;
    share(&[&a], &[20]).await;
    eventually("the map has a", async || map.owner(50099)).await;
    assert!(!map.is_stale());
    // As in a process that is stopped.
    task.abort();
    let b = lease("b", &redis).await;
    share(&[&a, &b], &[10, 10]).await;
    let moved = owned(&b)[0].ports.from();
    eventually("the map is stale", async || map.is_stale().then_some(())).await;
    assert_eq!(map.owner(moved).unwrap().node.as_str(), "a");
    assert_eq!(map.find(moved).await.unwrap().node.as_str(), "b");
    assert!(!map.is_stale());
}

/// A node of the version that had no leased blocks.
#[derive(Clone)]
struct OldNode {
    record: NodeRecord,
    script: String,
}

impl OldNode {
    fn new(name: &str, slice: &str) -> Self {
        let script = include_str!("support/publish_node_before_blocks.lua").to_owned();
        Self { record: node(name, slice), script }
    }

    async fn publish(&self, view: &RegistryView, step: &str) -> Vec<String> {
        let (keys, name) = (view.keys(), &self.record.name);
        let mut record = serde_json::to_value(&self.record).unwrap();
        for field in ["blocks", "address", "port", "implicit_port"] {
            record.as_object_mut().unwrap().remove(field);
        }
        let script = redis::Script::new(&self.script);
        let mut call = script.prepare_invoke();
        call.key(keys.nodes())
            .key(keys.node(name))
            .key(keys.node_commands(name))
            .key(keys.node_sessions(name));
        call.key(keys.revision()).key(keys.node_orders(name));
        call.arg(name.as_str()).arg(self.record.incarnation).arg(place(name.as_str()).unwrap()).arg(step);
        call.arg(self.record.slice.from()).arg(self.record.slice.to()).arg(record.to_string());
        call.arg(u64::try_from(LEASE.as_millis()).unwrap()).arg(60_000);
        view.link().script(&call).await.unwrap()
    }
}
