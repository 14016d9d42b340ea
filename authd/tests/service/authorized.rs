//! Decisions about past logins, and the revision that makes nodes ask for them.

use std::fs;

use redis::Commands;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Answer, Authd, NODE_TOKEN, Redis, eventually, hash};

async fn ask(authd: &Authd, logins: &[Value]) -> Answer {
    let body = json!({ "node": "ftp-1", "logins": logins });
    authd.call(Method::POST, "/v1/authorized", Some(NODE_TOKEN), Some(&body)).await
}

/// The decision about each login: the reason why its sessions must end, otherwise the decision itself.
async fn decisions(authd: &Authd, logins: &[Value]) -> Vec<String> {
    let answer = ask(authd, logins).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let verdicts = answer.json()["verdicts"].as_array().unwrap().clone();
    let shown = |verdict: &Value| {
        let reason = verdict.get("reason").unwrap_or(&verdict["decision"]);
        reason.as_str().unwrap().to_owned()
    };
    verdicts.iter().map(shown).collect()
}

/// The revision of the accounts. 0 before authd has set it and while Redis loads its data.
fn revision(connection: &mut redis::Connection) -> u64 {
    connection.get::<_, Option<u64>>("ftp:revision").ok().flatten().unwrap_or(0)
}

#[tokio::test]
async fn past_logins_are_decided_by_the_current_account_without_argon2() {
    let redis = Redis::start();
    let authd = Authd::start(&["--redis-url", &redis.url()]);
    authd.create("ann", "hunter2").await;
    let version = authd.login("ann", "hunter2").await.json()["version"].clone();
    assert!(version.as_str().unwrap().len() == 32, "{version}");
    let login = |address: &str| json!({ "user": "ann", "version": version, "address": address });
    let change = async |body: Value| {
        let answer = authd.admin(Method::PATCH, "/v1/users/ann", Some(&body)).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    };
    let computed = authd.verifications().await;
    let logins = [
        login("192.0.2.1"),
        json!({ "user": "ann", "address": "192.0.2.1" }),
        json!({ "user": "ann", "version": "of another password", "address": "192.0.2.1" }),
        json!({ "user": "bob", "address": "192.0.2.1" }),
        json!({ "user": "no/name", "address": "192.0.2.1" }),
    ];
    assert_eq!(decisions(&authd, &[]).await, [""; 0]);
    assert_eq!(
        decisions(&authd, &logins).await,
        ["stay", "stay", "credential_changed", "removed", "removed"]
    );
    change(json!({ "home": "/x", "admin": true, "limits": { "sessions": 1 } })).await;
    assert_eq!(decisions(&authd, &logins[..1]).await, ["stay"]);
    change(json!({ "access": { "deny_from": ["198.51.100.0/24"] } })).await;
    let both = [login("192.0.2.1"), login("198.51.100.7")];
    assert_eq!(decisions(&authd, &both).await, ["stay", "address_not_allowed"]);
    change(json!({ "enabled": false })).await;
    assert_eq!(decisions(&authd, &logins[..2]).await, ["disabled", "disabled"]);
    assert_eq!(authd.verifications().await, computed);
    assert_eq!(authd.metric("authd_sessions_revoked_total{reason=\"disabled\"}").await, 2.0);
    change(json!({ "enabled": true, "password": "sesame" })).await;
    assert_eq!(decisions(&authd, &logins[..2]).await, ["credential_changed", "stay"]);
    assert_eq!(authd.admin(Method::DELETE, "/v1/users/ann", None).await.status, 204);
    assert_eq!(decisions(&authd, &logins[..2]).await, ["removed", "removed"]);
    let line = "the sessions of a past login must end";
    eventually(line, async || authd.log().contains(line)).await;
    let log = authd.log();
    assert!(!log.contains("argon2id"), "{log}");
}

#[tokio::test]
async fn login_conditions_of_a_group_end_sessions_of_its_members() {
    let redis = Redis::start();
    let authd = Authd::start(&["--redis-url", &redis.url()]);
    let group = json!({ "name": "staff" });
    assert_eq!(authd.admin(Method::POST, "/v1/groups", Some(&group)).await.status, 201);
    let user = json!({ "name": "ann", "password": "x", "groups": ["staff"] });
    assert_eq!(authd.admin(Method::POST, "/v1/users", Some(&user)).await.status, 201);
    let logins = [json!({ "user": "ann", "address": "192.0.2.1" })];
    assert_eq!(decisions(&authd, &logins).await, ["stay"]);
    let before = revision(&mut redis.connection());
    let change = json!({ "access": { "allow_from": ["198.51.100.0/24"] } });
    assert_eq!(authd.admin(Method::PATCH, "/v1/groups/staff", Some(&change)).await.status, 200);
    assert_eq!(decisions(&authd, &logins).await, ["address_not_allowed"]);
    eventually("another revision", async || revision(&mut redis.connection()) > before).await;
}

#[tokio::test]
async fn without_redis_only_past_logins_of_declared_users_are_decided() {
    let redis = Redis::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("users.toml");
    fs::write(&file, format!("[users.fixed]\npassword_hash = \"{}\"\n", hash("x"))).unwrap();
    let authd = Authd::start(&["--redis-url", &redis.url(), "--users-file", file.to_str().unwrap()]);
    authd.create("ann", "hunter2").await;
    let login = |user: &str| json!({ "user": user, "address": "192.0.2.1" });
    let stopped = redis.stop();
    let decided = decisions(&authd, &[login("fixed"), login("ann"), login("unknown")]).await;
    assert_eq!(decided, ["stay", "undecided", "undecided"]);
    let _redis = stopped.start();
    eventually("a decision", async || {
        decisions(&authd, &[login("ann"), login("unknown")]).await == ["stay", "removed"]
    })
    .await;
}

#[tokio::test]
async fn requests_with_too_many_or_malformed_logins_are_refused() {
    let authd = Authd::start(&[]);
    let login = json!({ "user": "a", "address": "::1" });
    assert_eq!(ask(&authd, &vec![login.clone(); 256]).await.status, 200);
    assert_eq!(ask(&authd, &vec![login; 257]).await.error(), (400, "invalid_request".to_owned()));
    let long = json!({ "user": "a".repeat(20_000), "address": "::1" });
    assert_eq!(ask(&authd, &[long]).await.error(), (413, "too_large".to_owned()));
    let odd = json!({ "user": "a", "address": "here" });
    assert_eq!(ask(&authd, &[odd]).await.error(), (400, "invalid_request".to_owned()));
}

#[tokio::test]
async fn revision_advances_with_each_change_that_may_revoke_logins() {
    let redis = Redis::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("users.toml");
    let declare = |names: &[&str]| {
        let hash = hash("x");
        let text: String =
            names.iter().map(|name| format!("[users.{name}]\npassword_hash = \"{hash}\"\n")).collect();
        fs::write(&file, text).unwrap();
    };
    declare(&["fixed", "other"]);
    let args =
        ["--redis-url", &redis.url(), "--users-file", file.to_str().unwrap(), "--users-file-poll", "1h"];
    let authd = Authd::start(&args);
    let mut connection = redis.connection();
    let mut last = 0;
    let mut advances = async |what: &str, connection: &mut redis::Connection| {
        eventually(what, async || revision(connection) > last).await;
        last = revision(connection);
    };
    advances("authd starts", &mut connection).await;
    authd.create("ann", "hunter2").await;
    for (what, path, body) in [
        ("a user changes", "/v1/users/ann", Some(json!({ "certificates": ["CN=a"] }))),
        ("a user is disabled", "/v1/users/ann", Some(json!({ "enabled": false }))),
        ("a declared user is disabled", "/v1/users/fixed", Some(json!({ "enabled": false }))),
        ("a user is removed", "/v1/users/ann", None),
    ] {
        let method = if body.is_some() { Method::PATCH } else { Method::DELETE };
        let answer = authd.admin(method, path, body.as_ref()).await;
        assert!(answer.status < 300, "{what}: {}", answer.text);
        advances(what, &mut connection).await;
    }
    declare(&["fixed"]);
    authd.hangup();
    advances("the users file changes", &mut connection).await;
    // A value of another type is replaced.
    let () = connection.del("ftp:revision").unwrap();
    let () = connection.lpush("ftp:revision", "x").unwrap();
    drop(connection);
    declare(&["fixed", "another"]);
    authd.hangup();
    let mut connection = redis.connection();
    eventually("the key to be a number again", async || {
        connection.get::<_, Option<u64>>("ftp:revision").is_ok_and(|number| number > Some(last))
    })
    .await;

    // After a change while Redis is away, the revision advances and the known addresses are forgotten as
    // soon as Redis is back.
    let known = "ftp:known-addresses:another";
    let () = connection.zadd(known, "192.0.2.1", u32::MAX).unwrap();
    let stopped = redis.stop();
    declare(&["fixed"]);
    authd.hangup();
    eventually("the file is read", async || authd.log().matches("users file loaded").count() == 3).await;
    let redis = stopped.start();
    let mut connection = redis.connection();
    eventually("another revision", async || revision(&mut connection) > last).await;
    eventually("the addresses to be forgotten", async || !connection.exists::<_, bool>(known).unwrap()).await;
}
