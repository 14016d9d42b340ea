//! The audit trail of one node: its sinks, what happens when records are lost, and the stream in Redis.

use std::{fs, path::Path};

use cluster_tests::{
    dialogue::Dialogue,
    eventually, http,
    node::{Node, NodeBuilder},
    process::field,
    redis::Redis,
    stub_authd::{Answer, StubAuthd},
};
use common::{
    audit::{AuditEvent, AuditRange, AuditRecord, AuditResult},
    registry::{RedisOptions, RegistryView},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

fn standalone(file: &Path) -> NodeBuilder {
    Node::standalone().user("ann", "secret").setting("audit_log", file.display())
}

/// The records in the file, once there are `count`.
fn records(file: &Path, count: usize) -> Vec<AuditRecord> {
    eventually(&format!("{count} records in the audit trail"), || {
        let text = fs::read_to_string(file).ok()?;
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        let records: Vec<_> = whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (records.len() >= count).then_some(records)
    })
}

fn summary(records: &[AuditRecord]) -> Vec<String> {
    let line = |record: &AuditRecord| {
        let reason = record.reason.as_deref().unwrap_or("-");
        format!("{} {reason} {}", record.event, record.code.unwrap_or_default())
    };
    records.iter().map(line).collect()
}

#[test]
fn every_login_has_a_record_with_its_reason_and_so_has_the_end_of_each_session() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("audit.log");
    let node = standalone(&file).setting("max_login_failures", 2).start();
    let mut session = node.connect();
    session.command("USER nobody-of-this-name", 331);
    session.command("PASS x", 530);
    session.command("USER ann", 331);
    session.command("PASS wrong", 421);
    let mut session = node.login("ann", "secret");
    session.command("REIN", 220);
    session.login("ann", "secret");
    session.quit();
    let mut session = node.login("ann", "secret");
    session.store("a", b"12345");
    session.reset();
    let expected = [
        "login unknown_user 530",
        "login wrong_password 421",
        "login - 230",
        "session_end rein 0",
        "login - 230",
        "session_end quit 0",
        "login - 230",
        "upload - 226",
        "session_end client_gone 0",
    ];
    let records = records(&file, expected.len());
    assert_eq!(summary(&records), expected);
    assert_eq!(records[0].user.as_deref(), Some("nobody-of-this-name"));
    assert_eq!((records[8].uploaded, records[8].downloaded), (Some(5), Some(0)));
    assert_eq!((records[5].uploaded, records[5].downloaded), (Some(0), Some(0)));
}

#[test]
fn names_that_do_not_exist_are_no_records_but_refused_changes_are() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("audit.log");
    let node = standalone(&file).start();
    let mut session = node.login("ann", "secret");
    session.command("TYPE I", 200);
    for look in ["SIZE none", "MDTM none", "CWD none", "MLST none"] {
        session.command(look, 550);
    }
    session.command("MKD dir", 257);
    session.command("MKD dir", 550);
    session.command("RNFR none", 550);
    session.command("SITE CHMOD 600 none", 550);
    session.command("NOSUCH", 500);
    session.quit();
    let expected = [
        "login - 230",
        "mkdir - 257",
        "mkdir exists 550",
        "rename not_found 550",
        "chmod not_found 550",
        "session_end quit 0",
    ];
    assert_eq!(summary(&records(&file, expected.len())), expected);
}

#[test]
fn sighup_opens_the_file_again_and_the_last_records_are_written_before_the_node_ends() {
    let directory = tempfile::tempdir().unwrap();
    let (file, old) = (directory.path().join("audit.log"), directory.path().join("audit.log.1"));
    let mut node = standalone(&file).start();
    node.login("ann", "secret").command("MKD before", 257);
    records(&file, 2);
    fs::rename(&file, &old).unwrap();
    node.daemon.signal(Signal::SIGHUP);
    eventually("the new file", || file.exists().then_some(()));
    let mut session = node.login("ann", "secret");
    session.command("MKD after", 257);
    node.daemon.terminate();
    assert!(node.daemon.wait().success());
    let last = records(&file, 0).pop().expect("records in the new file");
    assert_eq!((last.event, last.reason.as_deref()), (AuditEvent::SessionEnd, Some("drain")));
    let numbers = records(&old, 0).into_iter().chain(records(&file, 0));
    let numbers = numbers.map(|record| record.id.rsplit('-').next().unwrap().parse::<u64>().unwrap());
    let numbers: Vec<_> = numbers.collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
}

#[test]
fn a_lost_record_shows_in_the_log_the_metric_and_the_readiness_and_the_node_serves_on() {
    let node = standalone(Path::new("/dev/full")).start();
    let mut session = node.login("ann", "secret");
    session.store("a", b"1");
    node.wait_for_metric("ftp_audit_records_lost_total{sink=\"file\"}", |lost| lost >= 2.0);
    let line = node.daemon.wait_for_message("records of the audit trail are lost", &[]);
    assert!(line.contains("No space left on device") && field(&line, "lost").is_some(), "{line}");
    let answer = http::get(node.admin, "/readyz").unwrap();
    let report: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(answer.status, 200, "{report}");
    let audit = &report["dependencies"]["audit"];
    assert_eq!((&audit["state"], &audit["required"]), (&json!("failed"), &json!(false)));
    assert_eq!(audit["setting"], "audit_log");
    node.wait_for_metric("ftp_dependency_up{dependency=\"audit\"}", |up| up == 0.0);
}

#[test]
fn a_node_does_not_start_without_its_audit_log() {
    let mut node = standalone(Path::new("/nonexistent/audit.log")).spawn();
    node.daemon.wait_for_line(|line| line.contains("audit_log = /nonexistent/audit.log"));
    assert!(!node.daemon.wait().success());
}

#[test]
fn standard_error_can_be_the_sink() {
    let node = Node::standalone().user("ann", "secret").setting("audit_log", "stderr").start();
    node.login("ann", "secret").quit();
    let line = node.daemon.wait_for_line(|line| line.starts_with('{') && line.contains("\"session_end\""));
    serde_json::from_str::<AuditRecord>(&line).unwrap();
}

/// A node in a cluster, whose authd gives the user the group `staff`.
fn in_cluster(set: impl Fn(NodeBuilder) -> NodeBuilder) -> (Node, Redis, StubAuthd) {
    let authd = StubAuthd::start(|request| {
        let permissions = json!({ "delete": false });
        Answer::account(&json!({
            "user": request["user"], "home": "/home", "groups": ["staff"], "permissions": permissions,
        }))
    });
    let builder = Node::standalone().in_cluster();
    let redis = Redis::start(builder.loopback().socket(1, 6379));
    let builder = builder
        .setting("authd_urls", authd.url())
        .setting("redis_url", redis.address)
        .setting("create_homes", "true");
    (set(builder).start(), redis, authd)
}

fn stream(redis: &Redis) -> Vec<AuditRecord> {
    let view = RegistryView::new(&RedisOptions::new(redis.address.to_string().parse().unwrap()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let found = runtime.block_on(view.audit(AuditRange::Newest, 1000)).unwrap();
    found.into_iter().rev().map(|(_, record)| record).collect()
}

#[test]
fn redis_has_the_records_of_a_node_without_further_settings() {
    let (node, redis, _authd) = in_cluster(|builder| builder);
    let mut session: Dialogue = node.login("anna", "x");
    session.command("MKD dir", 257);
    session.command("DELE dir", 550);
    session.quit();
    let records =
        eventually("the records in Redis", || Some(stream(&redis)).filter(|records| records.len() >= 4));
    let expected = ["login - 230", "mkdir - 257", "delete permission 550", "session_end quit 0"];
    assert_eq!(summary(&records), expected);
    let refused = &records[2];
    assert_eq!(refused.result, AuditResult::Failed);
    assert_eq!((refused.user.as_deref(), &*refused.groups), (Some("anna"), &["staff".to_owned()][..]));
    assert_eq!(refused.path.as_deref(), Some("/dir"));
}

#[test]
fn audit_records_0_keeps_records_out_of_redis() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("audit.log");
    let (node, redis, _authd) =
        in_cluster(|builder| builder.setting("audit_records", 0).setting("audit_log", file.display()));
    node.login("anna", "x").quit();
    records(&file, 2);
    assert!(stream(&redis).is_empty());
}
