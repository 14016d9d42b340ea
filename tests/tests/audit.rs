//! The audit trail of a whole cluster: the form of its records, and its completeness.

#[path = "audit/clients.rs"]
mod clients;
#[path = "audit/replay.rs"]
mod replay;
#[path = "audit/schema.rs"]
mod schema;

use std::{collections::BTreeMap, env, fs, path::Path, thread};

use cluster_tests::{
    authd::hash_password,
    cluster::Cluster,
    content::sha256,
    dialogue::Dialogue,
    eventually,
    tls::{Authority, SecureDialogue},
};
use serde_json::{Value, json};

use self::{
    clients::Ground,
    replay::{Replay, Sent, tree},
    schema::Schema,
};

const SCHEMA: &str = include_str!("../../docs/audit.schema.json");

/// Number of operations of the replay.
const OPERATIONS: usize = 10_000;

/// Number of clients of the replay.
const CLIENTS: u8 = 6;

/// The records in a file, once `is_complete` accepts them.
fn records(path: &Path, is_complete: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    eventually("the records of the audit trail", || {
        let text = fs::read_to_string(path).unwrap();
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        let records: Vec<Value> = whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        is_complete(&records).then_some(records)
    })
}

fn count(records: &[Value], event: &str) -> usize {
    records.iter().filter(|record| record["event"] == event).count()
}

/// Each number of a process occurs once, and none is missing.
fn assert_no_gap(records: &[Value]) {
    let mut by_process = BTreeMap::<&str, Vec<u64>>::new();
    for record in records {
        let (process, number) = record["id"].as_str().unwrap().rsplit_once('-').unwrap();
        by_process.entry(process).or_default().push(number.parse().unwrap());
    }
    for (process, mut numbers) in by_process {
        numbers.sort_unstable();
        let expected: Vec<u64> = (1..=numbers.len() as u64).collect();
        assert_eq!(numbers, expected, "{process}");
    }
}

#[test]
fn each_record_of_a_session_and_of_the_api_matches_the_schema() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("audit.log");
    let authority = Authority::new();
    let hash = hash_password("secret");
    let users = format!(
        "[groups.staff]\n\n\
         [users.ann]\npassword_hash = \"{hash}\"\nhome = \"/ann\"\ngroups = [\"staff\"]\n\
         [users.bob]\npassword_hash = \"{hash}\"\nhome = \"/ann\"\npermissions = {{ list = false }}\n"
    );
    let cluster = Cluster::builder()
        .nodes(1)
        .users(&users)
        .certificate(&authority.sign("localhost"))
        .setting("audit_log", file.display())
        .setting("upload_digest", "sha256")
        .authd_setting("audit_log", file.display())
        .start();

    let clear = Dialogue::connect_with(&cluster.as_balancer(), cluster.node(0).address);
    let mut session = SecureDialogue::upgrade(&authority.client(), &cluster.as_balancer(), clear);
    session.command("USER ann", 331);
    session.command("PASS wrong", 530);
    session.login("ann", "secret");
    session.command("MKD dir", 257);
    session.transmit("STOR dir/a", b"first line\n");
    session.transmit("APPE dir/a", b"more");
    session.command("REST 6", 350);
    assert_eq!(session.receive("RETR dir/a"), b"line\nmore");
    session.command("TYPE A", 200);
    session.transmit("STOR dir/text", b"one\r\ntwo\r\n");
    session.command("TYPE I", 200);
    session.command("SITE CHMOD u=rw,go= dir/a", 200);
    session.command("MFMT 20260102030405 dir/a", 213);
    session.command("RNFR dir/a", 350);
    session.command("RNTO dir/b", 250);
    session.transmit("STOR dir/part", b"part");
    session.command("COMB dir/b dir/part", 250);
    session.command("DELE dir/none", 550);
    session.command("SIZE dir/none", 550);
    session.command("MKD dir", 550);
    session.command("DELE dir/b", 250);
    session.command("MKD empty", 257);
    session.command("RMD empty", 250);
    session.command("RMDA dir", 250);
    session.command("QUIT", 221);
    let mut bob = Dialogue::connect_with(&cluster.as_balancer(), cluster.node(0).address);
    bob.login("bob", "secret");
    bob.epsv();
    bob.command("LIST", 550);
    let carl = json!({ "name": "carl", "password": "top secret" });
    let change = json!({ "home": "/elsewhere", "password": "another secret" });
    for (method, path, body, status) in [
        ("POST", "/v1/users", Some(&carl), 201),
        ("POST", "/v1/users", Some(&carl), 409),
        ("PATCH", "/v1/users/carl", Some(&change), 200),
        ("DELETE", "/v1/users/carl", None, 204),
    ] {
        assert_eq!(cluster.authd().administer(method, path, body).status, status, "{method} {path}");
    }
    drop(bob);

    let is_complete = |records: &[Value]| count(records, "session_end") == 2 && count(records, "admin") == 4;
    let records = records(&file, is_complete);
    assert_no_gap(&records);
    let schema = Schema::new(SCHEMA);
    let described = schema.fields();
    for record in &records {
        assert_eq!(schema.violations(record), [""; 0], "{record}");
        let fields = record.as_object().unwrap().keys();
        let unknown: Vec<_> = fields.filter(|field| !described.contains(&field.as_str())).collect();
        assert!(unknown.is_empty(), "docs/audit.schema.json lacks {unknown:?}: {record}");
    }
    let events: Vec<String> = records
        .iter()
        .filter(|record| record["user"] == "ann")
        .map(|record| format!("{} {}", record["event"].as_str().unwrap(), record["result"].as_str().unwrap()))
        .collect();
    assert_eq!(
        events,
        [
            "login failed",
            "login ok",
            "mkdir ok",
            "upload ok",
            "append ok",
            "download ok",
            "upload ok",
            "chmod ok",
            "set_time ok",
            "rename ok",
            "upload ok",
            "combine ok",
            "delete failed",
            "mkdir failed",
            "delete ok",
            "mkdir ok",
            "rmdir ok",
            "remove_tree ok",
            "session_end ok",
        ]
    );
    let find = |event: &str, result: &str| {
        let found = records.iter().find(|record| record["event"] == event && record["result"] == result);
        found.unwrap_or_else(|| panic!("no {event} {result}"))
    };
    let has = |record: &Value, fields: Value| {
        for (name, value) in fields.as_object().unwrap() {
            assert_eq!(&record[name], value, "{name} of {record}");
        }
    };
    has(find("login", "failed"), json!({ "reason": "wrong_password", "code": 530, "tls": "TLSv1.3" }));
    let client = cluster.client_address(1).to_string();
    has(find("login", "ok"), json!({ "address": client, "groups": ["staff"], "node": "ftp1", "code": 230 }));
    has(find("append", "ok"), json!({ "path": "/dir/a", "offset": 11, "bytes": 4, "command": "APPE" }));
    has(find("upload", "ok"), json!({ "path": "/dir/a", "sha256": sha256("first line\n") }));
    has(find("download", "ok"), json!({ "offset": 6, "bytes": 9, "code": 226 }));
    has(find("chmod", "ok"), json!({ "command": "SITE CHMOD", "value": "0600" }));
    has(find("set_time", "ok"), json!({ "value": "2026-01-02T03:04:05Z" }));
    has(find("rename", "ok"), json!({ "path": "/dir/a", "new_path": "/dir/b" }));
    has(find("combine", "ok"), json!({ "path": "/dir/b", "sources": [{ "path": "/dir/part" }] }));
    has(find("delete", "failed"), json!({ "path": "/dir/none", "reason": "not_found", "code": 550 }));
    has(find("session_end", "ok"), json!({ "reason": "quit", "uploaded": 29, "downloaded": 9 }));
    has(find("other", "failed"), json!({ "user": "bob", "command": "LIST", "reason": "permission" }));
    let text =
        records.iter().find(|record| record["ascii"] == true).expect("a record of the transfer in TYPE A");
    has(text, json!({ "path": "/dir/text", "bytes": 10, "sha256": sha256("one\ntwo\n") }));
    let admin: Vec<_> = records.iter().filter(|record| record["event"] == "admin").collect();
    has(admin[0], json!({ "by": "admin", "action": "user.create", "object": "carl", "result": "ok" }));
    has(
        admin[1],
        json!({ "action": "user.create", "object": "carl", "result": "failed", "reason": "already_exists" }),
    );
    let (before, after) = (json!({ "home": "/carl" }), json!({ "home": "/elsewhere", "password": "set" }));
    has(admin[2], json!({ "action": "user.update", "before": before, "after": after }));
    has(admin[3], json!({ "action": "user.remove", "object": "carl" }));
    assert!(
        !records.iter().any(|record| record.to_string().contains("secret")),
        "a password is in the trail"
    );
}

#[test]
fn the_schema_refuses_records_that_lack_something() {
    let schema = Schema::new(SCHEMA);
    let whole = json!({
        "v": 1, "id": "ftp1-00112233445566aa-7", "time": "2026-11-27T03:02:11.000250Z", "event": "rename",
        "result": "ok", "node": "ftp1", "session": "00112233445566aa", "user": "ann", "address": "::1",
        "command": "RNTO", "path": "/a", "new_path": "/b", "code": 250,
    });
    assert_eq!(schema.violations(&whole), [""; 0]);
    for (field, value) in [
        ("event", json!("teleport")),
        ("time", json!("yesterday")),
        ("id", json!("7")),
        ("session", json!("00")),
        ("address", json!("localhost")),
        ("code", json!("250")),
        ("v", json!(2)),
        ("new_path", Value::Null),
        ("user", Value::Null),
        ("result", json!("failed")),
    ] {
        let mut broken = whole.clone();
        match value {
            Value::Null => drop(broken.as_object_mut().unwrap().remove(field)),
            value => broken[field] = value,
        }
        assert_ne!(schema.violations(&broken), [""; 0], "{field}");
    }
}

/// `AUDIT_OPERATIONS` sets another number of operations.
#[test]
fn replaying_the_trail_of_random_operations_on_several_nodes_gives_the_same_tree() {
    let operations = env::var("AUDIT_OPERATIONS").map_or(OPERATIONS, |text| text.parse().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("audit.log");
    let hash = hash_password("secret");
    let user = |name: &str, uploads: &str| {
        format!("[users.{name}]\npassword_hash = \"{hash}\"\nhome = \"/home\"\nuploads = \"{uploads}\"\n")
    };
    let cluster = Cluster::builder()
        .without_balancer()
        .users(&(user("direct", "direct") + &user("atomic", "atomic")))
        .setting("audit_log", file.display())
        .setting("sync_uploads", false)
        .setting("upload_digest", "sha256")
        .setting("settle_time", "1ms")
        .setting("max_errors", 1000)
        .start();
    let login = |number: u8| {
        let node = cluster.node(usize::from(number) % cluster.size());
        let mut session = Dialogue::connect_with(&cluster.client(number), node.address);
        let is_atomic = number.is_multiple_of(2);
        session.login(if is_atomic { "atomic" } else { "direct" }, "secret");
        (session, is_atomic)
    };
    let ground = Ground::new(operations);
    let (mut first, _) = login(0);
    ground.prepare(&mut first);
    first.quit();
    let sent: Sent = thread::scope(|scope| {
        let clients: Vec<_> = (1..=CLIENTS)
            .map(|number| {
                let (ground, login) = (&ground, &login);
                scope.spawn(move || {
                    let (mut session, is_atomic) = login(number);
                    let status = session.command("STAT", 211).text();
                    let id = status.split("Session ").nth(1).unwrap()[..16].to_owned();
                    let sent = clients::run(ground, &mut session, is_atomic, u64::from(number));
                    session.quit();
                    (id, sent)
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let records = records(&file, |records| count(records, "session_end") == usize::from(CLIENTS) + 1);
    assert_no_gap(&records);
    let replayed = directory.path().join("replayed");
    fs::create_dir(&replayed).unwrap();
    let mut replay = Replay::new(&replayed, &sent);
    replay.apply(records);
    let (expected, found) = (tree(&cluster.storage().join("home")), tree(&replayed));
    for (path, entry) in &expected {
        assert_eq!(found.get(path), Some(entry), "{}", path.display());
    }
    let more: Vec<_> = found.keys().filter(|path| !expected.contains_key(*path)).collect();
    assert!(more.is_empty(), "the trail has paths that the storage lacks: {more:?}");
    for event in ["upload", "broken upload", "rename", "delete", "mkdir", "rmdir", "remove_tree", "combine"] {
        assert!(replay.applied.contains_key(event), "no {event} happened: {:?}", replay.applied);
    }
}
