//! Reads a daemon's settings again on SIGHUP: applies those of the log, and names those that need a restart.

use std::{env, ffi::OsString, io};

use clap::ArgMatches;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::spawn_blocking,
};

use super::{Schema, SettingsError, Values};
use crate::process::logging;

/// Settings that a reload applies. Every daemon has them.
const AT_RUN_TIME: [&str; 2] = ["log_level", "log_format"];

/// Makes a daemon's configuration of its settings, and so checks them.
type Check<C> = fn(&Values) -> Result<C, SettingsError>;

/// The settings that a daemon runs with, and their sources.
pub struct SettingsReloader<C> {
    schema: &'static Schema,
    flags: ArgMatches,
    environment: Vec<(OsString, OsString)>,
    check: Check<C>,
    in_effect: Values,
}

/// The result of a reload.
#[derive(Debug, PartialEq, Eq)]
struct Differences {
    applied: Vec<&'static str>,
    /// Settings whose value, or the file that they name, is not the one that the daemon runs with.
    need_restart: Vec<&'static str>,
}

impl<C: 'static> SettingsReloader<C> {
    /// Collects the settings at the start of the daemon.
    ///
    /// # Errors
    /// A setting cannot be used.
    pub fn load(
        schema: &'static Schema,
        flags: &ArgMatches,
        check: Check<C>,
    ) -> Result<(C, Self), SettingsError> {
        Self::with_environment(schema, flags, env::vars_os().collect(), check)
    }

    pub(super) fn with_environment(
        schema: &'static Schema,
        flags: &ArgMatches,
        environment: Vec<(OsString, OsString)>,
        check: Check<C>,
    ) -> Result<(C, Self), SettingsError> {
        let values = Values::collect(schema, flags, environment.clone())?;
        let config = check(&values)?;
        Ok((config, Self { schema, flags: flags.clone(), environment, check, in_effect: values }))
    }

    /// Reloads at each SIGHUP, as long as the runtime lives. SIGHUP no longer ends the process when the
    /// function has returned.
    ///
    /// # Errors
    /// The signal's handler cannot be installed.
    pub fn start(self) -> io::Result<()> {
        tokio::spawn(self.run(signal(SignalKind::hangup())?));
        Ok(())
    }

    async fn run(mut self, mut hangup: Signal) {
        while hangup.recv().await.is_some() {
            let reload = spawn_blocking(move || {
                let result = self.reload();
                (self, result)
            });
            let result;
            match reload.await {
                Ok((reloader, answer)) => (self, result) = (reloader, answer),
                Err(_) => {
                    log::error!("a bug ended the reload of the settings; restart this process to change any");
                    return;
                }
            }
            match result {
                Err(error) => {
                    log::error!(error:%; "the settings are invalid; those from before remain in effect");
                }
                Ok(differences) => self.report(&differences),
            }
        }
    }

    /// Reads all settings again and notes those of the log as in effect. Blocks.
    ///
    /// # Errors
    /// A setting cannot be used. Then none is applied.
    fn reload(&mut self) -> Result<Differences, SettingsError> {
        let values = Values::collect(self.schema, &self.flags, self.environment.iter().cloned())?;
        (self.check)(&values)?;
        let mut differences = Differences { applied: Vec::new(), need_restart: Vec::new() };
        for key in self.in_effect.differing(&values) {
            if AT_RUN_TIME.contains(&key) {
                self.in_effect.take(key, &values);
                differences.applied.push(key);
            } else {
                differences.need_restart.push(key);
            }
        }
        Ok(differences)
    }

    /// Applies the settings of the log, and logs what is different.
    fn report(&self, differences: &Differences) {
        let report = || {
            if !differences.need_restart.is_empty() {
                log::warn!(
                    settings = differences.need_restart.join(", ").as_str();
                    "changed settings need a restart"
                );
            }
            log::info!(applied = differences.applied.join(", ").as_str(); "settings read again");
        };
        // Where the new filter would drop the lines, they appear before it applies.
        let is_shown = log::log_enabled!(log::Level::Info);
        if is_shown {
            report();
        }
        if !differences.applied.is_empty()
            && let (Ok(format), Ok(level)) =
                (self.in_effect.required("log_format"), self.in_effect.log_level())
        {
            logging::change(format, &level);
        }
        if !is_shown {
            report();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::settings::{FILE, Group, LOG_FORMAT, LOG_LEVEL, Manual, NUMBER, Setting};

    static LOG: Group = Group {
        name: "Log",
        about: "The log.",
        settings: &[
            Setting::one("log_level", LOG_LEVEL, "info", "The level."),
            LOG_FORMAT,
            Setting::one("places", NUMBER, "3", "Places."),
            Setting::one("token_file", FILE, "", "A token."),
        ],
    };

    static SCHEMA: Schema = Schema {
        program: "demo",
        about: "shows how it works",
        version: "0",
        prefix: "DEMO_",
        groups: &[&LOG],
        subcommands: &[],
        metrics: &[],
        manual: Manual {
            synopsis: &[],
            description: &[],
            examples: &[],
            files: &[],
            environment: &[],
            signals: &[],
            exit_status: &[],
            see_also: &[],
        },
        example_file: "",
    };

    fn check(values: &Values) -> Result<u32, SettingsError> {
        values.secret("token_file")?;
        values.log_level()?;
        values.required("places")
    }

    #[test]
    fn a_reload_names_the_changed_settings_until_their_old_values_are_back() {
        let directory = tempfile::tempdir().unwrap();
        let (file, token) = (directory.path().join("demo.toml"), directory.path().join("token"));
        let write = |text: &str| {
            fs::write(&file, format!("token_file = {:?}\n{text}", token.to_str().unwrap())).unwrap();
        };
        fs::write(&token, "one").unwrap();
        write("places = 4\n");
        let flags = SCHEMA.command().get_matches_from(["demo", "--config", file.to_str().unwrap()]);
        let loaded = SettingsReloader::with_environment(&SCHEMA, &flags, Vec::new(), check);
        let (config, mut reloader) = loaded.unwrap();
        assert_eq!(config, 4);
        let mut differences = |text: &str, secret: &str| {
            write(text);
            fs::write(&token, secret).unwrap();
            let Differences { applied, need_restart } = reloader.reload()?;
            Ok::<_, SettingsError>([applied.join(","), need_restart.join(",")])
        };
        let none = String::new;
        assert_eq!(differences("places = 4\n", "one").unwrap(), [none(), none()]);
        let changed = "places = 5\nlog_level = \"debug\"\n";
        assert_eq!(differences(changed, "one").unwrap(), ["log_level".to_owned(), "places".to_owned()]);
        // The level is applied. The other setting still waits for the restart.
        assert_eq!(differences(changed, "one").unwrap(), [none(), "places".to_owned()]);
        assert_eq!(differences(changed, "two").unwrap(), [none(), "places,token_file".to_owned()]);
        for broken in ["places = \"x\"\nlog_level = \"warn\"\n", "log_level = \"loud\"\n", "place = 4\n"] {
            assert!(differences(broken, "one").is_err(), "{broken}");
        }
        let back = "places = 4\nlog_format = \"json\"\n";
        assert_eq!(differences(back, "one").unwrap(), ["log_level,log_format".to_owned(), none()]);
    }
}
