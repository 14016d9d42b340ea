//! Atomic uploads: a file appears under its name when it is complete, and an interrupted upload can be
//! resumed through another node.

use std::{
    io::{Read, Write},
    net::Shutdown,
    process::{Command, Stdio},
};

use cluster_tests::{
    authd::hash_password,
    cluster::Cluster,
    content::{bytes, sha256},
    dialogue::Dialogue,
    eventually,
    proxy::Connector,
};

/// A cluster with the user `ann`, whose uploads are atomic.
fn cluster() -> Cluster {
    let hash = hash_password("secret");
    let users = format!("[users.ann]\npassword_hash = \"{hash}\"\nuploads = \"atomic\"\n");
    Cluster::builder().users(&users).setting("node_lease", "2s").start()
}

fn session(cluster: &Cluster, node: usize) -> Dialogue {
    let mut session = cluster.session_through(node, &Connector::new(), "ann");
    session.command("TYPE I", 200);
    session
}

fn names(session: &mut Dialogue) -> Vec<String> {
    let listing = String::from_utf8(session.receive("NLST -a")).unwrap();
    let mut names: Vec<_> = listing.lines().map(str::to_owned).collect();
    names.retain(|name| name != "." && name != "..");
    names.sort_unstable();
    names
}

/// Size of the only file that is not one of the `visible` names; 0 if there is no such file.
fn hidden_bytes(cluster: &Cluster, visible: &[&str]) -> u64 {
    let entries = cluster.storage().join("ann").read_dir().unwrap().map(Result::unwrap);
    let hidden: Vec<_> =
        entries.filter(|entry| !visible.contains(&entry.file_name().to_str().unwrap())).collect();
    assert!(hidden.len() <= 1, "{hidden:?}");
    hidden.first().map_or(0, |entry| entry.metadata().unwrap().len())
}

#[test]
fn readers_on_other_nodes_get_the_old_content_until_the_new_content_is_complete() {
    let cluster = cluster();
    let (mut writer, mut reader) = (session(&cluster, 0), session(&cluster, 1));
    let (old, new) = (bytes(1, 300_000), bytes(2, 4 << 20));
    writer.store("file", &old);
    // A download that has begun gets the old content to its end.
    let mut slow = cluster.session_through(2, &Connector::new().buffers(16 << 10, 16 << 10), "ann");
    slow.command("TYPE I", 200);

    let mut upload = writer.begin("STOR file");
    upload.write_all(&new[..3 << 20]).unwrap();
    eventually("the first part to be stored", || {
        (hidden_bytes(&cluster, &["file"]) == 3 << 20).then_some(())
    });
    assert_eq!(reader.size("file"), old.len() as u64);
    assert_eq!(sha256(reader.retrieve("file")), sha256(&old));
    assert_eq!(names(&mut reader), ["file"]);
    let mut begun = slow.begin("RETR file");

    upload.write_all(&new[3 << 20..]).unwrap();
    upload.shutdown(Shutdown::Write).unwrap();
    writer.expect(226);
    assert_eq!(sha256(reader.retrieve("file")), sha256(&new));
    assert_eq!(names(&mut reader), ["file"]);
    let mut received = Vec::new();
    begun.read_to_end(&mut received).unwrap();
    slow.expect(226);
    assert_eq!(sha256(received), sha256(&old));
}

#[test]
fn a_new_name_appears_when_the_upload_is_complete() {
    let cluster = cluster();
    let (mut writer, mut reader) = (session(&cluster, 0), session(&cluster, 1));
    let content = bytes(3, 2 << 20);
    let mut upload = writer.begin("STOR new");
    upload.write_all(&content[..1 << 20]).unwrap();
    eventually("the first part to be stored", || (hidden_bytes(&cluster, &[]) == 1 << 20).then_some(()));
    assert_eq!(names(&mut reader), [""; 0]);
    reader.epsv();
    reader.command("RETR new", 550);
    reader.command("MDTM new", 550);
    upload.write_all(&content[1 << 20..]).unwrap();
    upload.shutdown(Shutdown::Write).unwrap();
    writer.expect(226);
    assert_eq!(names(&mut reader), ["new"]);
    assert_eq!(sha256(reader.retrieve("new")), sha256(&content));
    assert_eq!(hidden_bytes(&cluster, &["new"]), 0);
}

#[test]
fn an_upload_whose_node_was_killed_is_resumed_through_another_node() {
    let mut cluster = cluster();
    let content = bytes(4, 16 << 20);
    let mut writer = session(&cluster, 0);
    let mut upload = writer.begin("STOR large.bin");
    upload.write_all(&content[..8 << 20]).unwrap();
    eventually("a part to be stored", || (hidden_bytes(&cluster, &[]) > 1 << 20).then_some(()));
    cluster.node_mut(0).daemon.kill();
    let replies = writer.expect_closed();
    assert!(replies.iter().all(|reply| reply.code != 226), "{replies:?}");

    let mut writer = session(&cluster, 1);
    assert_eq!(names(&mut writer), [""; 0]);
    let arrived = writer.size("large.bin") as usize;
    assert!((1 << 20..=8 << 20).contains(&arrived), "{arrived}");
    let mut upload = eventually("the dead node's write lease to expire", || {
        writer.command(&format!("REST {arrived}"), 350);
        let address = writer.epsv();
        let data = writer.data_connection(address);
        writer.send("STOR large.bin");
        let reply = writer.reply();
        assert!(matches!(reply.code, 150 | 450), "{reply:?}");
        (reply.code == 150).then_some(data)
    });
    upload.write_all(&content[arrived..]).unwrap();
    let mut reader = session(&cluster, 2);
    assert_eq!(names(&mut reader), [""; 0]);
    upload.shutdown(Shutdown::Write).unwrap();
    writer.expect(226);
    assert_eq!(sha256(reader.retrieve("large.bin")), sha256(&content));
    assert_eq!(names(&mut reader), ["large.bin"]);
}

#[test]
fn the_upload_of_a_killed_client_is_never_published() {
    let cluster = cluster();
    for round in 0..20 {
        let url = cluster.url("ann", &format!("/{round}.bin"));
        let mut client = Command::new("curl")
            .args(["-sS", "-T", "-", &url])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        client.stdin.as_mut().unwrap().write_all(&bytes(round, 500_000)).unwrap();
        eventually("a part to be stored", || (hidden_bytes(&cluster, &[]) > 100_000).then_some(()));
        // The kernel closes both connections with FIN, as after a complete upload.
        client.kill().unwrap();
        client.wait().unwrap();
        // The write lease is free when the node has ended the dead client's upload.
        let mut session = session(&cluster, 0);
        eventually("the write lease to be free", || {
            let code = session.probe(&format!("APPE {round}.bin"));
            assert!(matches!(code, 150 | 450), "{code}");
            (code == 150).then_some(())
        });
        assert_eq!(names(&mut session), [""; 0], "round {round}");
        session.command(&format!("DELE {round}.bin"), 250);
    }
}
