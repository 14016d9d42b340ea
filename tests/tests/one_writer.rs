//! At any time, at most one session of the cluster writes a path.

use std::{
    fs,
    io::Write,
    net::{Shutdown, TcpStream},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use cluster_tests::{
    authd::hash_password,
    cluster::Cluster,
    content::{bytes, sha256},
    dialogue::Dialogue,
    eventually,
    proxy::Connector,
};
use nix::sys::signal::Signal;

/// Expects 450 as the reply to `command`, within 2 s.
fn expect_busy(session: &mut Dialogue, command: &str) {
    session.epsv();
    let start = Instant::now();
    session.command(command, 450);
    assert!(start.elapsed() < Duration::from_secs(2), "{command}: {:?}", start.elapsed());
}

#[test]
fn a_second_writer_on_any_node_gets_450_at_once_for_every_path_of_the_file() {
    let hash = hash_password("secret");
    let cluster = Cluster::builder()
        .users(&format!(
            "[users.ann]\npassword_hash = \"{hash}\"\nhome = \"/team/ann\"\n\
             [users.team]\npassword_hash = \"{hash}\"\nhome = \"/team\"\n\
             [users.safe]\npassword_hash = \"{hash}\"\nhome = \"/team/ann\"\nuploads = \"atomic\"\n"
        ))
        .start();
    let connector = Connector::new();
    let session = |node, user| {
        let mut session = cluster.session_through(node, &connector, user);
        session.command("TYPE I", 200);
        session
    };
    let (mut first, mut second) = (session(0, "ann"), session(1, "ann"));
    let (mut team, mut safe, mut same_node) = (session(2, "team"), session(1, "safe"), session(0, "ann"));
    let content = bytes(1, 1 << 20);

    second.store("other", b"no session writes this one");
    let mut upload = first.begin("STOR file");
    upload.write_all(&content[..1000]).unwrap();
    for command in ["STOR file", "STOR /file", "STOR ./file", "APPE file", "COMB file other"] {
        expect_busy(&mut second, command);
    }
    expect_busy(&mut same_node, "STOR file");
    expect_busy(&mut team, "STOR ann/file");
    expect_busy(&mut safe, "STOR file");
    upload.write_all(&content[1000..]).unwrap();
    upload.shutdown(Shutdown::Write).unwrap();
    first.expect(226);
    assert_eq!(sha256(second.retrieve("file")), sha256(&content));

    // After 226 other sessions may write the file, on any node.
    second.store("file", b"second");
    team.store("ann/file", b"third");
    safe.store("file", b"fourth");
    assert_eq!(first.retrieve("file"), b"fourth");
}

#[test]
fn one_of_several_simultaneous_uploads_of_a_path_succeeds_and_the_others_get_450() {
    let cluster = Cluster::start();
    for round in 0..5 {
        let mut sessions: Vec<_> = (0..6).map(|number| cluster.login_through(number % 3)).collect();
        let mut data: Vec<_> = sessions
            .iter_mut()
            .map(|session| {
                session.command("TYPE I", 200);
                let address = session.epsv();
                session.data_connection(address)
            })
            .collect();
        for session in &mut sessions {
            session.send("STOR file");
        }
        let codes: Vec<u16> = sessions.iter_mut().map(|session| session.reply().code).collect();
        let writers: Vec<usize> = (0..codes.len()).filter(|i| codes[*i] == 150).collect();
        assert_eq!(writers.len(), 1, "{codes:?}");
        assert_eq!(codes.iter().filter(|code| **code == 450).count(), 5, "{codes:?}");
        let (writer, content) = (writers[0], bytes(round, 100_000));
        data[writer].write_all(&content).unwrap();
        data[writer].shutdown(Shutdown::Write).unwrap();
        sessions[writer].expect(226);
        assert_eq!(sha256(sessions[writer].retrieve("file")), sha256(content));
    }
}

/// Without file locks that work across nodes, a node may learn only at the end of an upload that its
/// lease has expired (it did not reach Redis for `node_lease`). A reply 226 would then confirm a file
/// that two sessions have written.
#[test]
fn without_locks_an_upload_that_lost_its_lease_gets_451_and_an_atomic_upload_is_not_published() {
    let cluster = cluster(&[("storage_locks", "off")]);
    for user in ["direct", "atomic"] {
        let mut session = cluster.session_through(0, &Connector::new(), user);
        session.command("TYPE I", 200);
        let mut upload = session.begin("STOR file");
        upload.write_all(b"content").unwrap();
        let key = format!("ftp:write:team/{user}/file");
        cluster.redis().command(&format!("SET {key} another-node"));
        upload.shutdown(Shutdown::Write).unwrap();
        let refusal = session.expect(451).text();
        assert!(refusal.contains("Another session writes this file"), "{refusal}");
        let name = cluster.storage().join("team").join(user).join("file");
        assert_eq!(name.exists(), user == "direct");
        // The other session still has its lease.
        assert_eq!(cluster.redis().command(&format!("GET {key}")).as_deref(), Some("$12"));
        expect_busy(&mut session, "STOR file");
        cluster.redis().command(&format!("DEL {key}"));
        session.store("file", b"again");
        assert_eq!(session.retrieve("file"), b"again");
    }
    let lost = "ftp_transfers_total{direction=\"upload\",result=\"lease_lost\"}";
    assert_eq!(cluster.node(0).metric(lost), Some(2.0));
}

/// Starts a cluster with the users `direct` and `atomic`, which have different homes.
fn cluster(settings: &[(&str, &str)]) -> Cluster {
    let hash = hash_password("secret");
    let users = format!(
        "[users.direct]\npassword_hash = \"{hash}\"\nhome = \"/team/direct\"\n\
         [users.atomic]\npassword_hash = \"{hash}\"\nhome = \"/team/atomic\"\nuploads = \"atomic\"\n"
    );
    let builder = Cluster::builder().users(&users).setting("node_lease", "2s");
    settings.iter().fold(builder, |builder, (key, value)| builder.setting(key, value)).start()
}

fn session(cluster: &Cluster, node: usize, user: &str) -> Dialogue {
    let mut session = cluster.session_through(node, &Connector::new(), user);
    session.command("TYPE I", 200);
    session
}

/// Path of a file of `user` on the storage.
fn stored(cluster: &Cluster, user: &str, name: &str) -> PathBuf {
    cluster.storage().join("team").join(user).join(name)
}

/// Size of the largest file in the home of `user`, including partial files.
fn stored_bytes(cluster: &Cluster, user: &str) -> u64 {
    let Ok(entries) = cluster.storage().join("team").join(user).read_dir() else { return 0 };
    let lengths = entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len()));
    lengths.max().unwrap_or(0)
}

/// A running upload; a part of its content is already on the storage.
struct RunningUpload {
    session: Dialogue,
    data: TcpStream,
    content: Vec<u8>,
}

/// Size of the first part in bytes: more than a node buffers before it writes.
const PART: usize = 1 << 20;

impl RunningUpload {
    fn new(cluster: &Cluster, node: usize, user: &str, name: &str) -> Self {
        let mut session = session(cluster, node, user);
        let content = bytes(1, 2 * PART + 12_345);
        let mut data = session.begin(&format!("STOR {name}"));
        data.write_all(&content[..PART]).unwrap();
        eventually("a part to be stored", || (stored_bytes(cluster, user) > 0).then_some(()));
        Self { session, data, content }
    }

    /// Sends the rest. Returns the code of the last reply, and the content.
    fn end(mut self) -> (u16, Vec<u8>) {
        // A node that has lost its lease closes the connection, so these calls may fail.
        let _ = self.data.write_all(&self.content[PART..]);
        let _ = self.data.shutdown(Shutdown::Write);
        (self.session.reply().code, self.content)
    }
}

/// Uploads `content` and returns the code of the last reply: 226, or the code of the refusal.
fn store(session: &mut Dialogue, name: &str, content: &[u8]) -> u16 {
    let address = session.epsv();
    let mut data = session.data_connection(address);
    session.send(&format!("STOR {name}"));
    let first = session.reply().code;
    if first != 150 {
        return first;
    }
    data.write_all(content).unwrap();
    data.shutdown(Shutdown::Write).unwrap();
    session.reply().code
}

/// A fault that costs an upload its lease.
#[derive(Clone, Copy)]
enum Fault {
    /// The upload's node is stopped (SIGSTOP) until the lease has expired.
    Stopped,
    /// Redis runs this command.
    Redis(&'static str),
}

/// Starts an upload on node 0, causes the fault, uploads to the same path on node 1, and then lets the
/// first upload continue. Returns the last reply codes of both uploads, after checking that the file
/// holds the complete content of a confirmed upload.
fn upload_during_fault(cluster: &Cluster, user: &str, fault: Fault) -> (u16, u16) {
    let running = RunningUpload::new(cluster, 0, user, "file");
    let mut other = session(cluster, 1, user);
    let second = bytes(2, 2 * PART);
    let second_code = match fault {
        Fault::Stopped => {
            cluster.node(0).daemon.signal(Signal::SIGSTOP);
            let second_code = eventually("the lease to expire", || {
                let refused = "ftp_operations_failed_total{verb=\"STOR\",reason=\"being_written\"}";
                let code = store(&mut other, "file", &second);
                let is_refused_by_lock = cluster.node(1).metric(refused).is_some();
                (code != 450 || is_refused_by_lock).then_some(code)
            });
            cluster.node(0).daemon.signal(Signal::SIGCONT);
            second_code
        }
        Fault::Redis(command) => {
            cluster.redis().command(command).expect("Redis answers");
            store(&mut other, "file", &second)
        }
    };
    let (first_code, first) = running.end();
    let expected = match (first_code, second_code) {
        (226, _) => &first,
        (_, 226) => &second,
        codes => panic!("no upload was confirmed: {codes:?}"),
    };
    assert_eq!(sha256(fs::read(stored(cluster, user, "file")).unwrap()), sha256(expected));
    (first_code, second_code)
}

#[test]
fn while_a_node_is_stopped_a_second_writer_waits_for_a_direct_upload_and_replaces_an_atomic_upload() {
    for (user, codes) in [("direct", (226, 450)), ("atomic", (451, 226))] {
        let cluster = cluster(&[]);
        assert_eq!(upload_during_fault(&cluster, user, Fault::Stopped), codes, "{user}");
    }
}

#[test]
fn after_a_loss_of_redis_data_two_uploads_of_a_path_are_never_both_confirmed() {
    for user in ["direct", "atomic"] {
        for loss in ["FLUSHALL", "DEL ftp:write:team/direct/file ftp:write:team/atomic/file"] {
            let cluster = cluster(&[]);
            let codes = upload_during_fault(&cluster, user, Fault::Redis(loss));
            match user {
                "direct" => assert_eq!(codes, (226, 450), "{loss}"),
                _ => assert!(matches!(codes, (451, 226) | (226, 450)), "{loss}: {codes:?}"),
            }
        }
    }
}

#[test]
fn while_redis_is_unreachable_file_locks_refuse_a_second_writer() {
    for user in ["direct", "atomic"] {
        let mut cluster = cluster(&[]);
        let running = RunningUpload::new(&cluster, 0, user, "file");
        let (mut other, mut free) = (session(&cluster, 1, user), session(&cluster, 1, user));
        cluster.kill_redis();
        assert_eq!(store(&mut other, "file", b"second"), 450, "{user}");
        assert_eq!(store(&mut free, "other", b"no other session writes this"), 226, "{user}");
        let (code, content) = running.end();
        assert_eq!(code, 226, "{user}");
        assert_eq!(sha256(fs::read(stored(&cluster, user, "file")).unwrap()), sha256(&content));
    }
}

#[test]
fn an_upload_whose_file_is_renamed_gets_450_and_excludes_other_writers_until_then() {
    let cluster = cluster(&[]);
    let running = RunningUpload::new(&cluster, 0, "direct", "v");
    fs::rename(stored(&cluster, "direct", "v"), stored(&cluster, "direct", "w")).unwrap();
    let mut other = session(&cluster, 1, "direct");
    expect_busy(&mut other, "STOR w");
    expect_busy(&mut other, "APPE w");
    let (code, content) = running.end();
    assert_eq!(code, 450);
    assert_eq!(sha256(fs::read(stored(&cluster, "direct", "w")).unwrap()), sha256(&content));
    assert_eq!(store(&mut other, "w", b"other"), 226);
    assert_eq!(fs::read(stored(&cluster, "direct", "w")).unwrap(), b"other");
}

#[test]
fn an_upload_into_a_renamed_directory_gets_450_and_an_atomic_upload_is_not_published() {
    for user in ["direct", "atomic"] {
        let cluster = cluster(&[]);
        session(&cluster, 0, user).command("MKD d1", 257);
        let mut first = session(&cluster, 0, user);
        let mut data = first.begin("STOR d1/v");
        data.write_all(&bytes(1, PART)).unwrap();
        let directory = stored(&cluster, user, "d1");
        let length = || -> u64 {
            let entries = directory.read_dir().unwrap();
            entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum()
        };
        eventually("a part to be stored", || (length() > 0).then_some(()));
        fs::rename(&directory, stored(&cluster, user, "d2")).unwrap();
        let mut other = session(&cluster, 1, user);
        let refused = store(&mut other, "d2/v", b"other");
        // The partial file's name depends on the path, so the two atomic uploads use different files.
        assert_eq!(refused, if user == "direct" { 450 } else { 226 });
        data.shutdown(Shutdown::Write).unwrap();
        first.expect(450);
        other.command("SIZE d1/v", 550);
        if user == "atomic" {
            assert_eq!(fs::read(stored(&cluster, user, "d2/v")).unwrap(), b"other");
        }
    }
}

#[test]
fn one_file_with_two_names_has_one_writer() {
    let cluster = cluster(&[]);
    session(&cluster, 0, "direct").store("h1", b"old");
    fs::hard_link(stored(&cluster, "direct", "h1"), stored(&cluster, "direct", "h2")).unwrap();
    let running = RunningUpload::new(&cluster, 0, "direct", "h1");
    let mut other = session(&cluster, 1, "direct");
    expect_busy(&mut other, "STOR h2");
    let (code, content) = running.end();
    assert_eq!(code, 226);
    assert_eq!(sha256(fs::read(stored(&cluster, "direct", "h2")).unwrap()), sha256(&content));
}

#[test]
fn without_locks_an_upload_whose_lease_expired_stops_writing_and_the_next_upload_is_complete() {
    for user in ["direct", "atomic"] {
        let cluster = cluster(&[("storage_locks", "off")]);
        assert_eq!(upload_during_fault(&cluster, user, Fault::Stopped), (451, 226), "{user}");
    }
}

#[test]
fn without_locks_and_redis_new_uploads_are_refused_and_running_uploads_stop_writing_in_time() {
    for user in ["direct", "atomic"] {
        let mut cluster = cluster(&[("storage_locks", "off")]);
        let running = RunningUpload::new(&cluster, 0, user, "file");
        let mut other = session(&cluster, 1, user);
        cluster.kill_redis();
        let refused = eventually("uploads to be refused", || {
            let code = store(&mut other, "other", b"content");
            (code != 226).then_some(code)
        });
        assert_eq!(refused, 450, "{user}");
        // The node stops writing when the lease has expired, so the storage has only the first part.
        thread::sleep(Duration::from_secs(2));
        let (code, content) = running.end();
        assert_eq!(code, 451, "{user}");
        let kept = fs::read(stored(&cluster, user, "file"));
        assert_eq!(kept.is_ok(), user == "direct");
        assert!(content.starts_with(&kept.unwrap_or_default()));
    }
}

#[test]
fn the_log_says_whether_file_locks_work_across_nodes() {
    for (locks, message) in [
        ("off", "file locks do not keep out other nodes, so that uploads depend on Redis"),
        ("cluster", "file locks hold on all nodes"),
        // The result depends on the file system of the temporary directory.
        ("auto", "file locks"),
    ] {
        let cluster = cluster(&[("storage_locks", locks)]);
        let line = cluster.node(0).daemon.wait_for_line(|line| line.contains(message));
        assert_eq!(line.contains("setting=storage_locks"), line.contains("WARN"), "{line}");
    }
}
