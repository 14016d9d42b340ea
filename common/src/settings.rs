//! Settings of a daemon: one table gives the TOML keys, flags, environment variables and help.
//!
//! Every value is text until [`Values`] parses it, wherever it came from, so that each error can
//! name the setting, the value, its source and what would be right. A flag wins over a variable,
//! a variable over the reference system's name for it, that over the file, the file over the
//! default. What is not in the table is an error in every source.

mod values;

use clap::{Arg, ArgAction, ArgMatches, Command};

pub use self::values::Values;

/// One row of a daemon's table of settings.
pub struct Setting {
    /// The TOML key; the flag is `--` and the key with `-` for `_`, the variable the key in
    /// capitals after the daemon's prefix.
    pub key: &'static str,
    pub shape: Shape,
    /// What a value must look like, with its unit: `duration (30s, 5m)`. Errors quote it.
    pub expects: &'static str,
    /// As text; empty where there is none.
    pub default: &'static str,
    /// What it does, and what happens at its limit. One sentence.
    pub help: &'static str,
    /// The reference system's environment variable for the same thing.
    pub alias: Option<&'static str>,
}

/// What settings of a length of time expect.
pub const DURATION: &str = "duration (500ms, 30s, 5m)";

/// As [`DURATION`], for [`Values::duration_or_off`].
pub const DURATION_OR_OFF: &str = "duration (12h, 7d; 0s: no limit)";

impl Setting {
    pub const fn one(
        key: &'static str,
        expects: &'static str,
        default: &'static str,
        help: &'static str,
    ) -> Self {
        Self { key, shape: Shape::One, expects, default, help, alias: None }
    }

    pub const fn many(
        key: &'static str,
        expects: &'static str,
        default: &'static str,
        help: &'static str,
    ) -> Self {
        Self { shape: Shape::Many, ..Self::one(key, expects, default, help) }
    }

    pub const fn switch(key: &'static str, default: &'static str, help: &'static str) -> Self {
        Self { shape: Shape::Switch, ..Self::one(key, "true or false", default, help) }
    }
}

/// How many values a setting takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    One,
    /// A TOML array; repeated or comma-separated elsewhere.
    Many,
    /// As `Many`, but commas belong to the value: a flag is repeated, a variable holds one.
    Repeated,
    /// `true` or `false`; the flag may stand alone.
    Switch,
}

/// A daemon's name, description, variables' prefix and table.
pub struct Schema {
    pub program: &'static str,
    pub about: &'static str,
    pub version: &'static str,
    /// `FTPD_` or `AUTHD_`.
    pub prefix: &'static str,
    pub settings: &'static [Setting],
}

/// A setting that cannot be used, and why.
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
    fn setting(&self, key: &str) -> Option<&'static Setting> {
        self.settings.iter().find(|setting| setting.key == key)
    }

    fn variable(&self, setting: &Setting) -> String {
        format!("{}{}", self.prefix, setting.key.to_uppercase())
    }

    /// The command line of the daemon. A daemon adds its own sub-commands to it.
    pub fn command(&'static self) -> Command {
        let mut command = Command::new(self.program).about(self.about).version(self.version).arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .help(format!("TOML file with settings, each under its key [env: {}CONFIG]", self.prefix)),
        );
        command = command
            .arg(
                Arg::new("check")
                    .long("check")
                    .action(ArgAction::SetTrue)
                    .help("Read all settings, say what is wrong with them, and exit with 0 or 78"),
            )
            .arg(
                Arg::new("deep")
                    .long("deep")
                    .action(ArgAction::SetTrue)
                    .requires("check")
                    .help("With --check: try the files and servers that the settings name, too"),
            )
            .arg(
                Arg::new("print-settings")
                    .long("print-settings")
                    .action(ArgAction::SetTrue)
                    .help("Print the table of all settings as Markdown and exit"),
            )
            .arg(
                Arg::new("print-completions")
                    .long("print-completions")
                    .value_name("SHELL")
                    .value_parser(clap::value_parser!(clap_complete::Shell))
                    .help("Print what completes the command line in a shell, and exit"),
            )
            .arg(
                Arg::new("print-manual")
                    .long("print-manual")
                    .action(ArgAction::SetTrue)
                    .help("Print the manual page and exit"),
            );
        for setting in self.settings {
            let arg = Arg::new(setting.key)
                .long(setting.key.replace('_', "-"))
                .value_name(setting.expects)
                .help(self.describe(setting));
            command = command.arg(match setting.shape {
                Shape::One => arg,
                Shape::Many | Shape::Repeated => arg.action(ArgAction::Append),
                Shape::Switch => arg.num_args(0..=1).default_missing_value("true").value_name("BOOL"),
            });
        }
        command
    }

    fn describe(&self, setting: &Setting) -> String {
        let mut text = setting.help.to_owned();
        if !setting.default.is_empty() {
            text += &format!(" [default: {}]", setting.default);
        }
        text += &format!(" [env: {}", self.variable(setting));
        if let Some(alias) = setting.alias {
            text += &format!(", {alias}");
        }
        text + "]"
    }

    /// What the flags ask to be printed instead of running: the table of settings, completions
    /// or the manual page. `command` is the whole command line, sub-commands included.
    pub fn printed(&self, mut command: Command, flags: &ArgMatches) -> Option<Vec<u8>> {
        let mut page = Vec::new();
        if flags.get_flag("print-settings") {
            page.extend_from_slice(self.markdown().as_bytes());
        } else if let Some(shell) = flags.get_one::<clap_complete::Shell>("print-completions") {
            clap_complete::generate(*shell, &mut command, self.program, &mut page);
        } else if flags.get_flag("print-manual") {
            // Writing to memory does not fail.
            clap_mangen::Man::new(command).render(&mut page).ok()?;
        } else {
            return None;
        }
        Some(page)
    }

    /// The table of settings as Markdown, for the documentation.
    pub fn markdown(&self) -> String {
        let mut text = String::from("| key | value | default | what it does |\n| --- | --- | --- | --- |\n");
        for setting in self.settings {
            let default = match setting.default {
                "" => "–".to_owned(),
                default => format!("`{default}`"),
            };
            let alias =
                setting.alias.map(|a| format!(" (also `{a}` in the environment)")).unwrap_or_default();
            text += &format!(
                "| `{}` | {} | {default} | {}{alias} |\n",
                setting.key, setting.expects, setting.help
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsString, fs};

    use super::*;

    const fn setting(key: &'static str, shape: Shape, default: &'static str) -> Setting {
        Setting { key, shape, expects: "a thing", default, help: "Does it.", alias: None }
    }

    static SCHEMA: Schema = Schema {
        program: "demo",
        about: "about",
        version: "0",
        prefix: "DEMO_",
        settings: &[
            setting("idle_timeout", Shape::One, "5m"),
            setting("trusted", Shape::Many, ""),
            setting("standalone", Shape::Switch, "false"),
            Setting { alias: Some("port"), ..setting("control_port", Shape::One, "21") },
        ],
    };

    fn collect(args: &[&str], environment: &[(&str, &str)]) -> Result<Values, SettingsError> {
        let flags = SCHEMA.command().try_get_matches_from([&["demo"], args].concat()).unwrap();
        let environment = environment.iter().map(|(k, v)| (OsString::from(k), OsString::from(v)));
        Values::collect(&SCHEMA, &flags, environment)
    }

    #[test]
    fn a_flag_wins_over_a_variable_over_its_old_name_over_the_file_over_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        fs::write(&file, "control_port = 1\ntrusted = [\"a\", \"b\"]\n").unwrap();
        let file = file.to_str().unwrap();
        let port = |args: &[&str], env: &[(&str, &str)]| {
            collect(args, env).unwrap().required::<u16>("control_port").unwrap()
        };
        assert_eq!(port(&[], &[]), 21);
        assert_eq!(port(&["--config", file], &[]), 1);
        assert_eq!(port(&["--config", file], &[("port", "2")]), 2);
        assert_eq!(port(&["--config", file], &[("DEMO_CONTROL_PORT", "3"), ("port", "2")]), 3);
        assert_eq!(port(&["--config", file, "--control-port", "4"], &[("DEMO_CONTROL_PORT", "3")]), 4);
        let values = collect(&["--config", file], &[]).unwrap();
        assert_eq!(values.list::<String>("trusted").unwrap(), ["a", "b"]);
    }

    #[test]
    fn lists_and_switches() {
        let values = collect(&["--trusted", "a, b", "--trusted", "c", "--standalone"], &[]).unwrap();
        assert_eq!(values.list::<String>("trusted").unwrap(), ["a", "b", "c"]);
        assert!(values.required::<bool>("standalone").unwrap());
        assert!(values.is_given("standalone") && !values.is_given("idle_timeout"));
        assert!(!collect(&["--standalone", "false"], &[]).unwrap().required::<bool>("standalone").unwrap());
    }

    #[test]
    fn an_error_names_the_setting_the_value_its_source_and_what_would_be_right() {
        let values = collect(&[], &[("DEMO_IDLE_TIMEOUT", "5 apples")]).unwrap();
        let error = values.duration("idle_timeout").unwrap_err().to_string();
        for part in ["idle_timeout", "5 apples", "DEMO_IDLE_TIMEOUT", "a thing"] {
            assert!(error.contains(part), "{error}");
        }
        assert!(collect(&["--idle-timeout", "0s"], &[]).unwrap().duration("idle_timeout").is_err());
    }

    #[test]
    fn completions_and_manual_know_every_setting() {
        for flags in
            [["--print-completions", "bash"], ["--print-completions", "zsh"], ["--print-manual", "--check"]]
        {
            let matches = SCHEMA.command().try_get_matches_from([&["demo"][..], &flags].concat()).unwrap();
            let page = String::from_utf8(SCHEMA.printed(SCHEMA.command(), &matches).unwrap()).unwrap();
            for setting in SCHEMA.settings {
                let flag = setting.key.replace('_', "-");
                // The manual escapes its hyphens.
                assert!(
                    page.contains(&flag) || page.contains(&flag.replace('-', "\\-")),
                    "{flag} in {flags:?}"
                );
            }
        }
        let matches = SCHEMA.command().try_get_matches_from(["demo"]).unwrap();
        assert_eq!(SCHEMA.printed(SCHEMA.command(), &matches), None);
    }

    #[test]
    fn an_error_names_the_line_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        let error = |text: &str| {
            fs::write(&path, text).unwrap();
            let values = collect(&["--config", path.to_str().unwrap()], &[]);
            values
                .and_then(|values| {
                    values.duration("idle_timeout")?;
                    values.required::<u16>("control_port")
                })
                .unwrap_err()
                .to_string()
        };
        let at = |line: usize| format!("{}:{line}", path.display());
        for (text, line, parts) in [
            (
                "\n\ncontrol_port = \"abc\"\n",
                3,
                &["control_port = \"abc\"", "not a whole number", "a thing"][..],
            ),
            ("control_port = 99999\n", 1, &["control_port = \"99999\"", "too large"]),
            ("\nidle_timeout = 5\n", 2, &["idle_timeout = \"5\"", "time unit"]),
            ("\n\nidle_timeuot = \"5m\"\n", 3, &["idle_timeuot", "did you mean idle_timeout?"]),
            ("\ncontrol_ports = 3\n", 2, &["control_ports", "did you mean control_port?"]),
            ("\nidle_timeout_of_sessions = 3\n", 2, &["did you mean idle_timeout?"]),
            ("\ncontrol_port = [21]\n", 2, &["control_port = \"<array>\"", "a thing"]),
            ("\n\n\nidle_timeout = \n", 4, &["not TOML"]),
        ] {
            let error = error(text);
            assert!(error.contains(&at(line)), "{line}: {error}");
            assert!(parts.iter().all(|part| error.contains(part)), "{parts:?}: {error}");
        }
    }

    #[test]
    fn a_missing_setting_tells_where_it_can_be_set() {
        let error = collect(&[], &[]).unwrap().missing("trusted", "the test wants it").to_string();
        for part in ["trusted", "a thing", "DEMO_TRUSTED", "--trusted", "the test wants it"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn a_password_in_a_url_or_a_broken_file_is_not_repeated() {
        let values = collect(&["--trusted", "redis://ann:secret@host"], &[]).unwrap();
        let error = values.list::<u16>("trusted").unwrap_err().to_string();
        assert!(!error.contains("secret") && error.contains("redis://…@host"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        fs::write(&path, "trusted = \"secret\n").unwrap();
        let error = collect(&["--config", path.to_str().unwrap()], &[]).err().unwrap().to_string();
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn what_is_not_in_the_table_is_an_error_in_every_source() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        fs::write(&file, "idle_timeuot = \"5m\"\n").unwrap();
        let error = collect(&["--config", file.to_str().unwrap()], &[]).err().unwrap().to_string();
        assert!(error.contains("idle_timeuot") && error.contains("did you mean idle_timeout?"), "{error}");
        let error = collect(&[], &[("DEMO_NOPE", "1")]).err().unwrap().to_string();
        assert!(error.contains("DEMO_NOPE"), "{error}");
        assert!(SCHEMA.command().try_get_matches_from(["demo", "--nope"]).is_err());
    }
}
