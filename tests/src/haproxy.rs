//! HAProxy as the only balancer: it knows the nodes' addresses and the passive range, and nothing of blocks.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, SocketAddr, TcpStream},
    process::Command,
};

use common::node::PortRange;
use tempfile::TempDir;

use crate::{DEADLINE, eventually, process::Daemon};

/// The cluster as HAProxy knows it. HAProxy sends each connection to the next node in turn, at the port to
/// which the client connected.
#[derive(Clone)]
pub struct HaProxyBuilder {
    /// Address for clients.
    pub address: IpAddr,
    pub control_ports: Vec<u16>,
    pub passive: PortRange,
    pub nodes: Vec<IpAddr>,
    /// Sends a PROXY header of version 2. Otherwise HAProxy connects to the nodes from [`Self::address`],
    /// which they take for the address of every client.
    pub sends_header: bool,
}

/// A running HAProxy. Dropping it ends the process.
pub struct HaProxy {
    pub daemon: Daemon,
    _directory: TempDir,
}

impl HaProxyBuilder {
    /// Starts HAProxy and waits until it listens.
    ///
    /// # Panics
    /// HAProxy is not installed, or rejects the configuration.
    pub fn start(&self) -> HaProxy {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("haproxy.cfg");
        fs::write(&file, self.configuration()).expect("a temporary directory takes files");
        let mut command = Command::new("haproxy");
        // -db: one process in the foreground.
        command.arg("-db").arg("-f").arg(file);
        let haproxy = HaProxy { daemon: Daemon::start("haproxy", command), _directory: directory };
        let control = SocketAddr::from((self.address, self.control_ports[0]));
        eventually("HAProxy to listen", || TcpStream::connect_timeout(&control, DEADLINE).ok());
        haproxy
    }

    /// A plain configuration. `option redispatch 1`: if a node refuses a connection, the next node gets it.
    fn configuration(&self) -> String {
        let mut text = "defaults\n mode tcp\n balance roundrobin\n option redispatch 1\n retries 5\n \
                        timeout connect 5s\n timeout client 4h\n timeout server 4h\n"
            .to_owned();
        let control = self.control_ports.iter().map(u16::to_string);
        for ports in control.chain([self.passive.to_string()]) {
            let address = self.address;
            let _ = writeln!(text, "listen ports-{ports}\n bind {address}:{ports}");
            if !self.sends_header {
                let _ = writeln!(text, " source {address}");
            }
            for (i, node) in self.nodes.iter().enumerate() {
                let header = if self.sends_header { " send-proxy-v2" } else { "" };
                let _ = writeln!(text, " server node{i} {node}{header}");
            }
        }
        text
    }
}
