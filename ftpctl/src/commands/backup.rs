//! `backup`, `restore`. The document is authd's; the console only carries it.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use common::admin_api::{BackupDocument, RestoreView};
use reqwest::Method;
use serde_json::Value;

use crate::{
    api::Query,
    console::Console,
    error::ConsoleError,
    render::human::{counted, printable},
};

/// Standard input or output, instead of a file.
const STANDARD: &str = "-";

pub(crate) async fn backup(console: &Console, file: &Path) -> Result<u8, ConsoleError> {
    let document: BackupDocument = console.api.get(&["backup"], &vec![]).await?;
    let failed = |error: serde_json::Error| ConsoleError::Failed(error.to_string());
    let text = serde_json::to_string_pretty(&document).map_err(failed)?;
    if file == Path::new(STANDARD) {
        console.output.line(&text)?;
        return Ok(0);
    }
    write(file, &text).map_err(|error| ConsoleError::File { path: file.to_owned(), error })?;
    let (users, groups) = (document.users.len(), document.groups.len());
    let (overrides, blocks) = (document.overrides.len(), document.blocks.len());
    let done = serde_json::json!({
        "file": file.display().to_string(), "bytes": text.len() + 1,
        "users": users, "groups": groups, "overrides": overrides, "blocks": blocks,
    });
    console.output.show(&done, || {
        let objects = objects(users, groups, overrides, blocks);
        let name = printable(&file.display().to_string());
        format!("{name} has {objects}. It holds password hashes: only its owner may read it\n")
    })?;
    Ok(0)
}

fn objects(users: usize, groups: usize, overrides: usize, blocks: usize) -> String {
    let of = |number: usize, noun: &str| counted(number as u64, noun);
    format!(
        "{}, {}, {}, {}",
        of(users, "user"),
        of(groups, "group"),
        of(overrides, "override"),
        of(blocks, "block")
    )
}

/// Writes a new file beside the old one, which stays whole until the end.
fn write(file: &Path, text: &str) -> io::Result<()> {
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let new = Path::new(&name);
    let open = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(new);
    let written = open.and_then(|mut open| {
        open.write_all(text.as_bytes())?;
        open.write_all(b"\n")?;
        open.sync_all()?;
        fs::rename(new, file)
    });
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(new);
    }
    written
}

pub(crate) async fn restore(console: &Console, file: &Path, replace: bool) -> Result<u8, ConsoleError> {
    let document = read(file)?;
    let query: Query = if replace { vec![("replace", "true".to_owned())] } else { vec![] };
    let answer = console.api.change(Method::POST, &["restore"], &query, Some(&document)).await?;
    let view: RestoreView =
        serde_json::from_value(answer).map_err(|error| ConsoleError::Failed(error.to_string()))?;
    console.output.show(&view, || {
        let RestoreView { users, groups, overrides, blocks, removed, warnings } = &view;
        let mut text =
            format!("restored: {}; {removed} removed\n", objects(*users, *groups, *overrides, *blocks));
        for warning in warnings {
            text.push_str(&format!("warning: {}\n", printable(warning)));
        }
        text
    })?;
    Ok(0)
}

fn read(file: &Path) -> Result<Value, ConsoleError> {
    let text = if file == Path::new(STANDARD) {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        fs::read_to_string(file)
    };
    let text = text.map_err(|error| ConsoleError::File { path: file.to_owned(), error })?;
    serde_json::from_str(&text).map_err(|error| ConsoleError::Usage(format!("{}: {error}", file.display())))
}
