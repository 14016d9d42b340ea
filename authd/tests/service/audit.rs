//! `GET /v1/audit`, and what other routes make of the audit trail.

use std::time::Duration;

use common::{
    audit::{AuditEvent, AuditRecord, AuditResult},
    clock::{rfc3339_millis, since_epoch},
};
use redis::{Commands, Connection};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    api::put_node,
    support::{ADMIN_TOKEN, Authd, EventReader, Redis, eventually},
};

/// A record with every field.
pub(crate) fn full_record() -> Value {
    json!({
        "v": 1, "id": "a-1-1", "time": "1970-01-01T00:00:01.000001Z", "event": "rename", "result": "failed",
        "node": "a", "session": "00112233445566aa", "user": "a", "groups": ["b"], "address": "::1",
        "tls": "TLSv1.3", "cipher": "c", "command": "RNTO", "path": "/a", "path_hex": "2f61",
        "new_path": "/b", "new_path_hex": "2f62", "sources": [{ "path": "/c", "path_hex": "2f63" }],
        "bytes": 1, "offset": 1, "ascii": true, "uploaded": 1, "downloaded": 1, "seconds": 1.0, "code": 550,
        "reason": "permission", "detail": "d", "errno": "EACCES", "stored_at": "/srv/a",
        "holder": "00112233445566bb", "sha256": "00", "value": "644", "by": "ada", "action": "user.update",
        "object": "a", "before": { "enabled": true }, "after": { "enabled": false },
    })
}

/// Appends a record of a node, as the node would. `fields` are added to it.
fn append(connection: &mut Connection, number: u32, event: AuditEvent, fields: Value) {
    let result = if fields.get("reason").is_some() { AuditResult::Failed } else { AuditResult::Ok };
    let mut record = AuditRecord::new(event, result);
    record.id = format!("ftp-1-1-{number}");
    record.time = rfc3339_millis(since_epoch());
    record.node = "ftp-1".parse().ok();
    let mut record = serde_json::to_value(record).unwrap();
    record.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let mut append = redis::cmd("XADD");
    append.arg("ftp:audit").arg("*").arg("record").arg(record.to_string());
    append.query::<String>(connection).unwrap();
}

fn numbers(page: &Value) -> Vec<u32> {
    let number = |entry: &Value| entry["record"]["id"].as_str()?.rsplit_once('-')?.1.parse().ok();
    page["records"].as_array().unwrap().iter().map(|entry| number(entry).unwrap()).collect()
}

#[tokio::test]
async fn the_audit_trail_is_searched_by_every_condition_and_in_pages() {
    let redis = Redis::start();
    let authd = Authd::start(&["--redis-url", &redis.url()]);
    let mut connection = redis.connection();
    let records = [
        (
            AuditEvent::Upload,
            json!({ "user": "ann", "path": "/reports/q3.csv", "time": "2026-11-27T02:00:00Z" }),
        ),
        (AuditEvent::Delete, json!({ "user": "bob", "path": "/reports/old/q1.csv", "reason": "permission" })),
        (
            AuditEvent::Rename,
            json!({ "user": "ann", "path": "/a", "new_path": "/reports/b", "node": "ftp-2" }),
        ),
        (AuditEvent::Combine, json!({ "user": "ann", "path": "/x", "sources": [{ "path": "/reports/y" }] })),
        (AuditEvent::Login, json!({ "user": "ann", "session": "00112233445566aa", "address": "192.0.2.1" })),
    ];
    for (number, (event, fields)) in (1..).zip(records) {
        append(&mut connection, number, event, fields);
    }
    // A record that was sent twice.
    append(
        &mut connection,
        5,
        AuditEvent::Login,
        json!({ "user": "ann", "session": "00112233445566aa", "address": "192.0.2.1" }),
    );
    let search = async |query: &str| {
        let page = authd.admin(Method::GET, &format!("/v1/audit{query}"), None).await;
        assert_eq!(page.status, 200, "{query}: {}", page.text);
        page.json()
    };
    for (query, expected) in [
        ("", &[5, 4, 3, 2, 1][..]),
        ("?user=ann", &[5, 4, 3, 1]),
        ("?user=nobody", &[]),
        ("?path=/reports/*", &[4, 3, 1]),
        ("?path=/reports/**", &[4, 3, 2, 1]),
        ("?path=/reports/q3.csv", &[1]),
        ("?event=delete,login", &[5, 2]),
        ("?result=failed", &[2]),
        ("?result=ok&user=ann&event=upload", &[1]),
        ("?node=ftp-2", &[3]),
        ("?session=00112233445566aa", &[5]),
        ("?address=::ffff:192.0.2.1", &[5]),
        ("?since=2026-11-27T02:00:00Z&until=2026-11-27T02:00:00Z", &[1]),
        ("?since=1h&event=delete", &[2]),
        ("?until=1h&event=delete", &[]),
    ] {
        assert_eq!(numbers(&search(query).await), expected, "{query}");
    }
    let (mut cursor, mut seen) = (String::new(), Vec::new());
    loop {
        let page = search(&format!("?limit=2{cursor}")).await;
        seen.extend(numbers(&page));
        let Some(next) = page.get("next") else { break };
        cursor = format!("&cursor={}", next.as_str().unwrap());
    }
    // Only within a page a record that was sent twice is shown once.
    seen.dedup();
    assert_eq!(seen, [5, 4, 3, 2, 1]);
    for query in ["?event=explosion", "?since=yesterday", "?cursor=x", "?result=maybe", "?colour=red"] {
        let refused = authd.admin(Method::GET, &format!("/v1/audit{query}"), None).await;
        assert_eq!(refused.error(), (400, "invalid_request".to_owned()), "{query}");
    }
    // Actions of administrators are records, too.
    authd.create("carl", "swordfish").await;
    eventually("the record of the action", async || {
        let page = search("?event=admin").await;
        page["records"].as_array().unwrap().iter().any(|entry| entry["record"]["action"] == "user.create")
    })
    .await;
}

#[tokio::test]
async fn a_search_looks_at_a_limited_number_of_records_and_says_where_to_go_on() {
    let redis = Redis::start();
    let authd = Authd::start(&["--redis-url", &redis.url()]);
    let mut connection = redis.connection();
    append(&mut connection, 1, AuditEvent::Delete, json!({ "user": "ann" }));
    let record = serde_json::to_string(&AuditRecord::new(AuditEvent::Login, AuditResult::Ok)).unwrap();
    for _ in 0..21 {
        let mut batch = redis::pipe();
        for _ in 0..1000 {
            batch.cmd("XADD").arg("ftp:audit").arg("*").arg("record").arg(&record).ignore();
        }
        batch.query::<()>(&mut connection).unwrap();
    }
    let first = authd.admin(Method::GET, "/v1/audit?event=delete", None).await.json();
    assert_eq!(first["records"], json!([]));
    let next = first["next"].as_str().unwrap();
    let second =
        authd.admin(Method::GET, &format!("/v1/audit?event=delete&cursor={next}"), None).await.json();
    assert_eq!((numbers(&second), second.get("next")), (vec![1], None));
}

#[tokio::test]
async fn refused_uploads_logins_and_operations_are_problems_with_a_remedy() {
    let redis = Redis::start();
    let authd = Authd::start(&["--redis-url", &redis.url()]);
    let mut connection = redis.connection();
    put_node(&mut connection, "ftp-1", "00112233445566aa", "ann", "192.0.2.1");
    let problems = async |query: &str| {
        authd.admin(Method::GET, &format!("/v1/problems{query}"), None).await.json()["problems"].clone()
    };
    assert_eq!(problems("").await, json!([]));
    for number in 1..=3 {
        let fields = json!({ "user": "acme", "reason": "quota", "path": "/orders/a" });
        append(&mut connection, number, AuditEvent::Upload, fields);
    }
    append(&mut connection, 4, AuditEvent::Append, json!({ "user": "carl", "reason": "quota" }));
    let storage = json!({
        "user": "acme", "reason": "storage_access", "errno": "EACCES", "stored_at": "/srv/ftp/scans/a",
    });
    append(&mut connection, 5, AuditEvent::Mkdir, storage);
    let login = json!({ "user": "admin", "reason": "wrong_password", "address": "203.0.113.9" });
    append(&mut connection, 6, AuditEvent::Login, login);
    append(&mut connection, 7, AuditEvent::Upload, json!({ "user": "acme" }));
    append(&mut connection, 8, AuditEvent::Delete, json!({ "user": "acme", "reason": "permission" }));
    let found = problems("?minutes=15").await;
    let kinds: Vec<&str> =
        found.as_array().unwrap().iter().map(|problem| problem["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["storage_refused", "uploads_refused", "logins_refused"]);
    assert!(found[0]["text"].as_str().unwrap().contains("EACCES in /srv/ftp/scans on ftp-1"), "{found}");
    assert_eq!((&found[0]["severity"], &found[0]["node"]), (&json!("critical"), &json!("ftp-1")));
    let parts = json!([{ "name": "acme", "count": 3 }, { "name": "carl", "count": 1 }]);
    assert_eq!((&found[1]["count"], &found[1]["parts"]), (&json!(4), &parts));
    assert_eq!(found[1]["command"], "ftpctl quota acme");
    assert_eq!(found[2]["parts"], json!([{ "name": "203.0.113.9 as admin", "count": 1 }]));
    for problem in found.as_array().unwrap() {
        assert!(problem["since"].is_string() && !problem["remedy"].as_str().unwrap().is_empty(), "{problem}");
    }
    assert_eq!(authd.admin(Method::GET, "/v1/status", None).await.json()["problems"], 3);
    // Records that came since are added.
    append(&mut connection, 9, AuditEvent::Upload, json!({ "user": "acme", "reason": "quota" }));
    assert_eq!(problems("").await[1]["count"], 5);
    for query in ["?minutes=0", "?minutes=61", "?hours=1"] {
        assert_eq!(
            authd.admin(Method::GET, &format!("/v1/problems{query}"), None).await.status,
            400,
            "{query}"
        );
    }
    drop(redis);
    let away = authd.admin(Method::GET, "/v1/problems", None).await.json();
    assert_eq!(away["problems"][0]["kind"], "redis");
    assert!(away["unknown"].as_array().unwrap().contains(&json!("audit trail")), "{away}");
}

#[tokio::test]
async fn the_explanation_of_a_user_shows_the_last_logins() {
    let redis = Redis::start();
    let authd = Authd::start(&["--redis-url", &redis.url()]);
    let mut connection = redis.connection();
    authd.create("ann", "hunter2").await;
    for number in 1..=7 {
        let mut fields = json!({ "user": "ann", "address": "192.0.2.1" });
        if number % 2 == 0 {
            fields["reason"] = json!("time_not_allowed");
        }
        append(&mut connection, number, AuditEvent::Login, fields);
        append(&mut connection, 100 + number, AuditEvent::Login, json!({ "user": "bob" }));
    }
    let explained = authd.admin(Method::GET, "/v1/users/ann/explain", None).await.json();
    let attempts = explained["attempts"].as_array().unwrap();
    let accepted: Vec<bool> = attempts.iter().map(|attempt| attempt["accepted"].as_bool().unwrap()).collect();
    assert_eq!(accepted, [true, false, true, false, true]);
    assert_eq!((&attempts[1]["reason"], &attempts[1]["node"]), (&json!("time_not_allowed"), &json!("ftp-1")));
    assert_eq!(attempts[0]["address"], "192.0.2.1");
}

#[tokio::test]
async fn listeners_get_the_records_as_they_come_and_those_that_they_missed() {
    let redis = Redis::start();
    let authd = Authd::start(&["--redis-url", &redis.url()]);
    let mut connection = redis.connection();
    let path = "/v1/live?events=audit";
    let mut events = EventReader::new(authd.listen(path, ADMIN_TOKEN).await);
    // The stream of Redis does not exist yet.
    append(&mut connection, 1, AuditEvent::Delete, json!({ "user": "ann" }));
    let (name, first) = events.next().await.unwrap();
    assert_eq!((name.as_str(), &first["record"]["id"]), ("audit", &json!("ftp-1-1-1")));
    drop(events);
    for number in 2..=4 {
        append(&mut connection, number, AuditEvent::Delete, json!({ "user": "ann" }));
    }
    let again = reqwest::Client::new().get(format!("{}{path}", authd.url)).bearer_auth(ADMIN_TOKEN);
    let again = again.header("last-event-id", first["position"].as_str().unwrap()).send();
    let answer = tokio::time::timeout(Duration::from_secs(20), again).await.unwrap().unwrap();
    let mut events = EventReader::new(answer);
    append(&mut connection, 5, AuditEvent::Delete, json!({ "user": "ann" }));
    for number in 2..=5 {
        let (_, data) = events.next().await.unwrap();
        assert_eq!(data["record"]["id"], format!("ftp-1-1-{number}"));
    }
}

#[tokio::test]
async fn the_status_shows_the_running_authds() {
    let redis = Redis::start();
    let one = Authd::start(&["--redis-url", &redis.url()]);
    let mut two = Authd::start(&["--redis-url", &redis.url()]);
    let shown = async || {
        let status = one.admin(Method::GET, "/v1/status", None).await.json();
        let authds = status["authds"].as_array().unwrap().iter();
        authds.map(|authd| format!("http://{}", authd["address"].as_str().unwrap())).collect::<Vec<_>>()
    };
    let mut both = vec![one.url.clone(), two.url.clone()];
    both.sort();
    eventually("both are shown", async || {
        let mut shown = shown().await;
        shown.sort();
        shown == both
    })
    .await;
    // One that died without leaving is forgotten when its entry has expired.
    let mut connection = redis.connection();
    let _: () = connection.sadd("ftp:authds", "00112233445566aa").unwrap();
    assert_eq!(shown().await.len(), 2);
    let left: bool = connection.sismember("ftp:authds", "00112233445566aa").unwrap();
    assert!(!left);
    assert_eq!(two.terminate(), Some(0));
    assert_eq!(shown().await, std::slice::from_ref(&one.url));
}
