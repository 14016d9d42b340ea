//! A node is killed during a transfer, and the client resumes through another node.

use std::io::Write;

use cluster_tests::{
    cluster::Cluster,
    content::{bytes, sha256},
    dialogue::{Dialogue, read_exactly, read_what_comes},
    eventually,
    proxy::Connector,
};

/// Larger than all buffers between a node and a client that does not read.
const LARGE: usize = 64 << 20;

/// A session with small socket buffers, and the position of its node.
fn slow_session(cluster: &Cluster) -> (Dialogue, usize) {
    let mut session = cluster.login_from(&Connector::new().buffers(64 << 10, 64 << 10));
    let port = session.epsv();
    session.command("TYPE I", 200);
    (session, cluster.node_of(port))
}

/// A new session. It must be on a live node.
fn session_elsewhere(cluster: &Cluster, dead: usize) -> Dialogue {
    let mut session = cluster.login();
    let port = session.epsv();
    assert_ne!(cluster.node_of(port), dead);
    session.command("TYPE I", 200);
    session
}

#[test]
fn download_is_resumed_through_another_node() {
    let mut cluster = Cluster::start();
    let content = bytes(1, LARGE);
    cluster.login().store("large.bin", &content);

    let (mut session, position) = slow_session(&cluster);
    let mut data = session.begin("RETR large.bin");
    let mut received = read_exactly(&mut data, 5 << 20);
    cluster.node_mut(position).daemon.kill();
    received.extend(read_what_comes(&mut data));
    assert!(received.len() < LARGE, "the download was over before the node died");
    let replies = session.expect_closed();
    assert!(replies.iter().all(|reply| reply.code != 226), "{replies:?}");

    let mut session = session_elsewhere(&cluster, position);
    session.command(&format!("REST {}", received.len()), 350);
    received.extend(session.receive("RETR large.bin"));
    assert_eq!(sha256(received), sha256(content));
}

#[test]
fn upload_is_resumed_through_another_node_with_rest_and_with_appe() {
    for resume_with_append in [false, true] {
        let mut cluster = Cluster::builder().setting("node_lease", "2s").start();
        let content = bytes(2, 16 << 20);
        let stored = cluster.storage().join("demo/large.bin");

        let (mut session, position) = slow_session(&cluster);
        let mut data = session.begin("STOR large.bin");
        data.write_all(&content[..8 << 20]).unwrap();
        let length = || stored.metadata().map_or(0, |metadata| metadata.len());
        eventually("a part of the upload to be stored", || (length() > 1 << 20).then_some(()));
        cluster.node_mut(position).daemon.kill();
        let replies = session.expect_closed();
        assert!(replies.iter().all(|reply| reply.code != 226), "{replies:?}");

        let mut session = session_elsewhere(&cluster, position);
        let arrived = session.size("large.bin") as usize;
        assert!((1 << 20..=8 << 20).contains(&arrived), "{arrived}");
        let rest = &content[arrived..];
        // The dead node has the write lease of the file until its node lease expires.
        eventually("the right to write the file", || {
            let command = if resume_with_append {
                "APPE large.bin"
            } else {
                session.command(&format!("REST {arrived}"), 350);
                "STOR large.bin"
            };
            let address = session.epsv();
            let mut data = session.data_connection(address);
            session.send(command);
            let reply = session.reply();
            match reply.code {
                450 => return None,
                150 => {}
                _ => panic!("{reply:?}"),
            }
            data.write_all(rest).unwrap();
            drop(data);
            session.expect(226);
            Some(())
        });
        assert_eq!(sha256(session.retrieve("large.bin")), sha256(&content));
    }
}

#[test]
fn restarted_node_gets_sessions_again() {
    let mut cluster = Cluster::start();
    cluster.node_mut(1).daemon.kill();
    for _ in 0..6 {
        session_elsewhere(&cluster, 1).quit();
    }
    cluster.restart_node(1);
    let mut session = cluster.login_through(1);
    session.store("back", b"again");
    assert_eq!(session.retrieve("back"), b"again");
}

#[test]
fn sessions_of_a_dead_node_stop_counting_against_limits() {
    let mut cluster =
        Cluster::builder().setting("max_sessions_per_address", 3).setting("node_lease", "2s").start();
    let client = cluster.client(1);
    let sessions: Vec<_> = (0..3).map(|node| cluster.session_through(node, &client, "demo")).collect();
    refused(&cluster, &client);
    cluster.node_mut(2).daemon.kill();
    let _again = eventually("the dead node's session to expire", || {
        let mut session = Dialogue::connect_with(&client, cluster.address());
        session.command("USER demo", 331);
        session.send("PASS secret");
        (session.reply().code == 230).then_some(session)
    });
    refused(&cluster, &client);
    drop(sessions);
}

fn refused(cluster: &Cluster, client: &Connector) {
    let mut session = Dialogue::connect_with(client, cluster.address());
    session.command("USER demo", 331);
    session.send("PASS secret");
    let reply = session.reply();
    assert!(matches!(reply.code, 421 | 530), "{reply:?}");
}
