//! Quotas and bandwidth of several nodes, against a real Redis.

#[allow(dead_code)] // Each file of tests uses a part of it.
mod support;

use std::{
    num::NonZeroU64,
    time::{Duration, Instant},
};

use common::{
    policy::Quota,
    registry::{
        BandwidthDirection, HomeUsage, RedisLink, Registry, Usage, UsageChange, UsageStatus, UsageStep,
    },
};
use redis::cmd;
use support::*;
use tokio::task::JoinSet;

const DAY: Duration = Duration::from_secs(24 * 3600);
const MIB: u64 = 1024 * 1024;
const LIMIT: Quota = Quota { bytes: Some(MIB), files: Some(5) };

fn bytes(bytes: u64) -> Usage {
    Usage { bytes, files: 0 }
}

fn added(added: Usage) -> UsageStep {
    UsageStep {
        change: UsageChange { added, ..UsageChange::default() },
        limit: LIMIT,
        ..UsageStep::default()
    }
}

fn wanted(wanted: Usage) -> UsageStep {
    UsageStep { wanted, limit: LIMIT, ..UsageStep::default() }
}

async fn standing(home: &HomeUsage) -> UsageStatus {
    home.settle(UsageStep::default()).await.unwrap()
}

/// The home, counted to hold `usage`.
async fn counted(registry: &Registry, usage: Usage) -> HomeUsage {
    let home = registry.home_usage(b"ann", DAY);
    assert!(standing(&home).await.count_is_due);
    home.begin_count().await.unwrap().finish(usage).await;
    assert_eq!(standing(&home).await.held, Some(usage));
    home
}

/// CVE-2021-40524: an upload that is checked once, and then grows.
#[tokio::test(flavor = "multi_thread")]
async fn fifty_uploads_at_once_on_two_nodes_reserve_exactly_the_quota() {
    let redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", redis.options()).await;
    let (b, _) = join("b", "50005-50009", redis.options()).await;
    let before = bytes(1000);
    let homes = [counted(&a, before).await, b.home_usage(b"ann", DAY)];
    let mut uploads = JoinSet::new();
    for i in 0..50 {
        let home = homes[i % 2].clone();
        uploads.spawn(async move {
            let mut all = home.settle(wanted(Usage { bytes: 1, files: 1 })).await.unwrap().granted;
            loop {
                let granted = home.settle(wanted(bytes(100_000))).await.unwrap().granted;
                if granted == Usage::default() {
                    return all;
                }
                all = all.plus(granted);
            }
        });
    }
    let all = uploads.join_all().await.into_iter().fold(Usage::default(), Usage::plus);
    assert_eq!(before.plus(all), Usage { bytes: MIB, files: 5 });

    // Used or given back, it is free for the others.
    let done = UsageStep { released: all, ..added(bytes(MIB / 2)) };
    homes[0].settle(UsageStep { released: Usage::default(), ..done }).await.unwrap();
    assert_eq!(homes[1].settle(wanted(bytes(1))).await.unwrap().granted, bytes(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_gives_back_another_can_have() {
    let redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", redis.options()).await;
    let (b, _) = join("b", "50005-50009", redis.options()).await;
    let (at_a, at_b) = (counted(&a, bytes(MIB - 10)).await, b.home_usage(b"ann", DAY));
    assert_eq!(at_a.settle(wanted(bytes(100))).await.unwrap().granted, bytes(10));
    assert_eq!(at_b.settle(wanted(bytes(100))).await.unwrap().granted, bytes(0));
    at_a.settle(UsageStep { released: bytes(10), ..added(bytes(4)) }).await.unwrap();
    assert_eq!(at_b.settle(wanted(bytes(100))).await.unwrap().granted, bytes(6));
    let removed = UsageChange { removed: bytes(MIB / 2), ..UsageChange::default() };
    at_b.settle(UsageStep { change: removed, ..UsageStep::default() }).await.unwrap();
    assert_eq!(standing(&at_a).await.held, Some(bytes(MIB / 2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_node_had_reserved_is_free_and_the_home_is_counted_again() {
    let redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", redis.options()).await;
    let (b, _) = join("b", "50005-50009", redis.options()).await;
    let (at_a, at_b) = (counted(&a, bytes(0)).await, b.home_usage(b"ann", DAY));
    while at_a.settle(wanted(bytes(MIB))).await.unwrap().granted.bytes > 0 {}
    assert_eq!(standing(&at_b).await.held, Some(bytes(MIB)));
    assert!(!standing(&at_b).await.count_is_due);
    drop((at_a, a));
    let left = eventually("the reservation is gone", async || {
        Some(standing(&at_b).await).filter(|standing| standing.held == Some(bytes(0)))
    });
    assert!(left.await.count_is_due);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_counts_at_a_time_and_another_goes_on_when_it_dies() {
    let redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", redis.options()).await;
    let (b, _) = join("b", "50005-50009", redis.options()).await;
    let (at_a, at_b) = (a.home_usage(b"ann", DAY), b.home_usage(b"ann", DAY));
    let first = at_a.begin_count().await.unwrap();
    assert!(at_a.begin_count().await.is_none() && at_b.begin_count().await.is_none());
    assert!(!standing(&at_b).await.count_is_due);
    let begun = Instant::now();
    while begun.elapsed() < LEASE * 2 {
        assert!(first.keep().await);
        tokio::time::sleep(LEASE / 4).await;
    }
    drop(first);
    let second = eventually("the dead node's turn is over", async || at_b.begin_count().await).await;
    // Told while it counts: it may have seen it or not.
    at_a.settle(added(Usage { bytes: 100, files: 1 })).await.unwrap();
    second.finish(Usage { bytes: 1000, files: 3 }).await;
    let held = Some(Usage { bytes: 1100, files: 4 });
    assert_eq!(standing(&at_a).await, UsageStatus { held, granted: Usage::default(), count_is_due: true });
    at_b.begin_count().await.unwrap().finish(Usage { bytes: 1000, files: 3 }).await;
    let held = Some(Usage { bytes: 1000, files: 3 });
    assert_eq!(standing(&at_a).await, UsageStatus { held, granted: Usage::default(), count_is_due: false });
    assert!(at_a.begin_count().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_while_redis_is_away_is_told_when_it_is_back_and_a_redis_without_data_asks_for_a_count()
{
    let mut redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", redis.options()).await;
    let home = counted(&a, bytes(1000)).await;
    redis.signal("STOP");
    let away = home.settle(added(bytes(500))).await.unwrap();
    assert_eq!(away.held, Some(bytes(1500)));
    assert_eq!(home.settle(wanted(bytes(100))).await.unwrap().granted, bytes(100));
    redis.signal("CONT");
    let (b, _) = join("b", "50005-50009", redis.options()).await;
    let at_b = b.home_usage(b"ann", DAY);
    eventually("the change has been told", async || {
        standing(&home).await;
        (standing(&at_b).await.held == Some(bytes(1600))).then_some(())
    })
    .await;

    redis.stop();
    redis.restart();
    let lost = eventually("Redis is back", async || {
        Some(standing(&home).await).filter(|standing| standing.held.is_none())
    });
    assert!(lost.await.count_is_due);
    home.begin_count().await.unwrap().finish(bytes(1500)).await;
    eventually("the other node knows", async || {
        standing(&home).await;
        (standing(&at_b).await.held == Some(bytes(1600))).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_policy_to_refuse_nothing_is_reserved_while_redis_is_away() {
    let mut redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", redis.refusing()).await;
    let home = counted(&a, bytes(0)).await;
    redis.stop();
    assert!(home.settle(wanted(bytes(1))).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_of_the_wrong_type_is_replaced() {
    let redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", redis.options()).await;
    let link = RedisLink::new(&redis.options().url, PATIENCE);
    let _: () = link.query(cmd("SET").arg("ftp:home-usage:ann").arg("x")).await.unwrap();
    counted(&a, bytes(7)).await;
    let _: () = link.query(cmd("SET").arg("ftp:bandwidth:upload:ann").arg("x")).await.unwrap();
    a.share_bandwidth("ann", BandwidthDirection::Upload, NonZeroU64::MIN).take(1).await;
    let kind: String = link.query(cmd("TYPE").arg("ftp:bandwidth:upload:ann")).await.unwrap();
    assert_eq!(kind, "hash");
}

/// Waits as a transfer does, for as long as `time`; answers the bytes that moved.
async fn transfer(registry: Registry, rate: NonZeroU64, time: Duration) -> u64 {
    let share = registry.share_bandwidth("ann", BandwidthDirection::Download, rate);
    let (begun, mut moved) = (Instant::now(), 0);
    loop {
        let slice = share.take(u64::MAX).await;
        tokio::time::sleep(slice.wait).await;
        if begun.elapsed() >= time {
            return moved;
        }
        moved += slice.bytes;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn transfers_of_a_user_on_two_nodes_share_one_rate() {
    let redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", redis.options()).await;
    let (b, _) = join("b", "50005-50009", redis.options()).await;
    let (rate, time) = (NonZeroU64::new(1_000_000).unwrap(), Duration::from_secs(3));
    let mut transfers = JoinSet::new();
    for registry in [&a, &b, &b] {
        transfers.spawn(transfer(registry.clone(), rate, time));
    }
    let moved = transfers.join_all().await;
    let all: u64 = moved.iter().sum();
    // What was saved up, and a piece of each on its way.
    assert!(all <= 3_000_000 + 250_000 + 3 * 125_000, "{moved:?}");
    assert!(moved.iter().all(|moved| *moved > 0), "{moved:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_a_node_keeps_to_the_part_of_the_rate_that_it_had() {
    let mut redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", redis.options()).await;
    let (b, _) = join("b", "50005-50009", redis.options()).await;
    let rate = NonZeroU64::new(1_000_000).unwrap();
    let shares = [&a, &b].map(|node| node.share_bandwidth("ann", BandwidthDirection::Download, rate));
    for _ in 0..2 {
        for share in &shares {
            share.take(1).await;
        }
    }
    redis.stop();
    let begun = Instant::now();
    let mut moved = 0;
    while moved < 1_000_000 {
        let slice = shares[0].take(u64::MAX).await;
        tokio::time::sleep(slice.wait).await;
        moved += slice.bytes;
    }
    // Half the rate, less what was saved up and the last piece.
    assert!(begun.elapsed() >= Duration::from_millis(1500), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_at_which_a_piece_takes_more_than_an_hour_is_kept_and_a_clock_that_went_back_is_not_waited_for()
 {
    let redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", redis.options()).await;
    let link = RedisLink::new(&redis.options().url, PATIENCE);
    let share = a.share_bandwidth("ann", BandwidthDirection::Upload, NonZeroU64::MIN);
    assert_eq!(share.take(u64::MAX).await.wait, Duration::ZERO);
    for pieces in 1..4 {
        let wait = share.take(u64::MAX).await.wait;
        assert!(wait > Duration::from_secs(pieces * 4000), "{wait:?}");
    }
    // What was written an hour from now.
    let key = "ftp:bandwidth:upload:ann";
    let seconds: (u64, u64) = link.query(&cmd("TIME")).await.unwrap();
    let later = (seconds.0 + 3600) * 1_000_000;
    let (free, at) = (later.to_string(), format!("1 {later}"));
    let _: () = link.query(cmd("HSET").arg(key).arg("free").arg(free).arg("node:b").arg(at)).await.unwrap();
    assert_eq!(share.take(u64::MAX).await.wait, Duration::ZERO);
}

#[tokio::test(flavor = "multi_thread")]
async fn sums_beyond_what_lua_counts_exactly_are_answered() {
    let redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", redis.options()).await;
    let home = counted(&a, bytes(0)).await;
    let files = Quota { bytes: None, files: Some(5) };
    for _ in 0..3 {
        // A file that is one hole, as large as files can be.
        let change = UsageChange { added: bytes(i64::MAX as u64), ..UsageChange::default() };
        home.settle(UsageStep { change, limit: files, ..UsageStep::default() }).await.unwrap();
    }
    assert!(standing(&home).await.held.unwrap().bytes >= 1 << 53);
    let granted =
        home.settle(UsageStep { wanted: bytes(u64::MAX), limit: files, ..UsageStep::default() }).await;
    assert!(granted.unwrap().granted.bytes > 0);
    let more = home.settle(wanted(Usage { bytes: 1, files: 1 })).await.unwrap().granted;
    assert_eq!(more, Usage { bytes: 0, files: 1 });
    let link = RedisLink::new(&redis.options().url, PATIENCE);
    let (told, counted): (String, u64) =
        link.query(cmd("HMGET").arg("ftp:home-usage:ann").arg("bytes").arg("counted")).await.unwrap();
    assert!(told.parse::<u64>().unwrap() <= 1 << 60 && counted > 0, "{told}");
}
