//! docs/settings.md, docs/metrics.md and the manual pages, which the daemons print; the balancer of Compose.
//!
//! With the variable WRITE_PAGES the tests of `pages` write the documents instead of comparing them:
//! `./dev settings`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use cluster_tests::{binaries, nginx::fill};
use serde_json::Value;

const DAEMONS: [&str; 3] = ["ftpd", "ftp-relay", "authd"];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn printed(daemon: &str, arguments: &[&str]) -> String {
    let output = Command::new(binaries::daemon(daemon)).args(arguments).output().unwrap();
    assert!(output.status.success(), "{daemon} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The names in the first column of a daemon's tables.
fn names(table: &str) -> impl Iterator<Item = &str> {
    table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next())
}

mod pages {
    use super::*;

    fn compare_or_write(page: &str, expected: &str) {
        let path = workspace().join(page);
        if env::var_os("WRITE_PAGES").is_some() {
            fs::write(path, expected).unwrap();
            return;
        }
        let found = fs::read_to_string(path).unwrap_or_default();
        // The first line that differs is easier to read than two pages.
        let difference = found.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
        assert_eq!(difference, None, "{page} is stale: run ./dev settings");
        assert_eq!(found.trim_end(), expected.trim_end(), "{page} is stale: run ./dev settings");
    }

    #[test]
    fn the_page_of_settings_holds_the_tables_of_all_daemons() {
        let mut page =
            "# Settings\n\nWritten by `./dev settings`. [How to set them](../README.md#settings). \
                        The manual pages ftpd.toml(5), ftp-relay.toml(5) and authd.toml(5) list them, too.\n"
                .to_owned();
        for daemon in DAEMONS {
            let tables = printed(daemon, &["--print-settings"]);
            assert!(tables.lines().count() > 10, "{tables}");
            page += &format!("\n## `{daemon}`\n\n{tables}");
        }
        compare_or_write("docs/settings.md", &page);
    }

    /// nginx.conf with these control connections, from the templates.
    fn balancer(
        control: [&str; 2],
        listeners: u32,
        access_log: &str,
        pid: &str,
        load_module: &str,
    ) -> String {
        let stream = [
            ("access_log", access_log),
            ("control", control[0]),
            ("implicit_control", control[1]),
            ("data_servers", ""),
        ];
        let stream = fill("stream.conf", &stream);
        // 4,000 clients at once.
        let connections = 2 * 4000 + listeners + 64;
        let values = [
            ("load_module", load_module),
            ("pid", pid),
            ("error_log", "stderr"),
            ("worker_processes", "auto"),
            ("worker_connections", &connections.to_string()),
            ("worker_rlimit_nofile", &(2 * connections).to_string()),
            ("worker_shutdown_timeout", "5m"),
            ("stream", &stream),
        ];
        fill("nginx.conf", &values)
    }

    /// The names of the nodes and of the ports are those of deploy/compose/compose.yaml.
    #[test]
    fn the_balancer_of_compose_is_filled_in_from_the_templates() {
        let control = |port: &str| {
            let listen = fill("listen.conf", &[("address", "0.0.0.0"), ("ports", port)]);
            let values = [
                ("port", port),
                ("name", "ftpd"),
                ("control_listen", &listen),
                ("control_timeout", "4h"),
                ("resolver_options", " ipv6=off"),
            ];
            fill("control-by-name.conf", &values)
        };
        let control = [&control("2121")[..], &control("2990")];
        let text = balancer(control, 2, "/dev/stdout", "/tmp/nginx.pid", "");
        // The container fills in this one.
        assert_eq!(text.matches('@').count(), text.matches("@resolvers@").count() * 2, "{text}");
        let note =
            "# Written by `./dev settings` from nginx/. compose.yaml replaces the resolver's address.\n";
        compare_or_write("deploy/compose/nginx.conf", &format!("{note}{text}"));
    }

    /// The addresses are those of docs/deployment-linux.md.
    #[test]
    fn the_balancer_of_the_debian_example_is_filled_in_from_the_templates() {
        let control = |port: &str| {
            let listen = fill("listen.conf", &[("address", "0.0.0.0"), ("ports", port)]);
            let server = |node: &str| {
                fill("upstream-server.conf", &[("node", &format!("10.0.0.{node}")), ("port", port)])
            };
            let values = [
                ("port", port),
                ("control_listen", &listen),
                ("upstream_servers", &["11", "12", "13"].map(server).concat()),
                ("control_timeout", "4h"),
            ];
            fill("control.conf", &values)
        };
        let module = "load_module /usr/lib/nginx/modules/ngx_stream_module.so;";
        let control = [&control("21")[..], &control("990")];
        let text = balancer(control, 2, "/var/log/nginx/ftp.log", "/run/nginx.pid", module);
        assert!(!text.contains('@'), "{text}");
        let note =
            "# Written by `./dev settings` from nginx/ for 10.0.0.11 to 13. Needs libnginx-mod-stream.\n";
        compare_or_write("deploy/debian/examples/nginx.conf", &format!("{note}{text}"));
    }

    #[test]
    fn the_page_of_metrics_holds_the_tables_of_all_daemons_and_the_uses_of_each_metric() {
        let mut page = "\
            # Metrics\n\n\
            Written by `./dev settings`. `ftpd` and `ftp-relay` serve `/metrics` at `admin_listen`, `authd` \
            at `listen`, for Prometheus. The last column names the shipped alerts and dashboard panels that \
            use the metric: [rules.yaml](../deploy/monitoring/rules.yaml), \
            [dashboard.json](../deploy/monitoring/dashboard.json).\n\n\
            A histogram has the series `NAME_bucket`, `NAME_sum` and `NAME_count`. A counter or histogram \
            appears with the first event that it counts.\n"
            .to_owned();
        let uses = Uses::read();
        for daemon in DAEMONS {
            page += &format!("\n## `{daemon}`\n\n");
            let table = printed(daemon, &["--print-metrics"]);
            assert!(names(&table).count() > 10, "{table}");
            for line in table.lines() {
                let last = match names(line).next() {
                    Some(name) => uses.of(name),
                    None if line.starts_with("| ---") => "---".to_owned(),
                    None => "shipped alerts and dashboard".to_owned(),
                };
                page += &format!("{line} {last} |\n");
            }
        }
        compare_or_write("docs/metrics.md", &page);
    }
}

/// The queries of the alert rules and of the dashboard, each with a name.
struct Uses(Vec<(String, String)>);

impl Uses {
    fn read() -> Self {
        let read = |file| fs::read_to_string(workspace().join("deploy/monitoring").join(file)).unwrap();
        let rules = read("rules.yaml");
        let alerts = rules.split("- alert: ").skip(1).map(|rule| {
            let (name, rest) = rule.split_once('\n').expect("a rule has lines");
            (format!("alert “{name}”"), rest.to_owned())
        });
        let dashboard: Value = serde_json::from_str(&read("dashboard.json")).unwrap();
        let panels = dashboard["panels"].as_array().unwrap().iter().map(|panel| {
            (format!("panel “{}”", panel["title"].as_str().unwrap()), panel["targets"].to_string())
        });
        let uses: Vec<_> = alerts.chain(panels).collect();
        assert!(uses.len() > 30, "{uses:?}");
        Self(uses)
    }

    fn of(&self, metric: &str) -> String {
        let is_in = |query: &str| {
            let words = query.split(|c: char| c != '_' && !c.is_ascii_alphanumeric());
            let suffixes = ["", "_bucket", "_sum", "_count"];
            words
                .into_iter()
                .any(|word| suffixes.iter().any(|suffix| word.strip_suffix(suffix) == Some(metric)))
        };
        let uses: Vec<_> = self.0.iter().filter(|(_, query)| is_in(query)).map(|(name, _)| &**name).collect();
        if uses.is_empty() { "not used".to_owned() } else { uses.join(", ") }
    }
}

#[test]
fn every_metric_of_the_alerts_and_the_dashboard_exists() {
    let tables: Vec<String> = DAEMONS.iter().map(|daemon| printed(daemon, &["--print-metrics"])).collect();
    let known: Vec<&str> = tables.iter().flat_map(|table| names(table)).collect();
    for (name, query) in Uses::read().0 {
        let words = query.split(|c: char| c != '_' && !c.is_ascii_alphanumeric());
        for word in words.filter(|word| word.starts_with("ftp_") || word.starts_with("authd_")) {
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| word.strip_suffix(suffix));
            assert!(
                known.contains(&word) || base.is_some_and(|base| known.contains(&base)),
                "{name}: {word}"
            );
        }
    }
}

const PAGES: [(&str, &str, &str); 10] = [
    ("ftpd", "ftpd", "8"),
    ("ftpd", "ftpd.toml", "5"),
    ("ftp-relay", "ftp-relay", "8"),
    ("ftp-relay", "ftp-relay.toml", "5"),
    ("authd", "authd", "8"),
    ("authd", "authd.toml", "5"),
    ("authd", "authd-hash-password", "1"),
    ("authd", "authd-health", "1"),
    ("ftpd", "ftpd-health", "1"),
    ("ftp-relay", "ftp-relay-health", "1"),
];

#[test]
fn manual_pages_have_their_sections_and_render_without_warnings() {
    let directory = tempfile::tempdir().unwrap();
    for (daemon, name, section) in PAGES {
        let page = printed(daemon, &["--print-manual", name]);
        let mut sections = vec!["NAME", "DESCRIPTION", "EXAMPLES", "\"SEE ALSO\""];
        match section {
            "8" => {
                sections.extend(["SYNOPSIS", "OPTIONS", "FILES", "ENVIRONMENT", "SIGNALS", "\"EXIT STATUS\""])
            }
            "5" => sections.extend(["\"ESSENTIAL SETTINGS\"", "\"LOGGING SETTINGS\"", "FILES"]),
            _ => sections.extend(["SYNOPSIS", "\"EXIT STATUS\""]),
        }
        for wanted in sections {
            assert!(page.contains(&format!("\n.SH {wanted}\n")), "{name}({section}) has no section {wanted}");
        }
        let file = directory.path().join(format!("{name}.{section}"));
        fs::write(&file, &page).unwrap();
        // A machine without groff checks the sections alone.
        let Ok(output) =
            Command::new("groff").args(["-man", "-Tutf8", "-ww", "-K", "utf8"]).arg(&file).output()
        else {
            continue;
        };
        let warnings = String::from_utf8_lossy(&output.stderr);
        let warnings: Vec<_> = warnings.lines().filter(|line| line.contains(name)).collect();
        assert!(output.status.success() && warnings.is_empty(), "{name}: {warnings:?}");
    }
}

#[test]
fn every_setting_is_in_the_manual_page_of_its_file_and_in_the_help() {
    for daemon in DAEMONS {
        let page = printed(daemon, &["--print-manual", &format!("{daemon}.toml")]);
        let (short, long) = (printed(daemon, &["-h"]), printed(daemon, &["--help"]));
        let tables = printed(daemon, &["--print-settings"]);
        for name in names(&tables) {
            assert!(page.contains(&format!("\\fB{name}\\fR = ")), "{name} is not in {daemon}.toml(5)");
            assert!(long.contains(&format!("--{} ", name.replace('_', "-"))), "{name}");
        }
        for group in tables.lines().filter_map(|line| line.strip_prefix("### ")) {
            assert!(long.contains(&format!("\n{group}:\n")), "{group} is not a heading of {daemon} --help");
        }
        assert!(short.lines().count() < 60, "{daemon} -h has {} lines", short.lines().count());
    }
}
