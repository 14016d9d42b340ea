//! Node names are unique: a second process with the same name exits, and the first keeps serving.

use std::{
    io::Write,
    net::Shutdown,
    time::{Duration, Instant},
};

use cluster_tests::{
    content::bytes,
    http,
    node::{Node, NodeBuilder},
    process::message_is,
    redis::Redis,
    stub_authd::{Answer, StubAuthd},
};
use serde_json::json;

/// A cluster of one node with its Redis, and a stub authd that accepts every login.
fn node() -> (Redis, StubAuthd, NodeBuilder) {
    let authd = StubAuthd::start(|request| Answer::account(&json!({ "user": request["user"], "home": "/" })));
    let builder = Node::standalone().in_cluster();
    let redis = Redis::start(builder.loopback().socket(1, 6379));
    let builder = builder.setting("authd_urls", authd.url()).setting("redis_url", redis.address);
    (redis, authd, builder)
}

/// The same node with other addresses, as if on another host.
fn elsewhere(builder: NodeBuilder) -> NodeBuilder {
    let (listen, admin) = (builder.loopback().address(2), builder.loopback().socket(2, 9121));
    builder.listen(listen).setting("admin_listen", admin)
}

#[test]
fn a_second_process_with_the_same_name_exits_and_the_first_keeps_serving() {
    let (_redis, _authd, builder) = node();
    let mut first = builder.setting("node_lease", "1s").start();
    let mut session = first.login("anna", "x");
    session.command("TYPE I", 200);
    let content = bytes(1, 100_000);
    let mut upload = session.begin("STOR file");
    upload.write_all(&content[..50_000]).unwrap();

    let mut second = elsewhere(first.builder()).spawn();
    let status = second.daemon.wait();
    // Not 78: a restart may succeed once the first process has ended.
    assert_eq!(status.code(), Some(1));
    let lines = second.daemon.lines();
    assert!(lines.iter().any(|line| line.contains("waiting for 1s (node_lease)")), "{lines:#?}");
    let error = lines.iter().find(|line| line.contains(" ERROR ")).unwrap();
    let host = nix::unistd::gethostname().unwrap().into_string().unwrap();
    for part in ["standalone", &host, &first.address.to_string(), "started 2", "another node_name"] {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
    assert!(!lines.iter().any(|line| message_is(line, "ready")), "{lines:#?}");

    upload.write_all(&content[50_000..]).unwrap();
    upload.shutdown(Shutdown::Write).unwrap();
    session.expect(226);
    assert_eq!(first.login("anna", "x").retrieve("file"), content);
    assert!(first.daemon.is_running());
    let lines = first.daemon.lines();
    assert!(!lines.iter().any(|line| line.contains(" ERROR ")), "{lines:#?}");
}

#[test]
fn after_a_crash_a_node_restarts_at_once_at_the_same_address() {
    let (_redis, _authd, builder) = node();
    let mut node = builder.setting("node_lease", "10m").start();
    let mut session = node.login("anna", "x");
    session.store("file", b"content");
    node.daemon.kill();
    let begun = Instant::now();
    let next = node.builder().start();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(next.login("anna", "x").retrieve("file"), b"content");
}

#[test]
fn after_a_crash_a_node_starts_at_another_address_once_the_node_lease_expires() {
    let (_redis, _authd, builder) = node();
    let mut node = builder.setting("node_lease", "2s").start();
    node.daemon.kill();
    let next = elsewhere(node.builder()).start();
    next.login("anna", "x").store("file", b"content");
}

#[test]
fn a_node_that_waits_for_its_name_refuses_connections_and_obeys_sigterm() {
    let (_redis, _authd, builder) = node();
    let first = builder.setting("node_lease", "10m").start();
    let mut second = elsewhere(first.builder()).spawn();
    second.daemon.wait_for_line(|line| line.contains("(node_lease)"));
    let readiness = http::get(second.admin, "/readyz").unwrap();
    assert_eq!((readiness.status, &readiness.json()["state"]), (503, &json!("starting")), "{readiness:?}");
    let refused = std::net::TcpStream::connect(second.address).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    second.daemon.terminate();
    assert_eq!(second.daemon.wait().code(), Some(0));
}
