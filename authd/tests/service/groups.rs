//! Groups: their effect on their members, and users whose group is missing. The anonymous user.

use std::fs;

use redis::Commands;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Authd, Redis, command, eventually, hash};

#[tokio::test]
async fn account_fields_come_from_the_user_then_from_its_groups_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("users.toml");
    let text = format!(
        "[groups.partners]\npermissions = {{ delete = false, rename = false }}\nquota = {{ bytes = 1000 }}\n\
         bandwidth = {{ upload = 5000 }}\nuploads = \"atomic\"\n\
         tls = {{ control = true, close_notify = false }}\n\
         denied_names = [\"*.exe\"]\nlimits = {{ sessions = 5 }}\n\
         [[groups.partners.directories]]\npath = \"/out\"\npermissions = {{ upload = false }}\n\
         [groups.office]\nquota = {{ bytes = 7, files = 9 }}\n\
         access = {{ allow_from = [\"192.0.2.0/24\"] }}\n\
         folders = [{{ path = \"/shared\", target = \"/company\" }}]\n\
         [users.ann]\npassword_hash = \"{}\"\ngroups = [\"partners\", \"office\"]\n\
         permissions = {{ delete = true }}\nlimits = {{ sessions_per_address = 2 }}\n\
         denied_names = [\"*.bat\"]\n\
         [[users.ann.directories]]\npath = \"/out/mine\"\n",
        hash("hunter2"),
    );
    fs::write(&path, text).unwrap();
    let authd = Authd::start(&["--users-file", path.to_str().unwrap()]);
    let account = authd.login("ann", "hunter2").await.json();
    assert_eq!(account["permissions"]["delete"], true);
    assert_eq!(account["permissions"]["rename"], false);
    assert_eq!(account["limits"], json!({ "sessions": 5, "sessions_per_address": 2 }));
    assert_eq!(account["quota"], json!({ "bytes": 1000, "files": 9 }));
    assert_eq!(account["bandwidth"], json!({ "upload": 5000 }));
    assert_eq!(account["uploads"], "atomic");
    assert_eq!(account["tls"], json!({ "control": true, "data": false, "close_notify": false }));
    assert_eq!(account["denied_names"], json!(["*.bat", "*.exe"]));
    assert_eq!(account["folders"], json!([{ "path": "/shared", "target": "/company" }]));
    assert_eq!(account["directories"][0]["path"], "/out/mine");
    assert_eq!(account["directories"][1], json!({ "path": "/out", "permissions": { "upload": false } }));
    assert_eq!(authd.login_from("ann", "hunter2", "198.51.100.1").await.status, 403);

    let user = authd.admin(Method::GET, "/v1/users/ann", None).await.json();
    assert_eq!(user["groups"], json!(["partners", "office"]));
    assert_eq!((&user["permissions"], &user["quota"]), (&json!({ "delete": true }), &Value::Null));
    assert_eq!(user["effective"]["quota"], account["quota"]);
    assert_eq!(user["effective"]["access"]["allow_from"], json!(["192.0.2.0/24"]));
    let groups = authd.admin(Method::GET, "/v1/groups", None).await.json();
    let shown: Vec<_> = groups.as_array().unwrap().iter().map(|group| &group["name"]).collect();
    assert_eq!(shown, ["office", "partners"]);
    assert_eq!(groups[0]["members"], json!(["ann"]));
    for (method, body) in [(Method::PATCH, json!({ "uploads": "direct" })), (Method::DELETE, json!({}))] {
        let refused = authd.admin(method, "/v1/groups/office", Some(&body)).await;
        assert_eq!(refused.error(), (409, "declarative".to_owned()));
    }
}

#[tokio::test]
async fn changed_group_applies_to_the_next_login_and_only_an_empty_group_can_be_removed() {
    let redis = Redis::start();
    let args = ["--redis-url", &redis.url()];
    let (one, two) = (Authd::start(&args), Authd::start(&args));
    let group = json!({ "name": "partners", "permissions": { "delete": false } });
    let made = one.admin(Method::POST, "/v1/groups", Some(&group)).await;
    assert_eq!((made.status, &made.json()["source"]), (201, &json!("registry")), "{}", made.text);
    let again = json!({ "name": "partners", "uploads": "atomic" });
    let again = two.admin(Method::POST, "/v1/groups", Some(&again)).await;
    assert_eq!(again.error(), (409, "already_exists".to_owned()));
    let refused = json!({ "name": "ann", "password": "hunter2", "groups": ["partners", "gone"] });
    let refused = one.admin(Method::POST, "/v1/users", Some(&refused)).await;
    assert_eq!(refused.error(), (400, "invalid_request".to_owned()));
    assert!(refused.text.contains("gone"), "{}", refused.text);
    assert_eq!(one.admin(Method::GET, "/v1/users/ann", None).await.status, 404);
    let ann = json!({ "name": "ann", "password": "hunter2", "groups": ["partners"] });
    let made = one.admin(Method::POST, "/v1/users", Some(&ann)).await;
    assert_eq!(made.json()["effective"]["permissions"]["delete"], false, "{}", made.text);

    let may = async |authd: &Authd, what: &str| {
        authd.login("ann", "hunter2").await.json()["permissions"][what].as_bool().unwrap()
    };
    assert!(!may(&two, "delete").await && may(&two, "rename").await);
    let change = json!({ "permissions": { "rename": false } });
    let changed = one.admin(Method::PATCH, "/v1/groups/partners", Some(&change)).await;
    assert_eq!(changed.json()["permissions"], json!({ "rename": false }), "{}", changed.text);
    assert!(may(&two, "delete").await && !may(&two, "rename").await);
    for bad in [json!({ "home": "/x" }), json!({ "permissions": { "fly": true } }), json!({ "name": "x" })] {
        let refused = one.admin(Method::PATCH, "/v1/groups/partners", Some(&bad)).await;
        assert_eq!(refused.error(), (400, "invalid_request".to_owned()), "{bad}");
    }

    let kept = two.admin(Method::DELETE, "/v1/groups/partners", None).await;
    assert_eq!(kept.error(), (409, "in_use".to_owned()));
    assert!(kept.text.contains("ann"), "{}", kept.text);
    let left = json!({ "groups": null });
    assert_eq!(one.admin(Method::PATCH, "/v1/users/ann", Some(&left)).await.status, 200);
    assert!(may(&two, "rename").await);
    assert_eq!(two.admin(Method::DELETE, "/v1/groups/partners", None).await.status, 204);
    for method in [Method::GET, Method::PATCH, Method::DELETE] {
        let missing = one.admin(method, "/v1/groups/partners", Some(&json!({}))).await;
        assert_eq!(missing.error(), (404, "not_found".to_owned()));
    }
}

#[tokio::test]
async fn joining_and_removing_a_group_concurrently_refuses_one_of_them() {
    let redis = Redis::start();
    let args = ["--redis-url", &redis.url()];
    let (one, two) = (Authd::start(&args), Authd::start(&args));
    one.create("ann", "hunter2").await;
    for _ in 0..20 {
        let group = json!({ "name": "partners" });
        assert_eq!(one.admin(Method::POST, "/v1/groups", Some(&group)).await.status, 201);
        let join = json!({ "groups": ["partners"] });
        let (joined, removed) = tokio::join!(
            one.admin(Method::PATCH, "/v1/users/ann", Some(&join)),
            two.admin(Method::DELETE, "/v1/groups/partners", None),
        );
        assert!(
            matches!((joined.status, removed.status), (200, 409) | (400, 204)),
            "{} {}",
            joined.text,
            removed.text
        );
        assert_eq!(one.login("ann", "hunter2").await.status, 200);
        let leave = json!({ "groups": [] });
        assert_eq!(one.admin(Method::PATCH, "/v1/users/ann", Some(&leave)).await.status, 200);
        two.admin(Method::DELETE, "/v1/groups/partners", None).await;
    }
}

#[tokio::test]
async fn user_with_a_missing_group_cannot_log_in_and_the_log_names_the_group() {
    let redis = Redis::start();
    let authd = Authd::start(&["--redis-url", &redis.url()]);
    let group = json!({ "name": "partners", "permissions": { "delete": false } });
    assert_eq!(authd.admin(Method::POST, "/v1/groups", Some(&group)).await.status, 201);
    let ann = json!({ "name": "ann", "password": "hunter2", "groups": ["partners"] });
    assert_eq!(authd.admin(Method::POST, "/v1/users", Some(&ann)).await.status, 201);
    let mut connection = redis.connection();
    for (broken, said) in [
        (None, "the group \\\"partners\\\" does not exist"),
        (
            Some("{\"permissions\":{\"fly\":true}}"),
            "this version of authd cannot read the group \\\"partners\\\" in Redis: ",
        ),
        (Some("no JSON"), "this version of authd cannot read the group \\\"partners\\\" in Redis: "),
    ] {
        let _: () = match broken {
            None => connection.hdel("ftp:groups", "partners").unwrap(),
            Some(json) => connection.hset("ftp:groups", "partners", json).unwrap(),
        };
        let refused = authd.login("ann", "hunter2").await;
        assert_eq!(refused.error(), (503, "unavailable".to_owned()), "{broken:?}");
        eventually(said, async || authd.log().contains(said)).await;
        // A wrong password gets the usual response, so it does not reveal the broken group.
        assert_eq!(authd.login("ann", "hunter3").await.error().0, 403);
        let shown = authd.admin(Method::GET, "/v1/users/ann", None).await.json();
        assert_eq!(shown["effective"], Value::Null);
        assert_eq!(authd.admin(Method::GET, "/v1/users", None).await.json()[0]["effective"], Value::Null);
    }
    // The user can still be changed, which repairs the account.
    for change in [json!({ "enabled": false }), json!({ "enabled": true, "groups": [] })] {
        assert_eq!(authd.admin(Method::PATCH, "/v1/users/ann", Some(&change)).await.status, 200);
    }
    assert_eq!(authd.login("ann", "hunter2").await.status, 200);
}

#[tokio::test]
async fn user_record_from_before_groups_still_logs_in() {
    let redis = Redis::start();
    let authd = Authd::start(&["--redis-url", &redis.url()]);
    let user = |extra: Value| {
        let mut user = json!({
            "password_hash": hash("hunter2"), "enabled": true, "home": "/ann", "admin": false,
            "permissions": { "list": true, "download": true, "upload": false, "overwrite": true,
                "append": true, "rename": true, "delete": true, "mkdir": true, "rmdir": true,
                "attributes": true },
            "limits": { "sessions": 3 }, "uploads": "atomic",
        });
        user.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        user.to_string()
    };
    let mut connection = redis.connection();
    let _: () = connection.hset("ftp:users", "ann", user(json!({}))).unwrap();
    let account = authd.login("ann", "hunter2").await.json();
    assert_eq!((&account["home"], &account["uploads"]), (&json!("/ann"), &json!("atomic")));
    assert_eq!(
        (&account["permissions"]["upload"], &account["limits"]["sessions"]),
        (&json!(false), &json!(3))
    );
    // A field of a newer version may be a restriction and must not be ignored.
    let _: () = connection.hset("ftp:users", "ann", user(json!({ "moon_phase": "full" }))).unwrap();
    assert_eq!(authd.login("ann", "hunter2").await.error().0, 503);
}

#[tokio::test]
async fn anonymous_user_exists_only_with_anonymous_home() {
    let redis = Redis::start();
    let authd = Authd::start(&["--redis-url", &redis.url()]);
    for name in ["anonymous", "ftp"] {
        assert_eq!(
            authd.login(name, "me@example.org").await.error(),
            (403, "invalid_credentials".to_owned())
        );
    }
    // Without the setting, the names are ordinary names.
    authd.create("ftp", "hunter2").await;
    assert_eq!(authd.login("ftp", "hunter2").await.json()["user"], "ftp");

    let authd = Authd::start(&[
        "--redis-url",
        &redis.url(),
        "--anonymous-home",
        "/pub",
        "--anonymous-drop-box",
        "/incoming",
        "--anonymous-sessions",
        "7",
        "--anonymous-quota-files",
        "100",
        "--throttle-free-failures",
        "0",
    ]);
    for name in ["anonymous", "ftp"] {
        let account = authd.login(name, "me@example.org").await.json();
        assert_eq!((&account["user"], &account["home"]), (&json!("anonymous"), &json!("/pub")));
        assert_eq!(account["admin"], false);
        assert_eq!(account["limits"], json!({ "sessions": 7, "sessions_per_address": 5 }));
        let may = |permissions: &Value| -> Vec<String> {
            let all = permissions.as_object().unwrap().iter();
            all.filter(|(_, granted)| **granted == json!(true)).map(|(name, _)| name.clone()).collect()
        };
        assert_eq!(may(&account["permissions"]), ["download", "list"]);
        // The default quota keeps the drop box from filling the storage.
        assert_eq!(account["quota"], json!({ "bytes": 10_000_000_000_u64, "files": 100 }));
        assert_eq!(account["quota_directory"], "/incoming");
        assert_eq!(account["bandwidth"], json!({ "upload": 10_000_000 }));
        assert_eq!(account["directories"][0]["path"], "/incoming");
        assert_eq!(may(&account["directories"][0]["permissions"]), ["upload"]);
        assert_eq!(account["directories"][0]["permissions"].as_object().unwrap().len(), 10);
    }
    assert!(!authd.log().contains("me@example.org"), "{}", authd.log());
    for path in ["/v1/users/ftp", "/v1/users/anonymous"] {
        let body = json!({ "admin": true });
        assert_eq!(authd.admin(Method::PATCH, path, Some(&body)).await.error().1, "declarative");
    }
    let body = json!({ "name": "ftp", "password": "x" });
    assert_eq!(authd.admin(Method::POST, "/v1/users", Some(&body)).await.error().1, "declarative");
    let all = authd.admin(Method::GET, "/v1/users", None).await.json();
    assert_eq!((all.as_array().unwrap().len(), &all[0]["name"]), (1, &json!("anonymous")));
}

#[tokio::test]
async fn declared_user_cannot_have_a_name_of_the_anonymous_user() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("users.toml");
    let write = |name: &str| {
        fs::write(&file, format!("[users.{name}]\npassword_hash = \"{}\"\n", hash("x"))).unwrap();
    };
    let args =
        ["--users-file", file.to_str().unwrap(), "--anonymous-home", "/pub", "--users-file-poll", "50ms"];
    for name in ["ftp", "anonymous"] {
        write(name);
        for check in [&[][..], &["--check"]] {
            let output =
                command(&[&["--listen", "127.0.0.1:0"], &args[..], check].concat()).output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(78), "{said}");
            assert!(said.contains(name) && said.contains("anonymous_home"), "{said}");
        }
    }
    write("ann");
    let authd = Authd::start(&args);
    assert_eq!(authd.login("ftp", "").await.json()["user"], "anonymous");
    write("ftp");
    eventually("the file is seen", async || authd.metric("authd_users_file_current").await == 0.0).await;
    assert_eq!(authd.login("ftp", "").await.json()["user"], "anonymous");
    assert_eq!(authd.login("ann", "x").await.status, 200);
}
