//! `ftpd health`, `authd health` and `ftp-relay health`: the exit status and the line for container engines.

use std::{path::Path, process::Command};

use cluster_tests::{
    authd::{AuthdBuilder, NODE_TOKEN},
    binaries, eventually,
    loopback::Loopback,
    node::Node,
    redis::Redis,
    relay::RelayBuilder,
};

/// Runs `PROGRAM … health`. Returns whether the exit status is 0, and the line.
fn health(program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> (bool, String) {
    let mut command = Command::new(binaries::daemon(program));
    let command = command.env_clear().envs(variables.iter().copied()).args(arguments).arg("health");
    let output = command.output().unwrap();
    let line = String::from_utf8(output.stdout).unwrap();
    let status = output.status.code();
    assert!(matches!(status, Some(0 | 1)), "{status:?}: {line}");
    assert_eq!(line.lines().count(), 1, "{line:?}, {:?}", String::from_utf8_lossy(&output.stderr));
    assert!(line.starts_with(&format!("{program}: ")), "{line}");
    (status == Some(0), line)
}

#[test]
fn a_ready_node_is_healthy_and_a_stopped_one_is_not() {
    let mut node = Node::standalone().start();
    let admin = node.admin.to_string();
    let (healthy, line) = health("ftpd", &["--admin-listen", &admin], &[]);
    assert!(healthy && line.contains("ready"), "{line}");
    node.daemon.kill();
    node.daemon.wait();
    let (healthy, line) = health("ftpd", &["--admin-listen", &admin], &[]);
    assert!(!healthy && line.contains("admin_listen") && line.contains(&admin), "{line}");
}

#[test]
fn a_node_without_a_required_dependency_is_unhealthy_and_says_which() {
    let loopback = Loopback::reserve();
    // Nothing listens there.
    let nowhere = loopback.socket(9, 6379).to_string();
    let node = Node::standalone()
        .in_cluster()
        .setting("authd_urls", format!("http://{nowhere}"))
        .setting("redis_url", &nowhere)
        .setting("readiness_interval", "100ms")
        .spawn();
    let admin = node.admin.to_string();
    let line = eventually("the reason", || {
        let (healthy, line) = health("ftpd", &[], &[("FTPD_ADMIN_LISTEN", &admin)]);
        assert!(!healthy, "{line}");
        line.contains("authd is failed (authd_urls)").then_some(line)
    });
    assert!(line.contains("not ready"), "{line}");
}

#[test]
fn settings_come_from_the_same_file_and_variables_as_the_daemons() {
    let node = Node::standalone().start();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ftpd.toml");
    // The file that a setting names may be one that only the daemon can read.
    let text = format!("admin_listen = \"{}\"\nauthd_token_file = \"/nonexistent\"\n", node.admin);
    std::fs::write(&file, text).unwrap();
    let with_variable = |path: &Path| health("ftpd", &[], &[("FTPD_CONFIG", path.to_str().unwrap())]);
    assert!(with_variable(&file).0);
    assert!(health("ftpd", &["--config", file.to_str().unwrap()], &[]).0);
    let (healthy, line) = with_variable(Path::new("/nonexistent/ftpd.toml"));
    assert!(!healthy && line.contains("/nonexistent/ftpd.toml"), "{line}");
    let (healthy, line) = health("ftpd", &["--admin-listen", ""], &[]);
    assert!(!healthy && line.contains("admin_listen is empty"), "{line}");
}

#[test]
fn authd_and_ftp_relay_answer_too() {
    let node = Node::standalone().in_cluster();
    let redis = Redis::start(node.loopback().socket(1, 6379));
    let authd =
        AuthdBuilder::new(node.loopback().socket(2, 5160)).setting("redis_url", redis.address).start();
    let listen = authd.address.to_string();
    assert!(health("authd", &["--listen", &listen], &[]).0);
    // A relay is ready when the registry shows a node that is ready.
    let first = node.loopback().ports().start() + 1;
    let relay =
        RelayBuilder::new(node.loopback().address(3), redis.address).passive_ports(first, first + 299);
    let relay = relay.spawn();
    let admin = relay.admin.to_string();
    let asked = || health("ftp-relay", &[], &[("FTP_RELAY_ADMIN_LISTEN", &admin)]);
    eventually("the relay to answer", || asked().1.contains("not ready").then_some(()));
    let node = node.setting("redis_url", redis.address).setting("authd_urls", format!("http://{listen}"));
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("node-token");
    std::fs::write(&token, NODE_TOKEN).unwrap();
    let node = node.setting("authd_token_file", token.display()).spawn();
    eventually("the relay to be ready", || asked().0.then_some(()));
    drop((node, relay, authd));
    assert!(!health("authd", &["--listen", &listen], &[]).0);
    assert!(!asked().0);
}
