//! A Redis that is out of memory: leases hold, nodes stay, and the state is visible.

use std::{io::Write, net::SocketAddr};

use cluster_tests::{cluster::Cluster, content::bytes, eventually, http, process::message_is};

/// Makes Redis refuse commands that may need memory.
fn fill(cluster: &Cluster) {
    let answer = cluster.redis().command("CONFIG SET maxmemory 1");
    assert_eq!(answer.as_deref(), Some("+OK"));
}

fn empty(cluster: &Cluster) {
    let answer = cluster.redis().command("CONFIG SET maxmemory 0");
    assert_eq!(answer.as_deref(), Some("+OK"));
}

/// The state and the last error of `registry_writes` in `/readyz`, and whether the daemon is ready.
fn writes(admin: SocketAddr) -> (String, String, bool) {
    let answer = http::get(admin, "/readyz").expect("the admin address answers");
    let report: serde_json::Value = serde_json::from_str(&answer.body).expect("the report is JSON");
    let found = &report["dependencies"]["registry_writes"];
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    (text(&found["state"]), text(&found["last_error"]["message"]), answer.status == 200)
}

fn since(cluster: &Cluster) -> Vec<String> {
    let nodes = cluster.authd().administer("GET", "/v1/nodes", None).json();
    let nodes = nodes.as_array().cloned().unwrap_or_default();
    nodes.iter().map(|node| format!("{} {}", node["name"], node["since"])).collect()
}

#[test]
fn out_of_memory_leases_exclude_writers_nodes_stay_and_the_state_is_shown() {
    let cluster = Cluster::builder().nodes(2).setting("node_lease", "2s").start();
    let admins = [cluster.node(0).admin, cluster.node(1).admin, cluster.authd().address];
    for admin in admins {
        eventually("writes to be accepted", || (writes(admin).0 == "ok").then_some(()));
    }
    let mut first = cluster.login_through(0);
    first.epsv();
    let mut upload = first.begin("STOR file");
    upload.write_all(b"first ").unwrap();
    let before = since(&cluster);
    assert_eq!(before.len(), 2);

    fill(&cluster);
    for (position, admin) in admins.into_iter().enumerate() {
        let failed = eventually("the state to be shown", || {
            Some(writes(admin)).filter(|(state, ..)| state == "failed")
        });
        assert!(failed.1.contains("OOM"), "{failed:?}");
        // It is no reason to send clients to other nodes: these have the same Redis.
        assert!(failed.2, "daemon {position} is not ready");
    }
    // For several leases, Redis keeps the nodes and the lease of the upload, and takes new ones.
    let mut second = cluster.login_through(1);
    for _ in 0..5 {
        let node = cluster.node(0);
        let renewals = node.metric("ftp_redis_seconds_count{call=\"pipeline\"}").unwrap_or(0.0);
        node.wait_for_metric("ftp_redis_seconds_count{call=\"pipeline\"}", |now| now > renewals + 8.0);
        second.epsv();
        second.command("STOR file", 450);
        assert_eq!(since(&cluster), before);
    }
    second.store("other", &bytes(1, 50_000));
    let refused = serde_json::json!({"name": "new", "password": "secret"});
    let answer = cluster.authd().administer("POST", "/v1/users", Some(&refused));
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(answer.body.contains("refuses writes"), "{}", answer.body);
    upload.write_all(b"last").unwrap();
    drop(upload);
    first.expect(226);
    assert_eq!(second.retrieve("file"), b"first last");
    let node = cluster.node(0);
    assert_eq!(node.metric("ftp_registry_writable"), Some(0.0));
    assert_eq!(node.metric("ftp_registry_degraded_total").unwrap_or(0.0), 0.0);

    empty(&cluster);
    for admin in admins {
        eventually("writes to be accepted again", || (writes(admin).0 == "ok").then_some(()));
    }
    let created = cluster.authd().administer("POST", "/v1/users", Some(&refused));
    assert_eq!(created.status, 201, "{}", created.body);
    cluster.node(0).wait_for_metric("ftp_registry_writable", |writable| writable == 1.0);
    // One line for each change, however many requests were refused.
    for position in 0..2 {
        let lines = cluster.node(position).daemon.lines();
        let count = |message| lines.iter().filter(|line| message_is(line, message)).count();
        assert_eq!(
            (count("Redis refuses writes"), count("Redis accepts writes again")),
            (1, 1),
            "{lines:#?}"
        );
    }
}

#[test]
fn out_of_memory_a_user_can_still_be_removed_and_loses_the_session() {
    let cluster = Cluster::builder().nodes(1).setting("node_lease", "2s").start();
    let created = serde_json::json!({"name": "leaver", "password": "secret"});
    assert_eq!(cluster.authd().administer("POST", "/v1/users", Some(&created)).status, 201);
    let mut session = cluster_tests::dialogue::Dialogue::connect(cluster.address());
    session.login("leaver", "secret");
    fill(&cluster);
    let answer = cluster.authd().administer("DELETE", "/v1/users/leaver", None);
    assert_eq!(answer.status, 204, "{}", answer.body);
    session.expect_closed();
    let gone = cluster.authd().administer("GET", "/v1/users/leaver", None);
    assert_eq!(gone.status, 404, "{}", gone.body);
}

#[test]
fn a_master_without_its_replicas_refuses_writes_and_sessions_go_on() {
    let cluster = Cluster::builder().nodes(1).setting("node_lease", "2s").start();
    let mut session = cluster.login();
    let answer = cluster.redis().command("CONFIG SET min-replicas-to-write 1");
    assert_eq!(answer.as_deref(), Some("+OK"));
    let node = cluster.node(0);
    for admin in [node.admin, cluster.authd().address] {
        let failed = eventually("the state to be shown", || {
            Some(writes(admin)).filter(|(state, ..)| state == "failed")
        });
        assert!(failed.1.contains("NOREPLICAS"), "{failed:?}");
    }
    // As if Redis were away: the locks of the storage protect the upload.
    session.store("file", b"whole");
    assert_eq!(session.retrieve("file"), b"whole");
    let answer = cluster.redis().command("CONFIG SET min-replicas-to-write 0");
    assert_eq!(answer.as_deref(), Some("+OK"));
    eventually("the node to be in the registry again", || (since(&cluster).len() == 1).then_some(()));
    eventually("writes to be accepted again", || (writes(node.admin).0 == "ok").then_some(()));
}
