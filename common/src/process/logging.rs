//! Log lines: one an event, for people or as JSON, with the same fields in both daemons.

use std::{
    fmt::Write as _,
    io::{self, Write},
    str::FromStr,
};

use env_logger::fmt::Formatter;
use log::{
    LevelFilter, Record,
    kv::{self, Key, Value, VisitSource},
};
use time::{OffsetDateTime, format_description::BorrowedFormatItem, macros::format_description};

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// `2026-11-22T16:40:24.000Z INFO ftpd::session logged in session=… user=…`
    Text,
    /// `{"time":…,"level":"INFO","target":…,"message":…,"session":…}`
    Json,
}

impl FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("neither text nor json"),
        }
    }
}

/// Sends log lines to standard error. `filter` is env_logger's: `info`, `warn,ftpd=debug`.
/// Call once, first thing.
///
/// rustls warns of what a client's messages hold, as often as the client likes and without a word of whose
/// they are: only a filter that names it shows these.
pub fn init(format: LogFormat, filter: &str) {
    env_logger::Builder::new()
        .filter_module("rustls", LevelFilter::Error)
        .parse_filters(filter)
        .format(move |out, record| write_line(out, format, record))
        .init();
}

/// Checks a filter for [`init`], which takes a misspelt level for the name of a module and then
/// logs nothing.
///
/// # Errors
/// What is no level.
pub fn check_filter(filter: &str) -> Result<(), String> {
    for part in filter.split('/').next().unwrap_or_default().split(',').filter(|part| !part.is_empty()) {
        let level = part.rsplit_once('=').map_or(part, |(_, level)| level).trim();
        if level.parse::<LevelFilter>().is_err() {
            return Err(format!("{level} is no level"));
        }
    }
    Ok(())
}

/// An error with everything that caused it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

fn write_line(out: &mut Formatter, format: LogFormat, record: &Record<'_>) -> io::Result<()> {
    let line = match format {
        LogFormat::Text => text_line(record, OffsetDateTime::now_utc()),
        LogFormat::Json => json_line(record, OffsetDateTime::now_utc()),
    };
    out.write_all(line.as_bytes())
}

fn timestamp(now: OffsetDateTime) -> String {
    const MILLISECONDS: &[BorrowedFormatItem<'_>] =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    // Every time has these components.
    now.format(MILLISECONDS).unwrap_or_default()
}

fn text_line(record: &Record<'_>, now: OffsetDateTime) -> String {
    struct Fields<'a>(&'a mut String);
    impl<'kvs> VisitSource<'kvs> for Fields<'_> {
        fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
            let text = value.to_string();
            let bare = !text.is_empty() && !text.contains([' ', '"', '=']);
            // Writing to a String does not fail.
            let _ = if bare { write!(self.0, " {key}=") } else { write!(self.0, " {key}=\"") };
            escape(self.0, &text, !bare);
            if !bare {
                self.0.push('"');
            }
            Ok(())
        }
    }
    let mut line = format!("{} {:5} {} ", timestamp(now), record.level(), record.target());
    escape(&mut line, &record.args().to_string(), false);
    let _ = record.key_values().visit(&mut Fields(&mut line));
    line.push('\n');
    line
}

/// Nothing that a client sends may end a line or reach a terminal as a control sequence.
fn escape(line: &mut String, text: &str, quotes: bool) {
    for c in text.chars() {
        match c {
            '"' if quotes => line.push_str("\\\""),
            c if is_active(c) => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
}

/// Whether a terminal or editor does something with it instead of showing it: control characters,
/// line and paragraph separators, and those that turn the direction of what follows.
fn is_active(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn json_line(record: &Record<'_>, now: OffsetDateTime) -> String {
    struct Fields(serde_json::Map<String, serde_json::Value>);
    impl<'kvs> VisitSource<'kvs> for Fields {
        fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
            let value = match (value.to_u64(), value.to_i64(), value.to_bool(), value.to_f64()) {
                (Some(number), ..) => number.into(),
                (_, Some(number), ..) => number.into(),
                (_, _, Some(switch), _) => switch.into(),
                (_, _, _, Some(number)) => number.into(),
                _ => value.to_string().into(),
            };
            self.0.insert(key.to_string(), value);
            Ok(())
        }
    }
    let mut fields = Fields(serde_json::Map::new());
    fields.0.insert("time".into(), timestamp(now).into());
    fields.0.insert("level".into(), record.level().as_str().into());
    fields.0.insert("target".into(), record.target().into());
    fields.0.insert("message".into(), record.args().to_string().into());
    let _ = record.key_values().visit(&mut fields);
    let mut line = String::new();
    for c in serde_json::Value::Object(fields.0).to_string().chars() {
        // JSON asks for escapes below U+0020 alone. All others are in strings, and none is above
        // U+FFFF, so that one escape is enough. Writing to a String does not fail.
        let _ = if is_active(c) { write!(line, "\\u{:04x}", u32::from(c)) } else { line.write_char(c) };
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use log::Level;

    use super::*;

    fn lines(message: &str, user: &str) -> (String, String) {
        let pairs = [("user", Value::from(user)), ("bytes", Value::from(7u64))];
        let pairs: &[(&str, Value<'_>)] = &pairs;
        let args = format_args!("{message}").to_string();
        let record = |now, write: fn(&Record<'_>, OffsetDateTime) -> String| {
            write(
                &Record::builder()
                    .level(Level::Info)
                    .target("ftpd")
                    .args(format_args!("{args}"))
                    .key_values(&pairs)
                    .build(),
                now,
            )
        };
        let now = OffsetDateTime::UNIX_EPOCH;
        (record(now, text_line), record(now, json_line))
    }

    #[test]
    fn a_filter_names_levels() {
        for filter in ["info", "warn,ftpd=debug", "OFF", "ftpd::data=trace,error", "debug/words"] {
            assert_eq!(check_filter(filter), Ok(()), "{filter}");
        }
        for filter in ["loud", "info,ftpd", "ftpd=all"] {
            assert!(check_filter(filter).is_err(), "{filter}");
        }
    }

    #[test]
    fn one_event_is_one_line_in_both_forms() {
        let (text, json) = lines("logged in", "demo");
        assert_eq!(text, "1970-01-01T00:00:00.000Z INFO  ftpd logged in user=demo bytes=7\n");
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["user"], "demo");
        assert_eq!(json["bytes"], 7);
        assert_eq!(json["message"], "logged in");
    }

    #[test]
    fn what_a_client_sends_cannot_forge_a_line_or_a_field() {
        let user = "x\r\nINFO user=\"root\" \u{1b}[2J\u{2028}\u{7f}\u{9b}2J\u{202e}";
        let (text, json) = lines("login\nfailed", user);
        for line in [&text, &json] {
            assert!(!line.trim_end_matches('\n').chars().any(is_active), "{line:?}");
        }
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["user"], user);
        assert_eq!(text.matches('\n').count(), 1);
        assert!(text.contains("user=\"x\\r\\nINFO user=\\\"root\\\""), "{text}");
        assert_eq!(json.matches('\n').count(), 1);
    }
}
