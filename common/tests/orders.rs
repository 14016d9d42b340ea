//! Orders to nodes and the revision of the accounts, with a real Redis.

#[allow(dead_code)] // Each file of tests uses a part of it.
mod support;

use std::time::Duration;

use common::{
    node::{NodeCommand, NodeState},
    registry::{ClusterEvent, NodeOrders, RedisOptions, RegistryView},
    session::SessionId,
};
use redis::cmd;
use support::*;

fn end_of(session: SessionId) -> NodeCommand {
    NodeCommand::EndSession { session, reason: None }
}

/// Enters the order of a command without its entry in the list, as if the command was lost after Redis had
/// sent it.
async fn send_and_lose(view: &RegistryView, command: &NodeCommand) {
    let script = redis::Script::new(
        "local incarnation = redis.call('HGET', KEYS[2], 'incarnation')
        redis.call('HSET', KEYS[1], 'incarnation', incarnation, ARGV[1], '7')",
    );
    let name = "a".parse().unwrap();
    let mut call = script.prepare_invoke();
    call.key(view.keys().node_orders(&name)).key(view.keys().node(&name));
    call.arg(match command {
        NodeCommand::Drain => "drain".to_owned(),
        NodeCommand::Undrain => "undrain".to_owned(),
        NodeCommand::EndSession { session, .. } => format!("end:{session}"),
        NodeCommand::EndUser { .. }
        | NodeCommand::Refresh
        | NodeCommand::Watch { .. }
        | NodeCommand::Report { .. }
        | NodeCommand::ReplayEvents { .. } => panic!("has no order"),
    });
    let () = view.link().script(&call).await.unwrap();
}

#[tokio::test]
async fn a_lost_command_reaches_the_node_and_its_order_stays_until_it_is_carried_out() {
    let redis = RedisServer::start();
    let (a, mut events) = join("a", "50000-50004", redis.options()).await;
    let view = RegistryView::new(&redis.options());
    let record = session("a", "ann", [192, 0, 2, 1]);
    let entry = a.open_session(record.clone(), NO_LIMITS).await.unwrap();
    let name = "a".parse().unwrap();
    for command in [end_of(record.id), NodeCommand::Drain] {
        send_and_lose(&view, &command).await;
        assert_eq!(next_event(&mut events).await, ClusterEvent::Command(command));
    }
    let orders = NodeOrders { drain: Some(7), ends: [(record.id, 7)].into(), ..NodeOrders::default() };
    assert_eq!(view.orders(&name).await.unwrap(), orders);
    // The end of the session removes its order, and no other one.
    drop(entry);
    eventually("the session's order is removed", async || {
        (view.orders(&name).await.unwrap() == NodeOrders { drain: Some(7), ..NodeOrders::default() })
            .then_some(())
    })
    .await;
    assert!(events.try_recv().is_err(), "each command arrives once");
    a.leave().await;
    let drained = view.orders(&name).await.unwrap();
    assert!(drained.drain == Some(7) && drained.drained.is_some(), "{drained:?}");
    let left: i64 = view.link().query(cmd("TTL").arg(view.keys().node_orders(&name))).await.unwrap();
    assert!(left > 0, "{left}");
}

#[tokio::test]
async fn an_order_to_end_a_drain_revokes_the_drain_and_stays_until_the_node_is_ready() {
    let redis = RedisServer::start();
    let (a, mut events) = join("a", "50000-50004", redis.options()).await;
    let view = RegistryView::new(&redis.options());
    let name = "a".parse().unwrap();
    for _ in 0..2 {
        assert!(view.send(&name, &NodeCommand::Drain).await.unwrap());
        assert_eq!(next_event(&mut events).await, ClusterEvent::Command(NodeCommand::Drain));
        a.set_draining(u64::MAX);
        assert!(view.send(&name, &NodeCommand::Undrain).await.unwrap());
        assert_eq!(next_event(&mut events).await, ClusterEvent::Command(NodeCommand::Undrain));
        let orders = view.orders(&name).await.unwrap();
        assert!(orders.drain.is_none() && orders.undrain.is_some(), "{orders:?}");
        // The node still drains at the next refreshes: the order stays.
        tokio::time::sleep(LEASE).await;
        assert!(view.orders(&name).await.unwrap().undrain.is_some());
        a.end_drain();
        eventually("the order is removed", async || {
            (view.orders(&name).await.unwrap() == NodeOrders::default()).then_some(())
        })
        .await;
        let node = view.nodes().await.unwrap().remove(0);
        assert_eq!((node.state, node.drain_until), (NodeState::Ready, None));
    }
    // The order's command was lost, and the node drains.
    a.set_draining(u64::MAX);
    send_and_lose(&view, &NodeCommand::Undrain).await;
    assert_eq!(next_event(&mut events).await, ClusterEvent::Command(NodeCommand::Undrain));
    assert!(events.try_recv().is_err(), "each command arrives once");
    // The node ends all the same.
    a.leave().await;
    assert!(view.orders(&name).await.unwrap().drained.is_some());
}

#[tokio::test]
async fn a_command_that_arrived_is_not_repeated_by_its_order() {
    let redis = RedisServer::start();
    let (a, mut events) = join("a", "50000-50004", redis.options()).await;
    let view = RegistryView::new(&redis.options());
    let record = session("a", "ann", [192, 0, 2, 1]);
    let _entry = a.open_session(record.clone(), NO_LIMITS).await.unwrap();
    let command = end_of(record.id);
    let name = "a".parse().unwrap();
    for _ in 0..2 {
        assert!(view.send(&name, &command).await.unwrap());
        assert_eq!(next_event(&mut events).await, ClusterEvent::Command(command.clone()));
    }
    tokio::time::sleep(LEASE * 2).await;
    assert!(events.try_recv().is_err());
    assert_eq!(view.orders(&name).await.unwrap().ends.len(), 1);
}

#[tokio::test]
async fn an_order_is_void_for_later_processes_of_the_node() {
    let redis = RedisServer::start();
    let (first, _) = join("a", "50000-50004", redis.options()).await;
    let view = RegistryView::new(&redis.options());
    let name = "a".parse().unwrap();
    send_and_lose(&view, &NodeCommand::Drain).await;
    drop(first);
    let (_second, mut events) = join("a", "50000-50004", redis.options()).await;
    eventually("the order is gone", async || {
        (view.orders(&name).await.unwrap() == NodeOrders::default()).then_some(())
    })
    .await;
    tokio::time::sleep(LEASE).await;
    assert!(events.try_recv().is_err());
}

#[tokio::test]
async fn orders_survive_the_expiry_of_the_node_and_a_value_of_the_wrong_type_is_removed() {
    let redis = RedisServer::start();
    let (a, mut events) = join("a", "50000-50004", redis.options()).await;
    let view = RegistryView::new(&redis.options());
    let (link, name) = (view.link(), "a".parse().unwrap());
    send_and_lose(&view, &NodeCommand::Drain).await;
    let () = link.query(cmd("DEL").arg(view.keys().node(&name))).await.unwrap();
    assert_eq!(next_event(&mut events).await, ClusterEvent::Command(NodeCommand::Drain));

    let key = view.keys().node_orders(&name);
    let () = link.query(cmd("SET").arg(&key).arg("x")).await.unwrap();
    assert_eq!(view.orders(&name).await.unwrap(), NodeOrders::default());
    eventually("the value is removed", async || {
        let there: bool = link.query(cmd("EXISTS").arg(&key)).await.unwrap();
        (!there).then_some(())
    })
    .await;
    let () = link.query(cmd("SET").arg(&key).arg("x")).await.unwrap();
    let lost = end_of(SessionId::random());
    assert!(view.send(&name, &lost).await.unwrap());
    assert_eq!(next_event(&mut events).await, ClusterEvent::Command(lost));
    a.leave().await;
}

#[tokio::test]
async fn the_first_refresh_is_not_another_join() {
    let redis = RedisServer::start();
    // A long lease, so that refreshes happen only when the drain changes.
    let options = || RedisOptions { lease: Duration::from_secs(600), ..redis.options() };
    let (a, _events) = join("a", "50000-50004", options()).await;
    let revision = a.revision();
    let view = RegistryView::new(&options());
    // Redis shows a new end of the drain when the refresh before that one is complete.
    for until in 1..=3 {
        a.set_draining(until);
        let is_shown = async || (view.nodes().await.unwrap()[0].drain_until == Some(until)).then_some(());
        eventually("the drain in Redis", is_shown).await;
    }
    assert!(!revision.has_changed().unwrap());
}

#[tokio::test]
async fn a_node_sees_each_revision_and_each_time_that_it_joins() {
    let mut redis = RedisServer::start();
    let (a, _events) = join("a", "50000-50004", redis.options()).await;
    let view = RegistryView::new(&redis.options());
    let mut revision = a.revision();
    let joined = *revision.borrow_and_update();
    let mut changed = async |what: &str| {
        tokio::time::timeout(PATIENCE, revision.changed()).await.expect(what).unwrap();
        *revision.borrow_and_update()
    };
    let first = view.advance_revision().await.unwrap();
    let after = changed("a revision").await;
    assert_ne!(joined, after);
    let second = view.advance_revision().await.unwrap();
    assert!(second > first);
    assert_ne!(changed("the next revision").await, after);

    // A node whose entry had expired may have missed a revision.
    let name = "a".parse().unwrap();
    let () = view.link().query(cmd("DEL").arg(view.keys().node(&name))).await.unwrap();
    changed("a join").await;

    // A node whose Redis lost its data may have missed a revision, too. Numbers are not repeated.
    redis.stop();
    eventually("the loss is seen", async || (!a.is_connected()).then_some(())).await;
    redis.restart();
    changed("another join").await;
    let third = eventually("Redis", async || view.advance_revision().await.ok()).await;
    assert!(third > second, "{third} {second}");
    changed("a revision of the empty Redis").await;
    assert!(tokio::time::timeout(Duration::from_millis(1), revision.changed()).await.is_err());
}
