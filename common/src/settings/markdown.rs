//! The tables of settings in docs/settings.md.

use std::fmt::Write;

use super::{Group, Schema, Setting};

impl Schema {
    /// All settings as Markdown: a heading, a sentence and a table for each group.
    pub fn markdown(&self) -> String {
        self.groups.iter().map(|group| table(group)).collect::<Vec<_>>().join("\n")
    }
}

fn table(group: &Group) -> String {
    let mut text = format!("### {}\n\n{}\n\n", group.name, group.about);
    text += "| key | value | default | what it does |\n| --- | --- | --- | --- |\n";
    for setting in group.settings {
        let Setting { key, form, help, .. } = setting;
        let default = match setting.default {
            "" => "–".to_owned(),
            default => format!("`{default}`"),
        };
        let alias = setting.alias.map(|name| format!(" (Also `{name}` in the environment.)"));
        // Writing to memory does not fail.
        let _ = writeln!(
            text,
            "| `{key}` | {} | {default} | {help}{} |",
            form.expects,
            alias.unwrap_or_default()
        );
    }
    text
}
