//! What power the process has while it serves.

use std::fs;

use cluster_tests::node::Node;
use nix::unistd::geteuid;

/// What a process of root keeps: CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, by their numbers.
const FILES: u64 = 1 << 1 | 1 << 2 | 1 << 3;

#[test]
fn every_thread_of_a_node_that_serves_has_given_up_its_capabilities() {
    let builder = Node::standalone();
    // Port 21 takes a capability that all threads are without afterwards.
    let builder = if geteuid().is_root() { builder.setting("port", 21) } else { builder };
    // Its thread starts late.
    let log = builder.root().join("transfers.log");
    let node = builder.setting("transfer_log", log.display()).start();
    let mut session = node.login("demo", "x");
    session.store("file", b"content");
    assert_eq!(session.retrieve("file"), b"content");
    session.receive("LIST");

    let most = if geteuid().is_root() { FILES } else { 0 };
    let mut threads = 0;
    for thread in fs::read_dir(format!("/proc/{}/task", node.daemon.id())).unwrap() {
        // A thread that was idle may have ended.
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
    let told = node.daemon.lines().iter().any(|line| line.contains("runs as root"));
    assert_eq!(told, geteuid().is_root());
}
