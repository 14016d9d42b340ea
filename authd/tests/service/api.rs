//! The administrators' API, and its agreement with `/openapi.json`.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use authd::{
    accounts::user::UserView,
    handlers::{bans::BanView, groups::GroupView},
};
use common::{
    auth_api::{
        Account, AuthenticateRequest, AuthorizedAnswer, AuthorizedRequest, EndReason, ErrorCode, Verdict,
    },
    policy::Permissions,
};
use redis::Commands;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{ADMIN_TOKEN, Authd, NODE_TOKEN, Redis, authenticate, hash};

/// Adds a live node with one session to the registry.
pub(crate) fn put_node(
    connection: &mut redis::Connection,
    name: &str,
    session: &str,
    user: &str,
    address: &str,
) {
    let node = json!({
        "name": name, "incarnation": u64::MAX, "state": "ready", "slice": [50000, 50003],
        "control": "127.0.0.1:21", "version": "0.1.0", "since": 1, "sessions": 1, "transfers": 0,
    });
    let record = json!({ "id": session, "node": name, "user": user, "address": address, "since": 7 });
    let _: () = connection.sadd("ftp:nodes", name).unwrap();
    let _: () = connection.hset(format!("ftp:node:{name}"), "record", node.to_string()).unwrap();
    let incarnation = u64::MAX.to_string();
    let _: () = connection.hset(format!("ftp:node:{name}"), "incarnation", &incarnation).unwrap();
    let entry = format!("{session} {name} {incarnation}");
    let _: () = connection.zadd(format!("ftp:user-sessions:{user}"), entry, u64::MAX >> 12).unwrap();
    let _: () = connection.hset(format!("ftp:sessions:{name}"), session, record.to_string()).unwrap();
}

/// Reads and removes a node's commands in one transaction, so that none is lost in between.
pub(crate) fn commands(connection: &mut redis::Connection, node: &str) -> Vec<Value> {
    let key = format!("ftp:commands:{node}");
    let mut take = redis::pipe();
    take.atomic().lrange(&key, 0, -1).del(&key).ignore();
    let (texts,): (Vec<String>,) = take.query(connection).unwrap();
    texts.iter().map(|text| serde_json::from_str(text).unwrap()).collect()
}

fn operations(document: &Value) -> Vec<(Method, String, String, Value)> {
    let mut found = Vec::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let method: Method = method.to_uppercase().parse().unwrap();
            let concrete = path.replace("{name}", "nobody").replace("{id}", "00112233445566aa");
            let concrete = concrete.replace("{address}", "192.0.2.99");
            found.push((method, path.clone(), concrete, operation.clone()));
        }
    }
    found
}

#[tokio::test]
async fn openapi_describes_exactly_the_routes_that_exist_and_their_tokens() {
    let redis = Redis::start();
    let authd = Authd::start(&["--redis-url", &redis.url()]);
    let document = authd.call(Method::GET, "/openapi.json", None, None).await.json();
    let operations = operations(&document);
    assert!(operations.len() >= 22);
    for (method, path, concrete, operation) in &operations {
        let described: BTreeSet<String> =
            operation["responses"].as_object().unwrap().keys().cloned().collect();
        let security = operation["security"].as_array().unwrap();
        let body = operation.get("requestBody").map(|_| json!({}));
        let call = async |token: Option<&str>| {
            let answer = authd.call(method.clone(), concrete, token, body.as_ref()).await;
            assert!(described.contains(&answer.status.to_string()), "{method} {path}: {}", answer.status);
            answer
        };
        let right = match security.first().and_then(|scheme| scheme.as_object()?.keys().next()) {
            None => None,
            Some(scheme) => {
                let (right, wrong) =
                    if scheme == "node" { (NODE_TOKEN, ADMIN_TOKEN) } else { (ADMIN_TOKEN, NODE_TOKEN) };
                for token in [None, Some(wrong), Some("")] {
                    let refused = call(token).await;
                    assert_eq!(refused.error(), (401, "unauthorized".to_owned()), "{method} {path}");
                    assert_eq!(refused.headers["www-authenticate"], "Bearer");
                }
                Some(right)
            }
        };
        let answer = call(right).await;
        assert!(!matches!(answer.status, 401 | 405), "{method} {path}: {}", answer.status);
        if answer.status == 404 {
            assert!(concrete != path, "{method} {path}");
            assert!(!answer.json()["message"].as_str().unwrap().contains("path"), "{method} {path}");
        }
        // Other methods of the path are refused, and `Allow` names the supported ones.
        let other = authd.call(Method::PUT, concrete, right, None).await;
        assert_eq!(other.error(), (405, "method_not_allowed".to_owned()), "{path}");
        assert!(other.headers["allow"].to_str().unwrap().contains(method.as_str()), "{path}");
    }
    for path in [
        "/page",
        "/page/x",
        "/v1",
        "/v1/user",
        "/v1/users/a/b",
        "/v1/nodes/x",
        "/v2/users",
        "/metrics/x",
        "/openapi",
    ] {
        let answer = authd.admin(Method::GET, path, None).await;
        assert_eq!(answer.error(), (404, "not_found".to_owned()), "{path}");
    }
}

#[tokio::test]
async fn openapi_describes_exactly_the_fields_of_the_types() {
    let authd = Authd::start(&[]);
    let document = authd.call(Method::GET, "/openapi.json", None, None).await.json();
    let schemas = &document["components"]["schemas"];
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let described = |schema: &str| keys(&schemas[schema]["properties"]);
    let of = |value: Value| keys(&value);

    let mut request: AuthenticateRequest = serde_json::from_value(authenticate("a", "b", "::1")).unwrap();
    request.certificate = Some("CN=a".to_owned());
    let key = format!("sha256:{}", "0".repeat(64));
    let certificate = json!({ "subject": "CN=a", "key": key, "names": ["DNS:a"] });
    request.client_certificate = Some(serde_json::from_value(certificate.clone()).unwrap());
    assert_eq!(described("ClientCertificate"), of(certificate));
    assert_eq!(described("AuthenticateRequest"), of(serde_json::to_value(&request).unwrap()));
    let properties = json!({
        "permissions": Permissions::default(), "denied_names": ["*.exe"],
        "directories": [{ "path": "/in", "permissions": { "list": true } }],
        "folders": [{ "path": "/a", "target": "/b" }],
        "limits": { "sessions": 1, "sessions_per_address": 1, "transfers": 1 },
        "quota": { "bytes": 1, "files": 1 },
        "bandwidth": { "upload": 1, "download": 1, "session_upload": 1, "session_download": 1 },
        "uploads": "atomic", "tls": { "control": true, "data": true, "close_notify": false },
        "access": { "allow_from": [], "deny_from": [], "hours": [] },
    });
    let with = |fields: Value| {
        let mut all = properties.as_object().unwrap().clone();
        all.extend(fields.as_object().unwrap().clone());
        Value::Object(all)
    };
    let user: UserView = serde_json::from_value(with(json!({
        "name": "a", "source": "registry", "enabled": true, "home": "/a", "certificates": [],
        "admin": false, "groups": ["b"], "effective": properties,
        "override": { "enabled": false, "since": 1 },
    })))
    .unwrap();
    let user = serde_json::to_value(&user).unwrap();
    assert_eq!(described("User"), of(user.clone()));
    assert_eq!(described("Effective"), keys(&user["effective"]));
    for (schema, field) in [
        ("Permissions", "permissions"),
        ("Limits", "limits"),
        ("Quota", "quota"),
        ("Bandwidth", "bandwidth"),
        ("Tls", "tls"),
        ("Access", "access"),
    ] {
        assert_eq!(described(schema), keys(&user[field]), "{schema}");
        assert_eq!(described(schema), keys(&user["effective"][field]), "{schema}");
    }
    assert_eq!(described("Directory"), keys(&user["directories"][0]));
    assert_eq!(described("Folder"), keys(&user["folders"][0]));
    // A request takes the same fields as the response, except those that authd determines.
    let mut sent = described("User");
    for shown in ["source", "effective", "override"] {
        sent.remove(shown);
    }
    sent.extend(["password", "password_hash"].map(str::to_owned));
    assert_eq!(described("NewUser"), sent);
    sent.remove("name");
    assert_eq!(described("UserChange"), sent);
    let group: GroupView =
        serde_json::from_value(with(json!({ "name": "a", "source": "registry", "members": [] }))).unwrap();
    assert_eq!(described("Group"), of(serde_json::to_value(&group).unwrap()));
    let mut sent = described("Group");
    for shown in ["source", "members"] {
        sent.remove(shown);
    }
    assert_eq!(described("NewGroup"), sent);
    sent.remove("name");
    assert_eq!(described("GroupChange"), sent);
    let mut account = with(json!({ "user": "a", "home": "/a", "admin": false }));
    account.as_object_mut().unwrap().remove("access");
    let account: Account = serde_json::from_value(account).unwrap();
    let quota_directory = Some("/in".to_owned().try_into().unwrap());
    let groups = vec!["staff".to_owned()];
    let account = Account { groups, version: Some("1".to_owned()), quota_directory, ..account };
    assert_eq!(described("Account"), of(serde_json::to_value(&account).unwrap()));
    let login = json!({ "user": "a", "version": "1", "address": "::1" });
    let request: AuthorizedRequest =
        serde_json::from_value(json!({ "node": "a", "logins": [login] })).unwrap();
    let request = serde_json::to_value(&request).unwrap();
    assert_eq!(described("PastLogin"), keys(&request["logins"][0]));
    assert_eq!(described("AuthorizedRequest"), of(request));
    let verdicts = vec![Verdict::End { reason: EndReason::Removed }];
    let answer = serde_json::to_value(AuthorizedAnswer { verdicts }).unwrap();
    assert_eq!(described("Verdict"), keys(&answer["verdicts"][0]));
    assert_eq!(described("AuthorizedAnswer"), of(answer));
    let ban: BanView =
        serde_json::from_value(json!({ "by": "user", "name": "a", "until": "1970-01-01T00:00:01Z" }))
            .unwrap();
    assert_eq!(described("Ban"), of(serde_json::to_value(&ban).unwrap()));
    for (schema, keys) in crate::administrators::types() {
        assert_eq!(described(schema), keys, "{schema}");
    }
    let readiness = authd.call(Method::GET, "/readyz", None, None).await.json();
    assert_eq!(described("Readiness"), of(readiness));

    // The document contains exactly the existing codes: serde's message for an unknown code lists all.
    let message = serde_json::from_str::<ErrorCode>("\"nonsense\"").unwrap_err().to_string();
    let codes = schemas["Error"]["properties"]["error"]["enum"].as_array().unwrap();
    for code in codes {
        serde_json::from_value::<ErrorCode>(code.clone()).unwrap();
    }
    assert_eq!(message.matches('`').count() / 2, codes.len() + 1, "{message}");
}

#[tokio::test]
async fn user_is_created_shown_changed_and_removed() {
    let redis = Redis::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("users.toml");
    std::fs::write(&file, format!("[users.fixed]\npassword_hash = \"{}\"\n", hash("x"))).unwrap();
    let authd = Authd::start(&["--redis-url", &redis.url(), "--users-file", file.to_str().unwrap()]);
    let post = async |body: Value| authd.admin(Method::POST, "/v1/users", Some(&body)).await;
    let patch = async |name: &str, body: Value| {
        authd.admin(Method::PATCH, &format!("/v1/users/{name}"), Some(&body)).await
    };

    let made = post(json!({ "name": "Ann Smith", "password": "hunter2", "limits": { "sessions": 3 } })).await;
    assert_eq!(made.status, 201, "{}", made.text);
    assert_eq!(made.json()["home"], "/Ann Smith");
    assert_eq!(made.json()["source"], "registry");
    let hashed = post(json!({ "name": "bob", "password_hash": hash("sesame"), "home": "/b" })).await;
    assert_eq!(hashed.status, 201, "{}", hashed.text);
    assert_eq!(authd.login("bob", "sesame").await.json()["home"], "/b");
    assert_eq!(authd.login("Ann Smith", "hunter2").await.json()["limits"]["sessions"], 3);

    let all = authd.admin(Method::GET, "/v1/users", None).await;
    let names: Vec<_> = all.json().as_array().unwrap().iter().map(|user| user["name"].clone()).collect();
    assert_eq!(names, ["Ann Smith", "bob", "fixed"]);
    assert!(!all.text.contains("argon2"), "{}", all.text);
    assert_eq!(authd.admin(Method::GET, "/v1/users/Ann%20Smith", None).await.json(), made.json());
    assert_eq!(authd.admin(Method::GET, "/v1/users/fixed", None).await.json()["source"], "declarative");

    for (name, code) in [("bob", "already_exists"), ("fixed", "declarative")] {
        let again = post(json!({ "name": name, "password": "x" })).await;
        assert_eq!(again.error(), (409, code.to_owned()));
    }
    assert_eq!(patch("fixed", json!({ "admin": true })).await.error().1, "declarative");
    assert_eq!(authd.admin(Method::DELETE, "/v1/users/fixed", None).await.error().1, "declarative");
    for method in [Method::GET, Method::PATCH, Method::DELETE] {
        let missing = authd.admin(method, "/v1/users/nobody", Some(&json!({}))).await;
        assert_eq!(missing.error(), (404, "not_found".to_owned()));
    }
    for bad in [
        json!({ "name": "x" }),
        json!({ "password": "x" }),
        json!({ "name": "a/b", "password": "x" }),
        json!({ "name": "x", "password": "" }),
        json!({ "name": "x", "password": "a\r\nb" }),
        json!({ "name": "x", "password": "a", "password_hash": hash("x") }),
        json!({ "name": "x", "password_hash": "$2b$12$abcdefghijklmnopqrstuv" }),
        json!({ "name": "x", "password": "a", "home": "/../etc" }),
        json!({ "name": "x", "password": "a", "colour": "red" }),
        json!({ "name": "x", "password": "a", "permissions": { "fly": true } }),
        json!({ "name": "x", "password": "a", "limits": { "sessions": -1 } }),
    ] {
        let refused = post(bad.clone()).await;
        assert_eq!(refused.error(), (400, "invalid_request".to_owned()), "{bad}");
    }

    let changed = patch("bob", json!({ "permissions": { "delete": false }, "uploads": "atomic" })).await;
    assert_eq!(changed.json()["home"], "/b");
    assert_eq!(changed.json()["permissions"]["delete"], false);
    assert_eq!(authd.login("bob", "sesame").await.json()["uploads"], "atomic");
    assert_eq!(patch("bob", json!({ "name": "x" })).await.status, 400);

    assert_eq!(authd.admin(Method::DELETE, "/v1/users/bob", None).await.status, 204);
    assert_eq!(authd.login("bob", "sesame").await.status, 403);
    let log = authd.log();
    assert!(!log.contains("hunter2") && !log.contains("sesame") && !log.contains("argon2id"), "{log}");
}

#[tokio::test]
async fn sessions_end_when_a_user_is_disabled_or_removed_or_gets_a_new_password() {
    let redis = Redis::start();
    let authd = Authd::start(&["--redis-url", &redis.url()]);
    let mut connection = redis.connection();
    put_node(&mut connection, "ftp-1", "00112233445566aa", "ann", "192.0.2.1");
    put_node(&mut connection, "ftp-2", "00112233445566bb", "ann", "192.0.2.2");
    authd.create("ann", "hunter2").await;
    let end = json!({ "command": "end_user", "user": "ann" });
    for (method, body, ends) in [
        (Method::PATCH, json!({ "home": "/x" }), false),
        (Method::PATCH, json!({ "password": "sesame" }), true),
        (Method::PATCH, json!({ "enabled": false }), true),
        (Method::DELETE, json!({}), true),
    ] {
        let answer = authd.admin(method, "/v1/users/ann", Some(&body)).await;
        assert!(answer.status < 300, "{}", answer.text);
        for node in ["ftp-1", "ftp-2"] {
            let expected = if ends { vec![end.clone()] } else { vec![] };
            assert_eq!(commands(&mut connection, node), expected, "{body} {node}");
        }
    }
}

#[tokio::test]
async fn concurrent_changes_are_all_kept() {
    let redis = Redis::start();
    let authd = Authd::start(&["--redis-url", &redis.url()]);
    authd.create("ann", "hunter2").await;
    let bodies = [json!({ "home": "/x" }), json!({ "admin": true }), json!({ "uploads": "atomic" })];
    let patch = |body| authd.admin(Method::PATCH, "/v1/users/ann", Some(body));
    let (a, b, c) = tokio::join!(patch(&bodies[0]), patch(&bodies[1]), patch(&bodies[2]));
    assert_eq!((a.status, b.status, c.status), (200, 200, 200));
    let user = authd.admin(Method::GET, "/v1/users/ann", None).await.json();
    assert_eq!(
        (&user["home"], &user["admin"], &user["uploads"]),
        (&json!("/x"), &json!(true), &json!("atomic"))
    );
    // Of several concurrent requests to create the same user, one succeeds.
    let body = json!({ "name": "bob", "password": "x" });
    let make = || authd.admin(Method::POST, "/v1/users", Some(&body));
    let (a, b, c) = tokio::join!(make(), make(), make());
    let mut statuses = [a.status, b.status, c.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409, 409]);
}

#[tokio::test]
async fn sessions_and_nodes_are_shown_ended_and_drained() {
    let redis = Redis::start();
    let authd = Authd::start(&["--redis-url", &redis.url()]);
    let mut connection = redis.connection();
    put_node(&mut connection, "ftp-1", "00112233445566aa", "ann", "192.0.2.1");
    put_node(&mut connection, "ftp-2", "00112233445566bb", "bob", "2001:db8::1");
    for (query, ids) in [
        ("", &["00112233445566aa", "00112233445566bb"][..]),
        ("?user=ann", &["00112233445566aa"]),
        ("?node=ftp-2", &["00112233445566bb"]),
        ("?address=2001:db8:0::1", &["00112233445566bb"]),
        ("?address=::ffff:192.0.2.1", &["00112233445566aa"]),
        ("?user=ann&node=ftp-2", &[]),
    ] {
        let answer = authd.admin(Method::GET, &format!("/v1/sessions{query}"), None).await.json();
        let found: Vec<_> = answer.as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap()).collect();
        assert_eq!(found, ids, "{query}");
    }
    for query in ["?colour=red", "?address=here", "?node=a%20b"] {
        let answer = authd.admin(Method::GET, &format!("/v1/sessions{query}"), None).await;
        assert_eq!(answer.error(), (400, "invalid_request".to_owned()), "{query}");
    }
    // Times are RFC 3339, and numbers are below 2^53.
    let sessions = authd.admin(Method::GET, "/v1/sessions", None).await.json();
    assert_eq!(sessions[0]["since"], "1970-01-01T00:00:07Z");
    let nodes = authd.admin(Method::GET, "/v1/nodes", None).await.json();
    assert_eq!(nodes[0]["since"], "1970-01-01T00:00:01Z");
    assert_eq!(nodes[0]["incarnation"], "ffffffffffffffff");
    assert_eq!(nodes.as_array().unwrap().len(), 2);
    assert_eq!((&nodes[0]["name"], &nodes[0]["state"]), (&json!("ftp-1"), &json!("ready")));
    for (required, state) in [(false, "ready"), (true, "degraded")] {
        let record: String = connection.hget("ftp:node:ftp-1", "record").unwrap();
        let mut record: Value = serde_json::from_str(&record).unwrap();
        record["failing"] =
            json!([{ "dependency": "storage", "error": "gone", "since": 1, "required": required }]);
        let _: () = connection.hset("ftp:node:ftp-1", "record", record.to_string()).unwrap();
        let failing = json!([{
            "dependency": "storage", "error": "gone", "since": "1970-01-01T00:00:01Z", "required": required,
        }]);
        let shown = authd.admin(Method::GET, "/v1/nodes", None).await.json();
        assert_eq!((&shown[0]["state"], &shown[0]["failing"]), (&json!(state), &failing));
    }

    // A node that does not carry out the order.
    let end = json!({ "command": "end_session", "session": "00112233445566aa", "reason": "too slow" });
    let shown = authd.admin(Method::GET, "/v1/sessions/00112233445566aa", None).await.json();
    assert_eq!((&shown["user"], &shown["ending"]), (&json!("ann"), &json!(false)));
    let asked = authd.admin(Method::DELETE, "/v1/sessions/00112233445566aa?reason=too%20slow", None).await;
    assert_eq!((asked.status, &asked.json()["ending"]), (202, &json!(true)));
    let shown = authd.admin(Method::GET, "/v1/sessions/00112233445566aa", None).await.json();
    assert!(shown["ending"] == true && shown["ending_since"].is_string(), "{shown}");
    assert_eq!(commands(&mut connection, "ftp-1"), [end]);
    // A node that carries out the order.
    let node = async {
        let (mut connection, deadline) =
            (redis.connection(), tokio::time::Instant::now() + Duration::from_secs(20));
        while commands(&mut connection, "ftp-2").is_empty() {
            assert!(tokio::time::Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let _: () = connection.del("ftp:sessions:ftp-2").unwrap();
    };
    let (ended, ()) = tokio::join!(authd.admin(Method::DELETE, "/v1/sessions/00112233445566bb", None), node);
    assert_eq!(ended.status, 204);
    for id in ["00112233445566bb", "ffffffffffffffff", "x"] {
        assert_eq!(authd.admin(Method::DELETE, &format!("/v1/sessions/{id}"), None).await.error().0, 404);
    }
    let stage =
        async || authd.admin(Method::GET, "/v1/nodes/ftp-1/drain", None).await.json()["drain"].clone();
    assert_eq!(stage().await, "none");
    let drain = authd.admin(Method::POST, "/v1/nodes/ftp-1/drain", None).await;
    assert_eq!((drain.status, &drain.json()["drain"]), (202, &json!("asked")));
    assert_eq!(stage().await, "asked");
    assert_eq!(commands(&mut connection, "ftp-1"), [json!({ "command": "drain" })]);
    for order in ["drain", "undrain"] {
        assert_eq!(authd.admin(Method::POST, &format!("/v1/nodes/ftp-9/{order}"), None).await.error().0, 404);
    }
    // The order is revoked, and the node learns of it.
    let undrain = async || authd.admin(Method::POST, "/v1/nodes/ftp-1/undrain", None).await;
    let answer = undrain().await;
    assert_eq!((answer.status, &answer.json()["drain"]), (202, &json!("none")));
    assert_eq!(commands(&mut connection, "ftp-1"), [json!({ "command": "undrain" })]);
    // A node that drains without an administrator's order has got a signal.
    let _: () = connection.del("ftp:orders:ftp-1").unwrap();
    let record: String = connection.hget("ftp:node:ftp-1", "record").unwrap();
    let mut record: Value = serde_json::from_str(&record).unwrap();
    record["state"] = json!("draining");
    let _: () = connection.hset("ftp:node:ftp-1", "record", record.to_string()).unwrap();
    assert_eq!(undrain().await.error(), (409, "stopping".to_owned()));
}

#[tokio::test]
async fn missing_tokens_or_redis_get_401_or_503() {
    let bare = Authd::start_bare(&[]);
    for token in [None, Some(""), Some(NODE_TOKEN)] {
        let body = authenticate("demo", "x", "192.0.2.1");
        let login = bare.call(Method::POST, "/v1/authenticate", token, Some(&body)).await;
        assert_eq!(login.error(), (401, "unauthorized".to_owned()));
        assert_eq!(bare.call(Method::GET, "/v1/users", token, None).await.error().0, 401);
    }
    assert!(bare.log().contains("no node_token_file"), "{}", bare.log());
    let alone = Authd::start(&[]);
    assert_eq!(alone.admin(Method::GET, "/v1/sessions", None).await.error(), (503, "unavailable".to_owned()));
    assert_eq!(alone.admin(Method::GET, "/v1/users", None).await.json(), json!([]));
    assert_eq!(alone.login("ann", "x").await.status, 403);
}

#[tokio::test]
async fn oversized_and_invalid_bodies_are_refused() {
    let authd = Authd::start(&[]);
    let big = json!({ "user": "x".repeat(20_000) });
    let answer = authd.call(Method::POST, "/v1/authenticate", Some(NODE_TOKEN), Some(&big)).await;
    assert_eq!(answer.error(), (413, "too_large".to_owned()));
    let mut unknown = authenticate("ann", "x", "192.0.2.1");
    unknown["colour"] = json!("red");
    let mut address = authenticate("ann", "x", "192.0.2.1");
    address["address"] = json!("here");
    for body in [unknown, address, json!([]), json!({}), json!("x")] {
        let answer = authd.call(Method::POST, "/v1/authenticate", Some(NODE_TOKEN), Some(&body)).await;
        assert_eq!(answer.error(), (400, "invalid_request".to_owned()), "{body}");
    }
    // A chunked body without a Content-Length is limited, too.
    let mut stream = TcpStream::connect(authd.url.strip_prefix("http://").unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let head = format!(
        "POST /v1/authenticate HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {NODE_TOKEN}\r\n\
         transfer-encoding: chunked\r\n\r\n5000\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&[b' '; 0x5000]).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
}
