//! Events: a receiver is told of exactly the uploads that were complete, whatever dies meanwhile.

#[path = "events/command.rs"]
mod command;
#[path = "events/kinds.rs"]
mod kinds;
#[path = "events/stream.rs"]
mod stream;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    io::Write,
    net::Shutdown,
    path::{Path, PathBuf},
};

use cluster_tests::{
    DEADLINE, authd::hash_password, cluster::Cluster, content::sha256, dialogue::Dialogue, eventually,
    webhook_receiver::WebhookReceiver,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// The steps of an upload at which a node is killed. After the first two the file does not have its name.
const STEPS: [(&str, bool); 5] = [
    ("before_intent", false),
    ("intent_written", false),
    ("after_intent", false),
    ("before_commit", true),
    ("after_commit", true),
];

fn cluster(receiver: &WebhookReceiver, nodes: usize) -> Cluster {
    cluster_with(receiver.events_file("events = [\"upload\", \"append\"]"), nodes)
}

fn cluster_with(events_file: PathBuf, nodes: usize) -> Cluster {
    let hash = hash_password("secret");
    let users = format!(
        "[users.atomic]\npassword_hash = \"{hash}\"\nuploads = \"atomic\"\n\
         [users.direct]\npassword_hash = \"{hash}\"\nuploads = \"direct\"\ngroups = [\"staff\"]\n\
         [groups.staff]\n"
    );
    Cluster::builder()
        .users(&users)
        .nodes(nodes)
        .without_balancer()
        .setting("node_lease", "4s")
        .setting("authd_timeout", "20s")
        .setting("events_file", events_file.display())
        .setting("upload_digest", "sha256_in_reply")
        .start()
}

fn session(cluster: &Cluster, node: usize, user: &str) -> Dialogue {
    let mut session = Dialogue::connect_with(&cluster.client(1), cluster.node(node).address);
    session.login(user, "secret");
    session.command("TYPE I", 200);
    session
}

/// Sends an upload. Returns true if the reply is 226, and false if the session ends instead.
fn upload(session: &mut Dialogue, command: &str, size: usize) -> bool {
    let mut data = session.begin(command);
    // A node that dies meanwhile resets the connection.
    let content = vec![b'x'; size];
    let _ = data.write_all(&content).and_then(|()| data.shutdown(Shutdown::Write));
    match session.try_reply(DEADLINE) {
        Ok(Some(reply)) if reply.code == 226 => {
            // APPE has no hash, because the node does not read what was there before.
            let hash = reply.message().split("; SHA-256 ").nth(1).map(str::to_owned);
            assert_eq!(hash, command.starts_with("STOR").then(|| sha256(&content)), "{reply:?}");
            true
        }
        Ok(Some(reply)) => panic!("{command}: {reply:?}"),
        Ok(None) | Err(_) => false,
    }
}

/// Waits until exactly these files (path in the storage and size) have events, in this order where the path
/// is the same, each with one id.
fn expect_events(receiver: &WebhookReceiver, expected: &[(String, u64)]) {
    expect(expected, || receiver.accepted().into_iter().map(|received| received.event).collect());
}

/// As [`expect_events`], with the events that `received` returns.
fn expect(expected: &[(String, u64)], received: impl Fn() -> Vec<Value>) {
    let by_path = |events: &[(String, u64)]| {
        let mut paths = BTreeMap::<String, Vec<u64>>::new();
        for (path, size) in events {
            paths.entry(path.clone()).or_default().push(*size);
        }
        paths
    };
    let distinct = || {
        let mut ids = HashSet::new();
        let events = received().into_iter().filter(|event| ids.insert(event["id"].to_string()));
        let events = events.map(|event| {
            (event["storage_path"].as_str().unwrap().to_owned(), event["size"].as_u64().unwrap())
        });
        events.collect::<Vec<_>>()
    };
    eventually("the events", || {
        let got = distinct();
        (got.len() >= expected.len()).then_some(())
    });
    assert_eq!(by_path(&distinct()), by_path(expected));
}

/// The files in the storage's hidden directory whose names contain `part`.
fn hidden_files(storage: &Path, part: &str) -> Vec<String> {
    let entries = fs::read_dir(storage.join(".ftpd-partial-events")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains(part)).collect()
}

#[test]
fn every_226_has_one_event_with_the_path_and_size_of_the_file() {
    let receiver = WebhookReceiver::start();
    let cluster = cluster(&receiver, 2);
    let mut expected = Vec::new();
    for (node, user) in [(0, "atomic"), (1, "atomic"), (0, "direct"), (1, "direct")] {
        let mut session = session(&cluster, node, user);
        for (command, name, size, total) in
            [("STOR", "a", 3, 3), ("STOR", "b", 0, 0), ("APPE", "a", 4, 7), ("STOR", "a", 5, 5)]
        {
            assert!(upload(&mut session, &format!("{command} {name}{node}"), size));
            expected.push((format!("/{user}/{name}{node}"), total));
        }
        // A failed upload has no event.
        session.epsv();
        session.command("STOR missing/file", 550);
        session.quit();
    }
    expect_events(&receiver, &expected);
    let events = receiver.accepted();
    let kinds = |kind: &str| events.iter().filter(|event| event.event["event"] == kind).count();
    assert_eq!((kinds("upload"), kinds("append")), (12, 4));
    for event in &events {
        let is_upload = event.event["event"] == "upload";
        let content = vec![b'x'; usize::try_from(event.event["size"].as_u64().unwrap()).unwrap()];
        assert_eq!(event.event["sha256"].as_str(), is_upload.then(|| sha256(&content)).as_deref());
    }
    let event = &events[0].event;
    assert_eq!((&event["v"], event["id"].as_str()), (&1.into(), Some(&*events[0].id)));
    assert!(["atomic", "direct"].contains(&event["user"].as_str().unwrap()));
    assert!(event["path"].as_str().unwrap().starts_with('/'));
    assert_eq!(receiver.all().len(), expected.len(), "each event was delivered once");
}

#[test]
fn a_node_killed_at_any_step_leaves_an_event_if_and_only_if_the_file_has_its_name() {
    let receiver = WebhookReceiver::start();
    let mut cluster = cluster(&receiver, 2);
    let mut expected = Vec::new();
    for user in ["atomic", "direct"] {
        for (step, has_name) in STEPS {
            cluster.restart_node_with(0, |node| node.variable("EVENTS_FAULT", format!("{step}:2")));
            let mut first = session(&cluster, 0, user);
            assert!(upload(&mut first, &format!("STOR {step}"), 10));
            expected.push((format!("/{user}/{step}"), 10));
            assert!(!upload(&mut first, &format!("STOR {step}"), 11), "{step}: 226 of a killed node");
            cluster.node_mut(0).daemon.wait();
            let path = cluster.storage().join(user).join(step);
            // In direct mode the file has its name from the beginning; the event needs the intent.
            let has_event = if user == "direct" { step != "before_intent" } else { has_name };
            assert_eq!(fs::metadata(&path).unwrap().len() == 11, has_name || user == "direct", "{step}");
            if has_event {
                expected.push((format!("/{user}/{step}"), 11));
            }
            // The client tries again on the other node, when the lease of the dead one has expired.
            let mut second = session(&cluster, 1, user);
            eventually("the lease to expire", || {
                (second.probe(&format!("STOR {step}")) == 150).then_some(())
            });
            assert!(upload(&mut second, &format!("STOR {step}"), 12));
            expected.push((format!("/{user}/{step}"), 12));
            expect_events(&receiver, &expected);
        }
    }
}

#[test]
fn a_deliverer_that_dies_is_followed_by_another_node_which_may_repeat_an_id() {
    for (step, repeats) in [("before_post", false), ("after_post", true)] {
        let receiver = WebhookReceiver::start();
        let mut cluster = cluster(&receiver, 2);
        // The node that dies at its first attempt delivers, because for a while there is no other one.
        cluster.restart_node_with(0, |node| node.variable("EVENTS_FAULT", format!("{step}:1")));
        cluster.node_mut(1).daemon.kill();
        cluster.node(0).daemon.wait_for_message("this node delivers the events of the cluster", &[]);
        cluster.restart_node(1);
        let mut session = session(&cluster, 1, "direct");
        let mut expected = Vec::new();
        for number in 0..3 {
            assert!(upload(&mut session, &format!("STOR file{number}"), number + 1));
            expected.push((format!("/direct/file{number}"), number as u64 + 1));
        }
        cluster.node_mut(0).daemon.wait();
        expect_events(&receiver, &expected);
        let times = || {
            let mut times = HashMap::<String, usize>::new();
            for event in receiver.accepted() {
                *times.entry(event.id).or_default() += 1;
            }
            times
        };
        let is_repeated = || times().values().any(|times| *times > 1);
        if repeats {
            eventually("an event that is sent again", || is_repeated().then_some(()));
        } else {
            assert!(!is_repeated(), "{:?}", times());
        }
        assert_eq!(times().len(), expected.len());
    }
}

#[test]
fn events_wait_for_a_receiver_that_is_down_and_keep_the_order_of_their_path() {
    let receiver = WebhookReceiver::start();
    let mut cluster = cluster(&receiver, 3);
    receiver.respond(0);
    let mut expected = Vec::new();
    for round in 1..=6u32 {
        for user in ["atomic", "direct"] {
            let mut session = session(&cluster, round as usize % 3, user);
            assert!(upload(&mut session, "STOR file", round as usize));
            expected.push((format!("/{user}/file"), u64::from(round)));
            session.quit();
        }
        match round {
            2 => {
                // Redis loses its data. The nodes enter themselves and their ports again.
                cluster.kill_redis();
                cluster.start_redis();
                eventually("all nodes to be listed again", || {
                    let nodes = cluster.authd().administer("GET", "/v1/nodes", None).json();
                    let nodes = nodes.as_array()?;
                    let has_ports = |node: &Value| !node["passive_ports"].as_array().unwrap().is_empty();
                    (nodes.len() == 3 && nodes.iter().all(has_ports)).then_some(())
                });
            }
            4 => {
                cluster.node_mut(0).daemon.kill();
                cluster.restart_node(0);
            }
            _ => {}
        }
    }
    assert_eq!(receiver.accepted().len(), 0);
    eventually("an attempt", || (!receiver.all().is_empty()).then_some(()));
    receiver.respond(204);
    expect_events(&receiver, &expected);
    // A journal is removed when all its events are delivered and its process is dead.
    let processes = || {
        let names = hidden_files(cluster.storage(), "journal-");
        names.iter().map(|name| name.split('-').nth(3).unwrap().to_owned()).collect::<HashSet<_>>()
    };
    eventually("the journal of the dead process to be removed", || (processes().len() <= 3).then_some(()));
}

#[test]
fn clients_neither_see_nor_use_the_hidden_directory() {
    let receiver = WebhookReceiver::start();
    let hash = hash_password("secret");
    let users = format!(
        "[users.root]\npassword_hash = \"{hash}\"\nhome = \"/\"\n\
         quota = {{ bytes = 1_000_000, files = 10 }}\n"
    );
    let cluster = Cluster::builder()
        .users(&users)
        .nodes(1)
        .without_balancer()
        .setting("authd_timeout", "20s")
        .setting("events_file", receiver.events_file("").display())
        .setting("upload_digest", "sha256_in_reply")
        .start();
    let mut session = session(&cluster, 0, "root");
    assert!(upload(&mut session, "STOR file", 3));
    let directory = ".ftpd-partial-events";
    assert!(cluster.storage().join(directory).is_dir());
    let journal = hidden_files(cluster.storage(), "journal-").remove(0);
    for command in ["NLST -a", "LIST -aR", "MLSD"] {
        let listing = String::from_utf8(session.receive(command)).unwrap();
        assert!(listing.contains("file") && !listing.contains("partial"), "{command}: {listing}");
    }
    for name in [directory.to_owned(), format!("{directory}/{journal}"), format!("{directory}/new")] {
        for command in ["RETR", "STOR", "APPE", "LIST", "NLST"] {
            let address = session.epsv();
            let _data = session.data_connection(address);
            session.send(&format!("{command} {name}"));
            let reply = session.reply();
            assert!(reply.code / 100 == 5, "{command} {name}: {reply:?}");
        }
        for command in
            ["CWD", "MKD", "RMD", "DELE", "SIZE", "MDTM", "MLST", "RNFR", "SITE CHMOD 777", "XSHA256"]
        {
            session.send(&format!("{command} {name}"));
            let reply = session.reply();
            assert!(reply.code / 100 == 5, "{command} {name}: {reply:?}");
        }
    }
    session.command("RNFR file", 350);
    session.send(&format!("RNTO {directory}/file"));
    assert_eq!(session.reply().code / 100, 5);
    // The journal does not count towards the quota.
    let quota = session.command("SITE QUOTA", 211).text();
    assert!(quota.contains("Bytes: 3 ") && quota.contains("Files: 1 "), "{quota}");
}

#[test]
fn dead_letters_are_listed_and_delivered_again_by_the_api() {
    let receiver = WebhookReceiver::start();
    let cluster = cluster_with(receiver.events_file("retry_for = \"1s\""), 1);
    let mut session = session(&cluster, 0, "direct");
    receiver.respond(422);
    for name in ["first", "second"] {
        assert!(upload(&mut session, &format!("STOR {name}"), 3));
    }
    let state = |dead: u64| {
        eventually("the state of the events", || {
            let state = cluster.authd().administer("GET", "/v1/events", None).json();
            (state["dead"] == dead).then_some(state)
        })
    };
    let shown = state(2);
    assert_eq!((&shown["node"], &shown["receivers"][0]["name"]), (&json!("ftp1"), &json!("receiver")));
    let letters = shown["dead_letters"].as_array().unwrap();
    let letter = letters.iter().find(|letter| letter["path"] == "/direct/first").unwrap();
    assert_eq!((&letter["user"], &letter["size"]), (&json!("direct"), &json!(3)));
    assert!(letter["error"].as_str().unwrap().contains("422"), "{letter}");

    receiver.respond(204);
    let replay = |body: Value| {
        let answer = cluster.authd().administer("POST", "/v1/events/replay", Some(&body));
        assert_eq!((answer.status, &answer.json()["node"]), (202, &json!("ftp1")));
    };
    replay(json!({ "receiver": "receiver", "id": letter["id"] }));
    expect_events(&receiver, &[("/direct/first".to_owned(), 3)]);
    assert_eq!(receiver.accepted()[0].id, letter["id"]);
    state(1);
    replay(json!({}));
    expect_events(&receiver, &[("/direct/first".to_owned(), 3), ("/direct/second".to_owned(), 3)]);
    state(0);
}

#[test]
fn a_reload_changes_the_receivers_and_refuses_an_invalid_file() {
    let receiver = WebhookReceiver::start();
    let cluster = cluster_with(receiver.events_file("groups = [\"others\"]"), 1);
    let node = &cluster.node(0).daemon;
    let mut session = session(&cluster, 0, "direct");
    assert!(upload(&mut session, "STOR unwanted", 1));
    let file = receiver.events_file("groups = [\"staff\"]");
    node.signal(Signal::SIGHUP);
    node.wait_for_message("read events_file again", &[]);
    assert!(upload(&mut session, "STOR wanted", 2));
    expect_events(&receiver, &[("/direct/wanted".to_owned(), 2)]);
    assert_eq!(receiver.accepted()[0].event["groups"], json!(["staff"]));
    fs::write(&file, "[[webhook]]\nname = 1").unwrap();
    node.signal(Signal::SIGHUP);
    node.wait_for_line(|line| line.contains("events_file is not used"));
    assert!(upload(&mut session, "STOR still-wanted", 3));
    expect_events(&receiver, &[("/direct/wanted".to_owned(), 2), ("/direct/still-wanted".to_owned(), 3)]);
}
