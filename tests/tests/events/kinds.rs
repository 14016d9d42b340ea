//! Events of renames, removals, downloads and logins.

use std::{fs, net::Shutdown};

use cluster_tests::{cluster::Cluster, dialogue::Dialogue, eventually, webhook_receiver::WebhookReceiver};
use serde_json::{Value, json};

use crate::{DEADLINE, cluster_with, session, upload};

/// The steps of a change at which a node is killed, and whether the change is then made.
const CHANGE_STEPS: [(&str, bool); 5] = [
    ("before_intent", false),
    ("intent_written", false),
    ("after_intent", false),
    ("before_commit", true),
    ("after_commit", true),
];

fn cluster(receiver: &WebhookReceiver, events: &[&str]) -> Cluster {
    cluster_with(receiver.events_file(&format!("events = {}", json!(events))), 2)
}

/// An event in short: its kind and its path, after the old path of a rename.
fn short(event: &Value) -> String {
    let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
    let old = event["old_storage_path"].as_str().map(|old| format!("{old} ")).unwrap_or_default();
    format!("{} {old}{}", text("event"), text("storage_path"))
}

/// Waits for exactly these events, in any order, and returns them in the order of their arrival.
fn expect_short(receiver: &WebhookReceiver, expected: &[&str]) -> Vec<Value> {
    let events = || receiver.accepted().into_iter().map(|received| received.event).collect::<Vec<_>>();
    eventually("the events", || (events().len() >= expected.len()).then_some(()));
    let events = events();
    let sorted = |mut texts: Vec<String>| {
        texts.sort();
        texts
    };
    let expected = expected.iter().map(|&text| text.to_owned()).collect();
    assert_eq!(sorted(events.iter().map(short).collect()), sorted(expected));
    events
}

/// Sends a command whose success has `code`. Returns false if the session ends instead.
fn succeeds(session: &mut Dialogue, command: &str, code: u16) -> bool {
    session.send(command);
    match session.try_reply(DEADLINE) {
        Ok(Some(reply)) => {
            assert_eq!(reply.code, code, "{command}: {reply:?}");
            true
        }
        Ok(None) | Err(_) => false,
    }
}

#[test]
fn each_command_that_succeeds_has_its_event_and_one_that_fails_has_none() {
    let receiver = WebhookReceiver::start();
    let cluster = cluster(&receiver, &["upload", "rename", "delete", "download", "login"]);
    let mut first = session(&cluster, 0, "atomic");
    let mut second = session(&cluster, 1, "atomic");
    assert!(upload(&mut first, "STOR order.tmp", 10));
    first.command("RNFR order.tmp", 350);
    first.command("RNTO order.csv", 250);
    assert_eq!(second.receive("RETR order.csv").len(), 10);
    second.command("REST 4", 350);
    assert_eq!(second.receive("RETR order.csv").len(), 6);
    second.command("DELE order.csv", 250);
    first.command("MKD full", 257);
    first.command("MKD empty", 257);
    assert!(upload(&mut first, "STOR full/file", 1));
    first.command("RNFR empty", 350);
    first.command("RNTO bare", 250);
    first.command("RMD bare", 250);
    first.command("RMDA full", 250);

    // None of these is an event.
    first.command("DELE missing", 550);
    first.command("RMD missing", 550);
    assert!(upload(&mut first, "STOR kept", 3));
    first.command("RNFR kept", 350);
    first.command("RNTO missing/kept", 550);
    first.command("RMD kept", 550);
    let large = cluster.storage().join("atomic/large");
    fs::File::create(&large).unwrap().set_len(100 << 20).unwrap();
    let data = first.begin("RETR large");
    data.shutdown(Shutdown::Both).unwrap();
    drop(data);
    assert_eq!(first.reply().code, 426);
    let mut refused = Dialogue::connect_with(&cluster.client(2), cluster.node(0).address);
    refused.command("USER atomic", 331);
    refused.command("PASS wrong", 530);

    let expected = [
        "login /atomic",
        "login /atomic",
        "upload /atomic/order.tmp",
        "rename /atomic/order.tmp /atomic/order.csv",
        "download /atomic/order.csv",
        "download /atomic/order.csv",
        "delete /atomic/order.csv",
        "upload /atomic/full/file",
        "rename /atomic/empty /atomic/bare",
        "delete /atomic/bare",
        "delete /atomic/full",
        "upload /atomic/kept",
    ];
    let events = expect_short(&receiver, &expected);
    let find = |text: &str| events.iter().find(|event| short(event) == text).unwrap();
    let place = |text: &str| events.iter().position(|event| short(event) == text).unwrap();
    // In the order of each path, also where a rename leads from one to the other.
    assert!(place(expected[2]) < place(expected[3]) && place(expected[3]) < place(expected[6]));
    assert!(place(expected[8]) < place(expected[9]));
    let rename = find(expected[3]);
    assert_eq!((&rename["old_path"], &rename["path"]), (&json!("/order.tmp"), &json!("/order.csv")));
    assert_eq!((&rename["size"], &find(expected[6])["size"]), (&json!(10), &json!(10)));
    assert_eq!(find(expected[8]).get("size"), None, "a directory has no size");
    let login = find("login /atomic");
    assert_eq!((&login["path"], login.get("size")), (&json!("/"), None));
    assert_eq!((&login["user"], &login["v"]), (&json!("atomic"), &json!(1)));
    let mut downloads: Vec<_> = events
        .iter()
        .filter(|event| event["event"] == "download")
        .map(|event| (event["size"].as_u64(), event["offset"].as_u64()))
        .collect();
    downloads.sort();
    assert_eq!(downloads, [(Some(6), Some(4)), (Some(10), None)]);
}

#[test]
fn a_node_killed_at_any_step_of_a_change_leaves_its_event_if_and_only_if_it_was_made() {
    let receiver = WebhookReceiver::start();
    let mut cluster = cluster(&receiver, &["rename", "delete"]);
    let mut expected = Vec::new();
    for (step, is_made) in CHANGE_STEPS {
        for command in ["RNTO", "DELE", "RMD"] {
            cluster.restart_node_with(0, |node| node.variable("EVENTS_FAULT", format!("{step}:1")));
            let name = format!("{command}-{step}");
            let path = cluster.storage().join("direct").join(&name);
            let mut client = session(&cluster, 0, "direct");
            if command == "RMD" {
                client.command(&format!("MKD {name}"), 257);
            } else {
                client.transmit(&format!("STOR {name}"), b"content");
            }
            let (line, event) = if command == "RNTO" {
                client.command(&format!("RNFR {name}"), 350);
                (format!("RNTO new-{name}"), format!("rename /direct/{name} /direct/new-{name}"))
            } else {
                (format!("{command} {name}"), format!("delete /direct/{name}"))
            };
            assert!(!succeeds(&mut client, &line, 250), "{name}: 250 of a killed node");
            cluster.node_mut(0).daemon.wait();
            assert_eq!(!path.exists(), is_made, "{name}");
            if is_made {
                expected.push(event);
            }
            // By the other node, when the lease of the dead one has expired: if the first change was not
            // made, this one is, once.
            if !is_made {
                let mut other = session(&cluster, 1, "direct");
                eventually("the lease to expire", || {
                    if command == "RNTO" {
                        other.command(&format!("RNFR {name}"), 350);
                    }
                    other.send(&line);
                    (other.reply().code == 250).then_some(())
                });
                expected.push(if command == "RNTO" {
                    format!("rename /direct/{name} /direct/new-{name}")
                } else {
                    format!("delete /direct/{name}")
                });
            }
            expect_short(&receiver, &expected.iter().map(String::as_str).collect::<Vec<_>>());
        }
    }
}

#[test]
fn whoever_is_told_of_a_login_or_download_has_an_event_of_it_even_if_the_node_dies() {
    let receiver = WebhookReceiver::start();
    let mut cluster = cluster(&receiver, &["login", "download"]);
    fs::create_dir_all(cluster.storage().join("direct")).unwrap();
    fs::write(cluster.storage().join("direct/file"), "content").unwrap();
    let mut expected = Vec::new();
    for (step, _) in CHANGE_STEPS {
        // The third event is the one of the download after the second login.
        cluster.restart_node_with(0, |node| node.variable("EVENTS_FAULT", format!("{step}:3")));
        let mut first = session(&cluster, 0, "direct");
        let mut second = session(&cluster, 0, "direct");
        expected.extend(["login /direct"; 2]);
        let mut data = second.begin("RETR file");
        let mut content = Vec::new();
        let _ = std::io::Read::read_to_end(&mut data, &mut content);
        assert!(!matches!(second.try_reply(DEADLINE), Ok(Some(_))), "226 of a killed node");
        cluster.node_mut(0).daemon.wait();
        assert!(!matches!(first.try_reply(DEADLINE), Ok(Some(reply)) if reply.code < 400));
        // From the moment at which the event is on stable storage the client may have been told.
        if step != "before_intent" {
            expected.push("download /direct/file");
        }
        expect_short(&receiver, &expected);
    }
}
