//! `GET /v1/backup` and `POST /v1/restore`.

use std::{fs, path::Path};

use redis::Commands;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Answer, Authd, Redis, eventually, hash};

fn users_file(dir: &Path) -> String {
    let path = dir.join("users.toml");
    fs::write(&path, format!("[users.fixed]\npassword_hash = \"{}\"\n", hash("x"))).unwrap();
    path.to_str().unwrap().to_owned()
}

async fn backup(authd: &Authd) -> Value {
    let answer = authd.admin(Method::GET, "/v1/backup", None).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

async fn restore(authd: &Authd, query: &str, document: &Value) -> Answer {
    authd.admin(Method::POST, &format!("/v1/restore{query}"), Some(document)).await
}

/// A document without its time.
fn content(mut document: Value) -> Value {
    document["time"].take();
    document
}

/// Users, groups, an override and blocks, one of each kind.
async fn fill(authd: &Authd) {
    let post = async |path: &str, body: Value| {
        let answer = authd.admin(Method::POST, path, Some(&body)).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
    };
    post("/v1/groups", json!({ "name": "partners", "permissions": { "delete": false } })).await;
    post(
        "/v1/users",
        json!({
            "name": "Ann Smith", "password": "hunter2", "groups": ["partners"], "home": "/ann",
            "quota": { "bytes": u64::MAX }, "access": { "allow_from": ["192.0.2.0/24"] },
        }),
    )
    .await;
    post("/v1/users", json!({ "name": "bob", "password": "sesame" })).await;
    let off = json!({ "enabled": false });
    assert_eq!(authd.admin(Method::PATCH, "/v1/users/fixed", Some(&off)).await.status, 200);
    post("/v1/blocks", json!({ "kind": "user", "name": "bob", "reason": "too fast" })).await;
    let network = json!({ "kind": "address", "name": "203.0.113.0/24", "seconds": 3600 });
    post("/v1/blocks", network).await;
}

#[tokio::test]
async fn a_backup_restores_users_groups_overrides_and_blocks_into_an_empty_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let file = users_file(dir.path());
    let (old, new) = (Redis::start(), Redis::start());
    let from = Authd::start(&["--redis-url", &old.url(), "--users-file", &file]);
    fill(&from).await;
    let document = backup(&from).await;
    let to = Authd::start(&["--redis-url", &new.url(), "--users-file", &file]);
    assert_eq!(to.login("fixed", "x").await.status, 200);
    let restored = restore(&to, "", &document).await;
    let expected =
        json!({ "users": 2, "groups": 1, "overrides": 1, "blocks": 2, "removed": 0, "warnings": [] });
    assert_eq!((restored.status, restored.json()), (200, expected), "{}", restored.text);
    for path in ["/v1/users", "/v1/groups", "/v1/blocks"] {
        let (before, after) = (
            from.admin(Method::GET, path, None).await.json(),
            to.admin(Method::GET, path, None).await.json(),
        );
        assert_eq!(before, after, "{path}");
    }
    assert_eq!(content(backup(&to).await), content(document.clone()));
    assert_eq!(to.login("Ann Smith", "hunter2").await.json()["home"], "/ann");
    assert_eq!(to.login("bob", "sesame").await.json()["reason"], "blocked");
    assert_eq!(to.login("fixed", "x").await.json()["reason"], "disabled");
    // Nothing expires with the staged backup, and nothing of it is left.
    let mut connection = new.connection();
    for key in ["ftp:users", "ftp:groups", "ftp:overrides", "ftp:login-blocks"] {
        assert_eq!(connection.ttl::<_, i64>(key).unwrap(), -1, "{key}");
    }
    let left: Vec<String> = connection.keys("ftp:restore:*").unwrap();
    assert!(left.iter().all(|key| key.ends_with(":state")), "{left:?}");
    // A second time, nothing changes.
    assert_eq!(restore(&to, "", &document).await.status, 200);
    assert_eq!(restore(&to, "?replace=true", &document).await.json()["removed"], 0);
    assert_eq!(content(backup(&to).await), content(document));
    eventually("the line of the action", async || to.log().contains("action=backup.restore")).await;
    let log = from.log() + &to.log();
    assert!(log.contains("action=backup.create") && !log.contains("argon2id"), "{log}");
}

#[tokio::test]
async fn a_running_cluster_changes_only_with_replace_and_then_becomes_the_document() {
    let dir = tempfile::tempdir().unwrap();
    let file = users_file(dir.path());
    let redis = Redis::start();
    let authd = Authd::start(&["--redis-url", &redis.url(), "--users-file", &file]);
    fill(&authd).await;
    let document = backup(&authd).await;
    authd.create("carl", "swordfish").await;
    let change = json!({ "password": "changed" });
    assert_eq!(authd.admin(Method::PATCH, "/v1/users/bob", Some(&change)).await.status, 200);
    assert_eq!(authd.admin(Method::DELETE, "/v1/blocks/user/bob", None).await.status, 204);
    assert_eq!(authd.login("bob", "changed").await.status, 200);

    let now = content(backup(&authd).await);
    let refused = restore(&authd, "", &document).await;
    assert_eq!(refused.error(), (409, "already_exists".to_owned()));
    assert!(refused.text.contains("user bob") && !refused.text.contains("Ann"), "{}", refused.text);
    assert_eq!(content(backup(&authd).await), now);

    let mut connection = redis.connection();
    let known: u64 = connection.exists("ftp:known-addresses:bob").unwrap();
    assert_eq!(known, 1);
    let mut revision = || connection.get::<_, Option<u64>>("ftp:revision").unwrap();
    let before = revision();
    let restored = restore(&authd, "?replace=true", &document).await.json();
    assert_eq!((&restored["users"], &restored["removed"]), (&json!(2), &json!(1)));
    assert_eq!(content(backup(&authd).await), content(document));
    // The nodes are told to ask which sessions may stay.
    eventually("a new revision", async || revision() > before).await;
    assert_eq!(authd.login("carl", "swordfish").await.status, 403);
    assert_eq!(authd.admin(Method::DELETE, "/v1/blocks/user/bob", None).await.status, 204);
    assert_eq!(authd.login("bob", "changed").await.status, 403);
    let known: u64 = redis.connection().exists("ftp:known-addresses:bob").unwrap();
    assert_eq!(known, 0, "the addresses of bob's changed password are forgotten");
    assert_eq!(authd.login("bob", "sesame").await.status, 200);
}

#[tokio::test]
async fn an_invalid_document_changes_nothing_and_a_hidden_object_is_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let file = users_file(dir.path());
    let redis = Redis::start();
    let authd = Authd::start(&["--redis-url", &redis.url(), "--users-file", &file]);
    fill(&authd).await;
    let document = backup(&authd).await;
    let with = |path: &str, value: Value| {
        let mut document = document.clone();
        *document.pointer_mut(path).unwrap_or_else(|| panic!("{path}")) = value;
        document
    };
    let block =
        json!({ "kind": "address", "name": "ann", "until": null, "reason": "", "by": "a", "since": "x" });
    for (bad, named) in [
        (json!({}), "version"),
        (with("/version", json!(2)), "version 2"),
        (with("/users/bob/password_hash", json!("$2b$12$abcdefghijklmnopqrstuv")), "bob"),
        (with("/users/bob/home", json!("../etc")), "bob"),
        (with("/users", json!({ "a/b": document["users"]["bob"] })), "a/b"),
        (with("/groups/partners", json!({ "colour": "red" })), "partners"),
        (with("/overrides/fixed", json!({ "enabled": true })), "fixed"),
        (with("/blocks/0", block), "ann"),
        (with("/blocks", json!(1)), "invalid type"),
    ] {
        let refused = restore(&authd, "?replace=true", &bad).await;
        assert_eq!(refused.error(), (400, "invalid_request".to_owned()), "{bad}");
        assert!(refused.text.contains(named), "{named}: {}", refused.text);
    }
    assert_eq!(restore(&authd, "?overwrite=true", &document).await.status, 400);
    assert_eq!(content(backup(&authd).await), content(document.clone()));

    let bob = document["users"]["bob"].clone();
    let mut lost = bob.clone();
    lost["groups"] = json!(["gone"]);
    let mut odd = with("/users", json!({ "fixed": bob, "dora": lost }));
    odd["overrides"] = json!({ "bob": { "enabled": false, "since": 1 } });
    let warnings = restore(&authd, "?replace=true", &odd).await.json()["warnings"].clone();
    let warnings: Vec<&str> =
        warnings.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    for (warning, part) in
        warnings.iter().zip(["\"gone\"", "hides the user \"fixed\"", "override of \"bob\""])
    {
        assert!(warning.contains(part), "{part}: {warnings:?}");
    }
    assert_eq!(warnings.len(), 3, "{warnings:?}");
}

#[tokio::test]
async fn thousands_of_users_are_restored_and_a_viewer_may_not_read_the_hashes() {
    let redis = Redis::start();
    let dir = tempfile::tempdir().unwrap();
    let administrators = dir.path().join("administrators.toml");
    let line = authd::administrators::token_line(b"vera's token");
    fs::write(&administrators, format!("[vera]\n{line}\nrole = \"viewer\"\n")).unwrap();
    let path = administrators.to_str().unwrap();
    let authd = Authd::start(&["--redis-url", &redis.url(), "--administrators-file", path]);
    fill_many(&authd, 3000).await;
    let document = backup(&authd).await;
    assert_eq!(document["users"].as_object().unwrap().len(), 3000);
    let viewer = async |method, path| authd.call(method, path, Some("vera's token"), None).await;
    assert_eq!(viewer(Method::GET, "/v1/backup").await.error(), (403, "forbidden".to_owned()));
    assert_eq!(viewer(Method::POST, "/v1/restore").await.error(), (403, "forbidden".to_owned()));
    assert_eq!(authd.login("user-2999", "sesame").await.status, 200);
    // A document of another operation is as small as before.
    let large = json!({ "name": "a".repeat(20_000) });
    assert_eq!(authd.admin(Method::POST, "/v1/users", Some(&large)).await.error().1, "too_large");
}

async fn fill_many(authd: &Authd, number: u32) {
    let user = json!({ "password_hash": hash("sesame"), "home": "/shared", "groups": [] });
    let users: serde_json::Map<String, Value> =
        (0..number).map(|number| (format!("user-{number}"), user.clone())).collect();
    let document = json!({
        "version": 1, "time": "1970-01-01T00:00:01Z", "authd": "0.1.0", "users": users, "groups": {},
        "overrides": {}, "blocks": [],
    });
    let restored = restore(authd, "", &document).await;
    assert_eq!(restored.json()["users"], number, "{}", restored.text);
}

/// A user is created after its group and removed before it. So at each moment the group of each user exists.
#[tokio::test]
async fn a_backup_shows_one_moment_while_users_and_groups_change() {
    let redis = Redis::start();
    let authd = Authd::start(&["--redis-url", &redis.url()]);
    let call = async |method, path: &str, body: Option<Value>| {
        assert!(authd.admin(method, path, body.as_ref()).await.status < 300, "{path}");
    };
    let password_hash = hash("sesame");
    let changes = async {
        for number in 0..30 {
            let group = format!("group-{number}");
            call(Method::POST, "/v1/groups", Some(json!({ "name": group }))).await;
            let user = json!({ "name": "ann", "password_hash": password_hash, "groups": [group] });
            call(Method::POST, "/v1/users", Some(user)).await;
            call(Method::DELETE, "/v1/users/ann", None).await;
            call(Method::DELETE, &format!("/v1/groups/{group}"), None).await;
        }
    };
    let backups = async {
        for _ in 0..60 {
            let document = backup(&authd).await;
            for user in document["users"].as_object().unwrap().values() {
                let group = user["groups"][0].as_str().unwrap();
                assert!(document["groups"].get(group).is_some(), "{document}");
            }
        }
    };
    tokio::join!(changes, backups);
}
