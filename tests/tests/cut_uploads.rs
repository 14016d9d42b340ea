//! Plain uploads that are cut: on no path does a client get 226 for an upload that it has not ended in order.
//! The kernel's path is in `kernel_data_path.rs`.

use std::{io::Write, net::SocketAddr, time::Duration};

use cluster_tests::{
    cluster::Cluster,
    cut_uploads::{CutUploads, send_and_reset},
    dialogue::Dialogue,
    node::Node,
    tls::{Authority, SecureDialogue},
};

/// Number of resets on each path.
const RESETS: usize = 1000;

/// What follows a reset behind nginx; see "Resets become orderly ends" in `nginx/README.md`.
#[test]
fn behind_nginx_a_reset_plain_upload_gets_226_unless_allo_or_tls_shows_that_it_is_cut() {
    let authority = Authority::new();
    let certificate = authority.sign("localhost");
    let cluster = Cluster::builder().certificate(&certificate).start();
    let time = Duration::from_millis(50);
    let mut session = cluster.login();
    session.command("TYPE I", 200);
    let data = session.begin("STOR file");
    let sent = send_and_reset(data, time);
    let reply = session.reply();
    assert_eq!(
        reply.code, 226,
        "this nginx passes a reset on; nginx/README.md and docs/uploads.md say that none does ({sent} bytes sent)"
    );

    session.command("ALLO 1000000000", 200);
    let data = session.begin("STOR file");
    send_and_reset(data, time);
    session.expect(426);

    let mut secure = SecureDialogue::explicit(&authority.client(), cluster.address());
    secure.login("demo", "secret");
    let mut data = secure.begin("STOR file");
    data.write_all(&[0; 100_000]).unwrap();
    send_and_reset(data.sock, Duration::ZERO);
    secure.expect(426);
}

/// Shows that the driver of the other tests sees a confirmed upload.
#[test]
fn behind_nginx_many_uploads_that_are_reset_at_random_moments_get_226() {
    let cluster = Cluster::start();
    let replies = uploads(&cluster, 50, &|| cluster.login(), &|address| address).run();
    assert_eq!(replies.resets, 50);
    assert!(!replies.confirmed.is_empty());
}

#[test]
fn directly_no_reset_upload_gets_226() {
    let node = Node::standalone().user("demo", "secret").start();
    let session = || node.login("demo", "secret");
    expect_none_confirmed(&CutUploads {
        session: &session,
        door: &|address| address,
        homes: vec![node.root().to_owned()],
        sessions: 20,
        resets: RESETS,
    });
}

/// Uploads of `demo` in a cluster.
fn uploads<'a>(
    cluster: &Cluster,
    resets: usize,
    session: &'a (dyn Fn() -> Dialogue + Sync),
    door: &'a (dyn Fn(SocketAddr) -> SocketAddr + Sync),
) -> CutUploads<'a> {
    CutUploads { session, door, homes: vec![cluster.storage().join("demo")], sessions: 20, resets }
}

fn expect_none_confirmed(uploads: &CutUploads<'_>) {
    let replies = uploads.run();
    assert_eq!(replies.resets, uploads.resets);
    assert!(replies.confirmed.is_empty(), "{:#?}", replies.confirmed);
}
