//! Plain uploads that are cut: on no path does a client get 226 for an upload that it has not ended in order.
//! The kernel's path is in `kernel_data_path.rs`.

use std::{io::Write, net::SocketAddr, path::Path, thread, time::Duration};

use cluster_tests::{
    cluster::Cluster,
    content::bytes,
    cut_uploads::{CutUploads, send_and_reset, upload_slowly},
    dialogue::Dialogue,
    doors::DoorKind,
    node::{Node, metric_sum},
    random::Random,
    tls::{Authority, SecureDialogue},
};

/// Number of resets on each path.
const RESETS: usize = 1000;

/// The consequence of a reset behind nginx; see "Data connections" in `nginx/README.md`.
#[test]
fn behind_nginx_a_reset_plain_upload_gets_226_unless_allo_or_tls_shows_that_it_is_cut() {
    let authority = Authority::new();
    let certificate = authority.sign("localhost");
    let cluster = Cluster::builder().doors(DoorKind::Nginx).certificate(&certificate).start();
    let time = Duration::from_millis(50);
    let mut session = cluster.login();
    session.command("TYPE I", 200);
    let data = session.begin("STOR file");
    let sent = send_and_reset(data, time);
    let reply = session.reply();
    assert_eq!(
        reply.code, 226,
        "this nginx passes a reset on; nginx/README.md says that none does ({sent} bytes sent)"
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
    let cluster = Cluster::builder().doors(DoorKind::Nginx).start();
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

#[test]
fn through_the_relay_no_reset_upload_gets_226() {
    let cluster = Cluster::start();
    expect_none_confirmed(&uploads(&cluster, RESETS, &|| cluster.login(), &|address| address));
    let relayed = metric_sum(cluster.relay().admin, "ftp_relayed_total");
    assert!(relayed >= RESETS as f64, "{relayed}");
}

/// A session on the first node, from the address of a client.
fn session_on_first_node(cluster: &Cluster) -> Dialogue {
    let mut session = Dialogue::connect_with(&cluster.client(1), cluster.node(0).address);
    session.login("demo", "secret");
    session
}

/// Data connections come to another node than the one of their session.
#[test]
fn from_node_to_node_no_reset_upload_gets_226() {
    let cluster = Cluster::builder().without_balancer().start();
    let session = || session_on_first_node(&cluster);
    let door = |address: SocketAddr| {
        (cluster.node(1 + usize::from(address.port()) % 2).address.ip(), address.port()).into()
    };
    expect_none_confirmed(&uploads(&cluster, RESETS, &session, &door));
    let relayed: f64 = (1..3).map(|node| metric_sum(cluster.node(node).admin, "ftp_relayed_total")).sum();
    assert!(relayed >= RESETS as f64, "{relayed}");
}

/// The way in which a relay ends in the middle of uploads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Kill,
    Stop,
    Drain,
}

/// Begins uploads of `sessions` over `door`, ends the relay behind it with `end`, and waits for the
/// replies. Returns the number of complete uploads. Checks that a 226 means a complete upload.
fn upload_while(
    sessions: &mut [Dialogue],
    home: &Path,
    round: usize,
    door: &dyn Fn(SocketAddr) -> SocketAddr,
    end: impl FnOnce(),
) -> usize {
    let mut random = Random::new(round as u64);
    let content = bytes(random.number(), 400_000 + random.below(200_000));
    let begun: Vec<_> = sessions
        .iter_mut()
        .enumerate()
        .map(|(i, session)| {
            let name = format!("{i}-{round}");
            let address = door(session.epsv());
            let data = session.data_connection(address);
            session.command(&format!("STOR {name}"), 150);
            (session, data, home.join(name))
        })
        .collect();
    let content = &content;
    thread::scope(|scope| {
        let uploads: Vec<_> = begun
            .into_iter()
            .map(|(session, data, stored)| {
                scope.spawn(move || upload_slowly(session, data, &stored, content))
            })
            .collect();
        thread::sleep(Duration::from_millis(random.below(100) as u64));
        end();
        let complete = uploads.into_iter().map(|upload| usize::from(upload.join().unwrap()));
        complete.sum()
    })
}

/// Four relays with three uploads at a time each. A relay that is stopped gives its connections a short
/// time, one that drains gives them enough.
#[test]
fn a_relay_that_is_killed_stopped_or_restarted_in_the_middle_of_uploads_confirms_none_that_is_cut() {
    const ROUNDS: usize = 25;
    // An upload gets 425 if its relay is killed before it has connected to the node.
    let cluster = Cluster::builder().setting("data_connect_timeout", "5s").start();
    let home = &cluster.storage().join("demo");
    let cut: usize = thread::scope(|scope| {
        let relays: Vec<_> = (0..4)
            .map(|number| {
                let cluster = &cluster;
                scope.spawn(move || {
                    let mut sessions: Vec<_> = (0..3).map(|_| session_on_first_node(cluster)).collect();
                    let mut cut = 0;
                    for round in (0..ROUNDS).map(|round| number * ROUNDS + round) {
                        let end = [End::Kill, End::Kill, End::Stop, End::Drain][round % 4];
                        let drain_timeout = if end == End::Drain { "30s" } else { "10ms" };
                        let relay = cluster.relay_builder(5 + number as u8);
                        let mut relay = relay.setting("drain_timeout", drain_timeout).start();
                        let ip = relay.listen;
                        let door = |address: SocketAddr| (ip, address.port()).into();
                        let complete = upload_while(&mut sessions, home, round, &door, || match end {
                            End::Kill => relay.daemon.kill(),
                            End::Stop | End::Drain => relay.daemon.terminate(),
                        });
                        assert!(end != End::Drain || complete == sessions.len(), "{complete}");
                        cut += sessions.len() - complete;
                        relay.daemon.wait();
                    }
                    cut
                })
            })
            .collect();
        relays.into_iter().map(|relay| relay.join().unwrap()).sum()
    });
    // Most rounds end in the middle of all three uploads.
    assert!(cut > 100, "{cut}");
}

#[test]
fn a_node_that_is_killed_or_stopped_in_the_middle_of_uploads_that_it_relays_confirms_none_that_is_cut() {
    let mut cluster = Cluster::builder().without_balancer().setting("drain_timeout", "100ms").start();
    let home = cluster.storage().join("demo");
    let mut sessions: Vec<_> = (0..3).map(|_| session_on_first_node(&cluster)).collect();
    let mut cut = 0;
    for round in 0..16 {
        let ip = cluster.node(1).address.ip();
        let door = |address: SocketAddr| (ip, address.port()).into();
        let end = || {
            if round % 4 == 3 {
                cluster.node(1).daemon.terminate()
            } else {
                cluster.node_mut(1).daemon.kill()
            }
        };
        let complete = upload_while(&mut sessions, &home, round, &door, end);
        cut += sessions.len() - complete;
        cluster.node_mut(1).daemon.wait();
        cluster.restart_node(1);
    }
    assert!(cut > 16, "{cut}");
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
