//! Bandwidth limits of accounts, and ABOR for transfers that wait for bandwidth.

use std::{
    fs,
    io::Read,
    thread,
    time::{Duration, Instant},
};

use cluster_tests::{
    content::bytes,
    dialogue::Dialogue,
    node::Node,
    redis::Redis,
    stub_authd::{Answer, StubAuthd},
};
use serde_json::{Value, json};

/// Nodes that share a Redis and an authd.
struct Site {
    nodes: Vec<Node>,
    _redis: Redis,
    _authd: StubAuthd,
}

/// Starts two nodes whose accounts have this bandwidth. The storage has a file `file` of 2 MB.
fn site(bandwidth: Value) -> Site {
    let authd = StubAuthd::start(move |request| {
        Answer::account(&json!({ "user": request["user"], "home": "/", "bandwidth": bandwidth }))
    });
    let builder = Node::standalone().in_cluster();
    fs::write(builder.root().join("file"), bytes(1, 2_000_000)).unwrap();
    let redis = Redis::start(builder.loopback().socket(1, 6379));
    let builder = builder
        .setting("authd_urls", authd.url())
        .setting("redis_url", redis.address)
        .setting("stall_timeout", "2s")
        .setting("cluster_nodes", "node1,node2");
    let nodes = (1..=2).map(|number| {
        let admin = builder.loopback().socket(number, 9121);
        let node = builder.clone().listen(builder.loopback().address(number));
        node.setting("node_name", format!("node{number}")).setting("admin_listen", admin).start()
    });
    Site { nodes: nodes.collect(), _redis: redis, _authd: authd }
}

impl Site {
    fn login(&self, node: usize) -> Dialogue {
        self.nodes[node].login("anna", "x")
    }
}

fn duration_of(work: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed()
}

/// Minimum time for 2 MB at 1 MB/s: 2 s minus the saved allowance and the last piece, after which a
/// transfer does not wait.
const AT_LEAST: Duration = Duration::from_millis(1600);

#[test]
fn a_session_has_its_own_limit_in_each_direction() {
    let site = site(json!({ "session_download": 1_000_000, "session_upload": 1_000_000 }));
    let mut session = site.login(0);
    let down = duration_of(|| assert_eq!(session.retrieve("file"), bytes(1, 2_000_000)));
    assert!(down >= AT_LEAST, "{down:?}");
    let up = duration_of(|| session.store("other", &bytes(2, 2_000_000)));
    assert!(up >= AT_LEAST, "{up:?}");
    assert_eq!(fs::read(site.nodes[0].root().join("other")).unwrap(), bytes(2, 2_000_000));
    // TYPE A copies in user space instead of using splice.
    session.command("TYPE A", 200);
    let text = duration_of(|| drop(session.receive("RETR file")));
    assert!(text >= AT_LEAST, "{text:?}");
    let up = duration_of(|| drop(session.transmit("STOR text", &b"text\r\n".repeat(333_334))));
    assert!(up >= AT_LEAST, "{up:?}");
    let waited = site.nodes[0].metric("ftp_paced_seconds_sum{direction=\"download\"}");
    assert!(waited.is_some_and(|seconds| seconds > 1.0), "{waited:?}");
}

#[test]
fn all_sessions_of_a_user_on_both_nodes_share_one_limit() {
    let site = site(json!({ "download": 1_000_000 }));
    let both = duration_of(|| {
        thread::scope(|scope| {
            for node in 0..2 {
                let mut session = site.login(node);
                scope.spawn(move || assert_eq!(session.retrieve("file"), bytes(1, 2_000_000)));
            }
        });
    });
    assert!(both >= AT_LEAST + Duration::from_secs(2), "{both:?}");
}

#[test]
fn many_small_files_are_charged_only_for_their_bytes() {
    let site = site(json!({ "session_upload": 1_000_000, "upload": 1_000_000 }));
    let mut session = site.login(0);
    // If each file were charged a whole piece (1/8 s), the uploads would take at least 50 s.
    let small = duration_of(|| (0..400).for_each(|number| session.store(&format!("{number}"), b"small")));
    assert!(small < Duration::from_secs(45), "{small:?}");
}

#[test]
fn a_transfer_that_waits_for_bandwidth_can_be_aborted_and_is_not_stalled() {
    // The smallest piece (4 KiB) takes 40 s.
    for limit in ["session_download", "download"] {
        let site = site(json!({ limit: 100 }));
        let mut session = site.login(0);
        let mut data = session.begin("RETR file");
        data.read_exact(&mut [0; 4096]).unwrap();
        // Longer than `stall_timeout`.
        thread::sleep(Duration::from_secs(3));
        assert!(session.command("STAT", 211).text().contains("4096 bytes in "));
        let ended = duration_of(|| {
            session.send("ABOR");
            session.expect(426);
            session.expect(226);
        });
        assert!(ended < Duration::from_secs(10), "{ended:?}");
    }
}
