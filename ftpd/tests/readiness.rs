//! `/readyz`: the state of each dependency, and the dependencies that make the node unready.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use cluster_tests::{
    eventually,
    http::{self, HttpAnswer},
    node::{Node, NodeBuilder},
    process::message_is,
    redis::Redis,
    stub_authd::{Answer, StubAuthd},
};
use serde_json::{Value, json};

fn account(request: &Value) -> Answer {
    Answer::account(&json!({ "user": request["user"], "home": "/" }))
}

/// A cluster of one node that probes its dependencies at short intervals.
fn node(authd: &str) -> (Redis, NodeBuilder) {
    let builder = Node::standalone().in_cluster();
    let redis = Redis::start(builder.loopback().socket(1, 6379));
    let builder = builder
        .setting("authd_urls", authd)
        .setting("redis_url", redis.address)
        .setting("node_lease", "1s")
        .setting("readiness_interval", "100ms");
    (redis, builder)
}

fn readyz(node: &Node) -> HttpAnswer {
    http::get(node.admin, "/readyz").unwrap()
}

/// Waits until a dependency is in the given state. Returns the response of `/readyz`.
fn wait_for(node: &Node, dependency: &str, state: &str) -> HttpAnswer {
    eventually(&format!("{dependency} to be {state}"), || {
        let answer = readyz(node);
        (answer.json()["dependencies"][dependency]["state"] == state).then_some(answer)
    })
}

#[test]
fn readyz_shows_every_dependency_as_json() {
    let authd = StubAuthd::start(account);
    let (_redis, builder) = node(&authd.url());
    let node = builder.start();
    let answer = readyz(&node);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let report = answer.json();
    assert_eq!((&report["ready"], &report["state"]), (&json!(true), &json!("ready")));
    for (name, setting, required) in [
        ("storage", "root", true),
        ("registry", "redis_url", false),
        ("authd", "authd_urls", true),
        ("listeners", "listen", true),
        ("file_operations", "max_file_operations", true),
    ] {
        let dependency = &report["dependencies"][name];
        assert_eq!(dependency["state"], "ok", "{name}: {report}");
        assert_eq!((&dependency["setting"], &dependency["required"]), (&json!(setting), &json!(required)));
        assert!(dependency["since"].as_str().unwrap().ends_with('Z'), "{report}");
        let metric = format!("ftp_dependency_up{{dependency=\"{name}\"}}");
        node.wait_for_metric(&metric, |up| up == 1.0);
    }
    let head = http::request(node.admin, "HEAD", "/readyz", None, None).unwrap();
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert!(authd.requests().is_empty(), "no probe is a login");
}

#[test]
fn a_standalone_node_depends_only_on_its_storage() {
    let node = Node::standalone().setting("readiness_interval", "100ms").start();
    let report = readyz(&node).json();
    let names: Vec<_> = report["dependencies"].as_object().unwrap().keys().collect();
    assert_eq!(names, ["file_operations", "listeners", "storage"]);
    assert!(!node.daemon.lines().iter().any(|line| message_is(line, "not ready")), "ready from the start");
}

#[test]
fn an_unusable_storage_makes_the_node_unready_until_it_recovers() {
    let authd = StubAuthd::start(account);
    let (_redis, builder) = node(&authd.url());
    let node = builder.start();
    let mut session = node.login("anna", "x");
    let hidden = node.root().with_extension("hidden");
    fs::rename(node.root(), &hidden).unwrap();
    let answer = wait_for(&node, "storage", "failed");
    assert_eq!(answer.status, 503, "{answer:?}");
    let storage = &answer.json()["dependencies"]["storage"];
    assert!(storage["last_error"]["message"].as_str().unwrap().contains("os error 2"), "{storage}");
    assert_eq!(storage["setting"], "root");
    node.wait_for_metric("ftp_dependency_up{dependency=\"storage\"}", |up| up == 0.0);
    let line = node.daemon.wait_for_message("not ready", &[]);
    assert!(line.contains("dependencies=storage"), "{line}");
    fs::rename(&hidden, node.root()).unwrap();
    assert_eq!(wait_for(&node, "storage", "ok").status, 200);
    node.daemon.wait_for_message("ready again", &[]);
    session.store("file", b"content");
}

#[test]
fn a_refused_node_token_makes_the_node_unready_and_names_the_setting() {
    let right = Arc::new(AtomicUsize::new(0));
    let shared = Arc::clone(&right);
    let refusal = || Answer::refusal("401 Unauthorized", "unauthorized");
    let authd = StubAuthd::start_with_probe(
        move |_| refusal(),
        move || match shared.load(Ordering::SeqCst) {
            0 => refusal(),
            _ => Answer::Http("204 No Content", String::new(), String::new()),
        },
    );
    let (_redis, builder) = node(&authd.url());
    let node = builder.start();
    let answer = readyz(&node);
    let authd_state = &answer.json()["dependencies"]["authd"];
    assert_eq!((answer.status, &authd_state["state"]), (503, &json!("misconfigured")), "{answer:?}");
    assert_eq!(authd_state["setting"], "authd_token_file");
    let line =
        node.daemon.wait_for_message("no authd is able to decide logins", &[("setting", "authd_token_file")]);
    assert!(line.contains(" ERROR ") && line.contains("differs from authd's node_token_file"), "{line}");

    let mut session = node.connect();
    session.command("USER anna", 331);
    session.command("PASS x", 421);
    let line = node.daemon.wait_for_message("login failed", &[("reason", "unavailable")]);
    let reason = "it refuses this node's token (401): authd_token_file differs from authd's node_token_file";
    assert!(line.contains("no authd decided the login") && line.contains(reason), "{line}");

    let tolerant = node.builder().setting("readiness_requires", "storage");
    right.store(1, Ordering::SeqCst);
    assert_eq!(wait_for(&node, "authd", "ok").status, 200);
    drop(node);
    right.store(0, Ordering::SeqCst);
    let node = tolerant.start();
    assert_eq!(wait_for(&node, "authd", "misconfigured").status, 200);
}

#[test]
fn without_a_reachable_authd_the_node_is_unready_until_one_answers() {
    let away = cluster_tests::loopback::Loopback::reserve();
    let address = away.socket(7, 5160);
    let (_redis, builder) = node(&format!("http://{address}"));
    let node = builder.start();
    let answer = readyz(&node);
    let authd = &answer.json()["dependencies"]["authd"];
    assert_eq!((answer.status, &authd["state"]), (503, &json!("failed")), "{answer:?}");
    assert!(authd["last_error"]["message"].as_str().unwrap().contains(&address.to_string()), "{authd}");
    let authd = cluster_tests::authd::AuthdBuilder::new(address).setting("demo", true).start();
    // This authd expects another token.
    let answer = wait_for(&node, "authd", "misconfigured");
    assert_eq!(answer.status, 503);
    drop(authd);
    let authd = StubAuthd::start(account);
    let both = node.builder().setting("authd_urls", format!("http://{address},{}", authd.url()));
    drop(node);
    assert_eq!(readyz(&both.start()).status, 200);
}

#[test]
fn a_wrong_redis_password_is_a_misconfiguration_and_makes_the_node_unready() {
    let authd = StubAuthd::start(account);
    let (redis, builder) = node(&authd.url());
    assert_eq!(redis.command("CONFIG SET requirepass sesame").as_deref(), Some("+OK"));
    let file = builder.root().join("redis-password");
    fs::write(&file, "wrong").unwrap();
    let with_wrong = builder.clone().setting("redis_password_file", file.display());
    for (builder, expected) in
        [(builder, "Redis wants a password"), (with_wrong, "Redis refuses the password")]
    {
        let node = builder.start();
        let answer = readyz(&node);
        let registry = &answer.json()["dependencies"]["registry"];
        assert_eq!((answer.status, &registry["state"]), (503, &json!("misconfigured")), "{answer:?}");
        assert_eq!(registry["setting"], "redis_password_file");
        let line = node.daemon.wait_for_message(expected, &[("setting", "redis_password_file")]);
        assert!(line.contains(" ERROR "), "{line}");
        let lines = node.daemon.lines();
        assert!(!lines.iter().any(|line| message_is(line, "Redis is away")), "{lines:#?}");
        // With the policy `admit`, sessions continue, and new ones can start.
        node.login("anna", "x").command("NOOP", 200);
    }
}

#[test]
fn an_unreachable_redis_makes_the_node_unready_only_with_the_policy_refuse() {
    let authd = StubAuthd::start(account);
    for (policy, status) in [("admit", 200), ("refuse", 503)] {
        let (redis, builder) = node(&authd.url());
        let node = builder.setting("registry_away", policy).start();
        assert_eq!(readyz(&node).status, 200);
        let address = redis.address;
        drop(redis);
        let answer = wait_for(&node, "registry", "failed");
        assert_eq!(answer.status, status, "{answer:?}");
        let _redis = Redis::start(address);
        assert_eq!(wait_for(&node, "registry", "ok").status, 200);
    }
}
