//! The benchmark program: measures complete FTP servers over loopback, in interleaved rounds.
//! `./dev bench` runs it. docs/performance.md describes the method and has the last results.

// The program writes to the terminal of the person who runs it.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod client;
mod costs;
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
use servers::{Server, ServerKind, Testbed};
use workloads::Workload;

#[derive(Parser)]
#[command(about = "Measures our FTP server and others under the same workloads")]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Runs workloads and prints tables of results
    Run(Box<RunArguments>),
    /// Lists the workloads
    Workloads,
    /// Runs the reference server: serves a directory on a loopback address
    Null { address: SocketAddrV4, root: PathBuf },
}

#[derive(Args)]
struct RunArguments {
    /// Names of workloads, or prefixes of names [default: all workloads]
    workloads: Vec<String>,
    /// Rounds of each workload; each server runs once in each round
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Servers to measure, separated by commas [default: all servers]
    #[arg(long, value_delimiter = ',', value_enum)]
    servers: Vec<ServerKind>,
    /// Measure only FTPS (true) or only plain FTP (false) [default: both]
    #[arg(long, value_name = "BOOL")]
    tls: Option<bool>,
    /// Directory with the programs ftpd and authd [default: the directory of this program]
    #[arg(long)]
    daemons: Option<PathBuf>,
    /// Directory with ftpd and authd of another build, to compare with
    #[arg(long)]
    before: Option<PathBuf>,
    /// Directory with the unpacked packages of other servers
    #[arg(long)]
    peers: PathBuf,
    /// Path of the program unftp [default: unftp is not measured]
    #[arg(long)]
    unftp: Option<PathBuf>,
    /// Directory for results.json and results.md
    #[arg(long)]
    output: PathBuf,
    /// Revision of the measured source, shown in the results
    #[arg(long, default_value = "unknown")]
    revision: String,
    /// Directory for the served files; a tmpfs keeps disk speed out of the results
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

/// Set by the signals that end a run. The run then stops its servers and removes its files.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn interrupt(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

fn install_signal_handlers() -> nix::Result<()> {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { signal::signal(signal, SigHandler::Handler(interrupt)) }?;
    }
    Ok(())
}

impl RunArguments {
    fn run(self) -> Result<(), Box<dyn Error>> {
        let workloads = workloads::select(&self.workloads)?;
        let (conditions, placement) = machine::prepare(&self.files)?;
        let scratch = tempfile::Builder::new().prefix("ftp-bench-").tempdir_in(&self.files)?;
        // Servers that give up root read this directory as another user.
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755))?;
        // The test certificates go to this directory too, so the run removes them at its end.
        tempfile::env::override_temp_dir(scratch.path()).map_err(|_| "the temporary directory is in use")?;
        let own = std::env::current_exe()?;
        let daemons = self.daemons.clone().or_else(|| own.parent().map(Path::to_owned)).unwrap_or_default();
        // Some servers accept only absolute paths in their configuration.
        let peers = fs::canonicalize(&self.peers)?;
        let mut testbed = Testbed::new(daemons, peers.clone(), scratch.path().to_owned(), placement);
        testbed.unftp.clone_from(&self.unftp);
        testbed.before.clone_from(&self.before);
        install_signal_handlers()?;
        eprintln!("bench: making files in {}", scratch.path().display());
        files::make(&testbed.home)?;
        fs::create_dir_all(&self.output)?;

        let kinds = self.kinds(workloads.iter().filter(|workload| !workload.fresh));
        let mut servers = testbed.start(&kinds)?;
        let mut results = Results {
            revision: self.revision.clone(),
            date: date(),
            conditions,
            versions: servers::versions(&peers),
            rows: Vec::new(),
        };
        for workload in workloads {
            if workload.fresh {
                // Other running servers would disturb the memory and CPU figures.
                servers.clear();
            }
            for &encrypted in workload.modes {
                if self.tls.is_some_and(|tls| tls != encrypted) {
                    continue;
                }
                let kinds = self.kinds([&workload]);
                results.rows.extend(self.measure(&testbed, &servers, workload, encrypted, &kinds)?);
                // Written after each workload, so that a later failure does not lose these results.
                fs::write(self.output.join("results.json"), serde_json::to_vec_pretty(&results)?)?;
                fs::write(self.output.join("results.md"), results.markdown())?;
            }
        }
        println!("{}", results.markdown());
        Ok(())
    }

    /// Returns the servers that these workloads need and that the command line selects.
    fn kinds<'w>(&self, workloads: impl IntoIterator<Item = &'w &'static Workload>) -> Vec<ServerKind> {
        let mut kinds: Vec<ServerKind> =
            workloads.into_iter().flat_map(|workload| workload.kinds).copied().collect();
        kinds.sort();
        kinds.dedup();
        kinds.retain(|kind| self.servers.is_empty() || self.servers.contains(kind));
        kinds.retain(|kind| *kind != ServerKind::Before || self.before.is_some());
        kinds
    }

    /// Runs all rounds of one workload. Each round runs every server once, so that a disturbance of
    /// the machine affects all of them.
    fn measure(
        &self,
        testbed: &Testbed,
        servers: &[Server],
        workload: &Workload,
        encrypted: bool,
        kinds: &[ServerKind],
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
                    let fresh = testbed.start(&[row.server])?;
                    fresh.iter().map(|server| (workload.run)(testbed, server, encrypted)).next()
                } else {
                    let server = servers.iter().find(|server| server.kind == row.server);
                    server.map(|server| (workload.run)(testbed, server, encrypted))
                };
                match outcome.unwrap_or_else(|| Err(io::Error::other("the server did not start"))) {
                    Ok(figures) => row.rounds.push(figures),
                    // A failure is a result, too: it is reported, and the server gets no more rounds.
                    Err(error) => {
                        eprintln!("bench: {}: {error}", row.server.name());
                        row.error = Some(error.to_string());
                        files::clear_uploads(&testbed.home)?;
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
