//! One writer for a path at a time, over all nodes.

use std::{
    io::Write,
    net::Shutdown,
    time::{Duration, Instant},
};

use cluster_tests::{
    authd::hash_password,
    cluster::Cluster,
    content::{bytes, sha256},
    dialogue::Dialogue,
    proxy::Connector,
};

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

    let mut upload = first.begin("STOR file");
    upload.write_all(&content[..1000]).unwrap();
    for command in ["STOR file", "STOR /file", "STOR ./file", "APPE file", "COMB file other"] {
        busy(&mut second, command);
    }
    busy(&mut same_node, "STOR file");
    busy(&mut team, "STOR ann/file");
    busy(&mut safe, "STOR file");
    second.store("other", b"nobody writes this one");
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

/// A node that Redis has not heard from for `node_lease` has lost its leases, and may learn of it only
/// when its upload is over: 226 would be said of a file that two have written.
#[test]
fn an_upload_that_lost_its_lease_on_the_way_gets_451_and_an_atomic_one_gets_no_name() {
    let hash = hash_password("secret");
    let cluster = Cluster::builder()
        .users(&format!(
            "[users.direct]\npassword_hash = \"{hash}\"\nhome = \"/team/direct\"\n\
             [users.atomic]\npassword_hash = \"{hash}\"\nhome = \"/team/atomic\"\nuploads = \"atomic\"\n"
        ))
        .start();
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
