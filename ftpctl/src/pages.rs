//! The manual page, from the definition of the command line.

use std::io::{self, Write};

use clap::{Command, CommandFactory};

use crate::{cli::Arguments, error::ConsoleError};

/// ftpctl(1): the page of the program, then a section for each command.
pub(crate) fn manual() -> Result<u8, ConsoleError> {
    let mut command = Arguments::command();
    command.build();
    let mut text = Vec::new();
    let page = clap_mangen::Man::new(command.clone());
    page.render(&mut text)?;
    sections(&command, "", &mut text)?;
    io::stdout().write_all(&text)?;
    Ok(0)
}

fn sections(command: &Command, before: &str, text: &mut Vec<u8>) -> io::Result<()> {
    for command in command.get_subcommands().filter(|command| command.get_name() != "help") {
        let name = format!("{before}{}", command.get_name());
        if command.has_subcommands() {
            sections(command, &format!("{name} "), text)?;
            continue;
        }
        writeln!(text, ".SH \"FTPCTL {}\"", name.to_uppercase())?;
        let page = clap_mangen::Man::new(command.clone());
        page.render_description_section(text)?;
        page.render_synopsis_section(text)?;
        page.render_options_section(text)?;
    }
    Ok(())
}
