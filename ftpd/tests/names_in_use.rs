//! A single node refuses to rename or remove files during their upload.

use std::{fs, io::Write, net::Shutdown};

use cluster_tests::{dialogue::Dialogue, node::Node, process::field};

fn login(node: &Node) -> Dialogue {
    let mut session = node.login("anna", "secret");
    session.command("TYPE I", 200);
    session
}

#[test]
fn single_node_refuses_to_change_names_of_running_uploads_and_logs_the_holder() {
    let node = Node::standalone().user("anna", "secret").start();
    let (mut writer, mut other) = (login(&node), login(&node));
    writer.command("MKD d", 257);
    writer.store("d/file", b"before");
    writer.store("source", b"source");
    let mut upload = writer.begin("STOR d/file");
    upload.write_all(b"con").unwrap();
    for (first, command) in [
        (Some("RNFR d/file"), "RNTO away"),
        (Some("RNFR d"), "RNTO away"),
        (Some("RNFR source"), "RNTO d/file"),
        (None, "DELE d/file"),
        (None, "RMD d"),
        (None, "RMDA d"),
        (None, "COMB source d/file"),
        (None, "MFMT 20200101000000 d/file"),
    ] {
        if let Some(first) = first {
            other.command(first, 350);
        }
        other.command(command, 450);
        let verb = command.split(' ').next();
        let is_it = |line: &str| field(line, "verb").as_deref() == verb;
        let line = node.daemon.wait_for_line(is_it);
        assert_eq!(field(&line, "reason").as_deref(), Some("write_lease"), "{line}");
        let holder = field(&line, "holder");
        assert!(holder.is_some() && holder != field(&line, "session"), "{line}");
    }
    upload.write_all(b"tent").unwrap();
    upload.shutdown(Shutdown::Write).unwrap();
    writer.expect(226);
    assert_eq!(other.retrieve("d/file"), b"content");
    other.command("RNFR d", 350);
    other.command("RNTO e", 250);
    other.command("RMDA e", 250);
    assert_eq!(fs::read_dir(node.root()).unwrap().count(), 1);
}
