//! What administrators ask of a node, and the revision of the accounts, against a real Redis.

#[allow(dead_code)] // Each file of tests uses a part of it.
mod support;

use std::time::Duration;

use common::{
    node::NodeCommand,
    registry::{ClusterEvent, NodeOrders, RegistryView},
    session::SessionId,
};
use redis::cmd;
use support::*;

/// Leaves what remains of a command that was lost after Redis had given it away: the order, without an entry
/// in the list of commands.
async fn send_and_lose(view: &RegistryView, command: &NodeCommand) {
    let script = redis::Script::new(
        "redis.call('HSET', KEYS[1], 'incarnation', redis.call('HGET', KEYS[2], 'incarnation'), ARGV[1], '7')",
    );
    let name = "a".parse().unwrap();
    let mut call = script.prepare_invoke();
    call.key(view.keys().node_orders(&name)).key(view.keys().node(&name));
    call.arg(match command {
        NodeCommand::Drain => "drain".to_owned(),
        NodeCommand::EndSession { session } => format!("end:{session}"),
        NodeCommand::EndUser { .. } => panic!("does not stand"),
    });
    let () = view.link().script(&call).await.unwrap();
}

#[tokio::test]
async fn a_command_that_is_lost_reaches_the_node_and_stands_until_it_is_done() {
    let redis = RedisServer::start();
    let (a, mut events) = join("a", "50000-50004", redis.options()).await;
    let view = RegistryView::new(&redis.options());
    let record = session("a", "ann", [192, 0, 2, 1]);
    let entry = a.open_session(record.clone(), NO_LIMITS).await.unwrap();
    let name = "a".parse().unwrap();
    for command in [NodeCommand::EndSession { session: record.id }, NodeCommand::Drain] {
        send_and_lose(&view, &command).await;
        assert_eq!(next_event(&mut events).await, ClusterEvent::Command(command));
    }
    let orders = NodeOrders { drain: Some(7), drained: None, ends: [(record.id, 7)].into() };
    assert_eq!(view.orders(&name).await.unwrap(), orders);
    // The session ends: so does its order, and it alone.
    drop(entry);
    eventually("the session's order is done", async || {
        (view.orders(&name).await.unwrap() == NodeOrders { drain: Some(7), ..NodeOrders::default() })
            .then_some(())
    })
    .await;
    assert!(events.try_recv().is_err(), "each was told once");
    a.leave().await;
    let drained = view.orders(&name).await.unwrap();
    assert!(drained.drain == Some(7) && drained.drained.is_some(), "{drained:?}");
    let left: i64 = view.link().query(cmd("TTL").arg(view.keys().node_orders(&name))).await.unwrap();
    assert!(left > 0, "{left}");
}

#[tokio::test]
async fn an_order_that_was_heard_at_once_is_told_once() {
    let redis = RedisServer::start();
    let (a, mut events) = join("a", "50000-50004", redis.options()).await;
    let view = RegistryView::new(&redis.options());
    let record = session("a", "ann", [192, 0, 2, 1]);
    let _entry = a.open_session(record.clone(), NO_LIMITS).await.unwrap();
    let command = NodeCommand::EndSession { session: record.id };
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
async fn an_order_is_void_for_the_next_process_of_the_node() {
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
async fn orders_survive_that_the_node_was_thought_dead_and_garbage_does_not() {
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
    eventually("garbage is removed", async || {
        let there: bool = link.query(cmd("EXISTS").arg(&key)).await.unwrap();
        (!there).then_some(())
    })
    .await;
    let () = link.query(cmd("SET").arg(&key).arg("x")).await.unwrap();
    let lost = NodeCommand::EndSession { session: SessionId::random() };
    assert!(view.send(&name, &lost).await.unwrap());
    assert_eq!(next_event(&mut events).await, ClusterEvent::Command(lost));
    a.leave().await;
}

#[tokio::test]
async fn a_node_learns_of_each_revision_and_of_each_time_it_joins() {
    let mut redis = RedisServer::start();
    let (a, _events) = join("a", "50000-50004", redis.options()).await;
    let view = RegistryView::new(&redis.options());
    let mut revision = a.revision();
    let mut changed = async |what: &str| {
        tokio::time::timeout(PATIENCE, revision.changed()).await.expect(what).unwrap();
        *revision.borrow_and_update()
    };
    let joined = changed("the first refresh").await;
    let first = view.advance_revision().await.unwrap();
    let after = changed("a revision").await;
    assert_ne!(joined, after);
    let second = view.advance_revision().await.unwrap();
    assert!(second > first);
    assert_ne!(changed("the next revision").await, after);

    // A node that expired in Redis may have missed one.
    let name = "a".parse().unwrap();
    let () = view.link().query(cmd("DEL").arg(view.keys().node(&name))).await.unwrap();
    changed("a join").await;

    // So may have one whose Redis lost its data; a number that was there does not come again.
    redis.stop();
    eventually("the loss is seen", async || (!a.is_connected()).then_some(())).await;
    redis.restart();
    changed("another join").await;
    let third = eventually("Redis", async || view.advance_revision().await.ok()).await;
    assert!(third > second, "{third} {second}");
    changed("a revision of the empty Redis").await;
    assert!(tokio::time::timeout(Duration::from_millis(1), revision.changed()).await.is_err());
}
