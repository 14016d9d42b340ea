//! The commands, by family.

mod access;
mod accounts;
mod backup;
mod cluster;
mod csv;
mod drain;
mod events;
mod explain;
mod fields;
mod sessions;
mod trail;

use crate::{cli::ConsoleCommand, console::Console, error::ConsoleError};

/// Runs a command. Returns the exit status.
pub(crate) async fn run(console: &Console, command: ConsoleCommand) -> Result<u8, ConsoleError> {
    match command {
        ConsoleCommand::Status => cluster::status(console).await,
        ConsoleCommand::Problems { minutes } => cluster::problems(console, minutes).await,
        ConsoleCommand::Nodes => cluster::nodes(console).await,
        ConsoleCommand::Who(arguments) => sessions::who(console, &arguments).await,
        ConsoleCommand::Kick(arguments) => sessions::kick(console, arguments).await,
        ConsoleCommand::Explain(arguments) => explain::explain(console, arguments).await,
        ConsoleCommand::Quota { user, over } => access::quota(console, user, over).await,
        ConsoleCommand::Block { subject: None, .. } => access::blocks(console).await,
        ConsoleCommand::Block { subject: Some(subject), duration, reason } => {
            access::block(console, subject, duration, reason).await
        }
        ConsoleCommand::Unblock { subject } => access::unblock(console, &subject).await,
        ConsoleCommand::Drain { node, wait } => drain::drain(console, &node, wait).await,
        ConsoleCommand::Undrain { node } => drain::undrain(console, &node).await,
        ConsoleCommand::Users(command) => accounts::users(console, command).await,
        ConsoleCommand::Groups(command) => accounts::groups(console, command).await,
        ConsoleCommand::Bans(command) => access::bans(console, command).await,
        ConsoleCommand::Backup { file } => backup::backup(console, &file).await,
        ConsoleCommand::Restore { file, replace } => backup::restore(console, &file, replace).await,
        ConsoleCommand::Audit(arguments) => trail::audit(console, &arguments).await,
        ConsoleCommand::Events(command) => events::events(console, command).await,
        // `main` runs these, which work without authd.
        ConsoleCommand::Doctor(_)
        | ConsoleCommand::Init(_)
        | ConsoleCommand::Secrets(_)
        | ConsoleCommand::Completions { .. }
        | ConsoleCommand::Manual => Ok(0),
    }
}
