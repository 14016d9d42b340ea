//! One user cannot starve another: slots for file operations, logins, long commands and transfers.

use std::{
    fs::{self, File},
    io::Write,
    net::TcpStream,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use cluster_tests::{
    dialogue::{Dialogue, read_exactly},
    eventually,
    hang::Hang,
    http,
    node::{Node, NodeBuilder},
    proxy::Connector,
    redis::Redis,
    stub_authd::{Answer, StubAuthd},
};
use serde_json::json;

/// Longest duration of an operation that other users do not delay. Far above what a busy machine needs,
/// and below the time that starved sessions waited.
const MAX_DELAY: Duration = Duration::from_secs(10);

/// A standalone node with the users a to e; file operations in its directory `hung` hang.
fn hanging() -> (Arc<Hang>, NodeBuilder) {
    let hang = Hang::below("hung");
    let builder = Node::standalone().hanging(&hang);
    fs::create_dir(builder.root().join("hung")).unwrap();
    fs::write(builder.root().join("hung/file"), b"content").unwrap();
    let builder = ["a", "b", "c", "d", "e"].into_iter().fold(builder, |node, user| node.user(user, "x"));
    (hang, builder)
}

fn sessions(node: &Node, user: &str, count: usize) -> Vec<Dialogue> {
    (0..count).map(|_| node.login(user, "x")).collect()
}

#[track_caller]
fn soon<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let done = work();
    assert!(begun.elapsed() < MAX_DELAY, "{what} took {:?}", begun.elapsed());
    done
}

#[test]
fn hanging_directory_does_not_block_other_users_or_logins_and_is_refused_beyond_the_share() {
    let (hang, builder) = hanging();
    let node = builder.setting("file_operation_alarm", "1s").start();
    let mut other = node.login("b", "x");
    let mut impatient = sessions(&node, "a", 140);
    for session in &mut impatient {
        session.send("SIZE hung/file");
    }
    // A quarter of max_file_operations hangs. The other commands are refused because none of these
    // operations has ended.
    node.wait_for_metric("ftp_slots_used{kind=\"file_operations\"}", |used| used == 32.0);
    eventually("the share to hang", || (hang.held() == 32).then_some(()));
    let refusals = "ftp_operations_failed_total{verb=\"SIZE\",reason=\"storage_hangs\"}";
    node.wait_for_metric(refusals, |refused| refused == 108.0);
    let line = node.daemon.wait_for_message("SIZE failed", &[("reason", "storage_hangs"), ("user", "a")]);
    assert!(line.contains("32 file operations of this user run") && line.contains("_per_user"), "{line}");
    let line = node.daemon.wait_for_message("a file operation does not end", &[("verb", "SIZE")]);
    assert!(line.contains("user=a") && line.contains("path=/hung/file"), "{line}");

    // After a disconnect, slots stay in use until the system calls return.
    drop(impatient);
    soon("commands of others", || {
        other.command("CWD /", 250);
        other.store("new", b"content");
        assert_eq!(other.retrieve("new"), b"content");
        other.receive("LIST");
    });
    let mut again = soon("logins", || {
        node.login("c", "x");
        sessions(&node, "a", 40)
    });
    soon("refusals", || {
        for session in &mut again {
            session.command("SIZE hung/file", 450);
            session.command("NOOP", 200);
        }
    });
    assert_eq!(hang.held(), 32);
    let ready = http::get(node.admin, "/readyz").unwrap();
    assert_eq!(ready.status, 200, "{ready:?}");
    node.wait_for_metric("ftp_oldest_file_operation_seconds", |age| age >= 1.0);
    assert!(node.metric("ftp_limit_reached_total{limit=\"max_file_operations_per_user\"}").unwrap() >= 108.0);

    hang.release();
    node.daemon.wait_for_message("a file operation that did not end has ended", &[("user", "a")]);
    node.wait_for_metric("ftp_slots_used{kind=\"file_operations\"}", |used| used == 0.0);
    node.wait_for_metric("ftp_oldest_file_operation_seconds", |age| age == 0.0);
    again[0].command("SIZE hung/file", 213);
}

#[test]
fn node_with_all_slots_hanging_is_not_ready_until_one_is_free() {
    let (hang, builder) = hanging();
    let node = builder
        .setting("max_file_operations", 4)
        .setting("max_file_operations_per_user", 4)
        .setting("file_operation_wait", "300ms")
        .setting("file_operation_alarm", "1s")
        .setting("readiness_interval", "100ms")
        .start();
    let mut hung: Vec<_> = ["a", "b", "c", "d"].into_iter().map(|user| node.login(user, "x")).collect();
    for session in &mut hung {
        session.send("SIZE hung/file");
    }
    let answer = eventually("the node not to be ready", || {
        let answer = http::get(node.admin, "/readyz").unwrap();
        (answer.status == 503).then_some(answer)
    });
    let operations = &answer.json()["dependencies"]["file_operations"];
    assert_eq!((&operations["state"], &operations["required"]), (&json!("failed"), &json!(true)));
    assert_eq!(operations["setting"], "max_file_operations");
    let message = operations["last_error"]["message"].as_str().unwrap();
    assert!(message.starts_with("all 4 slots are in use, and no operation has ended for "), "{message}");
    node.daemon.wait_for_message("file operations hang", &[("setting", "max_file_operations")]);
    // Logins have their own slots.
    let mut session = soon("a login", || node.login("e", "x"));
    session.command("SIZE new", 450);
    hang.release();
    eventually("the node to be ready", || {
        (http::get(node.admin, "/readyz").unwrap().status == 200).then_some(())
    });
    node.daemon.wait_for_message("file operations no longer hang", &[]);
    session.command("SIZE new", 550);
    for session in &mut hung {
        session.expect(213);
    }
}

#[test]
fn logins_to_a_hanging_home_do_not_block_other_logins() {
    let authd = StubAuthd::start(|request| {
        let user = request["user"].as_str().unwrap_or_default();
        let home = if user.starts_with("hung") { "/hung" } else { "/" };
        Answer::account(&json!({ "user": user, "home": home }))
    });
    let hang = Hang::below("hung");
    let builder = Node::standalone().in_cluster().hanging(&hang);
    fs::create_dir(builder.root().join("hung")).unwrap();
    let redis = Redis::start(builder.loopback().socket(1, 6379));
    let node = builder.setting("authd_urls", authd.url()).setting("redis_url", redis.address).start();
    let mut attempts: Vec<_> = (0..20).map(|_| node.connect()).collect();
    for session in &mut attempts {
        session.command("USER hung", 331);
        session.send("PASS x");
    }
    eventually("a quarter of the logins' places to hang", || (hang.held() == 8).then_some(()));
    soon("another user's login", || node.login("ann", "x")).command("CWD /", 250);
    node.daemon.wait_for_message("login refused: the home cannot be used", &[("user", "hung")]);
    node.wait_for_metric("ftp_logins_total{result=\"no_home\"}", |refused| refused == 12.0);
    hang.release();
    let mut replies: Vec<_> = attempts.iter_mut().map(|session| session.reply().code).collect();
    replies.sort_unstable();
    assert_eq!(replies, [[230; 8].as_slice(), &[421; 12]].concat());
}

#[test]
fn expensive_stat_of_many_sessions_does_not_block_other_users() {
    let node = Node::standalone().user("a", "x").user("b", "x").start();
    let big = node.root().join("big");
    fs::create_dir(&big).unwrap();
    for number in 0..20_000 {
        File::create(big.join(format!("{number:05}"))).unwrap();
    }
    let mut other = node.login("b", "x");
    let mut greedy = sessions(&node, "a", 140);
    for session in &mut greedy {
        session.send("STAT big/*9");
    }
    // Waits for a counter: on a fast machine the share is only full for moments.
    node.wait_for_metric("ftp_limit_reached_total{limit=\"max_long_operations_per_user\"}", |times| {
        times > 0.0
    });
    soon("others' commands and logins", || {
        other.command("CWD /big", 250);
        other.command("SIZE 00001", 213);
        node.login("b", "x").command("CWD /big", 250);
    });
    // A disconnect and ABOR cancel waiting commands.
    let mut last = greedy.pop().unwrap();
    last.send("ABOR");
    assert!(matches!(last.reply().code, 213 | 450 | 451));
    last.expect(226);
    drop(greedy);
    node.wait_for_metric("ftp_sessions", |sessions| sessions <= 3.0);
    last.command("STAT big/00001", 213);
}

#[test]
fn long_commands_queue_per_user() {
    let node = Node::standalone()
        .user("a", "x")
        .user("b", "x")
        .setting("max_long_operations_per_user", 1)
        .setting("long_operation_wait", "300ms")
        .start();
    // A sparse file: reading it takes hours.
    File::create(node.root().join("sparse")).unwrap().set_len(1 << 42).unwrap();
    fs::write(node.root().join("small"), b"content").unwrap();
    let (mut first, mut second) = (node.login("a", "x"), node.login("a", "x"));
    first.send("XSHA512 sparse");
    node.wait_for_metric("ftp_slots_used{kind=\"long_operations\"}", |used| used == 1.0);
    let refused = second.command("STAT small", 450);
    assert!(refused.text().contains("Too many long commands"), "{}", refused.text());
    let line = node.daemon.wait_for_message("STAT failed", &[("reason", "no_slot")]);
    assert!(line.contains("max_long_operations_per_user") && line.contains("long_operation_wait"), "{line}");
    node.login("b", "x").command("XCRC small", 250);
    first.send("ABOR");
    first.expect(451);
    first.expect(226);
    node.wait_for_metric("ftp_slots_used{kind=\"long_operations\"}", |used| used == 0.0);
    second.command("STAT small", 213);
}

/// Sessions whose client reads only a few KiB of each download.
fn slow_downloads(node: &Node, user: &str, count: usize) -> Vec<(Dialogue, TcpStream)> {
    let small = Connector::new().buffers(4096, 4096);
    let start = |_| {
        let mut session = Dialogue::connect_with(&small, node.address);
        session.login(user, "x");
        let data = session.begin("RETR large");
        (session, data)
    };
    (0..count).map(start).collect()
}

#[test]
fn slow_downloads_of_one_user_leave_slots_for_others() {
    let node = Node::standalone().user("a", "x").user("b", "x").setting("max_transfers", 20).start();
    File::create(node.root().join("large")).unwrap().set_len(64 << 20).unwrap();
    let mut slow = slow_downloads(&node, "a", 20);
    // A quarter would be 5; the minimum share is 10 if the node has that many slots.
    node.wait_for_metric("ftp_slots_used{kind=\"transfers\"}", |used| used == 10.0);
    node.wait_for_metric("ftp_limit_reached_total{limit=\"max_transfers_per_user\"}", |count| count == 10.0);
    let mut other = node.login("b", "x");
    soon("an upload and a listing of another user", || {
        other.store("new", b"content");
        other.receive("NLST");
    });
    // The next waiting transfer gets a freed slot.
    let (mut first, data) = slow.remove(0);
    drop(data);
    first.expect(426);
    node.wait_for_metric("ftp_slots_used{kind=\"transfers\"}", |used| used == 10.0);
}

#[test]
fn account_can_have_its_own_limit_of_transfers() {
    let authd = StubAuthd::start(|request| {
        Answer::account(&json!({ "user": request["user"], "home": "/", "limits": { "transfers": 2 } }))
    });
    let builder = Node::standalone().in_cluster().setting("data_connect_timeout", "500ms");
    let redis = Redis::start(builder.loopback().socket(1, 6379));
    let node = builder.setting("authd_urls", authd.url()).setting("redis_url", redis.address).start();
    File::create(node.root().join("large")).unwrap().set_len(64 << 20).unwrap();
    let _slow = slow_downloads(&node, "ann", 2);
    node.wait_for_metric("ftp_slots_used{kind=\"transfers\"}", |used| used == 2.0);
    let mut third = node.login("ann", "x");
    let _data = third.begin("RETR large");
    third.expect(450);
    node.daemon.wait_for_message("download failed", &[("reason", "no_slot"), ("user", "ann")]);
    node.login("bob", "x").store("new", b"content");
}

#[test]
fn transfer_below_minimum_rate_ends_with_426() {
    let node = Node::standalone()
        .user("a", "x")
        .setting("minimum_rate", 100_000)
        .setting("minimum_rate_time", "2s")
        .start();
    File::create(node.root().join("large")).unwrap().set_len(64 << 20).unwrap();
    let (mut session, _data) = slow_downloads(&node, "a", 1).remove(0);
    let reply = session.expect(426);
    assert!(reply.text().contains("fewer than 100000 bytes a second"), "{}", reply.text());
    node.daemon.wait_for_message("download failed", &[("reason", "too_slow"), ("result", "too_slow")]);
    let mut upload = session.begin("STOR slow");
    upload.write_all(&[0; 100_000]).unwrap();
    session.expect(426);
    assert_eq!(node.metric("ftp_limit_reached_total{limit=\"minimum_rate\"}"), Some(2.0));

    // Slower than the network, but above the minimum rate, for longer than two windows.
    let mut fast = node.login("a", "x");
    let mut download = fast.begin("RETR large");
    let mut got = 0;
    while got < 64 << 20 {
        got += read_exactly(&mut download, 1 << 20).len();
        thread::sleep(Duration::from_millis(80));
    }
    fast.expect(226);
}
