//! Clients that close the control connection during an upload or right after its data. Cameras and
//! microcontrollers do so after every file, and killed programs do.

use std::{
    fs,
    io::Write,
    path::PathBuf,
    time::{Duration, Instant},
};

use cluster_tests::{
    content::{bytes, sha256},
    dialogue::{Dialogue, read_what_comes},
    eventually,
    node::Node,
    redis::Redis,
    stub_authd::{Answer, StubAuthd},
    tls::{Authority, SecureDialogue, hang_up},
};
use serde_json::json;

use crate::support::{at, login, start, stored, transfers, wait_for_size};

/// A node with TLS, and the users `direct` and `atomic`, named after their upload mode. Both users have
/// the same home.
struct UploadSite {
    node: Node,
    authority: Authority,
    _redis: Redis,
    _authd: StubAuthd,
}

impl UploadSite {
    fn start() -> Self {
        let authd = StubAuthd::start(|request| {
            Answer::account(&json!({ "user": request["user"], "home": "/", "uploads": request["user"] }))
        });
        let builder = Node::standalone().in_cluster();
        let redis = Redis::start(builder.loopback().socket(1, 6379));
        let authority = Authority::new();
        let certificate = authority.sign("localhost");
        let log = builder.root().join("transfers.log");
        let node = builder
            .setting("authd_urls", authd.url())
            .setting("redis_url", redis.address)
            .setting("tls_certificates", certificate.chain.display())
            .setting("tls_keys", certificate.key.display())
            .setting("transfer_log", log.display())
            .start();
        Self { node, authority, _redis: redis, _authd: authd }
    }

    fn plain(&self, user: &str) -> Dialogue {
        let mut session = self.node.login(user, "x");
        session.command("TYPE I", 200);
        session
    }

    fn encrypted(&self, user: &str) -> SecureDialogue {
        let mut session = SecureDialogue::explicit(&self.authority.client(), self.node.address);
        session.login(user, "x");
        session
    }

    /// Sends `content` and closes both connections, in the order given by `departure`.
    fn send_and_leave(&self, departure: Departure, name: &str, content: &[u8]) {
        let command = format!("STOR {name}");
        if departure.is_encrypted {
            let mut session = self.encrypted(departure.user);
            let mut data = session.begin(&command);
            data.write_all(content).unwrap();
            if departure.is_data_first {
                hang_up(data);
                drop(session);
            } else {
                drop(session);
                hang_up(data);
            }
        } else {
            let mut session = self.plain(departure.user);
            let mut data = session.begin(&command);
            data.write_all(content).unwrap();
            if departure.is_data_first {
                drop(data);
                drop(session);
            } else {
                drop(session);
                drop(data);
            }
        }
        self.wait_for_disconnects();
    }

    fn wait_for_disconnects(&self) {
        self.node.wait_for_metric("ftp_connections", |count| count == 0.0);
    }

    /// The partial file of an interrupted atomic upload. There is at most one.
    fn partial_file(&self) -> Option<PathBuf> {
        let entries = fs::read_dir(self.node.root()).unwrap().map(|entry| entry.unwrap());
        let mut partials =
            entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b".ftpd-"));
        let partial = partials.next().map(|entry| entry.path());
        assert!(partials.next().is_none());
        partial
    }

    /// Checks that the upload is stored under its name. An atomic upload whose completeness is uncertain
    /// may instead be in its partial file, with the old content under its name.
    fn check_stored(&self, departure: Departure, name: &str, content: &[u8], old: Option<&[u8]>) {
        let now = fs::read(at(&self.node, name)).ok().map(sha256);
        if now == Some(sha256(content)) {
            assert_eq!(self.partial_file(), None, "{departure:?}");
            return;
        }
        assert_eq!(departure.user, "atomic", "{departure:?}: the content is not stored");
        assert_eq!(now, old.map(sha256), "{departure:?}");
        let partial =
            self.partial_file().unwrap_or_else(|| panic!("{departure:?}: there is no partial file"));
        assert_eq!(sha256(fs::read(&partial).unwrap()), sha256(content), "{departure:?}");
        fs::remove_file(partial).unwrap();
    }
}

/// Variant of an upload whose client leaves at its end.
#[derive(Clone, Copy, Debug)]
struct Departure {
    user: &'static str,
    is_encrypted: bool,
    is_data_first: bool,
}

fn departures() -> impl Iterator<Item = Departure> {
    ["direct", "atomic"].into_iter().flat_map(|user| {
        [false, true].into_iter().flat_map(move |is_encrypted| {
            [true, false].map(move |is_data_first| Departure { user, is_encrypted, is_data_first })
        })
    })
}

/// Like a camera: send 2,000 bytes, close the data connection, close the control connection.
#[test]
fn all_bytes_that_a_client_sent_before_it_closed_both_connections_are_stored() {
    const ROUNDS: usize = 12;
    let site = UploadSite::start();
    let old = bytes(1, 5000);
    let mut count = 0;
    for departure in departures() {
        for round in 0..ROUNDS {
            for old in [None, Some(&old[..])] {
                if let Some(old) = old {
                    fs::write(at(&site.node, "image"), old).unwrap();
                }
                let content = bytes(100 + round as u64, 2000);
                site.send_and_leave(departure, "image", &content);
                site.check_stored(departure, "image", &content, old);
                let _ = fs::remove_file(at(&site.node, "image"));
                count += 1;
            }
        }
    }
    // Metrics and transfer log agree.
    let complete = transfers(&site.node, "upload", "complete");
    let left = transfers(&site.node, "upload", "client_gone");
    assert_eq!(complete + left, f64::from(count), "{complete} complete, {left} left");
    let lines = eventually("the transfer log", || {
        let log = fs::read_to_string(at(&site.node, "transfers.log")).unwrap();
        (log.lines().count() == count as usize).then_some(log)
    });
    let ended = |status: &str| lines.lines().filter(|line| line.ends_with(status)).count() as f64;
    assert_eq!((ended(" c"), ended(" i")), (complete, left));
}

#[test]
fn megabytes_in_flight_when_the_client_leaves_are_stored() {
    let site = UploadSite::start();
    for departure in departures() {
        for (name, size) in [("large", 5_000_001), ("larger", 20_000_000)] {
            let (content, old) = (bytes(7, size), bytes(8, 1000));
            fs::write(at(&site.node, name), &old).unwrap();
            site.send_and_leave(departure, name, &content);
            site.check_stored(departure, name, &content, Some(&old));
        }
    }
}

#[test]
fn an_upload_whose_client_leaves_without_waiting_for_replies_is_stored() {
    let site = UploadSite::start();
    for (round, user) in ["direct", "atomic"].into_iter().cycle().take(24).enumerate() {
        let departure = Departure { user, is_encrypted: false, is_data_first: true };
        let content = bytes(round as u64, 2000);
        let mut session = site.plain(user);
        let address = session.epsv();
        let mut data = session.data_connection(address);
        data.write_all(&content).unwrap();
        drop(data);
        session.send("STOR image");
        drop(session);
        site.wait_for_disconnects();
        site.check_stored(departure, "image", &content, None);
        let _ = fs::remove_file(at(&site.node, "image"));
    }
}

#[test]
fn bytes_that_arrive_after_the_end_of_the_control_connection_are_stored() {
    let node = start();
    let content = bytes(3, 3_000_000);
    let mut session = login(&node);
    let mut data = session.begin("STOR file");
    data.write_all(&content[..1_000_000]).unwrap();
    wait_for_size(&node, "file", 1_000_000);
    drop(session);
    for piece in content[1_000_000..].chunks(500_000) {
        data.write_all(piece).unwrap();
    }
    drop(data);
    node.wait_for_metric("ftp_connections", |count| count == 0.0);
    assert_eq!(sha256(stored(&node, "file")), sha256(&content));
    // The file is complete, but the node cannot know it.
    assert_eq!(transfers(&node, "upload", "client_gone"), 1.0);
    let line = node.daemon.wait_for_line(|line| line.contains("upload failed"));
    assert!(line.contains("the client closed the control connection"), "{line}");
}

#[test]
fn an_upload_without_a_byte_before_the_client_leaves_does_not_change_the_file() {
    let site = UploadSite::start();
    for (name, user) in [("direct", "direct"), ("atomic", "atomic")] {
        fs::write(at(&site.node, name), b"content").unwrap();
        let mut session = site.plain(user);
        let data = session.begin(&format!("STOR {name}"));
        drop(session);
        drop(data);
        site.wait_for_disconnects();
        let mut session = site.plain(user);
        session.command("REST 0", 350);
        // The client leaves before it opens a data connection.
        session.epsv();
        session.command(&format!("STOR {name}"), 150);
        drop(session);
        site.wait_for_disconnects();
        assert_eq!(stored(&site.node, name), b"content");
        assert_eq!(site.partial_file(), None);
    }
    assert_eq!(transfers(&site.node, "upload", "client_gone"), 4.0);
}

#[test]
fn an_upload_of_the_size_in_allo_is_complete_even_if_the_client_has_left() {
    let site = UploadSite::start();
    let content = bytes(5, 200_000);
    for user in ["direct", "atomic"] {
        fs::write(at(&site.node, user), b"old").unwrap();
        let mut session = site.plain(user);
        session.command("ALLO 200000", 200);
        let mut data = session.begin(&format!("STOR {user}"));
        data.write_all(&content[..100_000]).unwrap();
        drop(session);
        data.write_all(&content[100_000..]).unwrap();
        drop(data);
        site.wait_for_disconnects();
        assert_eq!(sha256(stored(&site.node, user)), sha256(&content), "{user}");
        assert_eq!(site.partial_file(), None);
    }
    assert_eq!(transfers(&site.node, "upload", "complete"), 2.0);
}

#[test]
fn an_upload_whose_client_has_left_ends_after_client_left_timeout() {
    let node = Node::standalone().setting("client_left_timeout", "300ms").start();
    let mut session = login(&node);
    let mut data = session.begin("STOR file");
    data.write_all(b"12345").unwrap();
    wait_for_size(&node, "file", 5);
    drop(session);
    // Single bytes every 50 ms do not keep the upload alive.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(20) && data.write_all(b".").is_ok() {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    node.wait_for_metric("ftp_connections", |count| count == 0.0);
    assert!(stored(&node, "file").starts_with(b"12345."));
    assert_eq!(transfers(&node, "upload", "client_gone"), 1.0);
    // The client's next session can write the file.
    login(&node).store("file", b"content");
}

#[test]
fn a_draining_node_ends_an_upload_whose_client_has_left_after_the_drain_timeout() {
    let mut node =
        Node::standalone().setting("client_left_timeout", "10m").setting("drain_timeout", "300ms").start();
    let mut session = login(&node);
    let mut data = session.begin("STOR file");
    data.write_all(b"12345").unwrap();
    wait_for_size(&node, "file", 5);
    drop(session);
    node.daemon.terminate();
    node.daemon.wait();
    assert_eq!(read_what_comes(&mut data), b"");
    assert_eq!(stored(&node, "file"), b"12345");
}
