//! Property of a complete session: a node in this process serves a client over loopback TCP.
//!
//! An in-memory pipe would not test the code that runs in production: the node uses the socket's
//! descriptor (a transfer checks there whether the client is still connected), urgent data and half
//! close.

use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use common::{audit::AuditTrail, node::NodeRecord, registry::Registry, settings::Values};
use ftpd::{
    client_address::{ConnectionAddresses, TrustedBalancers},
    config::Config,
    connection_log::ConnectionLog,
    control::ControlConnection,
    data::passive::{PassivePorts, PassiveSockets},
    events::Events,
    node::{Node, NodeParts},
    protocol::{AnyTimeCommand, Command, command::is_foreign, line::Line, parse},
    settings::SCHEMA,
    transfer_log::TransferLog,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    time::timeout,
};

use crate::lines::{lines, whole_replies};

/// Time limit of a session. These sessions take milliseconds, plus some 10 ms for each data connection
/// that the client does not open.
const DEADLINE: Duration = Duration::from_secs(60);

/// Sent after each input. It ends an unfinished line or Telnet sequence, and then the session.
const TAIL: &[u8] = b"\r\n\r\n\r\nQUIT\r\n";

/// Property of all bytes that a client sends on its control connection. The client opens a data
/// connection to each passive port. Bit 0 of the first byte: the client logs in first. Bit 1: it opens
/// no data connections.
///
/// * Each line gets exactly one final reply until the session ends.
/// * The session ends with 221 (QUIT) or 421, or without a reply if the client speaks another protocol.
/// * The node sends only complete replies.
/// * The session neither reads nor changes anything outside the home.
pub fn session(input: &[u8]) {
    let (flags, commands) = input.split_first().map_or((0, input), |(flags, rest)| (*flags, rest));
    let login: &[u8] = if flags & 1 == 1 { b"USER demo\r\nPASS x\r\n" } else { b"" };
    let sent = [login, commands, TAIL].concat();
    // One session at a time, because all sessions use the same home.
    let test_node = TEST_NODE.lock().unwrap_or_else(PoisonError::into_inner);
    let received = test_node.runtime.block_on(async {
        let exchange = test_node.exchange(&sent, flags & 2 == 0);
        let result = timeout(DEADLINE, exchange).await.expect("the session ends in time");
        result.expect("the loopback connection works")
    });
    test_node.home.check_and_restore(&received);
    drop(test_node);
    check_replies(&sent, &received);
}

fn check_replies(sent: &[u8], received: &[u8]) {
    let shown = || received.escape_ascii().to_string();
    let codes = whole_replies(received).unwrap_or_else(|error| panic!("{error}\n{}", shown()));
    let finals = codes.iter().filter(|code| **code >= 200).count();
    let requests: Vec<_> = lines(sent, sent.len())
        .into_iter()
        .map(|line| match line {
            Line::Command(line) => parse(&line).ok().map(|request| request.command).ok_or(is_foreign(&line)),
            Line::TooLong => Err(false),
        })
        .collect();
    let is_quit = |request: &Result<Command, bool>| *request == Ok(Command::AnyTime(AnyTimeCommand::Quit));
    let quit = requests.iter().position(is_quit).expect("TAIL contains QUIT");
    let foreign = requests.iter().position(|request| *request == Err(true));
    let greeting = 1;
    match codes.last() {
        _ if is_foreign(sent) => assert_eq!(codes, [220], "{}", shown()),
        Some(221) => assert_eq!(finals, greeting + quit + 1, "{}", shown()),
        // 421 replies to a line, or comes in addition to the replies.
        Some(421) => assert!(finals <= greeting + quit + 1, "{}", shown()),
        // A line of another protocol ends the session without a reply and cancels its activity.
        _ => assert!(foreign.is_some_and(|at| at < quit && finals <= greeting + at), "{}", shown()),
    }
}

/// A node, its listener and its storage.
struct TestNode {
    runtime: Runtime,
    node: Arc<Node>,
    listener: TcpListener,
    home: Home,
}

static TEST_NODE: LazyLock<Mutex<TestNode>> = LazyLock::new(|| Mutex::new(TestNode::new()));

impl TestNode {
    fn new() -> Self {
        let home = Home::new();
        // The loopback address depends on the process id, so no other process uses its ports.
        let [high, low] = (process::id() as u16).to_be_bytes();
        let address = IpAddr::from(Ipv4Addr::new(127, 63, high, low.clamp(1, 254)));
        let settings = [
            ("standalone", "true".to_owned()),
            ("listen", address.to_string()),
            ("port", "0".to_owned()),
            ("passive_port_min", "50000".to_owned()),
            ("passive_port_max", "50003".to_owned()),
            ("root", home.root().display().to_string()),
            ("sync_uploads", "false".to_owned()),
            ("data_connect_timeout", "20ms".to_owned()),
            ("stall_timeout", "200ms".to_owned()),
            ("passive_wait", "5ms".to_owned()),
            ("max_unauthenticated_commands", "64".to_owned()),
            ("user", "demo:x".to_owned()),
        ];
        let flags = settings.map(|(key, value)| format!("--{}={value}", key.replace('_', "-")));
        let flags = SCHEMA.command().get_matches_from([vec!["ftpd".to_owned()], flags.to_vec()].concat());
        let config = Values::collect(&SCHEMA, &flags, []).and_then(|values| Config::new(&values));
        let config = config.expect("the settings are valid");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("the runtime starts");
        let (node, listener) = runtime.block_on(async {
            let listener = TcpListener::bind((address, 0)).await.expect("a port is free");
            (Arc::new(node(config, address)), listener)
        });
        Self { runtime, node, listener, home }
    }

    /// Sends all bytes, and returns what the node sent until it closed the connection.
    async fn exchange(&self, sent: &[u8], opens_data_connections: bool) -> io::Result<Vec<u8>> {
        let client = TcpStream::connect(self.listener.local_addr()?).await?;
        // Avoids TIME_WAIT, because a run opens thousands of connections.
        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
        let (stream, peer) = self.listener.accept().await?;
        stream.set_nodelay(true)?;
        let addresses = ConnectionAddresses { client: peer, reached: stream.local_addr()? };
        let entry = self.node.connections.admit(peer.ip()).map_err(|_| io::ErrorKind::QuotaExceeded)?;
        let connection = ControlConnection::new(stream, Arc::clone(&self.node), addresses, entry);
        let served = tokio::spawn(connection.serve(false));
        let (mut read, mut write) = client.into_split();
        let all = sent.to_vec();
        // The write fails if the node closes the connection before it has read everything.
        let writer = tokio::spawn(async move {
            let _ = write.write_all(&all).await;
            write
        });
        let mut received = Vec::new();
        let mut parsed = 0;
        loop {
            match read.read_buf(&mut received).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break,
                Err(error) => return Err(error),
            }
            while let Some(end) = received[parsed..].iter().position(|b| *b == b'\n') {
                let line = &received[parsed..parsed + end];
                parsed += end + 1;
                if let Some(port) = passive_port(line).filter(|_| opens_data_connections) {
                    tokio::spawn(data_connection((peer.ip(), port).into()));
                }
            }
        }
        writer.abort();
        let _ = writer.await;
        drop(read);
        served.await.map_err(io::Error::other)?;
        Ok(received)
    }
}

/// Opens a data connection, sends three bytes and reads to the end. This suits uploads and downloads.
async fn data_connection(address: SocketAddr) {
    let Ok(mut data) = TcpStream::connect(address).await else { return };
    let _ = data.write_all(b"a\r\n").await;
    let _ = data.shutdown().await;
    let _ = data.read_to_end(&mut Vec::new()).await;
}

/// Returns the port of a reply `229 … (|||50000|)` or `227 … (127,63,1,2,195,80).`.
fn passive_port(line: &[u8]) -> Option<u16> {
    let line = str::from_utf8(line).ok()?;
    let inside = line.split_once('(')?.1.split_once(')')?.0;
    if line.starts_with("229 ") {
        return inside.trim_matches('|').parse().ok();
    }
    let numbers: Vec<u8> = inside.split(',').filter_map(|n| n.parse().ok()).collect();
    match (line.starts_with("227 "), &numbers[..]) {
        (true, [.., high, low]) => Some(u16::from_be_bytes([*high, *low])),
        _ => None,
    }
}

fn node(config: Config, address: IpAddr) -> Node {
    let record = NodeRecord::new(config.node_name.clone(), 1, config.network.passive_ports);
    let trusted_balancers =
        Arc::new(TrustedBalancers { networks: Vec::new(), header_timeout: config.timeouts.proxy_header });
    let (registry, transfer_log) = (Registry::local(record), TransferLog::default());
    let passive = PassivePorts::new(&registry, config.timeouts.data_connect);
    PassiveSockets::bind(config.network.passive_ports, &[address])
        .and_then(|sockets| passive.serve(sockets, &trusted_balancers, None))
        .unwrap_or_else(|(address, error)| panic!("cannot listen on {address}: {error}"));
    let connection_log = ConnectionLog::new(config.limits.failure_lines);
    let parts = NodeParts {
        trusted_balancers,
        passive,
        relay: None,
        registry,
        connection_log,
        transfer_log,
        audit: AuditTrail::default(),
        events: Events::default(),
        tls: None,
    };
    Node::new(config, parts)
}

/// A home with symbolic links that lead out of it, and the directory that they lead to.
///
/// Rust drops no statics, so each process removes the directories of earlier, ended processes.
struct Home(PathBuf);

/// Prefix of the name of the temporary directory; the process id follows.
const PREFIX: &str = "ftpd-properties.";

/// Content of the file outside the home.
const SECRET: &str = "never-to-be-seen";

impl Home {
    fn new() -> Self {
        let temporary = std::env::temp_dir();
        for name in names(&temporary) {
            let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
            if owner.is_some_and(|id| !Path::new("/proc").join(id).exists()) {
                // Fails if another process removes the directory at the same time.
                let _ = fs::remove_dir_all(temporary.join(name));
            }
        }
        let home = Self(temporary.join(format!("{PREFIX}{}", process::id())));
        fs::create_dir(&home.0).expect("only this process uses the name");
        fs::create_dir(home.outside()).expect("the directory is new");
        fs::write(home.outside().join("secret"), SECRET).expect("the file is writable");
        fs::create_dir(home.root()).expect("the directory is new");
        home.fill();
        home
    }

    fn root(&self) -> PathBuf {
        self.0.join("home")
    }

    fn outside(&self) -> PathBuf {
        self.0.join("outside")
    }

    fn fill(&self) {
        let root = self.root();
        fs::create_dir(root.join("d")).expect("the directory is new");
        for (name, content) in [("d/f", "in d"), ("f", "0123456789"), ("x\r\n226 forged\x1b", "")] {
            fs::write(root.join(name), content).expect("the file is writable");
        }
        symlink("../outside", root.join("out")).expect("the link is new");
        symlink(self.outside().join("secret"), root.join("s")).expect("the link is new");
        symlink("..", root.join("d/up")).expect("the link is new");
    }

    /// Checks that the files outside the home are unchanged and were not sent, and fills the home anew.
    ///
    /// # Panics
    /// A file outside the home was changed or sent.
    fn check_and_restore(&self, received: &[u8]) {
        assert!(
            !received.windows(SECRET.len()).any(|part| part == SECRET.as_bytes()),
            "the session has read a file outside the home"
        );
        let names: BTreeSet<_> = names(&self.0).collect();
        assert_eq!(names, BTreeSet::from(["home".into(), "outside".into()]));
        assert_eq!(self::names(&self.outside()).collect::<Vec<_>>(), ["secret"]);
        let secret = self.outside().join("secret");
        assert_eq!(fs::read(&secret).expect("the file exists"), SECRET.as_bytes());
        let root = self.root();
        empty(&root);
        self.fill();
    }
}

fn names(directory: &Path) -> impl Iterator<Item = std::ffi::OsString> {
    let entries = fs::read_dir(directory).expect("the directory is readable");
    entries.filter_map(|entry| Some(entry.ok()?.file_name()))
}

/// Removes all entries of a directory, even if SITE CHMOD has removed its permissions.
fn empty(directory: &Path) {
    let owner_only = fs::Permissions::from_mode(0o700);
    fs::set_permissions(directory, owner_only).expect("the directory belongs to this user");
    for name in names(directory) {
        let path = directory.join(name);
        if path.symlink_metadata().expect("the entry exists").is_dir() {
            empty(&path);
            fs::remove_dir(path).expect("the directory is empty");
        } else {
            fs::remove_file(path).expect("the file is removable");
        }
    }
}
