//! The stream of events, with a real Redis.

#[allow(dead_code)] // Each file of tests uses a part of it.
mod support;

use common::registry::{LinkError, Registry, RegistryView};
use redis::cmd;
use support::*;

#[tokio::test]
async fn the_stream_keeps_the_newest_entries() {
    let redis = RedisServer::start();
    let (registry, _events) = join("a", "50000-50004", redis.options()).await;
    let view = RegistryView::new(&redis.options());
    for number in 1..=1000 {
        let id = format!("a-1-{number}");
        registry.append_event(&id, format!("{{\"n\":{number}}}").as_bytes(), 150).await.unwrap();
    }
    let key = view.keys().events();
    let length: u64 = view.link().query(cmd("XLEN").arg(&key)).await.unwrap();
    // Redis removes entries in groups, by default of 100.
    assert!((150..=250).contains(&length), "{length}");
    type Entry = (String, Vec<String>);
    let newest: Vec<Entry> =
        view.link().query(cmd("XREVRANGE").arg(&key).arg("+").arg("-").arg("COUNT").arg(1)).await.unwrap();
    assert_eq!(newest[0].1, ["id", "a-1-1000", "event", "{\"n\":1000}"]);
}

#[tokio::test]
async fn an_event_that_redis_does_not_take_is_an_error() {
    let mut redis = RedisServer::start();
    let (registry, _events) = join("a", "50000-50004", redis.options()).await;
    let view = RegistryView::new(&redis.options());
    let () = view.link().query(cmd("SET").arg(view.keys().events()).arg("text")).await.unwrap();
    let append = async || registry.append_event("a-1-1", b"{}", 10).await;
    assert!(matches!(append().await, Err(LinkError::Reply(_))));
    redis.stop();
    assert!(matches!(append().await, Err(LinkError::Away)));
    let single = Registry::local(node("single", "50000-50004"));
    assert!(matches!(single.append_event("a-1-1", b"{}", 10).await, Err(LinkError::Away)));
}
