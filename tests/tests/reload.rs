//! SIGHUP to the daemons: the log level changes at once, and every setting that needs a restart is named.

use std::{fs, path::PathBuf, sync::Arc};

use cluster_tests::{
    authd::AuthdBuilder,
    loopback::Loopback,
    node::Node,
    process::{Daemon, field, message_is},
    redis::Redis,
    relay::Relay,
};
use nix::sys::signal::Signal;
use tempfile::TempDir;

/// The configuration file of a daemon.
struct ConfigFile {
    directory: TempDir,
}

impl ConfigFile {
    fn new(text: &str) -> Self {
        let file = Self { directory: tempfile::tempdir().expect("a temporary directory") };
        file.write(text);
        file
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("daemon.toml")
    }

    fn write(&self, text: &str) {
        fs::write(self.path(), text).expect("a temporary directory takes files");
    }

    /// Changes the file, and returns the line with this message that SIGHUP then causes.
    fn reload(&self, daemon: &Daemon, text: &str, message: &str) -> String {
        self.write(text);
        signal(daemon, message)
    }
}

/// The line with this message that SIGHUP causes.
fn signal(daemon: &Daemon, message: &str) -> String {
    let before = daemon.lines().len();
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_line_after(before, |line| message_is(line, message))
}

const READ: &str = "settings read again";
const RESTART: &str = "changed settings need a restart";
const INVALID: &str = "the settings are invalid; those from before remain in effect";

/// Reloads a daemon whose file is `log_level = "info"` and `before`, with `after` in place of `before`. `key`
/// is the setting of both.
fn check_reload(daemon: &Daemon, file: &ConfigFile, key: &str, before: &str, after: &str) {
    let text = |level: &str, setting: &str| format!("log_level = \"{level}\"\n{setting}\n");
    let applied = file.reload(daemon, &text("debug", before), READ);
    assert_eq!(field(&applied, "applied").as_deref(), Some("log_level"), "{applied}");

    let named = file.reload(daemon, &text("debug", after), RESTART);
    assert_eq!(field(&named, "settings").as_deref(), Some(key), "{named}");
    assert!(named.contains(" WARN "), "{named}");

    let unknown = file.reload(daemon, &text("info", "no_such_setting = 1"), INVALID);
    assert!(unknown.contains("no_such_setting") && unknown.contains("daemon.toml:2"), "{unknown}");

    // The reload before changed nothing: the level is still debug.
    let applied = file.reload(daemon, &text("info", before), READ);
    assert_eq!(field(&applied, "applied").as_deref(), Some("log_level"), "{applied}");
    let unchanged = signal(daemon, READ);
    assert_eq!(field(&unchanged, "applied").as_deref(), Some(""), "{unchanged}");
    assert_eq!(daemon.lines().iter().filter(|line| message_is(line, RESTART)).count(), 1);
}

#[test]
fn sighup_changes_the_log_level_of_a_node_and_names_settings_that_need_a_restart() {
    let file = ConfigFile::new("log_level = \"info\"\nmax_sessions = 20\n");
    let node = Node::standalone().without("log_level").variable("FTPD_CONFIG", file.path().display()).start();
    let is_command =
        |line: &str, verb| message_is(line, "command") && field(line, "verb").as_deref() == Some(verb);
    let mut session = node.login("demo", "x");
    session.command("NOOP", 200);
    file.reload(&node.daemon, "log_level = \"debug\"\nmax_sessions = 20\n", READ);
    session.command("SYST", 215);
    node.daemon.wait_for_line(|line| is_command(line, "SYST"));
    assert!(!node.daemon.lines().iter().any(|line| is_command(line, "NOOP")));

    file.reload(&node.daemon, "log_level = \"info\"\nmax_sessions = 20\n", READ);
    session.command("FEAT", 211);
    file.reload(&node.daemon, "log_level = \"debug\"\nmax_sessions = 20\n", READ);
    session.command("PWD", 257);
    node.daemon.wait_for_line(|line| is_command(line, "PWD"));
    assert!(!node.daemon.lines().iter().any(|line| is_command(line, "FEAT")));

    file.reload(&node.daemon, "log_level = \"info\"\nmax_sessions = 20\n", READ);
    check_reload(&node.daemon, &file, "max_sessions", "max_sessions = 20", "max_sessions = 30");
}

#[test]
fn sighup_changes_the_format_of_the_log() {
    let file = ConfigFile::new("");
    let node = Node::standalone().variable("FTPD_CONFIG", file.path().display()).start();
    file.write("log_format = \"json\"\n");
    signal(&node.daemon, READ);
    let before = node.daemon.lines().len();
    node.daemon.signal(Signal::SIGHUP);
    let line = node.daemon.wait_for_line_after(before, |line| line.contains(READ));
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["node"], node.name.as_str());
}

#[test]
fn sighup_names_a_secret_whose_file_has_changed() {
    let directory = tempfile::tempdir().unwrap();
    let users = directory.path().join("users");
    let write = |name: &str| {
        let hash = cluster_tests::authd::hash_password("x");
        fs::write(&users, format!("{name}:{hash}\n")).unwrap();
    };
    write("ann");
    let node = Node::standalone().setting("user_file", users.display()).start();
    signal(&node.daemon, READ);
    assert!(!node.daemon.lines().iter().any(|line| message_is(line, RESTART)));
    write("bob");
    let named = signal(&node.daemon, RESTART);
    assert_eq!(field(&named, "settings").as_deref(), Some("user_file"), "{named}");
}

#[test]
fn sighup_changes_the_log_level_of_authd_and_names_settings_that_need_a_restart() {
    let file = ConfigFile::new("log_level = \"info\"\nstop_timeout = \"10s\"\n");
    let loopback = Loopback::reserve();
    let authd = AuthdBuilder::new(loopback.socket(1, 5160))
        .without("log_level")
        .variable("AUTHD_CONFIG", file.path().display())
        .start();
    let (before, after) = ("stop_timeout = \"10s\"", "stop_timeout = \"11s\"");
    check_reload(&authd.daemon, &file, "stop_timeout", before, after);
}

#[test]
fn sighup_changes_the_log_level_of_a_relay_and_names_settings_that_need_a_restart() {
    let file = ConfigFile::new("log_level = \"info\"\ndrain_timeout = \"10s\"\n");
    let loopback = Arc::new(Loopback::reserve());
    let address = loopback.socket(2, 6379);
    let _redis = Redis::start(address);
    // Without a node the relay waits for the map, and reloads all the same.
    let relay = Relay::builder(&loopback, 1, address)
        .without("log_level")
        .variable("FTP_RELAY_CONFIG", file.path().display())
        .spawn();
    relay.daemon.wait_for_message("waiting for the map of the passive ports", &[]);
    let (before, after) = ("drain_timeout = \"10s\"", "drain_timeout = \"11s\"");
    check_reload(&relay.daemon, &file, "drain_timeout", before, after);
}
