//! `authd`: parses the command line and settings, runs the service or a subcommand, and sets the exit status.

use std::{
    env,
    error::Error,
    io::{self, Write},
    process::ExitCode,
};

use authd::{
    accounts::{
        declared::{DeclaredUsers, reserved_names},
        file::UsersFile,
        password,
    },
    administrators::{Administrators, token_line},
    config::{self, Config},
    service::ServiceError,
    settings::{HASH_TOKEN, SCHEMA},
};
use clap::ArgMatches;
use common::{
    health_command::{self, HEALTH},
    process::{EXIT_CONFIG, capabilities, check::report, logging, prompt},
    registry,
    secret::Secret,
    settings::{SettingsReloader, Values},
};

fn main() -> ExitCode {
    let flags = SCHEMA.command().get_matches();
    if let Some(page) = SCHEMA.printed(&flags) {
        // The reader may close the pipe early.
        let _ = io::stdout().write_all(&page);
        return ExitCode::SUCCESS;
    }
    match flags.subcommand_name() {
        Some(HASH_TOKEN) => hash_token(),
        Some(HEALTH) => health_command::run(&SCHEMA, &flags, "listen"),
        Some(_) => hash(&flags),
        None => serve(&flags),
    }
}

fn serve(flags: &ArgMatches) -> ExitCode {
    let (config, reloader) = match SettingsReloader::load(&SCHEMA, flags, Config::new) {
        Ok(loaded) => loaded,
        Err(error) => return complain(&error, EXIT_CONFIG),
    };
    if flags.get_flag("check") {
        return check(&config, flags.get_flag("deep"));
    }
    logging::init(config.log.format, &config.log.level, None);
    if let Err(error) = capabilities::forbid_new() {
        return complain(&error, 1);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .on_thread_start(|| capabilities::give_up_or_end(authd::KEPT_BY_ROOT))
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return complain(&error, 1),
    };
    let result = runtime.block_on(authd::run(config, reloader));
    // Do not wait for threads with a file or computation that hangs.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ authd::StartError::Files(_)) => complain(&error, EXIT_CONFIG),
        Err(error) => complain(&error, 1),
    }
}

/// `--check`. The exit status is 0; 78 if the users file cannot be used; 1 if Redis cannot be used.
fn check(config: &Config, deep: bool) -> ExitCode {
    let users = match &config.users {
        DeclaredUsers::File(path) => match UsersFile::load(path, reserved_names(&config.anonymous)) {
            Ok(file) => {
                let (users, groups) = (file.declared.users.len(), file.declared.groups.len());
                format!("{users} users and {groups} groups in {}", path.display())
            }
            Err((error, _)) => return complain(&ServiceError::from(error), EXIT_CONFIG),
        },
        DeclaredUsers::Demo => "DEMO users with any password".to_owned(),
        DeclaredUsers::None => "no declared users".to_owned(),
    };
    if let Err(error) = Administrators::new(config.administrators.clone(), None) {
        return complain(&ServiceError::from(error), EXIT_CONFIG);
    }
    let redis = match &config.redis {
        Some(options) => {
            format!("registry and API users in Redis at {}, keys {}:*", options.servers, options.prefix)
        }
        None => "no Redis: no API users, sessions or nodes".to_owned(),
    };
    let token = |name, token: bool| {
        let state = if token { "set" } else { "not set: its routes answer 401" };
        format!("{name} {state}")
    };
    let summary = [
        format!("HTTP on {}", config.listen),
        users,
        redis,
        token("node_token_file", !config.node_tokens.is_empty()),
        token("admin_token_file", config.admin_token.is_some()),
    ];
    let tried = match (&config.redis, deep) {
        (_, false) => None,
        (None, true) => Some(Vec::new()),
        (Some(options), true) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let answer = match runtime {
                Ok(runtime) => runtime.block_on(registry::probe(options)).map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            Some(vec![(format!("Redis at {}", options.servers), answer)])
        }
    };
    if report(&mut io::stdout(), "authd", &summary, tried.as_deref()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn hash_token() -> ExitCode {
    match prompt::password() {
        Ok(token) => print(&format!("{}\n", token_line(token.expose().trim().as_bytes()))),
        Err(error) => complain(&error, 1),
    }
}

fn hash(flags: &ArgMatches) -> ExitCode {
    let settings = Values::collect(&SCHEMA, flags, env::vars_os()).and_then(|values| {
        Ok((config::password_params(&values)?, values.required::<usize>("min_password_length")?))
    });
    let (params, min_length) = match settings {
        Ok(settings) => settings,
        Err(error) => return complain(&error, EXIT_CONFIG),
    };
    let hashed = |text: Secret| {
        password::check_length(min_length, &text)?;
        password::hash(&params, &text)
    };
    match prompt::password().map(hashed) {
        Ok(Ok(phc)) => print(&format!("{}\n", phc.as_str())),
        Ok(Err(error)) => complain(&error, 1),
        Err(error) => complain(&error, 1),
    }
}

fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn complain(error: &dyn Error, status: u8) -> ExitCode {
    // If standard error is closed, the exit status still reports the failure.
    let _ = writeln!(io::stderr(), "authd: {}", logging::chain(error));
    ExitCode::from(status)
}
