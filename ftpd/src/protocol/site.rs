//! The subcommands of SITE: one table for the parser, HELP, FEAT and error replies.

use std::fmt;

use super::{
    arguments::{ArgumentError, first_word, path},
    command::Modified,
    mode::ModeChange,
    timestamp,
};

/// A SITE command with its arguments.
#[derive(Debug, PartialEq, Eq)]
pub enum Site {
    Chmod { mode: ModeChange, path: Vec<u8> },
    Utime(Modified),
    Who,
    Quota,
    Help,
}

/// A row of the table of SITE's subcommands.
pub struct SiteCommand {
    name: &'static str,
    /// The forms of the arguments. The first one is shown after an error.
    arguments: &'static [&'static str],
    /// The line in FEAT, if any.
    pub(super) feature: Option<&'static str>,
    parse: fn(&[u8]) -> Option<Site>,
}

pub(super) static SITE_COMMANDS: [SiteCommand; 5] = [
    SiteCommand { name: "CHMOD", arguments: &["<mode> <path>"], feature: None, parse: chmod },
    SiteCommand {
        name: "UTIME",
        arguments: &[
            "<YYYYMMDDhhmm[ss]> <path>",
            "<path> <access time> <modification time> <creation time> UTC",
        ],
        feature: Some("SITE UTIME"),
        parse: utime,
    },
    SiteCommand { name: "WHO", arguments: &[""], feature: None, parse: |_| Some(Site::Who) },
    SiteCommand { name: "QUOTA", arguments: &[""], feature: None, parse: |_| Some(Site::Quota) },
    SiteCommand { name: "HELP", arguments: &[""], feature: None, parse: |_| Some(Site::Help) },
];

impl SiteCommand {
    /// The first form: `CHMOD <mode> <path>`.
    pub fn usage(&self) -> String {
        self.usages().next().unwrap_or_default()
    }

    fn usages(&self) -> impl Iterator<Item = String> {
        self.arguments.iter().map(|arguments| format!("{} {arguments}", self.name).trim_end().to_owned())
    }
}

impl PartialEq for SiteCommand {
    /// Compares names, which are unique in the table.
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for SiteCommand {}

impl fmt::Debug for SiteCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Every form of every subcommand, for HELP.
pub(super) fn usages() -> impl Iterator<Item = String> {
    SITE_COMMANDS.iter().flat_map(SiteCommand::usages)
}

/// `CHMOD|UTIME|…`, for the usage of SITE itself.
pub(super) fn names() -> String {
    SITE_COMMANDS.each_ref().map(|command| command.name).join("|")
}

pub(super) fn parse(argument: &[u8]) -> Result<Site, ArgumentError> {
    let (name, argument) = first_word(argument);
    if name.is_empty() {
        return Err(ArgumentError::Syntax);
    }
    let known = SITE_COMMANDS.iter().find(|command| command.name.as_bytes().eq_ignore_ascii_case(name));
    let command = known.ok_or(ArgumentError::Parameter)?;
    (command.parse)(argument).ok_or(ArgumentError::SiteSyntax(command))
}

/// SITE CHMOD: `<mode> <path>`.
fn chmod(argument: &[u8]) -> Option<Site> {
    let (mode, rest) = first_word(argument);
    Some(Site::Chmod { mode: ModeChange::parse(mode).ok()?, path: path(rest).ok()? })
}

/// SITE UTIME: `<YYYYMMDDhhmm[ss]> <path>` as in ProFTPD, or `<path> <atime> <mtime> <ctime> UTC` as in
/// Pure-FTPd.
fn utime(argument: &[u8]) -> Option<Site> {
    if let Some(modified) = utime_with_three_times(argument) {
        return Some(Site::Utime(modified));
    }
    let (time, rest) = first_word(argument);
    let time = match time.len() {
        12 => timestamp::parse(&[time, b"00"].concat()),
        _ => timestamp::parse(time),
    };
    Some(Site::Utime(Modified { time: time?, path: path(rest).ok()? }))
}

/// The form of Pure-FTPd. All three times must be valid; only the modification time is used.
fn utime_with_three_times(argument: &[u8]) -> Option<Modified> {
    let (times, utc) = argument.split_last_chunk::<4>()?;
    if !utc.eq_ignore_ascii_case(b" UTC") {
        return None;
    }
    let mut parts = times.rsplitn(4, |b| *b == b' ');
    let mut next_time = || timestamp::parse(parts.next()?);
    let (_status_changed, modified, _accessed) = (next_time()?, next_time()?, next_time()?);
    Some(Modified { time: modified, path: path(parts.next()?).ok()? })
}
