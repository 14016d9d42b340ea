//! Commands during a transfer, and transfers that end early.

use std::{
    fs,
    io::{Read, Write},
    time::Duration,
};

use cluster_tests::{
    content::bytes,
    dialogue::{Dialogue, read_what_comes},
    eventually,
    node::Node,
    proxy::Connector,
};

use crate::support::{at, finish, login, read_to_end, start, stored, transfers, wait_for_size};

#[test]
fn pipelined_commands_get_their_replies_in_order() {
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
fn abor_cancels_any_transfer_and_the_session_continues() {
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
    // ABOR before the first byte, and before the data connection exists.
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
fn abor_works_with_telnet_signals_and_as_urgent_data() {
    let node = start();
    let mut session = login(&node);
    let ways: [fn(&mut Dialogue); 5] = [
        |session| session.send_bytes(b"\xff\xf4\xff\xf2ABOR\r\n"),
        // IAC IP, then IAC DM as urgent data: the Synch signal of RFC 854, as most clients send it.
        |session| {
            session.send_bytes(b"\xff\xf4");
            session.send_urgent(b"\xff\xf2");
            session.send_bytes(b"ABOR\r\n");
        },
        |session| session.send_urgent(b"\xff\xf4\xff\xf2ABOR\r\n"),
        // A balancer may drop the urgent byte.
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
fn each_of_several_abors_gets_a_reply() {
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
    let node = Node::standalone().setting("client_left_timeout", "200ms").start();
    // The connection ends by FIN or RST, with or without a command that waits for the transfer's end.
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
        assert_eq!(transfers(&node, "upload", "client_gone"), 1.0 + round as f64);
    }
    assert_eq!(transfers(&node, "upload", "complete"), 0.0);
}

#[test]
fn the_upload_of_a_killed_client_does_not_count_as_complete() {
    let node = start();
    const CLIENTS: usize = 60;
    for i in 0..CLIENTS {
        let mut session = login(&node);
        let mut data = session.begin("STOR file");
        data.write_all(b"12345").unwrap();
        if i % 2 == 1 {
            session.send("PWD");
        }
        // The kernel closes the sockets of a killed process in the order of their creation.
        drop(session);
        drop(data);
        node.wait_for_metric("ftp_connections", |count| count == 0.0);
    }
    let ended =
        ["complete", "client_gone", "connection_lost"].map(|result| transfers(&node, "upload", result));
    assert_eq!(ended.iter().sum::<f64>(), CLIENTS as f64, "{ended:?}");
    // On a busy machine the two FINs sometimes arrive in the other order.
    assert!(ended[0] <= CLIENTS as f64 / 10.0, "{ended:?}");
}

#[test]
fn stalled_transfers_get_426_and_keep_the_stored_bytes() {
    let node = Node::standalone().setting("stall_timeout", "400ms").start();
    fs::write(at(&node, "large"), bytes(1, 30 << 20)).unwrap();
    let mut uploads = login(&node);
    let mut data = uploads.begin("STOR file");
    data.write_all(b"12345").unwrap();
    assert_eq!(uploads.expect(426).message(), "Transfer stalled: no data for 0.4 s");
    node.daemon.wait_for_message(
        "upload failed: no data moved for as long as stall_timeout allows",
        &[("result", "stalled")],
    );
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
fn a_transfer_beyond_max_transfers_waits_and_gets_450_after_data_connect_timeout() {
    for (timeout, waits) in [("30s", true), ("300ms", false)] {
        let node =
            Node::standalone().setting("max_transfers", 1).setting("data_connect_timeout", timeout).start();
        let content = bytes(1, 100_000);
        fs::write(at(&node, "file"), &content).unwrap();
        let (mut first, mut second) = (login(&node), login(&node));
        let upload = first.begin("STOR new");
        // The upload has its slot when its first byte is stored.
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
fn a_download_that_the_client_interrupts_does_not_count_as_complete() {
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

/// A session that deletes or replaces the file of a running upload gets 450. A program on the storage can
/// do both.
#[test]
fn an_upload_whose_file_another_program_deletes_gets_450() {
    let node = start();
    let mut writer = login(&node);
    for is_replaced in [false, true] {
        let mut data = writer.begin("STOR file");
        data.write_all(&bytes(1, 100_000)).unwrap();
        wait_for_size(&node, "file", 100_000);
        if is_replaced {
            fs::write(at(&node, "new"), b"new").unwrap();
            fs::rename(at(&node, "new"), at(&node, "file")).unwrap();
        } else {
            fs::remove_file(at(&node, "file")).unwrap();
        }
        finish(data, b"the rest");
        writer.expect(450);
    }
    assert_eq!(stored(&node, "file"), b"new");
    // The session can write the file again.
    writer.store("file", b"again");
    assert_eq!(stored(&node, "file"), b"again");
    assert_eq!(transfers(&node, "upload", "storage"), 2.0);
}
