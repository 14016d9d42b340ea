//! Failed operations: one log line at `warn` with the cause, one count in the metric, and the reply.

use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::PermissionsExt,
};

use cluster_tests::{
    dialogue::Dialogue,
    eventually,
    node::{Node, NodeBuilder},
    process::field,
    redis::Redis,
    stub_authd::{Answer, StubAuthd},
};
use common::{
    node::NodeCommand,
    registry::{RedisOptions, RegistryView},
};
use serde_json::{Value, json};

struct Site {
    node: Node,
    redis: Redis,
    _authd: StubAuthd,
}

fn site(account: Value, set: impl Fn(NodeBuilder) -> NodeBuilder) -> Site {
    let authd = StubAuthd::start(move |request| {
        let mut account = account.clone();
        account["user"] = request["user"].clone();
        account["home"] = json!("/home");
        Answer::account(&account)
    });
    let builder = Node::standalone().in_cluster();
    let redis = Redis::start(builder.loopback().socket(1, 6379));
    let builder = builder
        .setting("authd_urls", authd.url())
        .setting("redis_url", redis.address)
        .setting("create_homes", "true");
    Site { node: set(builder).start(), redis, _authd: authd }
}

fn login(node: &Node) -> Dialogue {
    let mut session = node.login("anna", "x");
    session.command("TYPE I", 200);
    session
}

fn is_warning(line: &str) -> bool {
    line.split(' ').nth(1) == Some("WARN")
}

/// The log lines of failures of this kind; waits until there are `count`.
fn warnings(node: &Node, verb: &str, reason: &str, count: usize) -> Vec<String> {
    let is_one = |line: &String| {
        is_warning(line)
            && field(line, "verb").as_deref() == Some(verb)
            && field(line, "reason").as_deref() == Some(reason)
    };
    eventually(&format!("{count} lines of {verb} {reason}"), || {
        let lines: Vec<String> = node.daemon.lines().into_iter().filter(is_one).collect();
        (lines.len() >= count).then_some(lines)
    })
}

fn count(node: &Node, verb: &str, reason: &str) -> Option<f64> {
    node.metric(&format!("ftp_operations_failed_total{{verb=\"{verb}\",reason=\"{reason}\"}}"))
}

/// The only log line of this failure. Also checks that the metric counts it once.
fn only_warning(node: &Node, verb: &str, reason: &str) -> String {
    let lines = warnings(node, verb, reason, 1);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(count(node, verb, reason), Some(1.0), "{verb} {reason}");
    lines.into_iter().next().unwrap()
}

fn assert_fields<'a>(line: &str, wanted: impl IntoIterator<Item = (&'a str, &'a str)>) {
    for (key, value) in wanted {
        assert_eq!(field(line, key).as_deref(), Some(value), "{key} in {line}");
    }
}

#[test]
fn every_failed_operation_has_one_log_line_and_one_count() {
    let site = site(
        json!({
            "denied_names": ["*.exe"],
            "directories": [{ "path": "/closed", "permissions": {
                "upload": false, "overwrite": false, "append": false, "mkdir": false, "delete": false,
                "rename": false, "rmdir": false, "download": false,
            } }],
        }),
        |node| node,
    );
    let mut session = login(&site.node);
    let home = site.node.root().join("home");
    fs::create_dir_all(home.join("full")).unwrap();
    for file in ["full/x", "file", "closed"] {
        match file {
            "closed" => fs::create_dir(home.join(file)).unwrap(),
            file => fs::write(home.join(file), "x").unwrap(),
        }
    }
    let address = session.local_address().ip().to_string();
    for (command, code, reason, errno, path) in [
        ("STOR missing/file", 550, "not_found", Some("ENOENT"), "/missing/file"),
        ("STOR closed/file", 550, "permission", None, "/closed/file"),
        ("STOR full", 550, "is_a_directory", Some("EISDIR"), "/full"),
        ("STOR setup.exe", 553, "denied_name", None, "/setup.exe"),
        ("APPE missing/file", 550, "not_found", Some("ENOENT"), "/missing/file"),
        ("STOU closed/file", 550, "permission", None, "/closed/file"),
        ("RETR nothing", 550, "not_found", Some("ENOENT"), "/nothing"),
        ("RETR closed/nothing", 550, "permission", None, "/closed/nothing"),
        ("DELE full", 550, "is_a_directory", Some("EISDIR"), "/full"),
        ("DELE closed/x", 550, "permission", None, "/closed/x"),
        ("MKD closed/x", 550, "permission", None, "/closed/x"),
        ("RMD full", 550, "not_empty", Some("ENOTEMPTY"), "/full"),
        ("RMDA nothing", 550, "not_found", Some("ENOENT"), "/nothing"),
        ("RNFR nothing", 550, "not_found", Some("ENOENT"), "/nothing"),
        ("MFMT 20200101000000 nothing", 550, "not_found", Some("ENOENT"), "/nothing"),
        ("SITE CHMOD 600 nothing", 550, "not_found", Some("ENOENT"), "/nothing"),
        ("HASH nothing", 550, "not_found", Some("ENOENT"), "/nothing"),
        ("COMB joined nothing", 550, "not_found", Some("ENOENT"), "/joined"),
    ] {
        if matches!(command.get(..4), Some("STOR" | "STOU" | "APPE" | "RETR")) {
            session.epsv();
        }
        session.command(command, code);
        let verb = command.split(' ').next().unwrap();
        let line = only_warning(&site.node, verb, reason);
        assert_fields(
            &line,
            [("path", path), ("user", "anna"), ("address", &address), ("node", "standalone")],
        );
        assert_eq!(field(&line, "errno").as_deref(), errno, "{line}");
        assert_eq!(field(&line, "code"), Some(code.to_string()), "{line}");
        assert_eq!(field(&line, "session").unwrap().len(), 16, "{line}");
    }
    session.command("RNFR file", 350);
    session.command("RNTO b.exe", 553);
    assert_fields(&only_warning(&site.node, "RNTO", "denied_name"), [("path", "/b.exe")]);
    session.command("STOR file", 425);
    only_warning(&site.node, "STOR", "no_data_port");
    // Malformed commands are not failed operations.
    let before = site.node.daemon.lines().len();
    session.command("RETR", 501);
    session.command("RNTO x", 503);
    session.command("NOPE", 500);
    session.command("NOOP", 200);
    assert!(!site.node.daemon.lines()[before..].iter().any(|line| is_warning(line)));
}

#[test]
fn the_log_line_of_a_refused_second_writer_names_the_writing_session() {
    let site = site(json!({}), |node| node);
    let mut first = login(&site.node);
    let mut second = login(&site.node);
    let holder = field(&site.node.daemon.wait_for_line(|line| line.contains("logged in")), "session");
    let mut data = first.begin("STOR file");
    data.write_all(b"x").unwrap();
    second.epsv();
    assert_eq!(second.command("STOR file", 450).message(), "Another session writes this file");
    let line = only_warning(&site.node, "STOR", "write_lease");
    assert_eq!(field(&line, "holder"), holder, "{line}");
    assert_eq!(field(&line, "path").as_deref(), Some("/file"));
    drop(data);
    first.expect(226);
}

#[test]
fn the_log_line_of_an_exceeded_quota_has_usage_and_limit() {
    let site = site(json!({ "quota": { "bytes": 10, "files": 5 } }), |node| node);
    let mut session = login(&site.node);
    session.store("file", b"0123456789");
    session.epsv();
    session.command("STOR other", 552);
    let line = only_warning(&site.node, "STOR", "quota");
    assert!(line.contains("it holds 10 of 10 bytes and 1 of 5 files"), "{line}");
    assert_fields(&line, [("path", "/other"), ("user", "anna")]);
    // The quota is exceeded during an upload: same form.
    session.command("DELE file", 250);
    let mut data = session.begin("STOR third");
    data.write_all(&[0; 100_000]).ok();
    drop(data);
    session.expect(552);
    let lines = warnings(&site.node, "STOR", "quota", 2);
    assert_fields(&lines[1], [("path", "/third"), ("result", "quota")]);
    assert_eq!(count(&site.node, "STOR", "quota"), Some(2.0));
}

#[test]
fn a_refusal_by_the_storage_is_distinct_from_a_missing_permission() {
    let builder = Node::standalone().unprivileged();
    let set_mode = |name: &str, mode| {
        let path = builder.root().join(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    set_mode("", 0o777);
    fs::create_dir(builder.root().join("scans")).unwrap();
    fs::write(builder.root().join("scans/old"), "x").unwrap();
    fs::write(builder.root().join("secret"), "x").unwrap();
    set_mode("scans", 0o555);
    set_mode("secret", 0);
    let node = builder.clone().start();
    let mut session = node.login("demo", "x");
    session.command("TYPE I", 200);
    for (command, path, stored_at) in [
        ("STOR scans/new", "/scans/new", "scans/new"),
        ("MKD scans/d", "/scans/d", "scans/d"),
        ("DELE scans/old", "/scans/old", "scans/old"),
        ("RETR secret", "/secret", "secret"),
    ] {
        if !command.starts_with("MKD") && !command.starts_with("DELE") {
            session.epsv();
        }
        assert_eq!(session.command(command, 550).message(), "The storage refuses access", "{command}");
        let line = only_warning(&node, command.split(' ').next().unwrap(), "storage_access");
        let stored_at = node.root().join(stored_at).display().to_string();
        assert_fields(&line, [("path", path), ("errno", "EACCES"), ("stored_at", &stored_at)]);
        for part in ["runs as uid ", "chown", "root_squash"] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
    }
    // Restores the mode so that the test can remove the directory.
    set_mode("scans", 0o755);
}

#[test]
fn failed_queries_before_an_upload_are_counted_but_not_warned_about() {
    let node = Node::standalone().start();
    let mut session = node.login("demo", "x");
    session.command("TYPE I", 200);
    session.command("MKD there", 257);
    let before = node.daemon.lines().len();
    for (command, code, reason) in [
        ("SIZE no", 550, "not_found"),
        ("MDTM no", 550, "not_found"),
        ("MLST no", 550, "not_found"),
        ("CWD no", 550, "not_found"),
        ("MKD there", 550, "exists"),
    ] {
        session.command(command, code);
        let verb = command.split(' ').next().unwrap();
        assert_eq!(count(&node, verb, reason), Some(1.0), "{command}");
    }
    session.command("NOOP", 200);
    let lines = node.daemon.lines();
    assert!(!lines[before..].iter().any(|line| is_warning(line)), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("DEBUG") && line.contains("path=/no ")), "{lines:?}");
}

#[test]
fn a_session_cannot_flood_the_log_and_suppressed_lines_are_counted() {
    let node = Node::standalone().setting("failure_log_limit", 3).start();
    let mut session = node.login("demo", "x");
    session.command("TYPE I", 200);
    for number in 0..10 {
        session.epsv();
        session.command(&format!("RETR no{number}"), 550);
    }
    // Lines of other sessions are not suppressed.
    session.command("DELE no", 550);
    only_warning(&node, "DELE", "not_found");
    assert_eq!(count(&node, "RETR", "not_found"), Some(10.0));
    session.quit();
    let line = node.daemon.wait_for_line(|line| field(line, "omitted").is_some());
    assert_fields(&line, [("verb", "RETR"), ("reason", "not_found"), ("omitted", "7"), ("user", "demo")]);
    assert!(line.contains("failure_log_limit = 3"), "{line}");
    assert_eq!(warnings(&node, "RETR", "not_found", 4).len(), 4);
}

#[test]
fn the_log_line_of_a_cancelled_transfer_names_the_cause() {
    let site = site(json!({}), |node| node.setting("drain_timeout", "300ms"));
    let node = &site.node;
    let begin = |name: &str| {
        let mut session = login(node);
        let mut data = session.begin(&format!("STOR {name}"));
        data.write_all(b"12345").unwrap();
        eventually("the upload's first bytes", || {
            (fs::metadata(node.root().join("home").join(name)).ok()?.len() == 5).then_some(())
        });
        (session, data)
    };
    let line = |reason: &str, path: &str, expected: &str, result: &str| {
        let line = only_warning(node, "STOR", reason);
        assert!(line.contains(expected), "{expected} is not in {line}");
        assert_fields(&line, [("path", path), ("bytes", "5"), ("user", "anna"), ("result", result)]);
    };

    let (mut session, data) = begin("aborted");
    session.send("ABOR");
    session.expect(426);
    session.expect(226);
    line("aborted", "/aborted", "the client sent ABOR", "aborted");
    drop((session, data));

    let (session, _data) = begin("left");
    session.reset();
    line("client_gone", "/left", "the client closed the control connection", "client_gone");

    let (mut session, mut data) = begin("kicked");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let view = RegistryView::new(&RedisOptions::new(site.redis.address.to_string().parse().unwrap()));
        let records = view.sessions().await.unwrap();
        let command = NodeCommand::EndSession { session: records[0].id, reason: None };
        assert!(view.send(&"standalone".parse().unwrap(), &command).await.unwrap());
    });
    session.expect(421);
    line("ended_by_administrator", "/kicked", "an administrator ended the session", "aborted");
    let _ = data.read(&mut [0]);

    let (mut session, _data) = begin("drained");
    node.daemon.terminate();
    session.expect(421);
    // The admin address closes when the node ends.
    let line = warnings(node, "STOR", "node_stop", 1).remove(0);
    assert!(line.contains("drain_timeout"), "{line}");
    assert_fields(&line, [("path", "/drained"), ("bytes", "5")]);
}

#[test]
fn failures_of_background_work_have_their_path_in_the_log() {
    let node = Node::standalone().start();
    let mut session = node.login("demo", "x");
    session.command("TYPE I", 200);
    fs::write(node.root().join("large"), vec![0; 1 << 20]).unwrap();
    session.command("RMDA large", 550);
    assert_fields(
        &only_warning(&node, "RMDA", "not_a_directory"),
        [("path", "/large"), ("errno", "ENOTDIR")],
    );
    session.command("COMB large large", 553);
    assert_fields(&only_warning(&node, "COMB", "same_file"), [("path", "/large")]);
}
