//! `ftpctl init`: the files of a new cluster, one folder for each host.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write},
    net::IpAddr,
    path::{Path, PathBuf},
};

use clap::Args;
use common::node::NodeName;

use super::{
    files,
    secrets::{private_folder, random_secret, self_signed, write_new, write_private},
};
use crate::error::ConsoleError;

/// Writes the settings, secrets and firewall rules of a new cluster, one folder for each host.
///
/// The nodes mount the storage of the backend's host over NFS. authd and Redis run on the backend's host,
/// ftp-relay on the balancer's, for control and data connections. The hosts need the packages that `./dev
/// package` makes. The commands for each host are printed, and in its file COMMANDS.
#[derive(Args, Debug)]
pub(crate) struct InitArguments {
    /// Name and internal address of each node: ftp1=10.0.0.11,ftp2=10.0.0.12.
    #[arg(long, value_name = "NAME=ADDRESS", value_delimiter = ',', required = true, value_parser = node)]
    pub(crate) nodes: Vec<(NodeName, IpAddr)>,
    /// Internal address of the host of authd, Redis and the storage.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) backend: IpAddr,
    /// Internal address of the balancer.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) balancer: IpAddr,
    /// Address that clients connect to. PASV announces it.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) public: IpAddr,
    /// Names in the self-signed certificate, besides the public address.
    #[arg(long = "name", value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// The passive range of all nodes together.
    #[arg(long, value_name = "FROM-TO", default_value = "50000-50299", value_parser = range)]
    pub(crate) passive: (u16, u16),
    /// The folder, which must not exist or be empty: secrets are never overwritten.
    #[arg(long, value_name = "FOLDER", default_value = "cluster")]
    pub(crate) out: PathBuf,
}

fn node(text: &str) -> Result<(NodeName, IpAddr), String> {
    let (name, address) = text.split_once('=').ok_or("expected NAME=ADDRESS: ftp1=10.0.0.11")?;
    let name = name.parse::<NodeName>().map_err(|error| error.to_string())?;
    Ok((name, address.parse().map_err(|_| format!("{address} is not an IP address"))?))
}

fn range(text: &str) -> Result<(u16, u16), String> {
    let ends = text.split_once('-').and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
    match ends {
        Some((from, to)) if 1024 <= from && from <= to => Ok((from, to)),
        _ => Err("expected FROM-TO, ports from 1024 to 65535: 50000-50299".to_owned()),
    }
}

/// The kind of a file: who may read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Settings: mode 0644.
    Public,
    /// Secrets and keys: mode 0600.
    Secret,
}

/// The files of one host, with paths below `/`, and the commands that put them in place.
pub(super) struct Host {
    pub(super) name: String,
    pub(super) files: Vec<(&'static str, Kind, String)>,
    pub(super) commands: Vec<String>,
}

/// Secrets of the cluster.
pub(super) struct Secrets {
    pub(super) node_token: String,
    pub(super) admin_token: String,
    pub(super) redis_password: String,
    pub(super) certificate: String,
    pub(super) key: String,
}

/// Runs the command. Returns the exit status.
pub(crate) fn run(arguments: &InitArguments) -> Result<u8, ConsoleError> {
    check(arguments)?;
    let mut names = arguments.names.clone();
    names.push(arguments.public.to_string());
    let pair = self_signed(&names)?;
    let secrets = Secrets {
        node_token: random_secret(),
        admin_token: random_secret(),
        redis_password: random_secret(),
        certificate: pair.certificate,
        key: pair.key,
    };
    let hosts = files::hosts(arguments, &secrets);
    let out = private_folder(&arguments.out)?;
    for host in &hosts {
        write_host(&out, host)?;
    }
    let mut output = io::stdout();
    for host in &hosts {
        writeln!(output, "{}, with the files of {}:", host.name, out.join(&host.name).display())?;
        for command in &host.commands {
            writeln!(output, "  {command}")?;
        }
    }
    writeln!(
        output,
        "Then, on the backend's host: ftpctl users add NAME; ftpctl doctor --as NAME {}",
        arguments.public
    )?;
    Ok(0)
}

fn check(arguments: &InitArguments) -> Result<(), ConsoleError> {
    let usage = |text: String| Err(ConsoleError::Usage(text));
    let mut addresses = BTreeSet::from([arguments.backend]);
    let mut names = BTreeSet::from(["backend".to_owned(), "balancer".to_owned()]);
    for (name, address) in &arguments.nodes {
        if !names.insert(name.to_string()) {
            return usage(format!("--nodes: {name} is the name of two hosts"));
        }
        if !addresses.insert(*address) {
            return usage(format!("--nodes: {address} is the address of two hosts"));
        }
    }
    if !addresses.insert(arguments.balancer) {
        return usage(format!("--balancer: {} is the address of another host", arguments.balancer));
    }
    // The firewall rules of a host are for one family.
    if addresses.iter().any(|address| address.is_ipv4() != arguments.backend.is_ipv4()) {
        return usage("the internal addresses must all be IPv4 or all be IPv6".to_owned());
    }
    if addresses.iter().any(IpAddr::is_unspecified) || arguments.public.is_unspecified() {
        return usage("0.0.0.0 and :: are not addresses of a host".to_owned());
    }
    let (from, to) = arguments.passive;
    let ports = usize::from(to - from) + 1;
    if ports < 5 * arguments.nodes.len() {
        return usage(format!("--passive has {ports} ports: each node needs a block of five"));
    }
    let folder = &arguments.out;
    match fs::read_dir(folder).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => usage(format!("{} is not empty: --out names a new folder", folder.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(ConsoleError::File { path: folder.clone(), error }),
    }
}

fn write_host(out: &Path, host: &Host) -> Result<(), ConsoleError> {
    let folder = private_folder(&out.join(&host.name))?;
    for (path, kind, text) in &host.files {
        let path = folder.join(path);
        if let Some(parent) = path.parent() {
            let failed = |error| ConsoleError::File { path: parent.to_owned(), error };
            fs::create_dir_all(parent).map_err(failed)?;
        }
        match kind {
            Kind::Public => write_new(&path, text, 0o644)?,
            Kind::Secret => write_private(&path, text)?,
        }
    }
    let commands = host.commands.iter().map(|command| format!("{command}\n")).collect::<String>();
    write_new(&folder.join("COMMANDS"), &commands, 0o644)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(change: impl FnOnce(&mut InitArguments)) -> Result<(), String> {
        let mut arguments = InitArguments {
            nodes: vec![node("ftp1=10.0.0.11").unwrap(), node("ftp2=10.0.0.12").unwrap()],
            backend: "10.0.0.20".parse().unwrap(),
            balancer: "10.0.0.10".parse().unwrap(),
            public: "203.0.113.10".parse().unwrap(),
            names: vec![],
            passive: (50000, 50299),
            out: "/nonexistent/cluster".into(),
        };
        change(&mut arguments);
        check(&arguments).map_err(|error| error.to_string())
    }

    #[test]
    fn clusters_that_cannot_work_are_refused_with_the_flag_to_change() {
        arguments(|_| {}).unwrap();
        let refused = |change: fn(&mut InitArguments)| arguments(change).unwrap_err();
        assert!(refused(|a| a.balancer = a.backend).contains("--balancer"));
        assert!(refused(|a| a.nodes[1].1 = a.nodes[0].1).contains("two hosts"));
        assert!(refused(|a| a.nodes[1].0 = "balancer".parse().unwrap()).contains("--nodes"));
        assert!(refused(|a| a.passive = (50000, 50008)).contains("--passive"));
        assert!(refused(|a| a.balancer = "2001:db8::1".parse().unwrap()).contains("IPv4"));
        assert!(refused(|a| a.out = "/etc".into()).contains("not empty"));
        assert!(node("ftp1").is_err() && node("=10.0.0.1").is_err() && node("ftp1=host").is_err());
        assert!(range("50299-50000").is_err() && range("21-80").is_err() && range("1024-1024").is_ok());
    }
}
