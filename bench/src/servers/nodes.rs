//! Our node, as it is deployed and by itself, and the balancer before it.

use std::{
    io,
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    rc::Rc,
};

use cluster_tests::nginx;
use common::node::PortRange;

use super::{Kind, Server, Site, address, require};
use crate::client::{PASSWORD, USER, other};

const CONTROL: u16 = 2121;
/// Enough for the transfers of the largest workload; each port is a descriptor.
pub const PASSIVE_PORTS: (u16, u16) = (20000, 21499);

/// A cluster of one node with its Redis and its authd.
///
/// # Errors
/// A part does not start.
pub fn cluster(site: &Site, kind: Kind) -> io::Result<Server> {
    let (host, name) = match kind {
        Kind::FtpdSync => (30, "ftpd-sync"),
        Kind::Before => (60, "ftpd-before"),
        _ => (20, "ftpd"),
    };
    let daemons = match kind {
        Kind::Before => site.before.as_ref().ok_or_else(|| other("there is no other build: --before"))?,
        _ => &site.daemons,
    };
    let folder = site.folder(name)?;
    let (redis, authd) = (address(host + 1, 6379), address(host + 2, 5160));
    let token = site.file(&format!("{name}/token"), "token-of-the-benchmark")?;

    let mut command = Command::new("redis-server");
    command.args(["--bind", &redis.ip().to_string(), "--port", &redis.port().to_string()]);
    command.args(["--save", "", "--appendonly", "no", "--dir"]).arg(&folder);
    let (redis_process, redis_group) = site.process("redis", command)?;

    let users = format!("[users.{USER}]\npassword_hash = \"{}\"\nhome = \"/bench\"\n", hash(daemons)?);
    let users = site.file(&format!("{name}/users.toml"), &users)?;
    let mut command = Command::new(require(daemons.join("authd"))?);
    command.env_clear().args(["--listen", &authd.to_string(), "--redis-url", &redis.to_string()]);
    command.arg("--users-file").arg(users);
    let administrators = site.file(&format!("{name}/admin-token"), "token-of-no-administrator")?;
    command.arg("--node-token-file").arg(&token).arg("--admin-token-file").arg(administrators);
    let (mut authd_process, authd_group) = site.process("authd", command)?;
    authd_process.wait_until(|| TcpStream::connect(authd))?;

    let mut command = node(site, daemons, host)?;
    command.args(["--node-name", "ftp1", "--cluster-nodes", "ftp1"]);
    command.args(["--redis-url", &redis.to_string(), "--authd-urls", &format!("http://{authd}")]);
    command.arg("--authd-token-file").arg(token);
    // The balancer's; clients have others.
    command.args(["--trusted-balancers", "127.0.0.1/32"]);
    command.arg("--root").arg(site.scratch.join("files"));
    command.arg(format!("--sync-uploads={}", kind == Kind::FtpdSync));
    let (process, group) = site.process(name, command)?;
    Ok(Server {
        kind,
        address: address(host, CONTROL),
        _processes: vec![redis_process, authd_process, process],
        group,
        beside: vec![("authd", authd_group), ("redis", redis_group)],
    })
}

/// A node that needs nothing else.
///
/// # Errors
/// It does not start.
pub fn standalone(site: &Site) -> io::Result<Server> {
    let host = 40;
    let mut command = node(site, &site.daemons, host)?;
    command.args(["--standalone", "--sync-uploads=false", &format!("--user={USER}:{PASSWORD}"), "--root"]);
    command.arg(&site.home);
    site.server(Kind::FtpdAlone, address(host, CONTROL), "ftpd-alone", command)
}

/// What nodes have in common. Limits are as they are by default, but for what the workloads exceed.
fn node(site: &Site, daemons: &Path, host: u8) -> io::Result<Command> {
    let mut command = Command::new(require(daemons.join("ftpd"))?);
    let (from, to) = PASSIVE_PORTS;
    command.env_clear();
    command.args(["--listen", &address(host, 0).ip().to_string(), "--port", &CONTROL.to_string()]);
    command.args(["--passive-port-min", &from.to_string(), "--passive-port-max", &to.to_string()]);
    command.args(["--admin-listen", &address(host, 9121).to_string()]);
    // As with the others: a line for each login and transfer is a write of its own.
    command.args(["--log-level", "warn"]);
    command.args([
        "--max-sessions",
        "16000",
        "--max-transfers",
        "1200",
        "--max-transfers-per-user",
        "1200",
        "--idle-timeout",
        "1h",
    ]);
    command.arg("--tls-certificates").arg(&site.certificate.chain);
    command.arg("--tls-keys").arg(&site.certificate.key);
    Ok(command)
}

/// nginx with the repository's templates before a node that runs already. What is measured is the
/// node; nginx is shown apart.
///
/// # Errors
/// It does not start.
pub fn balancer(site: &Site, node: &Server) -> io::Result<Server> {
    let listen = address(1, CONTROL);
    let slice = PortRange::new(PASSIVE_PORTS.0, PASSIVE_PORTS.1).map_err(io::Error::other)?;
    let balancer = nginx::Balancer {
        address: (*listen.ip()).into(),
        control_port: listen.port(),
        nodes: vec![("ftp1".to_owned(), (*node.address.ip()).into(), slice)],
        node_port: node.address.port(),
        implicit_port: None,
    };
    let folder = site.folder("nginx")?;
    // One CPU has all servers: a second worker would have none of its own.
    let configuration = balancer.configuration(&folder).replace("worker_processes 2;", "worker_processes 1;");
    let configuration = site.file("nginx/nginx.conf", &configuration)?;
    let mut command = Command::new("nginx");
    command.arg("-p").arg(&folder).arg("-c").arg(configuration).args(["-e", "stderr", "-g", "daemon off;"]);
    let (process, group) = site.process("nginx", command)?;
    let mut beside = vec![("nginx", group)];
    beside.extend(node.beside.iter().map(|(name, group)| (*name, Rc::clone(group))));
    let group = Rc::clone(&node.group);
    Ok(Server { kind: Kind::Balancer, address: listen, _processes: vec![process], group, beside })
}

/// The password's hash, as operators make it.
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
