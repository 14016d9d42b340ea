//! The test of the storage when a node starts: what it refuses, and what it only reports.

use cluster_tests::{failing_calls::FailingCall, node::Node};

/// What a node says that cannot start with these failing calls.
fn refusal(calls: &[FailingCall]) -> String {
    let builder =
        calls.iter().fold(Node::standalone().user("demo", "secret"), |b, call| b.failing_call(*call));
    let mut node = builder.spawn();
    let status = node.daemon.wait();
    let lines = node.daemon.lines();
    assert_eq!(status.code(), Some(78), "{lines:#?}");
    lines.into_iter().find(|line| line.contains("ERROR")).expect("an error is logged")
}

#[test]
fn a_local_storage_passes_and_no_test_file_is_left() {
    let node = Node::standalone().user("demo", "secret").start();
    node.daemon.wait_for_message("the storage passed its test", &[]);
    assert_eq!(std::fs::read_dir(node.root()).unwrap().count(), 0);
}

#[test]
fn storage_without_fsync_is_refused_unless_uploads_are_not_synced() {
    let line = refusal(&[FailingCall::fsync()]);
    assert!(line.contains("fsync of a file fails: EINVAL") && line.contains("storage_self_test"), "{line}");
    let node = Node::standalone().user("demo", "secret").failing_call(FailingCall::fsync());
    let node = node.setting("sync_uploads", false).start();
    node.daemon.wait_for_message("the storage passed its test", &[]);
}

#[test]
fn storage_that_cannot_replace_a_file_by_a_rename_is_refused() {
    let line = refusal(&[FailingCall::rename()]);
    assert!(line.contains("renaming a file over one that is open fails: EBUSY"), "{line}");
}

#[test]
fn hard_links_stand_in_for_rename_without_replacing_and_without_both_the_storage_is_refused() {
    let node = Node::standalone().user("demo", "secret");
    let node = node.failing_call(FailingCall::rename_without_replacing()).start();
    node.daemon.wait_for_message("the storage passed its test", &[]);
    let line = refusal(&[FailingCall::rename_without_replacing(), FailingCall::hard_link()]);
    assert!(line.contains("neither RENAME_NOREPLACE nor hard links work"), "{line}");
}

#[test]
fn storage_self_test_warn_starts_the_node_and_logs_an_error() {
    let node = Node::standalone().user("demo", "secret").failing_call(FailingCall::rename());
    let node = node.setting("storage_self_test", "warn").start();
    let line = node.daemon.wait_for_line(|line| line.contains("ERROR"));
    assert!(line.contains("does not keep what uploads in atomic mode promise"), "{line}");
    let node = Node::standalone().user("demo", "secret").failing_call(FailingCall::rename());
    let node = node.setting("storage_self_test", "off").start();
    assert!(!node.daemon.lines().iter().any(|line| line.contains("passed its test")));
}

#[test]
fn a_full_disk_does_not_keep_the_node_from_starting() {
    let node = Node::standalone().user("demo", "secret").failing_call(FailingCall::full_disk()).start();
    node.daemon.wait_for_line(|line| line.contains("the test of the storage: fsync of a file fails: ENOSPC"));
}

#[test]
fn a_root_in_which_the_node_may_not_write_is_not_tested() {
    use std::os::unix::fs::PermissionsExt;
    let node = Node::standalone().user("demo", "secret").unprivileged();
    std::fs::set_permissions(node.root(), std::fs::Permissions::from_mode(0o555)).unwrap();
    let node = node.start();
    node.daemon.wait_for_message("the storage is not tested", &[]);
}
