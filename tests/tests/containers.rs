//! The images of `./dev image`, and the cluster of deploy/compose, in containers of podman.
//!
//! A skipped test says so.
#![allow(clippy::print_stderr)]

#[path = "containers/engine.rs"]
mod engine;

use std::{
    env, fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use cluster_tests::{
    DEADLINE, clients::Clients, content, dialogue::Dialogue, eventually, loopback::Loopback,
    packaging::can_fill_images,
};
use serde_json::Value;

use self::engine::{Engine, repository, run};

const HARDENED: [&str; 7] =
    ["--detach", "--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges", "--network"];

#[test]
fn images_run_as_user_2121_with_a_read_only_root_and_drain_when_they_are_stopped() {
    let Some(engine) = Engine::start() else { return };
    engine.make_images(&["ftpd"]).unwrap();
    let inspect = |image: &str| -> Value {
        serde_json::from_str(&engine.podman(&["image", "inspect", image])).unwrap()
    };
    let image = &inspect("distributed-ftp/ftpd")[0];
    assert_eq!(image["User"], "2121:2121");
    assert_eq!(image["Config"]["StopSignal"], "SIGTERM");
    assert_eq!(image["Config"]["Labels"]["org.opencontainers.image.licenses"], "MIT");
    assert_eq!(image["Labels"]["org.opencontainers.image.title"], "ftpd");

    engine.podman(&["network", "create", "inner"]);
    let mut start = HARDENED.to_vec();
    // The variables of the system that this one replaces are stronger than those of the image.
    start.extend(["inner", "--name", "ftp", "--env", "port=2100", "--env", "FtpPasvMinPort=50000"]);
    let start = [&["run"], &start[..], &["distributed-ftp/ftpd", "--standalone", "--user", "ann:secret"]];
    engine.podman(&start.concat());
    eventually("the node to be healthy", || engine.try_podman(&["exec", "ftp", "ftpd", "health"]).ok());
    let address =
        engine.podman(&["inspect", "--format", "{{.NetworkSettings.Networks.inner.IPAddress}}", "ftp"]);
    let address = SocketAddr::new(address.parse().unwrap(), 2100);
    let mut session = Dialogue::connect(address);
    session.login("ann", "secret");
    session.store("report.txt", b"stored by user 2121");
    assert_eq!(session.retrieve("report.txt"), b"stored by user 2121");
    let owner = engine.podman(&["inspect", "--format", "{{(index .Mounts 0).Source}}", "ftp"]);
    let file = fs::metadata(PathBuf::from(owner).join("report.txt")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&file), 2121);
    let download = session.begin("RETR report.txt");
    engine.podman(&["stop", "--time", "60", "ftp"]);
    drop(download);
    let log = engine.log("ftp");
    assert!(log.contains("drain"), "{log}");
    assert_eq!(engine.podman(&["inspect", "--format", "{{.State.ExitCode}}", "ftp"]), "0");

    // Two builds of the same files have the same layers.
    engine.make_images(&["ftpd"]).unwrap();
    assert_eq!(inspect("distributed-ftp/ftpd")[0]["RootFS"], image["RootFS"]);
}

#[test]
fn image_holds_nothing_but_the_program_and_what_it_needs() {
    if let Err(error) = can_fill_images() {
        eprintln!("skipped: the files of an image cannot be collected here: {error}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("ftpd");
    let mut fill = Command::new(repository().join("deploy/containers/image-root"));
    fill.arg("ftpd").arg(cluster_tests::binaries::daemon("ftpd")).arg(&root).env("CARGO_NET_OFFLINE", "true");
    run(&mut fill).unwrap();
    let mut files: Vec<String> = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path.strip_prefix(&root).unwrap().display().to_string());
            }
        }
    }
    files
        .retain(|file| !file.starts_with("lib") && !file.starts_with("usr/lib") && !file.starts_with("nix/"));
    files.sort();
    let expected = [
        "etc/group",
        "etc/nsswitch.conf",
        "etc/passwd",
        "etc/ssl/certs/ca-certificates.crt",
        "usr/bin/ftpd",
        "usr/share/doc/distributed-ftp/LICENSE",
        "usr/share/doc/distributed-ftp/ftpd.cdx.json",
    ];
    assert_eq!(files, expected);
    let parts = fs::read_to_string(root.join("usr/share/doc/distributed-ftp/ftpd.cdx.json")).unwrap();
    let parts: Value = serde_json::from_str(&parts).unwrap();
    assert_eq!(
        (&parts["bomFormat"], &parts["metadata"]["component"]["name"]),
        (&"CycloneDX".into(), &"ftpd".into())
    );
    let find = |name: &str| parts["components"].as_array().unwrap().iter().find(|part| part["name"] == name);
    let tokio = find("tokio").expect("ftpd has tokio");
    assert_eq!(tokio["licenses"][0]["expression"], "MIT");
    assert_eq!(tokio["hashes"][0]["content"].as_str().unwrap().len(), 64);
    assert!(find("tempfile").is_none(), "only tests use tempfile");
}

/// `podman-compose`, or the program that PODMAN_COMPOSE names.
fn compose_program() -> Option<PathBuf> {
    let program = PathBuf::from(env::var_os("PODMAN_COMPOSE").unwrap_or_else(|| "podman-compose".into()));
    let version = run(Command::new(&program).arg("--version")).unwrap_or_else(|error| error);
    let number = version.split("version ").nth(1).and_then(|rest| rest.split_whitespace().next());
    let mut parts = number.unwrap_or("0").split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    if (parts.next(), parts.next()) >= (Some(1), Some(6)) {
        return Some(program);
    }
    eprintln!(
        "skipped: podman-compose 1.6 or later is needed (pip install podman-compose; PODMAN_COMPOSE=PATH), \
         found: {version}"
    );
    None
}

/// The cluster of deploy/compose, on a loopback address of this test.
struct ComposeCluster {
    engine: Engine,
    program: PathBuf,
    /// Keeps the address reserved.
    _loopback: Loopback,
    public: SocketAddr,
}

impl ComposeCluster {
    fn start() -> Option<Self> {
        let program = compose_program()?;
        let engine = Engine::start()?;
        engine.make_images(&["ftpd", "ftp-relay", "authd"]).unwrap();
        let mut peers = engine.command(&repository().join("tests/tests/containers/peer-images"));
        run(peers.arg(engine.folder("peers"))).unwrap();
        // The limits of this machine; compose.yaml has those of a server.
        let limits = "{ ulimits: { nofile: { soft: 4096, hard: 4096 }, nproc: { soft: 1024, hard: 1024 } } }";
        let services = ["ftpd", "relay", "nginx"].map(|service| format!("  {service}: {limits}\n"));
        let file = engine.folder("compose").join("limits.yaml");
        fs::write(file, format!("services:\n{}", services.concat())).unwrap();
        let loopback = Loopback::reserve();
        let public = loopback.socket(21, 61021);
        let cluster = Self { engine, program, _loopback: loopback, public };
        cluster.compose(&["up", "-d"], "");
        cluster.keep_the_address_of_the_bridge();
        Some(cluster)
    }

    /// A bridge of Linux changes its MAC address when containers come and go, until it is set. netavark 1.4
    /// does not set it, and then containers do not reach the name server for up to a minute.
    fn keep_the_address_of_the_bridge(&self) {
        let bridge = ["network", "inspect", "--format", "{{.NetworkInterface}}", "ftp_cluster"];
        let bridge = self.engine.podman(&bridge);
        let address = fs::read_to_string(format!("/sys/class/net/{bridge}/address")).unwrap();
        run(Command::new("ip").args(["link", "set", "dev", &bridge, "address", address.trim()])).unwrap();
    }

    /// Runs podman-compose with this standard input.
    fn compose(&self, arguments: &[&str], input: &str) -> String {
        let IpAddr::V4(address) = self.public.ip() else { unreachable!("the test chose an IPv4 address") };
        let [_, second, third, _] = address.octets();
        let mut command = self.engine.command(&self.program);
        command.args(["-p", "ftp", "-f", "deploy/compose/compose.yaml", "-f"]);
        command.arg(self.engine.folder("compose").join("limits.yaml"));
        command.args(["--profile", "tools"]).args(arguments);
        for (name, value) in [
            ("FTP_LISTEN", address.to_string()),
            ("FTP_ADDRESS", address.to_string()),
            ("FTP_CONTROL_PORT", self.public.port().to_string()),
            ("FTP_IMPLICIT_PORT", "61990".to_owned()),
            ("FTP_PASSIVE_MIN", "61100".to_owned()),
            ("FTP_PASSIVE_MAX", "61149".to_owned()),
            ("FTP_SUBNET", format!("10.{second}.{third}.0/24")),
            ("NGINX_IMAGE", "localhost/peers/nginx".to_owned()),
            ("REDIS_IMAGE", "localhost/peers/redis".to_owned()),
        ] {
            command.env(name, value);
        }
        let file = self.engine.folder("compose").join("input");
        fs::write(&file, input).unwrap();
        command.stdin(fs::File::open(file).unwrap());
        run(&mut command).unwrap_or_else(|error| panic!("compose {arguments:?}: {error}"))
    }

    /// Waits until `PROGRAM health` succeeds in the container.
    fn wait_for_health(&self, container: &str, program: &str) {
        // Eight containers start at once, and nodes wait for their blocks of passive ports.
        let end = Instant::now() + 4 * DEADLINE;
        while let Err(why) = self.engine.try_podman(&["exec", container, program, "health"]) {
            assert!(Instant::now() < end, "{container}: {why}\n{}", self.engine.log(container));
            thread::sleep(Duration::from_millis(200));
        }
    }

    fn login(&self) -> Dialogue {
        let mut session = Dialogue::connect(self.public);
        session.login("demo", PASSWORD);
        session
    }
}

const PASSWORD: &str = "a long password";

/// The five tests of the README of the system that this one replaces.
#[test]
fn the_cluster_of_compose_serves_while_nodes_stop_start_and_join() {
    let Some(cluster) = ComposeCluster::start() else { return };
    let engine = &cluster.engine;
    let nodes = ["ftp_ftpd_1", "ftp_ftpd_2", "ftp_ftpd_3"];
    for node in nodes {
        cluster.wait_for_health(node, "ftpd");
        assert_eq!(engine.podman(&["port", node]), "", "only the balancers are published");
    }
    cluster.wait_for_health("ftp_authd_1", "authd");
    cluster.wait_for_health("ftp_relay_1", "ftp-relay");
    let refused = engine.podman(&["exec", "ftp_redis_1", "redis-cli", "ping"]);
    assert!(refused.contains("NOAUTH"), "Redis asks for a password: {refused}");
    cluster.compose(&["run", "--rm", "-T", "ftpctl", "users", "add", "demo"], &format!("{PASSWORD}\n"));

    // 1 and 2: the greeting, the login, PWD and LIST.
    let mut session = Dialogue::connect(cluster.public);
    session.command("USER demo", 331);
    session.command(&format!("PASS {PASSWORD}"), 230);
    session.command("PWD", 257);
    let announced = session.pasv();
    assert_eq!(announced.ip(), cluster.public.ip(), "FTP_ADDRESS");
    assert_eq!(session.receive("LIST"), b"");
    session.quit();

    // 3: real clients, in passive mode, in the clear and with TLS.
    let clients = Clients::with_home();
    let content = content::bytes(1, 3_000_000);
    let file = clients.write("big.bin", &content);
    let user = format!("demo:{PASSWORD}");
    let plain = format!("ftp://{}/big.bin", cluster.public);
    let implicit = format!("ftps://{}:61990/big.bin", cluster.public.ip());
    for (upload, options) in
        [(&plain, &["--disable-epsv"][..]), (&plain, &["--ssl-reqd", "-k"]), (&implicit, &["-k"])]
    {
        let common = ["-sS", "--max-time", "60", "--user", &user];
        let target = clients.path("back.bin").display().to_string();
        let source = file.display().to_string();
        let run = clients.run("curl", [&common, options, &["-T", &source, upload]].concat());
        assert!(run.text().is_empty(), "{}", run.text());
        clients.run("curl", [&common, options, &["-o", &target, upload]].concat());
        assert!(clients.read("back.bin") == content, "{options:?}");
    }

    // 4: one node stops, and starts again.
    engine.podman(&["stop", "--time", "60", nodes[0]]);
    for _ in 0..4 {
        assert!(cluster.login().retrieve("big.bin") == content);
    }
    engine.podman(&["start", nodes[0]]);
    cluster.wait_for_health(nodes[0], "ftpd");

    // 5: the storage is shared. Round robin reaches every node.
    cluster.login().store("report.txt", b"shared");
    for _ in 0..6 {
        assert_eq!(cluster.login().retrieve("report.txt"), b"shared");
    }

    // Two more nodes, while a session goes on.
    let mut session = cluster.login();
    cluster.compose(&["up", "-d", "--scale", "ftpd=5", "--no-recreate"], "");
    for node in ["ftp_ftpd_4", "ftp_ftpd_5"] {
        cluster.wait_for_health(node, "ftpd");
    }
    assert_eq!(session.retrieve("report.txt"), b"shared");
    let listed = cluster.compose(&["run", "--rm", "-T", "ftpctl", "nodes"], "");
    assert_eq!(listed.matches(" ready ").count(), 5, "{listed}");
}
