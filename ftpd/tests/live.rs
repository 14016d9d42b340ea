//! Live details of sessions, and the end of a session with a reason, as an administrator asks for them
//! through the registry.

use std::{io::Write, time::Duration};

use cluster_tests::{
    eventually,
    node::Node,
    process::field,
    redis::Redis,
    stub_authd::{Answer, StubAuthd},
};
use common::{
    live::{Direction, SessionDetails},
    node::NodeCommand,
    registry::{RedisOptions, RegistryView},
    session::SessionId,
};
use serde_json::json;

struct Site {
    node: Node,
    view: RegistryView,
    runtime: tokio::runtime::Runtime,
    _redis: Redis,
    _authd: StubAuthd,
}

fn site() -> Site {
    let authd =
        StubAuthd::start(|request| Answer::account(&json!({ "user": request["user"], "home": "/home" })));
    let builder = Node::standalone().in_cluster();
    let redis = Redis::start(builder.loopback().socket(1, 6379));
    let node = builder
        .setting("authd_urls", authd.url())
        .setting("redis_url", redis.address)
        .setting("create_homes", "true")
        .start();
    let view = RegistryView::new(&RedisOptions::new(redis.address.to_string().parse().unwrap()));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(1).build().unwrap();
    Site { node, view, runtime, _redis: redis, _authd: authd }
}

impl Site {
    fn details(&self) -> Option<Vec<SessionDetails>> {
        let live = self.runtime.block_on(self.view.live(&"standalone".parse().unwrap())).unwrap()?;
        Some(live.into_values().collect())
    }

    fn watch(&self, seconds: u32) {
        self.runtime.block_on(self.view.watch(seconds)).unwrap();
    }

    fn send(&self, command: &NodeCommand) {
        assert!(self.runtime.block_on(self.view.send(&"standalone".parse().unwrap(), command)).unwrap());
    }

    fn session(&self) -> SessionId {
        self.runtime.block_on(self.view.sessions()).unwrap()[0].id
    }
}

#[test]
fn details_show_the_transfer_while_an_administrator_watches_and_cost_nothing_otherwise() {
    let site = site();
    assert_eq!(site.details(), None, "the node publishes nothing unless an administrator watches");
    let mut session = site.node.login("anna", "x");
    session.command("CLNT rclone/v1.70", 200);
    session.command("TYPE I", 200);
    session.store("first", &[1; 1000]);
    let mut data = session.begin("STOR second");
    data.write_all(&[2; 50_000]).unwrap();
    site.watch(20);
    let running = eventually("the running upload", || {
        let found = site.details()?.pop()?;
        let has_all = found.transfer.as_ref().is_some_and(|transfer| transfer.bytes == 50_000);
        has_all.then_some(found)
    });
    assert_eq!(running.id, site.session());
    assert_eq!(running.client.as_deref(), Some("rclone/v1.70"));
    assert_eq!((running.command.as_deref(), running.path.as_deref()), (Some("STOR"), Some("/second")));
    assert_eq!((running.tls, running.idle), (None, 0.0));
    assert_eq!((running.uploaded, running.downloaded), (51_000, 0));
    assert_eq!(running.transfer.unwrap().direction, Direction::Upload);
    drop(data);
    session.expect(226);
    let idle = eventually("the end of the upload", || {
        site.details()?.pop().filter(|found| found.transfer.is_none() && found.idle > 0.0)
    });
    assert_eq!(idle.uploaded, 51_000);
    session.retrieve("first");
    let after = eventually("the download in the totals", || {
        site.details()?.pop().filter(|found| found.downloaded == 1000)
    });
    assert_eq!(after.path.as_deref(), Some("/first"));
    session.quit();
    eventually("no session", || site.details()?.is_empty().then_some(()));
}

#[test]
fn details_expire_when_no_administrator_watches_any_more() {
    let site = site();
    let _session = site.node.login("anna", "x");
    site.watch(1);
    eventually("details", || site.details());
    eventually("the details expire", || site.details().is_none().then_some(()));
    site.watch(1);
    eventually("details again", || site.details());
}

#[test]
fn the_reason_for_the_end_of_a_session_is_in_the_reply_and_in_the_log() {
    let site = site();
    let mut session = site.node.login("anna", "x");
    let reason = format!("Storage is moved\r\n226 done {}", "x".repeat(100));
    site.send(&NodeCommand::EndSession { session: site.session(), reason: Some(reason) });
    let reply = session.expect(421);
    let text = format!("{reply:?}");
    assert!(text.contains("Session terminated by the administrator: Storage is moved226 done xx"), "{text}");
    assert!(!text.contains(&"x".repeat(50)), "{text}");
    eventually("the reason in the log", || {
        let lines = site.node.daemon.lines();
        lines
            .iter()
            .find(|line| field(line, "given").is_some_and(|given| given.contains("Storage is moved")))?;
        Some(())
    });
    let mut session = site.node.login("ben", "x");
    site.send(&NodeCommand::EndUser { user: "ben".to_owned(), reason: Some("contract ended".to_owned()) });
    let text = format!("{:?}", session.expect(421));
    assert!(text.contains("administrator: contract ended"), "{text}");
}

#[test]
fn the_dialogue_shows_commands_and_replies_without_secrets() {
    let site = site();
    let mut session = site.node.connect();
    session.command("USER anna", 331);
    session.command("acct geheim", 202);
    session.command("PASSgeheim", 500);
    session.command("PASS geheim", 230);
    session.command("RETR missing", 425);
    session.command("SIZE missing", 550);
    let asked = site.view.dialogue(site.session(), Duration::from_secs(20));
    let lines = site.runtime.block_on(asked).unwrap().expect("a dialogue");
    let texts: Vec<&str> = lines.iter().map(|line| &*line.text).collect();
    assert!(!texts.iter().any(|text| text.contains("geheim")), "{texts:?}");
    let commands: Vec<&str> = lines.iter().filter(|line| line.is_command).map(|line| &*line.text).collect();
    assert_eq!(
        commands,
        [
            "USER anna",
            "ACCT ***",
            "(invalid command of 10 bytes)",
            "PASS ***",
            "RETR missing",
            "SIZE missing",
        ]
    );
    assert!(texts[0].starts_with("220 ") && texts.last().unwrap().starts_with("550 "), "{texts:?}");
    assert!(lines[0].time.ends_with('Z'));
    let unknown = site.view.dialogue(SessionId::random(), Duration::from_millis(200));
    assert_eq!(site.runtime.block_on(unknown).unwrap(), None);
}

#[test]
fn the_activity_of_a_node_shows_load_rates_and_totals() {
    let site = site();
    let mut session = site.node.login("anna", "x");
    session.command("TYPE I", 200);
    session.store("file", &[1; 100_000]);
    session.retrieve("file");
    let activity = eventually("the totals of the node", || {
        let nodes = site.runtime.block_on(site.view.nodes()).unwrap();
        nodes[0].activity.clone().filter(|activity| activity.downloaded == 100_000)
    });
    assert_eq!((activity.uploaded, activity.logins, activity.logins_refused), (100_000, 1, 0));
    assert!(activity.load > 0.0 && activity.load < 1.0, "{activity:?}");
    assert!(activity.redis_seconds.is_some() && activity.clock > 0, "{activity:?}");
    site.node.wait_for_metric("ftp_load", |load| load > 0.0 && load < 1.0);
}
