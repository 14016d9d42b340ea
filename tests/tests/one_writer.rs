//! One writer for a path at a time, over all nodes.

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

/// The command is refused with 450, at once.
fn busy(session: &mut Dialogue, command: &str) {
    session.epsv();
    let start = Instant::now();
    session.command(command, 450);
    assert!(start.elapsed() < Duration::from_secs(2), "{command}: {:?}", start.elapsed());
}

#[test]
fn a_second_writer_on_another_node_gets_450_at_once_under_every_name_of_the_file() {
    let hash = hash_password("secret");
    let cluster = Cluster::builder()
        .users(&format!(
            "[users.ann]\npassword_hash = \"{hash}\"\nhome = \"/team/ann\"\n\
             [users.team]\npassword_hash = \"{hash}\"\nhome = \"/team\"\n\
             [users.safe]\npassword_hash = \"{hash}\"\nhome = \"/team/ann\"\nuploads = \"atomic\"\n"
        ))
        .start();
    let anyone = Connector::new();
    let session = |node, user| {
        let mut session = cluster.session_through(node, &anyone, user);
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
        busy(&mut second, command);
    }
    busy(&mut same_node, "STOR file");
    busy(&mut team, "STOR ann/file");
    busy(&mut safe, "STOR file");
    upload.write_all(&content[1000..]).unwrap();
    upload.shutdown(Shutdown::Write).unwrap();
    first.expect(226);
    assert_eq!(sha256(second.retrieve("file")), sha256(&content));

    // The next one may, on any node, as soon as 226 was said.
    second.store("file", b"second");
    team.store("ann/file", b"third");
    safe.store("file", b"fourth");
    assert_eq!(first.retrieve("file"), b"fourth");
}

#[test]
fn of_many_who_begin_at_the_same_time_one_writes_and_its_content_is_whole() {
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

/// Where the storage has no locks that cross nodes, a node that Redis has not heard from for `node_lease` has
/// lost its leases, and may learn of it only when its upload is over: 226 would be said of a file that two have
/// written.
#[test]
fn without_locks_an_upload_that_lost_its_lease_on_the_way_gets_451_and_an_atomic_one_gets_no_name() {
    let cluster = cluster(&[("storage_locks", "off")]);
    for user in ["direct", "atomic"] {
        let mut session = cluster.session_through(0, &Connector::new(), user);
        session.command("TYPE I", 200);
        let mut upload = session.begin("STOR file");
        upload.write_all(b"content").unwrap();
        let lease = format!("ftp:write:team/{user}/file");
        cluster.redis().command(&format!("SET {lease} another-node"));
        upload.shutdown(Shutdown::Write).unwrap();
        let refusal = session.expect(451).text();
        assert!(refusal.contains("Another session writes this file"), "{refusal}");
        let name = cluster.storage().join("team").join(user).join("file");
        assert_eq!(name.exists(), user == "direct");
        // The other's right is not taken from it.
        assert_eq!(cluster.redis().command(&format!("GET {lease}")).as_deref(), Some("$12"));
        busy(&mut session, "STOR file");
        cluster.redis().command(&format!("DEL {lease}"));
        session.store("file", b"again");
        assert_eq!(session.retrieve("file"), b"again");
    }
    let lost = "ftp_transfers_total{direction=\"upload\",result=\"lease_lost\"}";
    assert_eq!(cluster.node(0).metric(lost), Some(2.0));
}

/// The users `direct` and `atomic`, each with a home of its own.
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

/// Where a file of `user` is on the storage.
fn stored(cluster: &Cluster, user: &str, name: &str) -> PathBuf {
    cluster.storage().join("team").join(user).join(name)
}

/// The bytes that the storage has of the only file below the home of `user`, hidden or not.
fn arrived(cluster: &Cluster, user: &str) -> u64 {
    let Ok(entries) = cluster.storage().join("team").join(user).read_dir() else { return 0 };
    let lengths = entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len()));
    lengths.max().unwrap_or(0)
}

/// An upload of which a part is on the storage.
struct Begun {
    session: Dialogue,
    data: TcpStream,
    content: Vec<u8>,
}

/// More than a node holds back before it writes.
const PART: usize = 1 << 20;

impl Begun {
    fn new(cluster: &Cluster, node: usize, user: &str, name: &str) -> Self {
        let mut session = session(cluster, node, user);
        let content = bytes(1, 2 * PART + 12_345);
        let mut data = session.begin(&format!("STOR {name}"));
        data.write_all(&content[..PART]).unwrap();
        eventually("a part to be stored", || (arrived(cluster, user) > 0).then_some(()));
        Self { session, data, content }
    }

    /// Sends the rest. The code of the last reply, and the content.
    fn end(mut self) -> (u16, Vec<u8>) {
        // A node that may not write any more closes the connection.
        let _ = self.data.write_all(&self.content[PART..]);
        let _ = self.data.shutdown(Shutdown::Write);
        (self.session.reply().code, self.content)
    }
}

/// The reply to a whole upload: 226, or what refuses it.
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

/// How an upload is kept from renewing its lease.
#[derive(Clone, Copy)]
enum Fault {
    /// Its node is stopped until the lease has expired.
    Stopped,
    /// Redis runs this command.
    Redis(&'static str),
}

/// An upload on one node, a fault, and another upload of the same path on another node before the first goes on.
/// Returns the last reply of each. The file holds one of them, whole.
fn interrupted(cluster: &Cluster, user: &str, fault: Fault) -> (u16, u16) {
    let begun = Begun::new(cluster, 0, user, "file");
    let mut other = session(cluster, 1, user);
    let second = bytes(2, 2 * PART);
    let of_second = match fault {
        Fault::Stopped => {
            cluster.node(0).daemon.signal(Signal::SIGSTOP);
            let of_second = eventually("the lease to expire", || {
                let refused = "ftp_operations_failed_total{verb=\"STOR\",reason=\"being_written\"}";
                let code = store(&mut other, "file", &second);
                let by_lock = cluster.node(1).metric(refused).is_some();
                (code != 450 || by_lock).then_some(code)
            });
            cluster.node(0).daemon.signal(Signal::SIGCONT);
            of_second
        }
        Fault::Redis(command) => {
            cluster.redis().command(command).expect("Redis answers");
            store(&mut other, "file", &second)
        }
    };
    let (of_first, first) = begun.end();
    let wanted = match (of_first, of_second) {
        (226, _) => &first,
        (_, 226) => &second,
        codes => panic!("no upload was complete: {codes:?}"),
    };
    assert_eq!(sha256(fs::read(stored(cluster, user, "file")).unwrap()), sha256(wanted));
    (of_first, of_second)
}

#[test]
fn while_a_node_is_stopped_a_second_writer_waits_for_a_direct_upload_and_takes_an_atomic_one_over() {
    for (user, codes) in [("direct", (226, 450)), ("atomic", (451, 226))] {
        let cluster = cluster(&[]);
        assert_eq!(interrupted(&cluster, user, Fault::Stopped), codes, "{user}");
    }
}

#[test]
fn after_a_loss_of_redis_data_two_writers_of_a_path_are_never_both_complete() {
    for user in ["direct", "atomic"] {
        for loss in ["FLUSHALL", "DEL ftp:write:team/direct/file ftp:write:team/atomic/file"] {
            let cluster = cluster(&[]);
            let codes = interrupted(&cluster, user, Fault::Redis(loss));
            match user {
                "direct" => assert_eq!(codes, (226, 450), "{loss}"),
                _ => assert!(matches!(codes, (451, 226) | (226, 450)), "{loss}: {codes:?}"),
            }
        }
    }
}

#[test]
fn while_redis_is_away_the_lock_on_the_storage_refuses_a_second_writer() {
    for user in ["direct", "atomic"] {
        let mut cluster = cluster(&[]);
        let begun = Begun::new(&cluster, 0, user, "file");
        let (mut other, mut free) = (session(&cluster, 1, user), session(&cluster, 1, user));
        cluster.kill_redis();
        assert_eq!(store(&mut other, "file", b"second"), 450, "{user}");
        assert_eq!(store(&mut free, "other", b"no other session writes this"), 226, "{user}");
        let (code, content) = begun.end();
        assert_eq!(code, 226, "{user}");
        assert_eq!(sha256(fs::read(stored(&cluster, user, "file")).unwrap()), sha256(&content));
    }
}

#[test]
fn an_upload_whose_file_was_renamed_gets_450_and_no_other_session_writes_the_file_before() {
    let cluster = cluster(&[]);
    let begun = Begun::new(&cluster, 0, "direct", "v");
    fs::rename(stored(&cluster, "direct", "v"), stored(&cluster, "direct", "w")).unwrap();
    let mut other = session(&cluster, 1, "direct");
    busy(&mut other, "STOR w");
    busy(&mut other, "APPE w");
    let (code, content) = begun.end();
    assert_eq!(code, 450);
    assert_eq!(sha256(fs::read(stored(&cluster, "direct", "w")).unwrap()), sha256(&content));
    assert_eq!(store(&mut other, "w", b"other"), 226);
    assert_eq!(fs::read(stored(&cluster, "direct", "w")).unwrap(), b"other");
}

#[test]
fn an_upload_whose_directory_was_renamed_gets_450_and_an_atomic_one_no_name() {
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
        // The hidden file of an atomic upload has another name there, so the other one is in no danger.
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
    let begun = Begun::new(&cluster, 0, "direct", "h1");
    let mut other = session(&cluster, 1, "direct");
    busy(&mut other, "STOR h2");
    let (code, content) = begun.end();
    assert_eq!(code, 226);
    assert_eq!(sha256(fs::read(stored(&cluster, "direct", "h2")).unwrap()), sha256(&content));
}

#[test]
fn without_locks_an_upload_whose_lease_expired_writes_no_more_and_the_next_one_is_whole() {
    for user in ["direct", "atomic"] {
        let cluster = cluster(&[("storage_locks", "off")]);
        assert_eq!(interrupted(&cluster, user, Fault::Stopped), (451, 226), "{user}");
    }
}

#[test]
fn without_locks_uploads_are_refused_while_redis_is_away_and_those_that_run_end_in_time() {
    for user in ["direct", "atomic"] {
        let mut cluster = cluster(&[("storage_locks", "off")]);
        let begun = Begun::new(&cluster, 0, user, "file");
        let mut other = session(&cluster, 1, user);
        cluster.kill_redis();
        let refused = eventually("uploads to be refused", || {
            let code = store(&mut other, "other", b"content");
            (code != 226).then_some(code)
        });
        assert_eq!(refused, 450, "{user}");
        // No byte is written once the lease is too old, so a part is all that the storage ever has.
        thread::sleep(Duration::from_secs(2));
        let (code, content) = begun.end();
        assert_eq!(code, 451, "{user}");
        let kept = fs::read(stored(&cluster, user, "file"));
        assert_eq!(kept.is_ok(), user == "direct");
        assert!(content.starts_with(&kept.unwrap_or_default()));
    }
}

#[test]
fn the_log_says_whether_locks_keep_out_other_nodes() {
    let cluster = cluster(&[("storage_locks", "off")]);
    let line = cluster.node(0).daemon.wait_for_message("file locks do not keep out other nodes", &[]);
    assert!(line.contains("setting=storage_locks"), "{line}");
}
