//! Logins: order of commands, limits, timeouts, and the users of a standalone node.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use cluster_tests::{
    dialogue::Dialogue,
    node::{Node, NodeBuilder},
};
use tempfile::TempDir;

fn with_users() -> NodeBuilder {
    Node::standalone().user("anna", "secret").user("bert", "pässword")
}

/// The time that authd takes for unknown users is tested in authd.
#[test]
fn replies_do_not_reveal_whether_a_user_exists() {
    let node = with_users().start();
    let mut session = node.connect();
    let known = session.command("USER anna", 331);
    assert_eq!(session.command("USER nobody", 331), known);
    let unknown_user = session.command("PASS secret", 530);
    session.command("USER anna", 331);
    assert_eq!(session.command("PASS wrong", 530), unknown_user);
}

#[test]
fn each_pass_needs_a_user_command_before_it() {
    let node = with_users().start();
    let mut session = node.connect();
    session.command("PASS secret", 503);
    session.command("USER anna", 331);
    session.command("PASS wrong", 530);
    session.command("PASS secret", 503);
    session.login("anna", "secret");
}

/// Empty, missing and huge passwords: ProFTPD #2275, #2279.
#[test]
fn names_and_passwords_must_match_byte_for_byte() {
    let node = with_users().setting("max_login_failures", 100).start();
    let mut session = node.connect();
    let long = "x".repeat(8000);
    for (user, password) in [
        ("ANNA", "secret"),
        ("anna ", "secret"),
        (" anna", "secret"),
        ("anna", "Secret"),
        ("anna", "secret "),
        ("anna", ""),
        ("anna", "secretsecret"),
        ("anna", &long),
        (&long, "secret"),
        ("../anna", "secret"),
        ("anna:secret", ""),
    ] {
        session.command(&format!("USER {user}"), 331);
        session.command(&format!("PASS {password}"), 530);
    }
    session.command("USER anna", 331);
    session.command("PASS", 530);
    session.command("USER", 501);
    session.login("anna", "secret");
}

#[test]
fn a_non_ascii_password_is_accepted_in_utf_8_and_latin_1() {
    let node = with_users().start();
    for password in [&b"p\xc3\xa4ssword"[..], b"p\xe4ssword"] {
        let mut session = node.connect();
        session.command("USER bert", 331);
        session.command_bytes(&[b"PASS ", password].concat(), 230);
    }
    let mut session = node.connect();
    session.command("USER bert", 331);
    session.command_bytes(b"PASS p\xff\xffssword", 530);
    session.command_bytes(b"USER b\xe9rt", 331);
    session.command("PASS x", 530);
}

#[test]
fn without_users_demo_admin_and_test_log_in_with_any_password() {
    let node = Node::standalone().start();
    for user in ["demo", "admin", "test"] {
        node.login(user, "whatever").command("PWD", 257);
    }
    let mut session = node.connect();
    session.command("USER anna", 331);
    session.command("PASS whatever", 530);
}

/// Commands without a check: CVE-2015-3306, CVE-2019-12815; before the login: ProFTPD #2003.
#[test]
fn before_login_only_commands_that_need_no_login_work() {
    let node = with_users().setting("max_unauthenticated_commands", 100).start();
    let mut session = node.connect();
    let refused = [
        "PWD",
        "XPWD",
        "CWD /",
        "CDUP",
        "MKD a",
        "RMD a",
        "RMDA a",
        "DELE a",
        "RNFR a",
        "RNTO a",
        "SIZE a",
        "MDTM a",
        "MDTM 20200101000000 a",
        "MFMT 20200101000000 a",
        "AVBL",
        "PASV",
        "EPSV",
        "EPSV ALL",
        "PORT 127,0,0,1,200,1",
        "EPRT |1|127.0.0.1|51201|",
        "TYPE I",
        "STRU F",
        "MODE S",
        "ALLO 1",
        "REST 0",
        "RANG 0 1",
        "RETR a",
        "STOR a",
        "STOU",
        "APPE a",
        "LIST",
        "NLST",
        "MLSD",
        "MLST",
        "STAT /",
        "HASH a",
        "XCRC a",
        "XMD5 a",
        "XSHA1 a",
        "XSHA256 a",
        "XSHA512 a",
        "COMB a b",
        "ABOR",
        "SITE WHO",
        "SITE HELP",
        "SITE CHMOD 777 a",
        "SITE UTIME 20200101000000 a",
        "OPTS MLST type;",
        "OPTS HASH MD5",
    ];
    for named in [false, true] {
        if named {
            session.command("USER anna", 331);
        }
        // Each round stays below the limit of consecutive errors.
        for command in refused.iter().skip(usize::from(named)).step_by(2) {
            session.command(command, 530);
        }
        session.command("NOOP", 200);
    }
    for (command, code) in [
        ("SYST", 215),
        ("FEAT", 211),
        ("HELP", 214),
        ("HELP RETR", 214),
        ("STAT", 211),
        ("OPTS UTF8 ON", 200),
        ("CLNT tests", 200),
        ("ACCT any", 202),
        ("NOOP", 200),
        ("REIN", 220),
    ] {
        session.command(command, code);
    }
    session.login("anna", "secret");
}

#[test]
fn a_session_can_log_in_again_only_after_rein() {
    let node = with_users().start();
    fs::create_dir(node.root().join("deep")).unwrap();
    let mut session = node.login("anna", "secret");
    for command in ["USER bert", "PASS secret", "HOST example.org"] {
        session.command(command, 503);
    }
    session.command("ACCT any", 202);
    session.command("CWD deep", 250);
    session.command("EPSV ALL", 200);
    session.epsv();
    assert_eq!(node.metric("ftp_passive_ports_reserved"), Some(1.0));

    session.command("REIN", 220);
    assert_eq!(node.metric("ftp_sessions"), Some(0.0));
    assert_eq!(node.metric("ftp_passive_ports_reserved"), Some(0.0));
    session.command("PWD", 530);
    session.command("PASS secret", 503);
    session.login("bert", "pässword");
    assert_eq!(session.command("PWD", 257).quoted_path().as_deref(), Some("/"));
    session.command("PASV", 227);
    assert_eq!(node.metric("ftp_sessions"), Some(1.0));
}

#[test]
fn host_must_precede_user_and_name_a_configured_host() {
    let node = with_users().setting("host_names", "ftp.example.org,other.example.org").start();
    let mut session = node.connect();
    session.command("HOST ftp.example.org", 220);
    session.command("HOST OTHER.example.org", 220);
    session.command("HOST www.example.org", 504);
    for wrong in ["HOST", "HOST a b", "HOST [::1", "HOST ../x", "HOST a..b"] {
        session.command(wrong, 501);
    }
    session.command("USER anna", 331);
    session.command("HOST ftp.example.org", 503);
    session.command("PASS secret", 230);
    session.command("HOST ftp.example.org", 503);

    let anywhere = with_users().start();
    anywhere.connect().command("HOST www.example.org", 220);
    anywhere.connect().command("HOST [2001:db8::1]", 220);
}

#[test]
fn the_last_failed_login_ends_the_connection() {
    let node = with_users().setting("max_login_failures", 3).start();
    let mut session = node.connect();
    for code in [530, 530, 421] {
        session.command("USER anna", 331);
        session.command("PASS wrong", code);
    }
    assert_eq!(session.expect_closed(), []);
    assert_eq!(node.metric("ftp_logins_total{result=\"rejected\"}"), Some(3.0));
    assert_eq!(node.metric("ftp_limit_reached_total{limit=\"max_login_failures\"}"), Some(1.0));
    // A new connection has a new count: only authd counts over several connections.
    node.login("anna", "secret");
}

/// Pre-authentication growth: CVE-2026-44240, ProFTPD #846.
#[test]
fn the_number_of_commands_before_login_is_limited() {
    let node = with_users().setting("max_unauthenticated_commands", 5).start();
    let mut session = node.connect();
    for _ in 0..5 {
        session.command("NOOP", 200);
    }
    session.command("NOOP", 421);
    assert_eq!(session.expect_closed(), []);

    // A login ends the count, and REIN starts a new one.
    let mut session = node.login("anna", "secret");
    for _ in 0..20 {
        session.command("NOOP", 200);
    }
    session.command("REIN", 220);
    for _ in 0..5 {
        session.command("NOOP", 200);
    }
    session.command("NOOP", 421);
}

#[test]
fn commands_do_not_extend_the_login_timeout() {
    let node = with_users()
        .setting("login_timeout", "1s")
        .setting("max_unauthenticated_commands", 1_000_000)
        .start();
    let mut session = node.connect();
    loop {
        session.send("NOOP");
        match session.reply().code {
            200 => {}
            421 => break,
            code => panic!("{code}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    session.expect_closed();
    assert_eq!(node.metric("ftp_sessions_ended_total{reason=\"login_timeout\"}"), Some(1.0));
}

#[test]
fn a_session_without_commands_times_out_unless_a_transfer_runs() {
    let node = with_users().setting("idle_timeout", "700ms").start();
    let mut busy = node.login("anna", "secret");
    let data = busy.begin("STOR file");
    // Each of these waits for a whole idle timeout.
    for _ in 0..2 {
        let mut idle = node.login("anna", "secret");
        idle.expect(421);
        assert_eq!(idle.expect_closed(), []);
    }
    drop(data);
    busy.expect(226);
    busy.expect(421);
    assert_eq!(node.metric("ftp_sessions_ended_total{reason=\"idle_timeout\"}"), Some(3.0));
}

#[test]
fn stat_before_login_reveals_nothing_about_the_node() {
    let node = with_users().start();
    let mut session = node.connect();
    let mentions = |status: &cluster_tests::reply::Reply| {
        ["Node", "version", "Session"].map(|word| status.text().contains(word))
    };
    assert_eq!(mentions(&session.command("STAT", 211)), [false; 3]);
    session.login("anna", "secret");
    assert_eq!(mentions(&session.command("STAT", 211)), [true; 3]);
}

#[test]
fn site_who_shows_only_the_users_own_sessions() {
    let node = with_users().start();
    let mut anna = node.login("anna", "secret");
    let second = node.login("anna", "secret");
    let _bert = node.login("bert", "pässword");
    let _not_logged_in = node.connect();
    let shown = anna.command("SITE WHO", 211);
    assert_eq!(shown.details().len(), 2, "{shown:?}");
    assert!(shown.details().iter().all(|line| line.contains(" anna standalone")), "{shown:?}");
    second.quit();
    assert_eq!(anna.command("SITE WHO", 211).raw.split(|b| *b == b'\n').count(), 4);
}

#[test]
fn a_whole_session_may_arrive_in_one_packet() {
    let node = with_users().start();
    let mut session = node.connect();
    session.send_bytes(b"USER anna\r\nPASS secret\r\nPWD\r\nMKD a\r\nCWD a\nPWD\r\nQUIT\r\nPWD\r\n");
    for code in [331, 230, 257, 257, 250] {
        session.expect(code);
    }
    assert_eq!(session.expect(257).quoted_path().as_deref(), Some("/a"));
    session.expect(221);
    assert_eq!(session.expect_closed(), []);
}

#[test]
fn the_configured_greeting_is_sent() {
    let node = with_users().setting("greeting", "Welcome to the tests").start();
    let mut session = Dialogue::dial(&cluster_tests::proxy::Connector::new(), node.address);
    assert_eq!(session.expect(220).message(), "Welcome to the tests");
    let status = node.login("anna", "secret").command("STAT", 211);
    assert!(status.details().iter().any(|line| line == "Logged in as anna"), "{status:?}");
}

/// A cheap hash of "hunter2", printed by `authd hash-password` with low `argon2_…` settings.
const HASH: &str =
    "$argon2id$v=19$m=64,t=1,p=1$WblnLZrd9Cyxsu/sbkhdIw$wnkMJjrTKrlYPakOFWemRv7yyd1rBRoNajoHgc4lmKQ";

fn user_file(text: &str, mode: u32) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("users");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    folder
}

fn with_user_file(folder: &TempDir) -> NodeBuilder {
    Node::standalone().setting("user_file", folder.path().join("users").display())
}

#[test]
fn users_of_user_file_log_in_with_hashed_passwords() {
    let folder = user_file(&format!("# users\n\nanna:{HASH}\nbert: {HASH}\n"), 0o600);
    let node = with_user_file(&folder).user("carl", "plain").setting("max_login_failures", 100).start();
    for (user, password) in [("anna", "hunter2"), ("bert", "hunter2"), ("carl", "plain")] {
        node.login(user, password).store(&format!("of-{user}"), b"content");
    }
    let mut session = node.connect();
    for (user, password) in
        [("anna", "hunter3"), ("anna", ""), ("anna", HASH), ("dora", "hunter2"), ("carl", "hunter2")]
    {
        session.command(&format!("USER {user}"), 331);
        session.command(&format!("PASS {password}"), 530);
    }
    let warnings = node.daemon.lines().into_iter().filter(|line| line.contains("user_file")).count();
    assert_eq!(warnings, 0);
}

#[test]
fn passwords_that_other_users_of_the_host_can_see_are_logged_as_warnings() {
    let folder = user_file(&format!("anna:{HASH}\n"), 0o644);
    let node = with_user_file(&folder).start();
    node.daemon
        .wait_for_line(|line| line.contains("WARN") && line.contains("0644") && line.contains("chmod 600"));

    let node = Node::standalone().user("anna", "secret").start();
    let line = node.daemon.wait_for_line(|line| line.contains("WARN") && line.contains("`ps`"));
    assert!(line.contains("--user-file") && line.contains("FTPD_USER") && !line.contains("secret"), "{line}");

    let node = Node::standalone().variable("FTPD_USER", "anna:secret").start();
    node.login("anna", "secret");
    assert!(!node.daemon.lines().iter().any(|line| line.contains("`ps`")));
}

#[test]
fn an_invalid_user_file_is_refused_with_the_line_number_and_without_secrets() {
    for (text, reason) in [
        (format!("anna:{HASH}\nbert:hunter2\n"), "line 2: the password hash is not a PHC string"),
        ("hunter2\n".to_owned(), "line 1 is not NAME:HASH"),
        (format!(":{HASH}\n"), "line 1 is not NAME:HASH"),
        (format!("anna:{HASH}\nanna:{HASH}\n"), "line 2: the user \"anna\" occurs twice"),
        ("# hunter2\n".to_owned(), "the file contains no user"),
    ] {
        let folder = user_file(&text, 0o600);
        let mut node = with_user_file(&folder).spawn();
        let line = node.daemon.wait_for_line(|line| line.contains("user_file"));
        assert!(line.contains(reason) && !line.contains("hunter2"), "{line}");
        assert_eq!(node.daemon.wait().code(), Some(78));
    }
}
