//! Hostile input: nothing that a client sends may end the process, forge a log line, grow memory, or disturb
//! another session.

use std::{
    fs,
    io::{self, Read, Write},
    net::Shutdown,
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

/// A node that does not log every command, for tests that send many.
fn quiet() -> NodeBuilder {
    Node::standalone().setting("log_level", "info")
}

/// Longest time for one reply. The machine may be busy, but the node has nothing to wait for.
const SOON: Duration = Duration::from_secs(10);

fn answers_soon(session: &mut Dialogue) {
    let asked = Instant::now();
    session.command("NOOP", 200);
    assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
}

/// Long-line smuggling: CVE-2008-4242; over-long commands that loop: CVE-2019-18217.
#[test]
fn a_too_long_line_gets_one_500_and_the_next_command_works() {
    let node = Node::standalone().start();
    let mut session = node.login("demo", "x");
    for length in [8193, 100_000, 3_000_000] {
        // The tail must not be taken for a command.
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

/// Command parser memory: CVE-2010-4221, CVE-2023-51713, CVE-2024-57392, CVE-2024-48208, CVE-2020-9365.
#[test]
fn an_endless_line_does_not_grow_memory() {
    // Enough time for a busy machine to send everything.
    let node = quiet().setting("login_timeout", "10s").start();
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
    // Bytes do not extend the login timeout.
    endless.expect(421);
}

/// Injection through names: CVE-2025-47812 (NUL).
#[test]
fn bytes_that_no_name_can_contain_get_501() {
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
fn unknown_commands_get_500_unsupported_ones_502_and_bad_arguments_501() {
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
        "TYPE",
        "TYPE X",
        "TYPE I N",
        "STRU",
        "STRU X",
        "MODE",
        "MODE X",
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

/// Cross-protocol (ALPACA): CVE-2021-3618.
#[test]
fn connections_of_other_protocols_are_closed_without_a_reply() {
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

/// Pre-authentication growth: CVE-2026-44240 (in a client).
#[test]
fn a_flood_of_commands_does_not_grow_memory_or_disturb_other_sessions() {
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

/// State during a transfer: CVE-2020-9273, CVE-2011-4130.
#[test]
fn a_flood_during_a_transfer_does_not_grow_memory_or_end_the_transfer() {
    let node = quiet().start();
    let mut session = node.login("demo", "x");
    let mut data = session.begin("STOR file");
    data.write_all(b"12345").unwrap();
    let before = node.daemon.memory();
    // The first of these commands waits for the transfer, and all others wait behind it.
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
fn a_client_that_never_reads_replies_is_disconnected() {
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
        assert!(Instant::now() < end, "the node keeps replying to a client that never reads");
    };
    assert!(is_closed(&error), "{error}");
    let grown = node.daemon.memory().saturating_sub(before);
    assert!(grown < 16 * MIB, "{grown} bytes more");
    node.wait_for_metric("ftp_connections", |count| count == 1.0);
    answers_soon(&mut other);
}

/// Connection DoS: CVE-2021-30047, CVE-2021-47865, CVE-2020-35359.
#[test]
fn silent_clients_and_half_commands_end_at_the_login_timeout() {
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
fn unexpected_and_silent_data_connections_are_closed() {
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
        // The transfer thread that served STOR keeps a pipe.
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
        // Commands that clients send before they upload a tree.
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

    // In one packet, most of which is never parsed.
    let mut session = node.login("demo", "x");
    session.send_bytes(&b"BOGUS\r\n".repeat(1000));
    for _ in 0..10 {
        session.expect(500);
    }
    session.expect(421);
}

/// Injection through names: CVE-2026-42167, CVE-2026-44331, CVE-2009-0542, CVE-2009-0543.
#[test]
fn names_sent_by_a_client_cannot_forge_or_split_log_lines() {
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

/// Negative and huge offsets: ProFTPD #2286 (REST, RANG).
#[test]
fn numbers_beyond_their_limits_are_refused_and_numbers_at_the_limits_are_harmless() {
    let node = Node::standalone().setting("max_errors", 1000).start();
    let mut session = node.login("demo", "x");
    session.store("file", b"0123456789");
    let beyond =
        ["-1", "+1", "0x10", "1e3", "9223372036854775808", "18446744073709551616", "99999999999999999999999"];
    for number in beyond {
        for command in [
            format!("REST {number}"),
            format!("RANG {number} {number}"),
            format!("RANG 0 {number}"),
            format!("ALLO {number}"),
            format!("SITE CHMOD {number} file"),
            format!("MFMT {number} file"),
            format!("PORT 127,0,0,1,{number},1"),
            format!("EPRT |1|127.0.0.1|{number}|"),
        ] {
            session.command(&command, 501);
        }
        session.send(&format!("EPSV {number}"));
        let reply = session.reply();
        assert!(matches!(reply.code, 501 | 522), "EPSV {number}: {reply:?}");
    }
    const MOST: u64 = i64::MAX as u64;
    for command in [format!("REST {MOST}"), format!("RANG {MOST} {MOST}"), format!("RANG 11 {MOST}")] {
        for transfer in ["RETR file", "STOR file", "APPE file"] {
            session.epsv();
            session.command(&command, 350);
            session.send(transfer);
            let reply = session.reply();
            assert!((500..=599).contains(&reply.code), "{command}, {transfer}: {reply:?}");
        }
    }
    // No storage has that much space.
    session.epsv();
    session.send(&format!("ALLO {MOST}"));
    let reply = session.reply();
    assert!(matches!(reply.code, 452 | 552), "{reply:?}");
    for command in
        [format!("XCRC file 0 {MOST}"), format!("XMD5 file {MOST}"), format!("XSHA1 file 5 {MOST}")]
    {
        session.send(&command);
        let reply = session.reply();
        assert!(reply.code == 250 || (500..=599).contains(&reply.code), "{command}: {reply:?}");
    }
    assert_eq!(session.retrieve("file"), b"0123456789");
}
