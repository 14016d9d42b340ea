//! `ftpd`: parses the command line and settings, starts the log, runs the node, and sets the exit status.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use common::{
    health_command::{self, HEALTH},
    process::{
        EXIT_CONFIG, capabilities, check as report,
        logging::{self, chain},
    },
    settings::SettingsReloader,
};
use ftpd::{
    check,
    config::Config,
    server::{self, KEPT_BY_ROOT},
    settings::SCHEMA,
    work::blocking,
};

/// Threads for name look-ups, the transfer log and certificates. File operations and transfers run on the
/// threads of [`ftpd::work`].
const RUNTIME_BLOCKING_THREADS: usize = 8;

#[allow(clippy::print_stdout, clippy::print_stderr)] // The program's output, before the log starts.
fn main() -> ExitCode {
    let flags = SCHEMA.command().get_matches();
    if let Some(page) = SCHEMA.printed(&flags) {
        // The reader may close the pipe early.
        let _ = io::stdout().write_all(&page);
        return ExitCode::SUCCESS;
    }
    if flags.subcommand_name() == Some(HEALTH) {
        return health_command::run(&SCHEMA, &flags, "admin_listen");
    }
    let (config, reloader) = match SettingsReloader::load(&SCHEMA, &flags, Config::new) {
        Ok(loaded) => loaded,
        Err(error) => {
            eprintln!("ftpd: {error}\nftpd: verify a correction with --check; see --help for all settings");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    if flags.get_flag("check") {
        return check(config, flags.get_flag("deep"));
    }
    logging::init(config.log.format, &config.log.level, Some(config.node_name.to_string()));
    // With a limit on the size of files (LimitFSIZE), an upload beyond it fails with EFBIG. Without this
    // line the kernel would end the process. SAFETY: no other thread runs yet, and an ignored signal runs
    // no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    // New files get the permissions of `file_mode` and `directory_mode` unchanged.
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    // This thread keeps the capability to bind ports below 1024, and gives it up in `run`.
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
    let result = runtime.block_on(server::run(config, reloader));
    // Do not wait for threads whose storage hangs.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{}", chain(&error));
            if error.needs_other_settings() { ExitCode::from(EXIT_CONFIG) } else { ExitCode::FAILURE }
        }
    }
}

/// `--check`. The exit status is 0; 1 if `--deep` finds a file or server that cannot be used.
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
