//! The process: settings, files, signals, connections and the subcommand.

use std::{
    fs,
    io::{self, Read, Write},
    net::TcpStream,
    process::{Output, Stdio},
    sync::Arc,
    time::Duration,
};

use reqwest::Method;
use serde_json::json;
use tokio::task::JoinSet;

use crate::{
    api::{commands, put_node},
    support::{Authd, NODE_TOKEN, Redis, command, eventually, hash},
};

fn run(args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command(args).output().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[tokio::test]
async fn demo_runs_only_on_loopback_and_logs_a_warning() {
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
        let (status, _, stderr) = run(&["--demo", "--listen", address]);
        assert_eq!(status, 78);
        assert!(stderr.contains("listen") && stderr.contains("loopback"), "{stderr}");
    }
    let authd = Authd::start_bare(&["--demo"]);
    assert!(authd.log().contains("WARN") && authd.log().contains("ANY password"), "{}", authd.log());
    for (user, admin) in [("demo", false), ("admin", true), ("test", false)] {
        let account = authd.login(user, "whatever").await.json();
        assert_eq!(account["home"], format!("/{user}"));
        assert_eq!(account["admin"], admin);
    }
    assert_eq!(authd.login("root", "whatever").await.status, 403);
    // A demo without admin_token_file has no administrators.
    assert_eq!(authd.admin(Method::GET, "/v1/users", None).await.status, 401);
}

#[tokio::test]
async fn check_prints_the_meaning_of_the_settings_and_deep_check_asks_redis() {
    let dir = tempfile::tempdir().unwrap();
    let users = dir.path().join("users.toml");
    fs::write(&users, format!("[users.ann]\npassword_hash = \"{}\"\n[groups.staff]\n", hash("x"))).unwrap();
    let redis = Redis::start();
    let (users, url) = (users.to_str().unwrap(), redis.url());
    let settings = ["--users-file", users, "--redis-url", &url, "--check"];
    let (status, stdout, stderr) = run(&settings);
    assert_eq!(status, 0, "{stderr}");
    for part in ["the settings are valid", "1 users and 1 groups", "node_token_file not set", "--deep"] {
        assert!(stdout.contains(part), "{part}: {stdout}");
    }
    let (status, stdout, _) = run(&[&settings[..], &["--deep"]].concat());
    assert!(status == 0 && stdout.contains("ok      Redis at"), "{stdout}");
    drop(redis);
    let (status, stdout, _) = run(&[&settings[..], &["--deep"]].concat());
    assert!(status == 1 && stdout.contains("FAILED  Redis at") && stdout.contains("redis_url"), "{stdout}");
}

/// `ftpd --check --deep` relies on this: the token is checked before the body, and nothing is counted.
#[tokio::test]
async fn incomplete_login_reveals_only_whether_the_token_is_right() {
    let authd = Authd::start(&[]);
    let body = json!({});
    for (token, status) in [(NODE_TOKEN, 400), ("wrong", 401)] {
        let answer = authd.call(Method::POST, "/v1/authenticate", Some(token), Some(&body)).await;
        assert_eq!(answer.status, status);
    }
    let needed = authd.call(Method::GET, "/v1/users", None, None).await.json();
    let message = needed["message"].as_str().unwrap().to_owned();
    assert!(message.contains("administrators") && message.contains("admin_token_file"), "{message}");
}

#[test]
fn wrong_settings_exit_with_78_and_a_message() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("users.toml");
    fs::write(&file, "[users.ann]\npassword_hash = \"hunter2\"\n").unwrap();
    let file = file.to_str().unwrap();
    for (args, named) in [
        (&["--cache-ttl", "0s"][..], "cache_ttl"),
        (&["--users-file", file], "users_file"),
        (&["--users-file", file, "--check"], "users_file"),
        (&["--users-file", "/nonexistent.toml"], "/nonexistent.toml"),
    ] {
        let (status, _, stderr) = run(&[&["--listen", "127.0.0.1:0"], args].concat());
        assert_eq!(status, 78, "{stderr}");
        assert!(!stderr.contains("hunter2"), "{stderr}");
        assert_eq!(stderr.matches(named).count(), 1, "{stderr}");
    }
    let (status, stdout, _) = run(&["--demo", "--check"]);
    assert!(status == 0 && stdout.contains("the settings are valid") && stdout.contains("DEMO"), "{stdout}");
    let (status, table, _) = run(&["--print-settings"]);
    assert!(status == 0 && table.contains("| `throttle_delay` |"));
}

#[tokio::test]
async fn printed_hash_works_for_login() {
    let hash_password = |input: &str| {
        let mut child = command(&["--min-password-length", "13", "hash-password"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let (status, phc) = hash_password("corréct horse\r\n");
    assert!(status == 0 && phc.starts_with("$argon2id$v=19$m=64,t=1,p=1$") && phc.ends_with('\n'), "{phc}");
    assert_eq!(phc.lines().count(), 1);
    for bad in ["", "\n", "tabulator\tand more\n", "correct hors\n"] {
        assert_eq!(hash_password(bad), (1, String::new()), "{bad:?}");
    }

    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("ann.hash"), phc).unwrap();
    let file = dir.path().join("users.json");
    fs::write(&file, r#"{ "users": { "ann": { "password_hash_file": "ann.hash" } } }"#).unwrap();
    let authd = Authd::start(&["--users-file", file.to_str().unwrap()]);
    assert_eq!(authd.login("ann", "corréct horse").await.status, 200);
}

#[tokio::test]
async fn users_file_is_read_again_when_it_changes_and_an_invalid_one_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("users.toml");
    let write = |password: &str| {
        let new = dir.path().join("new");
        fs::write(&new, format!("[users.ann]\npassword_hash = \"{}\"\n", hash(password))).unwrap();
        fs::rename(new, &file).unwrap();
    };
    write("one");
    let args = ["--users-file", file.to_str().unwrap(), "--users-file-poll", "50ms"];
    let authd = Authd::start(
        &[
            &args[..],
            &["--throttle-free-failures", "9999"],
            &["--throttle-free-failures-per-address", "9999"],
        ]
        .concat(),
    );
    assert_eq!(authd.login("ann", "one").await.status, 200);
    write("two");
    eventually("the new password", async || authd.login("ann", "two").await.status == 200).await;
    assert_eq!(authd.login("ann", "one").await.status, 403);

    fs::write(&file, "[users.ann]\npassword = \"hunter2\"\n").unwrap();
    eventually("the broken file is seen", async || authd.metric("authd_users_file_current").await == 0.0)
        .await;
    assert_eq!(authd.login("ann", "two").await.status, 200);
    eventually("the log", async || authd.log().contains("the users file is invalid")).await;
    assert!(!authd.log().contains("hunter2"), "{}", authd.log());
    write("three");
    eventually("the mended file", async || authd.login("ann", "three").await.status == 200).await;
    assert_eq!(authd.metric("authd_users_file_current").await, 1.0);
}

#[tokio::test]
async fn sighup_reloads_the_users_file_and_sigterm_exits_with_0() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("users.toml");
    let write = |name: &str| {
        fs::write(&file, format!("[users.{name}]\npassword_hash = \"{}\"\n", hash("x"))).unwrap();
    };
    write("ann");
    let mut authd = Authd::start(&[
        "--users-file",
        file.to_str().unwrap(),
        "--users-file-poll",
        "1h",
        "--throttle-free-failures",
        "9999",
        "--throttle-free-failures-per-address",
        "9999",
    ]);
    write("bob");
    assert_eq!(authd.login("bob", "x").await.status, 403);
    authd.hangup();
    eventually("the new user", async || authd.login("bob", "x").await.status == 200).await;
    assert_eq!(authd.login("ann", "x").await.status, 403);
    assert_eq!(authd.terminate(), Some(0));
    eventually("the log's end", async || authd.log().trim_end().ends_with("stopped")).await;
}

#[tokio::test]
async fn sigterm_waits_for_requests_in_progress() {
    let redis = Redis::start();
    let mut authd = Authd::start(&["--redis-url", &redis.url()]);
    put_node(&mut redis.connection(), "ftp-1", "00112233445566aa", "ann", "192.0.2.1");
    let pid = authd.id();
    let stop = async {
        // Once the order exists, the request waits for the node, which does not react.
        let mut connection = redis.connection();
        eventually("the command", async || {
            redis::cmd("EXISTS").arg("ftp:commands:ftp-1").query(&mut connection).unwrap()
        })
        .await;
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    };
    let (ended, ()) = tokio::join!(authd.admin(Method::DELETE, "/v1/sessions/00112233445566aa", None), stop);
    assert_eq!(ended.status, 202);
    assert_eq!(authd.terminate(), Some(0));
    eventually("the log's end", async || authd.log().trim_end().ends_with("stopped")).await;
}

#[tokio::test]
async fn sessions_of_users_removed_or_disabled_in_the_users_file_end() {
    let redis = Redis::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("users.toml");
    let write = |users: &[(&str, &str, bool)]| {
        let user = |(name, password, enabled): &(&str, &str, bool)| {
            format!("[users.{name}]\npassword_hash = \"{password}\"\nenabled = {enabled}\n")
        };
        let new = dir.path().join("new");
        fs::write(&new, users.iter().map(user).collect::<String>()).unwrap();
        fs::rename(new, &file).unwrap();
    };
    let (x, y) = (hash("x"), hash("y"));
    write(&[("ann", &x, true), ("bob", &x, true), ("cyd", &x, true), ("dan", &x, true), ("eve", &x, false)]);
    let url = redis.url();
    let args = ["--redis-url", &url, "--users-file", file.to_str().unwrap(), "--users-file-poll", "50ms"];
    let _authd = Authd::start(&args);
    let mut connection = redis.connection();
    put_node(&mut connection, "ftp-1", "00112233445566aa", "ann", "192.0.2.1");
    let mut ended = async |users: &[&str]| {
        let end = |user: &&str| json!({ "command": "end_user", "user": user });
        let expected: Vec<_> = users.iter().map(end).collect();
        let mut received = Vec::new();
        eventually("the sessions end", async || {
            // The list starts with the latest command.
            received.extend(commands(&mut connection, "ftp-1").into_iter().rev());
            received.len() >= expected.len()
        })
        .await;
        assert_eq!(received, expected);
    };
    write(&[("ann", &x, true), ("cyd", &x, false), ("dan", &y, true), ("eve", &x, false)]);
    ended(&["bob", "cyd", "dan"]).await;
    // Unchanged users keep their sessions.
    write(&[("ann", &y, true), ("cyd", &x, false), ("dan", &y, true)]);
    ended(&["ann"]).await;
}

#[tokio::test]
async fn silent_connections_are_closed_and_open_connections_are_limited() {
    let authd = Authd::start(&["--max-connections", "2", "--header-timeout", "1s"]);
    let address = authd.url.strip_prefix("http://").unwrap().to_owned();
    let mut silent: Vec<TcpStream> = (0..2).map(|_| TcpStream::connect(&address).unwrap()).collect();
    silent[0].write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\nx: ").unwrap();
    // A third connection is served when one of them is closed. Without the limit for connections without a
    // token, it would wait for the header timeout.
    let mut third = TcpStream::connect(&address).unwrap();
    third.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    third.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut answer = [0; 12];
    third.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    for stream in &mut silent {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // A 408 response may come first. The connection ends with a reset if authd has not read all bytes.
        let ended = stream.read_to_end(&mut Vec::new());
        let is_reset = |error: io::Error| error.kind() == io::ErrorKind::ConnectionReset;
        assert!(ended.map_or_else(is_reset, |_| true));
    }
    drop(third);
    eventually("only the one that asks is open", async || {
        authd.metric("authd_http_connections").await <= 1.0
    })
    .await;
}

#[tokio::test]
async fn silent_connections_do_not_displace_nodes_or_health_checks() {
    let authd = Authd::start(&["--max-connections", "8", "--header-timeout", "5m"]);
    let address = authd.url.strip_prefix("http://").unwrap().to_owned();
    let connect = || {
        let stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    };
    let mut node = connect();
    let mut asks = || {
        let request =
            format!("GET /v1/authenticate HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {NODE_TOKEN}\r\n\r\n");
        node.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            node.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
        String::from_utf8(answer).unwrap()
    };
    assert!(!asks().starts_with("HTTP/1.1 401"));
    let mut silent = Vec::new();
    for _ in 0..40 {
        let mut stream = connect();
        // authd may have closed the connection already.
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nx: ");
        silent.push(stream);
    }
    let mut check = connect();
    check.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    let mut answer = [0; 12];
    check.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    assert!(!asks().starts_with("HTTP/1.1 401"));
    assert!(authd.metric("authd_http_connections_displaced_total").await >= 30.0);
    drop(silent);
}

/// 200 logins with unknown names, eight at a time. One computation uses 19 MiB.
#[tokio::test]
async fn memory_is_bounded_after_many_wrong_logins() {
    let authd = Arc::new(Authd::start(&["--max-verifications", "2"]));
    for round in 0..25 {
        let mut logins = JoinSet::new();
        for i in 0..8 {
            let authd = Arc::clone(&authd);
            logins.spawn(async move {
                let address = format!("192.0.2.{}", 1 + round * 8 + i);
                authd.login_from(&format!("nobody{round}-{i}"), "wrong", &address).await.status
            });
        }
        while let Some(status) = logins.join_next().await {
            assert!([403, 503].contains(&status.unwrap()));
        }
    }
    let status = fs::read_to_string(format!("/proc/{}/status", authd.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    assert!(peak < 200 * 1024, "{peak} kB");
}
