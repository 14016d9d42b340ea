//! What the nodes say of themselves, as authd would list it.

use super::*;

/// Answers each GET with this list of nodes, or with an empty list of sessions, until the process ends.
fn stub_of_authd(address: SocketAddr, nodes: fn() -> Value) {
    let listener = TcpListener::bind(address).unwrap();
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut request = [0; 4096];
            let count = client.read(&mut request).unwrap_or(0);
            let is_nodes = request[..count].starts_with(b"GET /v1/nodes ");
            let body = if is_nodes { nodes().to_string() } else { "[]".to_owned() };
            let length = body.len();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
            // The doctor may have left.
            let _ = client.write_all((head + &body).as_bytes());
        }
    });
}

/// A node that owns all ports, with this activity; `ahead`: seconds by which its clock is ahead.
fn node(ahead: i64, fields: &Value) -> Value {
    let now = time::OffsetDateTime::now_utc().unix_timestamp() + ahead;
    let mut node = json!({
        "name": "ftp1", "incarnation": "1", "state": "ready", "slice": [1, 65535],
        "passive_ports": [[1, 65535]], "address": null, "control": "0.0.0.0:21", "host": "",
        "version": "0.1.0", "since": "2026-11-27T03:00:00Z", "sessions": 0, "transfers": 0, "failing": [],
        "drain": "none",
        "activity": { "clock": now * 1000 },
    });
    for (key, value) in fields.as_object().unwrap() {
        match value {
            Value::Object(activity) => {
                node[key].as_object_mut().unwrap().extend(activity.clone());
            }
            _ => node[key] = value.clone(),
        }
    }
    node
}

/// The findings of a doctor to whom authd lists these nodes, beside `no_tls`.
fn check(expected: &[&str], nodes: fn() -> Value) -> Diagnosis {
    let ftpd = Node::standalone().user("demo", "secret").start();
    let authd = ftpd.loopback().socket(3, 5160);
    stub_of_authd(authd, nodes);
    let diagnosis = DoctorRun::new(ftpd.address).authd(authd).run();
    diagnosis.assert_findings(&[expected, &["no_tls"]].concat());
    // The stub listens until the process ends, so its addresses stay reserved.
    std::mem::forget(ftpd.builder());
    diagnosis
}

#[test]
fn clocks_that_agree_are_in_order() {
    let diagnosis = check(&[], || json!([node(0, &json!({}))]));
    assert!(diagnosis.to_string().contains("ftp1 agrees with this host"), "{diagnosis}");
}

#[test]
fn the_clock_of_a_node_is_behind() {
    let diagnosis = check(&["clock_apart"], || json!([node(-41, &json!({}))]));
    let text = diagnosis.text_of("clock_apart");
    assert!(text.starts_with("clock of ftp1: is 4") && text.contains("behind"), "{text}");
}

#[test]
fn the_storage_of_a_node_hangs() {
    let diagnosis = check(&["storage_hangs"], || {
        let operation = json!({ "oldest_operation": 41.5, "oldest_operation_name": "STOR fsync /a of acme" });
        json!([node(0, &json!({ "activity": operation }))])
    });
    assert!(diagnosis.text_of("storage_hangs").contains("STOR fsync /a of acme"), "{diagnosis}");
}

#[test]
fn redis_answers_slowly() {
    check(&["redis_slow"], || json!([node(0, &json!({ "activity": { "redis_seconds": 0.4 } }))]));
}

#[test]
fn a_node_drains_and_has_another_version() {
    check(&["node_draining", "versions_differ"], || {
        let other = json!({ "name": "ftp2", "state": "draining", "version": "0.0.9" });
        json!([node(0, &json!({})), node(0, &other)])
    });
}

#[test]
fn no_node_is_alive() {
    check(&["no_nodes"], || json!([]));
}
