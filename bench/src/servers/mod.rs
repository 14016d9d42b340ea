//! The measured servers: starts each of them over the same files, and meters its CPU time.

mod nodes;
mod peers;

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
    client::{Endpoint, Session},
    costs::{ControlGroup, machine_cpu, own_cpu},
    machine::Placement,
    process::ServerProcess,
};

/// A server that can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum ServerKind {
    /// Our node as deployed, with authd and Redis; without fsync, like the other servers
    Ftpd,
    /// Our node with `sync_uploads`, which is its default
    FtpdSync,
    /// Our node without any audit trail (`audit_records = 0`)
    FtpdNoAudit,
    /// Our node with an audit trail in a file (`audit_log`), beside that in Redis
    FtpdAudit,
    /// Our node of the build given by --before
    Before,
    /// Our node in standalone mode: no authd, no Redis
    FtpdAlone,
    /// Our node behind nginx with the repository's templates
    Balancer,
    /// Our node behind ftp-relay
    Relay,
    /// The reference server: only sendfile and splice
    Null,
    PureFtpd,
    Vsftpd,
    Proftpd,
    Unftp,
}

impl ServerKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ftpd => "ftpd",
            Self::FtpdSync => "ftpd, fsync",
            Self::FtpdNoAudit => "ftpd, no audit trail",
            Self::FtpdAudit => "ftpd, audit file",
            Self::Before => "ftpd before",
            Self::FtpdAlone => "ftpd alone",
            Self::Balancer => "ftpd behind nginx",
            Self::Relay => "ftpd behind ftp-relay",
            Self::Null => "null",
            Self::PureFtpd => "pure-ftpd",
            Self::Vsftpd => "vsftpd",
            Self::Proftpd => "proftpd",
            Self::Unftp => "unftp",
        }
    }

    /// Returns true if the server supports TLS. The reference server does not.
    pub(crate) fn encrypts(self) -> bool {
        self != Self::Null
    }

    /// Returns true if the server is a node of ours.
    pub(crate) fn is_ours(self) -> bool {
        matches!(
            self,
            Self::Ftpd
                | Self::FtpdSync
                | Self::FtpdNoAudit
                | Self::FtpdAudit
                | Self::Before
                | Self::FtpdAlone
                | Self::Balancer
                | Self::Relay
        )
    }
}

/// The programs, files and addresses that all servers of a run start with.
pub(crate) struct Testbed {
    /// Directory of ftpd and authd.
    pub daemons: PathBuf,
    /// Directory of ftpd and authd of another build.
    pub before: Option<PathBuf>,
    /// Directory of the unpacked packages of other servers, each in a subdirectory of its name.
    pub peers: PathBuf,
    /// Path of unftp; `None` if it is not installed.
    pub unftp: Option<PathBuf>,
    /// Directory for configurations and logs; removed after the run.
    pub scratch: PathBuf,
    /// The home of the user on every server.
    pub home: PathBuf,
    pub placement: Placement,
    certificate: CertificateFiles,
    // Removes the certificate's files when it is dropped.
    _authority: Authority,
    /// Number of processes started so far.
    started: Cell<u32>,
}

/// A running server. Dropping it ends its processes.
pub(crate) struct Server {
    pub kind: ServerKind,
    address: SocketAddrV4,
    /// Address of the node behind a balancer.
    node: Option<SocketAddrV4>,
    // Dropped before the groups, which can be removed only when they are empty.
    processes: Vec<ServerProcess>,
    /// Control group of the measured process.
    pub group: Rc<ControlGroup>,
    /// Names and groups of helper processes (authd, Redis, balancer), which are reported separately.
    helpers: Vec<(&'static str, Rc<ControlGroup>)>,
}

impl Testbed {
    /// Creates the certificate. `scratch` receives configurations, logs and the served files.
    pub(crate) fn new(daemons: PathBuf, peers: PathBuf, scratch: PathBuf, placement: Placement) -> Self {
        let authority = Authority::new();
        Self {
            daemons,
            before: None,
            peers,
            unftp: None,
            home: scratch.join("files/bench"),
            scratch,
            placement,
            certificate: authority.sign("localhost"),
            _authority: authority,
            started: Cell::new(0),
        }
    }

    /// Starts servers and waits until a user can log in to each. Other servers that do not start are
    /// skipped with a message.
    ///
    /// # Errors
    /// Our node or the reference server does not start.
    pub(crate) fn start(&self, kinds: &[ServerKind]) -> io::Result<Vec<Server>> {
        let mut servers: Vec<Server> = Vec::new();
        for &kind in kinds {
            let started = match kind {
                ServerKind::Ftpd
                | ServerKind::FtpdSync
                | ServerKind::FtpdNoAudit
                | ServerKind::FtpdAudit
                | ServerKind::Before => nodes::cluster(self, kind),
                ServerKind::FtpdAlone => nodes::standalone(self),
                ServerKind::Balancer | ServerKind::Relay => {
                    match servers.iter().find(|server| server.kind == ServerKind::Ftpd) {
                        Some(node) => nodes::balancer(self, kind, node),
                        None => nodes::cluster(self, ServerKind::Ftpd).and_then(|mut node| {
                            node.wait_for_login()?;
                            let mut balancer = nodes::balancer(self, kind, &node)?;
                            balancer.processes.extend(node.processes);
                            Ok(balancer)
                        }),
                    }
                }
                ServerKind::Null => peers::null(self),
                ServerKind::PureFtpd => peers::pure_ftpd(self),
                ServerKind::Vsftpd => peers::vsftpd(self),
                ServerKind::Proftpd => peers::proftpd(self),
                ServerKind::Unftp => peers::unftp(self),
            };
            let logged_in = started.and_then(|mut server| {
                server.wait_for_login()?;
                Ok(server)
            });
            match logged_in {
                Ok(server) => servers.push(server),
                Err(error) if kind.is_ours() || kind == ServerKind::Null => {
                    return Err(io::Error::other(format!("{}: {error}", kind.name())));
                }
                Err(error) => eprintln!("bench: skipping {}: {error}", kind.name()),
            }
        }
        Ok(servers)
    }

    /// Writes a file of mode 0600 in the scratch directory and returns its path.
    fn file(&self, name: &str, content: &str) -> io::Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt;
        let path = self.scratch.join(name);
        fs::write(&path, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(path)
    }

    /// Creates a directory in the scratch directory and returns its path.
    fn directory(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.scratch.join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// Starts a process in a new control group. The names of group and log have a running number, so
    /// that two starts of the same server never share them.
    fn process(&self, name: &str, command: Command) -> io::Result<(ServerProcess, Rc<ControlGroup>)> {
        let number = self.started.replace(self.started.get() + 1);
        let group = ControlGroup::create(&format!("{number}-{name}"))?;
        let log = self.scratch.join(format!("{number}-{name}.log"));
        let process = ServerProcess::start(command, &group, self.placement.cpu, log)?;
        Ok((process, Rc::new(group)))
    }

    /// Starts a server that consists of one process.
    fn server(
        &self,
        kind: ServerKind,
        address: SocketAddrV4,
        name: &str,
        command: Command,
    ) -> io::Result<Server> {
        let (process, group) = self.process(name, command)?;
        Ok(Server { kind, address, node: None, processes: vec![process], group, helpers: Vec::new() })
    }
}

impl Server {
    /// The address for sessions.
    pub(crate) fn endpoint(&self, encrypted: bool) -> Endpoint {
        Endpoint { address: self.address, data: None, encrypted }
    }

    /// For sessions whose control connection goes to the node, and only data connections to the balancer.
    ///
    /// # Errors
    /// The server is not behind a balancer.
    pub(crate) fn endpoint_of_data(&self) -> io::Result<Endpoint> {
        let address = self.node.ok_or_else(|| io::Error::other("the server has no balancer"))?;
        Ok(Endpoint { address, data: Some(*self.address.ip()), encrypted: false })
    }

    /// The control group of a helper process.
    ///
    /// # Errors
    /// The server has no such helper.
    pub(crate) fn helper(&self, name: &str) -> io::Result<&ControlGroup> {
        let group = self.helpers.iter().find_map(|(helper, group)| (*helper == name).then_some(&**group));
        group.ok_or_else(|| io::Error::other(format!("{} has no {name}", self.kind.name())))
    }

    /// Waits until a login succeeds. Uses TLS if the server supports it.
    fn wait_for_login(&mut self) -> io::Result<()> {
        let endpoint = self.endpoint(self.kind.encrypts());
        // The process that accepts the connections is the first, or it started after its helpers.
        let first = matches!(self.kind, ServerKind::Balancer | ServerKind::Relay);
        let process = if first { self.processes.first_mut() } else { self.processes.last_mut() };
        let Some(process) = process else { return Ok(()) };
        process.wait_until(|| Session::ready(endpoint).map(Session::quit))
    }
}

/// Measures CPU time between two moments. The fields hold the values at the start.
pub(crate) struct Meter<'s> {
    server: &'s Server,
    cpu: f64,
    helpers: Vec<f64>,
    own: f64,
    machine: f64,
    start: Instant,
}

/// Elapsed time and CPU time between the two moments, in seconds.
#[derive(Clone, Debug)]
pub(crate) struct Usage {
    /// Elapsed time.
    pub wall: f64,
    /// CPU time of the measured server.
    pub cpu: f64,
    /// CPU time of each helper process.
    pub helpers: Vec<(&'static str, f64)>,
    /// CPU time of the load generator.
    pub client: f64,
    /// CPU time of all other processes on the machine.
    pub foreign: f64,
}

/// Pause before each reading: a server still works for a moment after its last reply.
const SETTLE: Duration = Duration::from_millis(30);

impl<'s> Meter<'s> {
    /// Starts measuring.
    ///
    /// # Errors
    /// A CPU time cannot be read.
    pub(crate) fn start(server: &'s Server) -> io::Result<Self> {
        thread::sleep(SETTLE);
        let helpers = server.helpers.iter().map(|(_, group)| group.cpu()).collect::<io::Result<_>>()?;
        let (machine, own, cpu) = (machine_cpu(), own_cpu()?, server.group.cpu()?);
        Ok(Self { server, cpu, helpers, own, machine, start: Instant::now() })
    }

    /// Ends measuring and returns the differences.
    ///
    /// # Errors
    /// A CPU time cannot be read.
    pub(crate) fn stop(self) -> io::Result<Usage> {
        let wall = self.start.elapsed().as_secs_f64();
        thread::sleep(SETTLE);
        let cpu = self.server.group.cpu()? - self.cpu;
        let mut helpers = Vec::new();
        for ((name, group), before) in self.server.helpers.iter().zip(&self.helpers) {
            helpers.push((*name, group.cpu()? - before));
        }
        let client = own_cpu()? - self.own;
        let known = cpu + client + helpers.iter().map(|(_, cpu)| cpu).sum::<f64>();
        Ok(Usage { wall, cpu, helpers, client, foreign: (machine_cpu() - self.machine - known).max(0.0) })
    }
}

/// Returns the address 127.0.0.`host`:`port`.
fn address(host: u8, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, host), port)
}

/// Returns `path` if it exists.
fn require(path: PathBuf) -> io::Result<PathBuf> {
    match path.exists() {
        true => Ok(path),
        false => Err(io::Error::new(io::ErrorKind::NotFound, format!("{} does not exist", path.display()))),
    }
}

/// Returns the versions of the unpacked packages, taken from their file names.
pub(crate) fn versions(peers: &Path) -> Vec<String> {
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
