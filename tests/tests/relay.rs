//! `ftp-relay` as the only door of a cluster: control connections, start and end, limits, settings, nftables.
//! `cut_uploads.rs` has the resets, `any_balancer.rs` and `membership.rs` the load.

mod relay {
    pub(crate) mod kernel;
}

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use cluster_tests::{
    DEADLINE,
    cluster::{Cluster, ClusterBuilder},
    content::bytes,
    dialogue::{Dialogue, is_closed},
    eventually, http,
    process::message_is,
    proxy::Connector,
    relay::{Relay, RelayBuilder},
    tls::{Authority, SecureDialogue},
};
use nix::sys::signal::Signal;

/// A cluster with static slices, and a relay at its address that carries control and data connections.
struct Relayed {
    relay: Relay,
    cluster: Cluster,
}

impl Relayed {
    fn start(cluster: ClusterBuilder, settings: impl FnOnce(RelayBuilder) -> RelayBuilder) -> Self {
        let cluster = cluster.without_balancer().start();
        let relay = settings(Self::builder(&cluster)).start();
        Self { relay, cluster }
    }

    fn builder(cluster: &Cluster) -> RelayBuilder {
        let relay = cluster.relay_builder(1).setting("control_port", cluster.address().port());
        // The nodes trust this address for PROXY headers.
        relay.setting("source_address", "127.0.0.1")
    }

    /// The node of a new session, which stays.
    fn session(&self) -> (usize, Dialogue) {
        let mut session = self.cluster.login_from(&self.cluster.client(1));
        let port = session.epsv();
        (self.cluster.node_of(port), session)
    }
}

/// The status of `/readyz`.
fn readiness(relay: &Relay) -> u16 {
    http::get(relay.admin, "/readyz").expect("the admin address answers").status
}

#[test]
fn sessions_are_spread_and_keep_their_address_and_files_go_to_the_owner_of_the_port() {
    let relayed = Relayed::start(Cluster::builder(), |relay| relay);
    let content = bytes(1, 1 << 20);
    let mut sessions: Vec<_> = (0..6).map(|_| relayed.session()).collect();
    let mut nodes: Vec<_> = sessions.iter().map(|(node, _)| *node).collect();
    nodes.sort_unstable();
    assert_eq!(nodes, [0, 0, 1, 1, 2, 2]);
    for (number, (_, session)) in sessions.iter_mut().enumerate() {
        session.store(&format!("file{number}"), &content);
        assert!(session.retrieve(&format!("file{number}")) == content);
        let listing = session.receive("MLSD");
        assert!(String::from_utf8(listing).unwrap().contains(&format!("file{number}\r\n")));
        assert_eq!(session.pasv().ip(), relayed.cluster.address().ip());
    }
    let answer = relayed.cluster.authd().administer("GET", "/v1/sessions", None).json();
    let of_session = |session: &serde_json::Value| session["address"].as_str().unwrap().to_owned();
    let mut addresses: Vec<_> = answer.as_array().unwrap().iter().map(of_session).collect();
    addresses.dedup();
    assert_eq!(addresses, [relayed.cluster.client_address(1).to_string()]);
    assert_eq!(relayed.relay.metric("ftp_relay_control_connections"), Some(6.0));
    assert_eq!(relayed.relay.metric("ftp_relay_control_total{to=\"ftp1\"}"), Some(2.0));
    // Three transfers of each session, and none was carried further by a node.
    let carried = |node| relayed.relay.metric(&format!("ftp_relayed_total{{to=\"ftp{node}\"}}")).unwrap();
    assert_eq!((carried(1), carried(2), carried(3)), (6.0, 6.0, 6.0));
    for node in 0..3 {
        assert_eq!(relayed.cluster.node(node).metric("ftp_relayed"), None);
    }
    sessions.into_iter().for_each(|(_, session)| session.quit());
    relayed.relay.wait_for_metric("ftp_relay_control_connections", |open| open == 0.0);
}

#[test]
fn a_hung_node_gets_no_client_until_it_greets_again() {
    let relayed = Relayed::start(Cluster::builder(), |relay| relay.setting("greeting_timeout", "500ms"));
    relayed.cluster.node(0).daemon.signal(Signal::SIGSTOP);
    let begin = Instant::now();
    for _ in 0..6 {
        assert_ne!(relayed.session().0, 0);
    }
    // One connection waited for the greeting, and the others avoided the node.
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    let avoided = "ftp_relay_nodes_avoided_total{node=\"ftp1\",reason=\"silent\"}";
    assert_eq!(relayed.relay.metric(avoided), Some(1.0));
    relayed.cluster.node(0).daemon.signal(Signal::SIGCONT);
    eventually("the node to get a client", || (relayed.session().0 == 0).then_some(()));
    relayed.relay.daemon.wait_for_message("the node greets again", &[("node", "ftp1")]);
}

#[test]
fn implicit_ftps_avoids_a_hung_node_too() {
    let authority = Authority::new();
    let cluster = Cluster::builder().certificate(&authority.sign("localhost"));
    let relayed = Relayed::start(cluster, |relay| {
        relay.setting("greeting_timeout", "500ms").setting("implicit_tls_port", 2990)
    });
    relayed.cluster.node(1).daemon.signal(Signal::SIGSTOP);
    let client = authority.client();
    for number in 0..4 {
        let mut session = SecureDialogue::implicit(&client, relayed.cluster.implicit_address());
        session.login("demo", "secret");
        session.transmit(&format!("STOR file{number}"), b"content");
        assert_eq!(session.receive(&format!("RETR file{number}")), b"content");
    }
    relayed.cluster.node(1).daemon.signal(Signal::SIGCONT);
}

#[test]
fn without_a_node_that_accepts_a_client_gets_421() {
    let mut relayed = Relayed::start(Cluster::builder().nodes(2), |relay| relay);
    relayed.session().1.quit();
    for node in 0..2 {
        relayed.cluster.node_mut(node).daemon.kill();
    }
    let mut refused = Dialogue::dial(&Connector::new(), relayed.cluster.address());
    refused.expect(421);
    refused.expect_closed();
    assert_eq!(relayed.relay.metric("ftp_connections_refused_total{reason=\"no_node\"}"), Some(1.0));
}

#[test]
fn a_relay_waits_for_the_map_and_goes_on_without_redis() {
    let mut cluster = Cluster::builder().without_balancer().start();
    cluster.kill_redis();
    let relay = Relayed::builder(&cluster).spawn();
    relay.daemon.wait_for_message("waiting for the map of the passive ports", &[]);
    // A balancer in front of several relays learns so that this one does not serve yet.
    let refused = TcpStream::connect(cluster.address()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(readiness(&relay), 503);
    cluster.start_redis();
    relay.daemon.wait_for_message("ready", &[]);
    eventually("the relay to be ready", || (readiness(&relay) == 200).then_some(()));
    relay.wait_for_metric("ftp_relay_nodes{state=\"ready\"}", |nodes| nodes == 3.0);
    cluster.kill_redis();
    for number in 0..3 {
        let mut session = cluster.login();
        session.store(&format!("file{number}"), b"content");
        assert_eq!(session.retrieve(&format!("file{number}")), b"content");
        session.quit();
    }
    assert_eq!(readiness(&relay), 200);
}

#[test]
fn emptied_redis_refuses_no_client() {
    let relayed = Relayed::start(Cluster::builder(), |relay| relay.setting("map_refresh", "100ms"));
    relayed.cluster.redis().command("FLUSHALL").expect("Redis answers");
    // Until every node has entered itself again.
    let end = Instant::now() + Duration::from_secs(6);
    while Instant::now() < end {
        let (_, mut session) = relayed.session();
        session.store("file", b"content");
        session.quit();
    }
}

#[test]
fn sigterm_drains_and_sighup_changes_nothing() {
    let mut relayed = Relayed::start(Cluster::builder(), |relay| relay);
    relayed.relay.daemon.signal(Signal::SIGHUP);
    let (_, mut session) = relayed.session();
    session.command("TYPE I", 200);
    let mut data = session.begin("STOR file");
    data.write_all(&bytes(2, 1 << 20)).unwrap();
    relayed.relay.daemon.terminate();
    relayed.relay.daemon.wait_for_message("draining", &[]);
    eventually("the relay to stop listening", || TcpStream::connect(relayed.cluster.address()).err());
    assert_eq!(readiness(&relayed.relay), 503);
    data.write_all(&bytes(3, 1 << 20)).unwrap();
    data.shutdown(Shutdown::Write).unwrap();
    session.expect(226);
    assert!(relayed.relay.daemon.is_running());
    session.quit();
    assert!(relayed.relay.daemon.wait().success());
    let stored = std::fs::read(relayed.cluster.storage().join("demo/file")).unwrap();
    assert!(stored == [bytes(2, 1 << 20), bytes(3, 1 << 20)].concat());
}

#[test]
fn after_drain_timeout_and_at_a_second_signal_connections_are_reset() {
    for is_late in [true, false] {
        let limit = if is_late { "300ms" } else { "1h" };
        let mut relayed = Relayed::start(Cluster::builder(), |relay| relay.setting("drain_timeout", limit));
        let (node, mut session) = relayed.session();
        session.command("TYPE I", 200);
        let mut data = session.begin("STOR file");
        data.write_all(&bytes(4, 1 << 20)).unwrap();
        relayed.relay.daemon.terminate();
        relayed.relay.daemon.wait_for_message("draining", &[]);
        if !is_late {
            relayed.relay.daemon.terminate();
        }
        assert!(relayed.relay.daemon.wait().success());
        let error = loop {
            match session.try_reply(DEADLINE) {
                // The data connection is cut a moment before the control connection.
                Ok(Some(reply)) => assert_eq!(reply.code, 426),
                Ok(None) => panic!("an end of file instead of a reset"),
                Err(error) => break error,
            }
        };
        assert!(is_closed(&error), "{error}");
        // The node takes the upload for what it is.
        relayed.cluster.node(node).wait_for_metric(
            "ftp_transfers_total{direction=\"upload\",result=\"connection_lost\"}",
            |lost| lost == 1.0,
        );
        assert_eq!(
            relayed
                .cluster
                .node(node)
                .metric("ftp_transfers_total{direction=\"upload\",result=\"complete\"}"),
            None
        );
    }
}

#[test]
fn connections_beyond_a_limit_are_refused_and_counted() {
    let relayed = Relayed::start(Cluster::builder(), |relay| {
        relay.setting("max_control_connections", 1).setting("max_relayed", 1)
    });
    let (_, mut session) = relayed.session();
    let mut refused = Dialogue::dial(&Connector::new(), relayed.cluster.address());
    refused.expect(421);
    let data = session.begin("STOR file");
    let address = SocketAddr::new(relayed.cluster.address().ip(), data.peer_addr().unwrap().port());
    // The reset may arrive before connect() returns, and before or after the first read.
    let ended = Connector::new().connect(address).and_then(|mut further| {
        further.write_all(b"x")?;
        further.read(&mut [0])
    });
    let error = ended.unwrap_err();
    assert!(is_closed(&error), "{error}");
    drop(data);
    session.expect(226);
    for limit in ["max_relayed", "max_control_connections"] {
        let reached = format!("ftp_limit_reached_total{{limit=\"{limit}\"}}");
        assert_eq!(relayed.relay.metric(&reached), Some(1.0), "{limit}");
        assert_eq!(relayed.relay.metric(&format!("ftp_limit{{limit=\"{limit}\"}}")), Some(1.0));
    }
    assert_eq!(relayed.relay.metric("ftp_relay_refused_total{reason=\"limit\"}"), Some(1.0));
}

#[test]
fn a_balancer_in_front_names_the_client_and_checks_the_relay() {
    let cluster = Cluster::builder().without_balancer().start();
    let balancer = cluster.client_address(9);
    let relay = Relayed::builder(&cluster).setting("trusted_balancers", format!("{balancer}/32")).start();
    let connector = Connector::new().from(balancer).proxy_v2([192, 0, 2, 7].into(), [192, 0, 2, 1].into());
    let mut session = Dialogue::connect_with(&connector, cluster.address());
    session.login("demo", "secret");
    session.store("file", b"content");
    assert_eq!(session.retrieve("file"), b"content");
    let answer = cluster.authd().administer("GET", "/v1/sessions", None).json();
    assert_eq!(answer[0]["address"], "192.0.2.7");
    // A check of the balancer: PROXY UNKNOWN.
    let mut check = Connector::new().from(balancer).connect(cluster.address()).unwrap();
    check.write_all(b"PROXY UNKNOWN\r\n").unwrap();
    let mut greeting = String::new();
    check.read_to_string(&mut greeting).unwrap();
    assert!(greeting.starts_with("220 "), "{greeting}");
    // Without a header the connection is refused.
    let mut without = Connector::new().from(balancer).connect(cluster.address()).unwrap();
    without.write_all(b"USER demo\r\n").unwrap();
    let ended = without.read(&mut [0]);
    assert!(matches!(ended, Ok(0)) || ended.is_err_and(|error| is_closed(&error)));
    relay.wait_for_metric("ftp_connections_refused_total{reason=\"proxy_header\"}", |refused| refused == 1.0);
}

#[test]
fn a_silent_control_connection_ends_after_control_timeout() {
    let relayed = Relayed::start(Cluster::builder(), |relay| relay.setting("control_timeout", "1s"));
    let (_, mut session) = relayed.session();
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(2) {
        session.command("NOOP", 200);
        thread::sleep(Duration::from_millis(200));
    }
    let error = session.try_reply(DEADLINE).expect_err("a reset");
    assert!(is_closed(&error), "{error}");
}

#[test]
fn wrong_settings_and_ports_that_are_taken_end_the_relay_with_a_reason() {
    let cluster = Cluster::builder().nodes(1).without_balancer().start();
    let run = |builder: RelayBuilder| {
        let output = builder.command().output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.code(), said)
    };
    let builder = || Relayed::builder(&cluster);
    for (key, value, said) in [
        ("control_port", "20001", "it is one of the passive ports"),
        ("implicit_tls_port", "2121", "it is also the control_port"),
        ("passive_port_max", "5", "1 <= FROM <= TO"),
        ("max_relayed", "0", "max_relayed"),
        ("nft_map", "inet table; map", "not FAMILY TABLE MAP"),
        ("redis_url", "", "redis_url is not set"),
        ("source_address", "ftp.example", "not an IP address"),
    ] {
        let (code, output) = run(builder().setting(key, value));
        assert_eq!(code, Some(78), "{key} = {value}: {output}");
        assert!(output.contains(said), "{key} = {value}: {output}");
    }
    let (code, output) = run(builder().setting("check", true));
    assert_eq!(code, Some(2), "--check takes no value: {output}");
    let mut check = builder().command();
    let output = check.args(["--check", "--deep"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("ok      Redis at"), "{output:?}");

    let _taken = std::net::TcpListener::bind(cluster.address()).unwrap();
    let mut relay = builder().spawn();
    assert_eq!(relay.daemon.wait().code(), Some(1));
    let lines = relay.daemon.lines();
    let is_named = |line: &String| message_is(line, "cannot listen on") && line.contains("ss -ltnp");
    assert!(lines.iter().any(is_named), "{lines:#?}");
}
