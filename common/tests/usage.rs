//! Quotas and bandwidth on several nodes, with a real Redis.

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

async fn status(home: &HomeUsage) -> UsageStatus {
    home.settle(UsageStep::default()).await.unwrap()
}

/// A home, counted with the result `usage`.
async fn counted(registry: &Registry, usage: Usage) -> HomeUsage {
    let home = registry.home_usage(b"ann", DAY);
    assert!(status(&home).await.count_is_due);
    home.begin_count().await.unwrap().finish(usage).await;
    assert_eq!(status(&home).await.held, Some(usage));
    home
}

/// CVE-2021-40524: an upload was checked against the quota once, and then grew.
#[tokio::test(flavor = "multi_thread")]
async fn fifty_simultaneous_uploads_on_two_nodes_reserve_exactly_the_quota() {
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

    // A change without a release leaves no room for other uploads.
    homes[0].settle(added(bytes(MIB / 2))).await.unwrap();
    assert_eq!(homes[1].settle(wanted(bytes(1))).await.unwrap().granted, bytes(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_one_node_releases_are_free_for_another() {
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
    assert_eq!(status(&at_a).await.held, Some(bytes(MIB / 2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn reservations_of_a_dead_node_become_free_and_a_count_is_due() {
    let redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", redis.options()).await;
    let (b, _) = join("b", "50005-50009", redis.options()).await;
    let (at_a, at_b) = (counted(&a, bytes(0)).await, b.home_usage(b"ann", DAY));
    while at_a.settle(wanted(bytes(MIB))).await.unwrap().granted.bytes > 0 {}
    assert_eq!(status(&at_b).await.held, Some(bytes(MIB)));
    assert!(!status(&at_b).await.count_is_due);
    drop((at_a, a));
    let left = eventually("the reservation is gone", async || {
        Some(status(&at_b).await).filter(|status| status.held == Some(bytes(0)))
    });
    assert!(left.await.count_is_due);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_counts_at_a_time_and_another_takes_over_when_it_dies() {
    let redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", redis.options()).await;
    let (b, _) = join("b", "50005-50009", redis.options()).await;
    let (at_a, at_b) = (a.home_usage(b"ann", DAY), b.home_usage(b"ann", DAY));
    let first = at_a.begin_count().await.unwrap();
    assert!(at_a.begin_count().await.is_none() && at_b.begin_count().await.is_none());
    assert!(!status(&at_b).await.count_is_due);
    let started = Instant::now();
    while started.elapsed() < LEASE * 2 {
        assert!(first.keep().await);
        tokio::time::sleep(LEASE / 4).await;
    }
    drop(first);
    let second = eventually("the dead node's turn is over", async || at_b.begin_count().await).await;
    // A change during the count: the count may have seen it or not.
    at_a.settle(added(Usage { bytes: 100, files: 1 })).await.unwrap();
    second.finish(Usage { bytes: 1000, files: 3 }).await;
    let held = Some(Usage { bytes: 1100, files: 4 });
    assert_eq!(status(&at_a).await, UsageStatus { held, granted: Usage::default(), count_is_due: true });
    at_b.begin_count().await.unwrap().finish(Usage { bytes: 1000, files: 3 }).await;
    let held = Some(Usage { bytes: 1000, files: 3 });
    assert_eq!(status(&at_a).await, UsageStatus { held, granted: Usage::default(), count_is_due: false });
    assert!(at_a.begin_count().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_during_an_outage_are_sent_later_and_a_redis_without_data_requires_a_count() {
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
    eventually("the change has been sent", async || {
        status(&home).await;
        (status(&at_b).await.held == Some(bytes(1600))).then_some(())
    })
    .await;

    redis.stop();
    redis.restart();
    let lost = eventually("Redis is back", async || {
        Some(status(&home).await).filter(|status| status.held.is_none())
    });
    assert!(lost.await.count_is_due);
    home.begin_count().await.unwrap().finish(bytes(1500)).await;
    eventually("the other node has the usage", async || {
        status(&home).await;
        (status(&at_b).await.held == Some(bytes(1600))).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_policy_to_refuse_nothing_is_reserved_during_an_outage() {
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
    let link = RedisLink::new(&redis.options().servers, PATIENCE);
    let _: () = link.query(cmd("SET").arg("ftp:home-usage:ann").arg("x")).await.unwrap();
    counted(&a, bytes(7)).await;
    let _: () = link.query(cmd("SET").arg("ftp:bandwidth:upload:ann").arg("x")).await.unwrap();
    a.share_bandwidth("ann", BandwidthDirection::Upload, NonZeroU64::MIN).take(1).await;
    let kind: String = link.query(cmd("TYPE").arg("ftp:bandwidth:upload:ann")).await.unwrap();
    assert_eq!(kind, "hash");
}

/// Waits like a transfer for the duration `time`. Returns the number of bytes that would have moved.
async fn transfer(registry: Registry, rate: NonZeroU64, time: Duration) -> u64 {
    let share = registry.share_bandwidth("ann", BandwidthDirection::Download, rate);
    let (started, mut moved) = (Instant::now(), 0);
    loop {
        let grant = share.take(u64::MAX).await;
        tokio::time::sleep(grant.wait).await;
        if started.elapsed() >= time {
            return moved;
        }
        moved += grant.bytes;
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
    // In addition to the rate: the burst, and one piece of each transfer.
    assert!(all <= 3_000_000 + 250_000 + 3 * 125_000, "{moved:?}");
    assert!(moved.iter().all(|moved| *moved > 0), "{moved:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn during_an_outage_a_node_keeps_its_part_of_the_rate() {
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
    let started = Instant::now();
    let mut moved = 0;
    while moved < 1_000_000 {
        let grant = shares[0].take(u64::MAX).await;
        tokio::time::sleep(grant.wait).await;
        moved += grant.bytes;
    }
    // Half the rate, minus the burst and the last piece.
    assert!(started.elapsed() >= Duration::from_millis(1500), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_of_one_byte_per_second_is_kept_and_a_clock_that_was_set_back_causes_no_wait() {
    let redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", redis.options()).await;
    let link = RedisLink::new(&redis.options().servers, PATIENCE);
    let share = a.share_bandwidth("ann", BandwidthDirection::Upload, NonZeroU64::MIN);
    assert_eq!(share.take(u64::MAX).await.wait, Duration::ZERO);
    for pieces in 1..4 {
        let wait = share.take(u64::MAX).await.wait;
        assert!(wait > Duration::from_secs(pieces * 4000), "{wait:?}");
    }
    // Times one hour in the future, as after the clock was set back.
    let key = "ftp:bandwidth:upload:ann";
    let seconds: (u64, u64) = link.query(&cmd("TIME")).await.unwrap();
    let later = (seconds.0 + 3600) * 1_000_000;
    let (free, at) = (later.to_string(), format!("1 {later}"));
    let _: () = link.query(cmd("HSET").arg(key).arg("free").arg(free).arg("node:b").arg(at)).await.unwrap();
    assert_eq!(share.take(u64::MAX).await.wait, Duration::ZERO);
}

#[tokio::test(flavor = "multi_thread")]
async fn sums_that_lua_cannot_count_exactly_get_an_answer() {
    let redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", redis.options()).await;
    let home = counted(&a, bytes(0)).await;
    let files = Quota { bytes: None, files: Some(5) };
    for _ in 0..3 {
        // A sparse file of the maximum size.
        let change = UsageChange { added: bytes(i64::MAX as u64), ..UsageChange::default() };
        home.settle(UsageStep { change, limit: files, ..UsageStep::default() }).await.unwrap();
    }
    assert!(status(&home).await.held.unwrap().bytes >= 1 << 53);
    let granted =
        home.settle(UsageStep { wanted: bytes(u64::MAX), limit: files, ..UsageStep::default() }).await;
    assert!(granted.unwrap().granted.bytes > 0);
    let more = home.settle(wanted(Usage { bytes: 1, files: 1 })).await.unwrap().granted;
    assert_eq!(more, Usage { bytes: 0, files: 1 });
    let link = RedisLink::new(&redis.options().servers, PATIENCE);
    let (stored, counted): (String, u64) =
        link.query(cmd("HMGET").arg("ftp:home-usage:ann").arg("bytes").arg("counted")).await.unwrap();
    assert!(stored.parse::<u64>().unwrap() <= 1 << 60 && counted > 0, "{stored}");
}
