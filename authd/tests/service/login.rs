//! Logins: right and wrong ones, the throttle, the cache, and operation without Redis.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use reqwest::Method;
use serde_json::json;

use crate::support::{Authd, NODE_TOKEN, Redis, authenticate, command, eventually, hash};

fn users_file(dir: &tempfile::TempDir) -> String {
    let path = dir.path().join("users.toml");
    let text = format!(
        "[users.ann]\npassword_hash = \"{0}\"\nhome = \"/teams/a\"\nlimits.sessions = 2\n\
         permissions.delete = false\nuploads = \"atomic\"\n\
         [users.off]\npassword_hash = \"{0}\"\nenabled = false\n",
        hash("hunter2"),
    );
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn with_certificates(users: &[(&str, &str)]) -> String {
    let user = |(name, rule): &(&str, &str)| {
        let hash = hash("hunter2");
        format!("[users.{name}]\npassword_hash = \"{hash}\"\ncertificates = ['{rule}']\n")
    };
    users.iter().map(user).collect()
}

#[tokio::test]
async fn verified_certificate_replaces_the_password_of_its_user_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("users.toml");
    let (key, other_key) = (format!("sha256:{}", "ab".repeat(32)), format!("sha256:{}", "cd".repeat(32)));
    let users = with_certificates(&[
        ("ann", "O=Example, CN=scanner 7"),
        ("ben", "CN=other"),
        ("key", &key),
        ("mail", "email:ann@example.com"),
    ]);
    fs::write(&path, users).unwrap();
    let authd = Authd::start(&["--users-file", path.to_str().unwrap()]);
    let by_subject = |subject: &str| json!({ "subject": subject, "key": other_key });
    let named = json!({ "key": other_key, "names": ["email:ann@EXAMPLE.com"] });
    for (name, password, certificate, status) in [
        ("ann", "", by_subject("CN=scanner 7,O=Example"), 200),
        ("ann", "", by_subject("O=Example\\, CN=scanner 7"), 403),
        ("ann", "", by_subject("CN=scanner 7"), 403),
        ("ann", "", by_subject("CN=scanner 7+O=Example"), 403),
        ("ann", "hunter2", by_subject("CN=other"), 200),
        ("ben", "", by_subject("CN=scanner 7,O=Example"), 403),
        ("unknown", "", by_subject("CN=other"), 403),
        ("key", "", json!({ "key": key }), 200),
        ("key", "", json!({ "key": other_key }), 403),
        ("mail", "", named.clone(), 200),
        ("ben", "", named, 403),
        ("ben", "", json!({ "subject": "CN=a,b", "key": key }), 400),
    ] {
        let mut body = authenticate(name, password, "192.0.2.1");
        body["client_certificate"] = certificate.clone();
        let answer = authd.call(Method::POST, "/v1/authenticate", Some(NODE_TOKEN), Some(&body)).await;
        assert_eq!(answer.status, status, "{name} {certificate}");
    }
    let fields = ["user=ann", "subject=\"CN=scanner 7,O=Example\"", &format!("key={other_key}")];
    eventually("the log names the certificate", async || {
        authd.log().lines().any(|line| fields.iter().all(|field| line.contains(field)))
    })
    .await;
}

/// Needed until all nodes are upgraded.
#[tokio::test]
async fn subject_text_of_an_older_node_is_accepted_only_if_unambiguous() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("users.toml");
    let users = with_certificates(&[("ann", "O=Acme, CN=scanner"), ("ben", "CN=other"), ("eve", "CN=a\\,b")]);
    fs::write(&path, users).unwrap();
    let authd = Authd::start(&["--users-file", path.to_str().unwrap()]);
    for (name, subject, status) in [
        ("ben", "CN=other", 200),
        ("ann", "O=Acme, CN=scanner", 403),
        ("ann", "CN=scanner,O=Acme", 403),
        ("eve", "CN=a,b", 403),
        ("eve", "CN=a\\,b", 403),
    ] {
        let mut body = authenticate(name, "", "192.0.2.1");
        body["certificate"] = subject.into();
        let answer = authd.call(Method::POST, "/v1/authenticate", Some(NODE_TOKEN), Some(&body)).await;
        assert_eq!(answer.status, status, "{name} {subject}");
    }
}

/// Otherwise the short duration of the second response would reveal that the password is right.
#[tokio::test]
async fn right_password_is_cached_only_if_the_login_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("users.toml");
    let user =
        |name: &str, more: &str| format!("[users.{name}]\npassword_hash = \"{}\"\n{more}\n", hash("hunter2"));
    let users = user("disabled", "enabled = false")
        + &user("elsewhere", "access.allow_from = [\"198.51.100.0/24\"]")
        + &user("ann", "");
    fs::write(&path, users).unwrap();
    let authd = Authd::start(&["--users-file", path.to_str().unwrap()]);
    for (name, status, computed) in [("disabled", 403, 3.0), ("elsewhere", 403, 6.0), ("ann", 200, 7.0)] {
        for _ in 0..3 {
            let body = authenticate(name, "hunter2", "192.0.2.1");
            let answer = authd.call(Method::POST, "/v1/authenticate", Some(NODE_TOKEN), Some(&body)).await;
            assert_eq!(answer.status, status, "{name}");
        }
        assert_eq!(authd.verifications().await, computed, "{name}");
    }
}

#[tokio::test]
async fn login_conditions_limit_addresses_and_times() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("users.toml");
    let user = |name: &str, access: &str| {
        format!("[users.{name}]\npassword_hash = \"{}\"\naccess = {{ {access} }}\n", hash("hunter2"))
    };
    // `early` allows only a day that is three days away; `now` allows yesterday to tomorrow.
    let days = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    let today = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 86400 % 7;
    let day = |offset: u64| days[((today + offset) % 7) as usize];
    let users = [
        user("inside", "allow_from = [\"192.0.2.0/24\"], deny_from = [\"192.0.2.9/32\"]"),
        user("early", &format!("hours = [\"{} 00:00-24:00\"]", day(3))),
        user("now", &format!("hours = [\"{}-{} 00:00-24:00\"]", day(6), day(1))),
    ];
    fs::write(&path, users.concat()).unwrap();
    let authd = Authd::start(&["--users-file", path.to_str().unwrap()]);
    for (name, address, status) in [
        ("inside", "192.0.2.1", 200),
        ("inside", "192.0.2.9", 403),
        ("inside", "198.51.100.1", 403),
        ("early", "192.0.2.1", 403),
        ("now", "192.0.2.1", 200),
    ] {
        let answer = authd.login_from(name, "hunter2", address).await;
        assert_eq!(answer.status, status, "{name} from {address}");
    }
    for result in ["address_not_allowed", "time_not_allowed"] {
        assert!(authd.log().contains(&format!("result={result}")), "{}", authd.log());
    }
}

#[tokio::test]
async fn right_login_gets_the_account_and_all_wrong_ones_the_same_response() {
    let dir = tempfile::tempdir().unwrap();
    let authd =
        Authd::start(&["--users-file", &users_file(&dir), "--throttle-free-failures-per-address", "99"]);
    let right = authd.login("ann", "hunter2").await;
    assert_eq!(right.status, 200, "{}", right.text);
    let account = right.json();
    assert_eq!(account["home"], "/teams/a");
    assert_eq!(account["permissions"]["delete"], false);
    assert_eq!(account["permissions"]["list"], true);
    assert_eq!(account["limits"], json!({ "sessions": 2 }));
    assert_eq!(account["uploads"], "atomic");
    assert_eq!(account["admin"], false);

    let before = authd.verifications().await;
    let (long_name, long_password) = ("x".repeat(300), "x".repeat(2000));
    let wrong = [
        ("ann", "hunter3"),
        ("nobody", "hunter2"),
        ("off", "hunter2"),
        ("off", "wrong"),
        ("ann", ""),
        ("", "hunter2"),
        ("../ann", "hunter2"),
        ("ann\r\nforged", "hunter2"),
        (&long_name, "hunter2"),
        ("ann", &long_password),
    ];
    let (mut answers, mut reasons) = (Vec::new(), Vec::new());
    for (user, password) in wrong {
        let answer = authd.login(user, password).await;
        // The reason is for the node's log. The node does not show it to its client.
        let mut body = answer.json();
        reasons.push(body.as_object_mut().unwrap().remove("reason").unwrap());
        answers.push((answer.status, body.to_string()));
    }
    assert_eq!(reasons[..4], ["wrong_password", "unknown_user", "disabled", "wrong_password"]);
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert_eq!(answers[0].0, 403);
    assert!(answers[0].1.contains("invalid_credentials"));
    // Each login costs one computation, for existing and unknown users.
    assert_eq!(authd.verifications().await - before, wrong.len() as f64);
    assert_eq!(authd.metric("authd_logins_total{result=\"unknown_user\"}").await, 5.0);
    assert_eq!(authd.metric("authd_logins_total{result=\"disabled\"}").await, 1.0);

    let refusals = || authd.log().matches("login refused").count();
    eventually("the last refusal is in the log", async || refusals() >= wrong.len()).await;
    let log = authd.log();
    assert_eq!(refusals(), wrong.len(), "{log}");
    assert!(!log.contains("hunter") && !log.contains(&long_password) && !log.contains("-token-"), "{log}");
    assert!(
        log.contains("credentials accepted user=ann address=192.0.2.1 node=ftp-1 session=00112233445566aa"),
        "{log}"
    );
    assert!(!log.contains("\nforged"), "{log}");
}

#[tokio::test]
async fn user_name_is_banned_on_all_instances_with_growing_delays() {
    let redis = Redis::start();
    let args = ["--redis-url", &redis.url(), "--throttle-free-failures", "2", "--throttle-delay", "30s"];
    let (one, two) = (Authd::start(&args), Authd::start(&args));
    one.create("ann", "hunter2").await;
    let wait = async |authd: &Authd, password: &str, address: &str| {
        let answer = authd.login_from("ann", password, address).await;
        let header = answer.headers.get("retry-after").map(|value| value.to_str().unwrap().parse().unwrap());
        (answer.status, header.unwrap_or(0u64))
    };
    assert_eq!(wait(&one, "wrong", "192.0.2.1").await, (403, 0));
    assert_eq!(wait(&two, "wrong", "192.0.2.2").await, (403, 0));
    assert_eq!(wait(&one, "wrong", "192.0.2.3").await, (403, 0));
    // The third failure was not free: all logins of the user are refused by both, even with the right
    // password.
    for (authd, password) in [(&one, "wrong"), (&two, "hunter2")] {
        let (status, seconds) = wait(authd, password, "192.0.2.4").await;
        assert!(status == 429 && (20..=30).contains(&seconds), "{status} {seconds}");
    }
    let throttled = two.login_from("ann", "hunter2", "192.0.2.4").await;
    assert_eq!(throttled.error(), (429, "throttled".to_owned()));
    assert!(two.metric("authd_throttled_total{by=\"user\"}").await >= 2.0);
    // Other users are not affected.
    one.create("bob", "hunter2").await;
    assert_eq!(two.login_from("bob", "hunter2", "192.0.2.4").await.status, 200);

    // Simulates the end of the ban: the next failure doubles the delay.
    let mut connection = redis.connection();
    let until = |connection: &mut redis::Connection| {
        let _: () =
            redis::cmd("HSET").arg("ftp:failures-of-user:ann").arg("until").arg(0).query(connection).unwrap();
    };
    until(&mut connection);
    assert_eq!(wait(&two, "wrong", "192.0.2.5").await, (403, 0));
    let (status, seconds) = wait(&one, "wrong", "192.0.2.5").await;
    assert!(status == 429 && (45..=60).contains(&seconds), "{status} {seconds}");
    // A success resets the failures.
    until(&mut connection);
    assert_eq!(wait(&one, "hunter2", "192.0.2.6").await, (200, 0));
    for _ in 0..2 {
        assert_eq!(wait(&two, "wrong", "192.0.2.7").await, (403, 0));
    }
    assert_eq!(wait(&one, "hunter2", "192.0.2.7").await, (200, 0));
}

#[tokio::test]
async fn address_is_banned_for_all_names_on_all_instances() {
    let redis = Redis::start();
    let args =
        ["--redis-url", &redis.url(), "--throttle-free-failures-per-address", "3", "--throttle-delay", "30s"];
    let (one, two) = (Authd::start(&args), Authd::start(&args));
    one.create("ann", "hunter2").await;
    for i in 0..4 {
        let authd = if i % 2 == 0 { &one } else { &two };
        // All addresses of an IPv6 /64 network count as one.
        let address = format!("2001:db8::{i}");
        assert_eq!(authd.login_from(&format!("user{i}"), "x", &address).await.status, 403);
    }
    assert_eq!(two.login_from("ann", "hunter2", "2001:db8::9").await.error(), (429, "throttled".to_owned()));
    assert_eq!(two.login_from("ann", "hunter2", "2001:db8:0:1::9").await.status, 200);
    assert_eq!(two.metric("authd_throttled_total{by=\"address\"}").await, 1.0);
}

#[tokio::test]
async fn ten_logins_need_one_computation_until_another_instance_changes_the_password() {
    let redis = Redis::start();
    let args = ["--redis-url", &redis.url()];
    let (one, two) = (Authd::start(&args), Authd::start(&args));
    one.create("ann", "hunter2").await;
    for _ in 0..10 {
        assert_eq!(one.login("ann", "hunter2").await.status, 200);
    }
    assert_eq!(one.verifications().await, 1.0);
    assert_eq!(one.metric("authd_cache_hits_total").await, 9.0);
    // A wrong password is never cached.
    assert_eq!(one.login("ann", "hunter3").await.status, 403);
    assert_eq!(one.verifications().await, 2.0);

    let change = json!({ "password": "sesame" });
    assert_eq!(two.admin(Method::PATCH, "/v1/users/ann", Some(&change)).await.status, 200);
    assert_eq!(one.login("ann", "hunter2").await.status, 403);
    assert_eq!(one.login("ann", "sesame").await.status, 200);
    assert_eq!(one.verifications().await, 4.0);
    // Each change of a user clears the cache.
    let change = json!({ "enabled": false });
    assert_eq!(two.admin(Method::PATCH, "/v1/users/ann", Some(&change)).await.status, 200);
    assert_eq!(one.login("ann", "sesame").await.status, 403);
    assert_eq!(one.verifications().await, 5.0);
}

#[tokio::test]
async fn while_redis_is_away_declared_users_log_in_and_each_process_counts_failures() {
    let redis = Redis::start();
    let dir = tempfile::tempdir().unwrap();
    let authd = Authd::start(&[
        "--redis-url",
        &redis.url(),
        "--users-file",
        &users_file(&dir),
        "--throttle-free-failures",
        "1",
        "--throttle-delay",
        "60s",
    ]);
    authd.create("bob", "hunter2").await;
    assert_eq!(authd.login("bob", "hunter2").await.status, 200);

    let stopped = redis.stop();
    assert_eq!(authd.login("ann", "hunter2").await.status, 200);
    for name in ["bob", "nobody"] {
        assert_eq!(authd.login(name, "hunter2").await.error(), (503, "unavailable".to_owned()));
    }
    for path in ["/v1/users", "/v1/sessions", "/v1/nodes"] {
        assert_eq!(authd.admin(Method::GET, path, None).await.error().0, 503, "{path}");
    }
    assert_eq!(authd.call(Method::GET, "/readyz", None, None).await.status, 200);
    let elsewhere = "192.0.2.2";
    assert_eq!(authd.login_from("ann", "wrong", elsewhere).await.status, 403);
    assert_eq!(authd.login_from("ann", "wrong", elsewhere).await.status, 403);
    assert_eq!(authd.login_from("ann", "hunter2", elsewhere).await.error().0, 429);
    let away = authd.log().matches("Redis is away").count();
    assert_eq!(away, 1, "{}", authd.log());

    let _redis = stopped.start();
    eventually("API users log in again", async || authd.login("bob", "hunter2").await.status == 200).await;
}

#[tokio::test]
async fn readiness_follows_redis_without_requests() {
    let redis = Redis::start();
    let authd = Authd::start(&["--redis-url", &redis.url()]);
    let ready = async || authd.call(Method::GET, "/readyz", None, None).await.status;
    assert_eq!(ready().await, 200);
    let probe = async || authd.call(Method::GET, "/v1/authenticate", Some(NODE_TOKEN), None).await.status;
    assert_eq!(probe().await, 204);
    let stopped = redis.stop();
    eventually("not ready", async || ready().await == 503).await;
    assert_eq!(probe().await, 503);
    let report = authd.call(Method::GET, "/readyz", None, None).await;
    assert_eq!(report.headers["content-type"], "application/json");
    let registry = &report.json()["dependencies"]["registry"];
    assert_eq!((&registry["state"], &registry["setting"]), (&json!("failed"), &json!("redis_url")));
    assert!(registry["last_error"]["message"].is_string(), "{registry}");
    assert_eq!(authd.metric("authd_dependency_up{dependency=\"registry\"}").await, 0.0);
    assert_eq!(authd.metric("ftp_registry_connected").await, 0.0);
    let _redis = stopped.start();
    eventually("ready again", async || ready().await == 200).await;
    assert_eq!(authd.metric("ftp_registry_connected").await, 1.0);
}

#[tokio::test]
async fn wrong_redis_password_is_reported_with_its_setting_and_declared_users_log_in() {
    let redis = Redis::start();
    let dir = tempfile::tempdir().unwrap();
    let _: () =
        redis::cmd("CONFIG").arg(&["SET", "requirepass", "sesame"]).query(&mut redis.connection()).unwrap();
    let file = dir.path().join("redis-password");
    fs::write(&file, "wrong").unwrap();
    let wrong = ["--redis-password-file", file.to_str().unwrap()];
    for (password, told) in [(&wrong[..], "Redis refuses the password"), (&[], "Redis wants a password")] {
        let (url, users) = (redis.url(), users_file(&dir));
        let authd = Authd::start(&[&["--redis-url", &url, "--users-file", &users], password].concat());
        let report = authd.call(Method::GET, "/readyz", None, None).await;
        let registry = &report.json()["dependencies"]["registry"];
        assert_eq!((report.status, &registry["state"]), (503, &json!("misconfigured")), "{}", report.text);
        assert_eq!(registry["setting"], "redis_password_file");
        let log = authd.log();
        assert!(log.contains(" ERROR ") && log.contains(told) && !log.contains("Redis is away"), "{log}");
        assert_eq!(authd.login("ann", "hunter2").await.status, 200);
        let undecided = authd.login("bob", "hunter2").await;
        assert_eq!(undecided.status, 503);
        assert!(undecided.text.contains("no declared user has this name"), "{}", undecided.text);
        // Some logins can be decided, so nodes must go on asking.
        let probe = authd.call(Method::GET, "/v1/authenticate", Some(NODE_TOKEN), None).await;
        assert_eq!(probe.status, 204);
    }
    let tolerant = ["--redis-url", &redis.url(), "--users-file", &users_file(&dir), "--readiness-requires="];
    let authd = Authd::start(&tolerant);
    assert_eq!(authd.call(Method::GET, "/readyz", None, None).await.status, 200);
}

#[tokio::test]
async fn refused_tokens_are_logged_with_the_setting_at_a_limited_rate() {
    let authd = Authd::start(&[]);
    for _ in 0..5 {
        let body = authenticate("ann", "hunter2", "192.0.2.1");
        authd.call(Method::POST, "/v1/authenticate", Some("wrong"), Some(&body)).await;
        authd.admin(Method::GET, "/v1/users", None).await;
        authd.call(Method::GET, "/v1/users", Some(NODE_TOKEN), None).await;
    }
    let log = authd.log();
    let node = "its authd_token_file differs from node_token_file address=127.0.0.1 suppressed=0";
    for line in [node, "its token differs from admin_token_file and administrators_file address=127.0.0.1"] {
        assert_eq!(log.matches(line).count(), 1, "{line:?}: {log}");
    }
}

#[tokio::test]
async fn while_the_nodes_token_is_replaced_both_are_accepted_and_no_third() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node");
    fs::write(&file, "old\nnew\n").unwrap();
    let users = users_file(&dir);
    let authd = Authd::start_bare(&["--node-token-file", file.to_str().unwrap(), "--users-file", &users]);
    let body = authenticate("ann", "hunter2", "192.0.2.1");
    for (token, status) in [("old", 200), ("new", 200), ("old\nnew", 401), ("other", 401)] {
        let token = token.replace('\n', " ");
        let answer = authd.call(Method::POST, "/v1/authenticate", Some(&token), Some(&body)).await;
        assert_eq!(answer.status, status, "{token}: {}", answer.text);
    }
    for content in ["one\ntwo\nthree\n", "one\n\ntwo\n"] {
        fs::write(&file, content).unwrap();
        let refused = command(&["--check", "--node-token-file", file.to_str().unwrap()]).output().unwrap();
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && text.contains("node_token_file"), "{text}");
        assert!(!text.contains("two\n") && !text.contains("three"), "{text}");
    }
}

/// How often Redis has carried out a command, by its `INFO commandstats`: `cmdstat_ping:calls=2,usec=…`.
fn calls(stats: &redis::InfoDict, command: &str) -> u64 {
    let line: Option<String> = stats.get(&format!("cmdstat_{command}"));
    let calls = line.as_deref().and_then(|line| line.strip_prefix("calls=")?.split(',').next()?.parse().ok());
    calls.unwrap_or(0)
}

#[tokio::test]
async fn warnings_about_redis_persistence_are_repeated_after_each_connection() {
    let redis = Redis::start();
    let set = |name: &str, value: &str| {
        let mut connection = redis.connection();
        let _: () = redis::cmd("CONFIG").arg(&["SET", name, value]).query(&mut connection).unwrap();
    };
    let warned = |authd: &Authd| authd.log().matches("set `appendonly yes`").count();
    let _: () = redis::cmd("CONFIG").arg("RESETSTAT").query(&mut redis.connection()).unwrap();
    let authd = Authd::start(&["--redis-url", &redis.url()]);
    let mut own_requests = 0;
    eventually("authd checks the settings of Redis", async || {
        let stats: redis::InfoDict =
            redis::cmd("INFO").arg("commandstats").query(&mut redis.connection()).unwrap();
        // authd sends INFO once for the version and twice for its check, and PING before and after the
        // check. So the second PING shows that a warning would be in the log.
        let is_checked = calls(&stats, "info") == own_requests + 3 && calls(&stats, "ping") >= 2;
        own_requests += 1;
        is_checked
    })
    .await;
    assert!(!authd.log().contains(" WARN  authd::persistence"), "{}", authd.log());
    set("appendonly", "no");
    set("maxmemory", "100mb");
    set("maxmemory-policy", "allkeys-lru");
    let authd = Authd::start(&["--redis-url", &redis.url()]);
    eventually("the warnings", async || {
        warned(&authd) == 1 && authd.log().contains("set `maxmemory-policy noeviction`")
    })
    .await;
    let _: i64 =
        redis::cmd("CLIENT").arg(&["KILL", "TYPE", "normal"]).query(&mut redis.connection()).unwrap();
    eventually("a second warning", async || warned(&authd) == 2).await;
}
