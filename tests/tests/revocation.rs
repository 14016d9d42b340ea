//! Revocation: sessions of users who may not log in any more end, even if a part of the cluster was away at
//! the time of the change. Orders of administrators are not lost.

use std::{
    fs,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use cluster_tests::{
    authd::{Authd, AuthdBuilder, NODE_TOKEN, hash_password},
    dialogue::Dialogue,
    eventually,
    gate::Gate,
    loopback::Loopback,
    node::{Node, NodeBuilder},
    redis::Redis,
    stub_authd::{Answer, StubAuthd},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

const REDIS: u8 = 2;
const AUTHD: u8 = 3;
const AUTHDS_REDIS: u8 = 4;
const FIRST_NODE: u8 = 11;
/// Offset from the host number of a node to that of its gate to Redis.
const NODES_REDIS: u8 = 10;

/// Two nodes and authd, each with a separate gate to Redis that a test can close.
struct Parts {
    nodes: Vec<Node>,
    /// One gate per node.
    gates: Vec<Gate>,
    authd: Option<Authd>,
    authds_gate: Gate,
    redis: Option<Redis>,
    loopback: Arc<Loopback>,
    _token: TempDir,
}

impl Parts {
    fn start(users: &str, settings: &[(&str, &str)]) -> Self {
        let loopback = Arc::new(Loopback::reserve());
        let redis = Redis::start(loopback.socket(REDIS, 6379));
        let authds_gate = Gate::start(loopback.socket(AUTHDS_REDIS, 6379), redis.address);
        let authd = start_authd(&loopback, &authds_gate, users);
        let token = tempfile::tempdir().unwrap();
        fs::write(token.path().join("node-token"), NODE_TOKEN).unwrap();
        let storage = Arc::new(tempfile::tempdir().unwrap());
        let (mut nodes, mut gates) = (Vec::new(), Vec::new());
        for position in 0..2 {
            let host = FIRST_NODE + position;
            let gate = Gate::start(loopback.socket(host + NODES_REDIS, 6379), redis.address);
            let name = format!("ftp{}", position + 1);
            let first = 20000 + 10 * u16::from(position);
            let builder = NodeBuilder::new(Arc::clone(&loopback), Arc::clone(&storage), &name, host)
                .setting("port", 2121)
                .setting("passive_port_min", 20000)
                .setting("passive_port_max", 20019)
                .setting("passive_slice", format!("{first}-{}", first + 9))
                .setting("create_homes", true)
                .setting("node_lease", "1s")
                .setting("authd_urls", format!("http://{}", authd.address))
                .setting("authd_token_file", token.path().join("node-token").display())
                .setting("redis_url", gate.address);
            nodes.push(settings.iter().fold(builder, |node, (key, value)| node.setting(key, value)).start());
            gates.push(gate);
        }
        Self { nodes, gates, authd: Some(authd), authds_gate, redis: Some(redis), loopback, _token: token }
    }

    fn login(&self, node: usize, user: &str) -> Dialogue {
        self.nodes[node].login(user, "secret")
    }

    fn authd(&self) -> &Authd {
        self.authd.as_ref().unwrap()
    }

    /// Replaces the users file and waits until authd has read it.
    fn declare(&self, users: &str) {
        let seen = self.authd().daemon.lines().len();
        fs::write(self.authd().users_file(), users).unwrap();
        self.authd().daemon.wait_for_line_after(seen, |line| line.contains("users file loaded"));
    }

    fn administer(&self, method: &str, path: &str, body: Option<Value>) -> cluster_tests::http::HttpAnswer {
        self.authd().administer(method, path, body.as_ref())
    }

    /// The id of the user's only session, from authd's API.
    fn session_of(&self, user: &str) -> String {
        eventually("the session to be listed", || {
            let all = self.administer("GET", &format!("/v1/sessions?user={user}"), None);
            Some(serde_json::from_str::<Value>(&all.body).ok()?[0]["id"].as_str()?.to_owned())
        })
    }

    fn wait_for_nodes(&self, count: usize) {
        eventually("nodes to be listed", || {
            let all = self.administer("GET", "/v1/nodes", None);
            let all: Value = serde_json::from_str(&all.body).ok()?;
            (all.as_array()?.len() == count).then_some(())
        });
    }
}

fn start_authd(loopback: &Loopback, gate: &Gate, users: &str) -> Authd {
    AuthdBuilder::new(loopback.socket(AUTHD, 5160))
        .users(users)
        .setting("users_file_poll", "100ms")
        .setting("redis_url", gate.address)
        .start()
}

/// Declared users with the password "secret".
fn users(names: &[&str]) -> String {
    // Hashed once: another salt would count as another password.
    static HASH: LazyLock<String> = LazyLock::new(|| hash_password("secret"));
    let hash = &*HASH;
    names.iter().map(|name| format!("[users.{name}]\npassword_hash = \"{hash}\"\n")).collect()
}

/// The text of the 421 reply that ends a session.
fn ending(session: &mut Dialogue) -> String {
    let replies = session.expect_closed();
    assert_eq!(replies.iter().map(|reply| reply.code).collect::<Vec<_>>(), [421], "{replies:?}");
    format!("{replies:?}")
}

fn ends_because(session: &mut Dialogue, text: &str) {
    let replies = ending(session);
    assert!(replies.contains(text), "{text:?} is not in {replies}");
}

#[test]
fn sessions_of_a_user_removed_while_authd_has_no_redis_end_when_redis_is_back() {
    let parts = Parts::start(&users(&["ann", "bob"]), &[]);
    let mut sessions = [parts.login(0, "ann"), parts.login(1, "ann")];
    let mut other = parts.login(0, "bob");
    parts.authds_gate.close();
    parts.declare(&users(&["bob"]));
    parts.authd().daemon.wait_for_line(|line| line.contains("cannot end the user's sessions now"));
    for session in &mut sessions {
        session.command("NOOP", 200);
    }
    parts.authds_gate.open();
    for session in &mut sessions {
        ends_because(session, "the account was removed");
    }
    let metric = "ftp_sessions_revoked_total{reason=\"removed\"}";
    assert_eq!(parts.nodes[0].metric(metric), Some(1.0));
    let line = parts.nodes[0].daemon.wait_for_line(|line| line.contains("session revoked"));
    assert!(line.contains("user=ann") && line.contains("reason=removed"), "{line}");
    other.command("NOOP", 200);
}

#[test]
fn session_of_a_user_removed_while_the_node_is_cut_off_ends_when_the_node_is_back() {
    let parts = Parts::start(&users(&["ann", "bob"]), &[]);
    let (mut session, mut there) = (parts.login(0, "ann"), parts.login(1, "ann"));
    let mut others = [parts.login(0, "bob"), parts.login(1, "bob")];
    parts.gates[0].close();
    // The lease expires meanwhile: authd does not know the node and sends it no order.
    parts.wait_for_nodes(1);
    parts.declare(&users(&["bob"]));
    ending(&mut there);
    session.command("NOOP", 200);
    parts.gates[0].open();
    ends_because(&mut session, "the account was removed");
    for other in &mut others {
        other.command("NOOP", 200);
    }
}

#[test]
fn sessions_of_a_user_removed_while_redis_is_down_end_when_redis_starts_empty() {
    let mut parts = Parts::start(&users(&["ann", "bob"]), &[]);
    let mut sessions = [parts.login(0, "ann"), parts.login(1, "ann")];
    parts.redis = None;
    parts.declare(&users(&["bob"]));
    parts.authd().daemon.wait_for_line(|line| line.contains("cannot end the user's sessions now"));
    for session in &mut sessions {
        session.command("NOOP", 200);
    }
    parts.redis = Some(Redis::start(parts.loopback.socket(REDIS, 6379)));
    for session in &mut sessions {
        ends_because(session, "the account was removed");
    }
}

#[test]
fn sessions_of_a_user_removed_while_authd_is_down_end_when_authd_starts() {
    let mut parts = Parts::start(&users(&["ann", "bob"]), &[]);
    let (mut session, mut other) = (parts.login(0, "ann"), parts.login(1, "bob"));
    parts.authd = None;
    session.command("NOOP", 200);
    parts.authd = Some(start_authd(&parts.loopback, &parts.authds_gate, &users(&["bob"])));
    ends_because(&mut session, "the account was removed");
    other.command("NOOP", 200);
}

#[test]
fn only_a_changed_password_or_login_condition_ends_the_session() {
    let parts = Parts::start("", &[]);
    let body = |name: &str| json!({ "name": name, "password": "secret" });
    for name in ["ann", "bob"] {
        assert_eq!(parts.administer("POST", "/v1/users", Some(body(name))).status, 201);
    }
    let change = |body: Value| {
        let answer = parts.administer("PATCH", "/v1/users/ann", Some(body));
        assert_eq!(answer.status, 200, "{answer:?}");
    };
    let mut session = parts.login(0, "ann");
    let mut other = parts.login(0, "bob");
    let checks = || parts.nodes[0].metric("ftp_reauthorizations_total{result=\"answered\"}").unwrap_or(0.0);
    let before = checks();
    change(json!({ "home": "/x", "permissions": { "delete": false } }));
    eventually("the node to have asked", || (checks() > before).then_some(()));
    session.command("NOOP", 200);

    change(json!({ "access": { "allow_from": ["192.0.2.0/24"] } }));
    ends_because(&mut session, "from your address");
    change(json!({ "access": null }));
    let mut session = parts.login(0, "ann");
    // Hours on a day that is three days away.
    let day = (std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() / 86400 + 3 + 3) % 7;
    let day = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"][day as usize];
    change(json!({ "access": { "hours": [format!("{day} 10:00-11:00")] } }));
    ends_because(&mut session, "at this time");
    other.command("NOOP", 200);
}

#[test]
fn sessions_are_checked_again_after_the_interval_without_a_new_revision() {
    let parts = Parts::start("", &[("reauthorize_interval", "300ms")]);
    let body = json!({ "name": "ann", "password": "secret" });
    assert_eq!(parts.administer("POST", "/v1/users", Some(body)).status, 201);
    let mut session = parts.login(0, "ann");
    // A change that authd does not know of.
    parts.redis.as_ref().unwrap().command("HDEL ftp:users ann");
    ends_because(&mut session, "the account was removed");
}

#[test]
fn order_is_carried_out_although_its_connection_to_redis_breaks() {
    let parts = Parts::start(&users(&["ann", "bob"]), &[]);
    let (mut session, mut other) = (parts.login(0, "ann"), parts.login(0, "bob"));
    let id = parts.session_of("ann");
    parts.gates[0].break_at("end_session");
    let answer = parts.administer("DELETE", &format!("/v1/sessions/{id}"), None);
    assert!(matches!(answer.status, 202 | 204), "{answer:?}");
    parts.gates[0].wait_for_break();
    ends_because(&mut session, "by the administrator");
    eventually("the session to be gone", || {
        (parts.administer("GET", &format!("/v1/sessions/{id}"), None).status == 404).then_some(())
    });
    // The order is removed once it is carried out.
    eventually("the order to be done", || {
        let left = parts.redis.as_ref().unwrap().command(&format!("HEXISTS ftp:orders:ftp1 end:{id}"));
        (left.as_deref() == Some(":0")).then_some(())
    });
    other.command("NOOP", 200);
}

#[test]
fn order_for_a_node_that_was_regarded_as_dead_is_carried_out() {
    let parts = Parts::start(&users(&["ann"]), &[]);
    let mut session = parts.login(0, "ann");
    let id = parts.session_of("ann");
    parts.gates[0].close();
    let answer = parts.administer("DELETE", &format!("/v1/sessions/{id}"), None);
    // The node's lease may have expired while the request waited for it.
    assert!(matches!(answer.status, 202 | 204), "{answer:?}");
    parts.wait_for_nodes(1);
    session.command("NOOP", 200);
    parts.gates[0].open();
    ends_because(&mut session, "by the administrator");
}

#[test]
fn drain_is_carried_out_although_its_message_is_lost_and_its_stages_are_shown() {
    let mut parts = Parts::start(&users(&["ann"]), &[("node_lease", "10s")]);
    let mut session = parts.login(0, "ann");
    let stage = |parts: &Parts| {
        let answer = parts.administer("GET", "/v1/nodes/ftp1/drain", None);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["drain"].clone()
    };
    assert_eq!(stage(&parts), "none");
    parts.nodes[0].daemon.signal(Signal::SIGSTOP);
    parts.gates[0].break_at("\"command\":\"drain\"");
    assert_eq!(parts.administer("POST", "/v1/nodes/ftp1/drain", None).status, 202);
    assert_eq!(stage(&parts), "asked");
    let nodes = parts.administer("GET", "/v1/nodes", None).json();
    assert_eq!((&nodes[0]["drain"], &nodes[1]["drain"]), (&json!("asked"), &json!("none")));
    parts.gates[0].wait_for_break();
    parts.nodes[0].daemon.signal(Signal::SIGCONT);
    ends_because(&mut session, "shutting down for maintenance");
    assert!(parts.nodes[0].daemon.wait().success());
    assert_eq!(stage(&parts), "drained");
    assert_eq!(parts.administer("GET", "/v1/nodes/ftp9/drain", None).status, 404);
}

#[test]
fn session_is_shown_as_ending_until_it_has_ended() {
    let parts = Parts::start(&users(&["ann"]), &[("node_lease", "30s")]);
    let mut session = parts.login(0, "ann");
    let path = format!("/v1/sessions/{}", parts.session_of("ann"));
    let shown = parts.administer("GET", &path, None).json();
    assert_eq!((&shown["ending"], &shown["ending_since"]), (&json!(false), &Value::Null));
    parts.nodes[0].daemon.signal(Signal::SIGSTOP);
    let asked = parts.administer("DELETE", &path, None);
    assert_eq!((asked.status, &asked.json()["ending"]), (202, &json!(true)));
    let shown = parts.administer("GET", &path, None).json();
    assert!(shown["ending"] == true && shown["ending_since"].is_string(), "{shown}");
    assert_eq!(parts.administer("GET", "/v1/sessions", None).json()[0]["ending"], true);
    parts.nodes[0].daemon.signal(Signal::SIGCONT);
    ends_because(&mut session, "by the administrator");
    eventually("the session to be gone", || {
        (parts.administer("GET", &path, None).status == 404).then_some(())
    });
}

/// The only node of a cluster, with a stub in place of authd.
fn node_with(authd: &StubAuthd) -> (Redis, Node) {
    let builder = Node::standalone().in_cluster().setting("node_lease", "600ms");
    let redis = Redis::start(builder.loopback().socket(1, 6379));
    let node = builder.setting("authd_urls", authd.url()).setting("redis_url", redis.address).start();
    (redis, node)
}

fn account(request: &Value) -> Answer {
    Answer::account(&json!({ "user": request["user"], "home": "/", "version": "1" }))
}

fn verdicts(request: &Value, verdict: impl Fn(&Value) -> Value) -> Answer {
    let verdicts: Vec<Value> = request["logins"].as_array().unwrap().iter().map(verdict).collect();
    Answer::Http("200 OK", String::new(), json!({ "verdicts": verdicts }).to_string())
}

#[test]
fn login_concurrent_with_the_users_removal_is_refused() {
    let (is_asked, is_free) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let asked_of = Arc::<Mutex<Vec<Value>>>::default();
    let (asked, free, of) = (Arc::clone(&is_asked), Arc::clone(&is_free), Arc::clone(&asked_of));
    let authd = StubAuthd::start_with_authorized(
        move |request| {
            if request["user"] == "ann" {
                // The login is accepted, but the response is late.
                asked.store(true, Ordering::SeqCst);
                eventually("the test to go on", || free.load(Ordering::SeqCst).then_some(()));
            }
            account(request)
        },
        move |request| {
            of.lock().unwrap().extend(request["logins"].as_array().unwrap().iter().cloned());
            verdicts(request, |login| match login["user"] == "ann" {
                true => json!({ "decision": "end", "reason": "disabled" }),
                false => json!({ "decision": "stay" }),
            })
        },
    );
    let (redis, node) = node_with(&authd);
    let mut witness = node.login("bob", "x");
    let mut session = node.connect();
    session.command("USER ann", 331);
    session.send("PASS x");
    eventually("authd to be asked", || is_asked.load(Ordering::SeqCst).then_some(()));
    // The user is disabled, and the node learns of it: it asks about the existing session.
    asked_of.lock().unwrap().clear();
    redis.command("INCR ftp:revision");
    eventually("the node to ask about all sessions", || {
        asked_of.lock().unwrap().iter().any(|login| login["user"] == "bob").then_some(())
    });
    is_free.store(true, Ordering::SeqCst);
    ends_because(&mut session, "disabled");
    let asked_of = asked_of.lock().unwrap().clone();
    let ann = asked_of.iter().find(|login| login["user"] == "ann").unwrap();
    assert_eq!(*ann, json!({ "user": "ann", "version": "1", "address": ann["address"] }));
    assert_eq!(node.metric("ftp_logins_total{result=\"revoked\"}"), Some(1.0));
    witness.command("NOOP", 200);
}

/// The order may belong to a change before this login, for example a new password that the login uses.
#[test]
fn login_concurrent_with_an_order_to_end_the_users_sessions_is_decided_again() {
    for (decision, code) in [(json!({ "decision": "stay" }), 230), (end("removed"), 421)] {
        let (is_asked, is_free) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (asked, free) = (Arc::clone(&is_asked), Arc::clone(&is_free));
        let authd = StubAuthd::start_with_authorized(
            move |request| {
                asked.store(true, Ordering::SeqCst);
                eventually("the order to be taken", || free.load(Ordering::SeqCst).then_some(()));
                account(request)
            },
            move |request| verdicts(request, |_| decision.clone()),
        );
        let (redis, node) = node_with(&authd);
        let mut session = node.connect();
        session.command("USER ann", 331);
        session.send("PASS x");
        eventually("authd to be asked", || is_asked.load(Ordering::SeqCst).then_some(()));
        let order = "LPUSH ftp:commands:standalone '{\"command\":\"end_user\",\"user\":\"ann\"}'";
        assert_eq!(redis.command(order).as_deref(), Some(":1"));
        eventually("the node to take the order", || {
            let left = redis.command("LLEN ftp:commands:standalone");
            (left.as_deref() == Some(":0")).then_some(())
        });
        is_free.store(true, Ordering::SeqCst);
        session.expect(code);
    }
}

fn end(reason: &str) -> Value {
    json!({ "decision": "end", "reason": reason })
}

#[test]
fn node_asks_authd_again_until_it_gets_decisions() {
    let (is_changed, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (changed, requests) = (Arc::clone(&is_changed), Arc::clone(&asked));
    let authd = StubAuthd::start_with_authorized(account, move |request| {
        // The node's first refresh may come during the login. The node then asks about that login, too.
        if !changed.load(Ordering::SeqCst) {
            return verdicts(request, |_| json!({ "decision": "stay" }));
        }
        match requests.fetch_add(1, Ordering::SeqCst) {
            0 => Answer::refusal("503 Service Unavailable", "unavailable"),
            1 => verdicts(request, |_| json!({ "decision": "undecided" })),
            _ => verdicts(request, |_| end("of a newer authd")),
        }
    });
    let (redis, node) = node_with(&authd);
    let mut session = node.login("ann", "x");
    is_changed.store(true, Ordering::SeqCst);
    redis.command("INCR ftp:revision");
    ends_because(&mut session, "the login is no longer accepted");
    assert!(asked.load(Ordering::SeqCst) >= 3);
    node.daemon.wait_for_line(|line| line.contains("authd does not answer which sessions may continue"));
}

#[test]
fn with_an_older_authd_sessions_continue_and_the_log_reports_it_once() {
    let authd = StubAuthd::start(account);
    let (redis, node) = node_with(&authd);
    let mut session = node.login("ann", "x");
    let unsupported = || node.metric("ftp_reauthorizations_total{result=\"unsupported\"}").unwrap_or(0.0);
    for _ in 0..2 {
        let before = unsupported();
        redis.command("INCR ftp:revision");
        eventually("the node to ask", || (unsupported() > before).then_some(()));
    }
    session.command("NOOP", 200);
    let lines = node.daemon.lines();
    assert_eq!(lines.iter().filter(|line| line.contains("authd is of an earlier version")).count(), 1);
}

#[test]
fn session_ends_at_session_max_age_but_not_during_a_transfer() {
    use std::{io::Write, net::Shutdown};
    let node = Node::standalone().setting("session_max_age", "1s").start();
    let mut idle = node.login("demo", "x");
    let mut uploading = node.login("demo", "x");
    let mut busy = node.login("demo", "x");
    uploading.command("TYPE I", 200);
    let mut data = uploading.begin("STOR file");
    data.write_all(b"begin").unwrap();
    ends_because(&mut idle, "maximum age");
    // Commands do not prolong a session.
    let replies = eventually("the busy session to end", || {
        busy.send("NOOP");
        let reply = busy.reply();
        (reply.code != 200).then_some(reply)
    });
    assert_eq!(replies.code, 421);
    std::thread::sleep(Duration::from_millis(200));
    data.write_all(b" end").unwrap();
    data.shutdown(Shutdown::Write).unwrap();
    uploading.expect(226);
    ends_because(&mut uploading, "maximum age");
    assert_eq!(fs::read(node.root().join("file")).unwrap(), b"begin end");
}
