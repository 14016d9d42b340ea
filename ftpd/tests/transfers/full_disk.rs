//! Uploads to a full storage: stored bytes stay, and no old file is emptied in vain.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
};

use cluster_tests::{
    content::{bytes, sha256},
    dialogue::reset,
    eventually,
    node::Node,
};

use crate::support::{at, login, start, stored, transfers};

/// Sends as much of `content` as the node accepts, and ends the upload.
fn send(mut data: TcpStream, content: &[u8]) {
    // Errors are expected: the node closes the connection when the storage is full.
    let _ = data.write_all(content);
    let _ = data.shutdown(Shutdown::Write);
    let _ = data.read_to_end(&mut Vec::new());
}

#[test]
fn bytes_stored_before_the_storage_was_full_are_kept_and_the_upload_can_be_resumed() {
    const LARGEST: usize = 1_000_000;
    let node = Node::standalone().largest_file(LARGEST as u64).start();
    let content = bytes(1, 3_000_000);
    let mut session = login(&node);
    fs::write(at(&node, "overwritten"), bytes(2, 50_000)).unwrap();
    for name in ["new", "overwritten"] {
        let data = session.begin(&format!("STOR {name}"));
        send(data, &content);
        session.expect(552);
        assert_eq!(session.size(name), LARGEST as u64, "{name}");
        assert_eq!(sha256(stored(&node, name)), sha256(&content[..LARGEST]), "{name}");
        // A resumed upload that fails leaves the file unchanged.
        session.command(&format!("REST {LARGEST}"), 350);
        let data = session.begin(&format!("STOR {name}"));
        send(data, &content[LARGEST..]);
        session.expect(552);
        assert_eq!(sha256(stored(&node, name)), sha256(&content[..LARGEST]), "{name}");
        session.command(&format!("DELE {name}"), 250);
        session.store(name, &content[..LARGEST]);
        session.command(&format!("REST {}", LARGEST / 2), 350);
        session.transmit(&format!("STOR {name}"), &content[LARGEST / 2..LARGEST]);
        assert_eq!(sha256(stored(&node, name)), sha256(&content[..LARGEST]), "{name}");
    }
    assert_eq!(transfers(&node, "upload", "storage"), 4.0);
    // The session still works.
    session.store("other", b"content");
}

#[test]
fn a_file_is_emptied_only_by_the_first_byte_of_an_upload_or_by_a_complete_empty_upload() {
    let node = start();
    let mut session = login(&node);
    fs::write(at(&node, "file"), b"content").unwrap();
    let data = session.begin("STOR file");
    session.command("ABOR", 426);
    session.expect(226);
    drop(data);
    assert_eq!(stored(&node, "file"), b"content");
    session.command("REST 3", 350);
    let data = session.begin("STOR file");
    reset(data);
    session.expect(426);
    assert_eq!(stored(&node, "file"), b"content");
    let mut data = session.begin("STOR file");
    data.write_all(b"n").unwrap();
    eventually("the first byte to replace the file", || (stored(&node, "file") == b"n").then_some(()));
    data.shutdown(Shutdown::Write).unwrap();
    session.expect(226);
    session.store("file", b"");
    assert_eq!(stored(&node, "file"), b"");
}

/// Tests that mount a file system. Nix's build sandbox does not allow it and skips this module by its name.
mod own_network {
    use std::process::Command;

    use cluster_tests::network::with_own_network;

    use super::*;

    const SIZE: usize = 1 << 20;

    /// A node whose storage has room for [`SIZE`] bytes.
    fn node_with_small_disk() -> Node {
        let builder = Node::standalone();
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(builder.root());
        assert!(command.status().unwrap().success(), "root may mount a tmpfs in its namespace");
        builder.start()
    }

    #[test]
    fn on_a_full_disk_a_file_keeps_the_stored_bytes_or_the_old_content() {
        let test = "full_disk::own_network::on_a_full_disk_a_file_keeps_the_stored_bytes_or_the_old_content";
        with_own_network(test, || {
            let node = node_with_small_disk();
            let content = bytes(3, 3 * SIZE);
            let mut session = login(&node);
            // The file that is overwritten takes half of the disk.
            let old = bytes(4, SIZE / 2);
            fs::write(at(&node, "file"), &old).unwrap();
            let data = session.begin("STOR file");
            send(data, &content);
            session.expect(452);
            let kept = stored(&node, "file");
            assert!(kept.len() > SIZE / 2, "kept {} bytes on a disk of {SIZE}", kept.len());
            assert_eq!(sha256(&kept), sha256(&content[..kept.len()]));

            // On the full disk an upload to an existing file leaves the file unchanged.
            session.command("DELE file", 250);
            fs::write(at(&node, "precious"), &old).unwrap();
            fs::write(at(&node, "filler"), "").unwrap();
            let filler = fs::File::options().write(true).open(at(&node, "filler")).unwrap();
            while (&filler).write_all(&[7; 4096]).is_ok() {}
            let data = session.begin("STOR precious");
            send(data, &content);
            session.expect(452);
            assert_eq!(sha256(stored(&node, "precious")), sha256(&old));
            // A new file is removed if no byte of it was stored.
            let data = session.begin("STOR new");
            send(data, &content);
            session.expect(452);
            assert!(!at(&node, "new").exists());

            // When there is room again, the interrupted upload can be resumed.
            drop(filler);
            session.command("DELE filler", 250);
            let data = session.begin("STOR new");
            send(data, &content);
            session.expect(452);
            let arrived = session.size("new") as usize;
            assert!(arrived > 0);
            session.command("DELE precious", 250);
            session.command(&format!("REST {arrived}"), 350);
            session.transmit("STOR new", &content[arrived..SIZE - 65_536]);
            assert_eq!(sha256(stored(&node, "new")), sha256(&content[..SIZE - 65_536]));
        });
    }
}
