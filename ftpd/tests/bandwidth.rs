//! Bandwidth limits of accounts, and cancellation of transfers that wait for them.

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

struct Site {
    nodes: Vec<Node>,
    _redis: Redis,
    _authd: StubAuthd,
}

/// Two nodes whose users all have this bandwidth, with a file `file` of 2 MB.
fn site(bandwidth: Value) -> Site {
    let authd = StubAuthd::start(move |request| {
        Answer::account(&json!({ "user": request["user"], "home": "/", "bandwidth": bandwidth }))
    });
    let builder = Node::standalone().without("standalone");
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

fn took(work: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed()
}

/// Least time for 2 MB at 1 MB/s: less the allowance saved up, and the last piece, which is not waited for.
const AT_LEAST: Duration = Duration::from_millis(1600);

#[test]
fn a_session_has_its_own_limit_in_each_direction() {
    let site = site(json!({ "session_download": 1_000_000, "session_upload": 1_000_000 }));
    let mut session = site.login(0);
    let down = took(|| assert_eq!(session.retrieve("file"), bytes(1, 2_000_000)));
    assert!(down >= AT_LEAST, "{down:?}");
    let up = took(|| session.store("other", &bytes(2, 2_000_000)));
    assert!(up >= AT_LEAST, "{up:?}");
    assert_eq!(fs::read(site.nodes[0].root().join("other")).unwrap(), bytes(2, 2_000_000));
    // Copied in user space instead of spliced.
    session.command("TYPE A", 200);
    let text = took(|| drop(session.receive("RETR file")));
    assert!(text >= AT_LEAST, "{text:?}");
    let up = took(|| drop(session.transmit("STOR text", &b"text\r\n".repeat(333_334))));
    assert!(up >= AT_LEAST, "{up:?}");
    let waited = site.nodes[0].metric("ftp_paced_seconds_sum{direction=\"download\"}");
    assert!(waited.is_some_and(|seconds| seconds > 1.0), "{waited:?}");
}

#[test]
fn all_sessions_of_a_user_share_one_limit_over_both_nodes() {
    let site = site(json!({ "download": 1_000_000 }));
    let both = took(|| {
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
    // If each were charged a whole piece (1/8 s), they would take minutes.
    let small = took(|| (0..400).for_each(|number| session.store(&format!("{number}"), b"small")));
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
        // Longer than the stall limit.
        thread::sleep(Duration::from_secs(3));
        assert!(session.command("STAT", 211).text().contains("4096 bytes in "));
        let ended = took(|| {
            session.send("ABOR");
            session.expect(426);
            session.expect(226);
        });
        assert!(ended < Duration::from_secs(10), "{ended:?}");
    }
}
