//! Contents of transfers: types, offsets, ranges, announced sizes, and refused transfers.

use std::{fs, io::Write};

use cluster_tests::{
    content::{bytes, sha256},
    dialogue::{Dialogue, reset},
    eventually,
    node::Node,
    proxy::Connector,
};

use crate::support::{at, finish, login, read_to_end, start, stored, wait_for_size};

#[test]
fn files_of_every_size_come_back_unchanged() {
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
fn stor_replaces_the_whole_file() {
    let node = start();
    let mut session = login(&node);
    session.store("file", &bytes(1, 100_000));
    session.store("file", b"short");
    assert_eq!(stored(&node, "file"), b"short");
    session.store("file", b"");
    assert_eq!(stored(&node, "file"), b"");
}

#[test]
fn stou_chooses_a_new_name_and_sends_it_in_its_150_reply() {
    let node = start();
    let mut session = login(&node);
    let mut names = Vec::new();
    for command in ["STOU", "STOU", "STOU report", "STOU report", "STOU scan.pdf"] {
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
    assert!(names[4].starts_with("scan.") && names[4].ends_with(".pdf"), "{names:?}");
}

#[test]
fn appe_appends_to_a_file_or_creates_it() {
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
    session.command("TYPE A", 200);
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
        // The offset applied only to the previous transfer.
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
fn rang_restricts_a_download_to_a_range() {
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
    // An upload after RANG is refused: it would replace the whole file.
    for upload in ["STOR file", "APPE file", "STOU"] {
        session.epsv();
        session.command("RANG 2 4", 350);
        session.command(upload, 503);
    }
    assert_eq!(session.receive("RETR file"), b"0123456789");
}

#[test]
fn rest_resumes_an_upload_but_leaves_no_hole() {
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

    // REST before APPE must be the size of the file.
    session.command("REST 7", 350);
    session.transmit("APPE file", b"def");
    assert_eq!(stored(&node, "file"), b"0123abcdef");
    session.epsv();
    session.command("REST 3", 350);
    session.command("APPE file", 554);
    assert_eq!(stored(&node, "file"), b"0123abcdef");
}

#[test]
fn an_interrupted_upload_can_be_resumed() {
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
fn allo_larger_than_the_free_space_gets_452_and_a_shorter_upload_succeeds() {
    let node = start();
    let mut session = login(&node);
    session.command("ALLO 9223372036854775807", 452);
    for wrong in ["ALLO", "ALLO x", "ALLO -1", "ALLO 1 R", "ALLO 9223372036854775808"] {
        session.command(wrong, 501);
    }
    session.command("ALLO 10 R 5", 200);
    session.command("ALLO 10", 200);
    session.transmit("STOR file", b"12345");
    assert_eq!(stored(&node, "file"), b"12345");
    // After REST some clients announce the size of the rest, others the size of the whole file.
    for announced in [5, 10] {
        session.command(&format!("ALLO {announced}"), 200);
        session.command("REST 5", 350);
        session.transmit("STOR file", b"67890");
        assert_eq!(stored(&node, "file"), b"1234567890");
    }
}

/// A balancer may turn a client's reset into FIN, so the node compares the size with ALLO.
#[test]
fn through_a_balancer_an_upload_shorter_than_allo_gets_426() {
    let node = Node::standalone();
    let (client, balancer) = (node.loopback().address(20), node.loopback().address(21));
    let node = node.setting("trusted_balancers", format!("{balancer}/32")).start();
    let connector = Connector::new().from(balancer).proxy_v1(client, balancer);
    let mut session = Dialogue::connect_with(&connector, node.address);
    session.login("demo", "x");
    session.command("TYPE I", 200);
    session.command("ALLO 10", 200);
    let data = session.begin("STOR file");
    finish(data, b"12345");
    let reply = session.expect(426).text();
    assert!(reply.contains("ALLO"), "{reply}");
    assert_eq!(stored(&node, "file"), b"12345");
    session.command("ALLO 5", 200);
    session.command("REST 5", 350);
    session.transmit("STOR file", b"67890");
    assert_eq!(stored(&node, "file"), b"1234567890");
    // ALLO applies only to one upload.
    session.store("file", b"1");
}

#[test]
fn without_a_data_connection_transfers_get_425_and_change_nothing() {
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
fn only_regular_files_are_transferred() {
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
fn a_second_writer_of_a_file_gets_450() {
    let node = start();
    let (mut first, mut second) = (login(&node), login(&node));
    second.store("other", b"no session writes this one");
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
fn two_hundred_transfers_leave_no_descriptors_or_ports_open() {
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
    // Each worker that stores files keeps one pipe.
    eventually("descriptors to be closed", || (node.daemon.descriptors() <= before + 8).then_some(()));
    node.wait_for_metric("ftp_passive_ports_reserved", |reserved| reserved == 0.0);
    node.wait_for_metric("ftp_transfers", |running| running == 0.0);
}
