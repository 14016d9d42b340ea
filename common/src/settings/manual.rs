//! Manual pages: section 8 for a daemon, 5 for its file, 1 for its subcommands.

use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

use super::{Schema, Setting, Shape, Subcommand};

/// The parts of a manual page that the table of settings does not hold. In all texts `` `x` `` is bold.
pub struct Manual {
    /// Command lines, each with its purpose.
    pub synopsis: &'static [(&'static str, &'static str)],
    /// Paragraphs.
    pub description: &'static [&'static str],
    /// Purposes and commands. `--help` shows the commands.
    pub examples: &'static [(&'static str, &'static str)],
    pub files: &'static [(&'static str, &'static str)],
    pub environment: &'static [(&'static str, &'static str)],
    pub signals: &'static [(&'static str, &'static str)],
    pub exit_status: &'static [(&'static str, &'static str)],
    /// Other pages, such as `authd(8)`.
    pub see_also: &'static [&'static str],
}

impl Schema {
    /// Names of the manual pages, for `--print-manual`.
    pub(super) fn pages(&self) -> Vec<String> {
        let subcommands = self.subcommands.iter().map(|subcommand| self.name_of(subcommand));
        [self.program.to_owned(), self.name_of_file()].into_iter().chain(subcommands).collect()
    }

    fn name_of_file(&self) -> String {
        format!("{}.toml", self.program)
    }

    fn name_of(&self, subcommand: &Subcommand) -> String {
        format!("{}-{}", self.program, subcommand.name)
    }

    /// The source of a manual page in roff, by a name of [`Self::pages`].
    pub(super) fn page(&'static self, name: &str) -> String {
        if let Some(subcommand) = self.subcommands.iter().find(|subcommand| self.name_of(subcommand) == name)
        {
            self.subcommand_page(subcommand)
        } else if name == self.name_of_file() {
            self.file_page()
        } else {
            self.daemon_page()
        }
    }

    fn title(&self, name: &str, section: &str, purpose: &str) -> Page {
        let mut page = Page(Roff::new());
        let source = format!("{} {}", self.program, self.version);
        page.0.control("TH", [name.to_uppercase().as_str(), section, "", &source, "Distributed FTP"]);
        page.section("NAME");
        page.text(&format!("{name} - {purpose}"));
        page
    }

    fn daemon_page(&'static self) -> String {
        let mut page = self.title(self.program, "8", self.about);
        page.begin(&self.manual);
        page.section("OPTIONS");
        page.paragraph(&format!(
            "The settings that most installations need. Every setting of `{}.toml`(5) is a flag, too: \
             the key with a hyphen for each underscore.",
            self.program
        ));
        let mut command = self.command();
        command.build();
        for arg in command.get_arguments().filter(|arg| !arg.is_hide_short_help_set()) {
            let Some(long) = arg.get_long() else { continue };
            let short = arg.get_short().map(|short| format!("-{short}, ")).unwrap_or_default();
            let value = arg.get_value_names().and_then(|names| names.first());
            let value = value.filter(|_| arg.get_action().takes_values());
            let is_optional = arg.get_num_args().is_some_and(|number| number.min_values() == 0);
            let (open, close) = if is_optional { (" [", "]") } else { (" ", "") };
            let mut term = vec![bold(format!("{short}--{long}"))];
            if let Some(value) = value {
                term.extend([roman(open), italic(value.to_string()), roman(close)]);
            }
            let help = arg.get_long_help().or_else(|| arg.get_help());
            page.entry(term, &help.map(ToString::to_string).unwrap_or_default());
        }
        let file = format!("{}(5)", self.name_of_file());
        page.end(&self.manual, &[&file])
    }

    fn file_page(&self) -> String {
        let name = self.name_of_file();
        let mut page = self.title(&name, "5", &format!("settings of {}", self.program));
        page.section("DESCRIPTION");
        let (program, prefix) = (self.program, self.prefix);
        let is_repeated = |setting: &&Setting| setting.shape == Shape::Repeated;
        let exception = match self.settings().find(is_repeated) {
            Some(setting) => format!(" (not of `{}`, whose values may hold commas)", setting.key),
            None => String::new(),
        };
        for paragraph in [
            format!(
                "A file in TOML: one `key = value` a line. `{program}` reads it at its start, if \
                 `--config` or the variable `{prefix}CONFIG` names it. Every setting is also a flag, \
                 `--key` with a hyphen for each underscore, and an environment variable, `{prefix}KEY` in \
                 capitals. A flag wins over a variable, a variable over the file, the file over the \
                 default."
            ),
            "A key that is not listed here, or a value of another form, ends the program with exit status \
             78 and a message that names the file, the line and the expected form. `--check` verifies a \
             file without a start."
                .to_owned(),
            "Texts, durations, addresses and networks stand in quotes. A duration has a unit: `ms`, `s`, \
             `m`, `h` or `d`. Numbers and `true` and `false` have no quotes."
                .to_owned(),
            format!(
                "A list is an array, `[\"a\", \"b\"]`. Flags and variables take values separated by commas\
                 {exception}; a flag may also be repeated."
            ),
        ] {
            page.paragraph(&paragraph);
        }
        for group in self.groups {
            page.section(&format!("{} SETTINGS", group.name.to_uppercase()));
            page.paragraph(group.about);
            for setting in group.settings {
                let value = vec![bold(setting.key), roman(" = "), italic(setting.form.expects)];
                let default = match setting.default {
                    "" => String::new(),
                    default => format!(" Default: `{default}`."),
                };
                let alias = setting.alias.map(|name| format!(" Also the variable `{name}`."));
                page.entry(value, &format!("{}{default}{}", setting.help, alias.unwrap_or_default()));
            }
        }
        page.section("EXAMPLES");
        page.literal(self.example_file);
        page.entries("FILES", self.manual.files);
        page.see_also([format!("{program}(8)").as_str()].iter().chain(self.manual.see_also));
        page.0.render()
    }

    fn subcommand_page(&self, subcommand: &Subcommand) -> String {
        let mut page = self.title(&self.name_of(subcommand), "1", subcommand.about);
        page.begin(&subcommand.manual);
        page.end(&subcommand.manual, &[])
    }
}

struct Page(Roff);

impl Page {
    fn section(&mut self, name: &str) {
        self.0.control("SH", [name]);
    }

    fn text(&mut self, text: &str) {
        self.0.text(inlines(text));
    }

    fn paragraph(&mut self, text: &str) {
        self.0.control("PP", []);
        self.text(text);
    }

    fn entry(&mut self, term: Vec<Inline>, text: &str) {
        self.0.control("TP", []);
        self.0.text(term);
        self.text(text);
    }

    fn entries(&mut self, section: &str, entries: &[(&str, &str)]) {
        if !entries.is_empty() {
            self.section(section);
        }
        for (term, text) in entries {
            self.entry(vec![bold(*term)], text);
        }
    }

    /// Lines that keep their breaks.
    fn literal(&mut self, lines: &str) {
        self.0.control("PP", []).control("RS", ["4"]).control("nf", []);
        for line in lines.lines() {
            self.0.text([roman(line)]);
        }
        self.0.control("fi", []).control("RE", []);
    }

    /// The sections before the options.
    fn begin(&mut self, manual: &Manual) {
        self.section("SYNOPSIS");
        for (number, (line, _)) in manual.synopsis.iter().enumerate() {
            if number > 0 {
                self.0.control("br", []);
            }
            self.0.text([bold(*line)]);
        }
        self.section("DESCRIPTION");
        for paragraph in manual.description {
            self.paragraph(paragraph);
        }
    }

    /// The sections after the options. `first_pages` come first in SEE ALSO.
    fn end(mut self, manual: &Manual, first_pages: &[&str]) -> String {
        if !manual.examples.is_empty() {
            self.section("EXAMPLES");
        }
        for (purpose, command) in manual.examples {
            self.paragraph(purpose);
            self.literal(command);
        }
        self.entries("FILES", manual.files);
        self.entries("ENVIRONMENT", manual.environment);
        self.entries("SIGNALS", manual.signals);
        self.entries("EXIT STATUS", manual.exit_status);
        self.see_also(first_pages.iter().chain(manual.see_also));
        self.0.render()
    }

    fn see_also<'p>(&mut self, pages: impl IntoIterator<Item = &'p &'p str>) {
        self.section("SEE ALSO");
        let mut parts = Vec::new();
        for page in pages {
            if !parts.is_empty() {
                parts.push(roman(", "));
            }
            let (name, section) = page.split_at(page.find('(').unwrap_or(page.len()));
            parts.extend([bold(name), roman(section)]);
        }
        self.0.text(parts);
    }
}

/// A text with `` `x` `` in bold.
fn inlines(text: &str) -> Vec<Inline> {
    let parts = text.split('`').enumerate().filter(|(_, part)| !part.is_empty());
    parts.map(|(number, part)| if number % 2 == 1 { bold(part) } else { roman(part) }).collect()
}
