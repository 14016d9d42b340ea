//! Measures whole servers: ours, others and a reference, in interleaved rounds over loopback.
//! `./dev bench` runs it; docs/performance.md has its method and last results.

// A program for people at a terminal.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod account;
mod client;
mod files;
mod goals;
mod machine;
mod null;
mod process;
mod report;
mod servers;
mod statistics;
mod workloads;

use std::{
    error::Error,
    fs, io,
    net::SocketAddrV4,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::atomic::{AtomicBool, Ordering},
};

use clap::{Args, Parser, Subcommand};
use nix::sys::signal::{self, SigHandler, Signal};

use report::{Results, Row};
use servers::{Kind, Server, Site};
use workloads::Workload;

#[derive(Parser)]
#[command(about = "Measures FTP servers beside each other")]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Runs workloads and prints tables
    Run(Box<Run>),
    /// Names the workloads
    Workloads,
    /// Serves a folder as the reference server, on a loopback address
    Null { address: SocketAddrV4, root: PathBuf },
}

#[derive(Args)]
struct Run {
    /// Workloads by name, or beginnings of names; all, if none is given
    workloads: Vec<String>,
    /// Rounds of each workload; servers take turns in each
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only these servers
    #[arg(long, value_delimiter = ',', value_enum)]
    servers: Vec<Kind>,
    /// Only without, or only with TLS
    #[arg(long, value_name = "BOOL")]
    tls: Option<bool>,
    /// The folder with ftpd and authd; this program's own, if it is not given
    #[arg(long)]
    daemons: Option<PathBuf>,
    /// A folder with ftpd and authd of another build, measured beside
    #[arg(long)]
    before: Option<PathBuf>,
    /// The folder with unpacked packages of other servers
    #[arg(long)]
    peers: PathBuf,
    /// unftp, if it is installed
    #[arg(long)]
    unftp: Option<PathBuf>,
    /// Where results.json and results.md go
    #[arg(long)]
    output: PathBuf,
    /// What is measured, for the results
    #[arg(long, default_value = "unknown")]
    revision: String,
    /// Where the files are that are served: in memory, so that no disk is measured
    #[arg(long, default_value = "/dev/shm")]
    files: PathBuf,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().action {
        Action::Run(run) => run.run(),
        Action::Null { address, root } => null::serve(address, &root).map_err(Into::into),
        Action::Workloads => {
            for workload in workloads::WORKLOADS {
                println!("{:16} {}", workload.name, workload.about);
            }
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Set by the signals that end a run: what it started and made is cleaned up first.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn interrupt(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

fn heed_signals() -> nix::Result<()> {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { signal::signal(signal, SigHandler::Handler(interrupt)) }?;
    }
    Ok(())
}

impl Run {
    fn run(self) -> Result<(), Box<dyn Error>> {
        let workloads = workloads::select(&self.workloads)?;
        let (conditions, place) = machine::prepare(&self.files)?;
        let scratch = tempfile::Builder::new().prefix("ftp-bench-").tempdir_in(&self.files)?;
        // Servers that give up root read it as somebody else.
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755))?;
        // Certificates too are gone after the run.
        tempfile::env::override_temp_dir(scratch.path()).map_err(|_| "the temporary directory is in use")?;
        let own = std::env::current_exe()?;
        let daemons = self.daemons.clone().or_else(|| own.parent().map(Path::to_owned)).unwrap_or_default();
        // Some of their configurations want whole paths.
        let peers = fs::canonicalize(&self.peers)?;
        let mut site = Site::new(daemons, peers.clone(), scratch.path().to_owned(), place);
        site.unftp.clone_from(&self.unftp);
        site.before.clone_from(&self.before);
        heed_signals()?;
        eprintln!("bench: making files in {}", scratch.path().display());
        files::make(&site.home)?;
        fs::create_dir_all(&self.output)?;

        let kinds = self.kinds(workloads.iter().filter(|workload| !workload.fresh));
        let mut servers = site.start(&kinds)?;
        let mut results = Results {
            revision: self.revision.clone(),
            date: date(),
            conditions,
            versions: servers::versions(&peers),
            rows: Vec::new(),
        };
        for workload in workloads {
            if workload.fresh {
                // Nobody else's memory or CPU beside.
                servers.clear();
            }
            for &encrypted in workload.modes {
                if self.tls.is_some_and(|tls| tls != encrypted) {
                    continue;
                }
                let kinds = self.kinds([&workload]);
                results.rows.extend(self.measure(&site, &servers, workload, encrypted, &kinds)?);
                // What was measured stays, whatever becomes of the rest.
                fs::write(self.output.join("results.json"), serde_json::to_vec_pretty(&results)?)?;
                fs::write(self.output.join("results.md"), results.markdown())?;
            }
        }
        println!("{}", results.markdown());
        Ok(())
    }

    /// The servers that some workloads need, of those that were asked for.
    fn kinds<'w>(&self, workloads: impl IntoIterator<Item = &'w &'static Workload>) -> Vec<Kind> {
        let mut kinds: Vec<Kind> =
            workloads.into_iter().flat_map(|workload| workload.kinds).copied().collect();
        kinds.sort();
        kinds.dedup();
        kinds.retain(|kind| self.servers.is_empty() || self.servers.contains(kind));
        kinds.retain(|kind| *kind != Kind::Before || self.before.is_some());
        kinds
    }

    /// All rounds of one workload: in each every server once, so that they share what disturbs it.
    fn measure(
        &self,
        site: &Site,
        servers: &[Server],
        workload: &Workload,
        encrypted: bool,
        kinds: &[Kind],
    ) -> io::Result<Vec<Row>> {
        let mut rows: Vec<Row> = kinds
            .iter()
            .filter(|kind| !encrypted || kind.encrypts())
            .filter(|kind| workload.fresh || servers.iter().any(|server| server.kind == **kind))
            .map(|&server| Row {
                workload: workload.name,
                encrypted,
                server,
                rounds: Vec::new(),
                error: None,
            })
            .collect();
        for round in 1..=self.rounds.min(workload.rounds) {
            let mode = if encrypted { "FTPS" } else { "FTP" };
            eprintln!("bench: {} {mode}, round {round}", workload.name);
            for row in rows.iter_mut().filter(|row| row.error.is_none()) {
                if INTERRUPTED.load(Ordering::Relaxed) {
                    return Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted"));
                }
                let outcome = if workload.fresh {
                    let fresh = site.start(&[row.server])?;
                    fresh.iter().map(|server| (workload.run)(site, server, encrypted)).next()
                } else {
                    let server = servers.iter().find(|server| server.kind == row.server);
                    server.map(|server| (workload.run)(site, server, encrypted))
                };
                match outcome.unwrap_or_else(|| Err(io::Error::other("it did not start"))) {
                    Ok(figures) => row.rounds.push(figures),
                    // A server that fails has no more rounds: that is a result, too.
                    Err(error) => {
                        eprintln!("bench: {}: {error}", row.server.name());
                        row.error = Some(error.to_string());
                        files::clear_uploads(&site.home)?;
                    }
                }
            }
        }
        Ok(rows)
    }
}

fn date() -> String {
    let output = Command::new("date").args(["--utc", "+%Y-%m-%d %H:%M UTC"]).output();
    output.map_or_else(|_| String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
