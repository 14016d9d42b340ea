//! The daemon's command line, from its table of settings.

use std::fmt::Write;

use clap::{Arg, ArgAction, ArgMatches, Command, builder::PossibleValuesParser};

use super::{Schema, Setting, Shape, first_sentence};
use crate::metric;

/// Width of help texts on terminals that are wider.
const HELP_COLUMNS: usize = 100;

/// Heading of the flags with which the program prints something instead of running the daemon.
const COMMANDS: &str = "Commands";

impl Schema {
    /// The daemon's command line: `-h` shows the first group of settings, `--help` all of them.
    pub fn command(&'static self) -> Command {
        let config = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .help_heading(self.groups.first().map_or(COMMANDS, |group| group.name))
            .help(format!("TOML file with settings, each under its key [env: {}CONFIG]", self.prefix));
        let mut command = Command::new(self.program)
            .about(format!("{} {} – {}", self.program, self.version, self.about))
            .version(self.version)
            .max_term_width(HELP_COLUMNS)
            .override_usage(self.usage())
            .after_help(format!("{}\n\n{}", self.hint_at_long_help(), self.examples()))
            .after_long_help(format!("{}\n\n{}", self.sources(), self.examples()))
            // `command_flags` has both, under a heading.
            .disable_help_flag(true)
            .disable_version_flag(true)
            .subcommand_help_heading("Subcommands")
            .arg(config);
        for (number, group) in self.groups.iter().enumerate() {
            for setting in group.settings {
                command = command.arg(self.arg(setting).help_heading(group.name).hide_short_help(number > 0));
            }
        }
        command = command.args(self.command_flags().map(|arg| arg.help_heading(COMMANDS)));
        for subcommand in self.subcommands {
            let help = help_flag("Print this help");
            command = command.subcommand(Command::new(subcommand.name).about(subcommand.about).arg(help));
        }
        command
    }

    fn arg(&self, setting: &'static Setting) -> Arg {
        let arg = Arg::new(setting.key)
            .long(setting.flag())
            .value_name(setting.form.value_name)
            .help(short_help(setting))
            .long_help(self.long_help(setting));
        match setting.shape {
            Shape::One => arg,
            Shape::Many | Shape::Repeated => arg.action(ArgAction::Append),
            Shape::Switch => arg.num_args(0..=1).default_missing_value("true"),
        }
    }

    fn long_help(&self, setting: &Setting) -> String {
        let mut text = format!("{}\n", setting.help);
        if !setting.default.is_empty() {
            // Writing to memory does not fail.
            let _ = write!(text, "[default: {}] ", setting.default);
        }
        let _ = write!(text, "[env: {}", self.variable(setting));
        if let Some(alias) = setting.alias {
            let _ = write!(text, ", {alias}");
        }
        text + "]"
    }

    fn command_flags(&self) -> [Arg; 8] {
        let flag = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
        [
            flag("check")
                .help("Verify the settings, print a summary, and exit: 0 if they are valid, 78 if not"),
            flag("deep")
                .requires("check")
                .help("With --check: also try the files and servers of the settings"),
            flag("print-settings").help("Print the tables of all settings as Markdown, and exit"),
            flag("print-metrics").help("Print the table of all metrics as Markdown, and exit"),
            Arg::new("print-manual")
                .long("print-manual")
                .value_name("PAGE")
                .num_args(0..=1)
                .default_missing_value(self.program)
                .hide_possible_values(true)
                .value_parser(PossibleValuesParser::new(self.pages()))
                .help(format!("Print the manual page {}, and exit", self.pages().join(" or "))),
            Arg::new("print-completions")
                .long("print-completions")
                .value_name("SHELL")
                .value_parser(clap::value_parser!(clap_complete::Shell))
                .help("Print the completions of the command line for a shell, and exit"),
            help_flag("Print help: -h the settings to begin with, --help all of them"),
            Arg::new("version")
                .short('V')
                .long("version")
                .action(ArgAction::Version)
                .help("Print the version"),
        ]
    }

    fn usage(&self) -> String {
        let lines = self.manual.synopsis;
        let width = lines.iter().map(|(line, _)| line.len()).max().unwrap_or(0);
        let lines = lines.iter().map(|(line, purpose)| format!("{line:width$}   {purpose}"));
        // Under the first line, which clap begins with "Usage: ".
        lines.collect::<Vec<_>>().join("\n       ")
    }

    fn hint_at_long_help(&self) -> String {
        let further = self.groups.iter().skip(1).map(|group| group.settings.len()).sum::<usize>();
        format!("{}: {further} more settings, see --help or {}.toml(5)", self.further_groups(), self.program)
    }

    fn sources(&self) -> String {
        format!(
            "Each setting is a flag, a variable [env: NAME], or a key of the file with _ for -. A flag wins \
             over a variable, a variable over the file. Manual pages: {program}(8), {program}.toml(5).",
            program = self.program
        )
    }

    fn examples(&self) -> String {
        let lines = self.manual.examples.iter().map(|(_, line)| format!("  {}", line.replace('\n', "\n  ")));
        format!("Examples:\n{}", lines.collect::<Vec<_>>().join("\n"))
    }

    /// The text that the program prints instead of running the daemon, if a flag requests it: tables,
    /// completions or a manual page.
    pub fn printed(&'static self, flags: &ArgMatches) -> Option<Vec<u8>> {
        if flags.get_flag("print-settings") {
            return Some(self.markdown().into_bytes());
        }
        if flags.get_flag("print-metrics") {
            return Some(metric::markdown(self.metrics).into_bytes());
        }
        if let Some(shell) = flags.get_one::<clap_complete::Shell>("print-completions") {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut self.command(), self.program, &mut text);
            return Some(text);
        }
        flags.get_one::<String>("print-manual").map(|page| self.page(page).into_bytes())
    }
}

fn help_flag(help: &'static str) -> Arg {
    Arg::new("help").short('h').long("help").action(ArgAction::Help).help(help)
}

fn short_help(setting: &Setting) -> String {
    let first = first_sentence(setting.help);
    match setting.default {
        "" => first.to_owned(),
        default => format!("{first} [default: {default}]"),
    }
}
