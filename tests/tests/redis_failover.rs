//! Failover: sentinels make a replica the master, and the nodes, authd and the relay follow.

// A test tells the measured time.
#![allow(clippy::print_stderr)]

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use cluster_tests::{
    cluster::Cluster, content::bytes, dialogue::Dialogue, eventually, load::LoadBuilder, redis::Redis,
    redis_group::RedisGroup, tls::Authority,
};

const NODES: usize = 3;

/// The bound for what follows the verdict of the sentinels within a second on an idle machine.
const BUSY: Duration = Duration::from_secs(10);

fn cluster(group: &RedisGroup, authority: &Authority) -> Cluster {
    let files = authority.sign("localhost");
    let builder = Cluster::builder().nodes(NODES).certificate(&files).setting("node_lease", "4s");
    builder.registry(group.settings()).start()
}

fn load(cluster: &Cluster) -> LoadBuilder {
    LoadBuilder {
        control: cluster.address(),
        sessions: 10,
        first: 0,
        without_empty_files: false,
        pause: Duration::from_millis(20),
    }
}

/// Waits until all parts use the server at `position`, and returns the time since `verdict`.
fn followed(cluster: &Cluster, group: &RedisGroup, position: usize, verdict: Instant) -> Duration {
    let wanted = [("redis", group.shown(position))];
    let wanted: Vec<(&str, &str)> = wanted.iter().map(|(key, value)| (*key, value.as_str())).collect();
    for node in 0..NODES {
        cluster.node(node).daemon.wait_for_message("connected to Redis", &wanted);
    }
    cluster.authd().daemon.wait_for_message("connected to Redis", &wanted);
    cluster.relay().daemon.wait_for_message("connected to Redis", &wanted);
    verdict.elapsed()
}

fn listed_nodes(cluster: &Cluster) -> usize {
    let answer = cluster.authd().administer("GET", "/v1/nodes", None);
    let nodes: serde_json::Value = serde_json::from_str(&answer.body).unwrap_or_default();
    nodes.as_array().map_or(0, Vec::len)
}

/// A login that the registry of the whole cluster has, not only its node.
fn login_is_registered(cluster: &Cluster) {
    let mut session = Dialogue::connect(cluster.address());
    session.login("test", "secret");
    eventually("the session to be in the registry", || {
        let sessions = cluster.authd().administer("GET", "/v1/sessions?user=test", None);
        sessions.body.contains("\"test\"").then_some(())
    });
    session.quit();
}

/// Works under load while `fail` makes the sentinels choose the replica.
fn survives(mut group: RedisGroup, authority: &Arc<Authority>, fail: impl FnOnce(&mut RedisGroup)) {
    let cluster = cluster(&group, authority);
    let created = serde_json::json!({"name": "made-before", "password": "secret"});
    assert_eq!(cluster.authd().administer("POST", "/v1/users", Some(&created)).status, 201);
    let load = load(&cluster).start(authority);
    eventually("the load to begin", || (load.operations() > 50).then_some(()));
    let mut old = cluster.login();

    fail(&mut group);
    group.wait_for_master(1);
    let time = followed(&cluster, &group, 1, Instant::now());
    eprintln!("all parts used the new master {time:?} after the sentinels' verdict");
    assert!(time < BUSY, "{time:?} from the sentinels' verdict until all parts used the new master");
    eventually("all nodes to be in the registry", || (listed_nodes(&cluster) == NODES).then_some(()));
    login_is_registered(&cluster);
    assert_eq!(cluster.authd().administer("GET", "/v1/users/made-before", None).status, 200);

    // The session from before the failover is the same one, and uploads are exclusive again.
    let content = bytes(3, 400_000);
    old.store("after", &content);
    assert_eq!(old.retrieve("after"), content);
    old.epsv();
    let mut upload = old.begin("STOR exclusive");
    let mut second = cluster.login();
    second.epsv();
    second.command("STOR exclusive", 450);
    std::io::Write::write_all(&mut upload, b"whole").unwrap();
    drop(upload);
    old.expect(226);
    assert_eq!(fs::read(cluster.storage().join("demo/exclusive")).unwrap(), b"whole");

    let so_far = load.operations();
    eventually("the load to go on", || (load.operations() > so_far + 50).then_some(()));
    // Compares each file that was confirmed.
    load.finish(&cluster.storage().join("demo")).expect_no_failure();
}

#[test]
fn after_the_death_of_the_master_sessions_and_uploads_go_on_and_logins_are_registered() {
    survives(RedisGroup::start(), &Arc::new(Authority::new()), |group| group.kill(0));
}

#[test]
fn a_failover_that_an_administrator_orders_loses_nothing() {
    survives(RedisGroup::start(), &Arc::new(Authority::new()), |group| group.fail_over());
}

#[test]
fn sentinels_and_servers_with_tls_and_passwords_fail_over() {
    if !Redis::has_tls() {
        return;
    }
    let authority = Arc::new(Authority::new());
    survives(RedisGroup::encrypted(&authority), &authority, |group| group.kill(0));
}
