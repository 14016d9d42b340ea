//! Decisions of authd as the node applies them: logins, permissions, upload modes; and the node's replies if
//! authd fails or sends an invalid response.

use std::{
    fs,
    io::{Read, Write},
    net::Shutdown,
    time::{Duration, Instant},
};

use cluster_tests::{
    content::{bytes, sha256},
    dialogue::{Dialogue, reset},
    eventually,
    node::{Node, NodeBuilder},
    redis::Redis,
    stub_authd::{Answer, StubAuthd},
    tls::{Authority, SecureDialogue},
};
use serde_json::{Value, json};

/// A cluster of one node with its Redis, which asks the authd instances `authds`. Homes are below its root.
fn node(authds: &str) -> (Redis, NodeBuilder) {
    let builder = Node::standalone().in_cluster();
    let redis = Redis::start(builder.loopback().socket(1, 6379));
    let builder = builder
        .setting("authd_urls", authds)
        .setting("redis_url", redis.address)
        .setting("create_homes", "true");
    (redis, builder)
}

/// Same as [`node`], with a stub authd that accepts every login with the fields of `account`.
fn with_account(account: Value) -> (Redis, StubAuthd, Node) {
    with_authd(move |request| {
        let mut account = account.clone();
        account["user"] = request["user"].clone();
        Answer::account(&account)
    })
}

fn with_authd(answer: impl Fn(&Value) -> Answer + Send + Sync + 'static) -> (Redis, StubAuthd, Node) {
    let authd = StubAuthd::start(answer);
    let (redis, builder) = node(&authd.url());
    (redis, authd, builder.start())
}

fn refused_login(session: &mut Dialogue) -> u16 {
    session.command("USER anna", 331);
    session.send("PASS very-secret");
    session.reply().code
}

#[test]
fn authd_gets_the_subject_of_a_verified_client_certificate() {
    let (authority, strangers) = (Authority::new(), Authority::new());
    let server = authority.sign("localhost");
    let authd = StubAuthd::start(|request| Answer::account(&json!({ "user": request["user"], "home": "/" })));
    let (_redis, builder) = node(&authd.url());
    let node = builder
        .setting("tls_certificates", server.chain.display())
        .setting("tls_keys", server.key.display())
        .setting("tls_client_ca", authority.file().display())
        .start();
    let mut session = SecureDialogue::explicit(&authority.client(), node.address);
    session.login("anna", "");
    let scanner = authority.sign("scanner");
    for _ in 0..2 {
        let mut session = SecureDialogue::explicit(&authority.client_with(&scanner), node.address);
        session.login("anna", "");
        session.transmit("STOR file", b"content");
    }
    let subjects: Vec<_> =
        authd.requests().iter().map(|request| request["client_certificate"]["subject"].clone()).collect();
    assert_eq!(subjects, [Value::Null, json!("CN=scanner"), json!("CN=scanner")]);
    // The handshake fails with a certificate of an unknown authority.
    let mut clear = node.connect();
    clear.command("AUTH TLS", 234);
    let stranger = authority.client_with(&strangers.sign("scanner"));
    let handshake = stranger.encrypt(clear.control().try_clone().unwrap());
    // With TLS 1.3 the client sees the refusal only when it reads.
    assert!(handshake.and_then(|mut stream| stream.read_exact(&mut [0])).is_err());
    assert_eq!(authd.requests().len(), 3);
}

/// Nodes are upgraded before authd, so a new node must work with an older authd.
#[test]
fn an_older_authd_gets_only_subjects_without_special_characters() {
    let authority = Authority::new();
    let server = authority.sign("localhost");
    let authd = StubAuthd::start(|request| match &request["client_certificate"] {
        Value::Null => Answer::account(&json!({ "user": request["user"], "home": "/" })),
        _ => {
            let message = "unknown field `client_certificate`, expected one of `user`, `password`";
            let body = json!({ "error": "invalid_request", "message": message });
            Answer::Http("400 Bad Request", String::new(), body.to_string())
        }
    });
    let (_redis, builder) = node(&authd.url());
    let node = builder
        .setting("tls_certificates", server.chain.display())
        .setting("tls_keys", server.key.display())
        .setting("tls_client_ca", authority.file().display())
        .start();
    for (name, expected) in [("scanner", json!("CN=scanner")), ("O=a, CN=scanner", Value::Null)] {
        let files = authority.sign_with("client", &rcgen::PKCS_ECDSA_P256_SHA256, |parameters| {
            parameters.distinguished_name.push(rcgen::DnType::CommonName, name);
        });
        SecureDialogue::explicit(&authority.client_with(&files), node.address).login("anna", "");
        assert_eq!(authd.requests().last().unwrap()["certificate"], expected);
    }
}

#[test]
fn an_account_can_require_tls_on_a_node_that_does_not() {
    let authority = Authority::new();
    let server = authority.sign("localhost");
    let authd = StubAuthd::start(|request| {
        let careful = request["user"] == "careful";
        let tls = json!({ "control": careful, "data": careful });
        Answer::account(&json!({ "user": request["user"], "home": "/", "tls": tls }))
    });
    let (_redis, builder) = node(&authd.url());
    let node = builder
        .setting("tls_certificates", server.chain.display())
        .setting("tls_keys", server.key.display())
        .start();
    node.login("other", "x").receive("LIST");
    let mut clear = node.connect();
    clear.command("USER careful", 331);
    assert!(clear.command("PASS x", 530).text().contains("AUTH TLS"));
    let mut session = SecureDialogue::explicit(&authority.client(), node.address);
    session.command("USER careful", 331);
    session.command("PASS x", 230);
    session.epsv();
    session.command("LIST", 521);
    session.command("PBSZ 0", 200);
    session.command("PROT P", 200);
    session.receive("LIST");
    session.command("PROT C", 534);
}

#[test]
fn too_long_names_and_passwords_are_rejected_without_asking_authd() {
    let (_redis, authd, node) = with_account(json!({ "home": "/" }));
    // In JSON, each of these bytes takes six.
    for (name, password) in
        [("anna", "\x01".repeat(4000)), ("anna", "x".repeat(1025)), (&"\x01".repeat(4000), "x".to_owned())]
    {
        let mut session = node.connect();
        session.command(&format!("USER {name}"), 331);
        assert_eq!(session.command(&format!("PASS {password}"), 530).text(), "530 Login incorrect");
    }
    assert!(authd.requests().is_empty());
    assert_eq!(node.metric("ftp_logins_total{result=\"rejected\"}"), Some(3.0));
    node.login("anna", &"x".repeat(1024));
}

#[test]
fn authd_gets_user_password_address_node_and_session() {
    let (_redis, authd, node) = with_account(json!({ "home": "/homes/anna" }));
    let mut session = node.login("anna", "very-secret \"quoted\"");
    session.store("file", b"content");
    assert_eq!(fs::read(node.root().join("homes/anna/file")).unwrap(), b"content");
    let requests = authd.requests();
    assert_eq!(requests.len(), 1);
    let request = &requests[0];
    assert_eq!(request["user"], "anna");
    assert_eq!(request["password"], "very-secret \"quoted\"");
    assert_eq!(request["address"], "127.0.0.1");
    assert_eq!(request["node"], "standalone");
    assert_eq!(request["tls"], false);
    let status = session.command("STAT", 211).details();
    let id = request["session"].as_str().unwrap();
    assert!(status.contains(&format!("Session {id}")), "{status:?}");
}

/// Commands without a check: CVE-2015-3306, CVE-2019-12815, ProFTPD #2095.
#[test]
fn commands_without_their_permission_get_550() {
    // The commands that need each permission. All other permissions are granted.
    let table: [(&str, &[&str]); 10] = [
        ("list", &["LIST", "NLST", "MLSD", "MLST file", "STAT file", "SIZE file", "MDTM file", "AVBL"]),
        (
            "download",
            &[
                "RETR file",
                "HASH file",
                "XCRC file",
                "XMD5 file",
                "XSHA1 file",
                "XSHA256 file",
                "XSHA512 file",
            ],
        ),
        ("upload", &["STOR new", "STOU", "APPE new", "COMB new file"]),
        ("overwrite", &["STOR file"]),
        ("append", &["APPE file", "REST 3|STOR file", "COMB file other"]),
        ("rename", &["RNFR file"]),
        ("delete", &["DELE file", "RMDA directory", "COMB new file"]),
        ("mkdir", &["MKD new"]),
        ("rmdir", &["RMD directory", "RMDA directory"]),
        (
            "attributes",
            &[
                "SITE CHMOD 600 file",
                "MFMT 20200101000000 file",
                "MDTM 20200101000000 file",
                "SITE UTIME 20200101000000 file",
            ],
        ),
    ];
    // The user's name is the missing permission.
    let (_redis, _authd, node) = with_authd(|request| {
        let permission = request["user"].as_str().unwrap_or_default();
        Answer::account(&json!({ "user": permission, "home": "/home", "permissions": { permission: false } }))
    });
    fs::create_dir_all(node.root().join("home/directory")).unwrap();
    for name in ["file", "other"] {
        fs::write(node.root().join("home").join(name), "content").unwrap();
    }
    for (permission, commands) in table {
        let mut session = node.login(permission, "x");
        session.command("TYPE I", 200);
        for command in commands {
            session.epsv();
            match command.split_once('|') {
                Some((first, second)) => {
                    session.command(first, 350);
                    session.command(second, 550);
                }
                None => _ = session.command(command, 550),
            }
        }
        // The refused commands had no effect, and all others work.
        assert_eq!(fs::read(node.root().join("home/file")).unwrap(), b"content", "{permission}");
        assert_eq!(fs::read_dir(node.root().join("home")).unwrap().count(), 3, "{permission}");
        session.command("CWD directory", 250);
        session.command("CDUP", 250);
        if permission != "download" {
            assert_eq!(session.retrieve("file"), b"content");
        }
    }
    // Without `overwrite`, STOR and RNTO cannot replace a file but can create one.
    let mut session = node.login("overwrite", "x");
    session.command("RNFR other", 350);
    session.command("RNTO file", 550);
    session.command("RNFR other", 350);
    session.command("RNTO new", 250);
    session.store("newer", b"content");
    assert_eq!(fs::read(node.root().join("home/file")).unwrap(), b"content");
    // Without `append`, APPE can still create a file.
    let mut session = node.login("append", "x");
    session.transmit("APPE newest", b"content");
    assert_eq!(fs::read(node.root().join("home/newest")).unwrap(), b"content");
}

#[test]
fn a_user_cannot_leave_a_home_below_the_root() {
    let (_redis, _authd, node) = with_account(json!({ "home": "/homes/anna" }));
    fs::create_dir_all(node.root().join("homes/bert")).unwrap();
    fs::write(node.root().join("homes/bert/secret"), "secret").unwrap();
    let mut session = node.login("anna", "x");
    for path in ["../bert/secret", "/../bert/secret", "../../homes/bert/secret", "/homes/bert/secret"] {
        session.epsv();
        session.command(&format!("RETR {path}"), 550);
    }
    session.command("CWD ../bert", 550);
    session.command("CDUP", 250);
    assert!(session.receive("NLST").is_empty());
}

#[test]
fn a_login_fails_if_the_home_cannot_be_used() {
    for home in ["/a\0b", "/file", "/file/below"] {
        let (_redis, _authd, node) = with_account(json!({ "home": home }));
        fs::write(node.root().join("file"), "").unwrap();
        let mut session = node.connect();
        assert_eq!(refused_login(&mut session), 421, "{home:?}");
        assert_eq!(session.expect_closed(), []);
        node.wait_for_metric("ftp_sessions", |sessions| sessions == 0.0);
    }
}

/// Homes outside the root: CVE-2026-30915.
#[test]
fn dot_dot_in_a_home_does_not_leave_the_root() {
    let (_redis, _authd, node) = with_account(json!({ "home": "/../../../outside" }));
    node.login("anna", "x").store("file", b"content");
    assert_eq!(fs::read(node.root().join("outside/file")).unwrap(), b"content");
}

#[test]
fn each_refusal_of_authd_gets_its_reply() {
    let (_redis, _authd, node) = with_authd(|request| match request["user"].as_str() {
        Some("throttled") => Answer::Http(
            "429 Too Many Requests",
            "retry-after: 17\r\n".to_owned(),
            json!({ "error": "throttled", "message": "later" }).to_string(),
        ),
        reason => {
            let body = json!({ "error": "invalid_credentials", "message": "wrong", "reason": reason });
            Answer::Http("403 Forbidden", String::new(), body.to_string())
        }
    });
    let reasons = [
        ("unknown_user", "there is no such user"),
        ("address_not_allowed", "the user may not log in from this address"),
        ("of_a_later_authd", "authd refused the login"),
    ];
    for (reason, message) in reasons {
        let mut session = node.connect();
        session.command(&format!("USER {reason}"), 331);
        // The reply does not reveal the reason.
        assert_eq!(session.command("PASS x", 530).text(), "530 Login incorrect");
        let line = node.daemon.wait_for_message("login failed", &[("user", reason)]);
        let shown = if reason == "of_a_later_authd" { "unknown" } else { reason };
        assert!(line.contains(message) && line.contains(&format!(" reason={shown}")), "{line}");
        assert_eq!(node.metric(&format!("ftp_logins_rejected_total{{reason=\"{shown}\"}}")), Some(1.0));
    }
    let mut session = node.connect();
    session.command("USER throttled", 331);
    assert!(session.command("PASS x", 421).message().contains("17 s"));
    assert_eq!(session.expect_closed(), []);
    for (result, count) in [("rejected", 3.0), ("throttled", 1.0)] {
        assert_eq!(node.metric(&format!("ftp_logins_total{{result=\"{result}\"}}")), Some(count));
    }
}

#[test]
fn an_invalid_response_of_authd_accepts_no_login() {
    let answers = [
        Answer::Bytes(b""),
        Answer::Bytes(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{\"user\":"),
        Answer::Bytes(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n19\r\n{\"user\":\"1\",\"home\":\"/\"}\r\n",
        ),
        Answer::Bytes(b"SSH-2.0-not-http\r\n"),
        Answer::Http("200 OK", String::new(), "not json".to_owned()),
        Answer::Http("200 OK", String::new(), "{}".to_owned()),
        Answer::Http("200 OK", String::new(), json!({ "user": "anna" }).to_string()),
        Answer::Http("200 OK", String::new(), json!({ "user": "anna", "home": 5 }).to_string()),
        Answer::Http("204 No Content", String::new(), String::new()),
        Answer::Http("302 Found", "location: /elsewhere\r\n".to_owned(), String::new()),
        Answer::refusal("401 Unauthorized", "unauthorized"),
        Answer::refusal("500 Internal Server Error", "internal"),
        Answer::refusal("503 Service Unavailable", "unavailable"),
        Answer::Http("403 Forbidden", String::new(), String::new()),
    ];
    let count = answers.len();
    let (_redis, authd, node) = with_authd(move |request| {
        let number = request["user"].as_str().and_then(|user| user.parse::<usize>().ok());
        answers[number.unwrap_or_default()].clone()
    });
    for number in 0..count {
        let mut session = node.connect();
        session.command(&format!("USER {number}"), 331);
        session.command("PASS very-secret", 421);
        assert_eq!(session.expect_closed(), []);
    }
    assert_eq!(node.metric("ftp_logins_total{result=\"unavailable\"}"), Some(count as f64));
    // On a new connection, no request is repeated.
    assert_eq!(authd.requests().len(), count);
}

#[test]
fn a_slow_or_unreachable_authd_fails_the_login_within_the_timeout() {
    let authd = StubAuthd::start(|_| Answer::Silence);
    let (_redis, builder) = node("placeholder");
    let away = builder.loopback().socket(2, 5160);
    let builder = builder.setting("authd_urls", format!("http://{away},{}", authd.url()));
    let node = builder.setting("authd_timeout", "1s").start();
    let mut waiting = node.connect();
    let started = Instant::now();
    waiting.command("USER anna", 331);
    waiting.send("PASS very-secret");
    // Other sessions do not wait for it.
    node.connect().command("NOOP", 200);
    waiting.expect(421);
    let took = started.elapsed();
    assert!((Duration::from_millis(900)..Duration::from_secs(5)).contains(&took), "{took:?}");
    assert_eq!(waiting.expect_closed(), []);
}

#[test]
fn if_one_authd_fails_the_next_is_asked_and_stays_preferred() {
    let silent = StubAuthd::start(|_| Answer::Silence);
    let broken = StubAuthd::start(|_| Answer::refusal("500 Internal Server Error", "internal"));
    let good = StubAuthd::start(|request| Answer::account(&json!({ "user": request["user"], "home": "/" })));
    let (_redis, builder) = node("placeholder");
    let away = builder.loopback().socket(4, 5160);
    let urls = format!("http://{away},{},{},{}/", silent.url(), broken.url(), good.url());
    let builder = builder.setting("authd_urls", urls);
    let node = builder.setting("authd_timeout", "3s").start();
    node.login("anna", "x");
    assert_eq!(broken.requests().len(), 1);
    node.login("anna", "x");
    node.login("anna", "x");
    assert_eq!((broken.requests().len(), good.requests().len()), (1, 3));
}

#[test]
fn passwords_and_tokens_are_never_logged() {
    let authd = StubAuthd::start(|request| Answer::account(&json!({ "user": request["user"], "home": "/" })));
    let (_redis, builder) = node(&authd.url());
    let token = builder.root().join("token");
    fs::write(&token, "node-token-value").unwrap();
    let node = builder.setting("log_level", "trace").setting("authd_token_file", token.display()).start();
    let mut session = node.connect();
    session.command("PASS very-secret", 503);
    session.login("anna", "very-secret");
    session.command("USER bert", 503);
    session.command("PASS very-secret", 503);
    session.send("pass very-secret");
    session.expect(503);
    session.send_bytes(b"PASS very-secret\0\r\n");
    session.expect(501);
    session.send("PASSvery-secret");
    session.expect(500);
    session.quit();
    node.daemon.wait_for_message("session ended", &[]);
    let log = node.daemon.lines().join("\n");
    // At level `trace` the log contains DEBUG lines, too.
    assert!(log.contains("DEBUG"), "the level was not trace");
    for secret in ["very-secret", "node-token-value"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

#[test]
fn an_atomic_upload_appears_only_when_complete_and_can_be_resumed() {
    let (_redis, _authd, node) = with_account(json!({ "home": "/", "uploads": "atomic" }));
    let content = bytes(1, 2 << 20);
    fs::write(node.root().join("file"), "old").unwrap();
    let mut session = node.login("anna", "x");
    session.command("TYPE I", 200);
    let names = |node: &Node| {
        let names = fs::read_dir(node.root()).unwrap().map(|entry| entry.unwrap().file_name());
        names.map(|name| name.into_string().unwrap()).collect::<Vec<_>>()
    };
    let partial = |node: &Node| names(node).into_iter().find(|name| name.starts_with(".ftpd-partial-"));

    let mut data = session.begin("STOR file");
    data.write_all(&content[..1 << 20]).unwrap();
    eventually("the first part to be stored", || {
        let partial = node.root().join(partial(&node)?);
        (fs::metadata(partial).ok()?.len() >= 1 << 20).then_some(())
    });
    assert_eq!(fs::read(node.root().join("file")).unwrap(), b"old");
    let mut reader = node.login("bert", "x");
    assert_eq!(reader.retrieve("file"), b"old");
    reset(data);
    session.expect(426);
    assert_eq!(fs::read(node.root().join("file")).unwrap(), b"old");
    assert_eq!(session.receive("NLST"), b"file\r\n");

    session.command(&format!("REST {}", 1 << 20), 350);
    session.transmit("STOR file", &content[1 << 20..]);
    assert_eq!(sha256(fs::read(node.root().join("file")).unwrap()), sha256(&content));
    assert_eq!(names(&node), ["file"]);

    // SIZE of an unfinished new file is the number of bytes received so far.
    let mut data = session.begin("STOR new");
    data.write_all(b"12345").unwrap();
    eventually("the part to be stored", || {
        let partial = node.root().join(partial(&node)?);
        (fs::metadata(partial).ok()?.len() == 5).then_some(())
    });
    // The control connection ends first, so the end of the data connection does not complete the upload.
    drop(session);
    let _ = data.shutdown(Shutdown::Write);
    node.wait_for_metric("ftp_sessions", |sessions| sessions == 1.0);
    assert!(!node.root().join("new").exists());
    let mut session = node.login("anna", "x");
    assert_eq!(session.size("new"), 5);
    reader.command("SIZE new", 550);
    session.command("REST 5", 350);
    session.transmit("STOR new", b"67890");
    assert_eq!(fs::read(node.root().join("new")).unwrap(), b"1234567890");
    assert_eq!(partial(&node), None);
}

#[test]
fn the_account_limits_the_users_sessions() {
    let (_redis, _authd, node) = with_account(json!({ "home": "/", "limits": { "sessions": 2 } }));
    let first = node.login("anna", "x");
    let _second = node.login("anna", "x");
    let mut third = node.connect();
    assert_eq!(refused_login(&mut third), 421);
    assert_eq!(third.expect_closed(), []);
    node.login("bert", "x");
    first.quit();
    eventually("another session to be accepted", || {
        let mut session = node.connect();
        (refused_login(&mut session) == 230).then_some(())
    });
}

#[test]
fn an_administrator_sees_all_sessions() {
    let (_redis, _authd, node) = with_account(json!({ "home": "/", "admin": true }));
    let _bert = node.login("bert", "x");
    let shown = node.login("anna", "x").command("SITE WHO", 211).details().join("\n");
    assert!(shown.contains(" anna ") && shown.contains(" bert ") && shown.contains("127.0.0.1"), "{shown}");
}
