//! Redis and authd go away and come back: what goes on, and what is refused meanwhile.

use std::time::{Duration, Instant};

use cluster_tests::{cluster::Cluster, content::bytes, dialogue::Dialogue, eventually};
use nix::sys::signal::Signal;

/// The reply to PASS, and how long it took.
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
fn without_redis_sessions_go_on_and_new_ones_are_admitted() {
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
    // Redis came back empty; the nodes fill it again by themselves.
    eventually("all nodes to be listed again", || (listed_nodes(&cluster) == 3).then_some(()));
    eventually("all sessions to be listed again", || (listed_sessions(&cluster) == 6).then_some(()));
    for session in old.iter_mut().chain(&mut new) {
        works(session);
    }
}

#[test]
fn without_redis_new_sessions_are_refused_where_the_operator_wants_it() {
    let mut cluster = Cluster::builder().setting("registry_away", "refuse").start();
    let mut old = cluster.login();
    cluster.kill_redis();
    works(&mut old);
    let (code, _) = password_reply(&cluster);
    assert_eq!(code, 421);
    cluster.start_redis();
    eventually("logins to work again", || (password_reply(&cluster).0 == 230).then_some(()));
}

#[test]
fn without_authd_sessions_go_on_and_logins_are_refused_until_it_is_back() {
    let mut cluster = Cluster::start();
    let mut old = cluster.login();
    cluster.kill_authd();
    works(&mut old);
    for _ in 0..cluster.size() {
        let (code, _) = password_reply(&cluster);
        assert_eq!(code, 421);
    }
    cluster.start_authd();
    eventually("logins to work again", || (password_reply(&cluster).0 == 230).then_some(()));
    works(&mut old);
}

#[test]
fn an_authd_that_hangs_delays_a_login_by_its_timeout_only() {
    let cluster = Cluster::builder().setting("authd_timeout", "1s").start();
    cluster.authd().daemon.signal(Signal::SIGSTOP);
    let (code, time) = password_reply(&cluster);
    assert_eq!(code, 421);
    assert!((Duration::from_millis(500)..Duration::from_secs(10)).contains(&time), "{time:?}");
    cluster.authd().daemon.signal(Signal::SIGCONT);
    eventually("logins to work again", || (password_reply(&cluster).0 == 230).then_some(()));
}
