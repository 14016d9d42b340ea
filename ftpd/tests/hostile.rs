//! Bad input: nothing a client sends ends the process, leaves the home, forges a log line, holds
//! memory that grows, or is noticed by another session.

use std::{
    fs,
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::fs::symlink,
    thread,
    time::{Duration, Instant},
};

use cluster_tests::{
    DEADLINE,
    dialogue::{Dialogue, is_closed, read_what_comes},
    node::{Node, NodeBuilder},
    proxy::Connector,
};

const MIB: u64 = 1 << 20;

/// Without a line for every command, of which some tests send many.
fn quiet() -> NodeBuilder {
    Node::standalone().setting("log_level", "info")
}

/// No single answer may take this long: the machine is busy, but nothing is to be waited for.
const SOON: Duration = Duration::from_secs(10);

fn answers_soon(session: &mut Dialogue) {
    let asked = Instant::now();
    session.command("NOOP", 200);
    assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
}

#[test]
fn an_over_long_line_gets_one_500_and_the_next_command_works() {
    let node = Node::standalone().start();
    let mut session = node.login("demo", "x");
    for length in [8193, 100_000, 3_000_000] {
        // Its tail must not pass for a command.
        let line = [&b"MKD "[..], &vec![b'a'; length], b"\rDELE x\0QUIT\r\n"].concat();
        session.send_bytes(&line);
        session.expect(500);
        session.command("NOOP", 200);
    }
    session.send_bytes(&[&b"NOOP "[..], &[b' '; 8187], b"\r\n"].concat());
    session.expect(200);
    let mut stranger = node.connect();
    stranger.send_bytes(&[&[b'U'; 9000][..], b"\r\nNOOP\r\n"].concat());
    stranger.expect(500);
    stranger.expect(200);
    assert_eq!(fs::read_dir(node.root()).unwrap().count(), 0);
}

#[test]
fn a_line_that_never_ends_holds_no_memory() {
    let node = quiet().setting("login_timeout", "2s").start();
    let mut other = node.login("demo", "x");
    let before = node.daemon.memory();
    let mut endless = Dialogue::connect(node.address);
    let chunk = vec![b'x'; 1 << 20];
    for _ in 0..64 {
        endless.send_bytes(&chunk);
    }
    answers_soon(&mut other);
    let grown = node.daemon.memory().saturating_sub(before);
    assert!(grown < 8 * MIB, "{grown} bytes more");
    // Bytes are no login.
    endless.expect(421);
}

#[test]
fn bytes_that_cannot_be_in_a_name_get_501() {
    let node = Node::standalone().start();
    let mut session = node.login("demo", "x");
    for argument in [&b"a\0b"[..], b"\0", b"a\rb", b"a\r\0b", b"a\0\r"] {
        for verb in ["MKD", "RETR", "STOR", "CWD", "RNFR", "LIST", "SITE CHMOD 600", "USER", "CLNT", "HASH"] {
            session.command_bytes(&[verb.as_bytes(), b" ", argument].concat(), 501);
        }
        session.command("NOOP", 200);
    }
    session.command_bytes(b"\0", 500);
    session.command_bytes(b"NO\0OP", 500);
    assert_eq!(fs::read_dir(node.root()).unwrap().count(), 0);
}

#[test]
fn unknown_commands_get_500_known_ones_that_are_not_offered_502_and_bad_arguments_501() {
    let node = Node::standalone().setting("max_errors", 1000).start();
    let mut session = node.login("demo", "x");
    for command in ["BOGUS", "", " ", " NOOP", "NOOPNOOP", "\t", "X", "RETRfile", "é", "%s%n%x", "NOOP\t"] {
        session.command(command, 500);
    }
    for command in
        ["AUTH TLS", "PBSZ 0", "PROT P", "CCC", "SMNT /", "LANG en", "LPSV", "LPRT 1", "MFF x y", "ADAT x"]
    {
        session.command(command, 502);
    }
    for command in [
        "NOOP x",
        "PWD x",
        "PASV x",
        "QUIT x",
        "FEAT x",
        "TYPE",
        "TYPE X",
        "TYPE I N",
        "STRU",
        "STRU X",
        "MODE",
        "MODE X",
        "CWD",
        "MKD",
        "DELE",
        "RETR",
        "STOR",
        "APPE",
        "SIZE",
        "OPTS",
        "OPTS UTF8 MAYBE",
        "OPTS BOGUS",
        "HASH",
        "XCRC",
        "REIN now",
        "CDUP ..",
        "SITE WHO x",
        "CLNT",
    ] {
        session.command(command, 501);
    }
    for command in
        ["TYPE E", "TYPE A T", "TYPE L 7", "STRU R", "STRU P", "MODE B", "MODE C", "MODE Z", "OPTS UTF8 OFF"]
    {
        session.command(command, 504);
    }
    session.command("noop", 200);
    session.command("NoOp ", 200);
}

#[test]
fn other_protocols_are_closed_without_a_reply() {
    let node = Node::standalone().start();
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\nUSER demo\r\nPASS x\r\n"[..],
        b"POST /login HTTP/1.1\r\nContent-Length: 30\r\n\r\nUSER demo\r\n",
        b"HEAD / HTTP/1.0\r\n\r\n",
        b"PUT /x HTTP/1.1\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\n\r\n",
        b"CONNECT x:443 HTTP/1.1\r\n\r\n",
        b"EHLO x\r\nMAIL FROM:<a@b>\r\n",
        b"HELO x\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 21\r\nUSER demo\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x01\x02\x03\x04\x05\x06\x07\x08\0\x01\0\x02",
    ] {
        let mut session = node.connect();
        session.send_bytes(bytes);
        assert_eq!(session.expect_closed(), [], "{}", bytes.escape_ascii());
    }
    let mut session = node.login("demo", "x");
    session.command("MKD a", 257);
    session.send_bytes(b"RMD a\r\nGET / HTTP/1.1\r\nMKD b\r\n");
    let replies: Vec<u16> = session.expect_closed().iter().map(|reply| reply.code).collect();
    assert!(replies.iter().all(|code| *code == 250), "{replies:?}");
    assert!(!node.root().join("b").exists());
}

#[test]
fn a_flood_of_commands_grows_nothing_and_disturbs_nobody() {
    let node = quiet().start();
    let mut other = node.login("demo", "x");
    let flooding = node.login("demo", "x");
    let before = node.daemon.memory();
    const COMMANDS: usize = 100_000;
    let mut write = flooding.control().try_clone().unwrap();
    let writer = thread::spawn(move || write.write_all(&b"NOOP\r\n".repeat(COMMANDS)));
    let mut read = flooding.control();
    let mut received = 0;
    let mut chunk = [0; 65536];
    let mut grown = 0;
    while received < COMMANDS * b"200 OK\r\n".len() {
        received += read.read(&mut chunk).unwrap();
        if received % 7 == 0 {
            answers_soon(&mut other);
            grown = grown.max(node.daemon.memory().saturating_sub(before));
        }
    }
    writer.join().unwrap().unwrap();
    assert!(grown < 8 * MIB, "{grown} bytes more");
    answers_soon(&mut other);
}

#[test]
fn a_flood_during_a_transfer_neither_grows_memory_nor_ends_the_transfer() {
    let node = quiet().start();
    let mut session = node.login("demo", "x");
    let mut data = session.begin("STOR file");
    data.write_all(b"12345").unwrap();
    let before = node.daemon.memory();
    // The first of these waits for the transfer, and all others behind it.
    let mut write = session.control().try_clone().unwrap();
    write.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut sent = 0;
    let flood = b"PWD\r\n".repeat(10_000);
    let blocked = loop {
        match write.write(&flood) {
            Ok(count) => sent += count,
            Err(error) => break error,
        }
        assert!(sent < 256 << 20, "the node reads without end");
    };
    assert!(matches!(blocked.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut), "{blocked}");
    let grown = node.daemon.memory().saturating_sub(before);
    assert!(grown < 8 * MIB, "{grown} bytes more");
    data.shutdown(Shutdown::Write).unwrap();
    session.expect(226);
    session.expect(257);
    assert_eq!(fs::read(node.root().join("file")).unwrap(), b"12345");
}

#[test]
fn who_never_reads_replies_is_cut_off() {
    let node = quiet().setting("reply_timeout", "500ms").start();
    let mut other = node.login("demo", "x");
    let small = Connector::new().buffers(4096, 4096);
    let mut deaf = Dialogue::connect_with(&small, node.address);
    deaf.login("demo", "x");
    let before = node.daemon.memory();
    let mut write = deaf.control().try_clone().unwrap();
    let flood = b"HELP\r\n".repeat(10_000);
    let end = Instant::now() + DEADLINE;
    let error = loop {
        if let Err(error) = write.write(&flood) {
            break error;
        }
        assert!(Instant::now() < end, "the node goes on answering one who does not listen");
    };
    assert!(is_closed(&error), "{error}");
    let grown = node.daemon.memory().saturating_sub(before);
    assert!(grown < 16 * MIB, "{grown} bytes more");
    node.wait_for_metric("ftp_connections", |count| count == 1.0);
    answers_soon(&mut other);
}

#[test]
fn many_who_say_nothing_or_half_a_command_are_cut_off_at_the_limit() {
    let node = quiet().setting("login_timeout", "2s").setting("max_sessions_per_address", 1000).start();
    let mut other = node.login("demo", "x");
    let before = node.daemon.memory();
    let silent: Vec<Dialogue> = (0..300)
        .map(|i| {
            let mut dialogue = node.connect();
            if i % 2 == 1 {
                dialogue.send_bytes(b"USER dem");
            }
            dialogue
        })
        .collect();
    answers_soon(&mut other);
    let grown = node.daemon.memory().saturating_sub(before);
    assert!(grown < 300 * 64 * 1024, "{grown} bytes more");
    for mut dialogue in silent {
        dialogue.expect(421);
        assert_eq!(dialogue.expect_closed(), []);
    }
    node.wait_for_metric("ftp_connections", |count| count == 1.0);
}

#[test]
fn data_connections_that_nobody_asked_for_or_that_say_nothing_are_closed() {
    let node = quiet().setting("stall_timeout", "500ms").setting("data_connect_timeout", "500ms").start();
    let mut session = node.login("demo", "x");
    let address = session.epsv();
    let stranger = Connector::new().from(node.loopback().address(9));
    let mut strangers: Vec<_> = (0..100).map(|_| stranger.connect(address).unwrap()).collect();
    for stream in &mut strangers {
        assert_eq!(read_what_comes(stream), b"");
    }
    let before = node.daemon.descriptors();
    let _data = session.data_connection(address);
    session.command("STOR file", 150);
    session.expect(426);
    cluster_tests::eventually("descriptors to be closed", || {
        // The thread that stored keeps a pipe.
        (node.daemon.descriptors() <= before + 2).then_some(())
    });
    session.receive("LIST");
}

#[test]
fn too_many_rejected_commands_end_the_session_but_missing_files_do_not() {
    let node = Node::standalone().setting("max_errors", 10).start();
    let mut session = node.login("demo", "x");
    session.command("TYPE I", 200);
    for i in 0..100 {
        // What clients ask before they upload a tree.
        session.command(&format!("SIZE missing{i}"), 550);
        session.command(&format!("CWD missing{i}"), 550);
    }
    for _ in 0..9 {
        session.command("BOGUS", 500);
    }
    session.command("NOOP", 200);
    for _ in 0..9 {
        session.command("BOGUS", 500);
    }
    session.command("TYPE X", 501);
    session.expect(421);
    assert_eq!(session.expect_closed(), []);
    assert_eq!(node.metric("ftp_limit_reached_total{limit=\"max_errors\"}"), Some(1.0));

    // In one packet, most of which is never looked at.
    let mut session = node.login("demo", "x");
    session.send_bytes(&b"BOGUS\r\n".repeat(1000));
    for _ in 0..10 {
        session.expect(500);
    }
    session.expect(421);
}

#[test]
fn no_path_leaves_the_home() {
    let builder = Node::standalone();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let root = builder.root();
    symlink(outside.path(), root.join("absolute")).unwrap();
    symlink(outside.path().join("secret"), root.join("file")).unwrap();
    let up = "../".repeat(20);
    symlink(format!("{up}{}", &outside.path().to_str().unwrap()[1..]), root.join("relative")).unwrap();
    symlink("/proc/self/root", root.join("proc")).unwrap();
    symlink("/", root.join("top")).unwrap();
    fs::create_dir(root.join("inside")).unwrap();
    fs::write(root.join("mine"), "mine").unwrap();
    let node = builder.setting("max_errors", 1000).start();
    let mut session = node.login("demo", "x");
    session.command("TYPE I", 200);
    let out = outside.path().display().to_string();
    let ways = [
        format!("{out}/secret"),
        format!("{up}{}/secret", &out[1..]),
        format!("inside/{up}{}/secret", &out[1..]),
        "absolute/secret".to_owned(),
        "relative/secret".to_owned(),
        "file".to_owned(),
        format!("proc{out}/secret"),
        format!("top{out}/secret"),
        "/proc/self/root/etc/passwd".to_owned(),
        "../../../../../../etc/passwd".to_owned(),
        "....//....//etc/passwd".to_owned(),
        "..\\..\\etc\\passwd".to_owned(),
        "%2e%2e/%2e%2e/etc/passwd".to_owned(),
        "~root/.profile".to_owned(),
        "/dev/null".to_owned(),
    ];
    for way in &ways {
        for command in
            ["RETR", "APPE", "STOR", "LIST", "NLST -R", "MLSD", "HASH", "SIZE", "MDTM", "XMD5", "MLST"]
        {
            // A link that leads out may be seen for what it is, itself.
            if way == "file" && matches!(command, "LIST" | "NLST -R" | "MLST") {
                continue;
            }
            session.epsv();
            session.send(&format!("{command} {way}"));
            let reply = session.reply();
            // A name without a directory part is an ordinary name.
            let plain = !way.contains('/') && matches!(command, "STOR" | "APPE") && way != "file";
            if plain {
                assert_eq!(reply.code, 150, "{command} {way}: {reply:?}");
                session.command("ABOR", 426);
                session.expect(226);
            } else {
                assert!((500..=599).contains(&reply.code), "{command} {way}: {reply:?}");
            }
        }
        for command in [
            "SITE CHMOD 777",
            "MFMT 20200101000000",
            "SITE UTIME 20200101000000",
            "CWD",
            "RMD",
            "RMDA",
            "COMB mine",
        ] {
            session.send(&format!("{command} {way}"));
            let reply = session.reply();
            assert!((500..=599).contains(&reply.code), "{command} {way}: {reply:?}");
        }
        if way != "file" {
            for command in ["DELE", "RNFR"] {
                session.command(&format!("{command} {way}"), 550);
            }
            session.command("RNFR mine", 350);
            let name = format!("RNTO {way}");
            if way.contains('/') {
                _ = session.command(&name, 550)
            } else {
                session.command(&name, 250);
                session.command(&format!("RNFR {way}"), 350);
                session.command("RNTO mine", 250);
            }
        }
        session.send(&format!("MKD {way}/made"));
        assert!((500..=599).contains(&session.reply().code), "{way}");
    }
    // `..` of the root is the root, and a link to the top leads to the home.
    session.command("CWD /../../..", 250);
    session.command("CWD top/inside", 250);
    assert_eq!(session.command("PWD", 257).quoted_path().unwrap(), "/top/inside");
    assert_eq!(fs::read(outside.path().join("secret")).unwrap(), b"secret");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    assert_eq!(fs::read(node.root().join("mine")).unwrap(), b"mine");
}

#[test]
fn a_link_that_is_swapped_all_the_time_never_leads_out() {
    let builder = Node::standalone();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("file"), "secret").unwrap();
    let root = builder.root().to_owned();
    fs::create_dir(root.join("inside")).unwrap();
    fs::write(root.join("inside/file"), "mine").unwrap();
    symlink("inside", root.join("link")).unwrap();
    let node = builder.setting("log_level", "info").start();
    let mut session = node.login("demo", "x");
    thread::scope(|scope| {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let target = outside.path().to_owned();
        scope.spawn(move || {
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                for target in [target.as_path(), "inside".as_ref()] {
                    symlink(target, root.join("new")).unwrap();
                    fs::rename(root.join("new"), root.join("link")).unwrap();
                }
            }
        });
        session.command("TYPE I", 200);
        let mut seen = 0;
        for _ in 0..300 {
            session.send("SIZE link/file");
            match session.reply() {
                reply if reply.code == 213 => {
                    assert_eq!(reply.message(), "4", "the file outside has six bytes");
                    seen += 1;
                }
                reply => assert_eq!(reply.code, 550),
            }
        }
        drop(stop);
        assert!(seen > 0, "the link was never right");
    });
}

#[test]
fn nothing_a_client_names_forges_or_splits_a_line_of_the_log() {
    for format in ["text", "json"] {
        let node = Node::standalone().setting("log_format", format).setting("max_login_failures", 100);
        let node = node.spawn();
        node.daemon.wait_for_line(|line| line.contains("ready"));
        let mut session = node.connect();
        const FORGED: &str = "2026-01-01T00:00:00.000Z INFO  ftpd::forged logged in user=root";
        for user in [
            &b"x\x1b[2J\x07"[..],
            b"x\" user=\"root\" y=\"",
            b"\xe4\xfe\x80",
            "x\u{2028}2026\u{85}\u{202e}".as_bytes(),
            b"a\tb\x0b\x0c",
        ] {
            session.command_bytes(&[b"USER ", user].concat(), 331);
            session.command("PASS x", 530);
            session.command_bytes(&[b"CLNT ", user].concat(), 200);
        }
        session.send_bytes(format!("USER x\n{FORGED}\nCLNT y\r{FORGED}\r\n").as_bytes());
        for code in [331, 500, 501] {
            session.expect(code);
        }
        session.login("demo", "x");
        for name in [&b"a\x1b[31m\x07b"[..], b"\xe2\x80\xa8x", b"\xc2\x85\xfe", b"x user=root\" y"] {
            let address = session.epsv();
            drop(session.data_connection(address));
            session.command_bytes(&[b"STOR ", name].concat(), 150);
            session.expect(226);
            session.command_bytes(&[b"PORT ", name].concat(), 501);
            session.command_bytes(&[b"RETR ", name, b"/missing"].concat(), 425);
            session.command_bytes(&[b"SITE CHMOD 0 ", name, b"/missing"].concat(), 550);
        }
        session.quit();
        node.daemon.wait_for_line(|line| line.contains("session ended"));
        for line in node.daemon.lines() {
            assert!(!line.chars().any(|c| c.is_control() || c == '\u{2028}'), "{line:?}");
            match format {
                "json" => {
                    let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
                    assert!(parsed["target"].as_str().unwrap().starts_with("ftpd"), "{line}");
                    assert_ne!(parsed["user"], "root", "{line}");
                }
                _ => {
                    let target = line.split_whitespace().nth(2).unwrap();
                    assert!(
                        line.starts_with("20") && target.starts_with("ftpd") && target != "ftpd::forged",
                        "{line}"
                    );
                    assert_ne!(
                        cluster_tests::process::field(&line, "user").as_deref(),
                        Some("root"),
                        "{line}"
                    );
                }
            }
        }
    }
}

#[test]
fn patterns_that_are_meant_to_take_for_ever_do_not() {
    let node = quiet().start();
    for i in 0..500 {
        fs::write(node.root().join(format!("{}{i}", "a".repeat(240))), "").unwrap();
    }
    let mut session = node.login("demo", "x");
    let started = Instant::now();
    for pattern in [
        "***************b".to_owned(),
        "*a".repeat(120) + "b",
        "*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*b".to_owned(),
        "?*".repeat(2000),
        "[".repeat(4000) + "*",
        "*[!a]".repeat(700),
        "{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}*".to_owned(),
    ] {
        session.epsv();
        session.send(&format!("NLST {pattern}"));
        let reply = session.reply();
        // Too long for a path, or an empty listing.
        if reply.code == 150 {
            session.send("ABOR");
            session.reply();
            session.expect(226);
        } else {
            assert!((500..=599).contains(&reply.code), "{reply:?}");
        }
        session.receive(&format!("LIST {}", &pattern[..pattern.len().min(200)]));
    }
    // A wildcard in a directory's name is a character; `..` behind it takes it away.
    for pattern in ["*/../*/../*", "*/../*/../*/../*/../*/../*/../*/../*/../*"] {
        assert_eq!(session.receive(&format!("NLST {pattern}")).split(|b| *b == b'\n').count(), 501);
    }
    session.epsv();
    session.command("NLST */*/*/*/*/*/*/*/*/*", 550);
    assert!(started.elapsed() < DEADLINE, "{:?}", started.elapsed());
}

#[test]
fn a_tree_deeper_than_any_limit_is_listed_and_removed_only_so_far() {
    let builder = quiet();
    let deep = builder.root().join("d/".repeat(300));
    fs::create_dir_all(&deep).unwrap();
    symlink("..", builder.root().join("d/loop")).unwrap();
    let node = builder.start();
    let mut session = node.login("demo", "x");
    let shown = String::from_utf8(session.receive("LIST -R")).unwrap();
    assert_eq!(shown.lines().filter(|line| line.ends_with(':')).count(), 33);
    session.command("RMDA d", 550);
    answers_soon(&mut session);
    assert!(deep.exists());
}
