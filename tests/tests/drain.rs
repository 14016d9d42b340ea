//! Drain: after SIGTERM, a node finishes its transfers before it ends.

use std::{io::Read, io::Write, net::Shutdown};

use cluster_tests::{
    cluster::Cluster,
    content::{bytes, sha256},
    dialogue::read_exactly,
    http,
    proxy::Connector,
};

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
