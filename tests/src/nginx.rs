//! The balancer: nginx with the configuration of this repository.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use common::node::PortRange;
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{DEADLINE, eventually, network, process::Daemon};

/// Longer than the nodes' `stall_timeout` and `idle_timeout`.
const DATA_TIMEOUT: &str = "6m";

/// The cluster as the balancer knows it.
#[derive(Clone)]
pub struct Balancer {
    /// Address for clients.
    pub address: IpAddr,
    pub control_port: u16,
    /// Name, address and slice of each node. Nodes listen on `node_port`.
    pub nodes: Vec<(String, IpAddr, PortRange)>,
    pub node_port: u16,
    /// Addresses of clients and nodes for implicit TLS.
    pub implicit_port: Option<u16>,
}

/// A running nginx. Dropping it ends nginx and its workers.
pub struct Nginx {
    pub daemon: Daemon,
    directory: TempDir,
}

impl Nginx {
    /// Starts nginx for control and data connections, and waits until it listens.
    ///
    /// # Panics
    /// nginx is not installed, or rejects the configuration.
    pub fn start(balancer: &Balancer) -> Self {
        Self::start_with(balancer, true)
    }

    /// Starts nginx for control connections only.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn start_for_control(balancer: &Balancer) -> Self {
        Self::start_with(balancer, false)
    }

    fn start_with(balancer: &Balancer, carries_data: bool) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let configuration = directory.path().join("nginx.conf");
        fs::write(&configuration, balancer.fill(directory.path(), carries_data))
            .expect("a temporary directory takes files");
        let mut command = Command::new("nginx");
        command.arg("-p").arg(directory.path()).arg("-c").arg(configuration);
        // In a user namespace of the test, root is the only user.
        let user = if network::is_own() { " user root root;" } else { "" };
        command.args(["-e", "stderr", "-g", &format!("daemon off;{user}")]);
        // SIGKILL would leave the workers behind.
        let daemon = Daemon::start_ending_with("nginx", command, Signal::SIGTERM);
        let nginx = Self { daemon, directory };
        let control = SocketAddr::from((balancer.address, balancer.control_port));
        eventually("nginx to listen", || std::net::TcpStream::connect_timeout(&control, DEADLINE).ok());
        nginx
    }

    /// Number of ended connections that no node has accepted.
    pub fn refused(&self) -> usize {
        let log = fs::read_to_string(self.directory.path().join("access.log")).unwrap_or_default();
        // Time of each connection attempt; `-` if it failed.
        let last_try =
            |line: &str| Some(line.split_once(" connect=")?.1.split_once(" first_byte=")?.0.to_owned());
        log.lines().filter_map(last_try).filter(|tries| tries.ends_with('-')).count()
    }
}

/// The line that loads nginx's stream module, if it is not built in. `nginx -V` tells which is the case. The
/// existence of a module file is not sufficient: it may belong to another nginx, and loading it would fail.
///
/// # Panics
/// nginx is not installed.
fn load_stream_module() -> String {
    static LINE: LazyLock<String> = LazyLock::new(|| {
        let output = Command::new("nginx").arg("-V").output().expect("nginx is installed");
        stream_module(&String::from_utf8_lossy(&output.stderr))
    });
    LINE.clone()
}

/// The same, from the output of `nginx -V`.
fn stream_module(build: &str) -> String {
    let options = build.split([' ', '\n']);
    if !options.clone().any(|option| option == "--with-stream=dynamic") {
        return String::new();
    }
    let value = |name: &str| options.clone().find_map(|option| option.strip_prefix(name));
    let prefix = value("--prefix=").unwrap_or("/usr/local/nginx");
    let modules = value("--modules-path=").map_or_else(|| format!("{prefix}/modules"), str::to_owned);
    format!("load_module {modules}/ngx_stream_module.so;")
}

impl Balancer {
    /// The templates of `nginx/`, filled in as described in their README.
    pub fn configuration(&self, directory: &Path) -> String {
        self.fill(directory, true)
    }

    fn fill(&self, directory: &Path, carries_data: bool) -> String {
        let timeouts = [("control_timeout", "4h"), ("data_timeout", DATA_TIMEOUT)];
        let listen =
            |ports: &str| fill("listen.conf", &[("address", &bracketed(self.address)), ("ports", ports)]);
        let upstream = |address: IpAddr, port: u16| {
            let port = port.to_string();
            fill("upstream-server.conf", &[("node", &bracketed(address)), ("port", &port)])
        };
        let data = |(name, address, slice): &(String, IpAddr, PortRange)| {
            let listen = listen(&slice.to_string());
            let values = [("name", name.as_str()), ("data_listen", &listen), ("node", &bracketed(*address))];
            fill("data-server.conf", &[&values[..], &timeouts].concat())
        };
        let access_log = directory.join("access.log").display().to_string();
        let control = |port: u16, node_port: u16| {
            let servers: String =
                self.nodes.iter().map(|(_, address, _)| upstream(*address, node_port)).collect();
            let (listen, node_port) = (listen(&port.to_string()), node_port.to_string());
            let values =
                [("port", node_port.as_str()), ("control_listen", &listen), ("upstream_servers", &servers)];
            fill("control.conf", &[&values[..], &timeouts].concat())
        };
        let implicit_control = self.implicit_port.map_or_else(String::new, |port| control(port, port));
        let control = control(self.control_port, self.node_port);
        let data_nodes = if carries_data { &self.nodes[..] } else { &[] };
        let data_servers: String = data_nodes.iter().map(data).collect();
        let values = [
            ("access_log", access_log.as_str()),
            ("control", &control),
            ("implicit_control", &implicit_control),
            ("data_servers", &data_servers),
        ];
        let stream = fill("stream.conf", &[&values[..], &timeouts].concat());
        let listeners: u32 = 2 + self.nodes.iter().map(|(_, _, slice)| slice.count()).sum::<u32>();
        let connections = 2 * (250 + 250) + listeners + 64;
        fill(
            "nginx.conf",
            &[
                ("load_module", &load_stream_module()),
                ("pid", &directory.join("nginx.pid").display().to_string()),
                ("error_log", "stderr"),
                ("worker_processes", "2"),
                ("worker_connections", &connections.to_string()),
                ("worker_rlimit_nofile", &(2 * connections).to_string()),
                ("worker_shutdown_timeout", "5m"),
                ("stream", &stream),
            ],
        )
    }
}

/// Fills in one template of `nginx/`.
///
/// # Panics
/// There is no such template.
pub fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../nginx").join(template);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    values.iter().fold(text, |text, (name, value)| text.replace(&format!("@{name}@"), value))
}

fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_placeholder_is_left_and_nginx_accepts_the_result() {
        let slices = PortRange::new(20000, 20010).unwrap();
        let node = |i: u8| {
            let slice = slices.slice(i.into(), 3).unwrap();
            (format!("node-{i}"), IpAddr::from([127, 0, 0, 11 + i]), slice)
        };
        let balancer = Balancer {
            address: [127, 0, 0, 1].into(),
            control_port: 20021,
            nodes: (0..3).map(node).collect(),
            node_port: 21,
            implicit_port: Some(20990),
        };
        let directory = tempfile::tempdir().unwrap();
        let text = balancer.configuration(directory.path());
        assert!(!text.contains('@'), "{text}");
        let path = directory.path().join("nginx.conf");
        fs::write(&path, text).unwrap();
        let output = Command::new("nginx").arg("-tqc").arg(path).args(["-e", "stderr"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn the_stream_module_is_loaded_only_where_it_is_not_built_in() {
        let debian =
            "configure arguments: --modules-path=/usr/lib/nginx/modules --with-stream=dynamic --with-x\n";
        assert_eq!(stream_module(debian), "load_module /usr/lib/nginx/modules/ngx_stream_module.so;");
        for built_in in ["--modules-path=/m --with-stream --with-stream_ssl_module\n", "--with-stream\n"] {
            assert_eq!(stream_module(built_in), "");
        }
    }
}
