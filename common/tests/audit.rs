//! The stream of the audit trail against a real Redis.

#[allow(dead_code)] // Each file of tests uses a part of it.
mod support;

use std::time::Duration;

use common::{
    audit::{AuditEvent, AuditOptions, AuditRange, AuditRecord, AuditResult, AuditTrail},
    health::Condition,
    registry::RegistryView,
};

use self::support::{PATIENCE, RedisServer, eventually};

/// A trail that keeps `records` in Redis, and has no other sink.
fn trail(redis: &RedisServer, records: u32) -> (AuditTrail, RegistryView) {
    let options = AuditOptions { sink: None, records };
    let view = RegistryView::new(&redis.options());
    let trail = AuditTrail::open(&options, "ftpd", "ftp1", true, |_, _| {}).unwrap();
    trail.share(view.clone());
    (trail, view)
}

fn upload(number: usize) -> AuditRecord {
    let mut record = AuditRecord::new(AuditEvent::Upload, AuditResult::Ok);
    record.set_path(format!("/{number}").as_bytes());
    record
}

fn paths(records: &[(impl Sized, AuditRecord)]) -> Vec<&str> {
    records.iter().map(|(_, record)| record.path.as_deref().unwrap_or_default()).collect()
}

#[tokio::test]
async fn the_stream_is_read_in_pages_in_both_directions() {
    let redis = RedisServer::start();
    let (trail, view) = trail(&redis, 20_000);
    (0..1500).for_each(|number| trail.record(upload(number)));
    trail.finish(PATIENCE).await;
    let newest = view.audit(AuditRange::Newest, 3).await.unwrap();
    assert_eq!(paths(&newest), ["/1499", "/1498", "/1497"]);
    let before = view.audit(AuditRange::Before(newest[2].0), 2).await.unwrap();
    assert_eq!(paths(&before), ["/1496", "/1495"]);
    let after = view.audit(AuditRange::After(before[1].0), 3).await.unwrap();
    assert_eq!(paths(&after), ["/1496", "/1497", "/1498"]);
    assert!(view.audit(AuditRange::After(newest[0].0), 3).await.unwrap().is_empty());
    let all = view.audit(AuditRange::Newest, 5000).await.unwrap();
    assert_eq!(all.len(), 1500);
    assert!(all.is_sorted_by(|newer, older| newer.0 > older.0));
}

#[tokio::test]
async fn redis_keeps_about_as_many_records_as_the_setting_says() {
    let redis = RedisServer::start();
    let (trail, view) = trail(&redis, 100);
    (0..2000).for_each(|number| trail.record(upload(number)));
    trail.finish(PATIENCE).await;
    let kept = view.audit(AuditRange::Newest, 5000).await.unwrap();
    // Redis removes whole blocks of up to 100 entries.
    assert!((100..=250).contains(&kept.len()), "{}", kept.len());
    assert_eq!(paths(&kept)[0], "/1999");
}

#[tokio::test]
async fn records_wait_while_redis_is_away() {
    let mut redis = RedisServer::start();
    let (trail, view) = trail(&redis, 20_000);
    trail.record(upload(0));
    trail.finish(PATIENCE).await;
    redis.stop();
    (1..=700).for_each(|number| trail.record(upload(number)));
    trail.finish(Duration::from_millis(300)).await;
    redis.restart();
    let all = eventually("the stream has all records", async || {
        let found = view.audit(AuditRange::Newest, 5000).await.ok()?;
        (found.len() >= 700).then_some(found)
    });
    let all = all.await;
    assert_eq!((paths(&all)[0], paths(&all)[699]), ("/700", "/1"));
    assert_eq!(trail.dependency().unwrap().condition, Condition::Ok);
}

#[tokio::test]
async fn an_entry_that_is_no_record_is_left_out() {
    let redis = RedisServer::start();
    let (trail, view) = trail(&redis, 20_000);
    for (field, value) in [("record", "{}"), ("record", "no JSON"), ("other", "{}")] {
        let mut add = redis::cmd("XADD");
        add.arg(view.keys().audit()).arg("*").arg(field).arg(value);
        view.link().query::<String>(&add).await.unwrap();
    }
    trail.record(upload(1));
    trail.finish(PATIENCE).await;
    assert_eq!(paths(&view.audit(AuditRange::Newest, 10).await.unwrap()), ["/1"]);
}
