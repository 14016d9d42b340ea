//! The node's life cycle: readiness, admin address, session limits, transfer log, drain and end.

use std::{
    fs,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use cluster_tests::{
    DEADLINE, binaries,
    content::{bytes, sha256},
    dialogue::{Dialogue, read_what_comes},
    eventually, http,
    node::{Node, NodeBuilder},
    process::Daemon,
    proxy::Connector,
};
use nix::sys::signal::Signal;

fn status(address: SocketAddr, path: &str) -> u16 {
    http::get(address, path).unwrap().status
}

/// Starts a download and reads the first part of the file.
fn begin_download(session: &mut Dialogue) -> (TcpStream, Vec<u8>) {
    session.command("TYPE I", 200);
    let mut data = session.begin("RETR large");
    let mut start = vec![0; 100_000];
    data.read_exact(&mut start).unwrap();
    (data, start)
}

fn with_large_file(builder: NodeBuilder) -> (Node, Vec<u8>) {
    let content = bytes(1, 30 << 20);
    fs::write(builder.root().join("large"), &content).unwrap();
    (builder.start(), content)
}

/// A session with socket buffers that are too small for its transfers.
fn slow_session(node: &Node) -> Dialogue {
    let mut session = Dialogue::connect_with(&Connector::new().buffers(65536, 65536), node.address);
    session.login("demo", "x");
    session
}

#[test]
fn sigterm_lets_transfers_finish_and_ends_idle_sessions() {
    let (mut node, content) = with_large_file(Node::standalone());
    let mut downloads = slow_session(&node);
    let mut uploads = node.login("demo", "x");
    uploads.command("TYPE I", 200);
    let mut idle = node.login("demo", "x");
    let mut stranger = node.connect();
    let (mut data, mut received) = begin_download(&mut downloads);
    let mut up = uploads.begin("STOR file");
    up.write_all(&content[..1000]).unwrap();
    assert_eq!(status(node.admin, "/readyz"), 200);

    node.daemon.terminate();
    for session in [&mut idle, &mut stranger] {
        session.expect(421);
        assert_eq!(session.expect_closed(), []);
    }
    assert_eq!(status(node.admin, "/readyz"), 503);
    assert_eq!(status(node.admin, "/healthz"), 200);
    assert_eq!(node.metric("ftp_draining"), Some(1.0));
    // A balancer must see at once that this node refuses connections, so that it uses another node.
    for _ in 0..3 {
        assert!(TcpStream::connect_timeout(&node.address, DEADLINE).is_err());
    }

    up.write_all(&content[1000..]).unwrap();
    up.shutdown(Shutdown::Write).unwrap();
    uploads.expect(226);
    uploads.expect(421);
    assert_eq!(uploads.expect_closed(), []);
    data.read_to_end(&mut received).unwrap();
    downloads.expect(226);
    downloads.expect(421);
    assert_eq!(sha256(received), sha256(&content));
    assert_eq!(sha256(fs::read(node.root().join("file")).unwrap()), sha256(&content));
    assert_eq!(node.daemon.wait().code(), Some(0));
}

#[test]
fn a_node_without_sessions_exits_at_once() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut node = Node::standalone().start();
        let asked = Instant::now();
        node.daemon.signal(signal);
        assert_eq!(node.daemon.wait().code(), Some(0));
        assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
        node.daemon.wait_for_message("stopped", &[]);
    }
}

#[test]
fn a_second_sigterm_ends_the_remaining_transfers() {
    let (mut node, _) = with_large_file(Node::standalone());
    let mut session = slow_session(&node);
    let (mut data, _) = begin_download(&mut session);
    node.daemon.terminate();
    node.daemon.wait_for_message("draining", &[]);
    node.daemon.terminate();
    session.expect(421);
    assert!(read_what_comes(&mut data).len() < 30 << 20);
    assert_eq!(node.daemon.wait().code(), Some(0));
}

#[test]
fn the_drain_timeout_ends_the_remaining_transfers() {
    let (mut node, _) = with_large_file(Node::standalone().setting("drain_timeout", "500ms"));
    let mut session = slow_session(&node);
    let (_data, _) = begin_download(&mut session);
    let mut upload = node.login("demo", "x");
    upload.command("TYPE I", 200);
    let mut up = upload.begin("STOR part");
    up.write_all(b"12345").unwrap();
    eventually("the part to be stored", || {
        (fs::metadata(node.root().join("part")).ok()?.len() == 5).then_some(())
    });
    node.daemon.terminate();
    session.expect(421);
    upload.expect(421);
    assert_eq!(node.daemon.wait().code(), Some(0));
    assert_eq!(fs::read(node.root().join("part")).unwrap(), b"12345");
}

#[test]
fn after_a_crash_confirmed_files_are_intact_and_the_port_is_free() {
    let mut node = Node::standalone().start();
    let mut session = node.login("demo", "x");
    session.store("file", b"content");
    let _data = session.begin("STOR other");
    node.daemon.kill();
    let next = node.builder().start();
    assert_eq!(next.login("demo", "x").retrieve("file"), b"content");
}

#[test]
fn the_admin_address_serves_health_readiness_and_metrics() {
    let node = Node::standalone().start();
    let mut session = node.login("demo", "x");
    session.store("file", b"content");
    assert_eq!(session.retrieve("file"), b"content");
    for (path, code) in
        [("/healthz", 200), ("/readyz", 200), ("/metrics", 200), ("/", 404), ("/metrics/x", 404)]
    {
        assert_eq!(status(node.admin, path), code, "{path}");
    }
    let text = http::get(node.admin, "/metrics").unwrap().body;
    for metric in [
        "ftp_connections 1",
        "ftp_connections_total 1",
        "ftp_sessions 1",
        "ftp_logins_total{result=\"accepted\"} 1",
        "ftp_transfers 0",
        "ftp_transfers_total{direction=\"upload\",result=\"complete\"} 1",
        "ftp_transfer_bytes_total{direction=\"upload\"} 7",
        "ftp_transfer_bytes_total{direction=\"download\"} 7",
        "ftp_passive_ports_reserved 0",
        "ftp_limit{limit=\"passive_ports\"} 300",
    ] {
        assert!(text.lines().any(|line| line == metric), "{metric} is not in:\n{text}");
    }
    for line in text.lines().filter(|line| line.starts_with("# HELP ")) {
        assert!(line.split(' ').count() > 4, "no help: {line}");
    }
}

#[test]
fn every_max_setting_has_its_value_in_ftp_limit() {
    let node = Node::standalone().setting("max_transfers_per_user", "7").start();
    let settings = Command::new(binaries::daemon("ftpd")).arg("--print-settings").output().unwrap();
    let settings = String::from_utf8(settings.stdout).unwrap();
    let keys = settings.lines().filter_map(|row| row.strip_prefix("| `")?.split('`').next());
    let limits: Vec<_> =
        keys.filter(|key| key.starts_with("max_") || *key == "admin_max_connections").collect();
    assert!(limits.len() > 10, "{limits:?}");
    for limit in limits {
        assert!(node.metric(&format!("ftp_limit{{limit=\"{limit}\"}}")).is_some(), "{limit} has no metric");
    }
    assert_eq!(node.metric("ftp_limit{limit=\"max_transfers_per_user\"}"), Some(7.0));
    assert_eq!(node.metric("ftp_limit{limit=\"max_listing_memory\"}"), Some(67_108_864.0));
}

#[test]
fn incomplete_requests_at_the_admin_address_are_closed_and_do_not_delay_others() {
    let node = Node::standalone().user("u", "p").setting("admin_header_timeout", "2s").start();
    let half = |_| {
        let mut stream = TcpStream::connect(node.admin).unwrap();
        // The node may have closed the connection already.
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nx: ");
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    };
    let halves: Vec<_> = (0..300).map(half).collect();
    assert_eq!(status(node.admin, "/healthz"), 200);
    for mut stream in halves {
        let ended = stream.read_to_end(&mut Vec::new());
        assert!(ended.map_or_else(|error| error.kind() == io::ErrorKind::ConnectionReset, |_| true));
    }
    assert!(node.metric("ftp_limit_reached_total{limit=\"admin_max_connections\"}").unwrap() > 200.0);
}

#[test]
fn the_admin_address_can_be_switched_off() {
    let root = tempfile::tempdir().unwrap();
    let loopback = cluster_tests::loopback::Loopback::reserve();
    let ports = loopback.ports();
    let mut command = Command::new(binaries::daemon("ftpd"));
    command.env_clear().args(["--standalone", "--admin-listen="]);
    command.arg(format!("--root={}", root.path().display()));
    command.arg(format!("--listen={}", loopback.address(1))).arg(format!("--port={}", ports.start()));
    command
        .arg(format!("--passive-port-min={}", ports.end()))
        .arg(format!("--passive-port-max={}", ports.end()));
    let daemon = Daemon::start("ftpd", command);
    daemon.wait_for_message("ready", &[]);
    Dialogue::connect((loopback.address(1), *ports.start()).into()).login("demo", "x");
    assert!(!daemon.lines().iter().any(|line| line.contains("part=admin")));
    daemon.stop();
}

#[test]
fn the_service_manager_is_notified_of_ready_and_stopping() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let notified = |state: &str| {
        let mut message = [0; 4096];
        let length = socket.recv(&mut message).unwrap();
        let message = String::from_utf8_lossy(&message[..length]);
        assert!(message.lines().any(|line| line == state), "{message}");
    };
    let mut node = Node::standalone().variable("NOTIFY_SOCKET", path.display()).spawn();
    notified("READY=1");
    // From here on the node serves clients.
    let session = node.login("demo", "x");
    node.daemon.terminate();
    notified("STOPPING=1");
    drop(session);
    assert_eq!(node.daemon.wait().code(), Some(0));
}

#[test]
fn every_file_transfer_has_a_line_in_the_transfer_log() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("xferlog");
    let (node, _) = with_large_file(Node::standalone().setting("transfer_log", path.display()));
    let lines = |path: &Path, count: usize| {
        eventually("lines of the transfer log", || {
            let text = fs::read_to_string(path).ok()?;
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            (lines.len() >= count && text.ends_with('\n')).then_some(lines)
        })
    };
    let mut session = node.login("demo", "x");
    session.store("my file", b"content");
    session.receive("LIST");
    session.command("TYPE A", 200);
    session.receive("RETR my file");
    let mut other = slow_session(&node);
    let (data, _) = begin_download(&mut other);
    drop(data);
    other.expect(426);
    let written = lines(&path, 3);
    let ends = [
        " 127.0.0.1 7 /my_file b _ i r demo ftp 0 * c",
        " 127.0.0.1 7 /my_file a _ o r demo ftp 0 * c",
        " /large b _ o r demo ftp 0 * i",
    ];
    assert_eq!(written.len(), 3, "{written:?}");
    for (line, end) in written.iter().zip(ends) {
        assert!(line.ends_with(end), "{line}");
        assert_eq!(line.split_whitespace().count(), 18, "{line}");
    }

    let rotated = directory.path().join("xferlog.1");
    fs::rename(&path, &rotated).unwrap();
    node.daemon.signal(Signal::SIGHUP);
    eventually("the log to be opened again", || path.exists().then_some(()));
    session.store("second", b"content");
    assert!(lines(&path, 1)[0].contains(" /second "));
    assert_eq!(lines(&rotated, 3).len(), 3);
    session.command("NOOP", 200);
}

#[test]
fn more_sessions_than_the_limits_allow_get_421() {
    let node = Node::standalone().setting("max_sessions", 3).setting("max_sessions_per_address", 2).start();
    let first = node.login("demo", "x");
    let _second = node.connect();
    let refused = |connector: &Connector| {
        let mut session = Dialogue::dial(connector, node.address);
        session.expect(421);
        assert_eq!(session.expect_closed(), []);
    };
    let here = Connector::new();
    let elsewhere = Connector::new().from(node.loopback().address(5));
    refused(&here);
    let _third = Dialogue::connect_with(&elsewhere, node.address);
    refused(&elsewhere);
    for limit in ["max_sessions", "max_sessions_per_address"] {
        assert_eq!(
            node.metric(&format!("ftp_limit_reached_total{{limit=\"{limit}\"}}")),
            Some(1.0),
            "{limit}"
        );
    }
    first.quit();
    eventually("another session to be accepted", || {
        let mut session = Dialogue::dial(&here, node.address);
        (session.reply().code == 220).then_some(())
    });
}

#[test]
fn new_files_and_directories_have_the_configured_modes() {
    let node = Node::standalone().setting("file_mode", "0600").setting("directory_mode", "0700").start();
    let mut session = node.login("demo", "x");
    session.store("file", b"");
    session.command("MKD directory", 257);
    for (name, mode) in [("file", 0o600), ("directory", 0o700)] {
        let found = fs::metadata(node.root().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{name}");
    }
}

#[test]
fn ipv4_and_ipv6_are_served_if_the_host_has_both() {
    let root = tempfile::tempdir().unwrap();
    let loopback = cluster_tests::loopback::Loopback::reserve();
    let (port, passive) = (*loopback.ports().start(), *loopback.ports().end());
    let mut command = Command::new(binaries::daemon("ftpd"));
    // A node without users listens only on the loopback addresses of both families.
    command.env_clear().args(["--standalone", "--admin-listen="]).arg(format!("--port={port}"));
    command.arg(format!("--root={}", root.path().display()));
    command.arg(format!("--passive-port-min={passive}")).arg(format!("--passive-port-max={passive}"));
    let daemon = Daemon::start("ftpd", command);
    daemon.wait_for_message("ready", &[]);
    for address in ["127.0.0.1", "::1"] {
        let mut session = Dialogue::connect(SocketAddr::new(address.parse().unwrap(), port));
        session.login("demo", "x");
        session.store("file", address.as_bytes());
        assert_eq!(session.retrieve("file"), address.as_bytes());
    }
    daemon.stop();
}

#[test]
fn a_transfer_runs_with_batch_priority() {
    let (node, content) = with_large_file(Node::standalone());
    // proc_pid_stat(5): the scheduling policy is the 39th field after the name in parentheses.
    let batch = || {
        let threads = fs::read_dir(format!("/proc/{}/task", node.daemon.id())).unwrap();
        let is_batch = |stat: &String| {
            let (_, rest) = stat.split_once(") ").unwrap();
            rest.split(' ').nth(38) == Some(&libc::SCHED_BATCH.to_string())
        };
        // The thread may have ended.
        let stats = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("stat")).ok());
        stats.filter(is_batch).count()
    };
    let mut session = slow_session(&node);
    let (mut data, start) = begin_download(&mut session);
    assert_eq!(batch(), 1);
    let mut rest = Vec::new();
    data.read_to_end(&mut rest).unwrap();
    assert!([start, rest].concat() == content);
    session.expect(226);
    eventually("no thread with batch priority", || (batch() == 0).then_some(()));
}
