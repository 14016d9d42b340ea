//! Starts our node with authd and Redis, standalone, or behind nginx or ftp-relay.

use std::{
    io,
    net::{SocketAddrV4, TcpStream},
    path::Path,
    process::{Command, Stdio},
    rc::Rc,
};

use cluster_tests::nginx;
use common::node::PortRange;

use super::{Server, ServerKind, Testbed, address, require};
use crate::{
    client::{PASSWORD, USER, other},
    machine::PASSIVE_PORTS,
};

const CONTROL_PORT: u16 = 2121;

/// Starts a cluster of one node, Redis and authd.
///
/// # Errors
/// One of them does not start.
pub(super) fn cluster(testbed: &Testbed, kind: ServerKind) -> io::Result<Server> {
    let (host, name) = match kind {
        ServerKind::FtpdSync => (30, "ftpd-sync"),
        ServerKind::FtpdNoAudit => (70, "ftpd-no-audit"),
        ServerKind::FtpdAudit => (80, "ftpd-audit"),
        ServerKind::Before => (60, "ftpd-before"),
        _ => (20, "ftpd"),
    };
    let daemons = match kind {
        ServerKind::Before => testbed.before.as_ref().ok_or_else(|| other("--before is not given"))?,
        _ => &testbed.daemons,
    };
    let directory = testbed.directory(name)?;
    let (redis, authd) = (redis_of(host), address(host + 2, 5160));
    let token = testbed.file(&format!("{name}/token"), "token-of-the-benchmark")?;

    let mut command = Command::new("redis-server");
    command.args(["--bind", &redis.ip().to_string(), "--port", &redis.port().to_string()]);
    command.args(["--save", "", "--appendonly", "no", "--dir"]).arg(&directory);
    let (redis_process, redis_group) = testbed.process("redis", command)?;

    let users = format!("[users.{USER}]\npassword_hash = \"{}\"\nhome = \"/bench\"\n", hash(daemons)?);
    let users = testbed.file(&format!("{name}/users.toml"), &users)?;
    let mut command = Command::new(require(daemons.join("authd"))?);
    command.env_clear().args(["--listen", &authd.to_string(), "--redis-url", &redis.to_string()]);
    command.arg("--users-file").arg(users);
    let administrators = testbed.file(&format!("{name}/admin-token"), "token-of-no-administrator")?;
    command.arg("--node-token-file").arg(&token).arg("--admin-token-file").arg(administrators);
    let (mut authd_process, authd_group) = testbed.process("authd", command)?;
    authd_process.wait_until(|| TcpStream::connect(authd))?;

    let mut command = node(testbed, daemons, host)?;
    command.args(["--node-name", "ftp1", "--cluster-nodes", "ftp1"]);
    command.args(["--redis-url", &redis.to_string(), "--authd-urls", &format!("http://{authd}")]);
    command.arg("--authd-token-file").arg(token);
    // The balancer connects from 127.0.0.1. Clients use other addresses.
    command.args(["--trusted-balancers", "127.0.0.1/32"]);
    command.arg("--root").arg(testbed.scratch.join("files"));
    command.arg(format!("--sync-uploads={}", kind == ServerKind::FtpdSync));
    match kind {
        ServerKind::FtpdNoAudit => drop(command.arg("--audit-records=0")),
        ServerKind::FtpdAudit => drop(command.arg("--audit-log").arg(directory.join("audit.log"))),
        _ => {}
    }
    let (process, group) = testbed.process(name, command)?;
    Ok(Server {
        kind,
        address: address(host, CONTROL_PORT),
        node: None,
        processes: vec![redis_process, authd_process, process],
        group,
        helpers: vec![("authd", authd_group), ("redis", redis_group)],
    })
}

/// Starts a standalone node.
///
/// # Errors
/// The node does not start.
pub(super) fn standalone(testbed: &Testbed) -> io::Result<Server> {
    let host = 40;
    let mut command = node(testbed, &testbed.daemons, host)?;
    command.args(["--standalone", "--sync-uploads=false", &format!("--user={USER}:{PASSWORD}"), "--root"]);
    command.arg(&testbed.home);
    testbed.server(ServerKind::FtpdAlone, address(host, CONTROL_PORT), "ftpd-alone", command)
}

/// Returns the command that starts a node, with the arguments that all nodes share. Limits have their
/// default values unless a workload exceeds them.
fn node(testbed: &Testbed, daemons: &Path, host: u8) -> io::Result<Command> {
    let mut command = Command::new(require(daemons.join("ftpd"))?);
    let (from, to) = PASSIVE_PORTS;
    command.env_clear();
    command.args(["--listen", &address(host, 0).ip().to_string(), "--port", &CONTROL_PORT.to_string()]);
    command.args(["--passive-port-min", &from.to_string(), "--passive-port-max", &to.to_string()]);
    command.args(["--admin-listen", &address(host, 9121).to_string()]);
    // No log lines for logins and transfers, as for the other servers: each line is one `write`.
    command.args(["--log-level", "warn"]);
    command.args([
        "--max-sessions",
        "16000",
        "--max-transfers",
        "6000",
        "--max-transfers-per-user",
        "6000",
        "--idle-timeout",
        "1h",
    ]);
    command.arg("--tls-certificates").arg(&testbed.certificate.chain);
    command.arg("--tls-keys").arg(&testbed.certificate.key);
    Ok(command)
}

/// Starts nginx, with the repository's templates, or ftp-relay in front of a node that already runs. The node
/// is the measured process; the helper "balancer" is reported separately.
///
/// # Errors
/// The balancer does not start.
pub(super) fn balancer(testbed: &Testbed, kind: ServerKind, node: &Server) -> io::Result<Server> {
    let host = if kind == ServerKind::Relay { 2 } else { 1 };
    let address = address(host, CONTROL_PORT);
    let (name, command) = if kind == ServerKind::Relay {
        ("ftp-relay", relay(testbed, address, node)?)
    } else {
        ("nginx", nginx(testbed, address, node)?)
    };
    let (process, group) = testbed.process(name, command)?;
    let mut helpers = vec![("balancer", group)];
    helpers.extend(node.helpers.iter().map(|(name, group)| (*name, Rc::clone(group))));
    let group = Rc::clone(&node.group);
    let node = Some(node.address);
    Ok(Server { kind, address, node, processes: vec![process], group, helpers })
}

fn nginx(testbed: &Testbed, listen: SocketAddrV4, node: &Server) -> io::Result<Command> {
    let slice = PortRange::new(PASSIVE_PORTS.0, PASSIVE_PORTS.1).map_err(io::Error::other)?;
    let balancer = nginx::Balancer {
        address: (*listen.ip()).into(),
        control_port: listen.port(),
        nodes: vec![("ftp1".to_owned(), (*node.address.ip()).into(), slice)],
        node_port: node.address.port(),
        implicit_port: None,
    };
    let directory = testbed.directory("nginx")?;
    // All servers share one CPU, so a second nginx worker would have no CPU of its own.
    let configuration =
        balancer.configuration(&directory).replace("worker_processes 2;", "worker_processes 1;");
    let configuration = testbed.file("nginx/nginx.conf", &configuration)?;
    let mut command = Command::new("nginx");
    command.arg("-p").arg(&directory).arg("-c").arg(configuration);
    command.args(["-e", "stderr", "-g", "daemon off;"]);
    Ok(command)
}

/// The relay reads the registry of the node's cluster.
fn relay(testbed: &Testbed, listen: SocketAddrV4, node: &Server) -> io::Result<Command> {
    let [.., host] = node.address.ip().octets();
    let (from, to) = PASSIVE_PORTS;
    let mut command = Command::new(require(testbed.daemons.join("ftp-relay"))?);
    command.env_clear().args(["--listen", &listen.ip().to_string()]);
    command.args(["--control-port", &listen.port().to_string()]);
    command.args(["--passive-port-min", &from.to_string(), "--passive-port-max", &to.to_string()]);
    command.args(["--redis-url", &redis_of(host).to_string(), "--log-level", "warn"]);
    command.args(["--admin-listen", &SocketAddrV4::new(*listen.ip(), 9122).to_string()]);
    Ok(command)
}

/// The address of the Redis of the node at 127.0.0.`host`.
fn redis_of(host: u8) -> SocketAddrV4 {
    address(host + 1, 6379)
}

/// Returns the hash of the password, made by `authd hash-password`.
fn hash(daemons: &Path) -> io::Result<String> {
    let mut command = Command::new(require(daemons.join("authd"))?);
    let mut child = command
        .args(["--min-password-length", "1", "hash-password"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    if let Some(mut input) = child.stdin.take() {
        io::Write::write_all(&mut input, format!("{PASSWORD}\n").as_bytes())?;
    }
    let output = child.wait_with_output()?;
    let text = String::from_utf8(output.stdout).map_err(io::Error::other)?;
    if output.status.success() {
        Ok(text.trim().to_owned())
    } else {
        Err(other("authd hash-password failed"))
    }
}
