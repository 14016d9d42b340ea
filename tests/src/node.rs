//! A running `ftpd` process: a standalone node or a node of a cluster.

use std::{
    net::{IpAddr, SocketAddr},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use nix::sys::resource::{Resource, setrlimit};
use tempfile::TempDir;

use crate::{
    binaries,
    dialogue::Dialogue,
    eventually,
    failing_calls::{self, FailingCall},
    hang::Hang,
    http,
    loopback::Loopback,
    process::Daemon,
};

/// Settings and environment of a node that is about to start.
#[derive(Clone)]
pub struct NodeBuilder {
    loopback: Arc<Loopback>,
    storage: Arc<TempDir>,
    name: String,
    listen: IpAddr,
    settings: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    is_unprivileged: bool,
    largest_file: Option<u64>,
    open_files: Option<(u64, u64)>,
    hang: Option<Arc<Hang>>,
    failing_calls: Vec<FailingCall>,
}

/// A running `ftpd`. Dropping it ends the process.
pub struct Node {
    pub daemon: Daemon,
    pub name: String,
    /// Address of the control port.
    pub address: SocketAddr,
    /// Address of /metrics, /healthz and /readyz.
    pub admin: SocketAddr,
    builder: NodeBuilder,
}

impl Node {
    /// A standalone node with its own loopback addresses and storage directory. The test's first port
    /// number is the control port. Passive ports follow; those within [`Loopback::ports`] belong to the
    /// test on other addresses, too.
    pub fn standalone() -> NodeBuilder {
        let loopback = Arc::new(Loopback::reserve());
        let storage = Arc::new(tempfile::tempdir().expect("a temporary directory"));
        let ports = loopback.ports();
        let builder = NodeBuilder::new(loopback, storage, "standalone", 1).setting("standalone", "true");
        builder
            .setting("port", ports.start())
            .setting("passive_port_min", ports.start() + 1)
            .setting("passive_port_max", ports.start() + 300)
    }

    /// The root of the storage. On a standalone node it is the home of the users.
    pub fn root(&self) -> &Path {
        self.builder.storage.path()
    }

    /// The addresses of this test.
    pub fn loopback(&self) -> &Loopback {
        &self.builder.loopback
    }

    /// A control connection after the greeting.
    pub fn connect(&self) -> Dialogue {
        Dialogue::connect(self.address)
    }

    /// A session of `user`.
    pub fn login(&self, user: &str, password: &str) -> Dialogue {
        let mut dialogue = self.connect();
        dialogue.login(user, password);
        dialogue
    }

    /// The value of a metric, named as in Prometheus's text format: `name` or `name{label="value"}`.
    /// `None`: the metric does not exist yet.
    ///
    /// # Panics
    /// The admin address does not respond.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let answer = http::get(self.admin, "/metrics").expect("the admin address answers");
        metric(&answer.body, name)
    }

    /// Waits until `wanted` accepts the value of a metric. A missing metric counts as 0.
    ///
    /// # Panics
    /// `wanted` accepts no value in time.
    pub fn wait_for_metric(&self, name: &str, wanted: impl Fn(f64) -> bool) -> f64 {
        eventually(&format!("metric {name}"), || {
            let value = self.metric(name).unwrap_or(0.0);
            wanted(value).then_some(value)
        })
    }

    /// The builder of this node, to start another node like it.
    pub fn builder(&self) -> NodeBuilder {
        self.builder.clone()
    }
}

impl NodeBuilder {
    /// A node that listens on `loopback.address(host)`.
    pub fn new(loopback: Arc<Loopback>, storage: Arc<TempDir>, name: &str, host: u8) -> Self {
        let listen = loopback.address(host);
        let admin = SocketAddr::from((listen, 9121));
        let builder = Self {
            loopback,
            storage,
            name: name.to_owned(),
            listen,
            settings: Vec::new(),
            environment: Vec::new(),
            is_unprivileged: false,
            largest_file: None,
            open_files: None,
            hang: None,
            failing_calls: Vec::new(),
        };
        builder
            .setting("node_name", name)
            .setting("admin_listen", admin)
            .setting("log_level", "info,ftpd=debug,common=debug")
    }

    /// Sets a setting by its key. The last value counts.
    pub fn setting(mut self, key: &str, value: impl ToString) -> Self {
        let key = key.replace('-', "_");
        self.settings.retain(|(known, _)| *known != key);
        self.settings.push((key, value.to_string()));
        self
    }

    /// Makes the node, which [`Node::standalone`] built, the only node of a cluster. It has all passive ports
    /// as its slice, and need not wait for leased blocks.
    pub fn in_cluster(self) -> Self {
        let name = self.name.clone();
        self.without("standalone").setting("cluster_nodes", name)
    }

    /// Removes a setting.
    pub fn without(mut self, key: &str) -> Self {
        self.settings.retain(|(known, _)| known != key);
        self
    }

    /// Sets an environment variable.
    pub fn variable(mut self, name: &str, value: impl ToString) -> Self {
        self.environment.push((name.to_owned(), value.to_string()));
        self
    }

    /// Limits the size of files to this many bytes (RLIMIT_FSIZE). A write beyond it fails, as on a full
    /// disk.
    pub fn largest_file(mut self, bytes: u64) -> Self {
        self.largest_file = Some(bytes);
        self
    }

    /// Sets the soft and the hard limit of open files (RLIMIT_NOFILE).
    pub fn open_files(mut self, soft: u64, hard: u64) -> Self {
        self.open_files = Some((soft, hard));
        self
    }

    /// Adds a user of a standalone node.
    pub fn user(mut self, name: &str, password: &str) -> Self {
        self.settings.push(("user".to_owned(), format!("{name}:{password}")));
        self
    }

    /// Runs the node as an unprivileged user, to whom file modes apply, even if root runs the tests. That
    /// user must have access to the storage.
    pub fn unprivileged(mut self) -> Self {
        self.is_unprivileged = true;
        self
    }

    /// Uses another storage.
    pub fn storage(mut self, storage: TempDir) -> Self {
        self.storage = Arc::new(storage);
        self
    }

    /// Makes a directory of the storage hang.
    pub fn hanging(mut self, hang: &Arc<Hang>) -> Self {
        self.hang = Some(Arc::clone(hang));
        self
    }

    /// Makes this system call fail in the node, whatever its arguments.
    pub fn failing_call(mut self, call: FailingCall) -> Self {
        self.failing_calls.push(call);
        self
    }

    /// Listens on this address instead of the default one.
    pub fn listen(mut self, address: IpAddr) -> Self {
        self.listen = address;
        self
    }

    /// The root of the storage, for files that must exist before the start.
    pub fn root(&self) -> &Path {
        self.storage.path()
    }

    /// The addresses of this test.
    pub fn loopback(&self) -> &Loopback {
        &self.loopback
    }

    /// Starts the node and waits until it serves.
    ///
    /// # Panics
    /// The node does not serve in time.
    pub fn start(self) -> Node {
        let node = self.spawn();
        node.daemon.wait_for_message("ready", &[]);
        node
    }

    /// Starts the node without waiting, for tests in which it does not serve.
    ///
    /// # Panics
    /// The process cannot be started.
    pub fn spawn(self) -> Node {
        let value = |key: &str| self.settings.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str());
        let variable = |key: &str| self.environment.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
        let port = value("port").or(variable("port")).and_then(|port| port.parse().ok());
        let address = (self.listen, port.expect("the node's port is set")).into();
        let admin = value("admin_listen").and_then(|admin| admin.parse().ok());
        let admin = admin.expect("the node's admin address is set");
        let mut command = self.command();
        let hang = self.hang.as_ref().map(|hang| (hang, Hang::prepare(&mut command)));
        let daemon = Daemon::start(&format!("ftpd {}", self.name), command);
        if let Some((hang, socket)) = hang {
            hang.supervise(&socket);
        }
        Node { daemon, name: self.name.clone(), address, admin, builder: self }
    }

    fn command(&self) -> Command {
        let mut command = clean_command(binaries::daemon("ftpd"));
        if self.is_unprivileged && nix::unistd::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.arg("--listen").arg(self.listen.to_string()).arg("--root").arg(self.storage.path());
        if let Some(bytes) = self.largest_file {
            // SAFETY: setrlimit is only a system call.
            unsafe {
                command.pre_exec(move || Ok(setrlimit(Resource::RLIMIT_FSIZE, bytes, bytes)?));
            }
        }
        if let Some((soft, hard)) = self.open_files {
            // SAFETY: setrlimit is only a system call.
            unsafe {
                command.pre_exec(move || Ok(setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?));
            }
        }
        if !self.failing_calls.is_empty() {
            failing_calls::install(&mut command, &self.failing_calls);
        }
        for (key, value) in &self.settings {
            command.arg(format!("--{}={value}", key.replace('_', "-")));
        }
        command
    }
}

/// User id and group id of `nobody`, by convention.
const NOBODY: u32 = 65534;

/// A command without the environment of the test process.
pub(crate) fn clean_command(program: PathBuf) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("RUST_BACKTRACE", "1");
    command
}

/// Finds the value of a metric in Prometheus's text format.
pub fn metric(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// The sum of a metric over all its labels, from the daemon with this admin address. 0 if it does not exist
/// yet.
///
/// # Panics
/// The admin address does not respond.
pub fn metric_sum(admin: SocketAddr, name: &str) -> f64 {
    sum(&http::get(admin, "/metrics").expect("the admin address answers").body, name)
}

/// The same in Prometheus's text format.
fn sum(text: &str, name: &str) -> f64 {
    let value = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let is_whole_name = rest.starts_with([' ', '{']);
        if is_whole_name { rest.rsplit(' ').next()?.parse::<f64>().ok() } else { None }
    };
    text.lines().filter_map(value).sum()
}

#[cfg(test)]
mod tests {
    #[test]
    fn metrics_are_found_by_name_and_labels() {
        let text = "# TYPE a gauge\na 3\nab 4\na{b=\"c\"} 5.5\n";
        assert_eq!(super::sum(text, "a"), 8.5);
        assert_eq!(super::sum(text, "none"), 0.0);
        assert_eq!(super::metric(text, "a"), Some(3.0));
        assert_eq!(super::metric(text, "a{b=\"c\"}"), Some(5.5));
        assert_eq!(super::metric(text, "b"), None);
    }
}
