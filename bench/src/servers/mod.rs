//! Servers that are measured: how each is started, over the same files.

mod nodes;
mod peers;

pub use self::nodes::PASSIVE_PORTS;

use std::{
    cell::Cell,
    fs, io,
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
    process::Command,
    rc::Rc,
    thread,
    time::{Duration, Instant},
};

use clap::ValueEnum;
use cluster_tests::tls::{Authority, CertificateFiles};

use crate::{
    account::{Group, machine_cpu, own_cpu},
    client::{Session, Target},
    machine::Place,
    process::Process,
};

/// What is measured, and beside what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// Our node as it is deployed, with authd and Redis; uploads without fsync, as the others.
    Ftpd,
    /// The same with `sync_uploads`, its default.
    FtpdSync,
    /// As `Ftpd`, of another build.
    Before,
    /// Our node by itself: no authd, no Redis.
    FtpdAlone,
    /// `Ftpd` behind nginx with the repository's templates.
    Balancer,
    /// The reference: bare sendfile and splice.
    Null,
    PureFtpd,
    Vsftpd,
    Proftpd,
    Unftp,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ftpd => "ftpd",
            Self::FtpdSync => "ftpd, fsync",
            Self::Before => "ftpd before",
            Self::FtpdAlone => "ftpd alone",
            Self::Balancer => "ftpd behind nginx",
            Self::Null => "null",
            Self::PureFtpd => "pure-ftpd",
            Self::Vsftpd => "vsftpd",
            Self::Proftpd => "proftpd",
            Self::Unftp => "unftp",
        }
    }

    /// Whether it can encrypt. The reference cannot: its figures are for plain FTP.
    pub fn encrypts(self) -> bool {
        self != Self::Null
    }

    /// Whether it is ours, which decides for how much of itself it is measured.
    pub fn is_ours(self) -> bool {
        matches!(self, Self::Ftpd | Self::FtpdSync | Self::Before | Self::FtpdAlone | Self::Balancer)
    }
}

/// What servers are started with.
pub struct Site {
    /// Where ftpd and authd are.
    pub daemons: PathBuf,
    /// Where those of another build are, to be compared with.
    pub before: Option<PathBuf>,
    /// Where the packages of other servers are unpacked, each in a folder of its name.
    pub peers: PathBuf,
    /// Where unftp is, if it is installed.
    pub unftp: Option<PathBuf>,
    /// For configurations and logs; removed after the run.
    pub scratch: PathBuf,
    /// What every server shows as its user's home.
    pub home: PathBuf,
    pub place: Place,
    certificate: CertificateFiles,
    // Holds the certificate's files.
    _authority: Authority,
    started: Cell<u32>,
}

/// A running server. Everything it started ends with it.
pub struct Server {
    pub kind: Kind,
    address: SocketAddrV4,
    // Before the groups, which can be removed only when they are empty.
    _processes: Vec<Process>,
    /// What is measured.
    pub group: Rc<Group>,
    /// What serves it, and is shown apart.
    beside: Vec<(&'static str, Rc<Group>)>,
}

impl Site {
    /// `scratch` is for configurations, logs and files.
    pub fn new(daemons: PathBuf, peers: PathBuf, scratch: PathBuf, place: Place) -> Self {
        let authority = Authority::new();
        Self {
            daemons,
            before: None,
            peers,
            unftp: None,
            home: scratch.join("files/bench"),
            scratch,
            place,
            certificate: authority.sign("localhost"),
            _authority: authority,
            started: Cell::new(0),
        }
    }

    /// Starts servers and waits until a user can log in to each. A peer that is not there is left
    /// out with a message; ours must start.
    ///
    /// # Errors
    /// One of ours does not start.
    pub fn start(&self, kinds: &[Kind]) -> io::Result<Vec<Server>> {
        let mut servers: Vec<Server> = Vec::new();
        for &kind in kinds {
            let started = match kind {
                Kind::Ftpd | Kind::FtpdSync | Kind::Before => nodes::cluster(self, kind),
                Kind::FtpdAlone => nodes::standalone(self),
                Kind::Balancer => match servers.iter().find(|server| server.kind == Kind::Ftpd) {
                    Some(node) => nodes::balancer(self, node),
                    None => Err(io::Error::other("it needs ftpd beside it")),
                },
                Kind::Null => peers::null(self),
                Kind::PureFtpd => peers::pure_ftpd(self),
                Kind::Vsftpd => peers::vsftpd(self),
                Kind::Proftpd => peers::proftpd(self),
                Kind::Unftp => peers::unftp(self),
            };
            let logged_in = started.and_then(|mut server| {
                server.wait_for_login()?;
                Ok(server)
            });
            match logged_in {
                Ok(server) => servers.push(server),
                Err(error) if kind.is_ours() || kind == Kind::Null => {
                    return Err(io::Error::other(format!("{}: {error}", kind.name())));
                }
                Err(error) => eprintln!("bench: without {}: {error}", kind.name()),
            }
        }
        Ok(servers)
    }

    /// Writes a file that only this user reads, and says where it is.
    fn file(&self, name: &str, content: &str) -> io::Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt;
        let path = self.scratch.join(name);
        fs::write(&path, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(path)
    }

    /// A folder of its own for a server.
    fn folder(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.scratch.join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// Starts a process in a group of its own. What one start left is never met by the next.
    fn process(&self, name: &str, command: Command) -> io::Result<(Process, Rc<Group>)> {
        let number = self.started.replace(self.started.get() + 1);
        let group = Group::create(&format!("{number}-{name}"))?;
        let log = self.scratch.join(format!("{number}-{name}.log"));
        let process = Process::start(command, &group, self.place.cpu, log)?;
        Ok((process, Rc::new(group)))
    }

    /// A server that is one command.
    fn server(&self, kind: Kind, address: SocketAddrV4, name: &str, command: Command) -> io::Result<Server> {
        let (process, group) = self.process(name, command)?;
        Ok(Server { kind, address, _processes: vec![process], group, beside: Vec::new() })
    }
}

impl Server {
    /// Where sessions are opened.
    pub fn target(&self, encrypted: bool) -> Target {
        Target { address: self.address, encrypted }
    }

    /// The node's own address, also behind a balancer.
    fn wait_for_login(&mut self) -> io::Result<()> {
        let target = self.target(self.kind.encrypts());
        let Some(process) = self._processes.last_mut() else { return Ok(()) };
        process.wait_until(|| Session::ready(target).map(Session::quit))
    }
}

/// The cost of what happened between two moments.
pub struct Meter<'s> {
    server: &'s Server,
    cpu: f64,
    beside: Vec<f64>,
    own: f64,
    machine: f64,
    start: Instant,
}

/// Seconds.
#[derive(Clone, Debug)]
pub struct Usage {
    pub wall: f64,
    pub cpu: f64,
    pub beside: Vec<(&'static str, f64)>,
    pub client: f64,
    /// What else the machine did.
    pub foreign: f64,
}

/// For what a server still does after an answer, and the machine after a start.
const SETTLE: Duration = Duration::from_millis(30);

impl<'s> Meter<'s> {
    /// # Errors
    /// The kernel does not tell.
    pub fn start(server: &'s Server) -> io::Result<Self> {
        thread::sleep(SETTLE);
        let beside = server.beside.iter().map(|(_, group)| group.cpu()).collect::<io::Result<_>>()?;
        let (machine, own, cpu) = (machine_cpu(), own_cpu()?, server.group.cpu()?);
        Ok(Self { server, cpu, beside, own, machine, start: Instant::now() })
    }

    /// # Errors
    /// The kernel does not tell.
    pub fn stop(self) -> io::Result<Usage> {
        let wall = self.start.elapsed().as_secs_f64();
        thread::sleep(SETTLE);
        let cpu = self.server.group.cpu()? - self.cpu;
        let mut beside = Vec::new();
        for ((name, group), before) in self.server.beside.iter().zip(&self.beside) {
            beside.push((*name, group.cpu()? - before));
        }
        let client = own_cpu()? - self.own;
        let known = cpu + client + beside.iter().map(|(_, cpu)| cpu).sum::<f64>();
        Ok(Usage { wall, cpu, beside, client, foreign: (machine_cpu() - self.machine - known).max(0.0) })
    }
}

/// An address of the loopback network.
fn address(host: u8, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, host), port)
}

fn require(path: PathBuf) -> io::Result<PathBuf> {
    match path.exists() {
        true => Ok(path),
        false => Err(io::Error::new(io::ErrorKind::NotFound, format!("{} is not there", path.display()))),
    }
}

/// The versions of the packages that were unpacked, from the names of their files.
pub fn versions(peers: &Path) -> Vec<String> {
    let packages = [("pure-ftpd", "pure-ftpd"), ("vsftpd", "vsftpd"), ("proftpd", "proftpd-core")];
    let version = |(server, package): (&str, &str)| {
        let files = fs::read_dir(peers.join(format!("{server}.debs"))).ok()?;
        let names = files.filter_map(|file| file.ok()?.file_name().into_string().ok());
        let versions =
            names.filter_map(|name| Some(name.strip_prefix(package)?.split('_').nth(1)?.to_owned()));
        Some(format!("{package} {}", versions.last()?))
    };
    packages.into_iter().filter_map(version).collect()
}
