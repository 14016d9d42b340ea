//! Joining the cluster: names and slices that other nodes hold, with a real Redis.

#[allow(dead_code)] // Each file of tests uses a part of it.
mod support;

use std::time::{Duration, Instant};

use common::{
    node::NodeRecord,
    registry::{ClusterEvent, JoinError, RedisOptions, Registry, RegistryView},
    session::SessionId,
};
use redis::cmd;
use support::*;

/// An answer within this time did not wait for a timeout.
const AT_ONCE: Duration = Duration::from_millis(500);

#[tokio::test]
async fn overlapping_slices_are_refused_with_the_names_of_both_nodes() {
    let redis = RedisServer::start();
    let (_a, _) = join("a", "50000-50004", redis.options()).await;
    let error = Registry::join(node("b", "50004-50009"), fixed("50004-50009"), place("b"), redis.options())
        .await
        .err()
        .unwrap();
    let JoinError::SliceTaken { ours, theirs } = error.clone() else { panic!("{error}") };
    assert_eq!((ours.0.as_str(), ours.1.to_string().as_str()), ("b", "50004-50009"));
    assert_eq!((theirs.0.as_str(), theirs.1.to_string().as_str()), ("a", "50000-50004"));
    let text = error.to_string();
    assert!(text.contains("node b") && text.contains("node a"), "{text}");
    let view = RegistryView::new(&redis.options());
    assert_eq!(view.nodes().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_restarted_node_takes_over_its_name_and_the_earlier_process_gets_an_event() {
    let redis = RedisServer::start();
    // Long leases, so that the test does not depend on expiry.
    let options = || RedisOptions { lease: Duration::from_secs(600), ..redis.options() };
    let (old, mut old_events) = join("a", "50000-50004", options()).await;
    let _session = open(&old, "a", "ann").await;
    let lease = old.lease_write(b"/file", SessionId::random()).await.unwrap();
    let (new, mut new_events) = join("a", "50000-50004", options()).await;
    assert!(!is_full(&new, "a", "ann", 1).await);
    assert_eq!(new.sessions().await, []);
    let new_lease = new.lease_write(b"/file", SessionId::random()).await.unwrap();
    assert!(!lease.is_held().await);
    assert!(new_lease.is_held().await);

    old.set_draining(u64::MAX); // Causes a refresh at once.
    let lost = next_event(&mut old_events).await;
    assert!(matches!(lost, ClusterEvent::NameTaken(_)), "{lost:?}");
    // The earlier process ends, and removes no entry of the new one.
    old.leave().await;
    let view = RegistryView::new(&options());
    assert_eq!(view.nodes().await.unwrap().len(), 1);
    assert!(new_lease.is_held().await);
    assert!(new_events.try_recv().is_err());
}

#[tokio::test]
async fn a_second_process_with_the_name_of_a_live_node_is_refused_and_changes_nothing() {
    let redis = RedisServer::start();
    let (first, mut events) = join("a", "50000-50004", redis.options()).await;
    let _session = open(&first, "a", "ann").await;
    let lease = first.lease_write(b"/file", SessionId::random()).await.unwrap();
    let view = RegistryView::new(&redis.options());
    // The node's next refresh publishes the session. After that the node's record does not change.
    eventually("the session is counted", async || {
        (view.nodes().await.unwrap()[0].sessions == 1).then_some(())
    })
    .await;
    let before = (view.nodes().await.unwrap(), view.sessions().await.unwrap());
    for place in [Some("another host".to_owned()), None] {
        let started = Instant::now();
        let error = Registry::join(node("a", "50005-50009"), fixed("50005-50009"), place, redis.options())
            .await
            .err()
            .unwrap();
        assert!(started.elapsed() >= LEASE, "{:?}", started.elapsed());
        assert!(matches!(error, JoinError::NameTaken { .. }), "{error}");
        let text = error.to_string();
        for part in ["node name a", "on host host", "127.0.0.1:21", "2023-11-14T22:13:20Z", "node_name"] {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
    }
    assert_eq!((view.nodes().await.unwrap(), view.sessions().await.unwrap()), before);
    assert!(lease.is_held().await && events.try_recv().is_err());
}

#[tokio::test]
async fn a_name_is_free_after_its_lease_expired() {
    let redis = RedisServer::start();
    let (crashed, _) = join("a", "50000-50004", redis.options()).await;
    let _session = open(&crashed, "a", "ann").await;
    drop(crashed);
    let elsewhere = Some("another host".to_owned());
    let joined =
        Registry::join(node("a", "50000-50004"), fixed("50000-50004"), elsewhere, redis.options()).await;
    let (next, _) = joined.unwrap();
    assert!(!is_full(&next, "a", "ann", 1).await);
}

#[tokio::test]
async fn a_node_key_without_an_expiry_time_holds_no_name() {
    let redis = RedisServer::start();
    let view = RegistryView::new(&redis.options());
    let key = view.keys().node(&"a".parse().unwrap());
    let _: () = view.link().query(cmd("HSET").arg(key).arg("incarnation").arg("1")).await.unwrap();
    let started = Instant::now();
    join("a", "50000-50004", redis.options()).await;
    assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_process_that_started_while_redis_was_away_yields_to_the_earlier_holder_of_the_name() {
    let mut redis = RedisServer::start();
    let (first, mut events) = join("a", "50000-50004", redis.options()).await;
    let _session = open(&first, "a", "ann").await;
    redis.stop();
    eventually("the loss is seen", async || (!first.is_connected()).then_some(())).await;
    let elsewhere = Some("another host".to_owned());
    let second =
        Registry::join(node("a", "50000-50004"), fixed("50000-50004"), elsewhere, redis.options()).await;
    let (_second, mut second_events) = second.unwrap();
    redis.restart();
    let lost = next_event(&mut second_events).await;
    assert!(matches!(lost, ClusterEvent::NameTaken(_)), "{lost:?}");
    let view = RegistryView::new(&redis.options());
    let sessions = view.sessions().await.unwrap();
    assert_eq!(sessions.iter().map(|session| session.user.as_str()).collect::<Vec<_>>(), ["ann"]);
    assert!(events.try_recv().is_err());
}

#[tokio::test]
async fn nodes_that_start_without_redis_join_when_it_is_back() {
    let mut redis = RedisServer::start();
    redis.stop();
    let (a, mut a_events) = join("a", "50000-50004", redis.options()).await;
    let (b, mut b_events) = join("b", "50004-50009", redis.options()).await;
    let _session = open(&a, "a", "ann").await;
    redis.restart();
    // Both want port 50004. The node that joins second gets an event.
    let event = tokio::select! {
        event = next_event(&mut a_events) => event,
        event = next_event(&mut b_events) => event,
    };
    let ClusterEvent::SliceConflict { ours, theirs } = event else { panic!("{event:?}") };
    assert_ne!(ours.0, theirs.0);
    assert!(ours.1.overlaps(theirs.1));
    eventually("ann counts", async || is_full(&b, "b", "ann", 1).await.then_some(())).await;
}

#[tokio::test]
async fn a_process_with_ports_of_another_node_that_comes_first_after_a_loss_of_redis_leaves() {
    // Which of them publishes first is chance.
    for _ in 0..6 {
        let mut redis = RedisServer::start();
        let (established, mut events) = join("b", "50000-50004", redis.options()).await;
        let _session = open(&established, "b", "ann").await;
        redis.stop();
        eventually("the loss is seen", async || (!established.is_connected()).then_some(())).await;
        let later = node("a", "50004-50009");
        let later = NodeRecord { since: later.since + 60, ..later };
        let joined = Registry::join(later, fixed("50004-50009"), place("a"), redis.options()).await;
        let (newcomer, mut its_events) = joined.unwrap();
        redis.restart();
        let event = next_event(&mut its_events).await;
        let ClusterEvent::SliceConflict { ours, theirs } = event else { panic!("{event:?}") };
        assert_eq!((ours.0.as_str(), theirs.0.as_str()), ("a", "b"));
        newcomer.leave().await;
        let view = RegistryView::new(&redis.options());
        eventually("the established node is alone", async || {
            let nodes = view.nodes().await.ok()?;
            (nodes.len() == 1 && nodes[0].name.as_str() == "b").then_some(())
        })
        .await;
        assert!(events.try_recv().is_err(), "the established node was told to leave");
    }
}
