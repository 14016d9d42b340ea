//! What every command needs: the API and the form of the output.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::{api::Api, error::ConsoleError};

pub(crate) struct Console {
    pub(crate) api: Api,
    pub(crate) output: Output,
}

/// The form of the output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    pub(crate) json: bool,
    /// Sizes in bytes.
    pub(crate) bytes: bool,
}

impl Output {
    /// Prints text for people, or the value as JSON.
    pub(crate) fn show(
        self,
        value: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> Result<(), ConsoleError> {
        if self.json { self.line(&json(value)) } else { write(&text()) }
    }

    /// Prints a line for people; nothing with `--json`.
    pub(crate) fn note(self, text: &str) -> Result<(), ConsoleError> {
        if self.json { Ok(()) } else { self.line(text) }
    }

    pub(crate) fn line(self, text: &str) -> Result<(), ConsoleError> {
        write(&format!("{text}\n"))
    }

    /// Replaces the screen's content, if standard output is a terminal.
    pub(crate) fn clear(self) -> Result<(), ConsoleError> {
        if !self.json && io::stdout().is_terminal() { write("\x1b[H\x1b[2J") } else { Ok(()) }
    }

    /// Text with this colour, if people on a terminal want colours.
    pub(crate) fn coloured(self, code: &str, text: &str) -> String {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        if wanted && io::stdout().is_terminal() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| format!("{{\"error\":{:?}}}", error.to_string()))
}

fn write(text: &str) -> Result<(), ConsoleError> {
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes())?;
    Ok(output.flush()?)
}
