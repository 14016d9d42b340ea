//! Nodes join, leave, die and come back while fifty sessions transfer. No file, balancer or other process
//! is touched.

// The tests print how much the sessions have done.
#![allow(clippy::print_stderr)]

use std::{
    ops::Range,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use cluster_tests::{
    cluster::Cluster,
    doors::DoorKind,
    eventually,
    load::{LoadBuilder, LoadFailure},
    tls::Authority,
};

/// Waits until the nodes with blocks own equal numbers of ports, but for one block, and all ports together.
fn wait_for_fair_shares(cluster: &Cluster, nodes: usize, ports: u32) -> Duration {
    let start = Instant::now();
    eventually(&format!("fair shares of {nodes} nodes"), || {
        let shares: Vec<u32> = cluster.shares().into_iter().filter(|ports| *ports > 0).collect();
        let (least, most) = (shares.iter().min()?, shares.iter().max()?);
        let is_fair = shares.len() == nodes && most - least <= 5 && shares.iter().sum::<u32>() == ports;
        is_fair.then_some(())
    });
    start.elapsed()
}

fn expect_none(failures: &[&LoadFailure], what: &str) {
    assert!(failures.is_empty(), "{what}: {failures:#?}");
}

/// Two nodes join, one leaves by SIGTERM, one is killed and comes back. Returns the failures of the sessions,
/// and the time from the kill until the node has come back.
fn change_nodes(doors: DoorKind) -> (Vec<LoadFailure>, Range<Instant>) {
    const PORTS: u16 = 300;
    let authority = Arc::new(Authority::new());
    let mut cluster = Cluster::builder()
        .leased()
        .spare_nodes(2)
        .passive_ports(PORTS)
        .doors(doors)
        .certificate(&authority.sign("localhost"))
        .setting("tls_data_reuse", "required")
        .setting("node_lease", "3s")
        // The blocks of a dead node rest for this time.
        .setting("data_connect_timeout", "3s")
        .start();
    let home = cluster.storage().join("demo");
    let (control, pause) = (cluster.address(), Duration::from_millis(100));
    let without_empty_files = cluster.has_haproxy();
    let load = |first, sessions| LoadBuilder { control, sessions, first, without_empty_files, pause };
    let (first, second) = (load(0, 50), load(50, 20));
    let first = first.start(&authority);
    wait_for_fair_shares(&cluster, 3, PORTS.into());
    let processes: Vec<u32> = (0..3).map(|node| cluster.node(node).daemon.id()).collect();

    for node in [3, 4] {
        cluster.restart_node(node);
    }
    let joined = wait_for_fair_shares(&cluster, 5, PORTS.into());
    let second = second.start(&authority);

    cluster.node(1).daemon.terminate();
    let status = cluster.node_mut(1).daemon.wait();
    assert!(status.success(), "{status}");
    let left = wait_for_fair_shares(&cluster, 4, PORTS.into());

    let killed_at = Instant::now();
    cluster.node_mut(2).daemon.kill();
    let killed = wait_for_fair_shares(&cluster, 3, PORTS.into());
    cluster.restart_node(2);
    let returned = wait_for_fair_shares(&cluster, 4, PORTS.into());
    let away = killed_at..Instant::now();
    thread::sleep(Duration::from_secs(2));

    eprintln!("fair shares: joined {joined:?}, left {left:?}, killed {killed:?}, returned {returned:?}");
    assert_eq!(cluster.node(0).daemon.id(), processes[0]);
    for node in [0, 3, 4] {
        assert!(cluster.node_mut(node).daemon.is_running());
    }
    let mut failures = Vec::new();
    for load in [first, second] {
        let report = load.finish(&home);
        eprintln!("{} operations, {} failures", report.operations, report.failures.len());
        assert!(report.operations > 200, "{}", report.operations);
        failures.extend(report.failures);
    }
    (failures, away)
}

/// The failures of sessions on nodes that stay.
fn of_staying_nodes(failures: &[LoadFailure]) -> Vec<&LoadFailure> {
    failures.iter().filter(|failure| ["ftp1", "ftp4", "ftp5"].contains(&failure.node.as_str())).collect()
}

/// The transfers of the node that leaves are finished; its sessions end with 421.
fn expect_orderly_leaving(failures: &[LoadFailure]) {
    let leaving: Vec<_> = failures.iter().filter(|failure| failure.node == "ftp2").collect();
    assert!(!leaving.is_empty());
    let cut: Vec<_> = leaving.into_iter().filter(|failure| !failure.is_lost).collect();
    expect_none(&cut, "operations of the node that leaves");
}

#[test]
fn behind_nginx_and_the_relay_no_operation_of_a_staying_node_fails() {
    let (failures, _) = change_nodes(DoorKind::NginxAndRelay);
    expect_none(&of_staying_nodes(&failures), "operations of nodes that stay");
    expect_orderly_leaving(&failures);
}

/// HAProxy also leads data connections through the node that is killed, until it has noticed that the node is
/// away, and again while the node starts. Those transfers fail, and their sessions go on.
#[test]
fn behind_haproxy_only_transfers_through_the_killed_node_fail() {
    let (failures, away) = change_nodes(DoorKind::HaProxy);
    let staying = of_staying_nodes(&failures);
    let lost: Vec<_> = staying.iter().copied().filter(|failure| failure.is_lost).collect();
    expect_none(&lost, "sessions of nodes that stay");
    // The node answers 425 when `data_connect_timeout` (3 s) has passed.
    let affected = away.start..away.end + Duration::from_secs(5);
    let other: Vec<_> = staying.into_iter().filter(|failure| !affected.contains(&failure.time)).collect();
    expect_none(&other, "operations while no node was away");
}
