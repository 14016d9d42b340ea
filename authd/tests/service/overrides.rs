//! Overrides: a declared user is disabled through the API, at once and on all authd instances.

use std::{fs, path::Path};

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    api::{commands, put_node},
    support::{Authd, Redis, eventually, hash},
};

fn declare(path: &Path, password: &str) {
    let user =
        |name: &str, more: &str| format!("[users.{name}]\npassword_hash = \"{}\"\n{more}", hash(password));
    let text = user("acme", "home = \"/acme\"\n") + &user("off", "enabled = false\n");
    fs::write(path, text).unwrap();
}

async fn patch(authd: &Authd, name: &str, body: Value) -> crate::support::Answer {
    authd.admin(Method::PATCH, &format!("/v1/users/{name}"), Some(&body)).await
}

#[tokio::test]
async fn override_disables_a_declared_user_on_all_instances_until_it_is_removed() {
    let redis = Redis::start();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("users.toml");
    declare(&path, "hunter2");
    let args =
        ["--redis-url", &redis.url(), "--users-file", path.to_str().unwrap(), "--users-file-poll", "50ms"];
    let authds = [Authd::start(&args), Authd::start(&args)];
    let mut connection = redis.connection();
    put_node(&mut connection, "ftp-1", "00112233445566aa", "acme", "192.0.2.1");

    let answer = patch(&authds[0], "acme", json!({ "enabled": false })).await;
    assert_eq!((answer.status, &answer.json()["enabled"]), (200, &json!(false)), "{}", answer.text);
    assert_eq!(commands(&mut connection, "ftp-1"), [json!({ "command": "end_user", "user": "acme" })]);
    assert!(authds[0].log().contains("declared user disabled by an override user=acme address=127.0.0.1"));
    for authd in &authds {
        let refused = authd.login("acme", "hunter2").await;
        assert_eq!((refused.status, &refused.json()["reason"]), (403, &json!("disabled")));
        for path in ["/v1/users/acme", "/v1/users"] {
            let shown = authd.admin(Method::GET, path, None).await.json();
            let user = if path.ends_with("users") { &shown[0] } else { &shown };
            assert_eq!((&user["enabled"], &user["source"]), (&json!(false), &json!("declarative")), "{user}");
            assert_eq!(user["override"]["enabled"], false, "{user}");
            assert!(user["override"]["since"].as_u64().unwrap() > 1_700_000_000, "{user}");
        }
    }
    // Disabling the user again changes nothing, and neither does a reload of the users file.
    let since =
        authds[0].admin(Method::GET, "/v1/users/acme", None).await.json()["override"]["since"].clone();
    let again = patch(&authds[1], "acme", json!({ "enabled": false })).await.json();
    assert_eq!(again["override"]["since"], since);
    declare(&path, "hunter3");
    eventually("the file to be read", async || authds[1].log().contains("users file loaded")).await;
    assert_eq!(authds[1].login("acme", "hunter3").await.status, 403);

    let answer = patch(&authds[1], "acme", json!({ "enabled": true })).await;
    assert_eq!((answer.status, &answer.json()["enabled"]), (200, &json!(true)), "{}", answer.text);
    assert!(answer.json().get("override").is_none(), "{}", answer.text);
    for authd in &authds {
        eventually("the login", async || authd.login("acme", "hunter3").await.status == 200).await;
    }
    assert!(authds[1].log().contains("override of a declared user removed user=acme"));
}

#[tokio::test]
async fn only_enabled_of_a_declared_user_can_be_overridden_and_the_response_names_the_file() {
    let redis = Redis::start();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("users.toml");
    declare(&path, "hunter2");
    let users = ["--users-file", path.to_str().unwrap()];
    let authd = Authd::start(&[&["--redis-url", &redis.url()][..], &users].concat());
    for body in [json!({}), json!({ "home": "/x" }), json!({ "enabled": false, "password": "hunter3" })] {
        let answer = patch(&authd, "acme", body).await;
        assert_eq!(answer.error(), (409, "declarative".to_owned()));
        let message = answer.json()["message"].as_str().unwrap().to_owned();
        assert!(message.contains(path.to_str().unwrap()) && message.contains("`enabled`"), "{message}");
    }
    assert_eq!(patch(&authd, "acme", json!({ "enabled": "no" })).await.error().0, 400);
    assert_eq!(authd.login("acme", "hunter2").await.status, 200);
    // The users file itself disables this user.
    let answer = patch(&authd, "off", json!({ "enabled": true })).await;
    assert_eq!(answer.error(), (409, "declarative".to_owned()));
    assert!(answer.text.contains("users.toml"), "{}", answer.text);
    let alone = Authd::start(&users);
    assert_eq!(patch(&alone, "acme", json!({ "enabled": false })).await.error().0, 503);
}

#[tokio::test]
async fn override_applies_while_redis_is_away_and_an_unreadable_one_disables() {
    let redis = Redis::start();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("users.toml");
    declare(&path, "hunter2");
    let args = ["--redis-url", &redis.url(), "--users-file", path.to_str().unwrap()];
    let (first, second) = (Authd::start(&args), Authd::start(&args));
    assert_eq!(patch(&first, "acme", json!({ "enabled": false })).await.status, 200);
    let knows = async || second.login("acme", "hunter2").await.status == 403;
    eventually("the other authd to know", knows).await;
    let stopped = redis.stop();
    for authd in [&first, &second] {
        assert_eq!(authd.login("acme", "hunter2").await.status, 403);
    }
    assert_eq!(patch(&first, "acme", json!({ "enabled": true })).await.error().0, 503);
    let redis = stopped.start();
    eventually("Redis to be used again", async || {
        patch(&first, "acme", json!({ "enabled": true })).await.status == 200
    })
    .await;
    let mut set = redis::cmd("HSET");
    let _: () =
        set.arg("ftp:overrides").arg("acme").arg("{\"later\":1}").query(&mut redis.connection()).unwrap();
    assert_eq!(first.login("acme", "hunter2").await.status, 403);
}

#[tokio::test]
async fn short_password_is_refused_and_the_setting_named() {
    let redis = Redis::start();
    let authd = Authd::start(&["--redis-url", &redis.url(), "--min-password-length", "12"]);
    let body = |password: &str| json!({ "name": "ann", "password": password });
    let short = authd.admin(Method::POST, "/v1/users", Some(&body("elevenchars"))).await;
    assert_eq!(short.error(), (400, "invalid_request".to_owned()));
    let told = "the password has fewer than 12 characters (setting min_password_length)";
    assert_eq!(short.json()["message"], told);
    assert_eq!(authd.admin(Method::POST, "/v1/users", Some(&body("twelve chars"))).await.status, 201);
    let changed = patch(&authd, "ann", json!({ "password": "short" })).await;
    assert_eq!((changed.status, &changed.json()["message"]), (400, &json!(told)));
    assert_eq!(authd.login("ann", "twelve chars").await.status, 200);
}
