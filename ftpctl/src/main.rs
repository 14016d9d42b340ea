//! `ftpctl`: the console of the cluster.

mod api;
mod cli;
mod commands;
mod completions;
mod config;
mod console;
mod doctor;
mod error;
mod names;
mod pages;
mod render;
mod setup;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;

use self::{
    api::Api,
    cli::{Arguments, ConsoleCommand},
    config::Connection,
    console::{Console, Output},
    error::ConsoleError,
};

fn main() -> ExitCode {
    if completions::answer() {
        return ExitCode::SUCCESS;
    }
    match run(Arguments::parse()) {
        Ok(status) => ExitCode::from(status),
        Err(error) if error.is_closed_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            let text = render::human::printable(&error.to_string());
            let _ = writeln!(io::stderr(), "ftpctl: {text}");
            ExitCode::from(error.exit_status())
        }
    }
}

fn run(arguments: Arguments) -> Result<u8, ConsoleError> {
    let Arguments { connection, json, bytes, command } = arguments;
    let output = Output { json, bytes };
    match &command {
        ConsoleCommand::Completions { shell } => return completions::script(*shell),
        ConsoleCommand::Manual => return pages::manual(),
        ConsoleCommand::Init(arguments) => return setup::init::run(arguments),
        ConsoleCommand::Secrets(arguments) => return setup::secrets::run(arguments),
        _ => {}
    }
    let connection = Connection::new(&connection)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if let ConsoleCommand::Doctor(doctor) = command {
        // The doctor also works from where authd cannot be reached.
        let api = if connection.is_configured { Some(Api::new(&connection)?) } else { None };
        return runtime.block_on(doctor::run(doctor, api, json)).map_err(ConsoleError::Usage);
    }
    let console = Console { api: Api::new(&connection)?, output };
    runtime.block_on(commands::run(&console, command))
}
