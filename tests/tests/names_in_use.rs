//! While a file is uploaded, no session of the cluster renames, removes, joins or re-dates it or its
//! parent directories.

use std::{fs, io::Write, net::Shutdown, path::Path, thread, time::Duration};

use cluster_tests::{
    authd::hash_password,
    cluster::Cluster,
    content::{bytes, sha256},
    dialogue::Dialogue,
    eventually,
    proxy::Connector,
};
use nix::sys::signal::Signal;

fn cluster() -> Cluster {
    cluster_with(&[])
}

fn cluster_with(settings: &[(&str, &str)]) -> Cluster {
    let hash = hash_password("secret");
    let builder =
        settings.iter().fold(Cluster::builder(), |builder, (key, value)| builder.setting(key, value));
    builder
        .users(&format!(
            "[users.direct]\npassword_hash = \"{hash}\"\nhome = \"/team/direct\"\n\
             [users.atomic]\npassword_hash = \"{hash}\"\nhome = \"/team/atomic\"\nuploads = \"atomic\"\n\
             [users.team]\npassword_hash = \"{hash}\"\nhome = \"/team\"\n"
        ))
        .start()
}

fn session(cluster: &Cluster, node: usize, user: &str) -> Dialogue {
    let mut session = cluster.session_through(node, &Connector::new(), user);
    session.command("TYPE I", 200);
    session
}

/// Sends RNFR and RNTO, expects `code` from RNTO, and returns the text of the reply.
fn rename(session: &mut Dialogue, from: &str, to: &str, code: u16) -> String {
    session.command(&format!("RNFR {from}"), 350);
    session.command(&format!("RNTO {to}"), code).text()
}

/// Checks the text of a refusal: the path is a file, or (`is_directory`) a parent directory of it.
fn expect_refusal(text: &str, is_directory: bool) {
    let expected = if is_directory {
        "A file in this directory is being written"
    } else {
        "Another session writes this file"
    };
    assert!(text.contains(expected), "{text}");
}

/// Checks that every command that changes names refuses `d/sub/file` and its parent directories.
fn expect_all_refused(session: &mut Dialogue) {
    expect_refusal(&rename(session, "d/sub/file", "d/sub/new", 450), false);
    expect_refusal(&rename(session, "other", "d/sub/file", 450), false);
    expect_refusal(&rename(session, "d", "e", 450), true);
    expect_refusal(&rename(session, "d/sub", "moved", 450), true);
    for (command, is_directory) in [
        ("DELE d/sub/file", false),
        ("RMD d/sub", true),
        ("RMDA d", true),
        ("COMB d/sub/file other", false),
        ("COMB joined other d/sub/file", false),
        ("MFMT 20200101000000 d/sub/file", false),
        ("MDTM 20200101000000 d/sub/file", false),
        ("SITE UTIME 20200101000000 d/sub/file", false),
    ] {
        expect_refusal(&session.command(command, 450).text(), is_directory);
    }
    session.command("SIZE joined", 550);
    // Other names in the directory may change.
    rename(session, "other", "d/other", 250);
    rename(session, "d/other", "other", 250);
}

#[test]
fn no_command_changes_the_name_of_a_running_upload_and_the_upload_is_complete() {
    let cluster = cluster();
    for user in ["direct", "atomic"] {
        let mut writer = session(&cluster, 0, user);
        for directory in ["d", "d/sub"] {
            writer.command(&format!("MKD {directory}"), 257);
        }
        writer.store("d/sub/file", b"before");
        writer.store("other", b"other");
        let content = bytes(7, 1 << 20);
        let mut upload = writer.begin("STOR d/sub/file");
        upload.write_all(&content[..100_000]).unwrap();
        for node in [1, 0] {
            expect_all_refused(&mut session(&cluster, node, user));
        }
        // Another user reaches the file by another virtual path.
        let mut team = session(&cluster, 2, "team");
        expect_refusal(&rename(&mut team, user, "elsewhere", 450), true);
        expect_refusal(&team.command(&format!("DELE {user}/d/sub/file"), 450).text(), false);
        upload.write_all(&content[100_000..]).unwrap();
        upload.shutdown(Shutdown::Write).unwrap();
        writer.expect(226);
        let home = cluster.storage().join("team").join(user);
        assert_eq!(sha256(fs::read(home.join("d/sub/file")).unwrap()), sha256(&content));
        assert_eq!(fs::read(home.join("other")).unwrap(), b"other");

        // After 226 each of these commands succeeds on any node.
        let mut other = session(&cluster, 1, user);
        other.command("MFMT 20200101000000 d/sub/file", 213);
        rename(&mut other, "d/sub/file", "d/sub/new", 250);
        rename(&mut other, "d", "e", 250);
        other.command("COMB joined e/sub/new other", 250);
        let joined = fs::read(home.join("joined")).unwrap();
        assert_eq!(sha256(joined), sha256([&content, &b"other"[..]].concat()));
        other.command("DELE joined", 250);
        other.command("RMD e/sub", 250);
        other.command("RMDA e", 250);
    }
    for (verb, least) in
        [("RNTO", 4.0), ("DELE", 1.0), ("RMD", 1.0), ("RMDA", 1.0), ("COMB", 2.0), ("MFMT", 1.0)]
    {
        let name = format!("ftp_operations_failed_total{{verb=\"{verb}\",reason=\"write_lease\"}}");
        assert!(cluster.node(1).metric(&name) >= Some(least), "{verb}");
    }
}

/// A directory that looks empty may hold the partial file of an atomic upload.
#[test]
fn a_directory_with_a_running_upload_is_not_removed() {
    let cluster = cluster();
    for user in ["direct", "atomic"] {
        let mut writer = session(&cluster, 0, user);
        writer.command("MKD d", 257);
        let mut upload = writer.begin("STOR d/file");
        upload.write_all(b"content").unwrap();
        let mut other = session(&cluster, 1, user);
        expect_refusal(&other.command("RMD d", 450).text(), true);
        upload.shutdown(Shutdown::Write).unwrap();
        writer.expect(226);
        assert_eq!(other.retrieve("d/file"), b"content");
    }
}

#[test]
fn while_a_tree_is_removed_uploads_below_it_and_renames_of_it_get_450() {
    let cluster = cluster();
    let home = cluster.storage().join("team/direct");
    let (mut remover, mut writer) = (session(&cluster, 0, "direct"), session(&cluster, 1, "direct"));
    // Each round has twice as many files, until the node is stopped during the removal.
    for files in (0..4).map(|round| 10_000 << round) {
        let tree = home.join("tree");
        for directory in 0..10 {
            let directory = tree.join(directory.to_string());
            fs::create_dir_all(&directory).unwrap();
            for file in 0..files / 10 {
                fs::write(directory.join(file.to_string()), b"").unwrap();
            }
        }
        let before = count(&tree);
        remover.send("RMDA tree");
        while count(&tree) == before {
            thread::sleep(Duration::from_micros(100));
        }
        cluster.node(0).daemon.signal(Signal::SIGSTOP);
        let is_removing = tree.exists();
        if is_removing {
            for path in ["tree/new", "tree/0/new"] {
                writer.epsv();
                let text = writer.command(&format!("STOR {path}"), 450).text();
                assert!(text.contains("A parent directory is being renamed or removed"), "{text}");
            }
            let text = rename(&mut writer, "tree", "other", 450);
            assert!(text.contains("Another session"), "{text}");
            writer.store("beside", b"beside");
        }
        cluster.node(0).daemon.signal(Signal::SIGCONT);
        remover.expect(250);
        assert!(!tree.exists());
        if is_removing {
            writer.command("MKD tree", 257);
            writer.store("tree/new", b"new");
            return;
        }
    }
    panic!("the node removed each tree before it was stopped");
}

/// Number of files in the ten directories of the tree.
fn count(tree: &Path) -> usize {
    let names = |directory: &Path| fs::read_dir(directory).map_or(0, Iterator::count);
    (0..10).map(|directory| names(&tree.join(directory.to_string()))).sum()
}

#[test]
fn comb_joins_at_most_64_files_and_creates_nothing_if_one_is_missing() {
    let cluster = cluster();
    let mut session = session(&cluster, 0, "direct");
    let names: Vec<String> = (0..65).map(|number| format!("part{number}")).collect();
    for name in &names {
        session.store(name, name.as_bytes());
    }
    let text = session.command(&format!("COMB whole {}", names.join(" ")), 501).text();
    assert!(text.contains("At most 64 files"), "{text}");
    session.command(&format!("COMB whole {} missing", names[..63].join(" ")), 550);
    session.command("SIZE whole", 550);
    session.command(&format!("COMB whole {}", names[..64].join(" ")), 250);
    assert_eq!(session.retrieve("whole"), names[..64].concat().as_bytes());
    assert_eq!(session.retrieve("part64"), b"part64");
}

/// Without Redis, file locks show which files are being written. Directories have no locks: a rename of
/// a directory succeeds, and an upload below it gets 450 because its path no longer exists.
#[test]
fn while_redis_is_unreachable_file_locks_protect_names_and_uploads_below_a_renamed_directory_get_450() {
    for policy in ["admit", "refuse"] {
        let mut cluster = cluster_with(&[("registry_away", policy)]);
        let mut writers = [session(&cluster, 0, "direct"), session(&cluster, 0, "direct")];
        let mut other = session(&cluster, 1, "direct");
        other.command("MKD d", 257);
        for path in ["file", "free", "d/file"] {
            other.store(path, b"before");
        }
        let uploads: Vec<_> = ["file", "d/file"]
            .into_iter()
            .zip(&mut writers)
            .map(|(path, writer)| {
                let mut upload = writer.begin(&format!("STOR {path}"));
                upload.write_all(b"content").unwrap();
                upload
            })
            .collect();
        cluster.kill_redis();
        expect_refusal(&rename(&mut other, "file", "new", 450), false);
        expect_refusal(&rename(&mut other, "free", "file", 450), false);
        expect_refusal(&other.command("DELE file", 450).text(), false);
        expect_refusal(&other.command("MFMT 20200101000000 file", 450).text(), false);
        rename(&mut other, "free", "renamed", 250);
        other.command("DELE renamed", 250);
        rename(&mut other, "d", "e", 250);
        for upload in uploads {
            upload.shutdown(Shutdown::Write).unwrap();
        }
        let [file_writer, directory_writer] = &mut writers;
        file_writer.expect(226);
        directory_writer.expect(450);
        let home = cluster.storage().join("team/direct");
        assert_eq!(fs::read(home.join("file")).unwrap(), b"content", "{policy}");
        assert!(!home.join("d").exists());
    }
}

#[test]
fn without_locks_renames_get_450_while_the_writers_of_a_path_are_unknown() {
    let mut cluster = cluster_with(&[("storage_locks", "off"), ("node_lease", "2s")]);
    let mut writer = session(&cluster, 0, "direct");
    let mut other = session(&cluster, 1, "direct");
    writer.store("other", b"other");
    let mut upload = writer.begin("STOR file");
    upload.write_all(b"content").unwrap();
    let expect_unknown_writer = |other: &mut Dialogue| {
        let text = rename(other, "other", "new", 450);
        assert!(text.contains("may be writing this file"), "{text}");
        let text = other.command("COMB joined other", 450).text();
        assert!(text.contains("may be writing this file"), "{text}");
    };
    cluster.redis().command("FLUSHALL").unwrap();
    expect_unknown_writer(&mut other);
    // Sessions register their leases again, so after the time of one lease Redis knows all writers.
    eventually("renames to be possible again", || {
        other.command("RNFR other", 350);
        other.send("RNTO new");
        (other.reply().code == 250).then_some(())
    });
    rename(&mut other, "new", "other", 250);
    expect_refusal(&rename(&mut other, "file", "new", 450), false);
    upload.shutdown(Shutdown::Write).unwrap();
    writer.expect(226);

    cluster.kill_redis();
    expect_unknown_writer(&mut other);
    other.command("DELE other", 250);
    other.command("MFMT 20200101000000 file", 213);
}
