//! The lifetime of a node's sessions in Redis, and the number of requests that they cost.

#[allow(dead_code)] // Each file of tests uses a part of it.
mod support;

use std::time::{Duration, Instant};

use common::registry::{RedisLink, RedisOptions, RegistryView};
use redis::cmd;
use support::*;
use tokio::task::JoinSet;

/// Number of calls of this command since the statistics were reset.
async fn calls(link: &RedisLink, command: &str) -> u64 {
    let statistics: String = link.query(cmd("INFO").arg("commandstats")).await.unwrap();
    let start = format!("cmdstat_{command}:calls=");
    let calls = statistics.lines().find_map(|line| line.strip_prefix(&start)?.split_once(','));
    calls.map_or(0, |(calls, _)| calls.parse().unwrap())
}

/// Number of refreshes of all nodes since the statistics were reset.
async fn refreshes(link: &RedisLink) -> u64 {
    calls(link, "hlen").await
}

/// Waits for `number` refreshes. The requests of all but the last one are complete then.
async fn some_refreshes(link: &RedisLink, number: u64) {
    eventually("refreshes", async || (refreshes(link).await >= number).then_some(())).await;
}

async fn reset_statistics(link: &RedisLink) {
    let () = link.query(cmd("CONFIG").arg("RESETSTAT")).await.unwrap();
}

#[tokio::test]
async fn refreshes_renew_the_node_and_only_some_of_its_idle_sessions() {
    const SESSIONS: u64 = 200;
    let redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", redis.options()).await;
    let view = RegistryView::new(&redis.options());
    let link = view.link();
    some_refreshes(link, 2).await;
    let mut entries = Vec::new();
    for _ in 0..SESSIONS {
        entries.push(open(&a, "a", "ann").await);
    }
    reset_statistics(link).await;
    some_refreshes(link, 10).await;
    let (refreshes, renewed) = (refreshes(link).await, calls(link, "zadd").await / 3);
    // Each session is renewed once in 120 refreshes: with 200 sessions, one or two in each refresh.
    assert!(renewed <= 2 * (refreshes + 1), "{renewed} sessions in {refreshes} refreshes");
    let asked = calls(link, "hkeys").await;
    assert!(asked <= 1, "asked for all sessions {asked} times");
    assert_eq!(view.sessions().await.unwrap().len() as u64, SESSIONS);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_logins_do_not_cause_the_renewal_of_all_sessions() {
    let redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", redis.options()).await;
    let view = RegistryView::new(&redis.options());
    some_refreshes(view.link(), 2).await;
    reset_statistics(view.link()).await;
    let mut logins = JoinSet::new();
    for i in 0..8 {
        let registry = a.clone();
        logins.spawn(async move {
            loop {
                // Some logins are refused; all other sessions end at once.
                let record = session("a", "ann", [192, 0, 2, i]);
                drop(registry.open_session(record, user_limit(5)).await);
                // The node refuses without waiting for Redis, so the task must yield by itself.
                tokio::task::yield_now().await;
            }
        });
    }
    some_refreshes(view.link(), 20).await;
    let asked = calls(view.link(), "hkeys").await;
    assert!(asked <= 1, "asked for all sessions {asked} times");
    assert!(calls(view.link(), "zrem").await > 1000, "there were logins");
}

#[tokio::test]
async fn sessions_count_again_after_their_node_was_cut_off_for_longer_than_a_lease() {
    let redis = RedisServer::start();
    let (b, _) = join("b", "50005-50009", redis.options()).await;
    let view = RegistryView::new(&redis.options());
    let user = async |word: &str| {
        let () = view.link().query(cmd("ACL").arg("SETUSER").arg("a").arg(word)).await.unwrap();
    };
    for word in ["on", ">sesame", "~*", "+@all"] {
        user(word).await;
    }
    let address = redis.options().servers.to_string();
    let url = address.replace("redis://", "redis://a:sesame@").parse().unwrap();
    let (a, _) = join("a", "50000-50004", RedisOptions { servers: url, ..redis.options() }).await;
    let mut entries = Vec::new();
    for _ in 0..3 {
        entries.push(open(&a, "a", "ann").await);
    }
    assert!(is_full(&b, "b", "ann", 3).await);

    user("off").await;
    let _: u64 = view.link().query(cmd("CLIENT").arg("KILL").arg("USER").arg("a")).await.unwrap();
    eventually("room for ann", async || (!is_full(&b, "b", "ann", 1).await).then_some(())).await;
    // The session with which `is_full` tried on `b` may be there for a moment.
    let of_a = view.sessions().await.unwrap().into_iter().filter(|session| session.node.as_str() == "a");
    assert_eq!(of_a.count(), 0);
    // Meanwhile one session ends and one begins.
    entries.pop();
    entries.push(open(&a, "a", "ben").await);
    assert!(!a.is_connected());

    user("on").await;
    eventually("ann counts", async || is_full(&b, "b", "ann", 2).await.then_some(())).await;
    eventually("ben counts", async || is_full(&b, "b", "ben", 1).await.then_some(())).await;
    eventually("one has ended", async || (!is_full(&b, "b", "ann", 3).await).then_some(())).await;
    eventually("three sessions", async || (view.sessions().await.unwrap().len() == 3).then_some(())).await;
}

#[tokio::test]
async fn refused_writes_are_made_up_for_later() {
    let redis = RedisServer::start();
    // A long lease, so that the round renews no session during the test.
    let options = RedisOptions { lease: LEASE * 4, ..redis.options() };
    let (a, _) = join("a", "50000-50004", options).await;
    let view = RegistryView::new(&redis.options());
    let replicas = async |wanted: u32| {
        let set = cmd("CONFIG").arg("SET").arg("min-replicas-to-write").arg(wanted).to_owned();
        let () = view.link().query(&set).await.unwrap();
    };
    let entry = open(&a, "a", "ann").await;
    replicas(1).await;
    // One session ends and one begins, so the number of sessions does not change.
    let ben = session("a", "ben", [192, 0, 2, 1]);
    let _ben = a.open_session(ben.clone(), NO_LIMITS).await.unwrap();
    drop(entry);
    assert_eq!(a.sessions().await, std::slice::from_ref(&ben));
    eventually("ann's end is refused", async || {
        let statistics: String = view.link().query(cmd("INFO").arg("commandstats")).await.unwrap();
        let zrem = statistics.lines().find(|line| line.starts_with("cmdstat_zrem:"))?;
        (!zrem.contains("rejected_calls=0")).then_some(())
    })
    .await;
    replicas(0).await;
    eventually("ben instead of ann", async || {
        (view.sessions().await.unwrap() == std::slice::from_ref(&ben)).then_some(())
    })
    .await;
    assert!(is_full(&a, "a", "ben", 1).await && !is_full(&a, "a", "ann", 1).await);
}

#[tokio::test]
async fn after_a_failover_to_a_lagging_replica_sessions_are_corrected() {
    let redis = RedisServer::start();
    // A long lease, so that the round renews no session during the test.
    let options = RedisOptions { lease: LEASE * 4, ..redis.options() };
    let (a, _) = join("a", "50000-50004", options).await;
    let view = RegistryView::new(&redis.options());
    let (link, keys) = (view.link(), view.keys());
    let record = session("a", "ann", [192, 0, 2, 1]);
    let _ann = a.open_session(record.clone(), NO_LIMITS).await.unwrap();
    some_refreshes(link, 2).await;
    // As on a replica that missed the end of one session and the start of another.
    let ended = session("a", "ben", [192, 0, 2, 1]);
    let key = keys.node_sessions(&"a".parse().unwrap());
    let field = (ended.id.to_string(), serde_json::to_string(&ended).unwrap());
    let () = link.query(cmd("HSET").arg(&key).arg(field)).await.unwrap();
    let () = link.query(cmd("HDEL").arg(&key).arg(record.id.to_string())).await.unwrap();
    let () = link.query(cmd("DEL").arg(keys.user_sessions("ann"))).await.unwrap();
    let _: u64 = link.query(cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal")).await.unwrap();
    eventually("ann instead of ben", async || {
        (view.sessions().await.unwrap() == std::slice::from_ref(&record)).then_some(())
    })
    .await;
    assert!(is_full(&a, "a", "ann", 1).await);
}

#[tokio::test]
async fn single_lost_keys_are_entered_again() {
    let redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", redis.options()).await;
    let _ann = open(&a, "a", "ann").await;
    let view = RegistryView::new(&redis.options());
    let (link, keys) = (view.link(), view.keys());
    // The key of the node's sessions: the next refresh notices the loss.
    some_refreshes(link, 2).await;
    let started = Instant::now();
    let () = link.query(cmd("DEL").arg(keys.node_sessions(&"a".parse().unwrap()))).await.unwrap();
    eventually("ann's session", async || (view.sessions().await.unwrap().len() == 1).then_some(())).await;
    assert!(started.elapsed() < LEASE * 3, "{:?}", started.elapsed());

    // The key of a user's sessions: the session is renewed within 120 refreshes.
    let options = RedisOptions { lease: Duration::from_millis(100), ..redis.options() };
    let (b, _) = join("b", "50005-50009", options).await;
    let _ben = open(&b, "b", "ben").await;
    some_refreshes(link, 2).await;
    let () = link.query(cmd("DEL").arg(keys.user_sessions("ben"))).await.unwrap();
    eventually("ben counts", async || is_full(&a, "a", "ben", 1).await.then_some(())).await;
}

#[tokio::test]
async fn all_keys_of_a_dead_node_expire() {
    let redis = RedisServer::start();
    let options = RedisOptions { lease: Duration::from_millis(100), ..redis.options() };
    let (a, _) = join("a", "50000-50004", options.clone()).await;
    let (b, _) = join("b", "50005-50009", options).await;
    let _entries = [open(&a, "a", "ann").await, open(&a, "a", "ben").await];
    let staying = open(&b, "b", "ann").await;
    drop(a);
    let view = RegistryView::new(&redis.options());
    let (link, keys) = (view.link(), view.keys());
    // Also in keys that other nodes keep using.
    eventually("b's session alone", async || {
        let _ = is_full(&b, "b", "ann", 1).await;
        let count: u64 = link.query(cmd("ZCARD").arg(keys.user_sessions("ann"))).await.unwrap();
        (count == 1).then_some(())
    })
    .await;
    drop(staying);
    b.leave().await;
    eventually("no key", async || keys_left(link).await.is_empty().then_some(())).await;
}

#[tokio::test]
async fn a_node_that_leaves_after_its_entry_expired_removes_its_sessions() {
    let redis = RedisServer::start();
    // A long lease, so that nothing is refreshed or expires during the test.
    let options = RedisOptions { lease: Duration::from_secs(600), ..redis.options() };
    let (a, _) = join("a", "50000-50004", options).await;
    let _ann = open(&a, "a", "ann").await;
    let view = RegistryView::new(&redis.options());
    let (link, name) = (view.link(), "a".parse().unwrap());
    some_refreshes(link, 2).await;
    let () = link.query(cmd("DEL").arg(view.keys().node(&name))).await.unwrap();
    a.leave().await;
    let keys = keys_left(link).await;
    assert!(keys.is_empty(), "{keys:?}");
}
