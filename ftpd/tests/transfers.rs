//! Transfers: what arrives, what stays when they break off, and what may happen meanwhile.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    path::PathBuf,
    time::Duration,
};

use cluster_tests::{
    content::{bytes, sha256},
    dialogue::{Dialogue, read_what_comes, reset},
    eventually,
    node::Node,
    proxy::Connector,
};

fn start() -> Node {
    Node::standalone().start()
}

fn login(node: &Node) -> Dialogue {
    let mut session = node.login("demo", "x");
    session.command("TYPE I", 200);
    session
}

fn at(node: &Node, name: &str) -> PathBuf {
    node.root().join(name)
}

fn stored(node: &Node, name: &str) -> Vec<u8> {
    fs::read(at(node, name)).unwrap()
}

fn transfers(node: &Node, direction: &str, result: &str) -> f64 {
    node.metric(&format!("ftp_transfers_total{{direction=\"{direction}\",result=\"{result}\"}}"))
        .unwrap_or(0.0)
}

fn wait_for_size(node: &Node, name: &str, size: usize) {
    eventually("bytes to be in the file", || {
        let length = fs::metadata(at(node, name)).ok()?.len();
        (length >= size as u64).then_some(())
    });
}

/// All that a client does at the end of an upload.
fn finish(mut data: TcpStream, content: &[u8]) {
    data.write_all(content).unwrap();
    data.shutdown(Shutdown::Write).unwrap();
}

fn read_to_end(data: &mut TcpStream) -> Vec<u8> {
    let mut content = Vec::new();
    data.read_to_end(&mut content).unwrap();
    content
}

#[test]
fn files_of_every_size_come_back_as_they_went() {
    let node = start();
    let mut session = login(&node);
    for size in [0, 1, 4095, 65_536, 1_048_577, 20 << 20] {
        let content = bytes(size as u64, size);
        session.store("file", &content);
        assert_eq!(fs::metadata(at(&node, "file")).unwrap().len(), size as u64);
        let received = session.retrieve("file");
        assert_eq!(sha256(received), sha256(content), "{size} bytes");
    }
}

#[test]
fn a_store_replaces_what_was_there() {
    let node = start();
    let mut session = login(&node);
    session.store("file", &bytes(1, 100_000));
    session.store("file", b"short");
    assert_eq!(stored(&node, "file"), b"short");
    session.store("file", b"");
    assert_eq!(stored(&node, "file"), b"");
}

#[test]
fn stou_invents_a_name_and_tells_it() {
    let node = start();
    let mut session = login(&node);
    let mut names = Vec::new();
    for command in ["STOU", "STOU", "STOU report", "STOU report"] {
        let address = session.epsv();
        let data = session.data_connection(address);
        session.send(command);
        let opening = session.expect(150).message();
        let name = opening.strip_prefix("FILE: ").unwrap().to_owned();
        finish(data, name.as_bytes());
        session.expect(226);
        assert_eq!(stored(&node, &name), name.as_bytes());
        assert!(!names.contains(&name));
        names.push(name);
    }
    assert!(names[2].starts_with("report."), "{names:?}");
}

#[test]
fn appe_adds_to_a_file_or_makes_it() {
    let node = start();
    let mut session = login(&node);
    session.transmit("APPE file", b"one ");
    session.transmit("APPE file", b"two");
    assert_eq!(stored(&node, "file"), b"one two");
}

#[test]
fn text_has_crlf_on_the_wire_and_lf_in_the_file() {
    let node = start();
    let mut session = node.login("demo", "x");
    session.transmit("STOR file", b"one\r\ntwo\r\nlone\rcr\r\n");
    assert_eq!(stored(&node, "file"), b"one\ntwo\nlone\rcr\n");
    assert_eq!(session.receive("RETR file"), b"one\r\ntwo\r\nlone\rcr\r\n");
    session.transmit("APPE file", b"end\r\n");
    assert_eq!(session.retrieve("file"), b"one\ntwo\nlone\rcr\nend\n");
    session.command("TYPE A N", 200);
    let text: String = (0..200_000).map(|i| format!("line {i}\n")).collect();
    fs::write(at(&node, "large"), &text).unwrap();
    let received = session.receive("RETR large");
    assert_eq!(sha256(&received), sha256(text.replace('\n', "\r\n")));
    session.transmit("STOR again", &received);
    assert_eq!(sha256(stored(&node, "again")), sha256(text));
}

/// Negative and huge offsets: ProFTPD #2286.
#[test]
fn rest_lets_a_download_begin_anywhere_in_the_file() {
    let node = start();
    let mut session = login(&node);
    let content = bytes(1, 1_000_000);
    fs::write(at(&node, "file"), &content).unwrap();
    for offset in [0, 1, 999_999, 1_000_000] {
        session.command(&format!("REST {offset}"), 350);
        assert_eq!(sha256(session.receive("RETR file")), sha256(&content[offset..]), "{offset}");
        // It is used up.
        assert_eq!(session.receive("RETR file").len(), content.len());
    }
    session.epsv();
    session.command("REST 1000001", 350);
    session.command("RETR file", 554);
    session.command("TYPE A", 200);
    session.epsv();
    session.command("REST 1", 350);
    session.command("RETR file", 554);
    for wrong in ["REST", "REST -1", "REST x", "REST 9223372036854775808", "REST 18446744073709551616"] {
        session.command(wrong, 501);
    }
    session.command("TYPE I", 200);
    session.epsv();
    session.command("REST 9223372036854775807", 350);
    session.command("RETR file", 554);
    assert_eq!(session.receive("RETR file").len(), content.len());
}

#[test]
fn rang_picks_a_part_of_a_download() {
    let node = start();
    let mut session = login(&node);
    fs::write(at(&node, "file"), "0123456789").unwrap();
    for (range, part) in [("2 4", "234"), ("9 9", "9"), ("5 9223372036854775807", "56789"), ("10 20", "")] {
        session.command(&format!("RANG {range}"), 350);
        assert_eq!(session.receive("RETR file"), part.as_bytes(), "{range}");
    }
    assert_eq!(session.receive("RETR file"), b"0123456789");
    session.epsv();
    session.command("RANG 11 20", 350);
    session.command("RETR file", 554);
    // An upload of a part there is not: it would replace the whole file.
    for upload in ["STOR file", "APPE file", "STOU"] {
        session.epsv();
        session.command("RANG 2 4", 350);
        session.command(upload, 503);
    }
    assert_eq!(session.receive("RETR file"), b"0123456789");
}

#[test]
fn rest_lets_an_upload_go_on_but_leaves_no_hole() {
    let node = start();
    let mut session = login(&node);
    session.store("file", b"0123456789");
    session.command("REST 4", 350);
    session.transmit("STOR file", b"abc");
    assert_eq!(stored(&node, "file"), b"0123abc");
    for (name, offset) in [("file", 8), ("file", i64::MAX), ("missing", 1)] {
        session.epsv();
        session.command(&format!("REST {offset}"), 350);
        session.command(&format!("STOR {name}"), 554);
    }
    assert_eq!(stored(&node, "file"), b"0123abc");
    assert!(!at(&node, "missing").exists());

    // APPE goes on at the end, wherever REST was; only there is an offset no contradiction.
    session.command("REST 7", 350);
    session.transmit("APPE file", b"def");
    assert_eq!(stored(&node, "file"), b"0123abcdef");
    session.epsv();
    session.command("REST 3", 350);
    session.command("APPE file", 554);
    assert_eq!(stored(&node, "file"), b"0123abcdef");
}

#[test]
fn an_upload_that_broke_off_is_resumed() {
    let node = start();
    let content = bytes(1, 3 << 20);
    let mut session = login(&node);
    let mut data = session.begin("STOR file");
    data.write_all(&content[..1 << 20]).unwrap();
    wait_for_size(&node, "file", 1 << 20);
    reset(data);
    session.expect(426);
    let arrived = session.size("file") as usize;
    assert_eq!(arrived, 1 << 20);
    session.command(&format!("REST {arrived}"), 350);
    session.transmit("STOR file", &content[arrived..]);
    assert_eq!(sha256(stored(&node, "file")), sha256(&content));
}

#[test]
fn allo_is_refused_where_there_is_no_room_and_held_against_what_arrives() {
    let node = start();
    let mut session = login(&node);
    session.command("ALLO 9223372036854775807", 452);
    for wrong in ["ALLO", "ALLO x", "ALLO -1", "ALLO 1 R", "ALLO 9223372036854775808"] {
        session.command(wrong, 501);
    }
    session.command("ALLO 10 R 5", 200);
    session.command("ALLO 10", 200);
    let data = session.begin("STOR file");
    finish(data, b"12345");
    session.expect(426);
    assert_eq!(stored(&node, "file"), b"12345");
    // After REST some announce what is to come, others the whole.
    for announced in [5, 10] {
        session.command(&format!("ALLO {announced}"), 200);
        session.command("REST 5", 350);
        session.transmit("STOR file", b"67890");
        assert_eq!(stored(&node, "file"), b"1234567890");
    }
    // It held for one upload only.
    session.store("file", b"1");
}

#[test]
fn without_a_data_connection_there_is_425_and_no_change() {
    let node = Node::standalone().setting("data_connect_timeout", "300ms").start();
    let mut session = login(&node);
    fs::write(at(&node, "old"), "content").unwrap();
    for command in ["RETR old", "STOR old", "STOR new", "APPE old", "STOU", "LIST", "NLST", "MLSD"] {
        session.command(command, 425);
    }
    for command in ["RETR old", "STOR old", "STOR new", "APPE old", "LIST"] {
        session.epsv();
        session.command(command, 150);
        session.expect(425);
    }
    assert_eq!(stored(&node, "old"), b"content");
    assert!(!at(&node, "new").exists());
    assert_eq!(node.metric("ftp_passive_ports_reserved"), Some(0.0));
    assert_eq!(session.retrieve("old"), b"content");
}

#[test]
fn the_opening_reply_comes_before_the_data_connection() {
    let node = start();
    let mut session = login(&node);
    let address = session.epsv();
    session.command("STOR file", 150);
    finish(session.data_connection(address), b"content");
    session.expect(226);
    let address = session.epsv();
    session.command("RETR file", 150);
    let mut data = session.data_connection(address);
    assert_eq!(read_to_end(&mut data), b"content");
    session.expect(226);
}

#[test]
fn what_is_no_file_is_not_transferred() {
    let node = start();
    let mut session = login(&node);
    fs::create_dir(at(&node, "directory")).unwrap();
    nix::unistd::mkfifo(&at(&node, "fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for command in [
        "RETR directory",
        "STOR directory",
        "APPE directory",
        "RETR fifo",
        "STOR fifo",
        "APPE fifo",
        "RETR missing",
        "STOR missing/file",
        "RETR /",
        "HASH fifo",
    ] {
        session.epsv();
        session.command(command, 550);
    }
    session.epsv();
    session.command("STOR /", 553);
    session.epsv();
    session.command("STOR .ftpd-partial-mine", 553);
}

#[test]
fn one_session_writes_a_file_and_the_other_is_told_at_once() {
    let node = start();
    let (mut first, mut second) = (login(&node), login(&node));
    let data = first.begin("STOR file");
    for command in ["STOR file", "APPE file", "STOR ./file", "COMB file other"] {
        second.epsv();
        second.command(command, 450);
    }
    finish(data, b"first");
    first.expect(226);
    second.store("file", b"second");
    assert_eq!(stored(&node, "file"), b"second");
}

#[test]
fn two_hundred_transfers_leave_nothing_behind() {
    let node = Node::standalone().setting("data_connect_timeout", "100ms").start();
    let mut session = login(&node);
    let mut round = |i: usize| {
        session.store("file", b"content");
        assert_eq!(session.receive("RETR file"), b"content");
        session.receive("LIST");
        match i % 4 {
            0 => {
                let data = session.begin("STOR broken");
                reset(data);
                session.expect(426);
            }
            1 => {
                session.epsv();
                session.command("RETR file", 150);
                session.expect(425);
            }
            2 => {
                let data = session.begin("STOR aborted");
                session.command("ABOR", 426);
                session.expect(226);
                drop(data);
            }
            _ => {
                session.epsv();
                session.epsv();
                session.epsv();
                session.command("RETR missing", 550);
            }
        }
    };
    (0..4).for_each(&mut round);
    let before = node.daemon.descriptors();
    (0..50).for_each(round);
    // Each thread that stores files keeps one pipe.
    eventually("descriptors to be closed", || (node.daemon.descriptors() <= before + 8).then_some(()));
    node.wait_for_metric("ftp_passive_ports_reserved", |reserved| reserved == 0.0);
    node.wait_for_metric("ftp_transfers", |running| running == 0.0);
}

#[test]
fn pipelined_commands_are_answered_in_their_order() {
    let node = start();
    let mut session = login(&node);
    fs::write(at(&node, "file"), "content").unwrap();
    session.send_bytes(
        b"SIZE file\r\nMKD a\r\nCWD a\r\nPWD\r\nCDUP\r\nEPSV\r\nRETR file\r\nPWD\r\nSIZE file\r\n",
    );
    for code in [213, 257, 250, 257, 250] {
        session.expect(code);
    }
    let port = session.expect(229).extended_passive_port().unwrap();
    session.expect(150);
    let mut data = session.data_connection((node.address.ip(), port).into());
    assert_eq!(read_to_end(&mut data), b"content");
    for code in [226, 257, 213] {
        session.expect(code);
    }
}

/// State during a transfer: CVE-2020-9273.
#[test]
fn during_a_transfer_stat_and_noop_are_answered_and_other_commands_wait() {
    let node = start();
    let mut session = login(&node);
    let mut data = session.begin("STOR file");
    data.write_all(b"12345").unwrap();
    session.command("NOOP", 200);
    eventually("STAT to show the bytes", || {
        let status = session.command("STAT", 211).details();
        status.iter().any(|line| line.starts_with("STOR: 5 bytes")).then_some(())
    });
    session.send("PWD");
    session.send("NOOP");
    assert!(session.try_reply(Duration::from_millis(50)).is_err(), "a command ran during the transfer");
    finish(data, b"67890");
    for code in [226, 257, 200] {
        session.expect(code);
    }
    assert_eq!(stored(&node, "file"), b"1234567890");
}

#[test]
fn quit_during_a_transfer_waits_for_its_end() {
    let node = start();
    let mut session = login(&node);
    let data = session.begin("STOR file");
    session.send("QUIT");
    session.send("MKD never");
    finish(data, b"content");
    session.expect(226);
    session.expect(221);
    assert_eq!(session.expect_closed(), []);
    assert_eq!(stored(&node, "file"), b"content");
    assert!(!at(&node, "never").exists());
}

/// State during a transfer: CVE-2020-9273, CVE-2011-4130.
#[test]
fn abor_ends_whatever_runs_and_the_session_goes_on() {
    let node = start();
    fs::write(at(&node, "large"), bytes(1, 30 << 20)).unwrap();
    fs::create_dir(at(&node, "many")).unwrap();
    for i in 0..5000 {
        fs::write(at(&node, &format!("many/{i}-{}", "n".repeat(240))), "").unwrap();
    }
    let small = Connector::new().buffers(4096, 4096);
    let mut session = Dialogue::connect_with(&small, node.address);
    session.login("demo", "x");
    session.command("TYPE I", 200);
    session.command("ABOR", 226);

    for command in ["RETR large", "LIST many"] {
        let mut data = session.begin(command);
        data.read_exact(&mut [0; 1000]).unwrap();
        session.command("ABOR", 426);
        session.expect(226);
        assert!(read_what_comes(&mut data).len() < 30 << 20);
    }
    // Nothing came over the data connection yet, or it is not even there.
    let _data = session.begin("STOR new");
    session.command("ABOR", 426);
    session.expect(226);
    session.epsv();
    session.command("RETR large", 150);
    session.command("ABOR", 426);
    session.expect(226);
    let mut data = session.begin("STOR part");
    data.write_all(b"12345").unwrap();
    wait_for_size(&node, "part", 5);
    session.command("ABOR", 426);
    session.expect(226);
    assert_eq!(stored(&node, "part"), b"12345");
    assert!(!at(&node, "new").exists());
    session.command("ABOR", 226);
    session.command("REST 5", 350);
    session.transmit("STOR part", b"67890");
    assert_eq!(stored(&node, "part"), b"1234567890");
    assert_eq!(transfers(&node, "upload", "aborted"), 2.0);
    assert_eq!(transfers(&node, "download", "aborted"), 2.0);
}

#[test]
fn abor_is_understood_with_telnets_signals_and_as_urgent_data() {
    let node = start();
    let mut session = login(&node);
    let ways: [fn(&mut Dialogue); 5] = [
        |session| session.send_bytes(b"\xff\xf4\xff\xf2ABOR\r\n"),
        // IAC IP IAC, DM urgent: RFC 854's Synch, as most clients send it.
        |session| {
            session.send_bytes(b"\xff\xf4");
            session.send_urgent(b"\xff\xf2");
            session.send_bytes(b"ABOR\r\n");
        },
        |session| session.send_urgent(b"\xff\xf4\xff\xf2ABOR\r\n"),
        // A balancer has dropped the urgent byte.
        |session| session.send_bytes(b"\xff\xf4\xffABOR\r\n"),
        |session| {
            session.send_urgent(b"\xf2");
            session.send_bytes(b"abor\r\n");
        },
    ];
    for way in ways {
        way(&mut session);
        session.expect(226);
        let _data = session.begin("STOR file");
        way(&mut session);
        session.expect(426);
        session.expect(226);
        session.command("NOOP", 200);
    }
}

/// State during a transfer: ProFTPD #2255, bugs 3487, 3492, 3131.
#[test]
fn each_of_several_abors_has_its_answer() {
    let node = start();
    let mut session = login(&node);
    let _data = session.begin("STOR file");
    session.send_bytes(b"ABOR\r\nABOR\r\nABOR\r\nNOOP\r\n");
    for code in [426, 226, 226, 226, 200] {
        session.expect(code);
    }
    session.store("file", b"content");
}

#[test]
fn an_upload_whose_control_connection_ends_is_not_complete() {
    let node = start();
    // By FIN and by RST; with all commands read, and with one that waits for the transfer's end.
    for (round, (ends_by_reset, held)) in
        [(false, false), (true, false), (false, true), (true, true)].into_iter().enumerate()
    {
        let mut session = login(&node);
        let name = format!("file {round}");
        let mut data = session.begin(&format!("STOR {name}"));
        data.write_all(b"12345").unwrap();
        wait_for_size(&node, &name, 5);
        if held {
            session.send("PWD");
        }
        if ends_by_reset {
            session.reset()
        } else {
            drop(session)
        }
        // The node ends the data connection; until then, this side keeps it open.
        assert_eq!(read_what_comes(&mut data), b"");
        node.wait_for_metric("ftp_connections", |count| count == 0.0);
        assert_eq!(stored(&node, &name), b"12345");
        assert_eq!(transfers(&node, "upload", "aborted"), 1.0 + round as f64);
    }
    assert_eq!(transfers(&node, "upload", "complete"), 0.0);
}

#[test]
fn a_client_that_dies_in_an_upload_has_not_completed_it() {
    let node = start();
    const CLIENTS: usize = 60;
    for i in 0..CLIENTS {
        let mut session = login(&node);
        let mut data = session.begin("STOR file");
        data.write_all(b"12345").unwrap();
        if i % 2 == 1 {
            session.send("PWD");
        }
        // The kernel closes a process's sockets in the order of their making.
        drop(session);
        drop(data);
        node.wait_for_metric("ftp_connections", |count| count == 0.0);
    }
    let ended = ["complete", "aborted", "connection_lost"].map(|result| transfers(&node, "upload", result));
    assert_eq!(ended.iter().sum::<f64>(), CLIENTS as f64, "{ended:?}");
    // On a busy machine the kernel delivers the two ends in the other order now and then.
    assert!(ended[0] <= CLIENTS as f64 / 10.0, "{ended:?}");
}

#[test]
fn transfers_that_stall_end_with_426_and_keep_what_came() {
    let node = Node::standalone().setting("stall_timeout", "400ms").start();
    fs::write(at(&node, "large"), bytes(1, 30 << 20)).unwrap();
    let mut uploads = login(&node);
    let mut data = uploads.begin("STOR file");
    data.write_all(b"12345").unwrap();
    uploads.expect(426);
    assert_eq!(stored(&node, "file"), b"12345");
    assert_eq!(transfers(&node, "upload", "stalled"), 1.0);
    let small = Connector::new().buffers(4096, 4096);
    let mut downloads = Dialogue::connect_with(&small, node.address);
    downloads.login("demo", "x");
    for command in ["TYPE I", "TYPE A"] {
        downloads.command(command, 200);
        let _data = downloads.begin("RETR large");
        downloads.expect(426);
    }
    assert_eq!(transfers(&node, "download", "stalled"), 2.0);
    uploads.store("file", b"content");
}

#[test]
fn a_transfer_beyond_the_limit_waits_for_its_turn_or_is_told_to_come_back() {
    for (patience, waits) in [("30s", true), ("300ms", false)] {
        let node =
            Node::standalone().setting("max_transfers", 1).setting("data_connect_timeout", patience).start();
        let content = bytes(1, 100_000);
        fs::write(at(&node, "file"), &content).unwrap();
        let (mut first, mut second) = (login(&node), login(&node));
        let upload = first.begin("STOR new");
        // It has its place once its first bytes are stored.
        (&upload).write_all(b"n").unwrap();
        wait_for_size(&node, "new", 1);
        let mut download = second.begin("RETR file");
        node.wait_for_metric("ftp_limit_reached_total{limit=\"max_transfers\"}", |count| count == 1.0);
        if !waits {
            second.expect(450);
        }
        finish(upload, b"ew");
        first.expect(226);
        if waits {
            assert_eq!(read_to_end(&mut download), content);
            second.expect(226);
        }
    }
}

#[test]
fn a_download_that_the_client_breaks_off_is_not_complete() {
    let node = start();
    fs::write(at(&node, "large"), bytes(1, 30 << 20)).unwrap();
    let mut session = login(&node);
    let mut data = session.begin("RETR large");
    data.read_exact(&mut [0; 1000]).unwrap();
    drop(data);
    session.expect(426);
    assert_eq!(transfers(&node, "download", "complete"), 0.0);
    assert_eq!(session.retrieve("large").len(), 30 << 20);
}
