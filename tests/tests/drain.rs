//! Drain: a node finishes its transfers before it ends; an administrator can end the drain before.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
};

use cluster_tests::{
    cluster::Cluster,
    content::{bytes, sha256},
    dialogue::read_exactly,
    eventually, http,
    proxy::Connector,
};
use serde_json::Value;

const LARGE: usize = 64 << 20;

#[test]
fn transfers_in_progress_finish_and_idle_sessions_end() {
    let mut cluster = Cluster::start();
    let content = bytes(1, LARGE);
    cluster.login().store("large.bin", &content);

    let slow = Connector::new().buffers(64 << 10, 64 << 10);
    let mut downloading = cluster.session_through(0, &slow, "demo");
    downloading.command("TYPE I", 200);
    let mut download = downloading.begin("RETR large.bin");
    let mut received = read_exactly(&mut download, 1 << 20);
    let mut uploading = cluster.session_through(0, &slow, "demo");
    uploading.command("TYPE I", 200);
    let mut upload = uploading.begin("STOR copy.bin");
    upload.write_all(&content[..1 << 20]).unwrap();
    let mut idle = cluster.login_through(0);

    cluster.node(0).daemon.terminate();
    let replies = idle.expect_closed();
    assert_eq!(replies.iter().map(|reply| reply.code).collect::<Vec<_>>(), [421]);
    let readiness = http::get(cluster.node(0).admin, "/readyz").unwrap();
    assert_eq!(readiness.status, 503, "{readiness:?}");
    for _ in 0..6 {
        let mut session = cluster.login();
        let port = session.epsv();
        assert_ne!(cluster.node_of(port), 0, "a draining node takes no new sessions");
    }

    download.read_to_end(&mut received).unwrap();
    downloading.expect(226);
    assert_eq!(sha256(received), sha256(&content));
    upload.write_all(&content[1 << 20..]).unwrap();
    upload.shutdown(Shutdown::Write).unwrap();
    uploading.expect(226);
    let status = cluster.node_mut(0).daemon.wait();
    assert!(status.success(), "{status}");
    assert_eq!(sha256(cluster.login().retrieve("copy.bin")), sha256(&content));
}

#[test]
fn drain_timeout_limits_the_wait_for_transfers() {
    let mut cluster = Cluster::builder().setting("drain_timeout", "1s").start();
    cluster.login().store("large.bin", &bytes(1, LARGE));
    let slow = Connector::new().buffers(64 << 10, 64 << 10);
    let mut session = cluster.session_through(0, &slow, "demo");
    session.command("TYPE I", 200);
    let mut data = session.begin("RETR large.bin");
    read_exactly(&mut data, 1 << 20);
    cluster.node(0).daemon.terminate();
    cluster.node_mut(0).daemon.wait();
    let replies = session.expect_closed();
    assert!(replies.iter().all(|reply| reply.code != 226), "{replies:?}");
}

#[test]
fn administrator_drains_a_node_through_authd() {
    let mut cluster = Cluster::start();
    let mut session = cluster.login_through(2);
    let answer = cluster.authd().administer("POST", "/v1/nodes/ftp3/drain", None);
    assert!((200..300).contains(&answer.status), "{answer:?}");
    let replies = session.expect_closed();
    assert_eq!(replies.iter().map(|reply| reply.code).collect::<Vec<_>>(), [421]);
    let status = cluster.node_mut(2).daemon.wait();
    assert!(status.success(), "{status}");
    cluster.login().quit();
}

/// Orders a drain of the third node through authd, and waits until the node refuses connections.
fn drain_third_node(cluster: &Cluster) {
    let answer = cluster.authd().administer("POST", "/v1/nodes/ftp3/drain", None);
    assert_eq!(answer.status, 202, "{answer:?}");
    let control = cluster.node(2).address;
    eventually("the node refuses connections", || TcpStream::connect(control).is_err().then_some(()));
    eventually("the node drains", || (stage(cluster) == "draining").then_some(()));
}

fn undrain_third_node(cluster: &Cluster) {
    let answer = cluster.authd().administer("POST", "/v1/nodes/ftp3/undrain", None);
    assert_eq!(answer.status, 202, "{answer:?}");
    eventually("the node serves", || (stage(cluster) == "none").then_some(()));
    eventually("the node is ready", || {
        http::get(cluster.node(2).admin, "/readyz").ok().filter(|readiness| readiness.status == 200)
    });
}

fn stage(cluster: &Cluster) -> String {
    let answer = cluster.authd().administer("GET", "/v1/nodes/ftp3/drain", None);
    let body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    body["drain"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn node_serves_new_sessions_and_transfers_after_its_drain_was_undone() {
    let mut cluster = Cluster::start();
    let content = bytes(2, 1 << 20);
    for round in 0..2 {
        let mut session = cluster.login_through(2);
        session.command("TYPE I", 200);
        let mut upload = session.begin("STOR kept.bin");
        upload.write_all(&content[..1000]).unwrap();
        let blocks = cluster.blocks_of(2);
        drain_third_node(&cluster);
        assert_eq!(cluster.blocks_of(2), blocks, "round {round}");
        undrain_third_node(&cluster);
        assert_eq!(cluster.blocks_of(2), blocks, "round {round}");
        // The session goes on after its transfer.
        upload.write_all(&content[1000..]).unwrap();
        drop(upload);
        session.expect(226);
        assert_eq!(sha256(session.retrieve("kept.bin")), sha256(&content), "round {round}");
        // nginx tries the node again some seconds after a refused connection.
        let mut new = cluster.login_through(2);
        new.store("new.bin", &content);
        assert_eq!(sha256(new.retrieve("new.bin")), sha256(&content), "round {round}");
        new.quit();
        session.quit();
    }
    let answer = cluster.authd().administer("POST", "/v1/nodes/ftp3/drain", None);
    assert_eq!(answer.status, 202, "{answer:?}");
    assert!(cluster.node_mut(2).daemon.wait().success(), "the next drain ends the process");
}

#[test]
fn sigterm_during_an_administrators_drain_makes_it_final_and_cuts_nothing() {
    let mut cluster = Cluster::start();
    let mut session = cluster.login_through(2);
    session.command("TYPE I", 200);
    let mut upload = session.begin("STOR kept.bin");
    drain_third_node(&cluster);
    cluster.node(2).daemon.terminate();
    cluster.node(2).daemon.wait_for_message("received a signal to stop", &[]);
    let answer = cluster.authd().administer("POST", "/v1/nodes/ftp3/undrain", None);
    assert_eq!(answer.status, 202, "{answer:?}");
    cluster.node(2).daemon.wait_for_message("ignored an order to end a drain", &[]);
    upload.write_all(b"whole").unwrap();
    drop(upload);
    session.expect(226);
    assert!(cluster.node_mut(2).daemon.wait().success());
    assert_eq!(cluster.login().retrieve("kept.bin"), b"whole");
}
