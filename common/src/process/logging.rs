//! Log lines of both daemons, as text or JSON, one line per event.

use std::{
    fmt::Write as _,
    io::{self, Write},
    str::FromStr,
    sync::{Arc, OnceLock, RwLock},
};

use env_logger::fmt::Formatter;
use log::{
    LevelFilter, Log, Metadata, Record,
    kv::{self, Key, Value, VisitSource, VisitValue},
};
use time::{OffsetDateTime, format_description::BorrowedFormatItem, macros::format_description};

use crate::sync::{read, write};

/// The format of log lines.
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
            _ => Err("not text or json"),
        }
    }
}

/// The largest number that every JSON reader keeps exactly: JavaScript and jq use doubles.
const LARGEST_NUMBER: u64 = 1 << 53;

/// The process's logger. `None` before [`init`].
static LOGGER: OnceLock<ChangeableLogger> = OnceLock::new();

/// A logger whose filter and format can change.
struct ChangeableLogger {
    node: Option<Arc<str>>,
    current: RwLock<Arc<env_logger::Logger>>,
}

impl ChangeableLogger {
    /// The logger in use. The lock is not held while a line is written, which may block.
    fn current(&self) -> Arc<env_logger::Logger> {
        Arc::clone(&read(&self.current))
    }
}

impl Log for ChangeableLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.current().enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        self.current().log(record);
    }

    fn flush(&self) {}
}

/// Sends log lines to standard error. `filter` has the form of env_logger: `info`, `warn,ftpd=debug`.
/// `node` is a field of every line, so that lines of several nodes can be collected in one place. Call it
/// once, before anything else.
///
/// Warnings of rustls are shown only if the filter names rustls: clients can cause any number of them, and
/// they do not name the client.
pub fn init(format: LogFormat, filter: &str, node: Option<String>) {
    let node = node.map(Arc::from);
    let first = logger(format, filter, node.clone());
    let level = first.filter();
    let logger = LOGGER.get_or_init(|| ChangeableLogger { node, current: RwLock::new(Arc::new(first)) });
    // It fails only if there is a logger already, which stays.
    if log::set_logger(logger).is_ok() {
        log::set_max_level(level);
    }
}

/// Changes the format and the filter that [`init`] set.
pub fn change(format: LogFormat, filter: &str) {
    let Some(changeable) = LOGGER.get() else { return };
    let next = logger(format, filter, changeable.node.clone());
    let level = next.filter();
    *write(&changeable.current) = Arc::new(next);
    log::set_max_level(level);
}

fn logger(format: LogFormat, filter: &str, node: Option<Arc<str>>) -> env_logger::Logger {
    env_logger::Builder::new()
        .filter_module("rustls", LevelFilter::Error)
        .parse_filters(filter)
        .format(move |out, record| write_line(out, format, record, node.as_deref()))
        .build()
}

/// Checks a filter for [`init`]. env_logger would take a misspelt level for the name of a module, and log
/// nothing.
///
/// # Errors
/// The first part that is not a level.
pub fn check_filter(filter: &str) -> Result<(), String> {
    for part in filter.split('/').next().unwrap_or_default().split(',').filter(|part| !part.is_empty()) {
        let level = part.rsplit_once('=').map_or(part, |(_, level)| level).trim();
        if level.parse::<LevelFilter>().is_err() {
            return Err(format!("{level} is not a log level"));
        }
    }
    Ok(())
}

/// An error and its causes as one text, separated by colons.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

fn write_line(
    out: &mut Formatter,
    format: LogFormat,
    record: &Record<'_>,
    node: Option<&str>,
) -> io::Result<()> {
    let line = match format {
        LogFormat::Text => text_line(record, node, OffsetDateTime::now_utc()),
        LogFormat::Json => json_line(record, node, OffsetDateTime::now_utc()),
    };
    out.write_all(line.as_bytes())
}

fn timestamp(now: OffsetDateTime) -> String {
    const MILLISECONDS: &[BorrowedFormatItem<'_>] =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    // Formatting succeeds: every time has these components.
    now.format(MILLISECONDS).unwrap_or_default()
}

fn text_line(record: &Record<'_>, node: Option<&str>, now: OffsetDateTime) -> String {
    struct TextFields<'a> {
        line: &'a mut String,
        names_node: bool,
    }
    impl<'kvs> VisitSource<'kvs> for TextFields<'_> {
        fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
            self.names_node |= key.as_str() == NODE;
            if !is_null(&value) {
                text_field(self.line, key.as_str(), &value.to_string());
            }
            Ok(())
        }
    }
    let mut line = format!("{} {:5} {} ", timestamp(now), record.level(), record.target());
    escape(&mut line, &record.args().to_string(), false);
    let mut fields = TextFields { line: &mut line, names_node: false };
    let _ = record.key_values().visit(&mut fields);
    if let Some(node) = node.filter(|_| !fields.names_node) {
        text_field(&mut line, NODE, node);
    }
    line.push('\n');
    line
}

/// The name of the field that [`init`] adds to lines that do not have it.
const NODE: &str = "node";

/// Appends a field. In a quoted value `"` and the backslash are escaped, so that a value cannot forge the
/// next field.
fn text_field(line: &mut String, key: &str, value: &str) {
    let is_bare = !value.is_empty() && !value.contains([' ', '"', '=', '\\']) && !value.contains(is_active);
    // Writing to a `String` does not fail.
    let _ = write!(line, " {key}=");
    if is_bare {
        line.push_str(value);
    } else {
        line.push('"');
        escape(line, value, true);
        line.push('"');
    }
}

/// Returns true if the value is a `None`. The field is then omitted.
fn is_null(value: &Value<'_>) -> bool {
    struct IsNull(bool);
    impl VisitValue<'_> for IsNull {
        fn visit_any(&mut self, _: Value<'_>) -> Result<(), kv::Error> {
            Ok(())
        }
        fn visit_null(&mut self) -> Result<(), kv::Error> {
            self.0 = true;
            Ok(())
        }
    }
    let mut is_null = IsNull(false);
    let _ = value.visit(&mut is_null);
    is_null.0
}

/// Appends a text with escapes, so that nothing in it ends the line or reaches a terminal as a control
/// sequence.
fn escape(line: &mut String, text: &str, quotes: bool) {
    for c in text.chars() {
        match c {
            '"' | '\\' if quotes => line.extend(['\\', c]),
            c if is_active(c) => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
}

/// Returns true if terminals or editors interpret the character instead of showing it: control characters,
/// line and paragraph separators, and characters that change the direction of text.
fn is_active(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn json_line(record: &Record<'_>, node: Option<&str>, now: OffsetDateTime) -> String {
    struct JsonFields(serde_json::Map<String, serde_json::Value>);
    impl<'kvs> VisitSource<'kvs> for JsonFields {
        fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
            if is_null(&value) {
                return Ok(());
            }
            let value = match (value.to_u64(), value.to_i64(), value.to_bool(), value.to_f64()) {
                (Some(number), ..) if number <= LARGEST_NUMBER => number.into(),
                (None, Some(number), ..) if number.unsigned_abs() <= LARGEST_NUMBER => number.into(),
                (Some(_), ..) | (_, Some(_), ..) => value.to_string().into(),
                (_, _, Some(switch), _) => switch.into(),
                (_, _, _, Some(number)) => number.into(),
                _ => value.to_string().into(),
            };
            self.0.insert(key.to_string(), value);
            Ok(())
        }
    }
    let mut fields = JsonFields(serde_json::Map::new());
    fields.0.insert("time".into(), timestamp(now).into());
    fields.0.insert("level".into(), record.level().as_str().into());
    fields.0.insert("target".into(), record.target().into());
    fields.0.insert("message".into(), record.args().to_string().into());
    let _ = record.key_values().visit(&mut fields);
    if let Some(node) = node {
        fields.0.entry(NODE).or_insert_with(|| node.into());
    }
    let mut line = String::new();
    escape_json(&mut line, &serde_json::Value::Object(fields.0).to_string());
    line.push('\n');
    line
}

/// Appends JSON in which active characters are escaped. serde_json escapes only characters below U+0020.
pub(crate) fn escape_json(line: &mut String, json: &str) {
    for c in json.chars() {
        // The other active characters are within strings and not above U+FFFF, so one escape is enough.
        // Writing to a `String` does not fail.
        let _ = if is_active(c) { write!(line, "\\u{:04x}", u32::from(c)) } else { line.write_char(c) };
    }
}

#[cfg(test)]
mod tests {
    use log::Level;

    use super::*;

    fn lines(message: &str, user: &str) -> (String, String) {
        let pairs = [("user", Value::from(user)), ("bytes", Value::from(7u64))];
        let pairs: &[(&str, Value<'_>)] = &pairs;
        let args = format_args!("{message}").to_string();
        let record = |now, write: fn(&Record<'_>, Option<&str>, OffsetDateTime) -> String| {
            write(
                &Record::builder()
                    .level(Level::Info)
                    .target("ftpd")
                    .args(format_args!("{args}"))
                    .key_values(&pairs)
                    .build(),
                None,
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
    fn an_event_is_one_line_in_both_formats() {
        let (text, json) = lines("logged in", "demo");
        assert_eq!(text, "1970-01-01T00:00:00.000Z INFO  ftpd logged in user=demo bytes=7\n");
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["user"], "demo");
        assert_eq!(json["bytes"], 7);
        assert_eq!(json["message"], "logged in");
    }

    #[test]
    fn a_clients_text_cannot_forge_a_line_or_a_field() {
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

    #[test]
    fn a_backslash_before_a_quote_does_not_end_a_value() {
        let (text, json) = lines("login failed", r#"x \" result=accepted address=203.0.113.77 z=""#);
        assert!(
            text.contains(r#"user="x \\\" result=accepted address=203.0.113.77 z=\"" bytes=7"#),
            "{text}"
        );
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["user"], r#"x \" result=accepted address=203.0.113.77 z=""#);
        // A value with a backslash is quoted, because an unquoted one would look like an escape.
        assert!(lines("login failed", r"DOMAIN\ann").0.contains(r#"user="DOMAIN\\ann""#));
    }

    /// The fields of a text line as a logfmt reader reads them: `KEY=VALUE`, where VALUE is bare, or quoted
    /// with backslash escapes.
    fn read_fields(mut text: &str) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        while let Some((key, rest)) = text.trim_start().split_once('=') {
            let Some(quoted) = rest.strip_prefix('"') else {
                let end = rest.find([' ', '\n']).unwrap_or(rest.len());
                fields.push((key.to_owned(), rest[..end].to_owned()));
                text = &rest[end..];
                continue;
            };
            let (mut value, mut chars) = (String::new(), quoted.char_indices());
            text = loop {
                match chars.next().expect("a quoted value ends") {
                    (at, '"') => break &quoted[at + 1..],
                    (_, '\\') => match chars.next().expect("something is escaped").1 {
                        'n' => value.push('\n'),
                        'r' => value.push('\r'),
                        't' => value.push('\t'),
                        'u' => {
                            let digits: String =
                                chars.by_ref().map(|(_, c)| c).skip(1).take_while(|c| *c != '}').collect();
                            let code = u32::from_str_radix(&digits, 16).expect("hexadecimal digits");
                            value.push(char::from_u32(code).expect("a character"));
                        }
                        c => value.push(c),
                    },
                    (_, c) => value.push(c),
                }
            };
            fields.push((key.to_owned(), value));
        }
        fields
    }

    proptest::proptest! {
        #[test]
        fn a_logfmt_reader_reads_exactly_the_same_fields(
            user in "\\PC*|[\\x00-\\x7f]*|[ \"=\\\\]*",
            path in "\\PC*|[\\x00-\\x7f]*",
        ) {
            let pairs: &[(&str, Value<'_>)] =
                &[("user", user.as_str().into()), ("path", path.as_str().into())];
            let args = format_args!("message");
            let record =
                Record::builder().level(Level::Info).target("t").args(args).key_values(&pairs).build();
            let line = text_line(&record, Some("ftp1"), OffsetDateTime::UNIX_EPOCH);
            let fields = line.split_once("message").map(|(_, fields)| read_fields(fields));
            let expected = [("user", user), ("path", path), ("node", "ftp1".to_owned())];
            let expected = expected.map(|(key, value)| (key.to_owned(), value)).to_vec();
            proptest::prop_assert_eq!(fields, Some(expected));
        }
    }

    /// The text line and the JSON line of a record with one field, on node `ftp1`.
    fn lines_of_node(key: &str, value: Value<'_>) -> (String, serde_json::Value) {
        let pairs: &[(&str, Value<'_>)] = &[(key, value)];
        let args = format_args!("message");
        let record = Record::builder().level(Level::Info).target("t").args(args).key_values(&pairs).build();
        let now = OffsetDateTime::UNIX_EPOCH;
        let json = serde_json::from_str(&json_line(&record, Some("ftp1"), now)).unwrap();
        (text_line(&record, Some("ftp1"), now), json)
    }

    #[test]
    fn every_line_names_its_node_once() {
        let (text, json) = lines_of_node("user", Value::from("ann"));
        assert!(text.ends_with(" user=ann node=ftp1\n"), "{text}");
        assert_eq!(json["node"], "ftp1");
        let (text, json) = lines_of_node("node", Value::from("ftp2"));
        assert!(text.ends_with(" message node=ftp2\n"), "{text}");
        assert_eq!(json["node"], "ftp2");
    }

    #[test]
    fn json_keeps_the_types_of_values_and_rounds_no_number() {
        let json = |value| lines_of_node("value", value).1["value"].clone();
        assert_eq!(json(Value::from(false)), false);
        assert_eq!(json(Value::from(-3)), -3);
        assert_eq!(json(Value::from(0.25)), 0.25);
        assert_eq!(json(Value::from(1u64 << 53)), 1u64 << 53);
        assert_eq!(json(Value::from(u64::MAX)), "18446744073709551615");
        assert_eq!(json(Value::from(i64::MIN)), "-9223372036854775808");
    }

    #[test]
    fn a_field_without_a_value_is_omitted() {
        let (text, json) = lines_of_node("errno", Value::null());
        assert!(!text.contains("errno"), "{text}");
        assert_eq!(json.get("errno"), None);
    }
}
