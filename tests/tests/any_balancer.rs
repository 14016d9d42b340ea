//! Fifty sessions that transfer without a pause, behind balancers that know the nodes and nothing of passive ports.

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
    tls::Authority,
};

const SESSIONS: usize = 50;

/// Three nodes that require resumed TLS sessions on data connections. Behind HAProxy all clients have one address,
/// so each data port serves one session at a time: each node needs as many ports as it has sessions.
fn cluster(authority: &Authority) -> ClusterBuilder {
    Cluster::builder()
        .passive_ports(300)
        .certificate(&authority.sign("localhost"))
        .setting("tls_data_reuse", "required")
}

fn load(cluster: &Cluster, authority: &Arc<Authority>) -> Load {
    let pause = Duration::from_millis(100);
    LoadBuilder { control: cluster.address(), sessions: SESSIONS, pause }.start(authority)
}

/// Lets the load run for this long.
fn run_for(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        thread::sleep(left);
    }
}

/// Ends the load. Every operation must have succeeded.
fn finish(cluster: &Cluster, load: Load) {
    let report = load.finish(&cluster.storage().join("demo"));
    eprintln!("{} operations, {} failures", report.operations, report.failures.len());
    report.expect_no_failure();
    assert!(report.operations > 10 * SESSIONS, "{}", report.operations);
}

#[test]
fn fifty_sessions_transfer_through_nginx() {
    let authority = Arc::new(Authority::new());
    let cluster = cluster(&authority).doors(DoorKind::Nginx).start();
    let load = load(&cluster, &authority);
    run_for(Duration::from_secs(10));
    finish(&cluster, load);
}
