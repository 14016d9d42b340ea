//! The node's HTTP connections to authd, and the responses that it accepts.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use cluster_tests::{
    node::{Node, NodeBuilder},
    redis::Redis,
    stub_authd::{Answer, StubAuthd},
};
use serde_json::json;

/// A complete response. The server then closes the connection without announcing it.
const THEN_CLOSED: Answer =
    Answer::Bytes(b"HTTP/1.1 200 OK\r\ncontent-length: 26\r\n\r\n{\"user\":\"anna\",\"home\":\"/\"}");

fn node(authds: &str) -> (Redis, NodeBuilder) {
    let builder = Node::standalone().in_cluster();
    let redis = Redis::start(builder.loopback().socket(1, 6379));
    let builder = builder.setting("authd_urls", authds).setting("redis_url", redis.address);
    (redis, builder)
}

/// A stub authd that gives `answers` in this order.
fn in_turn(answers: Vec<Answer>) -> StubAuthd {
    let (answers, next) = (Mutex::new(answers), AtomicUsize::new(0));
    StubAuthd::start(move |_| answers.lock().unwrap()[next.fetch_add(1, Ordering::Relaxed)].clone())
}

fn kept() -> Answer {
    Answer::Kept(json!({ "user": "anna", "home": "/" }).to_string())
}

fn refused_login(node: &Node) {
    let mut session = node.connect();
    session.command("USER anna", 331);
    session.command("PASS very-secret", 421);
    assert_eq!(session.expect_closed(), []);
}

#[test]
fn a_connection_is_reused_for_consecutive_logins() {
    let authd = in_turn(vec![kept(), kept(), kept()]);
    let (_redis, builder) = node(&authd.url());
    let node = builder.start();
    for _ in 0..3 {
        node.login("anna", "x");
    }
    assert_eq!((authd.requests().len(), authd.connections()), (3, 1));
}

#[test]
fn an_idle_connection_that_authd_closed_is_replaced() {
    let authd = in_turn(vec![THEN_CLOSED, THEN_CLOSED, THEN_CLOSED]);
    let (_redis, builder) = node(&authd.url());
    let node = builder.start();
    for _ in 0..3 {
        node.login("anna", "x");
    }
    assert_eq!((authd.requests().len(), authd.connections()), (3, 3));
}

#[test]
fn a_request_without_a_response_on_a_kept_connection_is_repeated_once_on_a_new_one() {
    let nothing = Answer::Bytes(b"");
    let authd = in_turn(vec![kept(), nothing.clone(), kept(), nothing.clone(), nothing]);
    let (_redis, builder) = node(&authd.url());
    let node = builder.start();
    node.login("anna", "x");
    node.login("anna", "x");
    assert_eq!((authd.requests().len(), authd.connections()), (3, 2));
    refused_login(&node);
    assert_eq!((authd.requests().len(), authd.connections()), (5, 3));
    let line = node.daemon.wait_for_message("login failed", &[("user", "anna")]);
    assert!(line.contains(&authd.url()) && line.contains("no response: "), "{line}");
}

#[test]
fn a_request_with_an_invalid_response_is_not_repeated() {
    let authd = in_turn(vec![kept(), Answer::Bytes(b"SSH-2.0-not-http\r\n")]);
    let (_redis, builder) = node(&authd.url());
    let node = builder.start();
    node.login("anna", "x");
    refused_login(&node);
    assert_eq!(authd.requests().len(), 2);
}

#[test]
fn a_large_response_is_accepted_and_an_endless_one_refused() {
    let account = |folders: usize| {
        let path = |i: usize| format!("/{i}/{}", "a".repeat(1000));
        let folders: Vec<_> = (0..folders).map(|i| json!({ "path": path(i), "target": path(i) })).collect();
        json!({ "user": "anna", "home": "/", "folders": folders })
    };
    let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "a".repeat(1 << 20));
    let chunks = "10000\r\n".to_owned() + &" ".repeat(1 << 16) + "\r\n";
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_owned() + &chunks.repeat(32);
    let authd = in_turn(vec![
        Answer::account(&account(500)),
        Answer::account(&account(550)),
        Answer::Bytes(endless.leak().as_bytes()),
        Answer::Bytes(chunked.leak().as_bytes()),
        kept(),
    ]);
    let (_redis, builder) = node(&authd.url());
    let node = builder.start();
    node.login("anna", "x");
    for reason in ["larger than 1048576 bytes", "no response: ", "larger than 1048576 bytes"] {
        let before = node.daemon.lines().len();
        refused_login(&node);
        let line = node.daemon.wait_for_line_after(before, |line| line.contains("login failed"));
        assert!(line.contains(reason), "{line}");
    }
    node.login("anna", "x");
}

#[test]
fn a_host_name_a_path_prefix_and_chunked_responses_are_supported() {
    let authd = in_turn(vec![Answer::Bytes(
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
              1a\r\n{\"user\":\"anna\",\"home\":\"/\"}\r\n0\r\n\r\n",
    )]);
    let (_redis, builder) = node(&format!("http://localhost:{}/users/", authd.address.port()));
    builder.start().login("anna", "x");
}

#[test]
fn the_log_shows_the_failure_of_each_authd() {
    let (_redis, builder) = node("placeholder");
    let away = builder.loopback().socket(2, 5160);
    let silent = StubAuthd::start(|_| Answer::Silence);
    let builder = builder.setting("authd_urls", format!("http://{away},{}", silent.url()));
    let node = builder.setting("authd_timeout", "500ms").start();
    refused_login(&node);
    let line = node.daemon.wait_for_message("login failed", &[("user", "anna")]);
    for part in [
        format!("http://{away}: cannot connect: Connection refused"),
        format!("{}: no answer in time", silent.url()),
    ] {
        assert!(line.contains(&part), "{line}");
    }
}

#[test]
fn two_slow_authds_are_asked_beside_each_other_and_the_first_answer_counts() {
    // Each needs more than its half of `authd_timeout`.
    let slow = || {
        StubAuthd::start(|_| {
            thread::sleep(Duration::from_secs(3));
            kept()
        })
    };
    let (first, second) = (slow(), slow());
    let (_redis, builder) = node(&format!("{},{}", first.url(), second.url()));
    let node = builder.setting("authd_timeout", "5s").start();
    node.login("anna", "x");
    assert_eq!(first.requests().len(), 1);
}
