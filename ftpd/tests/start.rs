//! Start of a node: settings from flags, variables and files, and errors that prevent the start.

use std::{
    fs,
    process::{Command, Output},
};

use cluster_tests::{binaries, dialogue::Dialogue, node::Node, proxy::Connector};
use common::settings::Setting;
use ftpd::settings::SCHEMA;

/// Runs `ftpd` until it exits by itself.
fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(binaries::daemon("ftpd"));
    command.env_clear().envs(environment.iter().copied()).args(arguments);
    command.output().unwrap()
}

/// Checks that `ftpd` exits with code 78 and a message that contains all `expected` texts.
fn refused_at_start(arguments: &[&str], environment: &[(&str, &str)], expected: &[&str]) {
    let output = run(arguments, environment);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{arguments:?} {environment:?}: {text}");
    for part in expected {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

#[test]
fn zero_is_accepted_by_every_setting_whose_help_says_that_zero_is_no_limit() {
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
