//! Writes that a replica of Redis must confirm, and a Redis in cluster mode.

use cluster_tests::{
    cluster::Cluster, content::bytes, dialogue::Dialogue, eventually, loopback::Loopback, redis::Redis,
    redis_group::RedisGroup,
};
use nix::sys::signal::Signal;
use serde_json::json;

fn create(cluster: &Cluster, name: &str) -> (u16, String) {
    let user = json!({"name": name, "password": "secret"});
    let answer = cluster.authd().administer("POST", "/v1/users", Some(&user));
    (answer.status, answer.body)
}

#[test]
fn a_change_of_users_without_the_confirmation_of_a_replica_gets_503_and_is_stored() {
    let group = RedisGroup::start();
    let cluster =
        Cluster::builder().nodes(1).registry(group.settings()).authd_setting("redis_replicas", 1).start();
    assert_eq!(create(&cluster, "confirmed").0, 201);

    group.server(1).daemon.signal(Signal::SIGSTOP);
    let (status, body) = create(&cluster, "unconfirmed");
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("is stored in Redis, but 0 of 1 replicas"), "{body}");
    assert_eq!(cluster.authd().administer("GET", "/v1/users/unconfirmed", None).status, 200);
    let removed = cluster.authd().administer("DELETE", "/v1/users/confirmed", None);
    assert_eq!(removed.status, 503, "{}", removed.body);
    assert_eq!(cluster.authd().administer("GET", "/v1/users/confirmed", None).status, 404);
    // Other requests do not wait for the replica.
    let mut session = Dialogue::connect(cluster.address());
    session.login("unconfirmed", "secret");

    group.server(1).daemon.signal(Signal::SIGCONT);
    eventually("the replica to confirm again", || {
        let user = json!({"enabled": true});
        let answer = cluster.authd().administer("PATCH", "/v1/users/unconfirmed", Some(&user));
        (answer.status == 200).then_some(())
    });
    let stored = group.server(1).response("HKEYS ftp:users").expect("the replica answers");
    assert!(stored.contains("unconfirmed") && !stored.contains("\r\nconfirmed"), "{stored}");
}

#[test]
fn a_write_lease_without_the_confirmation_of_a_replica_needs_locks_on_all_nodes() {
    let group = RedisGroup::start();
    let cluster = Cluster::builder()
        .nodes(1)
        .registry(group.settings())
        .setting("redis_replicas", 1)
        .setting("storage_locks", "off")
        .start();
    let mut session = cluster.login();
    session.store("file", b"confirmed");

    group.server(1).daemon.signal(Signal::SIGSTOP);
    session.epsv();
    session.command("STOR file", 450);
    let node = cluster.node(0);
    node.daemon
        .wait_for_line(|line| line.contains("fewer replicas of Redis answer than redis_replicas asks"));

    group.server(1).daemon.signal(Signal::SIGCONT);
    eventually("an upload to be possible again", || {
        session.epsv();
        (session.probe("STOR file") < 400).then_some(())
    });
}

#[test]
fn a_redis_in_cluster_mode_serves_a_cluster_whose_prefix_has_a_hash_tag() {
    let loopback = Loopback::reserve();
    let redis = Redis::start_with(loopback.socket(1, 6379), &["--cluster-enabled", "yes"]);
    assert_eq!(redis.command("CLUSTER ADDSLOTSRANGE 0 16383").as_deref(), Some("+OK"));
    eventually("the slots to be served", || {
        redis.response("CLUSTER INFO").filter(|info| info.contains("cluster_state:ok"))
    });
    let settings = [("redis_url", redis.address.to_string()), ("redis_prefix", "{ftp}:".to_owned())];
    let settings = settings.map(|(key, value)| (key.to_owned(), value)).to_vec();
    let cluster = Cluster::builder().nodes(2).leased().registry(settings).start();
    let user = json!({
        "name": "anna", "password": "secret",
        "quota": {"bytes": 1_000_000}, "bandwidth": {"upload": 50_000_000},
    });
    let created = cluster.authd().administer("POST", "/v1/users", Some(&user));
    assert_eq!(created.status, 201, "{}", created.body);
    let content = bytes(1, 300_000);
    let mut session = Dialogue::connect(cluster.address());
    session.login("anna", "secret");
    session.store("file", &content);
    assert_eq!(session.retrieve("file"), content);
    session.command("RNFR file", 350);
    session.command("RNTO renamed", 250);
    let mut wrong = Dialogue::connect(cluster.address());
    wrong.command("USER anna", 331);
    wrong.command("PASS wrong", 530);
    let id = cluster.authd().administer("GET", "/v1/sessions", None).json()[0]["id"].clone();
    let path = format!("/v1/sessions/{}", id.as_str().expect("a session has an id"));
    // 204 if the node answers in time, otherwise 202.
    assert!(matches!(cluster.authd().administer("DELETE", &path, None).status, 202 | 204));
    session.expect_closed();
    assert_eq!(cluster.authd().administer("DELETE", "/v1/users/anna", None).status, 204);
    for daemon in
        [&cluster.node(0).daemon, &cluster.node(1).daemon, &cluster.authd().daemon, &cluster.relay().daemon]
    {
        let lines = daemon.lines();
        assert!(!lines.iter().any(|line| line.contains("CROSSSLOT") || line.contains("slot")), "{lines:#?}");
    }
}
