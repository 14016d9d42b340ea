//! `ftpd`: arguments, settings, logging; then the server runs, and its end is the exit status.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use common::{
    process::{
        EXIT_CONFIG, capabilities, check as report,
        logging::{self, chain},
    },
    settings::{SettingsError, Values},
};
use ftpd::{
    check,
    config::Config,
    server::{self, KEPT_BY_ROOT},
    settings::SCHEMA,
    work::blocking,
};

/// For name look-ups, the transfer log and certificates: file operations and transfers have
/// threads of their own.
const RUNTIME_BLOCKING_THREADS: usize = 8;

#[allow(clippy::print_stdout, clippy::print_stderr)] // This is the program's own output.
fn main() -> ExitCode {
    let flags = SCHEMA.command().get_matches();
    if let Some(page) = SCHEMA.printed(SCHEMA.command(), &flags) {
        // A reader that has seen enough closes the pipe.
        let _ = io::stdout().write_all(&page);
        return ExitCode::SUCCESS;
    }
    let config = match settings(&flags) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("ftpd: {error}\nftpd: verify a correction with --check; --help tells all settings");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    if flags.get_flag("check") {
        return check(config, flags.get_flag("deep"));
    }
    logging::init(config.log.format, &config.log.level, Some(config.node_name.to_string()));
    // Where the service has a limit on the size of files (LimitFSIZE), a file that would become larger is
    // an error of its upload (EFBIG), not the end of the node.
    // SAFETY: no other thread runs yet, and ignoring a signal runs no code of ours.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    // The permissions of new files are those of `file_mode` and `directory_mode`, whole.
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    // This thread alone keeps what privileged ports need, and gives it up in `run`.
    if let Err(error) = capabilities::forbid_new() {
        log::error!("cannot forbid new privileges: {error}");
        return ExitCode::FAILURE;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.limits.serving_threads)
        .on_thread_start(|| {
            capabilities::give_up_or_end(KEPT_BY_ROOT);
            blocking::forbid();
        })
        .max_blocking_threads(RUNTIME_BLOCKING_THREADS)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            log::error!("cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(server::run(config));
    // Threads that wait for storage which hangs must not keep the process.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// Exit status 0, or 1 if something that the settings name cannot be used.
fn check(config: Config, deep: bool) -> ExitCode {
    let summary = check::summary(&config);
    let tried = if deep {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Some(match runtime {
            Ok(runtime) => runtime.block_on(check::deep(config)),
            Err(error) => vec![("the runtime".to_owned(), Err(error.to_string()))],
        })
    } else {
        None
    };
    let works = report::report(&mut io::stdout(), "ftpd", &summary, tried.as_deref());
    if works { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn settings(flags: &clap::ArgMatches) -> Result<Config, SettingsError> {
    Config::new(&Values::collect(&SCHEMA, flags, std::env::vars_os())?)
}
