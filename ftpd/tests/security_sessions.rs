//! Attacks on the node's state: commands in any order, floods of connections, half-closed TLS connections,
//! and clock changes.

use std::{
    cell::RefCell,
    fs,
    io::Write,
    net::{Shutdown, TcpStream},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use cluster_tests::{
    dialogue::{Dialogue, read_what_comes},
    node::Node,
    proxy::Connector,
    tls::{Authority, SecureDialogue},
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

/// Login state of the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Login {
    #[default]
    Greeted,
    Named,
    LoggedIn,
}

#[derive(Debug, Default)]
struct Model {
    login: Login,
    /// The last command was a successful RNFR.
    renaming: bool,
    /// The file has the name `b`.
    renamed: bool,
    /// EPSV succeeded, and no transfer has used its port.
    passive: bool,
    /// The last TYPE was A.
    ascii: bool,
    /// REST succeeded, and no transfer has used its offset.
    offset: bool,
}

/// The commands of the model. The file is named `a` or `b`.
const COMMANDS: [&str; 27] = [
    "USER demo",
    "PASS right",
    "PASS wrong",
    "REIN",
    "PWD",
    "CWD /",
    "NOOP",
    "ABOR",
    "SYST",
    "STAT",
    "STAT /",
    "TYPE A",
    "TYPE I",
    "TYPE X",
    "EPSV",
    "RETR c",
    "SIZE c",
    "RNFR a",
    "RNFR b",
    "RNTO a",
    "RNTO b",
    "REST 1",
    "HOST x",
    "OPTS UTF8 ON",
    "ALLO",
    "BOGUS",
    "AUTH TLS",
];

impl Model {
    /// The expected reply code to this command. Updates the model.
    fn expects(&mut self, command: &str) -> u16 {
        let renaming = std::mem::take(&mut self.renaming);
        let logged_in = self.login == Login::LoggedIn;
        match command {
            "USER demo" if logged_in => 503,
            "USER demo" => {
                self.login = Login::Named;
                331
            }
            "PASS right" | "PASS wrong" if self.login != Login::Named => 503,
            "PASS right" => {
                self.login = Login::LoggedIn;
                230
            }
            "PASS wrong" => {
                self.login = Login::Greeted;
                530
            }
            "REIN" => {
                *self = Self { renamed: self.renamed, ..Self::default() };
                220
            }
            "HOST x" => {
                if self.login == Login::Greeted {
                    220
                } else {
                    503
                }
            }
            "NOOP" | "OPTS UTF8 ON" => 200,
            "SYST" => 215,
            "STAT" => 211,
            "BOGUS" => 500,
            "AUTH TLS" => 502,
            // Wrong arguments are reported before the login is checked.
            "ALLO" | "TYPE X" => 501,
            _ if !logged_in => 530,
            "PWD" => 257,
            "ABOR" => 226,
            "CWD /" => 250,
            "STAT /" => 213,
            "TYPE A" | "TYPE I" => {
                self.ascii = command == "TYPE A";
                200
            }
            "EPSV" => {
                self.passive = true;
                229
            }
            "RETR c" => {
                // Order of checks: offset, data port, file.
                match (std::mem::take(&mut self.offset) && self.ascii, self.passive) {
                    (true, _) => 554,
                    (false, false) => 425,
                    (false, true) => {
                        self.passive = false;
                        550
                    }
                }
            }
            "SIZE c" => 550,
            "REST 1" => {
                self.offset = true;
                350
            }
            "RNFR a" | "RNFR b" => {
                self.renaming = (command == "RNFR b") == self.renamed;
                if self.renaming { 350 } else { 550 }
            }
            "RNTO a" | "RNTO b" if renaming => {
                self.renamed = command == "RNTO b";
                250
            }
            "RNTO a" | "RNTO b" => 503,
            _ => unreachable!("{command} is not in the model"),
        }
    }
}

/// Command order: ProFTPD #2003 (RNTO before the login), #2141, CVE-2015-3306 (commands without a
/// login). Every command gets exactly one reply, in order, and the session continues.
#[test]
fn commands_in_any_order_get_the_replies_of_the_model() {
    let node = Node::standalone()
        .user("demo", "right")
        .setting("log_level", "info")
        .setting("max_login_failures", 1_000_000)
        .setting("max_unauthenticated_commands", 1_000_000)
        .setting("max_errors", 1_000_000)
        .start();
    // Cases share the node. The only state that one case leaves for the next is the file's name.
    let renamed = RefCell::new(false);
    fs::write(node.root().join("a"), "").unwrap();
    let commands = prop::collection::vec(prop::sample::select(&COMMANDS[..]), 1..60);
    let config = Config { cases: 150, failure_persistence: None, ..Config::default() };
    let tried = TestRunner::new(config).run(&(commands, any::<bool>()), |(commands, at_once)| {
        let mut model = Model { renamed: *renamed.borrow(), ..Model::default() };
        let expected: Vec<u16> = commands.iter().map(|command| model.expects(command)).collect();
        let mut session = node.connect();
        let mut seen = Vec::new();
        if at_once {
            session.send(&commands.join("\r\n"));
            seen.extend(commands.iter().map(|_| session.reply().code));
        } else {
            for command in &commands {
                session.send(command);
                seen.push(session.reply().code);
            }
        }
        // ABOR may arrive before the listing of STAT ends.
        for (pair, code) in commands.windows(2).zip(&mut seen) {
            if pair == ["STAT /", "ABOR"] && *code == 451 {
                *code = 213;
            }
        }
        *renamed.borrow_mut() = node.root().join("b").exists();
        prop_assert_eq!(&seen, &expected, "{:?}", commands);
        // No reply is left over.
        session.command("NOOP", 200);
        session.command("QUIT", 221);
        prop_assert_eq!(session.expect_closed(), []);
        Ok(())
    });
    tried.unwrap_or_else(|failure| panic!("{failure}"));
}

/// Connection DoS: CVE-2021-30047, CVE-2021-47865, CVE-2020-35359. A third of the connections stays open, the
/// others close at once.
#[test]
fn a_flood_of_connections_from_one_address_does_not_keep_others_out() {
    let node = Node::standalone()
        .setting("log_level", "info")
        .setting("max_sessions", 60)
        .setting("max_sessions_per_address", 20)
        .start();
    let mut victim = node.login("demo", "x");
    let before = node.daemon.descriptors();
    let flood = Connector::new().from(node.loopback().address(7));
    let mut staying = Vec::new();
    let started = Instant::now();
    for i in 0..600 {
        let stream = flood.connect(node.address).unwrap();
        if i % 3 == 0 {
            staying.push(stream);
        }
        if i % 100 == 0 {
            victim.command("NOOP", 200);
            victim.store("file", b"content");
            assert_eq!(victim.retrieve("file"), b"content");
        }
    }
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    // A client from another address is served.
    let elsewhere = Connector::new().from(node.loopback().address(8));
    let mut newcomer = Dialogue::connect_with(&elsewhere, node.address);
    newcomer.login("demo", "x");
    newcomer.receive("LIST");
    node.wait_for_metric("ftp_connections", |count| count <= 22.0);
    drop(staying);
    node.wait_for_metric("ftp_connections", |count| count == 2.0);
    cluster_tests::eventually("descriptors to be closed", || {
        // The newcomer's connection, and the pipe of the transfer thread that served STOR.
        (node.daemon.descriptors() <= before + 5).then_some(())
    });
}

/// Processor time of a process, from `/proc/PID/stat` (proc(5), fields 14 and 15).
fn processor_time(id: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    // The name in parentheses may contain spaces; field 3 follows it.
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    // Linux reports 100 ticks per second on every common platform.
    Duration::from_millis(10 * ticks)
}

/// TLS busy loops: pyftpdlib #613, #683.
#[test]
fn half_closed_tls_connections_use_no_processor_time() {
    let authority = Authority::new();
    let certificate = authority.sign("localhost");
    let node = Node::standalone()
        .user("u", "p")
        .setting("tls_certificates", certificate.chain.display())
        .setting("tls_keys", certificate.key.display())
        .start();
    fs::write(node.root().join("large"), vec![0; 32 << 20]).unwrap();
    let mut halves: Vec<TcpStream> = Vec::new();
    for begun in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"] {
        // A handshake that stops halfway; the connection stays open or is half closed.
        for is_closed in [false, true] {
            let mut clear = node.connect();
            clear.command("AUTH TLS", 234);
            let mut stream = clear.control().try_clone().unwrap();
            stream.write_all(begun).unwrap();
            if is_closed {
                stream.shutdown(Shutdown::Write).unwrap();
            }
            halves.push(stream);
        }
    }
    let mut sessions = Vec::new();
    for verb in ["RETR", "STOR"] {
        let mut session = SecureDialogue::explicit(&authority.client(), node.address);
        session.login("u", "p");
        // Data connections: one half closed during a download, one silent during an upload.
        let mut data = session.begin(&format!("{verb} {}", if verb == "RETR" { "large" } else { "new" }));
        if verb == "STOR" {
            data.write_all(&[0; 1000]).unwrap();
            data.flush().unwrap();
        } else {
            data.sock.shutdown(Shutdown::Write).unwrap();
        }
        sessions.push((session, data));
    }
    // A control connection whose client has closed its half without close_notify.
    let mut clear = node.connect();
    clear.command("AUTH TLS", 234);
    let control = clear.control().try_clone().unwrap();
    let half = SecureDialogue::over(&authority.client(), &Connector::new(), control.try_clone().unwrap());
    control.shutdown(Shutdown::Write).unwrap();
    let idle = SecureDialogue::explicit(&authority.client(), node.address);
    let before = processor_time(node.daemon.id());
    // No client sends anything during this time.
    thread::sleep(Duration::from_secs(2));
    let used = processor_time(node.daemon.id()) - before;
    assert!(used < Duration::from_millis(600), "{used:?} of 2 s");
    drop((half, idle, sessions));
    for mut stream in halves {
        drop(stream.shutdown(Shutdown::Both));
        read_what_comes(&mut stream);
    }
}

/// Timers and the clock: ProFTPD #2047 (a clock change closes sessions). Time limits use the monotonic clock.
/// Only the files below read the wall clock, for times that are shown, stored or compared with a date.
#[test]
fn only_these_files_read_the_wall_clock() {
    let allowed = [
        // Times of the records that administrators read.
        "common/src/audit/trail.rs",
        // The functions that the other files call.
        "common/src/clock.rs",
        // Time since which a dependency fails, as /readyz shows it.
        "common/src/health.rs",
        "common/src/process/logging.rs",
        // The node's clock, which administrators compare with theirs.
        "common/src/registry/core.rs",
        // Time of the details of sessions.
        "common/src/registry/live.rs",
        // The registry's clock, before Redis has answered with its own.
        "common/src/registry/port_map.rs",
        // Time at which a ticket key was created, if Redis is not used.
        "common/src/registry/shared_keys.rs",
        "ftpd/src/commands/listings.rs",
        "ftpd/src/commands/login.rs",
        // Times of the lines that administrators read.
        "ftpd/src/dialogue.rs",
        // The order of renames and removals that Redis granted no lease for.
        "ftpd/src/events/begun.rs",
        // Age of an event, whose time a dead node of another host may have written.
        "ftpd/src/events/deliverer.rs",
        // The number of a process, which is greater than those of the node's earlier ones.
        "ftpd/src/events/directory.rs",
        // Times that a receiver reads.
        "ftpd/src/events/record.rs",
        "ftpd/src/events/webhook.rs",
        // Age of a file by its modification time, which the storage set.
        "ftpd/src/jail/sweep.rs",
        "ftpd/src/server/start.rs",
        // The end of a drain, as administrators see it. The drain itself does not use it.
        "ftpd/src/server/stop.rs",
        // Expiry of certificates and revocation lists, and age of tickets.
        "ftpd/src/tls/certificates.rs",
        "ftpd/src/tls/mod.rs",
        "ftpd/src/tls/tickets.rs",
        "ftpd/src/tls/trust.rs",
        "ftpd/src/transfer_log.rs",
    ];
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found: Vec<String> = Vec::new();
    let mut left: Vec<PathBuf> = ["common/src", "ftpd/src"].map(|part| workspace.join(part)).to_vec();
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let source = fs::read(&path).unwrap();
        let readers = [
            "SystemTime::now",
            "now_utc",
            "UtcDateTime::now",
            "now_local",
            "since_epoch()",
            "unix_seconds()",
        ];
        let reads_clock =
            readers.iter().any(|name| source.windows(name.len()).any(|part| part == name.as_bytes()));
        if reads_clock {
            found.push(path.strip_prefix(workspace).unwrap().to_str().unwrap().to_owned());
        }
    }
    found.sort();
    assert_eq!(found, allowed);
}
