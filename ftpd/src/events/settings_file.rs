//! `events_file`: the receivers of events, and which events each of them gets.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use common::{process::logging::chain, secret::Secret};
use reqwest::Url;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{
    command::{CommandSettings, EventCommand},
    filter::{EventFilter, FilteredEvent},
    record::EventKind,
    stream::EventStream,
    target::DeliveryTarget,
    webhook::WebhookClient,
};

/// Limits of the settings of a receiver.
const MAX_CONCURRENCY: u32 = 64;
const MAX_NAME: usize = 64;

/// `entries` of a stream, unless it is set, and its limits.
const STREAM_ENTRIES: u32 = 100_000;
const MAX_STREAM_ENTRIES: u32 = 100_000_000;

/// Requests to Redis at the same time, for different paths.
const STREAM_CONCURRENCY: u32 = 16;

/// `events_file` cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", .path.display())]
pub struct EventsFileError {
    path: PathBuf,
    reason: String,
}

/// The receivers of events.
#[derive(Debug, Default)]
pub struct EventReceivers {
    pub(super) receivers: Vec<EventReceiver>,
    /// Of the file and the files that it names.
    pub(super) digest: [u8; 32],
}

/// A receiver of events.
#[derive(Debug)]
pub(super) struct EventReceiver {
    pub name: String,
    pub target: DeliveryTarget,
    pub filter: EventFilter,
    /// Attempts at the same time.
    pub concurrency: u32,
    /// Age of an event after which it is not tried again.
    pub retry_for: Duration,
}

/// What a receiver may use.
#[derive(Clone, Debug)]
pub(super) struct ReceiverContext {
    /// The node has a Redis.
    pub has_redis: bool,
    /// The real path of the storage's root.
    pub root: PathBuf,
}

impl EventReceivers {
    /// Reads the file and the files that it names. Blocks.
    ///
    /// # Errors
    /// A file cannot be read or has invalid contents.
    pub(super) fn read(path: &Path, context: &ReceiverContext) -> Result<Self, EventsFileError> {
        let failed = |reason: String| EventsFileError { path: path.to_owned(), reason };
        let text = fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        let file: EventsFile = toml::from_str(&text).map_err(|error| failed(error.to_string()))?;
        let mut digest = Sha256::new_with_prefix(&text);
        let mut receivers = Self::new(file, context, &mut digest).map_err(failed)?;
        receivers.digest = digest.finalize().into();
        Ok(receivers)
    }

    fn new(file: EventsFile, context: &ReceiverContext, digest: &mut Sha256) -> Result<Self, String> {
        let mut receivers = Self::default();
        for entry in file.webhook {
            let name = entry.name.clone();
            receivers.add(&name, "webhook", webhook(entry, digest))?;
        }
        if file.stream.len() > 1 {
            return Err("more than one stream: each would be the same stream of Redis".into());
        }
        for entry in file.stream {
            let name = entry.name.clone();
            receivers.add(&name, "stream", stream(entry, context))?;
        }
        for entry in file.command {
            let name = entry.name.clone();
            receivers.add(&name, "command", command(entry, context))?;
        }
        Ok(receivers)
    }

    fn add(&mut self, name: &str, kind: &str, receiver: Result<EventReceiver, String>) -> Result<(), String> {
        if name.is_empty() || name.len() > MAX_NAME || name.contains(char::is_control) {
            return Err(format!("name of a {kind}: 1 to {MAX_NAME} bytes and no control characters"));
        }
        if self.receivers.iter().any(|known| known.name == name) {
            return Err(format!("two receivers have the name {name:?}"));
        }
        self.receivers.push(receiver.map_err(|reason| format!("{kind} {name:?}: {reason}"))?);
        Ok(())
    }

    /// Returns true if a receiver gets the event.
    pub(super) fn want(&self, event: &FilteredEvent<'_>) -> bool {
        self.receivers.iter().any(|receiver| receiver.filter.accepts(event))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsFile {
    #[serde(default)]
    webhook: Vec<WebhookEntry>,
    #[serde(default)]
    stream: Vec<StreamEntry>,
    #[serde(default)]
    command: Vec<CommandEntry>,
}

// The keys of a filter stand in each entry: serde's `flatten` would accept unknown keys.

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WebhookEntry {
    name: String,
    url: String,
    secret_file: PathBuf,
    #[serde(default = "uploads")]
    events: Vec<EventKind>,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    paths: Vec<String>,
    timeout: Option<String>,
    concurrency: Option<u32>,
    retry_for: Option<String>,
    ca_file: Option<PathBuf>,
    #[serde(default)]
    allow_http: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamEntry {
    name: String,
    #[serde(default = "uploads")]
    events: Vec<EventKind>,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    paths: Vec<String>,
    entries: Option<u32>,
    retry_for: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CommandEntry {
    name: String,
    program: PathBuf,
    #[serde(default)]
    arguments: Vec<String>,
    #[serde(default = "uploads")]
    events: Vec<EventKind>,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    paths: Vec<String>,
    timeout: Option<String>,
    concurrency: Option<u32>,
    retry_for: Option<String>,
}

fn uploads() -> Vec<EventKind> {
    vec![EventKind::Upload]
}

fn webhook(entry: WebhookEntry, digest: &mut Sha256) -> Result<EventReceiver, String> {
    let url = Url::parse(&entry.url).map_err(|error| format!("url: {error}"))?;
    match url.scheme() {
        "https" => {}
        "http" if entry.allow_http || is_loopback(&url) => {}
        "http" => {
            return Err("url: http is accepted for loopback addresses only, unless allow_http = true".into());
        }
        _ => return Err("url: expected https://…".into()),
    }
    let secret = Secret::read(&entry.secret_file)
        .map_err(|error| format!("secret_file {}: {error}", entry.secret_file.display()))?;
    let authorities = match &entry.ca_file {
        None => None,
        Some(path) => Some(fs::read(path).map_err(|error| format!("ca_file {}: {error}", path.display()))?),
    };
    digest.update(Sha256::digest(secret.expose()));
    digest.update(Sha256::digest(authorities.as_deref().unwrap_or_default()));
    let timeout = duration("timeout", entry.timeout.as_deref().unwrap_or("10s"))?;
    let client = WebhookClient::new(url, &secret, timeout, authorities.as_deref())
        .map_err(|error| format!("the certificates of authorities (ca_file): {}", chain(&error)))?;
    Ok(EventReceiver {
        filter: EventFilter::new(entry.events, &entry.users, entry.groups, &entry.paths)?,
        retry_for: retry_for(entry.retry_for.as_deref())?,
        concurrency: concurrency(entry.concurrency.unwrap_or(4))?,
        name: entry.name,
        target: DeliveryTarget::Webhook(client),
    })
}

fn stream(entry: StreamEntry, context: &ReceiverContext) -> Result<EventReceiver, String> {
    if !context.has_redis {
        return Err("the node has no Redis: set redis_url".into());
    }
    let entries = entry.entries.unwrap_or(STREAM_ENTRIES);
    if !(1..=MAX_STREAM_ENTRIES).contains(&entries) {
        return Err(format!("entries: expected 1 to {MAX_STREAM_ENTRIES}"));
    }
    Ok(EventReceiver {
        filter: EventFilter::new(entry.events, &entry.users, entry.groups, &entry.paths)?,
        retry_for: retry_for(entry.retry_for.as_deref())?,
        concurrency: STREAM_CONCURRENCY,
        name: entry.name,
        target: DeliveryTarget::Stream(EventStream { entries }),
    })
}

fn command(entry: CommandEntry, context: &ReceiverContext) -> Result<EventReceiver, String> {
    if let Some(argument) = entry.arguments.iter().find(|argument| argument.contains('\0')) {
        return Err(format!("arguments: {argument:?} has a NUL character"));
    }
    let settings = CommandSettings {
        receiver: entry.name.clone(),
        program: entry.program,
        arguments: entry.arguments,
        timeout: duration("timeout", entry.timeout.as_deref().unwrap_or("1m"))?,
        root: context.root.clone(),
    };
    Ok(EventReceiver {
        filter: EventFilter::new(entry.events, &entry.users, entry.groups, &entry.paths)?,
        retry_for: retry_for(entry.retry_for.as_deref())?,
        concurrency: concurrency(entry.concurrency.unwrap_or(1))?,
        name: entry.name,
        target: DeliveryTarget::Command(EventCommand::new(settings)?),
    })
}

fn concurrency(number: u32) -> Result<u32, String> {
    if (1..=MAX_CONCURRENCY).contains(&number) {
        Ok(number)
    } else {
        Err(format!("concurrency: expected 1 to {MAX_CONCURRENCY}"))
    }
}

fn retry_for(text: Option<&str>) -> Result<Duration, String> {
    duration("retry_for", text.unwrap_or("24h"))
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn duration(key: &str, text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        Ok(_) => Err(format!("{key}: must not be 0")),
        Err(error) => Err(format!("{key}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(has_redis: bool) -> ReceiverContext {
        ReceiverContext { has_redis, root: "/storage".into() }
    }

    fn read(text: &str) -> Result<EventReceivers, EventsFileError> {
        read_with(text, &context(true))
    }

    fn read_with(text: &str, context: &ReceiverContext) -> Result<EventReceivers, EventsFileError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.toml");
        let secret = directory.path().join("secret");
        fs::write(&secret, "s3cret").unwrap();
        fs::write(&path, text.replace("SECRET", secret.to_str().unwrap())).unwrap();
        EventReceivers::read(&path, context)
    }

    fn one(rest: &str) -> Result<EventReceivers, EventsFileError> {
        read(&format!("[[webhook]]\nname = \"a\"\nsecret_file = \"SECRET\"\n{rest}"))
    }

    #[test]
    fn an_invalid_file_is_refused_and_names_the_key() {
        for (text, named) in [
            ("url = \"ftp://example.com/\"", "url"),
            ("url = \"http://example.com/\"", "allow_http"),
            ("url = \"https://example.com/\"\ncolour = 1", "colour"),
            ("url = \"https://example.com/\"\nevents = [\"uploads\"]", "uploads"),
            ("url = \"https://example.com/\"\npaths = [\"in\"]", "paths"),
            ("url = \"https://example.com/\"\ntimeout = \"0s\"", "timeout"),
            ("url = \"https://example.com/\"\nconcurrency = 0", "concurrency"),
            ("url = \"https://example.com/\"\nca_file = \"/missing\"", "ca_file"),
        ] {
            let error = one(text).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        assert!(one("url = \"http://127.0.0.1:80/\"").is_ok());
        assert!(one("url = \"http://[::1]/\"").is_ok());
        assert!(one("url = \"http://example.com/\"\nallow_http = true").is_ok());
        assert!(read("").unwrap().receivers.is_empty());
    }

    #[test]
    fn an_invalid_stream_is_refused_and_names_the_key() {
        let stream = "[[stream]]\nname = \"s\"\n";
        for (text, named) in [
            ("entries = 0", "entries"),
            ("retry_for = \"0s\"", "retry_for"),
            ("url = \"https://example.com/\"", "url"),
            ("paths = [\"in\"]", "paths"),
            (stream, "more than one stream"),
        ] {
            let error = read(&format!("{stream}{text}")).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        assert_eq!(read(stream).unwrap().receivers.len(), 1);
        let error = read_with(stream, &context(false)).unwrap_err().to_string();
        assert!(error.contains("redis_url"), "{error}");
        let webhook = "[[webhook]]\nname = \"s\"\nurl = \"https://a/\"\nsecret_file = \"SECRET\"\n";
        let error = read(&format!("{webhook}{stream}")).unwrap_err().to_string();
        assert!(error.contains("two receivers"), "{error}");
    }

    #[test]
    fn an_invalid_command_is_refused_and_names_the_key() {
        for (text, named) in [
            ("program = \"sh\"", "absolute"),
            ("program = \"/missing\"", "program /missing"),
            ("program = \"/bin/sh\"\ntimeout = \"0s\"", "timeout"),
            ("program = \"/bin/sh\"\nconcurrency = 65", "concurrency"),
            ("program = \"/bin/sh\"\narguments = \"-c\"", "arguments"),
            ("program = \"/bin/sh\"\narguments = [\"\\u0000\"]", "arguments"),
            ("program = \"/bin/sh\"\nevents = [\"all\"]", "all"),
            ("program = \"/bin/sh\"\nshell = true", "shell"),
            ("", "program"),
        ] {
            let error = read(&format!("[[command]]\nname = \"c\"\n{text}")).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
        let text = "[[command]]\nname = \"c\"\nprogram = \"/bin/sh\"\narguments = [\"-c\"]";
        assert_eq!(read(text).unwrap().receivers.len(), 1);
    }
}
