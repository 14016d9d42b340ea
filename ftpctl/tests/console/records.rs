//! What the cluster keeps for administrators: backups, the audit trail, events and dead letters.

use super::*;

#[test]
fn backup_of_one_cluster_is_restored_into_another_and_users_keep_their_passwords() {
    let old = Cluster::builder().nodes(1).start();
    let ftpctl = Ftpctl::of(&old);
    ftpctl.done("groups add partners limits.sessions=2");
    let answer = ftpctl.run_with_input("users add ann home=/ann groups=[\"partners\"]", "secret-of-ann\n");
    assert_eq!(answer.status, 0, "{answer:?}");
    ftpctl.done("users disable test");
    ftpctl.done("block 203.0.113.0/24 --reason scan");
    let file = ftpctl.home.path().join("backup.json");
    let text = ftpctl.done(&format!("backup {}", file.display()));
    assert!(text.contains("has 1 user, 1 group, 1 override, 1 block. "), "{text}");
    let mode = fs::metadata(&file).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600, "only the owner may read password hashes");
    let shown: Value = serde_json::from_str(&ftpctl.done("backup -")).unwrap();
    assert!(shown["users"]["ann"].to_string().contains("argon2"), "{shown}");
    drop(old);

    let new = Cluster::builder().nodes(1).start();
    let ftpctl = Ftpctl::of(&new);
    assert_eq!(ftpctl.run_with_input("users add bob", "secret-of-bob\n").status, 0);
    let restore = format!("restore {}", file.display());
    let text = ftpctl.done(&restore);
    assert!(text.starts_with("restored: 1 user, 1 group, 1 override, 1 block; 0 removed\n"), "{text}");
    let mut session = Dialogue::connect(new.address());
    assert_eq!(session.login("ann", "secret-of-ann").code, 230);
    assert_eq!(ftpctl.json("users show test")["enabled"], json!(false));
    assert_eq!(ftpctl.json("block")["blocks"][0]["name"], json!("203.0.113.0/24"));
    // A user that differs is not overwritten without --replace, and nothing else changes.
    ftpctl.done("users set ann home=/other");
    ftpctl.done("unblock 203.0.113.0/24");
    let refused = ftpctl.run(&restore);
    assert!(refused.status == 1 && refused.error.contains("ann"), "{refused:?}");
    assert_eq!(ftpctl.json("block"), json!({ "blocks": [] }));
    let answer = ftpctl.json(&format!("{restore} --replace"));
    assert_eq!((&answer["users"], &answer["removed"]), (&json!(1), &json!(1)), "{answer}");
    assert_eq!(ftpctl.json("users show ann")["home"], json!("/ann"));
    assert_eq!(ftpctl.run("users show bob").status, 1, "bob is not in the backup");
    let wrong = ftpctl.file("wrong.json", "{}");
    assert_eq!(ftpctl.run(&format!("restore {wrong}")).status, 2);
    let missing = ftpctl.run("restore /no/such/file");
    assert_eq!(missing.status, 2, "{missing:?}");
}

#[test]
fn audit_finds_operations_and_actions_and_follows_new_ones() {
    let cluster = Cluster::start();
    let ftpctl = Ftpctl::of(&cluster);
    let mut session = cluster.login();
    session.store("q3.csv", b"content");
    session.command("DELE q3.csv", 250);
    session.command("DELE missing.csv", 550);
    ftpctl.done("block 203.0.113.0/24");
    let all = eventually("the records are in Redis", || {
        let text = ftpctl.done("audit");
        let has = |kind: &str| text.lines().any(|line| line.contains(kind));
        [" login ", " upload /q3.csv 7 B demo ", "missing.csv", " admin block.create "]
            .iter()
            .all(|kind| has(kind))
            .then_some(text)
    });
    let position = |kind: &str| all.lines().position(|line| line.contains(kind));
    assert!(position(" upload /q3.csv ") < position(" delete /q3.csv "), "the newest is last: {all}");
    let only = |arguments: &str| ftpctl.done(&format!("audit {arguments}"));
    assert_eq!(only("--path /q*.csv --op delete --since 1h").lines().count(), 1);
    assert!(only("--result failed --user demo").contains("550 refused: "));
    assert_eq!(only("--user nobody"), "");
    assert_eq!(ftpctl.json("audit --event upload --limit 1")["records"].as_array().unwrap().len(), 1);
    assert_eq!(ftpctl.run("audit --event juggle").status, 2);

    let mut command = ftpctl.command();
    command.args(["--url", &ftpctl.url, "--token-file"]).arg(ftpctl.home.path().join("token"));
    command.args(["--json", "audit", "--follow", "--event", "mkdir,delete", "--limit", "1"]);
    let mut following = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["record"]["path"], json!("/missing.csv"), "the newest record so far");
    for name in ["one", "two"] {
        session.command(&format!("MKD {name}"), 257);
        assert_eq!(next()["record"]["path"], json!(format!("/{name}")));
    }
    following.kill().unwrap();
    following.wait().unwrap();
}

#[test]
fn events_are_listed_and_dead_letters_are_delivered_again() {
    let receiver = WebhookReceiver::start();
    let file = receiver.events_file("retry_for = \"1s\"");
    let cluster = Cluster::builder().nodes(1).setting("events_file", file.display()).start();
    let ftpctl = Ftpctl::of(&cluster);
    receiver.respond(422);
    let mut session = cluster.login();
    for name in ["first.csv", "second.csv"] {
        session.store(name, b"content");
    }
    let dead = |number: u64| {
        eventually("the dead letters", || {
            let answer = ftpctl.run("--json events list");
            let state = ftpctl.json_of(&answer);
            let is_failing = state["dead"] != json!(0) || state["receivers"][0].get("error").is_some();
            assert_eq!(answer.status, i32::from(is_failing), "{answer:?}");
            (state["dead"] == json!(number)).then_some(state)
        })
    };
    let state = dead(2);
    assert_eq!(state["receivers"][0]["dead"], json!(2));
    let problems = || ftpctl.run("problems").text;
    let text = problems();
    assert!(text.contains("2 events were not accepted for retry_for and are dead letters"), "{text}");
    assert!(text.contains("(ftpctl events list shows its last answer)"), "{text}");
    assert!(text.contains("then deliver them again: ftpctl events replay\n"), "{text}");
    let list = ftpctl.run("events list");
    assert_eq!(list.status, 1, "{list:?}");
    assert!(list.text.starts_with("ftp1 delivers the events of the cluster (published "), "{list:?}");
    assert!(list.text.contains("\n2 dead letters:\n"), "{list:?}");
    let letters = state["dead_letters"].as_array().unwrap();
    let id = |name: &str| {
        let letter = letters.iter().find(|letter| letter["path"].as_str().unwrap().ends_with(name));
        letter.unwrap()["id"].as_str().unwrap().to_owned()
    };
    for name in ["first.csv", "second.csv"] {
        let line = list.text.lines().find(|line| line.ends_with(&id(name))).expect(name);
        for part in ["receiver", "upload", "demo", &format!("/{name}"), "7 B", "422"] {
            assert!(line.contains(part), "{line}");
        }
    }
    let completed = |words: [&str; 2], name: &str| {
        let replay = ["ftpctl", "--url", &ftpctl.url, "events", "replay"];
        let offered = ftpctl.completed(&[&replay[..], &words].concat());
        assert!(offered.contains(&name.to_owned()), "{offered:?}");
    };
    completed(["--receiver", "rec"], "receiver");
    completed(["--id", ""], &id("second.csv"));
    let wrong = |arguments: &str, reason: &str| {
        let answer = ftpctl.run(&format!("events replay {arguments}"));
        assert!(answer.status == 1 && answer.error.contains(reason), "{answer:?}");
    };
    wrong("--receiver reciever", "there is no receiver reciever in events_file; receivers: receiver");
    wrong("--id ftp1-none-1", "there is no such dead letter");

    receiver.respond(204);
    let text = ftpctl.done(&format!("events replay --receiver receiver --id {}", id("first.csv")));
    let asked =
        |what: &str| format!("ftp1 is asked to deliver {what} again; what is left: ftpctl events list\n");
    assert_eq!(text, asked("1 dead letter"));
    dead(1);
    assert_eq!(receiver.accepted().iter().map(|event| &event.id).collect::<Vec<_>>(), [&id("first.csv")]);
    assert_eq!(ftpctl.json("events replay"), json!({ "node": "ftp1" }));
    dead(0);
    assert_eq!(receiver.accepted()[1].id, id("second.csv"));
    assert!(ftpctl.done("events list").ends_with("\nno dead letters\n"));
    assert!(!problems().contains("dead letter"));
    assert_eq!(ftpctl.run("events replay").error, "ftpctl: there are no dead letters\n");
}

#[test]
fn events_that_are_off_are_said_to_be_off() {
    let cluster = Cluster::builder().nodes(1).start();
    let ftpctl = Ftpctl::of(&cluster);
    let off =
        "no node delivers events: events_file is not set on the nodes, or the storage does not answer\n";
    assert_eq!(ftpctl.done("events list"), off);
    assert_eq!(ftpctl.json("events list"), json!({ "receivers": [], "dead": 0, "dead_letters": [] }));
    let replay = ftpctl.run("events replay");
    assert_eq!((replay.status, replay.error), (1, format!("ftpctl: {off}")));
}
