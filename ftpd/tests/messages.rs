//! Messages about wrong settings, and the output of `--check` and `--check --deep`.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Command, Output},
};

use cluster_tests::{
    binaries,
    loopback::Loopback,
    redis::Redis,
    stub_authd::{Answer, StubAuthd},
    tls::Authority,
};

fn ftpd(arguments: &[String]) -> Output {
    let mut command = Command::new(binaries::daemon("ftpd"));
    command.env_clear().args(arguments).output().unwrap()
}

/// Exit status and output.
fn check(arguments: &[String], deep: bool) -> (i32, String) {
    let mut arguments = arguments.to_vec();
    arguments.push("--check".to_owned());
    arguments.extend(deep.then(|| "--deep".to_owned()));
    let output = ftpd(&arguments);
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

fn assert_contains_all(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

#[test]
fn a_wrong_setting_is_reported_with_value_file_line_and_valid_values() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ftpd.toml");
    for (line, expected) in [
        (
            "passive_ports = \"1-2\"",
            &["unknown setting passive_ports", "did you mean passive_port_min or passive_port_max?"][..],
        ),
        ("port = \"abc\"", &["port = \"abc\"", "not a whole number", "expected port from 1 to 65535"]),
        ("port = 70000", &["port = \"70000\"", "too large", "expected port from 1 to 65535"]),
        ("port = 50010", &["port = \"50010\"", "passive ports, 50000-50099", "passive_port_min"]),
        ("port = [21]", &["port = \"<array>\"", "expected port from 1 to 65535"]),
        (
            "external_address = \"ftp.example.com\"",
            &["external_address = \"ftp.example.com\"", "names are not resolved", "203.0.113.10"],
        ),
        (
            "trusted_balancers = [\"lb1\"]",
            &["trusted_balancers", "\"lb1\"", "expected CIDR list (10.0.0.0/24"],
        ),
        (
            "idle_timeout = 300",
            &["idle_timeout = \"300\"", "time unit", "expected duration (500ms, 30s, 5m)"],
        ),
        ("standalone = \"maybe\"", &["standalone = \"maybe\"", "neither true nor false", "true or false"]),
        ("file_mode = \"0888\"", &["file_mode = \"0888\"", "octal mode from 0 to 0777"]),
        ("admin_listen = 9121", &["admin_listen = \"9121\"", "names are not resolved", "127.0.0.1:9121"]),
        (
            "authd_urls = [\"https://10.0.0.5:5160\"]\nstandalone = false",
            &["authd_urls = ", "https://10.0.0.5:5160", "stunnel", "expected http://HOST:PORT"],
        ),
        ("redis_url = \"mysql://ann:secret@db\"", &["redis_url = \"mysql://…@db\"", "HOST[:PORT]"]),
        ("greeting = ", &["not TOML"]),
    ] {
        // The third line is wrong.
        let standalone = if line.contains("standalone") { "" } else { "standalone = true" };
        fs::write(&path, format!("{standalone}\n# a comment\n{line}\n")).unwrap();
        let (status, text) = check(&[format!("--config={}", path.display())], false);
        assert_eq!(status, 78, "{line}: {text}");
        assert_contains_all(&text, expected);
        assert_contains_all(&text, &[&format!("{}:3", path.display()), "--check", "--help"]);
        assert!(!text.contains("secret"), "{text}");
    }
    let (status, text) = check(&[], false);
    assert_eq!(status, 78);
    assert_contains_all(
        &text,
        &["authd_urls is not set", "FTPD_AUTHD_URLS", "--authd-urls", "http://HOST:PORT"],
    );
}

#[test]
fn a_check_summarises_the_settings_and_says_that_it_tested_nothing() {
    let right = ["--standalone", "--root=/nowhere", "--node-name=ftp7", "--port=2121"].map(str::to_owned);
    let (status, text) = check(&right, false);
    assert_eq!(status, 0, "{text}");
    assert_contains_all(
        &text,
        &[
            "the settings are valid",
            "node ftp7",
            "port 2121",
            "passive ports 50000-50099",
            "/nowhere",
            "--deep",
        ],
    );
}

struct Parts {
    root: tempfile::TempDir,
    loopback: Loopback,
    authd: StubAuthd,
    token: std::path::PathBuf,
}

/// A storage, an authd that accepts one token, and a file with the token.
fn parts() -> Parts {
    let root = tempfile::tempdir().unwrap();
    let token = root.path().join("token");
    fs::write(&token, "right").unwrap();
    let authd = StubAuthd::start(|_| Answer::refusal("400 Bad Request", "invalid_request"));
    Parts { root, loopback: Loopback::reserve(), authd, token }
}

impl Parts {
    fn settings(&self, redis: &str, root: &Path) -> Vec<String> {
        vec![
            format!("--root={}", root.display()),
            format!("--authd-urls={}", self.authd.url()),
            format!("--authd-token-file={}", self.token.display()),
            format!("--redis-url={redis}"),
            "--create-homes".to_owned(),
        ]
    }
}

#[test]
fn a_deep_check_tests_storage_certificates_redis_and_authd_and_leaves_no_files() {
    let parts = parts();
    let authority = Authority::new();
    let files = authority.sign("localhost");
    let redis = Redis::start(parts.loopback.socket(1, 6379));
    let files_root = parts.root.path().join("files");
    fs::create_dir(&files_root).unwrap();
    let mut settings = parts.settings(&redis.address.to_string(), &files_root);
    settings.push(format!("--tls-certificates={}", files.chain.display()));
    settings.push(format!("--tls-keys={}", files.key.display()));
    let (status, text) = check(&settings, true);
    assert_eq!(status, 0, "{text}");
    let ok = |name: &str| format!("ok      {name}");
    let names = ["storage root", "a probe file", "certificates", "Redis at", "authd at"];
    assert_contains_all(&text, &names.map(ok).each_ref().map(String::as_str));
    assert_eq!(fs::read_dir(&files_root).unwrap().count(), 0);
}

#[test]
fn a_deep_check_names_each_failure_and_its_remedy() {
    let parts = parts();
    let nowhere = parts.root.path().join("nowhere");
    let redis = parts.loopback.socket(1, 6379);
    let mut settings = parts.settings(&redis.to_string(), &nowhere);
    settings.push("--tls-certificates=/nowhere.pem".to_owned());
    settings.push("--authd-timeout=2s".to_owned());
    settings.retain(|setting| !setting.starts_with("--authd-urls"));
    settings.push(format!("--authd-urls=http://{}", parts.loopback.socket(1, 5160)));
    // Without --deep the failure is not detected.
    assert_eq!(check(&settings, false).0, 0);
    let (status, text) = check(&settings, true);
    assert_eq!(status, 1, "{text}");
    assert_contains_all(&text, &["FAILED  storage root", "mkdir -p", "FAILED  certificates", "/nowhere.pem"]);
    assert_contains_all(&text, &["FAILED  Redis at", "redis_url", "FAILED  authd at", "authd_urls"]);
}

#[test]
fn a_deep_check_distinguishes_a_wrong_credential_from_an_unreachable_server() {
    let mut parts = parts();
    let refusal = || Answer::refusal("401 Unauthorized", "unauthorized");
    parts.authd = StubAuthd::start_with_probe(move |_| refusal(), refusal);
    let redis = Redis::start(parts.loopback.socket(1, 6379));
    redis.command("CONFIG SET requirepass right");
    let (status, text) = check(&parts.settings(&redis.address.to_string(), parts.root.path()), true);
    assert_eq!(status, 1, "{text}");
    assert_contains_all(&text, &["FAILED  Redis at", "redis_password_file"]);
    assert_contains_all(&text, &["FAILED  authd at", "authd_token_file", "node_token_file"]);
    let mut settings = parts.settings(&redis.address.to_string(), parts.root.path());
    settings.push(format!("--redis-password-file={}", parts.token.display()));
    assert_contains_all(&check(&settings, true).1, &["ok      Redis at"]);
    fs::write(&parts.token, "wrong").unwrap();
    assert_contains_all(&check(&settings, true).1, &["FAILED  Redis at", "redis_password_file"]);
}

#[test]
fn a_deep_check_shows_the_nodes_uid_if_the_storage_refuses_access() {
    let parts = parts();
    let open = |mode| fs::Permissions::from_mode(mode);
    fs::set_permissions(parts.root.path(), open(0o755)).unwrap();
    fs::set_permissions(&parts.token, open(0o644)).unwrap();
    let files = parts.root.path().join("files");
    fs::create_dir(&files).unwrap();
    fs::set_permissions(&files, open(0o555)).unwrap();
    let redis = parts.loopback.socket(1, 6379).to_string();
    let mut command = Command::new(binaries::daemon("ftpd"));
    command.env_clear().args(parts.settings(&redis, &files)).args(["--check", "--deep"]);
    // File modes do not restrict root.
    let mut user = nix::unistd::geteuid().as_raw();
    if user == 0 {
        user = 65534;
        command.uid(user).gid(user);
    }
    let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
    let uid = format!("uid {user}");
    assert_contains_all(&text, &["FAILED  a probe file", &uid, "chown"]);
}
