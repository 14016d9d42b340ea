//! `./dev up`: its output, and the behaviour of the demo cluster when a part is stopped or fails.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{self, Command},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use cluster_tests::{
    binaries,
    clients::Clients,
    content::{bytes, sha256},
    dialogue::Dialogue,
    eventually, http,
    loopback::Loopback,
    process::Daemon,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use tempfile::TempDir;

/// The variables `DEV_…_PORT`, in the order of their ports.
const PORTS: [&str; 5] = ["CONTROL", "IMPLICIT", "AUTHD", "REDIS", "ADMIN"];
const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Ports and directories of one demo cluster.
struct Demo {
    loopback: Loopback,
    folder: TempDir,
}

impl Demo {
    fn new() -> Self {
        Self { loopback: Loopback::reserve(), folder: tempfile::tempdir().unwrap() }
    }

    fn port(&self, number: u16) -> u16 {
        self.loopback.ports().start() + number
    }

    fn control(&self) -> SocketAddr {
        (LOCALHOST, self.port(0)).into()
    }

    /// Two ports for each of six nodes.
    fn passive_ports(&self) -> String {
        format!("{}-{}", self.port(5), self.port(16))
    }

    fn storage(&self) -> PathBuf {
        self.folder.path().join("files")
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Arguments of `env` that run `./dev`.
    fn arguments(&self, words: &[&str]) -> Vec<String> {
        let daemons = binaries::daemon("ftpd");
        let dev = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dev");
        let mut arguments = vec![
            "--unset=DEV_DRAIN_TIMEOUT".to_owned(),
            format!("DEV_PASSIVE_PORTS={}", self.passive_ports()),
            format!("DEV_STATE={}", self.state().display()),
            format!("DEV_STORAGE={}", self.storage().display()),
            format!("DEV_DAEMONS={}", daemons.parent().unwrap().display()),
        ];
        for (number, variable) in PORTS.iter().enumerate() {
            arguments.push(format!("DEV_{variable}_PORT={}", self.port(number as u16)));
        }
        arguments.extend(["bash".to_owned(), dev.display().to_string()]);
        arguments.extend(words.iter().map(|word| (*word).to_owned()));
        arguments
    }

    fn start(&self, change: impl FnOnce(&mut Vec<String>)) -> Daemon {
        let mut arguments = self.arguments(&["up"]);
        change(&mut arguments);
        let mut command = Command::new("env");
        command.args(arguments);
        Daemon::start_ending_with("dev up", command, Signal::SIGTERM)
    }

    /// Starts `./dev up` and waits until the cluster serves.
    fn up(&self) -> Daemon {
        let up = self.start(|_| {});
        up.wait_for_line(|line| line.contains("In a second terminal"));
        up
    }

    /// Runs another `./dev` command, as in a second terminal.
    fn run(&self, words: &[&str]) -> String {
        let run = Clients::with_home().attempt("env", self.arguments(words));
        assert!(run.succeeded, "{words:?}: {run:?}");
        run.text() + &run.stderr
    }

    /// Runs a `./dev` command that must fail, and returns its output.
    fn refused(&self, words: &[&str]) -> String {
        let run = Clients::with_home().attempt("env", self.arguments(words));
        assert!(!run.succeeded, "{words:?}: {run:?}");
        run.text() + &run.stderr
    }

    /// Runs `./dev up` with a changed variable. It must fail; returns its output.
    fn refused_with(&self, variable: &str) -> String {
        let mut arguments = self.arguments(&["up"]);
        arguments.insert(2, variable.to_owned());
        let run = Clients::with_home().attempt("env", arguments);
        assert!(!run.succeeded, "{variable}: {run:?}");
        run.text() + &run.stderr
    }

    fn url(&self, name: &str) -> String {
        format!("ftp://demo:x@{}/{name}", self.control())
    }

    /// The process of a running part.
    fn process(&self, part: &str) -> Option<Pid> {
        let process = fs::read_to_string(self.state().join("parts").join(part)).unwrap();
        Some(Pid::from_raw(process.trim().parse().ok()?))
    }
}

#[test]
fn other_nodes_serve_when_one_is_stopped_killed_or_drained() {
    let demo = Arc::new(Demo::new());
    let up = demo.up();
    let over = Arc::new(AtomicBool::new(false));
    let (worker, finished) = (Arc::clone(&demo), Arc::clone(&over));
    let uploads = thread::spawn(move || {
        let clients = Clients::with_home();
        let mut confirmed = BTreeMap::new();
        for number in 0.. {
            if finished.load(Ordering::Relaxed) {
                break;
            }
            let content = bytes(number, 100_000);
            let file = clients.write("file", &content);
            let name = format!("work-{number}");
            let arguments = ["-sS", "--max-time", "30", "-T", file.to_str().unwrap(), &worker.url(&name)];
            // An upload through the killed node fails, and the client reports that.
            if clients.attempt("curl", arguments).succeeded {
                confirmed.insert(name, sha256(content));
            }
        }
        confirmed
    });
    let clients = Clients::with_home();
    let file = clients.write("file", "content");
    let works = |step: &str| {
        clients.run("curl", ["-sS", "--max-time", "30", "-T", file.to_str().unwrap(), &demo.url(step)]);
    };
    for (number, words) in [
        ["stop", "ftp1"],
        ["start", "ftp1"],
        ["kill", "ftp2"],
        ["start", "ftp2"],
        ["drain", "ftp3"],
        ["stop", "ftp1"],
        ["add", ""],
        ["stop", "ftp2"],
    ]
    .into_iter()
    .enumerate()
    {
        let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
        demo.run(&words);
        works(&format!("step-{number}"));
    }
    // Only ftp4 is left, and owns all passive ports.
    let status = eventually("ftp4 to own the passive ports of the nodes that have ended", || {
        let status = demo.run(&["status"]);
        let line = status.lines().find(|line| line.contains("ftp4"))?;
        let blocks = line.split_once("passive ports ")?.1.split_whitespace().count();
        (blocks == 6).then_some(status)
    });
    let line = |part: &str| status.lines().find(|line| line.contains(part)).unwrap();
    for node in ["ftp1", "ftp2", "ftp3"] {
        assert!(line(node).contains("not running"), "{status}");
    }
    for part in ["ftp4", "authd", "redis", "relay", "balancer"] {
        assert!(line(part).contains("ready") && !line(part).contains("not "), "{status}");
    }
    over.store(true, Ordering::Relaxed);
    let confirmed = uploads.join().unwrap();
    assert!(confirmed.len() > 10, "{}", confirmed.len());
    for (name, hash) in confirmed {
        assert_eq!(sha256(fs::read(demo.storage().join("demo").join(&name)).unwrap()), hash, "{name}");
    }
    demo.run(&["down"]);
    assert!(up.lines().iter().any(|line| line.contains("all parts have ended")));
}

#[test]
fn crashed_part_is_reported_with_its_log_and_leaves_no_process() {
    let demo = Demo::new();
    let mut up = demo.up();
    kill(demo.process("balancer").unwrap(), Signal::SIGKILL).unwrap();
    let line = up.wait_for_line(|line| line.contains("balancer ended"));
    assert!(line.contains("SIGKILL") && line.contains("balancer.log"), "{line}");
    assert!(line.contains("dev start balancer"), "{line}");
    // Remaining workers would still listen on the port.
    eventually("the balancer's port to be free", || TcpStream::connect(demo.control()).err());
    let message = demo.refused(&["stop", "balancer"]);
    assert!(message.contains("balancer does not run"), "{message}");
    demo.run(&["start", "balancer"]);
    Dialogue::connect(demo.control()).login("demo", "x");

    // Now `./dev up` is killed, too, so it cannot end the workers. The next `./dev up` ends them.
    kill(demo.process("balancer").unwrap(), Signal::SIGKILL).unwrap();
    up.kill();
    drop(up);
    let up = demo.up();
    Dialogue::connect(demo.control()).login("demo", "x");
    up.stop();
    TcpListener::bind(demo.control()).unwrap();
}

#[test]
fn port_in_use_is_reported_with_its_owner_and_the_variable_to_change() {
    let demo = Demo::new();
    let own = process::id().to_string();
    let passive = SocketAddr::from((LOCALHOST, demo.port(7)));

    let listener = TcpListener::bind(passive).unwrap();
    let message = demo.refused(&["up"]);
    let says = |message: &str, parts: &[&str]| {
        for part in parts {
            assert!(message.contains(part), "{part:?} in {message}");
        }
    };
    says(&message, &[&passive.port().to_string(), "127.0.0.1", &own, "listener", "DEV_PASSIVE_PORTS"]);
    drop(listener);

    // An outgoing connection also occupies its port, although nothing listens on it. The kernel chooses the
    // port, so that no other test meets it in TIME_WAIT afterwards.
    let server = TcpListener::bind(demo.loopback.socket(50, 5000)).unwrap();
    let connection = TcpStream::connect(server.local_addr().unwrap()).unwrap();
    let port = connection.local_addr().unwrap().port();
    let passive_ports = format!("DEV_PASSIVE_PORTS={port}-{}", port + 11);
    let message = demo.refused_with(&passive_ports);
    says(&message, &[&port.to_string(), &own, "connection", "DEV_PASSIVE_PORTS"]);
    // The side that closes first keeps the port in TIME_WAIT for a minute.
    let (accepted, _) = server.accept().unwrap();
    drop(connection);
    drop(accepted);
    let message = demo.refused_with(&passive_ports);
    says(&message, &[&port.to_string(), "TIME_WAIT", "DEV_PASSIVE_PORTS"]);

    for (number, variable) in PORTS.iter().enumerate().take(3) {
        let _listener = TcpListener::bind((LOCALHOST, demo.port(number as u16))).unwrap();
        says(&demo.refused(&["up"]), &[&own, &format!("DEV_{variable}_PORT")]);
    }

    // Without DEV_PASSIVE_PORTS, it chooses free ports.
    let _listener = TcpListener::bind((LOCALHOST, 12000));
    let up = demo.start(|arguments| arguments.insert(2, "DEV_PASSIVE_PORTS=".to_owned()));
    let line = up.wait_for_line(|line| line.contains("Data connections use ports"));
    assert!(!line.contains("12000-"), "{line}");
    let mut client = Dialogue::connect(demo.control());
    client.login("demo", "x");
    client.store("file", b"content");
}

#[test]
fn ctrl_c_lets_an_upload_finish_and_reports_progress() {
    let demo = Demo::new();
    let mut up = demo.up();
    let content = bytes(5, 4 << 20);
    let mut client = Dialogue::connect(demo.control());
    client.login("demo", "x");
    client.command("TYPE I", 200);
    let mut data = client.begin("STOR large.bin");
    data.write_all(&content[..1 << 20]).unwrap();
    let begun = demo.storage().join("demo/large.bin");
    eventually("the upload to begin", || fs::metadata(&begun).ok().filter(|file| file.len() > 0));
    up.signal(Signal::SIGINT);
    up.wait_for_line(|line| line.contains("dev: ending. Transfers that run: 1"));
    data.write_all(&content[1 << 20..]).unwrap();
    data.shutdown(Shutdown::Write).unwrap();
    client.expect(226);
    let status = up.wait();
    assert!(status.success(), "{status}");
    let lines = up.lines();
    assert!(lines.iter().any(|line| line.contains("dev: all parts have ended")));
    let blamed = lines.iter().find(|line| line.starts_with("dev: ") && line.contains(" ended by "));
    assert_eq!(blamed, None);
    assert_eq!(sha256(fs::read(begun).unwrap()), sha256(&content));
}

#[test]
fn second_ctrl_c_ends_remaining_transfers() {
    let demo = Demo::new();
    let mut up = demo.up();
    let mut client = Dialogue::connect(demo.control());
    client.login("demo", "x");
    let mut data = client.begin("STOR large.bin");
    data.write_all(&bytes(6, 100_000)).unwrap();
    let begun = demo.storage().join("demo/large.bin");
    eventually("the upload to begin", || fs::metadata(&begun).ok());
    up.signal(Signal::SIGINT);
    up.wait_for_line(|line| line.contains("Ctrl-C again cuts them"));
    up.signal(Signal::SIGINT);
    assert!(up.wait().success());
    assert!(client.expect_closed().iter().all(|reply| reply.code != 226));
}

#[test]
fn start_prints_one_line_per_part_and_a_second_start_names_the_first() {
    let demo = Demo::new();
    let up = demo.up();
    let lines = up.lines();
    let table = lines.iter().position(|line| line.contains("process")).unwrap();
    assert_eq!(table, 0, "{lines:?}");
    let parts = ["redis", "authd", "ftp1", "ftp2", "ftp3", "relay", "balancer"];
    for (line, part) in lines[1..8].iter().zip(parts) {
        assert!(line.trim_start().starts_with(part) && line.contains("ready"), "{line}");
    }
    assert_eq!(lines[8], "");
    assert!(lines.iter().any(|line| line.contains(&demo.passive_ports())), "{lines:?}");
    // The page and its login.
    let authd = SocketAddr::from((LOCALHOST, demo.port(2)));
    let line = lines.iter().find(|line| line.contains(&format!("http://{authd}/ "))).unwrap();
    let token = line.rsplit(' ').next().unwrap();
    let body = json!({ "name": "admin", "token": token });
    let login = http::request(authd, "POST", "/page/session", None, Some(&body)).unwrap();
    assert_eq!(login.status, 200, "{login:?}");
    assert!(http::get(authd, "/").unwrap().body.contains("/page/app.js"));

    let message = demo.refused(&["up"]);
    let state = demo.state().display().to_string();
    for part in ["up already", &demo.control().to_string(), &state, "Ctrl-C", "down"] {
        assert!(message.contains(part), "{part:?} in {message}");
    }
    drop(up);
    let message = demo.refused(&["status"]);
    assert!(message.contains("it is not up"), "{message}");
}

/// Python 3.13 and later refuse certificates that OpenSSL refuses with -x509_strict.
#[test]
fn certificates_pass_strict_verification() {
    let demo = Demo::new();
    let _up = demo.up();
    let tls = demo.state().join("tls");
    let clients = Clients::with_home();
    let [authority, certificate] = ["ca.pem", "localhost.pem"].map(|name| tls.join(name));
    let authority = authority.to_str().unwrap();
    let run = clients.run(
        "openssl",
        ["verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", "localhost", "-CAfile"]
            .into_iter()
            .chain([authority, certificate.to_str().unwrap()]),
    );
    assert!(run.text().contains("OK"), "{run:?}");
    let url = format!("ftps://demo:x@localhost:{}/", demo.port(1));
    clients.run("curl", ["-sS", "-4", "--max-time", "30", "--cacert", authority, &url]);
}
