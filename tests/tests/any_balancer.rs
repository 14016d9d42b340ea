//! Fifty sessions that transfer without a pause, behind balancers that know the nodes and nothing of
//! passive ports.

// The tests print how much the sessions have done.
#![allow(clippy::print_stderr)]

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use cluster_tests::{
    cluster::{Cluster, ClusterBuilder},
    doors::DoorKind,
    load::{Load, LoadBuilder},
    node::metric_sum,
    tls::Authority,
};

const SESSIONS: usize = 50;
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_secs(10);

/// Three nodes that require resumed TLS sessions on data connections. Behind HAProxy all clients have one
/// address, so each data port serves one session at a time: each node needs as many ports as it has
/// sessions.
fn cluster(authority: &Authority) -> ClusterBuilder {
    Cluster::builder()
        .passive_ports(300)
        .certificate(&authority.sign("localhost"))
        .setting("tls_data_reuse", "required")
        // All sessions log in at once, perhaps on a busy machine.
        .setting("authd_timeout", "30s")
}

fn load(cluster: &Cluster, authority: &Arc<Authority>) -> Load {
    let pause = Duration::from_millis(100);
    let (control, without_empty_files) = (cluster.address(), cluster.has_haproxy());
    LoadBuilder { control, sessions: SESSIONS, first: 0, without_empty_files, pause }.start(authority)
}

/// Lets the load run for this long.
fn run_for(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        thread::sleep(left);
    }
}

/// Ends the load. Every operation must have succeeded. Returns their number.
fn finish(cluster: &Cluster, load: Load) -> usize {
    let report = load.finish(&cluster.storage().join("demo"));
    eprintln!("{} operations, {} failures", report.operations, report.failures.len());
    report.expect_no_failure();
    assert!(report.operations > 2 * SESSIONS, "{}", report.operations);
    report.operations
}

/// Number of connections that nodes have relayed to other nodes.
fn relayed_by_nodes(cluster: &Cluster) -> f64 {
    (0..cluster.size()).map(|node| metric_sum(cluster.node(node).admin, "ftp_relayed_total")).sum()
}

#[test]
fn fifty_sessions_transfer_through_haproxy() {
    let authority = Arc::new(Authority::new());
    let cluster = cluster(&authority).leased().doors(DoorKind::HaProxy).start();
    let load = load(&cluster, &authority);
    run_for(LONG);
    let operations = finish(&cluster, load);
    // Two of three connections come to a node that does not own their port.
    let relayed = relayed_by_nodes(&cluster);
    assert!(relayed > operations as f64 / 4.0, "{relayed} relayed, {operations} operations");
}

#[test]
fn fifty_sessions_transfer_through_haproxy_that_sends_a_proxy_header() {
    let authority = Arc::new(Authority::new());
    let cluster = cluster(&authority).leased().doors(DoorKind::HaProxyWithHeader).start();
    let load = load(&cluster, &authority);
    run_for(SHORT);
    finish(&cluster, load);
    assert!(relayed_by_nodes(&cluster) > 100.0);
}

#[test]
fn fifty_sessions_transfer_through_nginx_and_the_relay_and_nodes_relay_nothing() {
    let authority = Arc::new(Authority::new());
    let cluster = cluster(&authority).leased().start();
    let load = load(&cluster, &authority);
    run_for(LONG);
    finish(&cluster, load);
    assert_eq!(relayed_by_nodes(&cluster), 0.0);
}

#[test]
fn fifty_sessions_transfer_through_nginx() {
    let authority = Arc::new(Authority::new());
    let cluster = cluster(&authority).doors(DoorKind::Nginx).start();
    let load = load(&cluster, &authority);
    run_for(SHORT);
    finish(&cluster, load);
}

#[test]
fn no_operation_fails_while_redis_is_emptied_and_while_it_is_away_for_30_s() {
    let authority = Arc::new(Authority::new());
    let cluster = cluster(&authority).leased().doors(DoorKind::HaProxy).setting("node_lease", "3s");
    let mut cluster = cluster.start();
    let load = load(&cluster, &authority);
    run_for(Duration::from_secs(3));
    cluster.redis().command("FLUSHALL").unwrap();
    run_for(Duration::from_secs(7));
    cluster.kill_redis();
    run_for(Duration::from_secs(30));
    cluster.start_redis();
    run_for(Duration::from_secs(7));
    finish(&cluster, load);
    assert!(relayed_by_nodes(&cluster) > 100.0);
}
