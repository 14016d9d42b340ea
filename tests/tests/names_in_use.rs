//! Names of files that are uploaded: no session on any node renames, removes, joins or stamps them meanwhile.

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

/// RNFR and RNTO, which answers `code` and, if that is 450, `text`.
fn rename(session: &mut Dialogue, from: &str, to: &str, code: u16) -> String {
    session.command(&format!("RNFR {from}"), 350);
    session.command(&format!("RNTO {to}"), code).text()
}

fn refused(text: &str, below: bool) {
    let wanted =
        if below { "A file in this directory is being written" } else { "Another session writes this file" };
    assert!(text.contains(wanted), "{text}");
}

/// All commands that change a name refuse `d/sub/file` and the directories above it.
fn all_refuse(session: &mut Dialogue) {
    refused(&rename(session, "d/sub/file", "d/sub/new", 450), false);
    refused(&rename(session, "other", "d/sub/file", 450), false);
    refused(&rename(session, "d", "e", 450), true);
    refused(&rename(session, "d/sub", "moved", 450), true);
    for (command, below) in [
        ("DELE d/sub/file", false),
        ("RMD d/sub", true),
        ("RMDA d", true),
        ("COMB d/sub/file other", false),
        ("COMB joined other d/sub/file", false),
        ("MFMT 20200101000000 d/sub/file", false),
        ("MDTM 20200101000000 d/sub/file", false),
        ("SITE UTIME 20200101000000 d/sub/file", false),
    ] {
        refused(&session.command(command, 450).text(), below);
    }
    session.command("SIZE joined", 550);
    // Names beside it are free.
    rename(session, "other", "d/other", 250);
    rename(session, "d/other", "other", 250);
}

#[test]
fn no_command_changes_a_name_that_is_uploaded_and_the_upload_is_whole() {
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
            all_refuse(&mut session(&cluster, node, user));
        }
        // Under another name of the home, too.
        let mut team = session(&cluster, 2, "team");
        refused(&rename(&mut team, user, "elsewhere", 450), true);
        refused(&team.command(&format!("DELE {user}/d/sub/file"), 450).text(), false);
        upload.write_all(&content[100_000..]).unwrap();
        upload.shutdown(Shutdown::Write).unwrap();
        writer.expect(226);
        let home = cluster.storage().join("team").join(user);
        assert_eq!(sha256(fs::read(home.join("d/sub/file")).unwrap()), sha256(&content));
        assert_eq!(fs::read(home.join("other")).unwrap(), b"other");

        // As soon as 226 is said each of them works, on any node.
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

/// A directory that seems empty may hold the hidden file of an atomic upload.
#[test]
fn a_directory_into_which_a_new_file_is_uploaded_is_not_removed() {
    let cluster = cluster();
    for user in ["direct", "atomic"] {
        let mut writer = session(&cluster, 0, user);
        writer.command("MKD d", 257);
        let mut upload = writer.begin("STOR d/file");
        upload.write_all(b"content").unwrap();
        let mut other = session(&cluster, 1, user);
        refused(&other.command("RMD d", 450).text(), true);
        upload.shutdown(Shutdown::Write).unwrap();
        writer.expect(226);
        assert_eq!(other.retrieve("d/file"), b"content");
    }
}

#[test]
fn while_a_tree_is_removed_or_renamed_nothing_below_it_is_uploaded() {
    let cluster = cluster();
    let home = cluster.storage().join("team/direct");
    let (mut remover, mut writer) = (session(&cluster, 0, "direct"), session(&cluster, 1, "direct"));
    // Twice as many files each time, until the node is stopped in the middle.
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
    panic!("each tree was removed before the node was stopped");
}

/// How many names there are directly below the ten directories of the tree.
fn count(tree: &Path) -> usize {
    let names = |directory: &Path| fs::read_dir(directory).map_or(0, Iterator::count);
    (0..10).map(|directory| names(&tree.join(directory.to_string()))).sum()
}

#[test]
fn comb_joins_no_more_than_64_files_and_leases_nothing_before_it_has_found_them() {
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

/// Without Redis the lock on the file tells that it is written. A directory has none: its rename goes on, and the
/// upload below is told that its name is gone.
#[test]
fn while_redis_is_away_locks_keep_names_of_uploads_and_no_upload_is_complete_under_a_name_that_is_gone() {
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
        refused(&rename(&mut other, "file", "new", 450), false);
        refused(&rename(&mut other, "free", "file", 450), false);
        refused(&other.command("DELE file", 450).text(), false);
        refused(&other.command("MFMT 20200101000000 file", 450).text(), false);
        rename(&mut other, "free", "renamed", 250);
        other.command("DELE renamed", 250);
        rename(&mut other, "d", "e", 250);
        for upload in uploads {
            upload.shutdown(Shutdown::Write).unwrap();
        }
        let [of_file, below] = &mut writers;
        of_file.expect(226);
        below.expect(450);
        let home = cluster.storage().join("team/direct");
        assert_eq!(fs::read(home.join("file")).unwrap(), b"content", "{policy}");
        assert!(!home.join("d").exists());
    }
}

#[test]
fn without_locks_nothing_is_renamed_while_it_cannot_be_told_who_writes() {
    let mut cluster = cluster_with(&[("storage_locks", "off"), ("node_lease", "2s")]);
    let mut writer = session(&cluster, 0, "direct");
    let mut other = session(&cluster, 1, "direct");
    writer.store("other", b"other");
    let mut upload = writer.begin("STOR file");
    upload.write_all(b"content").unwrap();
    let unsure = |other: &mut Dialogue| {
        let text = rename(other, "other", "new", 450);
        assert!(text.contains("may be writing this file"), "{text}");
        let text = other.command("COMB joined other", 450).text();
        assert!(text.contains("may be writing this file"), "{text}");
    };
    cluster.redis().command("FLUSHALL").unwrap();
    unsure(&mut other);
    // The upload tells Redis of its lease again, and after a lease Redis knows all.
    eventually("renames are possible again", || {
        other.command("RNFR other", 350);
        other.send("RNTO new");
        (other.reply().code == 250).then_some(())
    });
    rename(&mut other, "new", "other", 250);
    refused(&rename(&mut other, "file", "new", 450), false);
    upload.shutdown(Shutdown::Write).unwrap();
    writer.expect(226);

    cluster.kill_redis();
    unsure(&mut other);
    other.command("DELE other", 250);
    other.command("MFMT 20200101000000 file", 213);
}
