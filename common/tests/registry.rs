//! Nodes and sessions in the registry, with a real Redis. Each test starts its own server.

#[allow(dead_code)] // Each file of tests uses a part of it.
mod support;

use std::time::{Duration, Instant};

use common::{
    node::{NodeCommand, NodeState},
    registry::{
        ClusterEvent, LeaseConflict, LeaseRefused, RedisOptions, RedisUrl, Registry, RegistryView,
        SessionRefused,
    },
    secret::Secret,
    session::{SessionId, SessionLimits},
};
use redis::cmd;
use support::*;
use tokio::task::JoinSet;

/// An answer within this time did not wait for a timeout.
const AT_ONCE: Duration = Duration::from_millis(500);

/// Other servers admitted too much in a burst: CVE-2021-40524 (quotas), ProFTPD #2098, #2158.
#[tokio::test(flavor = "multi_thread")]
async fn fifty_simultaneous_logins_on_two_nodes_fill_each_limit_exactly() {
    let redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", redis.options()).await;
    let (b, _) = join("b", "50005-50009", redis.options()).await;
    for (limits, refusal) in [
        (user_limit(7), SessionRefused::UserLimit(7)),
        (SessionLimits { per_address: Some(9), ..NO_LIMITS }, SessionRefused::AddressLimit(9)),
        (SessionLimits { per_user_and_address: Some(1), ..NO_LIMITS }, SessionRefused::UserAddressLimit(1)),
    ] {
        let mut logins = JoinSet::new();
        for i in 0..50 {
            let (registry, name) = if i % 2 == 0 { (a.clone(), "a") } else { (b.clone(), "b") };
            let record = session(name, "ann", [192, 0, 2, 1]);
            logins.spawn(async move { registry.open_session(record, limits).await });
        }
        let (entries, refusals): (Vec<_>, Vec<_>) =
            logins.join_all().await.into_iter().partition(Result::is_ok);
        let limit = [limits.per_user, limits.per_address, limits.per_user_and_address]
            .into_iter()
            .find_map(|limit| limit);
        assert_eq!(Some(entries.len() as u32), limit);
        assert!(refusals.into_iter().all(|answer| answer.err() == Some(refusal)));

        // Sessions that end make room, on the other node too.
        drop(entries);
        let one = eventually("the limits are free again", async || {
            let one =
                SessionLimits { per_user: Some(1), per_address: Some(1), per_user_and_address: Some(1) };
            a.open_session(session("a", "ann", [192, 0, 2, 1]), one).await.ok()
        })
        .await;
        drop(one);
        let view = RegistryView::new(&redis.options());
        eventually("no session", async || view.sessions().await.unwrap().is_empty().then_some(())).await;
    }
}

#[tokio::test]
async fn all_nodes_see_all_sessions_and_nodes() {
    let redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", redis.options()).await;
    let (b, _) = join("b", "50005-50009", redis.options()).await;
    let record = session("a", "ann smith\r\n:*", [192, 0, 2, 1]);
    let entry = a.open_session(record.clone(), user_limit(1)).await.unwrap();
    let view = RegistryView::new(&redis.options());
    assert_eq!(view.sessions().await.unwrap(), std::slice::from_ref(&record));
    assert_eq!(b.sessions().await, std::slice::from_ref(&record));
    assert_eq!(a.sessions().await, std::slice::from_ref(&record));
    let other = b.open_session(session("b", "bert", [192, 0, 2, 1]), NO_LIMITS).await.unwrap();
    for registry in [&a, &b] {
        assert_eq!(registry.sessions_of(&record.user).await, std::slice::from_ref(&record));
        assert_eq!(registry.sessions_of("carol").await, []);
    }
    drop(other);
    assert_eq!(view.find_session(record.id).await.unwrap(), Some(record.clone()));
    assert_eq!(view.find_session(SessionId::random()).await.unwrap(), None);

    a.transfers().store(3, std::sync::atomic::Ordering::Relaxed);
    a.set_draining(u64::MAX);
    eventually("the node's record", async || {
        let nodes = view.nodes().await.unwrap();
        let a = nodes.iter().find(|node| node.name.as_str() == "a").unwrap();
        (nodes.len() == 2 && a.state == NodeState::Draining && (a.sessions, a.transfers) == (1, 3))
            .then_some(())
    })
    .await;

    drop(entry);
    a.leave().await;
    assert_eq!(view.find_session(record.id).await.unwrap(), None);
    b.leave().await;
    let keys = keys_left(view.link()).await;
    assert!(keys.is_empty(), "{keys:?}");
}

#[tokio::test]
async fn a_dead_node_and_its_sessions_and_leases_expire() {
    let redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", redis.options()).await;
    let (b, _) = join("b", "50005-50009", redis.options()).await;
    let _session = open(&a, "a", "ann").await;
    let _lease = a.lease_write(b"/file", SessionId::random()).await.unwrap();
    assert!(is_full(&b, "b", "ann", 1).await);
    drop(a);
    eventually("room for ann", async || (!is_full(&b, "b", "ann", 1).await).then_some(())).await;
    assert!(b.sessions_of("ann").await.iter().all(|session| session.node.as_str() == "b"));
    let seen = b.sessions().await;
    assert!(seen.iter().all(|session| session.node.as_str() == "b"), "{seen:?}");
    let _lease =
        eventually("the lease", async || b.lease_write(b"/file", SessionId::random()).await.ok()).await;
    let view = RegistryView::new(&redis.options());
    eventually("one node", async || (view.nodes().await.unwrap().len() == 1).then_some(())).await;
    // The dead node's ports are free for another node.
    Registry::join(node("c", "50000-50004"), fixed("50000-50004"), place("c"), redis.options())
        .await
        .unwrap();
}

#[tokio::test]
async fn nodes_enter_everything_again_after_redis_lost_its_data() {
    let mut redis = RedisServer::start();
    // Redis is away for less than a lease.
    let options = RedisOptions { lease: LEASE * 15, ..redis.options() };
    let (a, mut events) = join("a", "50000-50004", options.clone()).await;
    let (b, _) = join("b", "50005-50009", options).await;
    let mut entries = Vec::new();
    for _ in 0..3 {
        entries.push(open(&a, "a", "ann").await);
    }
    let lease = a.lease_write(b"/file", SessionId::random()).await.unwrap();
    redis.stop();
    eventually("the loss is seen", async || (!a.is_connected()).then_some(())).await;
    // One session ends and one begins while Redis is away.
    entries.pop();
    entries.push(open(&a, "a", "ben").await);
    redis.restart();
    let view = RegistryView::new(&redis.options());
    eventually("three sessions", async || (view.sessions().await.ok()?.len() == 3).then_some(())).await;
    eventually("two nodes", async || (view.nodes().await.ok()?.len() == 2).then_some(())).await;
    assert!(a.is_connected() && b.is_connected());
    assert!(is_full(&b, "b", "ann", 2).await && !is_full(&b, "b", "ann", 3).await);
    assert!(is_full(&b, "b", "ben", 1).await);
    assert!(lease.is_held().await);
    let taken = b.lease_write(b"/file", SessionId::random()).await.err();
    assert!(matches!(taken, Some(LeaseRefused::Busy { .. })));
    // Commands arrive again.
    let command = NodeCommand::EndUser { user: "ben".to_owned(), reason: None };
    assert!(view.send(&"a".parse().unwrap(), &command).await.unwrap());
    assert_eq!(next_event(&mut events).await, ClusterEvent::Command(command));
}

#[tokio::test]
async fn while_redis_is_away_the_policy_decides_without_delay() {
    let mut redis = RedisServer::start();
    let (admits, _) = join("a", "50000-50004", redis.options()).await;
    let (refuses, _) = join("b", "50005-50009", redis.refusing()).await;
    let held = admits.lease_write(b"/held", SessionId::random()).await.unwrap();
    let doubted = refuses.lease_write(b"/doubted", SessionId::random()).await.unwrap();
    redis.stop();
    for _ in 0..3 {
        let started = Instant::now();
        let record = || session("a", "ann", [192, 0, 2, 1]);
        let first = admits.open_session(record(), user_limit(1)).await.unwrap();
        let second = admits.open_session(record(), user_limit(1)).await.err();
        assert_eq!(second, Some(SessionRefused::UserLimit(1)), "the node's own limits hold");
        drop(first);
        let lease = admits.lease_write(b"/file", SessionId::random()).await.unwrap();
        let busy = admits.lease_write(b"/file", SessionId::random()).await.err();
        assert!(matches!(busy, Some(LeaseRefused::Busy { .. })));
        assert!(lease.is_held().await && held.is_held().await);
        assert!(lease.give_back().await);

        let refusal = refuses.open_session(record(), NO_LIMITS).await.err();
        assert_eq!(refusal, Some(SessionRefused::RegistryAway));
        let refusal = refuses.lease_write(b"/file", SessionId::random()).await.err();
        assert_eq!(refusal, Some(LeaseRefused::RegistryAway));
        assert!(!doubted.is_held().await);
        assert_eq!(refuses.sessions().await, []);
        assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
    }
    assert!(!admits.is_connected() && !refuses.is_connected());
}

#[tokio::test]
async fn a_hanging_redis_delays_one_login_by_the_timeout_and_the_next_one_not() {
    let redis = RedisServer::start();
    let options = redis.options();
    let timeout = options.timeout;
    // A long lease, so that no refresh notices first.
    let options = RedisOptions { lease: Duration::from_secs(600), ..options };
    let (a, _) = join("a", "50000-50004", options).await;
    let _first = open(&a, "a", "ann").await;
    redis.signal("STOP");
    let started = Instant::now();
    let _second = open(&a, "a", "ann").await;
    assert!(started.elapsed() < timeout + AT_ONCE, "{:?}", started.elapsed());
    let started = Instant::now();
    let _third = open(&a, "a", "ann").await;
    assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
    redis.signal("CONT");
    let view = RegistryView::new(&redis.options());
    eventually("all three", async || (view.sessions().await.ok()?.len() == 3).then_some(())).await;
}

#[tokio::test]
async fn a_cancelled_login_leaves_no_session() {
    let redis = RedisServer::start();
    // A long lease, so that nothing expires during the test.
    let options = RedisOptions { lease: Duration::from_secs(600), ..redis.options() };
    let (a, _) = join("a", "50000-50004", options).await;
    let view = RegistryView::new(&redis.options());
    drop(open(&a, "a", "ann").await);
    eventually("no session", async || view.sessions().await.unwrap().is_empty().then_some(())).await;
    redis.signal("STOP");
    let login = tokio::time::timeout(Duration::from_millis(50), open(&a, "a", "ann"));
    assert!(login.await.is_err());
    redis.signal("CONT");
    assert_eq!(a.sessions().await, []);
    eventually("room for ann", async || (!is_full(&a, "a", "ann", 1).await).then_some(())).await;
    eventually("no session", async || view.sessions().await.unwrap().is_empty().then_some(())).await;
}

#[tokio::test]
async fn a_redis_that_requires_a_password_is_away_for_nodes_without_it() {
    let redis = RedisServer::start();
    let password = Secret::new("sesame");
    let url: RedisUrl = redis.options().servers.to_string().parse().unwrap();
    let with_password = url.with_password(&password);
    let with_password = RedisOptions { servers: with_password.into(), ..redis.options() };
    let view = RegistryView::new(&redis.options());
    let () = view.link().query(cmd("CONFIG").arg("SET").arg("requirepass").arg("sesame")).await.unwrap();
    let (without, _) = join("a", "50000-50004", redis.refusing()).await;
    let refusal = without.open_session(session("a", "ann", [192, 0, 2, 1]), NO_LIMITS).await.err();
    assert_eq!(refusal, Some(SessionRefused::RegistryAway));
    assert!(!without.is_connected());
    let (with, _) = join("b", "50000-50004", with_password).await;
    let _session = open(&with, "b", "ann").await;
    assert!(with.is_connected());
}

#[tokio::test]
async fn one_session_writes_a_path_in_the_whole_cluster() {
    let redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", redis.options()).await;
    let (b, _) = join("b", "50005-50009", redis.options()).await;
    let path = b"/in/\xff odd\r\n name";
    let holder = SessionId::random();
    let lease = a.lease_write(path, holder).await.unwrap();
    for registry in [&a, &b] {
        let started = Instant::now();
        let refused = registry.lease_write(path, SessionId::random()).await.err();
        let conflict = LeaseConflict::Same;
        assert_eq!(refused, Some(LeaseRefused::Busy { holder: Some(holder), conflict }));
        assert!(started.elapsed() < AT_ONCE);
    }
    // Refreshes keep the lease beyond its first expiry.
    let started = Instant::now();
    while started.elapsed() < LEASE * 2 {
        assert!(lease.is_held().await);
        assert!(b.lease_write(path, SessionId::random()).await.is_err());
        tokio::time::sleep(LEASE / 10).await;
    }
    drop(lease);
    let lease =
        eventually("the path is free", async || b.lease_write(path, SessionId::random()).await.ok()).await;
    assert!(lease.is_held().await);

    // A path is free at once after `give_back`.
    assert!(lease.give_back().await);
    let view = RegistryView::new(&redis.options());
    let key = view.keys().write_lease(path);
    let lease = a.lease_write(path, SessionId::random()).await.unwrap();
    // After its key is gone a lease is lost: another session may have had the path meanwhile.
    let () = view.link().query(cmd("DEL").arg(&key)).await.unwrap();
    assert!(!lease.give_back().await);

    // A node was cut off for so long that another node took the path.
    let lost = a.lease_write(path, SessionId::random()).await.unwrap();
    let () = view.link().query(cmd("SET").arg(&key).arg("c 1 1 1")).await.unwrap();
    assert!(!lost.give_back().await);
    let () = view.link().query(cmd("DEL").arg(&key)).await.unwrap();
    let lease = b.lease_write(path, SessionId::random()).await.unwrap();
    let () = view.link().query(cmd("SET").arg(&key).arg("c 1 1 1")).await.unwrap();
    assert!(!lease.is_held().await);
    eventually("b sees the loss", async || {
        b.lease_write(path, SessionId::random())
            .await
            .err()
            .filter(|e| matches!(e, LeaseRefused::Busy { .. }))
    })
    .await;
}

#[tokio::test]
async fn commands_reach_their_node_in_order_and_within_a_second() {
    let redis = RedisServer::start();
    let (_a, mut events) = join("a", "50000-50004", redis.options()).await;
    let view = RegistryView::new(&redis.options());
    let name = "a".parse().unwrap();
    let sent: Vec<_> = (0..5)
        .map(|_| NodeCommand::EndSession { session: SessionId::random(), reason: None })
        .chain([NodeCommand::Drain])
        .collect();
    let started = Instant::now();
    for command in &sent {
        assert!(view.send(&name, command).await.unwrap());
    }
    for command in sent {
        assert_eq!(next_event(&mut events).await, ClusterEvent::Command(command));
    }
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert!(!view.send(&"nobody".parse().unwrap(), &NodeCommand::Drain).await.unwrap());
}

/// Other servers trusted data in a shared cache: ProFTPD #2166, CVE-2026-44403.
#[tokio::test]
async fn malformed_data_in_redis_is_skipped_and_removed() {
    let redis = RedisServer::start();
    let (a, mut events) = join("a", "50000-50004", redis.options()).await;
    let record = session("a", "ann", [192, 0, 2, 1]);
    let _entry = a.open_session(record.clone(), user_limit(1)).await.unwrap();
    let view = RegistryView::new(&redis.options());
    let (link, keys) = (view.link(), view.keys());
    let name = "a".parse().unwrap();
    let poison = [
        // Malformed nodes, and one without an incarnation that claims all ports.
        cmd("SADD").arg(keys.nodes()).arg("b").arg("x y").arg(b"\xff").arg("").to_owned(),
        cmd("SET").arg("ftp:node:b").arg("{}").to_owned(),
        cmd("HSET").arg("ftp:node:x y").arg("from").arg(1).arg("to").arg(65535).to_owned(),
        // A malformed session, and a record under another session's id.
        cmd("HSET").arg(keys.node_sessions(&name)).arg("zz").arg("{").to_owned(),
        cmd("HSET")
            .arg(keys.node_sessions(&name))
            .arg(SessionId::random().to_string())
            .arg(serde_json::to_string(&record).unwrap())
            .to_owned(),
        cmd("LPUSH").arg(keys.node_commands(&name)).arg(r#"{"command":"format"}"#).to_owned(),
        // Values of the wrong type.
        cmd("SET").arg(keys.user_sessions("ben")).arg("x").to_owned(),
        cmd("LPUSH").arg(keys.write_lease(b"/file")).arg("x").to_owned(),
    ];
    for command in &poison {
        let _: redis::Value = link.query(command).await.unwrap();
    }
    assert_eq!(view.sessions().await.unwrap(), std::slice::from_ref(&record));
    assert_eq!(view.nodes().await.unwrap().len(), 1);
    let (c, _) = join("c", "50005-50009", redis.options()).await;
    let _ben = open(&c, "c", "ben").await;
    let _lease = c.lease_write(b"/file", SessionId::random()).await.unwrap();
    assert!(view.send(&name, &NodeCommand::Drain).await.unwrap());
    assert_eq!(next_event(&mut events).await, ClusterEvent::Command(NodeCommand::Drain));
    eventually("the malformed sessions are gone", async || {
        let ids: Vec<String> = link.query(cmd("HKEYS").arg(keys.node_sessions(&name))).await.unwrap();
        (ids == [record.id.to_string()]).then_some(())
    })
    .await;
    assert!(is_full(&c, "c", "ann", 1).await, "the misplaced record does not affect the session");

    // Keys of the wrong type are replaced, including the list of commands.
    for key in [keys.node_sessions(&name), keys.node_commands(&name), keys.nodes()] {
        let () = link.query(cmd("SET").arg(key).arg("x")).await.unwrap();
    }
    eventually("ann is back", async || (view.sessions().await.unwrap().contains(&record)).then_some(()))
        .await;
    assert!(view.send(&name, &NodeCommand::Drain).await.unwrap());
    assert_eq!(next_event(&mut events).await, ClusterEvent::Command(NodeCommand::Drain));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_sessions_survive_their_first_expiry_and_a_flush() {
    let redis = RedisServer::start();
    let options = RedisOptions { lease: LEASE * 4, ..redis.options() };
    let (a, _) = join("a", "50000-50004", options.clone()).await;
    let mut opening = JoinSet::new();
    for i in 0..2000u32 {
        let registry = a.clone();
        let [_, _, high, low] = i.to_be_bytes();
        let record = session("a", &format!("user{}", i % 50), [10, 0, high, low]);
        opening.spawn(async move { registry.open_session(record, user_limit(40)).await.unwrap() });
    }
    let entries = opening.join_all().await;
    let view = RegistryView::new(&options);
    let started = Instant::now();
    while started.elapsed() < options.lease + options.lease / 2 {
        assert_eq!(view.sessions().await.unwrap().len(), 2000);
        assert!(is_full(&a, "a", "user7", 40).await);
        tokio::time::sleep(LEASE / 5).await;
    }
    let () = view.link().query(&cmd("FLUSHALL")).await.unwrap();
    eventually("all are back", async || (view.sessions().await.unwrap().len() == 2000).then_some(())).await;
    drop(entries);
    eventually("none is left", async || view.sessions().await.unwrap().is_empty().then_some(())).await;
    a.leave().await;
    let keys = keys_left(view.link()).await;
    assert!(keys.is_empty(), "{keys:?}");
}
