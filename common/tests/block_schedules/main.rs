//! Random schedules of nodes that lease blocks: requests and answers that are delayed, lost or repeated,
//! nodes that join, leave, drain, crash, are cut off and come back, leases that expire, and a Redis that is
//! away or loses its data. The registry's scripts run in an embedded Lua 5.1, which is Redis's, with a
//! simulated clock, and the nodes run the real [`BlockHolder`](common::registry::BlockHolder).
//!
//! In each schedule, no two live nodes may reserve the same port for the same address at the same time, and
//! when the faults have ended, the shares are fair. With `registry_away = refuse` there is no exception. With
//! `admit` the schedules keep two rules: no node that reserves ports is cut off for longer than its lease and
//! the rest; and when Redis loses its data, one node with blocks reaches it before the blocks of a new node
//! have settled.
//!
//! `BLOCK_SEED=17` runs one seed and prints what happens; `BLOCK_SEEDS=100000` runs more seeds than usual.

mod random;
mod redis;
mod world;

use std::env;

use self::{
    redis::SimulatedRedis,
    world::{Counts, World},
};

/// Seeds of a test run.
const SEEDS: u64 = 10_000;

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn two_nodes_never_reserve_the_same_port_for_the_same_address() {
    let redis = SimulatedRedis::new();
    if let Some(seed) = number("BLOCK_SEED") {
        let mut world = World::new(seed, &redis, true);
        let result = world.run();
        assert_eq!(result, Ok(()), "seed {seed}");
        return;
    }
    let seeds = number("BLOCK_SEEDS").unwrap_or(SEEDS);
    let mut all = Counts::default();
    for seed in 0..seeds {
        let mut world = World::new(seed, &redis, false);
        let result = world.run();
        assert_eq!(result, Ok(()), "seed {seed}: BLOCK_SEED={seed} shows the schedule");
        all.taken += world.counts.taken;
        all.given += world.counts.given;
        all.lost += world.counts.lost;
    }
    // The schedules do something.
    assert!(all.taken > 5 * seeds && all.given > seeds && all.lost > seeds / 20, "{all:?}");
}

/// The check must be able to fail.
#[test]
fn the_schedules_find_a_rule_that_is_missing() {
    for (rule, replacement) in [
        // The blocks of a dead node do not rest.
        ("local time = now + times.rest", "local time = now"),
        // A taken block does not settle.
        ("math.max(block.time or 0, now + times.settle)", "math.max(block.time or 0, now)"),
        // With `refuse`, blocks that Redis has forgotten are taken like free ones.
        ("(node.is_strict or is_doubtful) and created", "is_doubtful and created"),
        // A node that was cut off loses its blocks to a node that does not use them yet.
        ("elseif block.last == self then", "elseif false then"),
    ] {
        let redis = SimulatedRedis::without(rule, replacement);
        let finds = |seed| World::new(seed, &redis, false).run().is_err();
        assert!((0..1000).any(finds), "{rule}");
    }
}
