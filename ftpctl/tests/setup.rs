//! `ftpctl secrets` and `ftpctl init`: the daemons read what they write.
//!
//! A skipped test says so.
#![allow(clippy::print_stderr)]

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use cluster_tests::{binaries, dialogue::Dialogue, eventually, http, loopback::Loopback, process::Daemon};

fn ftpctl(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(binaries::daemon("ftpctl")).args(arguments).env_clear().output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

/// All files below a folder, with their modes.
fn files(folder: &Path) -> Vec<(PathBuf, u32)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            found.push((path, mode));
        }
    }
    found.sort();
    found
}

#[test]
fn secrets_are_made_once_and_only_the_owner_can_read_them() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let (status, text) = ftpctl(&["secrets", "--out", out, "--name", "ftp.example.com"]);
    assert_eq!(status, Some(0), "{text}");
    let made = files(folder.path());
    assert_eq!(made.len(), 5, "{made:?}");
    assert!(made.iter().all(|(_, mode)| *mode == 0o600), "{made:?}");
    let contents = || made.iter().map(|(file, _)| fs::read(file).unwrap()).collect::<Vec<_>>();
    let first = contents();
    assert_ne!(first[0], first[1]);
    let (status, text) = ftpctl(&["secrets", "--out", out]);
    assert!(status == Some(0) && text.contains("already"), "{text}");
    assert_eq!(contents(), first);
    fs::remove_file(folder.path().join("secrets/node-token")).unwrap();
    let (_, text) = ftpctl(&["secrets", "--out", out]);
    assert_eq!(text.lines().count(), 1, "only what is missing is written: {text}");
    // A certificate for another key would be of no use.
    fs::remove_file(folder.path().join("tls/key.pem")).unwrap();
    let (status, text) = ftpctl(&["secrets", "--out", out]);
    assert!(status == Some(1) && text.contains("key.pem"), "{text}");
}

/// A cluster of two nodes, made by `ftpctl init` for addresses of this test.
struct Described {
    folder: tempfile::TempDir,
    loopback: Arc<Loopback>,
    commands: String,
}

const HOSTS: [&str; 4] = ["backend", "ftp1", "ftp2", "balancer"];

impl Described {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let loopback = Arc::new(Loopback::reserve());
        let address = |host| loopback.address(host).to_string();
        let out = folder.path().join("cluster");
        let (status, commands) = ftpctl(&[
            "init",
            "--nodes",
            &format!("ftp1={},ftp2={}", address(11), address(12)),
            "--backend",
            &address(20),
            "--balancer",
            &address(10),
            "--public",
            &address(10),
            "--passive",
            "61200-61299",
            "--out",
            out.to_str().unwrap(),
        ]);
        assert_eq!(status, Some(0), "{commands}");
        Self { folder, loopback, commands }
    }

    fn host(&self, name: &str) -> PathBuf {
        self.folder.path().join("cluster").join(name)
    }

    /// Settings of a daemon as they are on its host, with the paths and ports of this test: systemd copies
    /// the secrets, and ports below 1024 need root.
    fn settings(&self, host: &str, program: &str) -> PathBuf {
        let etc = self.host(host).join("etc/distributed-ftp");
        let storage = self.folder.path().join("storage");
        fs::create_dir_all(&storage).unwrap();
        let text = fs::read_to_string(etc.join(format!("{program}.toml"))).unwrap();
        let secrets = format!("/run/credentials/{program}.service");
        let mut text = text.replace("/etc/distributed-ftp", etc.to_str().unwrap());
        for (name, folder) in
            [("node-token", "secrets"), ("redis-password", "secrets"), ("admin-token", "admin")]
        {
            let file = etc.join(folder).join(name);
            text = text.replace(&format!("{secrets}/{name}"), file.to_str().unwrap());
        }
        assert!(!text.contains("/run/credentials"), "{text}");
        let mut text = text.replace("root = \"/srv/ftp\"", &format!("root = {storage:?}"));
        match program {
            "ftpd" => text += "port = 61021\nnode_lease = \"6s\"\n",
            "ftp-relay" => {
                text = text.replace("control_port = 21\n", "control_port = 61021\nmap_refresh = \"1s\"\n")
            }
            _ => text += "min_password_length = 1\n",
        }
        text = text.replace("implicit_tls_port = 990", "implicit_tls_port = 61990");
        if program == "ftp-relay" {
            // On its host the relay listens on every address.
            text += &format!("listen = [\"{}\"]\n", self.loopback.address(10));
        }
        let file = self.folder.path().join(format!("{host}-{program}.toml"));
        fs::write(&file, text).unwrap();
        file
    }

    fn start(&self, host: &str, program: &str) -> Daemon {
        let mut command = Command::new(binaries::daemon(program));
        command.env_clear().arg("--config").arg(self.settings(host, program));
        Daemon::start(&format!("{program} of {host}"), command)
    }
}

#[test]
fn the_daemons_start_with_the_files_of_init_and_serve_clients() {
    let cluster = Described::new();
    let backend = cluster.host("backend");
    // Redis of the distribution includes this file.
    let mut redis = Command::new("redis-server");
    redis.arg(backend.join("etc/distributed-ftp/redis.conf")).arg("--dir").arg(cluster.folder.path());
    let _redis = Daemon::start("redis", redis);
    let _authd = cluster.start("backend", "authd");
    let _nodes = ["ftp1", "ftp2"].map(|node| cluster.start(node, "ftpd"));
    let _relay = cluster.start("balancer", "ftp-relay");
    let admin = SocketAddr::new(cluster.loopback.address(20), 5160);
    eventually("authd to be ready", || {
        http::get(admin, "/readyz").ok().filter(|answer| answer.status == 200)
    });

    let token = backend.join("etc/distributed-ftp/admin/admin-token");
    let url = format!("http://{admin}");
    let console = ["--url", &url, "--token-file", token.to_str().unwrap()];
    let mut add = Command::new("sh");
    add.arg("-c")
        .arg("echo a-long-password | exec \"$0\" \"$@\" users add ann")
        .arg(binaries::daemon("ftpctl"));
    let output = add.args(console).output().unwrap();
    assert!(output.status.success(), "{output:?}");

    let public = SocketAddr::new(cluster.loopback.address(10), 61021);
    for host in [11, 12] {
        let admin = SocketAddr::new(cluster.loopback.address(host), 9121);
        eventually("a ready node", || http::get(admin, "/readyz").ok().filter(|answer| answer.status == 200));
    }
    eventually("the relay to listen", || std::net::TcpStream::connect(public).ok());
    for round in 0..4_u8 {
        let mut session = Dialogue::connect(public);
        session.login("ann", "a-long-password");
        session.store("report.txt", &[round; 1000]);
        assert_eq!(session.retrieve("report.txt"), [round; 1000]);
        session.quit();
    }
}

#[test]
fn init_prints_the_commands_of_each_host_and_keeps_secrets_to_the_hosts_that_need_them() {
    let cluster = Described::new();
    for host in HOSTS {
        let commands = fs::read_to_string(cluster.host(host).join("COMMANDS")).unwrap();
        assert!(commands.lines().all(|command| cluster.commands.contains(command)), "{}", cluster.commands);
        for (path, mode) in files(&cluster.host(host)) {
            let is_secret = path
                .components()
                .any(|part| ["secrets", "admin"].contains(&part.as_os_str().to_str().unwrap()))
                || path.ends_with("key.pem")
                || path.ends_with("redis.conf");
            assert_eq!(mode, if is_secret { 0o600 } else { 0o644 }, "{}", path.display());
        }
        let has = |file: &str| cluster.host(host).join("etc/distributed-ftp").join(file).exists();
        assert_eq!(has("admin/admin-token"), host == "backend");
        assert_eq!(has("tls/key.pem"), host.starts_with("ftp"));
        assert_eq!(has("secrets/node-token"), host != "balancer");
    }
    let out = cluster.folder.path().join("cluster");
    let (status, text) = ftpctl(&[
        "init",
        "--nodes",
        "ftp1=10.0.0.11",
        "--backend",
        "10.0.0.20",
        "--balancer",
        "10.0.0.10",
        "--public",
        "203.0.113.10",
        "--out",
        out.to_str().unwrap(),
    ]);
    assert!(status == Some(2) && text.contains("--out"), "secrets are not overwritten: {text}");
}

#[test]
fn nftables_and_systemd_accept_the_files_of_init() {
    let cluster = Described::new();
    for host in HOSTS {
        let rules = cluster.host(host).join("etc/distributed-ftp/firewall.nft");
        // A network of its own: `nft --check` asks the kernel, which needs root there.
        let mut check = Command::new("unshare");
        check.args(["--map-root-user", "--net", "nft", "--check", "--file"]).arg(&rules);
        let Ok(output) = check.output() else {
            eprintln!("skipped: unshare cannot be started");
            return;
        };
        let error = String::from_utf8_lossy(&output.stderr);
        let cannot =
            ["unshare:", "not permitted", "No such file or directory", "cache initialization failed"];
        if cannot.iter().any(|part| error.contains(part)) {
            eprintln!("skipped: nft cannot check rules here: {error}");
            break;
        }
        assert!(output.status.success(), "{host}: {error}\n{}", fs::read_to_string(&rules).unwrap());
    }
    let mount = cluster.host("ftp1").join("etc/systemd/system/srv-ftp.mount");
    let Ok(output) = Command::new("systemd-analyze").arg("verify").arg(&mount).output() else {
        eprintln!("skipped: systemd-analyze cannot be started");
        return;
    };
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!error.contains("srv-ftp.mount:"), "{error}");
}
