//! Several nodes appear as one server: one file tree, and connections spread over all nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
};

use cluster_tests::{
    cluster::Cluster,
    content::{bytes, sha256},
    node::metric_sum,
};

#[test]
fn file_stored_through_one_node_is_readable_through_all_others() {
    let cluster = Cluster::start();
    for writer in 0..cluster.size() {
        let content = bytes(writer as u64, 300_000);
        let name = format!("from-{writer}.bin");
        cluster.login_through(writer).store(&name, &content);
        for reader in 0..cluster.size() {
            let mut session = cluster.login_through(reader);
            assert_eq!(session.size(&name), 300_000);
            assert_eq!(sha256(session.retrieve(&name)), sha256(&content), "node {writer} to node {reader}");
        }
    }
}

#[test]
fn renames_and_deletions_are_visible_on_all_nodes_at_once() {
    let cluster = Cluster::start();
    let (mut one, mut other) = (cluster.login_through(0), cluster.login_through(1));
    one.command("MKD box", 257);
    one.store("box/a", b"first");
    assert_eq!(other.retrieve("box/a"), b"first");
    other.command("RNFR box/a", 350);
    other.command("RNTO box/b", 250);
    one.command("SIZE box/a", 550);
    one.store("box/b", b"second, longer");
    assert_eq!(other.retrieve("box/b"), b"second, longer");
    assert_eq!(other.size("box/b"), 14);
    one.command("DELE box/b", 250);
    other.epsv();
    other.command("RETR box/b", 550);
    other.command("RMD box", 250);
    one.command("CWD box", 550);
}

#[test]
fn connections_are_spread_over_all_nodes() {
    let cluster = Cluster::start();
    let mut sessions: Vec<_> = (0..12).map(|_| cluster.login()).collect();
    let nodes: BTreeSet<usize> = sessions
        .iter_mut()
        .map(|session| {
            let port = session.epsv();
            cluster.node_of(port)
        })
        .collect();
    assert_eq!(nodes, BTreeSet::from([0, 1, 2]));
}

#[test]
fn fifty_concurrent_sessions_each_get_their_own_data() {
    const SESSIONS: usize = 50;
    const ROUNDS: usize = 4;
    let cluster = Cluster::start();
    let used = thread::scope(|scope| {
        let sessions: Vec<_> = (0..SESSIONS)
            .map(|number| {
                let cluster = &cluster;
                scope.spawn(move || {
                    // Ten client addresses with five sessions each, so that passive ports are shared.
                    let mut session = cluster.login_from(&cluster.client((number % 10) as u8));
                    for round in 0..ROUNDS {
                        let content = bytes((number * ROUNDS + round) as u64, 50_000 + number * 1000);
                        let name = format!("{number}-{round}");
                        session.store(&name, &content);
                        assert_eq!(sha256(session.retrieve(&name)), sha256(&content), "{name}");
                    }
                    let port = session.epsv();
                    session.quit();
                    cluster.node_of(port)
                })
            })
            .collect();
        let mut used = BTreeMap::<usize, usize>::new();
        for session in sessions {
            *used.entry(session.join().expect("every session succeeds")).or_default() += 1;
        }
        used
    });
    assert_eq!(used.len(), cluster.size(), "sessions by node: {used:?}");
    let relayed = metric_sum(cluster.relay().admin, "ftp_relayed_total");
    assert!(relayed >= (SESSIONS * ROUNDS * 2) as f64, "{relayed}");
    // The relay leads each connection to its owner.
    for node in 0..cluster.size() {
        assert_eq!(metric_sum(cluster.node(node).admin, "ftp_relayed_total"), 0.0);
    }
}
