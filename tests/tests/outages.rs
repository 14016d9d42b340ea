//! Outages of Redis and authd: what continues to work and what is refused.

use std::{
    fs,
    io::{Read, Write},
    net::Shutdown,
    time::{Duration, Instant},
};

use cluster_tests::{
    cluster::Cluster,
    content::{bytes, sha256},
    dialogue::{Dialogue, read_exactly},
    eventually,
    proxy::Connector,
};
use nix::sys::signal::Signal;

/// Larger than all buffers between a node and a client that does not read.
const LARGE: usize = 64 << 20;

/// The code of the reply to PASS, and its delay.
fn password_reply(cluster: &Cluster) -> (u16, Duration) {
    let mut session = Dialogue::connect(cluster.address());
    session.command("USER demo", 331);
    let start = Instant::now();
    session.send("PASS secret");
    (session.reply().code, start.elapsed())
}

fn works(session: &mut Dialogue) {
    let content = bytes(7, 200_000);
    session.store("file", &content);
    assert_eq!(session.retrieve("file"), content);
    session.receive("LIST");
}

fn listed_nodes(cluster: &Cluster) -> usize {
    let answer = cluster.authd().administer("GET", "/v1/nodes", None);
    let Ok(json) = serde_json::from_str::<serde_json::Value>(&answer.body) else { return 0 };
    json.as_array().or_else(|| json["nodes"].as_array()).map_or(0, Vec::len)
}

fn listed_sessions(cluster: &Cluster) -> usize {
    let answer = cluster.authd().administer("GET", "/v1/sessions", None);
    let Ok(json) = serde_json::from_str::<serde_json::Value>(&answer.body) else { return 0 };
    json.as_array().or_else(|| json["sessions"].as_array()).map_or(0, Vec::len)
}

#[test]
fn node_without_storage_is_listed_as_degraded() {
    let cluster = Cluster::builder().nodes(1).setting("readiness_interval", "200ms").start();
    let state = || {
        let node = cluster.authd().administer("GET", "/v1/nodes", None).json()[0].clone();
        (node["state"].clone(), node["failing"][0]["dependency"].clone())
    };
    assert_eq!(state(), ("ready".into(), serde_json::Value::Null));
    let hidden = cluster.storage().with_extension("hidden");
    fs::rename(cluster.storage(), &hidden).unwrap();
    eventually("the node to be degraded", || {
        (state() == ("degraded".into(), "storage".into())).then_some(())
    });
    fs::rename(&hidden, cluster.storage()).unwrap();
    eventually("the node to be ready", || (state().0 == "ready").then_some(()));
}

#[test]
fn without_redis_sessions_continue_and_new_ones_are_admitted() {
    let mut cluster = Cluster::start();
    let mut old: Vec<_> = (0..3).map(|node| cluster.login_through(node)).collect();
    cluster.kill_redis();
    for session in &mut old {
        works(session);
    }
    let mut new: Vec<_> = (0..3).map(|node| cluster.login_through(node)).collect();
    for session in &mut new {
        works(session);
    }
    cluster.start_redis();
    // Redis is empty after its restart; the nodes write their records again.
    eventually("all nodes to be listed again", || (listed_nodes(&cluster) == 3).then_some(()));
    eventually("all sessions to be listed again", || (listed_sessions(&cluster) == 6).then_some(()));
    for session in old.iter_mut().chain(&mut new) {
        works(session);
    }
}

#[test]
fn transfers_continue_while_redis_is_killed_and_started_again() {
    let mut cluster = Cluster::builder().setting("node_lease", "2s").start();
    let content = bytes(1, LARGE);
    cluster.login().store("large.bin", &content);
    let slow = Connector::new().buffers(64 << 10, 64 << 10);
    let (mut reader, mut writer) =
        (cluster.session_through(0, &slow, "demo"), cluster.session_through(1, &slow, "demo"));
    reader.command("TYPE I", 200);
    writer.command("TYPE I", 200);
    let mut download = reader.begin("RETR large.bin");
    let mut received = read_exactly(&mut download, 1 << 20);
    let mut upload = writer.begin("STOR copy.bin");
    upload.write_all(&content[..LARGE / 4]).unwrap();

    cluster.kill_redis();
    received.extend(read_exactly(&mut download, 10 << 20));
    upload.write_all(&content[LARGE / 4..LARGE / 2]).unwrap();
    cluster.start_redis();
    eventually("all nodes to be listed again", || (listed_nodes(&cluster) == 3).then_some(()));
    // The new Redis has the write lease of the path.
    eventually("the right to write the file to be known again", || {
        cluster.redis().command("KEYS *write:*").filter(|count| count == "*1")
    });
    let mut second = cluster.login_through(2);
    second.epsv();
    second.command("STOR copy.bin", 450);
    upload.write_all(&content[LARGE / 2..]).unwrap();
    upload.shutdown(Shutdown::Write).unwrap();
    writer.expect(226);
    download.read_to_end(&mut received).unwrap();
    reader.expect(226);
    assert_eq!(sha256(received), sha256(&content));
    assert_eq!(sha256(second.retrieve("copy.bin")), sha256(&content));
}

#[test]
fn without_redis_registry_away_refuse_refuses_new_sessions_and_uploads() {
    let mut cluster = Cluster::builder().setting("registry_away", "refuse").start();
    let mut old = cluster.login();
    works(&mut old);
    cluster.kill_redis();
    // Sessions continue. Uploads are refused: no write leases can be granted.
    assert_eq!(old.retrieve("file"), bytes(7, 200_000));
    old.receive("LIST");
    old.epsv();
    old.command("STOR file", 450);
    let (code, time) = password_reply(&cluster);
    assert_eq!(code, 421);
    assert!(time < Duration::from_secs(3), "{time:?}");
    cluster.start_redis();
    eventually("logins to work again", || (password_reply(&cluster).0 == 230).then_some(()));
    eventually("uploads to work again", || {
        let address = old.epsv();
        let mut data = old.data_connection(address);
        old.send("STOR file");
        let reply = old.reply();
        assert!(matches!(reply.code, 150 | 450), "{reply:?}");
        (reply.code == 150).then(|| data.write_all(b"again").unwrap())
    });
    old.expect(226);
    works(&mut old);
}

#[test]
fn without_authd_sessions_continue_and_logins_are_refused() {
    let mut cluster = Cluster::builder().setting("authd_timeout", "2s").start();
    let mut old = cluster.login();
    works(&mut old);
    let mut download = old.begin("RETR file");
    cluster.kill_authd();
    assert_eq!(read_exactly(&mut download, 200_000), bytes(7, 200_000));
    old.expect(226);
    works(&mut old);
    for _ in 0..cluster.size() {
        let (code, time) = password_reply(&cluster);
        assert_eq!(code, 421);
        assert!(time < Duration::from_secs(3), "{time:?}");
    }
    cluster.start_authd();
    eventually("logins to work again", || (password_reply(&cluster).0 == 230).then_some(()));
    works(&mut old);
}

#[test]
fn hanging_authd_delays_a_login_only_by_authd_timeout() {
    let cluster = Cluster::builder().setting("authd_timeout", "1s").start();
    cluster.authd().daemon.signal(Signal::SIGSTOP);
    let (code, time) = password_reply(&cluster);
    assert_eq!(code, 421);
    assert!((Duration::from_millis(500)..Duration::from_secs(10)).contains(&time), "{time:?}");
    cluster.authd().daemon.signal(Signal::SIGCONT);
    eventually("logins to work again", || (password_reply(&cluster).0 == 230).then_some(()));
}
