//! `ftpctl doctor`: checks a cluster as a client from outside, through its public address.

mod cluster;
mod doors;
mod files;
mod findings;
mod ftp;
mod ports;
mod report;
mod sessions;
mod slow;
mod trust;

use std::{
    fs,
    io::{self, IsTerminal, Write},
    net::SocketAddr,
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use common::{admin_api::SessionView, node::NodeName};
use serde::de::DeserializeOwned;
use tokio::{net::lookup_host, time::timeout};

use self::{
    findings::Finding,
    report::{CheckLine, Report},
    trust::{SessionTls, Trust},
};
use crate::{
    api::{Api, Query},
    error::ConsoleError,
    names,
};

/// Checks the cluster as a client: ports, TLS, every node, passive ports, storage, clocks.
///
/// Exit status: 0 if nothing failed, 1 if a check failed, 2 if the arguments are wrong.
#[derive(Args, Clone, Debug)]
pub(crate) struct DoctorArguments {
    /// The name or address that clients use. Default: the host of authd's URL.
    pub(crate) host: Option<String>,
    /// Log in as this user. It needs to write in its home; test files are removed.
    #[arg(long = "as", value_name = "USER", add = names::users())]
    pub(crate) user: String,
    /// The file with the user's password in its first line. Default: the variable FTPCTL_PASSWORD.
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// Only this node. The balancer is asked until it chooses that node.
    #[arg(long, value_name = "NAME", conflicts_with = "slow", add = names::nodes())]
    pub(crate) node: Option<String>,
    /// The control port.
    #[arg(long, default_value_t = 21)]
    pub(crate) port: u16,
    /// The port of implicit TLS. 0: the nodes have no such port.
    #[arg(long, default_value_t = 990)]
    pub(crate) implicit_port: u16,
    /// Trust the authorities of this file (PEM) for the nodes' certificates, instead of the system's.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// The name that the certificate must have. Default: HOST.
    #[arg(long, value_name = "NAME")]
    pub(crate) tls_name: Option<String>,
    /// Log in although the certificate is wrong.
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Also test what happens to silent connections, for this long.
    #[arg(
        long, value_name = "TIME", num_args = 0..=1, default_missing_value = "6m", value_parser = time_span
    )]
    pub(crate) slow: Option<Duration>,
    /// The time limit of one step.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time_span)]
    pub(crate) timeout: Duration,
}

fn time_span(text: &str) -> Result<Duration, humantime::DurationError> {
    humantime::parse_duration(text)
}

/// What all checks need.
struct Doctor {
    api: Option<Api>,
    user: String,
    password: String,
    host: String,
    /// The only node to check.
    only: Option<String>,
    /// The name in the certificate.
    tls_name: String,
    implicit_port: Option<u16>,
    trust: Trust,
    insecure: bool,
    limit: Duration,
    /// The directory of the test files.
    directory: String,
}

impl Doctor {
    /// TLS without tickets of earlier sessions.
    fn session_tls(&self) -> Result<SessionTls, String> {
        self.trust.session(&self.tls_name)
    }

    /// Returns true if this node is to be checked.
    fn wants(&self, node: &NodeName) -> bool {
        self.only.as_ref().is_none_or(|only| only == node.as_str())
    }

    /// The sessions of the user, if authd tells them.
    async fn sessions(&self) -> Vec<SessionView> {
        let Some(api) = &self.api else { return Vec::new() };
        let query = vec![("user", self.user.clone())];
        self.ask(api, &["sessions"], &query).await.unwrap_or_default()
    }

    /// Asks authd within the time limit of one step.
    async fn ask<T: DeserializeOwned>(
        &self,
        api: &Api,
        path: &[&str],
        query: &Query,
    ) -> Result<T, ConsoleError> {
        let late = |_| ConsoleError::Unreachable {
            url: api.url.to_string(),
            reason: "no answer in time".to_owned(),
        };
        timeout(self.limit, api.get(path, query)).await.map_err(late)?
    }
}

/// Runs the checks and prints their lines. Returns the exit status.
///
/// # Errors
/// The arguments are wrong; the text says which.
pub(crate) async fn run(arguments: DoctorArguments, api: Option<Api>, json: bool) -> Result<u8, String> {
    let host = match (&arguments.host, &api) {
        (Some(host), _) => host.clone(),
        (None, Some(api)) => api.url.host_str().unwrap_or_default().to_owned(),
        (None, None) => return Err("HOST is needed: the address that clients use".to_owned()),
    };
    if arguments.node.is_some() && api.is_none() {
        return Err("--node needs authd, which knows the nodes: --url".to_owned());
    }
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let doctor = Doctor {
        api,
        user: arguments.user.clone(),
        only: arguments.node.clone(),
        password: password(&arguments)?,
        tls_name: arguments.tls_name.clone().unwrap_or_else(|| host.clone()),
        host,
        implicit_port: (arguments.implicit_port > 0).then_some(arguments.implicit_port),
        trust: Trust::new(arguments.tls_ca.as_deref())?,
        insecure: arguments.insecure,
        limit: arguments.timeout,
        directory: format!("ftpctl-doctor-{}", random_name()),
    };
    doctor.session_tls()?;
    let colours = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut show = |line: &CheckLine| {
        if !json {
            // The reader may have closed the pipe; the exit status still tells the result.
            let _ = io::stdout().write_all(line.render(colours).as_bytes());
        }
    };
    let mut report = Report::new(&mut show);
    examine(&doctor, &arguments, &mut report).await;
    let has_failed = report.has_failed();
    let lines = report.into_lines();
    let end = if json {
        serde_json::json!({ "failed": has_failed, "checks": lines }).to_string()
    } else {
        report::summary(&lines)
    };
    let _ = writeln!(io::stdout(), "{end}");
    Ok(u8::from(has_failed))
}

async fn examine(doctor: &Doctor, arguments: &DoctorArguments, report: &mut Report<'_>) {
    let addresses = match lookup_host((doctor.host.as_str(), arguments.port)).await {
        Ok(found) => {
            let mut addresses: Vec<SocketAddr> = Vec::new();
            for address in found {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            addresses
        }
        Err(error) => {
            report.fail("name", Finding::NameUnresolved, format!("{}: {error}", doctor.host));
            return;
        }
    };
    let nodes = cluster::check(doctor, report).await;
    if doctor.only.is_some() && nodes.is_empty() {
        return;
    }
    let doors = doors::check(doctor, &addresses, report).await;
    let mut sessions = sessions::open(doctor, &nodes, &doors, report).await;
    if !sessions.is_empty() {
        let without = ports::check(doctor, &nodes, &doors, &mut sessions, report).await;
        if !without.is_empty() {
            report.skipped("write", format!("not through {}: no data port works", without.join(", ")));
        }
        sessions.retain(|session| !without.contains(&session.node));
        files::check(&doctor.directory, &mut sessions, report).await;
    }
    let has_sessions = !sessions.is_empty();
    for session in sessions {
        session.client.quit().await;
    }
    if !nodes.is_empty() {
        cluster::check_clocks(doctor, report).await;
    }
    match (arguments.slow, doors.working.first()) {
        (Some(silence), Some(address)) if has_sessions => {
            slow::check(doctor, *address, doors.has_tls, silence, report).await;
        }
        _ => {}
    }
}

fn password(arguments: &DoctorArguments) -> Result<String, String> {
    match &arguments.password_file {
        Some(path) => {
            let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
            Ok(text.lines().next().unwrap_or_default().to_owned())
        }
        None => std::env::var("FTPCTL_PASSWORD")
            .map_err(|_| "the password is needed: --password-file FILE or FTPCTL_PASSWORD".to_owned()),
    }
}

/// Distinguishes the test files of two doctors.
fn random_name() -> String {
    use std::hash::{BuildHasher, Hasher, RandomState};
    // Each RandomState has random keys of the operating system.
    format!("{:016x}", RandomState::new().build_hasher().finish())
}
