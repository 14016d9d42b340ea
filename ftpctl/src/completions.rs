//! Completions for shells: the shell calls `ftpctl` for each of them.

use std::{
    env,
    io::{self, Write},
};

use clap::CommandFactory;
use clap_complete::{CompleteEnv, Shell, env::Shells};

use crate::{cli::Arguments, error::ConsoleError};

/// The variable by which a shell asks for completions.
const VARIABLE: &str = "FTPCTL_COMPLETE";

/// Answers a shell that asks for completions. Returns false if no shell asks.
pub(crate) fn answer() -> bool {
    let directory = env::current_dir().ok();
    let request = CompleteEnv::with_factory(Arguments::command).var(VARIABLE);
    request.try_complete(env::args_os(), directory.as_deref()).unwrap_or_else(|error| error.exit())
}

/// Prints the script that makes a shell ask `ftpctl`.
pub(crate) fn script(shell: Shell) -> Result<u8, ConsoleError> {
    let mut text = Vec::new();
    if let Some(completer) = Shells::builtins().completer(&shell.to_string()) {
        completer.write_registration(VARIABLE, "ftpctl", "ftpctl", "ftpctl", &mut text)?;
    }
    io::stdout().write_all(&text)?;
    Ok(0)
}
