//! Quotas: usage of a home stays within its limits, for any commands of its sessions on any number of
//! nodes.

use std::{
    fs,
    io::{Read, Write},
    net::Shutdown,
    path::Path,
    thread,
};

use cluster_tests::{
    content::bytes,
    dialogue::{Dialogue, read_what_comes},
    eventually,
    node::{Node, NodeBuilder},
    process::field,
    redis::Redis,
    stub_authd::{Answer, StubAuthd},
};
use serde_json::{Value, json};

const LIMIT: usize = 300_000;

struct Site {
    nodes: Vec<Node>,
    _redis: Redis,
    _authd: StubAuthd,
}

/// Nodes that share a Redis and a storage, with an authd that accepts every login with `account`.
fn site(count: u8, account: Value, set: impl Fn(NodeBuilder) -> NodeBuilder) -> Site {
    let authd = StubAuthd::start(move |request| {
        let mut account = account.clone();
        account["user"] = request["user"].clone();
        account["home"] = json!("/home");
        Answer::account(&account)
    });
    let builder = Node::standalone().in_cluster();
    let redis = Redis::start(builder.loopback().socket(1, 6379));
    let names: Vec<_> = (1..=count).map(|number| format!("node{number}")).collect();
    let builder = builder
        .setting("authd_urls", authd.url())
        .setting("redis_url", redis.address)
        .setting("create_homes", "true")
        .setting("cluster_nodes", names.join(","));
    let nodes = (1..=count).zip(&names).map(|(number, name)| {
        let admin = builder.loopback().socket(number, 9121);
        let node = builder.clone().listen(builder.loopback().address(number));
        set(node.setting("node_name", name).setting("admin_listen", admin)).start()
    });
    Site { nodes: nodes.collect(), _redis: redis, _authd: authd }
}

fn quota() -> Value {
    json!({ "quota": { "bytes": LIMIT, "files": 5 } })
}

fn one_node(account: Value) -> Site {
    site(1, account, |node| node)
}

impl Site {
    fn login(&self, node: usize) -> Dialogue {
        let mut session = self.nodes[node].login("anna", "x");
        session.command("TYPE I", 200);
        session
    }

    fn home(&self) -> std::path::PathBuf {
        self.nodes[0].root().join("home")
    }
}

/// Usage reported by SITE QUOTA: bytes and files.
fn used(session: &mut Dialogue) -> (u64, u64) {
    let text = session.command("SITE QUOTA", 211).text();
    let number = |what: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(what)?.strip_prefix(": "));
        line.and_then(|line| line.split(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("{text}"))
    };
    (number("Bytes"), number("Files"))
}

/// Usage on the disk: bytes, and number of files and directories.
fn on_disk(directory: &Path) -> (u64, u64) {
    // The directory may be removed at the same time.
    let entries = fs::read_dir(directory).into_iter().flatten().map(Result::unwrap);
    entries.fold((0, 0), |(bytes, files), entry| match entry.metadata() {
        Ok(found) if found.is_dir() => {
            let below = on_disk(&entry.path());
            (bytes + below.0, files + below.1 + 1)
        }
        Ok(found) => (bytes + found.len(), files + 1),
        // The file was removed at the same time.
        Err(_) => (bytes, files),
    })
}

/// Uploads and returns the code of the last reply.
fn upload(session: &mut Dialogue, command: &str, content: &[u8]) -> u16 {
    let address = session.epsv();
    let mut data = session.data_connection(address);
    session.send(command);
    let reply = session.reply();
    if reply.code != 150 {
        return reply.code;
    }
    // The node closes the data connection when the quota is used up.
    let _ = data.write_all(content).and_then(|()| data.shutdown(Shutdown::Write));
    session.reply().code
}

/// CVE-2021-40524: the quota was only checked at the beginning of an upload.
#[test]
fn upload_over_quota_gets_552_and_keeps_what_arrived() {
    let site = one_node(quota());
    let mut session = site.login(0);
    assert_eq!(session.command("AVBL", 213).text(), "213 300000");
    assert_eq!(upload(&mut session, "STOR fits", &bytes(1, 100_000)), 226);
    assert_eq!(upload(&mut session, "STOR much", &bytes(2, 1_000_000)), 552);
    assert_eq!(on_disk(&site.home()), (300_000, 2));
    assert_eq!(fs::read(site.home().join("much")).unwrap(), bytes(2, 1_000_000)[..200_000]);
    assert_eq!(used(&mut session), (300_000, 2));
    assert_eq!(session.command("AVBL", 213).text(), "213 0");
    assert_eq!(upload(&mut session, "STOR more", b"x"), 552);
    assert_eq!(upload(&mut session, "APPE fits", b"x"), 552);
    assert_eq!(on_disk(&site.home()), (300_000, 2));
    session.command("DELE much", 250);
    assert_eq!(used(&mut session), (100_000, 1));
    assert_eq!(upload(&mut session, "STOR all", &bytes(3, 200_000)), 226);
    let refused = "ftp_limit_reached_total{limit=\"quota_bytes\"}";
    assert_eq!(site.nodes[0].metric(refused), Some(3.0));
}

#[test]
fn converted_text_counts_with_its_size_on_disk() {
    let site = one_node(quota());
    let mut session = site.login(0);
    session.command("TYPE A", 200);
    assert_eq!(upload(&mut session, "STOR text", &b"line\r\n".repeat(20_000)), 226);
    assert_eq!(used(&mut session), (100_000, 1));
    assert_eq!(upload(&mut session, "STOR text", &b"line\r\n".repeat(100_000)), 552);
    assert_eq!(used(&mut session), on_disk(&site.home()));
}

fn check_that_every_change_is_counted(uploads: &str) {
    let site = one_node(json!({ "quota": { "bytes": LIMIT, "files": 5 }, "uploads": uploads }));
    let mut session = site.login(0);
    let (mut other, home) = (site.login(0), site.home());
    let mut step = |session: &mut Dialogue, expected: (u64, u64)| {
        assert_eq!((used(session), on_disk(&home)), (expected, expected));
        assert_eq!(used(&mut other), expected);
    };
    assert_eq!(upload(&mut session, "STOR a", &bytes(1, 100_000)), 226);
    step(&mut session, (100_000, 1));
    // STOR replaces a file.
    assert_eq!(upload(&mut session, "STOR a", &bytes(1, 40_000)), 226);
    step(&mut session, (40_000, 1));
    assert_eq!(upload(&mut session, "APPE a", &bytes(1, 10_000)), 226);
    step(&mut session, (50_000, 1));
    // An upload is aborted, then resumed.
    let mut data = session.begin("STOR b");
    data.write_all(&bytes(2, 30_000)).unwrap();
    eventually("the bytes to arrive", || {
        let status = session.command("STAT", 211).text();
        status.contains("30000 bytes").then_some(())
    });
    session.send("ABOR");
    session.expect(426);
    session.expect(226);
    step(&mut session, (80_000, 2));
    session.command("REST 20000", 350);
    assert_eq!(upload(&mut session, "STOR b", &bytes(2, 30_000)), 226);
    step(&mut session, (100_000, 2));
    // One data connection sends nothing, another one never arrives.
    assert_eq!(upload(&mut session, "STOR empty", b""), 226);
    step(&mut session, (100_000, 3));
    assert_eq!(session.probe("STOR none"), 150);
    eventually("the quota reservations to be released", || (used(&mut session).1 == 3).then_some(()));
    step(&mut session, (100_000, 3));
    // A rename replaces a file; a rename to the same name changes nothing.
    session.command("RNFR a", 350);
    session.command("RNTO b", 250);
    step(&mut session, (50_000, 2));
    session.command("RNFR b", 350);
    session.command("RNTO b", 250);
    step(&mut session, (50_000, 2));
    assert_eq!(upload(&mut session, "STOU", &bytes(3, 1000)), 226);
    step(&mut session, (51_000, 3));
    session.command("COMB joined b empty", 250);
    step(&mut session, (51_000, 2));
    session.command("MKD dir", 257);
    for name in ["dir/1", "dir/2"] {
        assert_eq!(upload(&mut session, &format!("STOR {name}"), &bytes(4, 1000)), 226);
    }
    step(&mut session, (53_000, 5));
    session.command("MKD more", 552);
    step(&mut session, (53_000, 5));
    session.command("RMDA dir", 250);
    step(&mut session, (51_000, 2));
    session.command("MKD more", 257);
    session.command("MKD more", 550);
    step(&mut session, (51_000, 3));
    session.command("XMKD more/below", 257);
    session.command("RMD more", 550);
    step(&mut session, (51_000, 4));
    session.command("RMD more/below", 250);
    session.command("RNFR more", 350);
    session.command("RNTO renamed", 250);
    step(&mut session, (51_000, 3));
    session.command("XRMD renamed", 250);
    step(&mut session, (51_000, 2));
    session.command("DELE joined", 250);
    step(&mut session, (1000, 1));
    session.command("DELE joined", 550);
    step(&mut session, (1000, 1));
}

#[test]
fn every_change_of_files_is_counted_with_direct_uploads() {
    check_that_every_change_is_counted("direct");
}

#[test]
fn every_change_of_files_is_counted_with_atomic_uploads() {
    check_that_every_change_is_counted("atomic");
}

#[test]
fn partial_file_counts_until_it_is_removed() {
    let site = one_node(json!({ "quota": { "bytes": LIMIT }, "uploads": "atomic" }));
    let mut session = site.login(0);
    session.command("MKD dir", 257);
    for name in ["dir/a", "b"] {
        assert_eq!(upload(&mut session, &format!("STOR {name}"), &bytes(1, LIMIT + 1)), 552);
        assert_eq!(used(&mut session), on_disk(&site.home()));
        assert_eq!(used(&mut session).0, 300_000);
        if name == "b" {
            session.command("DELE b", 250);
        } else {
            session.command("RMD dir", 250);
        }
        assert_eq!(used(&mut session), (0, 0));
    }
}

#[test]
fn full_home_allows_overwriting_and_refuses_announced_sizes_at_once() {
    let site = one_node(quota());
    let mut session = site.login(0);
    assert_eq!(upload(&mut session, "STOR a", &bytes(1, LIMIT)), 226);
    session.command("ALLO 1", 552);
    assert_eq!(upload(&mut session, "STOR a", &bytes(2, LIMIT)), 226);
    assert_eq!(upload(&mut session, "STOR a", &bytes(2, 1000)), 226);
    session.command("ALLO 299001", 552);
    session.command("ALLO 299000", 200);
    assert_eq!(upload(&mut session, "STOR b", &bytes(2, 299_000)), 226);
    assert_eq!(used(&mut session), (300_000, 2));
}

#[test]
fn number_of_files_is_limited_and_site_quota_reports_no_quota() {
    let site = one_node(json!({ "quota": { "files": 2 } }));
    let mut session = site.login(0);
    for name in ["a", "b", "a"] {
        assert_eq!(upload(&mut session, &format!("STOR {name}"), b"x"), 226);
    }
    assert_eq!(upload(&mut session, "STOR c", b"x"), 552);
    let text = session.command("SITE QUOTA", 211).text();
    assert!(
        text.contains("Bytes: 2 used, no limit") && text.contains("Files: 2 used, 2 limit, 0 left"),
        "{text}"
    );
    assert!(session.command("SITE HELP", 214).text().contains("QUOTA"));
    assert_eq!(on_disk(&site.home()), (2, 2));
    let site = one_node(json!({}));
    assert_eq!(site.login(0).command("SITE QUOTA", 211).text(), "211 No quota");
}

#[test]
fn simultaneous_uploads_through_two_nodes_never_exceed_the_quota() {
    let site = site(2, json!({ "quota": { "bytes": LIMIT } }), |node| node);
    let _first = site.login(0);
    thread::scope(|scope| {
        let uploads: Vec<_> = (0..8)
            .map(|number| {
                let site = &site;
                scope.spawn(move || {
                    let mut session = site.login(number % 2);
                    upload(&mut session, &format!("STOR {number}"), &bytes(number as u64, 100_000))
                })
            })
            .collect();
        while uploads.iter().any(|upload| !upload.is_finished()) {
            assert!(on_disk(&site.home()).0 <= LIMIT as u64);
        }
        let codes: Vec<_> = uploads.into_iter().map(|upload| upload.join().unwrap()).collect();
        assert!(codes.contains(&552) && codes.iter().all(|code| [226, 552].contains(code)), "{codes:?}");
    });
    let held = on_disk(&site.home());
    assert!(held.0 <= LIMIT as u64, "{held:?}");
    for node in 0..2 {
        assert_eq!(used(&mut site.login(node)), held);
    }
}

#[test]
fn existing_files_count_and_a_recount_includes_external_changes() {
    let site = site(1, quota(), |node| {
        fs::create_dir_all(node.root().join("home/below")).unwrap();
        fs::write(node.root().join("home/below/before"), bytes(1, 250_000)).unwrap();
        std::os::unix::fs::symlink("below", node.root().join("home/link")).unwrap();
        node.setting("quota_rescan", "1s")
    });
    let mut session = site.login(0);
    assert_eq!(used(&mut session), (250_000, 2));
    let counted = site.nodes[0].daemon.wait_for_line(|line| line.contains("counted a home"));
    assert_eq!(field(&counted, "home").as_deref(), Some("/home"));
    assert_eq!(upload(&mut session, "STOR a", &bytes(1, 100_000)), 552);
    // Another program changes the storage.
    fs::remove_file(site.home().join("below/before")).unwrap();
    fs::remove_dir(site.home().join("below")).unwrap();
    eventually("the home to be counted again", || (used(&mut session) == (50_000, 1)).then_some(()));
    assert_eq!(upload(&mut session, "STOR a", &bytes(1, 100_000)), 226);
}

#[test]
fn quota_reservation_of_a_dead_node_is_released() {
    let mut site = site(2, quota(), |node| node.setting("node_lease", "1s"));
    let mut doomed = site.login(0);
    let mut data = doomed.begin("STOR a");
    data.write_all(&bytes(1, 10_000)).unwrap();
    eventually("the bytes to be stored", || (on_disk(&site.home()).0 == 10_000).then_some(()));
    let mut session = site.login(1);
    assert!(used(&mut session).0 > 10_000);
    site.nodes[0].daemon.kill();
    let _ = read_what_comes(&mut data);
    // The dead node's quota reservation is gone, and the data it wrote is counted.
    eventually("the usage to be correct again", || (used(&mut session) == (10_000, 1)).then_some(()));
    assert_eq!(upload(&mut session, "STOR b", &bytes(1, 290_000)), 226);
}

#[test]
fn upload_waits_for_the_first_count_no_longer_than_configured() {
    let site = site(1, quota(), |node| node.setting("quota_wait", "1ms"));
    let mut session = site.login(0);
    eventually("the home to be counted", || match upload(&mut session, "STOR a", b"x") {
        226 => Some(()),
        450 => None,
        code => panic!("{code}"),
    });
    let mut data = session.begin("RETR a");
    let mut content = Vec::new();
    data.read_to_end(&mut content).unwrap();
    session.expect(226);
    assert_eq!(content, b"x");
}

/// If a failed COMB left its copy in the target, a client could repeat it until the disk is full.
#[test]
fn comb_respects_the_quota_and_a_failed_comb_uses_none_of_it() {
    let site = one_node(quota());
    let mut session = site.login(0);
    session.command("MKD dir", 257);
    assert_eq!(upload(&mut session, "STOR dir/source", &bytes(1, 200_000)), 226);
    // The quota has no room for the copy beside the source.
    session.command("COMB target dir/source", 552);
    assert_eq!(on_disk(&site.home()), (200_000, 2));
    assert_eq!(used(&mut session), (200_000, 2));
    assert_eq!(upload(&mut session, "STOR dir/source", &bytes(1, 140_000)), 226);
    // Root can remove the source despite the mode.
    session.command("SITE CHMOD 555 dir", 200);
    for _ in 0..10 {
        session.send("COMB target dir/source");
        let code = session.reply().code;
        let disk = on_disk(&site.home());
        assert!(disk.0 <= LIMIT as u64, "{disk:?}");
        assert_eq!(used(&mut session), disk);
        if code == 250 {
            session.command("RNFR target", 350);
            session.command("RNTO dir/source", 250);
        } else {
            assert_eq!((code, disk), (550, (140_000, 2)));
        }
    }
    session.command("SITE CHMOD 755 dir", 200);
    session.command("COMB target dir/source", 250);
    assert_eq!(used(&mut session), (140_000, 2));
    assert_eq!(on_disk(&site.home()), (140_000, 2));
}

/// Each round runs one command of every session at the same time, on two nodes and with a few names.
#[test]
fn racing_sessions_on_two_nodes_never_store_more_than_is_counted() {
    let site = site(2, json!({ "quota": { "bytes": LIMIT, "files": 6 } }), |node| node);
    let mut observer = site.login(0);
    let mut sessions: Vec<_> = (0..4).map(|number| site.login(number % 2)).collect();
    for round in 0..40 {
        thread::scope(|scope| {
            for (number, session) in sessions.iter_mut().enumerate() {
                scope.spawn(move || {
                    let (a, b) = (format!("f{}", round % 2), format!("f{}", (round + number) % 3));
                    let mut send = |line: String| {
                        session.send(&line);
                        session.reply();
                    };
                    match round % 5 {
                        0 | 3 => drop(upload(session, &format!("STOR {b}"), &bytes(number as u64, 90_000))),
                        1 => {
                            send(format!("RNFR {b}"));
                            send(format!("RNTO {a}"));
                        }
                        2 if number % 2 == 0 => send(format!("MKD {a}.d")),
                        2 => send(format!("COMB f2 {a}")),
                        _ if number % 2 == 0 => send(format!("DELE {a}")),
                        _ => send(format!("RMD {a}.d")),
                    }
                });
            }
        });
        let (counted, disk) = (used(&mut observer), on_disk(&site.home()));
        assert!(counted.0 >= disk.0 && counted.1 >= disk.1, "round {round}: {counted:?}, disk {disk:?}");
        assert!(disk.0 <= LIMIT as u64 && disk.1 <= 6, "round {round}: {disk:?}");
    }
}

#[test]
fn expired_partial_files_are_removed_and_credited_to_the_quota() {
    // The nodes search every 30 s / 7.
    let account = json!({ "quota": { "bytes": LIMIT, "files": 5 }, "uploads": "atomic" });
    let site = site(2, account, |node| node.setting("partial_lifetime", "30s"));
    let (mut session, home) = (site.login(0), site.home());
    let partials = || -> Vec<_> {
        let names = fs::read_dir(&home).unwrap().map(|entry| entry.unwrap().path());
        names.filter(|path| path.to_string_lossy().contains(".ftpd-partial-")).collect()
    };
    assert_eq!(upload(&mut session, "STOR full", &bytes(1, LIMIT + 1)), 552);
    session.command("DELE full", 250);
    let mut data = session.begin("STOR broken");
    data.write_all(&bytes(2, 100_000)).unwrap();
    eventually("the bytes to arrive", || (on_disk(&home).0 == 100_000).then_some(()));
    session.send("ABOR");
    session.expect(426);
    session.expect(226);
    let [old] = &partials()[..] else { panic!("{:?}", partials()) };
    // Another upload is running.
    let mut other = site.login(1);
    let mut data = other.begin("STOR runs");
    data.write_all(&bytes(3, 1000)).unwrap();
    eventually("its bytes to arrive", || (on_disk(&home).0 == 101_000).then_some(()));
    let two_minutes_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(120);
    // The partial file of the running upload is as old, but locked.
    for partial in partials() {
        fs::File::options().write(true).open(partial).unwrap().set_modified(two_minutes_ago).unwrap();
    }
    eventually("the old partial file to go", || (!old.exists()).then_some(()));
    data.write_all(&bytes(4, 1000)).unwrap();
    data.shutdown(Shutdown::Write).unwrap();
    other.expect(226);
    assert_eq!(fs::read(home.join("runs")).unwrap().len(), 2000);
    eventually("the usage to be reported", || (used(&mut session) == (2000, 1)).then_some(()));
    assert_eq!(on_disk(&home), (2000, 1));
    let removed = |node: &Node| node.metric("ftp_partials_removed_total").unwrap_or(0.0);
    let bytes = |node: &Node| node.metric("ftp_partial_bytes_removed_total").unwrap_or(0.0);
    eventually("one node to have removed it", || {
        let sums = (site.nodes.iter().map(removed).sum::<f64>(), site.nodes.iter().map(bytes).sum::<f64>());
        (sums == (1.0, 100_000.0)).then_some(())
    });
    let node = site.nodes.iter().find(|node| removed(node) > 0.0).unwrap();
    let line = node.daemon.wait_for_line(|line| line.contains("was not resumed"));
    assert!(line.contains("partial_lifetime") && line.contains("bytes=100000"), "{line}");
}

/// An anonymous user's drop box. If the partial files of aborted uploads were not counted, they could fill
/// the disk.
#[test]
fn directory_quota_counts_only_that_directory() {
    let nothing = json!({
        "list": false, "download": false, "upload": false, "overwrite": false, "append": false,
        "rename": false, "delete": false, "mkdir": false, "rmdir": false, "attributes": false,
    });
    let (mut reads, mut adds) = (nothing.clone(), nothing);
    (reads["list"], reads["download"], adds["upload"]) = (json!(true), json!(true), json!(true));
    let account = json!({
        "permissions": reads, "directories": [{ "path": "/in", "permissions": adds }], "uploads": "atomic",
        "quota": { "bytes": LIMIT, "files": 4 }, "quota_directory": "/in",
    });
    let site = site(1, account, |node| {
        fs::create_dir_all(node.root().join("home/in")).unwrap();
        // Files outside the counted directory do not use the quota.
        fs::write(node.root().join("home/offer"), bytes(1, 2 * LIMIT)).unwrap();
        node
    });
    let mut session = site.login(0);
    assert_eq!(upload(&mut session, "STOR in/a", &bytes(2, 100_000)), 226);
    for name in ["b", "c", "d"] {
        let code = upload(&mut session, &format!("STOR in/{name}"), &bytes(3, LIMIT));
        assert_eq!((code, on_disk(&site.home().join("in")).0), (552, 300_000), "{name}");
    }
    let text = session.command("SITE QUOTA", 211).text();
    assert!(text.contains("Quota of /in:") && text.contains("Bytes: 300000 used, 300000 limit"), "{text}");
    assert_eq!(used(&mut session), on_disk(&site.home().join("in")));
    // AVBL outside the counted directory reports the storage's free space.
    assert_ne!(session.command("AVBL /", 213).text(), "213 0");
}
