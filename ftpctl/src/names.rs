//! Names of users, groups, nodes, sessions and receivers, for completions: from authd, while the user types.
//!
//! While authd is away, or does not answer in time, there are no names and no message: the user is in the
//! middle of a line.

use std::{
    env,
    ffi::{OsStr, OsString},
    time::Duration,
};

use clap::{Args, Command, FromArgMatches};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use common::admin_api::EventsView;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use crate::{
    api::Api,
    config::{Connection, ConnectionArguments},
    render::human::printable,
};

/// The user waits for the names, so authd has only this long to answer.
const DEADLINE: Duration = Duration::from_secs(1);

/// The flags of [`ConnectionArguments`].
const FLAGS: [&str; 4] = ["--url", "--token-file", "--ca-file", "--profile"];

pub(crate) fn users() -> ArgValueCompleter {
    completer(|| named(&["users"]))
}

pub(crate) fn groups() -> ArgValueCompleter {
    completer(|| named(&["groups"]))
}

pub(crate) fn nodes() -> ArgValueCompleter {
    completer(|| list(&["nodes"], |node| Some((text(&node["name"])?, text(&node["state"])))))
}

pub(crate) fn sessions() -> ArgValueCompleter {
    completer(session_ids)
}

/// What `explain` takes.
pub(crate) fn users_and_sessions() -> ArgValueCompleter {
    completer(|| [named(&["users"]), session_ids()].concat())
}

/// Blocked users, addresses and networks.
pub(crate) fn blocked() -> ArgValueCompleter {
    completer(|| named(&["blocks"]))
}

/// Banned users and addresses.
pub(crate) fn banned() -> ArgValueCompleter {
    completer(|| named(&["bans"]))
}

/// Receivers of events.
pub(crate) fn receivers() -> ArgValueCompleter {
    completer(|| events().receivers.into_iter().map(|receiver| (receiver.name, None)).collect())
}

/// Ids of the events of dead letters.
pub(crate) fn dead_letters() -> ArgValueCompleter {
    completer(|| {
        let letters = events().dead_letters.into_iter();
        letters.map(|letter| (letter.id, Some(format!("{} for {}", letter.path, letter.receiver)))).collect()
    })
}

/// A name, and what it is.
type Name = (String, Option<String>);

fn completer(names: impl Fn() -> Vec<Name> + Send + Sync + 'static) -> ArgValueCompleter {
    ArgValueCompleter::new(move |current: &OsStr| {
        let Some(current) = current.to_str() else { return Vec::new() };
        // A name with a control character could steer the terminal.
        let is_wanted = |name: &Name| name.0.starts_with(current) && printable(&name.0) == name.0;
        let candidate = |(name, help): Name| {
            let help = help.map(|help| printable(&help).into());
            CompletionCandidate::new(name).help(help)
        };
        names().into_iter().filter(is_wanted).map(candidate).collect()
    })
}

fn named(path: &[&str]) -> Vec<Name> {
    list(path, |object| Some((text(&object["name"])?, None)))
}

fn session_ids() -> Vec<Name> {
    list(&["sessions"], |session| {
        let whose = format!("{} on {}", text(&session["user"])?, text(&session["node"])?);
        Some((text(&session["id"])?, Some(whose)))
    })
}

fn events() -> EventsView {
    ask(&["events"]).unwrap_or_default()
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn list(path: &[&str], name: impl Fn(&Value) -> Option<Name>) -> Vec<Name> {
    let objects: Vec<Value> = ask(path).unwrap_or_default();
    objects.iter().filter_map(name).collect()
}

/// authd's answer, if it comes in time.
fn ask<T: DeserializeOwned>(path: &[&str]) -> Option<T> {
    let api = Api::new(&connection()?).ok()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let answer = runtime.block_on(async { timeout(DEADLINE, api.get(path, &vec![])).await });
    // A look-up in the DNS may still run.
    runtime.shutdown_background();
    answer.ok()?.ok()
}

/// The connection that the words of the line name, which follow `--`.
fn connection() -> Option<Connection> {
    let words = flags(env::args_os().skip_while(|word| word != "--").skip(1));
    let command = ConnectionArguments::augment_args(Command::new("ftpctl").no_binary_name(true));
    let matches = command.try_get_matches_from(words).ok()?;
    Connection::new(&ConnectionArguments::from_arg_matches(&matches).ok()?).ok()
}

/// The flags of the connection with their values. The other words are not complete yet.
fn flags(mut words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut found = Vec::new();
    while let Some(word) = words.next() {
        let text = word.to_str().unwrap_or_default();
        if FLAGS.contains(&text) {
            found.push(word);
            found.extend(words.next());
        } else if text.split_once('=').is_some_and(|(flag, _)| FLAGS.contains(&flag)) {
            found.push(word);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_of_the_connection_are_found_among_other_words() {
        let words = ["ftpctl", "users", "--url", "http://a", "show", "--profile=b", "--x", "de"];
        let expected = ["--url", "http://a", "--profile=b"].map(OsString::from);
        assert_eq!(flags(words.into_iter().map(OsString::from)), expected);
    }
}
