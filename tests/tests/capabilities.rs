//! Capabilities of the daemons while they serve.

use std::fs;

use cluster_tests::{authd::AuthdBuilder, cluster::Cluster, loopback::Loopback, node::Node, process::Daemon};
use nix::unistd::geteuid;

/// Capabilities that a daemon keeps if it runs as root; numbers from linux/capability.h.
const DAC_OVERRIDE: u64 = 1 << 1;
const DAC_READ_SEARCH: u64 = 1 << 2;
const FOWNER: u64 = 1 << 3;

#[test]
fn all_threads_of_a_serving_node_have_dropped_their_capabilities() {
    let builder = Node::standalone();
    // The thread of the transfer log starts last.
    let log = builder.root().join("transfers.log");
    let builder = builder.setting("transfer_log", log.display());
    // Port 21 needs a capability, which all threads drop afterwards.
    let builder = if geteuid().is_root() { builder.setting("port", 21) } else { builder };
    let node = builder.start();
    let mut session = node.login("demo", "x");
    session.store("file", b"content");
    assert_eq!(session.retrieve("file"), b"content");
    session.receive("LIST");
    has_only(&node.daemon, DAC_OVERRIDE | DAC_READ_SEARCH | FOWNER);
}

#[test]
fn all_threads_of_a_serving_authd_have_dropped_their_capabilities() {
    let loopback = Loopback::reserve();
    let port = if geteuid().is_root() { 80 } else { 5160 };
    let authd = AuthdBuilder::new(loopback.socket(1, port)).users("").start();
    has_only(&authd.daemon, DAC_READ_SEARCH);
}

#[test]
fn all_threads_of_a_serving_relay_have_dropped_their_capabilities() {
    let cluster = Cluster::builder().nodes(1).without_balancer().start();
    let port = if geteuid().is_root() { 21 } else { 2121 };
    let relay = cluster.relay_builder(1).setting("control_port", port).start();
    has_only(&relay.daemon, 0);
}

/// # Panics
/// A thread has a capability other than `of_root`, or any capability if the process does not run as root.
fn has_only(daemon: &Daemon, of_root: u64) {
    let most = if geteuid().is_root() { of_root } else { 0 };
    let mut threads = 0;
    for thread in fs::read_dir(format!("/proc/{}/task", daemon.id())).unwrap() {
        // An idle thread may have ended in the meantime.
        let Ok(status) = fs::read_to_string(thread.unwrap().path().join("status")) else { continue };
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
        for (set, most) in [("CapEff:", most), ("CapPrm:", most), ("CapInh:", 0), ("CapAmb:", 0)] {
            let has = u64::from_str_radix(field(set), 16).unwrap();
            assert_eq!(has & !most, 0, "{set} {has:x} of {}", field("Name:"));
        }
        assert_eq!(field("NoNewPrivs:"), "1");
        threads += 1;
    }
    assert!(threads > 2, "only {threads} threads");
    let told = daemon.lines().iter().any(|line| line.contains("runs as root"));
    assert_eq!(told, geteuid().is_root());
}
