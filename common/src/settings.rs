//! Settings of a daemon: one table gives the TOML keys, flags, environment variables, help and pages.
//!
//! Each value stays text until a getter of [`Values`] parses it, so an error can name the setting, the
//! value, its source and the expected form. Sources, the strongest first: flag, environment variable,
//! its alias (the variable of the system that this one replaces), file, default. A key that is not in the
//! table is an error in every source.

mod command_line;
mod manual;
mod markdown;
mod redis;
mod reload;
#[cfg(test)]
mod tests;
mod values;

pub use self::{
    manual::Manual,
    redis::{REDIS, REDIS_REPLICAS, REDIS_URL},
    reload::SettingsReloader,
    values::Values,
};
use crate::metric::Metric;

/// The form of a value, with its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// Name of the value in help texts: `DURATION`.
    pub value_name: &'static str,
    /// The form in words, with an example: `duration (500ms, 30s, 5m)`. Errors quote it.
    pub expects: &'static str,
}

impl Form {
    pub const fn new(value_name: &'static str, expects: &'static str) -> Self {
        Self { value_name, expects }
    }
}

/// A time limit for [`Values::duration`], which refuses zero.
pub const DURATION: Form = Form::new("DURATION", "duration (500ms, 30s, 5m)");
/// A time limit for [`Values::duration_or_off`], for which zero is no limit.
pub const DURATION_OR_OFF: Form = Form::new("DURATION", "duration (12h, 7d; 0s: no limit)");
/// A count.
pub const NUMBER: Form = Form::new("NUMBER", "number");
/// A size.
pub const BYTES: Form = Form::new("BYTES", "number of bytes");
/// A rate.
pub const BYTES_PER_SECOND: Form = Form::new("BYTES", "bytes a second");
/// Free text.
pub const TEXT: Form = Form::new("TEXT", "text");
/// A file that the daemon reads or writes.
pub const FILE: Form = Form::new("FILE", "path of a file");
/// The networks of [`Values::list`].
pub const NETWORKS: Form = Form::new("CIDR", "CIDR list (10.0.0.0/24, 2001:db8::/64)");
/// `log_level`, in all programs.
pub const LOG_LEVEL: Form = Form::new("LEVEL", "error, warn, info, debug or trace");
/// `log_format`, in all programs.
pub const LOG_FORMAT: Setting = Setting::one(
    "log_format",
    Form::new("text|json", "text or json"),
    "text",
    "The format of a log line. Choose json for a log collector. SIGHUP applies a change.",
);
/// `admin_max_connections`, in ftpd and ftp-relay.
pub const ADMIN_MAX_CONNECTIONS: Setting = Setting::one(
    "admin_max_connections",
    NUMBER,
    "16",
    "Connections to `admin_listen` at once. When three quarters of them are in use, a new connection closes \
     the oldest silent one.",
);
/// `admin_header_timeout`, in ftpd and ftp-relay.
pub const ADMIN_HEADER_TIMEOUT: Setting = Setting::one(
    "admin_header_timeout",
    DURATION,
    "5s",
    "The time within which a connection to `admin_listen` must send a complete request header. After it the \
     connection is closed.",
);

/// One row of a daemon's table of settings.
pub struct Setting {
    /// The TOML key. The flag is `--` and the key with `-` for `_`; the variable is the daemon's prefix and
    /// the key in capitals.
    pub key: &'static str,
    pub shape: Shape,
    pub form: Form,
    /// The default as text; empty for a setting without a default.
    pub default: &'static str,
    /// The effect, the reason of the default, and when to change it, in short sentences. `-h` shows the
    /// first.
    pub help: &'static str,
    /// The environment variable for the same setting in the system that this one replaces.
    pub alias: Option<&'static str>,
}

impl Setting {
    pub const fn one(key: &'static str, form: Form, default: &'static str, help: &'static str) -> Self {
        Self { key, shape: Shape::One, form, default, help, alias: None }
    }

    pub const fn many(key: &'static str, form: Form, default: &'static str, help: &'static str) -> Self {
        Self { shape: Shape::Many, ..Self::one(key, form, default, help) }
    }

    pub const fn switch(key: &'static str, default: &'static str, help: &'static str) -> Self {
        let form = Form::new("BOOL", "true or false");
        Self { shape: Shape::Switch, ..Self::one(key, form, default, help) }
    }

    /// The setting, also under the environment variable of the system that this one replaces.
    #[must_use]
    pub const fn alias(self, variable: &'static str) -> Self {
        Self { alias: Some(variable), ..self }
    }

    fn flag(&self) -> String {
        self.key.replace('_', "-")
    }
}

/// How many values a setting takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    One,
    /// A TOML array. A flag may be repeated; flags and variables also take values separated by commas.
    Many,
    /// As `Many`, but commas belong to the value: a flag may be repeated, a variable holds one value.
    Repeated,
    /// `true` or `false`. The flag alone means `true`.
    Switch,
}

/// Settings under one heading of the help, the manual and docs/settings.md.
pub struct Group {
    /// The heading.
    pub name: &'static str,
    /// The purpose of the group, as one sentence.
    pub about: &'static str,
    pub settings: &'static [Setting],
}

/// A subcommand of a daemon. It takes the daemon's settings and no arguments of its own.
pub struct Subcommand {
    pub name: &'static str,
    /// The purpose, without a full stop.
    pub about: &'static str,
    pub manual: Manual,
}

/// Everything about a daemon's command line, settings, metrics and manual pages.
pub struct Schema {
    pub program: &'static str,
    /// The purpose of the program, without a full stop.
    pub about: &'static str,
    pub version: &'static str,
    /// The prefix of environment variables: `FTPD_` or `AUTHD_`.
    pub prefix: &'static str,
    /// All settings. The first group holds the settings that most installations set; `-h` shows it alone.
    pub groups: &'static [&'static Group],
    pub subcommands: &'static [Subcommand],
    pub metrics: &'static [Metric],
    pub manual: Manual,
    /// An example of a configuration file, for the manual page of section 5.
    pub example_file: &'static str,
}

/// A setting that cannot be used, and the reason.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("{path}: {reason}")]
    File { path: String, reason: String },
    #[error("unknown setting {key} in {source_name}{}", suggestion(.nearest))]
    Unknown { key: String, source_name: String, nearest: Vec<&'static str> },
    #[error("{key} = {value:?} (from {source_name}): {reason}; expected {expects}")]
    Invalid { key: &'static str, value: String, source_name: String, reason: String, expects: &'static str },
    #[error("{key} is not set: {reason}; set {key} = {expects} in the file, or {variable}, or --{flag}")]
    Missing { key: &'static str, expects: &'static str, reason: String, variable: String, flag: String },
    #[error("{0}")]
    Conflict(String),
}

fn suggestion(nearest: &[&'static str]) -> String {
    if nearest.is_empty() { String::new() } else { format!("; did you mean {}?", nearest.join(" or ")) }
}

impl Schema {
    /// Every setting, in the order of the groups.
    pub fn settings(&self) -> impl Iterator<Item = &'static Setting> + use<> {
        self.groups.iter().flat_map(|group| group.settings)
    }

    fn setting(&self, key: &str) -> Option<&'static Setting> {
        self.settings().find(|setting| setting.key == key)
    }

    fn variable(&self, setting: &Setting) -> String {
        format!("{}{}", self.prefix, setting.key.to_uppercase())
    }

    /// Names of the groups after the first, as `Cluster, Network and Logging`.
    fn further_groups(&self) -> String {
        let names: Vec<&str> = self.groups.iter().skip(1).map(|group| group.name).collect();
        match names.split_last() {
            Some((last, [])) => (*last).to_owned(),
            Some((last, before)) => format!("{} and {last}", before.join(", ")),
            None => String::new(),
        }
    }
}

/// The first sentence of a text, without its full stop.
fn first_sentence(text: &str) -> &str {
    text.split_once(". ").map_or_else(|| text.trim_end_matches('.'), |(first, _)| first)
}
