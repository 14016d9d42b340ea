//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use common::session::SessionId;

use crate::{
    config::ConnectionArguments,
    doctor::DoctorArguments,
    names,
    setup::{init::InitArguments, secrets::SecretsArguments},
};

const AFTER: &str = "\
Settings: flags, then FTPCTL_URL, FTPCTL_TOKEN_FILE, FTPCTL_CA_FILE, FTPCTL_PROFILE, then the first file \
that exists of ~/.config/distributed-ftp/ftpctl.toml and /etc/distributed-ftp/ftpctl.toml; otherwise \
http://127.0.0.1:5160 with the token in /etc/distributed-ftp/admin-token.

Exit status: 0 fine; 1 problems found, or the change was refused; 2 wrong arguments or settings; 3 authd or \
its Redis cannot be reached; 4 the token does not allow it.";

/// Shows and steers a cluster of Distributed FTP through authd's API.
#[derive(Debug, Parser)]
#[command(name = "ftpctl", version, after_help = AFTER)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) connection: ConnectionArguments,
    /// JSON instead of text. With --watch: one object a line.
    #[arg(long, global = true, help_heading = "Output")]
    pub(crate) json: bool,
    /// Sizes in bytes instead of kB, MB, GB.
    #[arg(long, global = true, help_heading = "Output")]
    pub(crate) bytes: bool,
    #[command(subcommand)]
    pub(crate) command: ConsoleCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConsoleCommand {
    /// The cluster on one screen. Exit status 1 if there are problems.
    Status,
    /// What is wrong, the worst first, with the remedy. Exit status 1 if there are problems.
    Problems {
        /// Show what was refused in so many minutes. Default: 15.
        #[arg(long, value_name = "NUMBER")]
        minutes: Option<u64>,
    },
    /// The sessions and their transfers.
    Who(WhoArguments),
    /// Why a user cannot log in, or why the last command of a session failed.
    Explain(ExplainArguments),
    /// What homes hold, and their quotas.
    Quota {
        /// The user. Default: all users with a quota.
        #[arg(add = names::users())]
        user: Option<String>,
        /// Only users above this share of their quota, in percent.
        #[arg(long, value_name = "PERCENT", conflicts_with = "user", value_parser = percent)]
        over: Option<f64>,
    },
    /// Ends a session, or all sessions of a user.
    Kick(KickArguments),
    /// Forbids logins of a user, or from an address or a network; without a name, lists the blocks.
    Block {
        /// A user, an address, or a network such as 203.0.113.0/24.
        #[arg(add = names::users())]
        subject: Option<String>,
        /// How long: 1h, 30m, 2d. Default: until `ftpctl unblock`.
        #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
        duration: Option<std::time::Duration>,
        /// Why; for the log and the user's 421.
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
    /// Removes a block.
    Unblock {
        /// A user, an address or a network.
        #[arg(add = names::blocked())]
        subject: String,
    },
    /// Drains a node: no new sessions, transfers finish, then the node stops.
    Drain {
        #[arg(add = names::nodes())]
        node: String,
        /// Show the progress until the node has drained.
        #[arg(long)]
        wait: bool,
    },
    /// Ends a drain: the node serves again. Only while its last sessions still run.
    Undrain {
        #[arg(add = names::nodes())]
        node: String,
    },
    /// The audit trail: logins, transfers, changes, refusals, and administrators' actions.
    Audit(AuditArguments),
    /// The nodes with their addresses and passive ports.
    Nodes,
    /// Users.
    #[command(subcommand)]
    Users(UsersCommand),
    /// Groups.
    #[command(subcommand)]
    Groups(GroupsCommand),
    /// Bans after failed logins.
    #[command(subcommand)]
    Bans(BansCommand),
    /// Events: their delivery to receivers, and dead letters.
    #[command(subcommand)]
    Events(EventsCommand),
    /// Writes users, groups, overrides and blocks to a file, with password hashes.
    Backup {
        /// The file, for its owner only; - is standard output.
        file: PathBuf,
    },
    /// Puts the users, groups, overrides and blocks of a backup in place, all of them or none.
    Restore {
        /// The file that `ftpctl backup` wrote; - is standard input.
        file: PathBuf,
        /// Remove what is not in the file, and overwrite what differs. Without it, a difference is an error.
        #[arg(long)]
        replace: bool,
    },
    Doctor(DoctorArguments),
    Init(InitArguments),
    Secrets(SecretsArguments),
    /// Prints the completions for a shell. They ask authd for names of users, nodes and sessions.
    Completions {
        shell: Shell,
    },
    /// Prints the manual page, ftpctl(1).
    Manual,
}

#[derive(Args, Debug)]
pub(crate) struct WhoArguments {
    /// Only this user's sessions.
    #[arg(long, add = names::users())]
    pub(crate) user: Option<String>,
    /// Only sessions of this node.
    #[arg(long, add = names::nodes())]
    pub(crate) node: Option<String>,
    /// Only sessions from this address.
    #[arg(long)]
    pub(crate) address: Option<std::net::IpAddr>,
    /// The order.
    #[arg(long, value_enum, default_value = "rate")]
    pub(crate) sort: WhoOrder,
    /// Refresh every second until Ctrl-C.
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum WhoOrder {
    /// The fastest transfer first.
    Rate,
    User,
    Node,
    /// The longest idle session first.
    Idle,
    /// The oldest session first.
    Since,
}

/// What to search for. A record is shown if all conditions hold.
#[derive(Args, Debug)]
pub(crate) struct AuditArguments {
    /// Only this user's records.
    #[arg(long, add = names::users())]
    pub(crate) user: Option<String>,
    /// Only paths of this form; `*` matches within a name, `**` also over directories: '/reports/**'.
    #[arg(long, value_name = "GLOB")]
    pub(crate) path: Option<String>,
    /// Only these kinds, separated by commas: upload,delete,admin.
    #[arg(long, visible_alias = "op", value_name = "KINDS")]
    pub(crate) event: Option<String>,
    /// Only what succeeded, or only what was refused.
    #[arg(long, value_parser = ["ok", "failed"])]
    pub(crate) result: Option<String>,
    /// Only records of this node.
    #[arg(long, add = names::nodes())]
    pub(crate) node: Option<String>,
    /// Only this session, which may have ended; the whole id.
    #[arg(long, value_name = "ID", add = names::sessions())]
    pub(crate) session: Option<SessionId>,
    /// Only from this address.
    #[arg(long)]
    pub(crate) address: Option<std::net::IpAddr>,
    /// Not before this time: 2h ago, or RFC 3339.
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// Not after this time.
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<String>,
    /// At most so many records, the newest.
    #[arg(long, value_name = "NUMBER", default_value_t = 50)]
    pub(crate) limit: usize,
    /// Go on with new records until Ctrl-C. With --json: one object a line.
    #[arg(long, short, conflicts_with = "until")]
    pub(crate) follow: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ExplainArguments {
    /// A user, or the id of a session (8 digits or more of it).
    #[arg(value_name = "USER|SESSION", add = names::users_and_sessions())]
    pub(crate) subject: String,
    /// As if the user logged in from this address.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) from: Option<std::net::IpAddr>,
    /// As if the user logged in at this time (RFC 3339).
    #[arg(long, value_name = "TIME")]
    pub(crate) at: Option<String>,
    /// SUBJECT is a user, also if it looks like an id.
    #[arg(long)]
    pub(crate) user: bool,
}

#[derive(Args, Debug)]
pub(crate) struct KickArguments {
    /// The id of a session, or 4 or more of its first digits.
    #[arg(required_unless_present = "user", add = names::sessions())]
    pub(crate) session: Option<String>,
    /// All sessions of this user.
    #[arg(long, conflicts_with = "session", add = names::users())]
    pub(crate) user: Option<String>,
    /// Also forbid the user to log in for this long.
    #[arg(long, value_name = "TIME", requires = "user", value_parser = humantime::parse_duration)]
    pub(crate) block: Option<std::time::Duration>,
    /// Why; for the client and the log.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum UsersCommand {
    /// All users.
    List,
    /// One user with the effective settings.
    Show {
        #[arg(add = names::users())]
        name: String,
    },
    /// Creates a user. The password comes from --password-file, or from standard input.
    Add {
        name: String,
        /// The file with the password in its first line.
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// Fields: home=/x groups=["a"] read_only=true. A value is JSON, or else text.
        #[arg(value_name = "FIELD=VALUE")]
        fields: Vec<String>,
    },
    /// Sets a password, from --password-file or standard input. All sessions of the user end.
    Passwd {
        #[arg(add = names::users())]
        name: String,
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Changes fields. A.B=VALUE changes one field of an object; null restores the default.
    Set {
        #[arg(add = names::users())]
        name: String,
        #[arg(value_name = "FIELD=VALUE", required = true)]
        fields: Vec<String>,
    },
    /// Forbids logins and ends the user's sessions.
    Disable {
        #[arg(add = names::users())]
        name: String,
    },
    /// Allows logins again.
    Enable {
        #[arg(add = names::users())]
        name: String,
    },
    /// Removes a user and ends its sessions. Files stay.
    Remove {
        #[arg(add = names::users())]
        name: String,
    },
    /// Creates users from a CSV file whose first line names the fields: `name,password,home,groups`.
    Import {
        file: PathBuf,
        /// Change users that exist, instead of an error.
        #[arg(long)]
        update: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum GroupsCommand {
    /// All groups.
    List,
    /// One group.
    Show {
        #[arg(add = names::groups())]
        name: String,
    },
    /// Creates a group.
    Add {
        name: String,
        #[arg(value_name = "FIELD=VALUE")]
        fields: Vec<String>,
    },
    /// Changes fields, as `users set`.
    Set {
        #[arg(add = names::groups())]
        name: String,
        #[arg(value_name = "FIELD=VALUE", required = true)]
        fields: Vec<String>,
    },
    /// Removes a group without members.
    Remove {
        #[arg(add = names::groups())]
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum BansCommand {
    /// The bans in effect.
    List,
    /// Lifts the ban of a user or an address.
    Lift {
        #[arg(add = names::banned())]
        subject: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum EventsCommand {
    /// Receivers, waiting events and dead letters. Exit status 1 if a receiver fails or dead letters exist.
    List,
    /// Delivers dead letters again: all of them, or those that the flags name.
    Replay {
        /// Only those of this receiver.
        #[arg(long, value_name = "NAME", add = names::receivers())]
        receiver: Option<String>,
        /// Only the event with this id.
        #[arg(long, value_name = "ID", add = names::dead_letters())]
        id: Option<String>,
    },
}

fn percent(text: &str) -> Result<f64, String> {
    let number: f64 =
        text.trim_end_matches('%').parse().map_err(|_| "expected a percentage: 90".to_owned())?;
    if (0.0..=1000.0).contains(&number) { Ok(number) } else { Err("expected 0 to 1000".to_owned()) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
