//! The node's life cycle: settings, start, readiness, limits, drain and end.

use std::{
    fs,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::Path,
    process::{Command, Output},
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
use common::settings::Setting;
use ftpd::settings::SCHEMA;
use nix::sys::signal::Signal;

/// Runs `ftpd` until it exits by itself.
fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(binaries::daemon("ftpd"));
    command.env_clear().envs(environment.iter().copied()).args(arguments);
    command.output().unwrap()
}

fn refused_at_start(arguments: &[&str], environment: &[(&str, &str)], expected: &[&str]) {
    let output = run(arguments, environment);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{arguments:?} {environment:?}: {text}");
    for part in expected {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

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
fn settings_that_document_it_accept_zero_for_no_limit() {
    let says_so = |setting: &&Setting| {
        ["0: no", "0 is no", "0s: no"]
            .iter()
            .any(|words| (setting.form.expects.to_owned() + setting.help).contains(words))
    };
    let settings: Vec<&Setting> = SCHEMA.settings().filter(says_so).collect();
    assert!(settings.len() >= 4, "partial_lifetime, session_max_age, minimum_rate and failure_log_limit");
    for setting in settings {
        let zero = if setting.form.expects.starts_with("duration") { "0s" } else { "0" };
        let flag = format!("--{}={zero}", setting.key.replace('_', "-"));
        let output = run(&["--standalone", &flag, "--check"], &[]);
        assert!(output.status.success(), "{flag}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_wrong_setting_prevents_the_start_and_is_reported_with_its_value() {
    let standalone = |setting: &'static str| ["--standalone", setting, "--check"];
    for (setting, expected) in [
        ("--port=70000", &["port", "70000"][..]),
        ("--port=ftp", &["port", "ftp"]),
        ("--passive-port-min=50200", &["passive_port_m", "50200"]),
        ("--idle-timeout=0s", &["idle_timeout", "0s"]),
        ("--stall-timeout=soon", &["stall_timeout", "soon"]),
        ("--idle-timeout=300", &["idle_timeout", "300"]),
        ("--listen=localhost", &["listen", "localhost"]),
        ("--listen=0.0.0.0", &["listen", "0.0.0.0", "loopback"]),
        ("--listen=", &["listen"]),
        ("--external-address=example.org", &["external_address", "example.org"]),
        ("--trusted-balancers=10.0.0.0/99", &["trusted_balancers", "10.0.0.0/99"]),
        ("--internal-networks=all", &["internal_networks", "all"]),
        ("--behind-proxy=maybe", &["behind_proxy", "maybe"]),
        ("--file-mode=0888", &["file_mode", "0888"]),
        ("--directory-mode=4755", &["directory_mode", "4755"]),
        ("--max-sessions=0", &["max_sessions", "0"]),
        ("--max-transfers=-1", &["max_transfers", "-1"]),
        ("--log-format=xml", &["log_format", "xml"]),
        ("--admin-listen=9121", &["admin_listen", "9121"]),
        ("--node-name=a/b", &["node_name", "a/b"]),
        ("--cluster-nodes=a,b", &["cluster_nodes"]),
        ("--authd-urls=http://127.0.0.1:1", &["authd_urls", "http://127.0.0.1:1"]),
        ("--redis-url=mysql://x", &["redis_url", "mysql://x"]),
    ] {
        refused_at_start(&standalone(setting), &[], expected);
        // The message names the remedy.
        refused_at_start(&standalone(setting), &[], &["--check", "--help"]);
    }
    refused_at_start(&["--check"], &[], &["authd_urls"]);
    refused_at_start(&["--authd-urls=127.0.0.1:5160"], &[], &["authd_urls", "127.0.0.1:5160"]);
    refused_at_start(&["--authd-urls=https://127.0.0.1:5160"], &[], &["authd_urls", "without TLS"]);
    refused_at_start(&["--authd-urls=http://127.0.0.1:1"], &[], &["redis_url"]);
    // The message does not contain the password.
    for (arguments, expected) in [
        (&["--standalone", "--user=anna:", "--user=very-secret"][..], "user"),
        (&["--authd-urls=https://a,http://anna:very-secret@127.0.0.1:5160"], "authd_urls"),
    ] {
        let output = run(arguments, &[]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.code() == Some(78) && text.contains(expected) && !text.contains("very-secret"),
            "{text}"
        );
    }
}

#[test]
fn unknown_settings_are_errors_in_flags_variables_and_files() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let path = file("unknown.toml", "standalone = true\nidle_timeuot = \"5m\"\n");
    refused_at_start(&["--config", &path], &[], &["idle_timeuot", "idle_timeout", &path]);
    let path = file("type.toml", "standalone = true\nport = [21]\n");
    refused_at_start(&["--config", &path], &[], &["port", &path]);
    let path = file("broken.toml", "standalone = \n");
    refused_at_start(&["--config", &path], &[], &[&path]);
    refused_at_start(&["--config", "/nonexistent/ftpd.toml"], &[], &["/nonexistent/ftpd.toml"]);
    refused_at_start(
        &["--standalone"],
        &[("FTPD_IDLE_TIMEUOT", "5m")],
        &["FTPD_IDLE_TIMEUOT", "idle_timeout"],
    );
    refused_at_start(
        &["--standalone"],
        &[("FTPD_IDLE_TIMEOUT", "x")],
        &["idle_timeout", "FTPD_IDLE_TIMEOUT"],
    );
    refused_at_start(&["--standalone"], &[("FtpPasvMinPort", "x")], &["passive_port_min", "FtpPasvMinPort"]);
    let output = run(&["--standalone", "--idle-timeuot=5m"], &[]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn flags_override_variables_and_variables_override_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ftpd.toml");
    fs::write(&path, "standalone = true\nuser = [\"anna:secret\"]\nport = 1\nidle_timeout = \"x\"\n")
        .unwrap();
    let path = path.to_str().unwrap();
    refused_at_start(&["--check", "--config", path], &[], &["idle_timeout", path]);
    let right = run(&["--check"], &[("FTPD_CONFIG", path), ("FTPD_IDLE_TIMEOUT", "1m")]);
    assert_eq!(right.status.code(), Some(0), "{right:?}");
    let flag = ["--check", "--config", path, "--idle-timeout=1m"];
    let right = run(&flag, &[("FTPD_IDLE_TIMEOUT", "y")]);
    assert_eq!(right.status.code(), Some(0), "{right:?}");
    let table = run(&["--print-settings"], &[]);
    assert!(String::from_utf8(table.stdout).unwrap().contains("| `idle_timeout` |"));
}

#[test]
fn environment_variables_of_the_reference_system_work() {
    let builder = Node::standalone();
    let ports = builder.loopback().ports();
    let reached = builder.loopback().address(7);
    let node = builder
        .without("port")
        .without("passive_port_min")
        .without("passive_port_max")
        .variable("port", ports.start())
        .variable("FtpPasvMinPort", ports.start() + 5)
        .variable("FtpPasvMaxPort", ports.start() + 5)
        .variable("FtpExternalIP", "198.51.100.1")
        .variable("FtpBehindProxy", "true")
        .start();
    let connector = Connector::new().proxy_v1("192.0.2.7".parse().unwrap(), reached);
    let mut session = Dialogue::connect_with(&connector, node.address);
    session.login("demo", "x");
    assert_eq!(session.pasv(), format!("198.51.100.1:{}", ports.start() + 5).parse().unwrap());
    assert!(session.receive("NLST").is_empty());
}

#[test]
fn a_busy_port_and_an_unusable_root_are_reported() {
    let node = Node::standalone().start();
    let mut second = node.builder().spawn();
    assert_eq!(second.daemon.wait().code(), Some(1));
    let address = node.address.to_string();
    second.daemon.wait_for_line(|line| {
        line.contains("ERROR") && line.contains(&address) && line.contains("Address already in use")
    });
    node.login("demo", "x");

    let mut passive = node
        .builder()
        .setting("port", node.address.port() - 1)
        .setting("admin_listen", node.loopback().socket(1, 9122))
        .spawn();
    assert_eq!(passive.daemon.wait().code(), Some(1));
    let port = format!("the passive port {}:{}", node.address.ip(), node.address.port() + 1);
    passive.daemon.wait_for_line(|line| line.contains(&port) && line.contains("reserved_ports"));

    let no_root = Node::standalone();
    fs::remove_dir(no_root.root()).unwrap();
    fs::write(no_root.root(), "a file").unwrap();
    let root = no_root.root().display().to_string();
    let mut no_root = no_root.spawn();
    assert_eq!(no_root.daemon.wait().code(), Some(1));
    no_root.daemon.wait_for_line(|line| line.contains("ERROR") && line.contains(&root));
}

/// The command of the README in a fresh clone, where ./data does not exist yet.
#[test]
fn a_standalone_node_creates_a_missing_root() {
    let builder = Node::standalone();
    fs::remove_dir(builder.root()).unwrap();
    let node = builder.start();
    node.daemon.wait_for_line(|line| {
        line.contains("created the missing storage root") && line.contains(&node.root().display().to_string())
    });
    node.login("demo", "x").store("file", b"content");
    assert_eq!(fs::read(node.root().join("file")).unwrap(), b"content");
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
