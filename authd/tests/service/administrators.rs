//! Named administrators, their roles, and the routes for operators: blocks, explanations, usage, problems.

use std::collections::BTreeSet;

use common::{
    admin_api::{
        AuditEntry, AuditPage, AuthdView, BackupDocument, BalancerView, BlockRequest, BlockView,
        DeadLetterView, DialogueView, DrainView, EventReceiverView, EventsView, ExplainGate, FailingView,
        HistoryPoint, HistoryView, KickView, LiveSessionsView, LiveUnavailable, LoginAttemptView, NodeView,
        ProblemPart, ProblemView, ProblemsView, ReplayRequest, ReplayView, RestoreView, SessionExplanation,
        SessionView, StatusView, UsageView, UserExplanation, WhoamiView,
    },
    audit::AuditRecord,
    live::{BalancerActivity, DialogueLine, NodeActivity, SessionDetails, TransferDetails},
};
use redis::Commands;
use reqwest::Method;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    api::{commands, put_node},
    support::{Authd, NODE_TOKEN, Redis, eventually},
};

/// The keys of each type in its JSON form, with all optional fields, by the name of its schema.
pub(crate) fn types() -> Vec<(&'static str, BTreeSet<String>)> {
    fn keys<T: Serialize + DeserializeOwned>(value: &Value) -> BTreeSet<String> {
        let parsed: T = serde_json::from_value(value.clone()).unwrap_or_else(|e| panic!("{value}: {e}"));
        let written = serde_json::to_value(parsed).unwrap();
        assert_eq!(written.as_object().unwrap().len(), value.as_object().unwrap().len(), "{value}");
        written.as_object().unwrap().keys().cloned().collect()
    }
    let (id, time) = ("00112233445566aa", "1970-01-01T00:00:01Z");
    let transfer = json!({ "direction": "upload", "bytes": 1, "size": 2, "rate": 1.0, "seconds": 1.0 });
    let details = json!({
        "id": id, "client": "a", "tls": "TLSv1.3", "command": "STOR", "path": "/a", "idle": 0.0,
        "transfer": transfer, "uploaded": 1, "downloaded": 1,
    });
    let session = json!({
        "id": id, "node": "a", "user": "a", "address": "::1", "since": time, "ending": true,
        "ending_since": time, "details": details,
    });
    let activity = serde_json::to_value(NodeActivity::default()).unwrap();
    let failing = json!({ "dependency": "storage", "error": "gone", "since": time, "required": true });
    let node = json!({
        "name": "a", "incarnation": "1", "state": "ready", "slice": [1, 2], "passive_ports": [[1, 2]],
        "address": "::1", "control": "", "host": "", "version": "", "since": time, "sessions": 1,
        "transfers": 1, "failing": [failing], "drain": "asked", "drain_until": time, "activity": activity,
    });
    let drain = json!({
        "drain": "asked", "asked": time, "until": time, "sessions": 1, "transfers": 1, "status": "/",
    });
    let block = json!({
        "kind": "user", "name": "a", "until": time, "reason": "", "by": "admin", "since": time,
    });
    let request = json!({ "kind": "user", "name": "a", "seconds": 1, "reason": "" });
    let usage = json!({
        "user": "a", "home": "/a", "bytes": 1, "files": 1, "bytes_limit": 1, "files_limit": 1,
        "percent": 1.0, "counted": time,
    });
    let gate = json!({ "gate": "user", "verdict": "ok", "text": "" });
    let attempt = json!({
        "time": time, "accepted": false, "reason": "disabled", "node": "a", "address": "::1",
    });
    let user = json!({
        "user": "a", "may_log_in": true, "gates": [gate], "remedy": "", "attempts": [attempt],
    });
    let line = json!({ "time": time, "is_command": true, "text": "NOOP" });
    let explanation = json!({
        "id": id, "user": "a", "node": "a", "command": "", "reply": "", "text": "", "dialogue": [line],
    });
    let seen = json!({ "address": "::1", "connections": 1, "seconds": 1.0 });
    let balancer = json!({ "address": "::1", "connections": 1, "nodes": ["a"], "seconds": 1.0 });
    let authd = json!({ "id": "1", "host": "a", "address": "", "version": "", "since": time });
    let status = json!({
        "time": time, "version": "", "nodes": [node], "sessions": 1, "transfers": 1, "upload_rate": 1.0,
        "download_rate": 1.0, "redis_seconds": 1.0, "certificate_expiry": time, "problems": 1,
        "authds": [authd], "balancers": [balancer],
    });
    let part = json!({ "name": "a", "count": 1 });
    let entry = json!({ "position": "1-0", "record": crate::audit::full_record() });
    let problem = json!({
        "kind": "clock", "severity": "info", "node": "a", "since": time, "count": 1, "text": "",
        "remedy": "", "command": "", "reason": "quota", "parts": [part],
    });
    let point = json!({
        "at": 1, "upload_rate": 1.0, "download_rate": 1.0, "sessions": 1, "transfers": 1, "logins": 1,
        "logins_refused": 1,
    });
    let waiting = json!({ "name": "a", "pending": 1, "oldest_seconds": 1, "dead": 1, "error": "" });
    let letter = json!({
        "id": "a-1-1", "receiver": "a", "event": "upload", "time": time, "user": "a", "path": "/a", "size": 1,
        "since": time, "attempts": 1, "error": "",
    });
    let events = json!({
        "node": "a", "published": time, "receivers": [waiting], "dead": 1, "dead_letters": [letter],
    });
    vec![
        ("Events", keys::<EventsView>(&events)),
        ("EventReceiver", keys::<EventReceiverView>(&waiting)),
        ("DeadLetter", keys::<DeadLetterView>(&letter)),
        ("ReplayRequest", keys::<ReplayRequest>(&json!({ "receiver": "a", "id": "a-1-1" }))),
        ("Replay", keys::<ReplayView>(&json!({ "node": "a" }))),
        ("HistoryPoint", keys::<HistoryPoint>(&point)),
        ("History", keys::<HistoryView>(&json!({ "interval": 10, "points": [point] }))),
        ("TransferDetails", keys::<TransferDetails>(&transfer)),
        ("SessionDetails", keys::<SessionDetails>(&details)),
        ("Session", keys::<SessionView>(&session)),
        ("NodeActivity", keys::<NodeActivity>(&activity)),
        ("Failing", keys::<FailingView>(&failing)),
        ("Node", keys::<NodeView>(&node)),
        ("Drain", keys::<DrainView>(&drain)),
        ("Block", keys::<BlockView>(&block)),
        ("NewBlock", keys::<BlockRequest>(&request)),
        ("Usage", keys::<UsageView>(&usage)),
        ("Gate", keys::<ExplainGate>(&gate)),
        ("UserExplanation", keys::<UserExplanation>(&user)),
        ("DialogueLine", keys::<DialogueLine>(&line)),
        ("Dialogue", keys::<DialogueView>(&json!({ "id": id, "lines": [line] }))),
        ("SessionExplanation", keys::<SessionExplanation>(&explanation)),
        ("Status", keys::<StatusView>(&status)),
        ("Problem", keys::<ProblemView>(&problem)),
        ("Problems", {
            keys::<ProblemsView>(&json!({ "time": time, "problems": [problem], "unknown": ["nodes"] }))
        }),
        ("ProblemPart", keys::<ProblemPart>(&part)),
        ("BalancerActivity", keys::<BalancerActivity>(&seen)),
        ("Balancer", keys::<BalancerView>(&balancer)),
        ("Authd", keys::<AuthdView>(&authd)),
        ("LoginAttempt", keys::<LoginAttemptView>(&attempt)),
        ("AuditRecord", keys::<AuditRecord>(&crate::audit::full_record())),
        ("AuditEntry", keys::<AuditEntry>(&entry)),
        ("AuditPage", keys::<AuditPage>(&json!({ "records": [entry], "next": "1-0" }))),
        ("Backup", {
            keys::<BackupDocument>(&json!({
                "version": 1, "time": time, "authd": "", "users": {}, "groups": {}, "overrides": {},
                "blocks": [block],
            }))
        }),
        ("Restore", {
            keys::<RestoreView>(&json!({
                "users": 1, "groups": 1, "overrides": 1, "blocks": 1, "removed": 1, "warnings": [""],
            }))
        }),
        ("LiveSessions", {
            keys::<LiveSessionsView>(&json!({ "time": time, "total": 1, "sessions": [session] }))
        }),
        ("LiveUnavailable", {
            keys::<LiveUnavailable>(&json!({ "time": time, "event": "status", "message": "" }))
        }),
        ("Kick", keys::<KickView>(&json!({ "sessions": [session], "blocked_until": time }))),
        ("Whoami", keys::<WhoamiView>(&json!({ "name": "a", "role": "viewer" }))),
    ]
}

#[tokio::test]
async fn a_viewer_may_only_read_and_each_action_names_its_administrator() {
    let redis = Redis::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("administrators.toml");
    let line = |token: &str| authd::administrators::token_line(token.as_bytes());
    let entry =
        |name: &str, token: &str, role: &str| format!("[{name}]\n{}\nrole = \"{role}\"\n", line(token));
    let both = entry("vera", "vera's token", "viewer") + &entry("ada", "ada's token", "administrator");
    std::fs::write(&file, both).unwrap();
    let path = file.to_str().unwrap();
    let authd = Authd::start(&["--redis-url", &redis.url(), "--administrators-file", path]);
    let call =
        async |token: &'static str, method, path, body| authd.call(method, path, Some(token), body).await;

    let whoami = call("vera's token", Method::GET, "/v1/whoami", None).await.json();
    assert_eq!(whoami, json!({ "name": "vera", "role": "viewer" }));
    assert_eq!(authd.admin(Method::GET, "/v1/whoami", None).await.json()["name"], "admin");
    let ann = json!({ "name": "ann", "password": "hunter2" });
    let refused = call("vera's token", Method::POST, "/v1/users", Some(&ann)).await;
    assert_eq!(refused.error(), (403, "forbidden".to_owned()));
    assert_eq!(call("vera's token", Method::GET, "/v1/users", None).await.json(), json!([]));

    assert_eq!(call("ada's token", Method::POST, "/v1/users", Some(&ann)).await.status, 201);
    let home = json!({ "home": "/elsewhere" });
    assert_eq!(call("ada's token", Method::PATCH, "/v1/users/ann", Some(&home)).await.status, 200);
    eventually("the line of the action", async || authd.log().contains("action=user.update")).await;
    let log = authd.log();
    let action = log.lines().find(|line| line.contains("action=user.update")).unwrap();
    for part in ["by=ada", "address=127.0.0.1", "object=ann", "/ann", "/elsewhere"] {
        assert!(action.contains(part), "{part}: {action}");
    }
    assert!(log.contains("action=user.create") && !log.contains("hunter2"), "{log}");

    // The file is read again on SIGHUP. An invalid file changes nothing.
    std::fs::write(&file, "[ada]\nrole = 1").unwrap();
    authd.hangup();
    eventually("error", async || authd.log().contains("administrators_file is invalid")).await;
    assert_eq!(call("ada's token", Method::GET, "/v1/whoami", None).await.status, 200);
    std::fs::write(&file, entry("vera", "vera's token", "administrator")).unwrap();
    authd.hangup();
    eventually("new file", async || call("ada's token", Method::GET, "/v1/whoami", None).await.status == 401)
        .await;
    assert_eq!(call("vera's token", Method::DELETE, "/v1/users/ann", None).await.status, 204);
}

#[tokio::test]
async fn a_block_refuses_logins_and_ends_sessions_until_it_ends_or_is_removed() {
    let redis = Redis::start();
    let authd = Authd::start(&["--redis-url", &redis.url()]);
    let mut connection = redis.connection();
    authd.create("ann", "hunter2").await;
    put_node(&mut connection, "ftp-1", "00112233445566aa", "ann", "192.0.2.1");
    assert_eq!(authd.login("ann", "hunter2").await.status, 200);
    // authd announces a revision when it starts.
    let mut revision = || connection.get::<_, Option<u64>>("ftp:revision").unwrap();
    eventually("the first revision", async || revision().is_some()).await;
    let before = revision();
    let ann = json!({ "kind": "user", "name": "ann", "seconds": 3600, "reason": "too fast" });
    let made = authd.admin(Method::POST, "/v1/blocks", Some(&ann)).await;
    assert_eq!((made.status, &made.json()["by"]), (201, &json!("admin")));
    let sent = commands(&mut connection, "ftp-1");
    let end = json!({ "command": "end_session", "session": "00112233445566aa", "reason": "too fast" });
    assert_eq!(sent, std::slice::from_ref(&end));
    // A login that was decided before the block, and begins its session only now, is asked about again.
    let mut revision = || connection.get::<_, Option<u64>>("ftp:revision").unwrap();
    eventually("a new revision", async || revision() > before).await;
    let past = json!({ "user": "ann", "version": null, "address": "192.0.2.1" });
    let asked = json!({ "node": "ftp-1", "logins": [past] });
    let verdicts = authd.call(Method::POST, "/v1/authorized", Some(NODE_TOKEN), Some(&asked)).await;
    assert_eq!(verdicts.json()["verdicts"][0], json!({ "decision": "end", "reason": "blocked" }));
    let refused = authd.login("ann", "hunter2").await;
    assert_eq!((refused.status, &refused.json()["reason"]), (403, &json!("blocked")));
    let explained = authd.admin(Method::GET, "/v1/users/ann/explain", None).await.json();
    assert_eq!(
        (&explained["may_log_in"], &explained["remedy"]),
        (&json!(false), &json!("ftpctl unblock ann"))
    );
    assert_eq!(authd.admin(Method::DELETE, "/v1/blocks/user/ann", None).await.status, 204);
    assert_eq!(authd.admin(Method::DELETE, "/v1/blocks/user/ann", None).await.status, 404);
    assert_eq!(authd.login("ann", "hunter2").await.status, 200);

    let network = json!({ "kind": "address", "name": "192.0.2.77/24", "seconds": 2, "reason": "too fast" });
    assert_eq!(authd.admin(Method::POST, "/v1/blocks", Some(&network)).await.json()["name"], "192.0.2.0/24");
    assert_eq!(commands(&mut connection, "ftp-1"), [end]);
    assert_eq!(authd.login_from("ann", "hunter2", "192.0.2.1").await.status, 403);
    assert_eq!(authd.login_from("ann", "hunter2", "198.51.100.1").await.status, 200);
    eventually("the block ends", async || authd.login("ann", "hunter2").await.status == 200).await;
    assert_eq!(authd.admin(Method::GET, "/v1/blocks", None).await.json(), json!([]));
    assert_eq!(
        connection.hlen::<_, u64>("ftp:login-blocks").unwrap(),
        0,
        "a block that has ended is removed"
    );
    for bad in [
        json!({ "kind": "address", "name": "ann" }),
        json!({ "kind": "user", "name": "a/b" }),
        json!({ "kind": "user", "name": "ann", "seconds": 0 }),
        json!({ "kind": "user", "name": "ann", "reason": "x".repeat(201) }),
    ] {
        assert_eq!(authd.admin(Method::POST, "/v1/blocks", Some(&bad)).await.status, 400, "{bad}");
    }
}

#[tokio::test]
async fn the_explanation_of_a_user_names_the_closed_gate_and_a_remedy() {
    let redis = Redis::start();
    let authd = Authd::start(&["--redis-url", &redis.url()]);
    let body = json!({
        "name": "ann", "password": "hunter2",
        "access": { "allow_from": ["198.51.100.0/24"], "hours": ["Mon-Fri 06:00-20:00"] },
    });
    assert_eq!(authd.admin(Method::POST, "/v1/users", Some(&body)).await.status, 201);
    let explain = async |query: &str| {
        authd.admin(Method::GET, &format!("/v1/users/ann/explain{query}"), None).await.json()
    };
    let verdict = |explained: &Value, gate: &str| {
        let gates = explained["gates"].as_array().unwrap();
        gates.iter().find(|found| found["gate"] == gate).unwrap()["verdict"].clone()
    };
    // 1970-01-05 was a Monday.
    let monday = |hour: &str| format!("1970-01-05T{hour}:00:00Z");
    let noon = explain(&format!("?address=198.51.100.7&at={}", monday("12"))).await;
    assert_eq!((&noon["may_log_in"], &noon["remedy"]), (&json!(true), &Value::Null));
    let night = explain(&format!("?address=198.51.100.7&at={}", monday("03"))).await;
    assert_eq!((verdict(&night, "hours"), verdict(&night, "address")), (json!("refused"), json!("ok")));
    assert_eq!(night["remedy"], "ftpctl users set ann access.hours=[]");
    let elsewhere = explain(&format!("?address=192.0.2.1&at={}", monday("12"))).await;
    assert_eq!(verdict(&elsewhere, "address"), "refused");
    assert_eq!(verdict(&explain("").await, "address"), "unknown");
    let unknown = authd.admin(Method::GET, "/v1/users/bob/explain", None).await.json();
    assert_eq!((verdict(&unknown, "user"), &unknown["may_log_in"]), (json!("refused"), &json!(false)));
    assert_eq!(authd.admin(Method::GET, "/v1/users/ann/explain?from=x", None).await.status, 400);
}

#[tokio::test]
async fn usage_status_and_problems_are_shown() {
    let redis = Redis::start();
    let authd = Authd::start(&["--redis-url", &redis.url()]);
    let mut connection = redis.connection();
    authd.create("ann", "hunter2").await;
    let quota = json!({ "quota": { "bytes": 1000, "files": 10 } });
    assert_eq!(authd.admin(Method::PATCH, "/v1/users/ann", Some(&quota)).await.status, 200);
    let usage = async || authd.admin(Method::GET, "/v1/users/ann/usage", None).await.json();
    assert_eq!(usage().await["bytes"], Value::Null);
    let fields = [("bytes", "950"), ("files", "3"), ("counted", "1000")];
    let _: () = connection.hset_multiple("ftp:home-usage:ann", &fields).unwrap();
    assert_eq!((&usage().await["percent"], &usage().await["bytes_limit"]), (&json!(95.0), &json!(1000)));
    assert_eq!(usage().await["counted"], "1970-01-01T00:00:01Z");
    for (over, number) in [(90, 1), (96, 0)] {
        let found = authd.admin(Method::GET, &format!("/v1/usage?over={over}"), None).await.json();
        assert_eq!(found.as_array().unwrap().len(), number);
    }
    let problems = async || authd.admin(Method::GET, "/v1/problems", None).await.json()["problems"].clone();
    assert_eq!(problems().await[0]["kind"], "no_nodes");
    put_node(&mut connection, "ftp-1", "00112233445566aa", "ann", "192.0.2.1");
    assert_eq!(problems().await, json!([]));
    let record: String = connection.hget("ftp:node:ftp-1", "record").unwrap();
    let mut record: Value = serde_json::from_str(&record).unwrap();
    record["activity"] = json!({
        "oldest_operation": 25.0, "oldest_operation_name": "STOR fsync /a of ann", "upload_rate": 7.0,
    });
    let _: () = connection.hset("ftp:node:ftp-1", "record", record.to_string()).unwrap();
    let slow = &problems().await[0];
    assert_eq!((&slow["kind"], &slow["severity"]), (&json!("storage_slow"), &json!("critical")));
    assert!(slow["text"].as_str().unwrap().contains("STOR fsync /a of ann waits for 25.0 s"), "{slow}");
    let status = authd.admin(Method::GET, "/v1/status", None).await.json();
    assert_eq!((&status["sessions"], &status["upload_rate"]), (&json!(1), &json!(7.0)));
    assert_eq!(status["problems"], 1);
}

#[tokio::test]
async fn sessions_are_paged() {
    let redis = Redis::start();
    let authd = Authd::start(&["--redis-url", &redis.url()]);
    let mut connection = redis.connection();
    for (node, id) in [("a", "00112233445566aa"), ("b", "00112233445566bb"), ("c", "00112233445566cc")] {
        put_node(&mut connection, node, id, "ann", "192.0.2.1");
    }
    let (mut cursor, mut seen) = (None::<String>, Vec::new());
    loop {
        let query = cursor.map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
        let page = authd.admin(Method::GET, &format!("/v1/sessions?limit=2{query}"), None).await;
        seen.extend(page.json().as_array().unwrap().iter().map(|session| session["id"].clone()));
        cursor = page.headers.get("next-cursor").map(|next| next.to_str().unwrap().to_owned());
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen, ["00112233445566aa", "00112233445566bb", "00112233445566cc"]);
    assert_eq!(authd.admin(Method::GET, "/v1/sessions?cursor=x", None).await.status, 400);
}

#[tokio::test]
async fn details_and_dialogues_come_from_the_node_while_an_administrator_asks() {
    let redis = Redis::start();
    let authd = Authd::start(&["--redis-url", &redis.url()]);
    let mut connection = redis.connection();
    put_node(&mut connection, "ftp-1", "00112233445566aa", "ann", "192.0.2.1");
    let ask = async |path: &str| authd.admin(Method::GET, path, None).await;
    let node = async {
        let (mut connection, mut seen) = (redis.connection(), Vec::new());
        while seen.len() < 3 {
            for command in commands(&mut connection, "ftp-1") {
                if command["command"] == "watch" {
                    let details = json!({
                        "id": "00112233445566aa", "client": "FileZilla", "idle": 0.0, "uploaded": 7,
                        "downloaded": 0,
                    });
                    let fields = [("published", "1".to_owned()), ("00112233445566aa", details.to_string())];
                    let _: () = connection.hset_multiple("ftp:live:ftp-1", &fields).unwrap();
                } else {
                    let line = |is_command: bool, text: &str| {
                        let time = "1970-01-01T00:00:01Z";
                        json!({ "time": time, "is_command": is_command, "text": text })
                    };
                    let lines = json!([line(true, "STOR /a"), line(false, "552 Quota exceeded")]);
                    let _: () = connection.set("ftp:dialogue:00112233445566aa", lines.to_string()).unwrap();
                }
                seen.push(command["command"].clone());
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        seen
    };
    let asked = async {
        let details = ask("/v1/sessions?details=true").await.json();
        let again = ask("/v1/sessions?details=true").await.json();
        let dialogue = ask("/v1/sessions/00112233445566aa/dialogue").await.json();
        (details, again, dialogue, ask("/v1/sessions/00112233445566aa/explain").await.json())
    };
    let (seen, (details, again, dialogue, explained)) = tokio::join!(node, asked);
    assert_eq!(seen, ["watch", "report", "report"]);
    assert_eq!((&details[0]["details"]["client"], &details), (&json!("FileZilla"), &again));
    assert_eq!(dialogue["lines"][0]["text"], "STOR /a");
    assert_eq!(
        (&explained["command"], &explained["reply"]),
        (&json!("STOR /a"), &json!("552 Quota exceeded"))
    );
    assert!(explained["text"].as_str().unwrap().contains("quota"), "{explained}");
    assert!(ask("/v1/sessions").await.json()[0].get("details").is_none());
}

#[tokio::test]
async fn all_sessions_of_a_user_end_and_the_user_stays_out_for_a_time() {
    let redis = Redis::start();
    let authd = Authd::start(&["--redis-url", &redis.url()]);
    let mut connection = redis.connection();
    authd.create("ann", "hunter2").await;
    put_node(&mut connection, "ftp-1", "00112233445566aa", "ann", "192.0.2.1");
    put_node(&mut connection, "ftp-2", "00112233445566bb", "bob", "192.0.2.1");
    let ended = authd.admin(Method::DELETE, "/v1/sessions?user=ann&block=3600&reason=late", None).await;
    assert_eq!(ended.status, 200, "{}", ended.text);
    assert_eq!(ended.json()["sessions"][0]["id"], "00112233445566aa");
    assert!(ended.json()["blocked_until"].is_string(), "{}", ended.text);
    let sent = commands(&mut connection, "ftp-1");
    assert!(!sent.is_empty() && sent.iter().all(|command| command["reason"] == "late"), "{sent:?}");
    assert_eq!(commands(&mut connection, "ftp-2"), Vec::<Value>::new());
    assert_eq!(authd.login("ann", "hunter2").await.status, 403);
    assert_eq!(authd.admin(Method::DELETE, "/v1/sessions", None).await.status, 400);
}
