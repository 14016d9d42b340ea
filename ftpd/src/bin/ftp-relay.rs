//! `ftp-relay`: parses the command line and settings, starts the log, runs the relay, sets the exit status.

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
use ftpd::relay_role::{self, KEPT_BY_ROOT, check, config::RoleConfig, settings::SCHEMA};
use tokio::runtime::{Builder, Runtime};

#[allow(clippy::print_stderr)] // The program's output, before the log starts.
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
    let (config, reloader) = match SettingsReloader::load(&SCHEMA, &flags, RoleConfig::new) {
        Ok(loaded) => loaded,
        Err(error) => {
            eprintln!(
                "ftp-relay: {error}\nftp-relay: verify a correction with --check; see --help for all settings"
            );
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    if flags.get_flag("check") {
        return check(config, flags.get_flag("deep"));
    }
    logging::init(config.log_format, &config.log_level, None);
    if capabilities::is_root() {
        log::warn!("the relay runs as root, which it does not need; a dedicated user is safer");
    }
    // This thread keeps its capabilities until `run` has bound the ports.
    if let Err(error) = capabilities::forbid_new() {
        log::error!("cannot forbid new privileges: {error}");
        return ExitCode::FAILURE;
    }
    let runtime = match runtime(config.limits.serving_threads) {
        Ok(runtime) => runtime,
        Err(error) => {
            log::error!("cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(relay_role::run(config, reloader));
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn runtime(threads: usize) -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(threads)
        .on_thread_start(|| capabilities::give_up_or_end(KEPT_BY_ROOT))
        // For the resolution of Redis's name only.
        .max_blocking_threads(2)
        .enable_all()
        .build()
}

/// `--check`. The exit status is 0; 1 if `--deep` finds something that cannot be used.
fn check(config: RoleConfig, deep: bool) -> ExitCode {
    let summary = check::summary(&config);
    let tried = deep.then(|| match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(check::deep(config)),
        Err(error) => vec![("the runtime".to_owned(), Err(error.to_string()))],
    });
    let works = report::report(&mut io::stdout(), "ftp-relay", &summary, tried.as_deref());
    if works { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
