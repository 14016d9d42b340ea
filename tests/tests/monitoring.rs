//! The files of deploy/monitoring: alert rules, their unit tests, and the metrics that the daemons really
//! serve, checked with Prometheus's own tool where it is installed.

// A skipped test says so.
#![allow(clippy::print_stderr)]

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use cluster_tests::{cluster::Cluster, dialogue::Dialogue, http, node::metric};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn monitoring() -> PathBuf {
    repository().join("deploy/monitoring")
}

/// Runs promtool with `input`. `None`: promtool is not installed.
fn promtool(arguments: &[&str], input: &str) -> Option<(bool, String)> {
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(monitoring());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            eprintln!("skipped: promtool cannot be started ({error}); Debian has it in `prometheus`");
            return None;
        }
    };
    // promtool reads its input before it writes, and the pipe is closed here.
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

#[test]
fn promtool_accepts_the_rules_and_each_alert_fires_as_its_unit_test_says() {
    for arguments in [["check", "rules", "rules.yaml"], ["test", "rules", "rules_test.yaml"]] {
        let Some((is_right, text)) = promtool(&arguments, "") else { return };
        assert!(is_right, "{arguments:?}: {text}");
    }
}

#[test]
fn every_alert_has_a_unit_test_a_remedy_and_an_existing_section_of_troubleshooting() {
    let rules = fs::read_to_string(monitoring().join("rules.yaml")).unwrap();
    let tests = fs::read_to_string(monitoring().join("rules_test.yaml")).unwrap();
    let page = fs::read_to_string(repository().join("docs/troubleshooting.md")).unwrap();
    let anchors: Vec<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix('#'))
        .map(|title| {
            let title = title.trim_start_matches('#').trim().to_lowercase();
            let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect();
    let mut count = 0;
    for rule in rules.split("- alert: ").skip(1) {
        let name = rule.lines().next().unwrap();
        let value = |key: &str| {
            let line = rule.lines().find_map(|line| line.trim().strip_prefix(key));
            line.unwrap_or_else(|| panic!("{name} has no {key}")).trim().trim_matches('"').to_owned()
        };
        assert!(tests.contains(&format!("alertname=\"{name}\"")), "{name} has no unit test");
        assert!(value("summary:").len() > 20 && value("description:").len() > 20, "{name}");
        let section = value("runbook_url:");
        let anchor = section.strip_prefix("docs/troubleshooting.md#").expect("a section of troubleshooting");
        assert!(anchors.iter().any(|known| known == anchor), "{name}: {section}");
        count += 1;
    }
    assert!(count > 20, "{count}");
}

#[test]
fn histograms_measure_commands_steps_of_logins_redis_and_requests_to_authd() {
    let cluster = Cluster::start();
    let mut client = Dialogue::connect(cluster.address());
    client.login("demo", "secret");
    client.command("MKD made", 257);
    client.store("file", b"content");
    client.command("MLST file", 250);
    client.command("NOOP", 200);
    let of_nodes = |name: &str| -> f64 {
        let nodes = (0..cluster.size()).map(|position| cluster.node(position).metric(name).unwrap_or(0.0));
        nodes.sum()
    };
    for (group, at_least) in [
        ("login", 1.0),
        ("change", 1.0),
        ("upload", 1.0),
        ("data_port", 1.0),
        ("listing", 1.0),
        ("other", 2.0),
    ] {
        let count = of_nodes(&format!("ftp_command_seconds_count{{group=\"{group}\"}}"));
        assert!(count >= at_least, "{group}: {count}");
    }
    for step in ["password", "registry", "home", "total"] {
        assert_eq!(of_nodes(&format!("ftp_login_seconds_count{{step=\"{step}\"}}")), 1.0, "{step}");
    }
    for call in ["command", "pipeline", "script"] {
        assert!(of_nodes(&format!("ftp_redis_seconds_count{{call=\"{call}\"}}")) > 0.0, "{call}");
    }
    let login = of_nodes("ftp_command_seconds_bucket{group=\"login\",le=\"+Inf\"}");
    assert_eq!(login, of_nodes("ftp_command_seconds_count{group=\"login\"}"));

    let authd = http::get(cluster.authd().address, "/metrics").unwrap().body;
    let of_authd = |name: &str| metric(&authd, name).unwrap_or(0.0);
    assert!(of_authd("authd_request_seconds_count{route=\"/v1/authenticate\"}") >= 1.0, "{authd}");
    assert!(of_authd("ftp_redis_seconds_count{call=\"command\"}") > 0.0, "{authd}");
    assert!(cluster.relay().metric("ftp_redis_seconds_count{call=\"pipeline\"}").unwrap_or(0.0) > 0.0);
}

#[test]
fn promtool_finds_no_fault_in_the_metrics_of_the_daemons() {
    let cluster = Cluster::start();
    let mut client = Dialogue::connect(cluster.address());
    client.login("demo", "secret");
    client.command("MKD made", 257);
    let addresses = [
        ("ftpd", cluster.node(0).admin),
        ("authd", cluster.authd().address),
        ("ftp-relay", cluster.relay().admin),
    ];
    for (daemon, address) in addresses {
        let metrics = http::get(address, "/metrics").unwrap().body;
        assert!(metrics.lines().count() > 5, "{daemon}: {metrics}");
        let Some((is_right, text)) = promtool(&["check", "metrics"], &metrics) else { return };
        assert!(is_right, "{daemon}: {text}\n{metrics}");
    }
}
