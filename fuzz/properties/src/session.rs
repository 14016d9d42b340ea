//! A whole session: a node in this process, over a TCP connection of the loopback network.
//!
//! Not over a pipe in memory: a control connection is asked for its descriptor (a transfer looks
//! there whether the client still stands), takes urgent data and is half closed; what is tested
//! would not be what runs.

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

use common::{node::NodeRecord, registry::Registry, settings::Values};
use ftpd::{
    client_address::{Ends, Trust},
    config::Config,
    control::ControlConnection,
    data::passive::PassivePorts,
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

/// What a session may take. Those here take milliseconds, and some tens of them for every data
/// connection that does not come.
const DEADLINE: Duration = Duration::from_secs(60);

/// Lets every input end: whatever state it leaves the line in, a line ends here.
const TAIL: &[u8] = b"\r\n\r\n\r\nQUIT\r\n";

/// Bytes from a client that connects to every passive port it is told. Bit 0 of the first byte:
/// it has logged in before; bit 1: it never connects.
///
/// Every line has exactly one final reply up to the session's end, which is QUIT's 221, a 421, or
/// silence for another protocol; what is sent is whole replies and nothing else; and nothing
/// outside the home is read or changed.
pub fn session(input: &[u8]) {
    let (kind, said) = input.split_first().map_or((0, input), |(kind, said)| (*kind, said));
    let login: &[u8] = if kind & 1 == 1 { b"USER demo\r\nPASS x\r\n" } else { b"" };
    let sent = [login, said, TAIL].concat();
    // One session at a time: each has the home for itself.
    let world = WORLD.lock().unwrap_or_else(PoisonError::into_inner);
    let received = world.runtime.block_on(async {
        let talk = world.talk(&sent, kind & 2 == 0);
        timeout(DEADLINE, talk).await.expect("the session has no end").expect("a loopback connection")
    });
    world.home.check_and_restore(&received);
    drop(world);
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
    let quit = requests.iter().position(is_quit).expect("QUIT is in the tail");
    let foreign = requests.iter().position(|request| *request == Err(true));
    let greeting = 1;
    match codes.last() {
        _ if is_foreign(sent) => assert_eq!(codes, [220], "{}", shown()),
        Some(221) => assert_eq!(finals, greeting + quit + 1, "{}", shown()),
        // The reply to a line, or one more.
        Some(421) => assert!(finals <= greeting + quit + 1, "{}", shown()),
        // What runs then is called off.
        _ => assert!(foreign.is_some_and(|at| at < quit && finals <= greeting + at), "{}", shown()),
    }
}

/// The node and what it serves.
struct World {
    runtime: Runtime,
    node: Arc<Node>,
    listener: TcpListener,
    home: Home,
}

static WORLD: LazyLock<Mutex<World>> = LazyLock::new(|| Mutex::new(World::new()));

impl World {
    fn new() -> Self {
        let home = Home::new();
        // An address of this process: ports on it are free.
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
        let config = config.expect("the settings are right");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (node, listener) = runtime.block_on(async {
            let listener = TcpListener::bind((address, 0)).await.expect("a port is free");
            (Arc::new(node(config, address)), listener)
        });
        Self { runtime, node, listener, home }
    }

    /// Sends it all and returns what came until the node closed the connection.
    async fn talk(&self, sent: &[u8], connects: bool) -> io::Result<Vec<u8>> {
        let client = TcpStream::connect(self.listener.local_addr()?).await?;
        // Leaves no connection behind that waits for late packets: there are thousands.
        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
        let (stream, peer) = self.listener.accept().await?;
        stream.set_nodelay(true)?;
        let ends = Ends { client: peer, reached: stream.local_addr()? };
        let entry = self.node.connections.admit(peer.ip()).map_err(|_| io::ErrorKind::QuotaExceeded)?;
        let connection = ControlConnection::new(stream, Arc::clone(&self.node), ends, entry);
        let served = tokio::spawn(connection.serve(false));
        let (mut read, mut write) = client.into_split();
        let all = sent.to_vec();
        // The node may close before it has read it all.
        let writer = tokio::spawn(async move {
            let _ = write.write_all(&all).await;
            write
        });
        let mut received = Vec::new();
        let mut looked = 0;
        loop {
            match read.read_buf(&mut received).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break,
                Err(error) => return Err(error),
            }
            while let Some(end) = received[looked..].iter().position(|b| *b == b'\n') {
                let line = &received[looked..looked + end];
                looked += end + 1;
                if let Some(port) = passive_port(line).filter(|_| connects) {
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

/// Sends a little and takes what comes, whichever of both the transfer is for.
async fn data_connection(address: SocketAddr) {
    let Ok(mut data) = TcpStream::connect(address).await else { return };
    let _ = data.write_all(b"a\r\n").await;
    let _ = data.shutdown().await;
    let _ = data.read_to_end(&mut Vec::new()).await;
}

/// Of `229 … (|||50000|)`, or `227 … (127,63,1,2,195,80).`.
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
    let record = NodeRecord::new(config.node_name.clone(), 1, config.network.slice);
    let trust = Arc::new(Trust { balancers: Vec::new(), header_timeout: config.timeouts.proxy_header });
    let passive =
        PassivePorts::listen(config.network.slice, &[address], &trust, config.timeouts.data_connect)
            .unwrap_or_else(|(address, error)| panic!("cannot listen on {address}: {error}"));
    let (registry, transfer_log) = (Registry::local(record), TransferLog::default());
    Node::new(config, NodeParts { trust, passive, registry, transfer_log, tls: None })
}

/// A home with links that lead out of it, and what they lead to.
///
/// Nothing tells a static when the process ends: each process removes what those before it left.
struct Home(PathBuf);

/// Before the process's id, in the name of its directory.
const PREFIX: &str = "ftpd-properties.";

/// Only outside.
const SECRET: &str = "never-to-be-seen";

impl Home {
    fn new() -> Self {
        let temporary = std::env::temp_dir();
        for name in names(&temporary) {
            let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
            if owner.is_some_and(|id| !Path::new("/proc").join(id).exists()) {
                // Another process may be about to do the same.
                let _ = fs::remove_dir_all(temporary.join(name));
            }
        }
        let home = Self(temporary.join(format!("{PREFIX}{}", process::id())));
        fs::create_dir(&home.0).expect("the directory is this process's alone");
        fs::create_dir(home.outside()).expect("a directory");
        fs::write(home.outside().join("secret"), SECRET).expect("a file");
        fs::create_dir(home.root()).expect("a directory");
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
        fs::create_dir(root.join("d")).expect("a directory");
        fs::write(root.join("d/f"), "in d").expect("a file");
        fs::write(root.join("f"), "0123456789").expect("a file");
        fs::write(root.join("x\r\n226 forged\x1b"), "").expect("a file");
        symlink("../outside", root.join("out")).expect("a link");
        symlink(self.outside().join("secret"), root.join("s")).expect("a link");
        symlink("..", root.join("d/up")).expect("a link");
    }

    /// # Panics
    /// Something outside has changed, or was sent.
    fn check_and_restore(&self, received: &[u8]) {
        assert!(!received.windows(SECRET.len()).any(|part| part == SECRET.as_bytes()), "a secret was read");
        let names: BTreeSet<_> = names(&self.0).collect();
        assert_eq!(names, BTreeSet::from(["home".into(), "outside".into()]));
        assert_eq!(self::names(&self.outside()).collect::<Vec<_>>(), ["secret"]);
        let secret = self.outside().join("secret");
        assert_eq!(fs::read(&secret).expect("the file is there"), SECRET.as_bytes());
        let root = self.root();
        empty(&root);
        self.fill();
    }
}

fn names(directory: &Path) -> impl Iterator<Item = std::ffi::OsString> {
    let entries = fs::read_dir(directory).expect("a directory");
    entries.filter_map(|entry| Some(entry.ok()?.file_name()))
}

/// Removes all in a directory, also what SITE CHMOD has closed.
fn empty(directory: &Path) {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).expect("a directory of our own");
    for name in names(directory) {
        let path = directory.join(name);
        if path.symlink_metadata().expect("an entry").is_dir() {
            empty(&path);
            fs::remove_dir(path).expect("an empty directory");
        } else {
            fs::remove_file(path).expect("a file");
        }
    }
}
