//! Values of a daemon's settings: collected from their sources as text, parsed by the getters.

use std::{
    collections::BTreeMap, ffi::OsString, fmt, fs, path::PathBuf, str::FromStr, sync::Mutex, time::Duration,
};

use clap::{ArgMatches, parser::ValueSource};

use super::{Schema, Setting, SettingsError, Shape};
use crate::{
    process::logging,
    secret::Secret,
    sync::lock,
    toml_lines::{line_at, line_of},
};

/// The origin of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Default,
    /// A file, with the line of the key, from 1.
    File(PathBuf, Option<usize>),
    Variable(String),
    Flag,
}

/// The texts of one setting. All come from one source: a stronger source replaces them.
#[derive(Clone)]
struct SettingValue {
    texts: Vec<String>,
    source: Source,
}

/// All settings of a daemon as texts, each with its source.
pub struct Values {
    schema: &'static Schema,
    by_key: BTreeMap<&'static str, SettingValue>,
    /// The contents of files that settings name and that only the start of the daemon reads.
    contents: Mutex<BTreeMap<&'static str, Secret>>,
}

impl Values {
    /// Collects the settings of `schema` from parsed flags, the environment and the file that
    /// `--config` names.
    ///
    /// # Errors
    /// The file cannot be read or is not TOML, or any source holds a key that is not in the table.
    pub fn collect(
        schema: &'static Schema,
        flags: &ArgMatches,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, SettingsError> {
        let mut values = Self { schema, by_key: BTreeMap::new(), contents: Mutex::default() };
        for setting in schema.settings() {
            let defaults = match (setting.default, setting.shape) {
                ("", _) => vec![],
                (default, Shape::Many) => split(default),
                (default, _) => vec![default.to_owned()],
            };
            values.put(setting, defaults, Source::Default);
        }
        let environment: Vec<(OsString, OsString)> = environment.into_iter().collect();
        let variable = format!("{}CONFIG", schema.prefix);
        let named = environment.iter().find(|(name, _)| *name == *variable).map(|(_, path)| path.into());
        let file = flags.get_one::<String>("config").map(PathBuf::from).or(named);
        if let Some(path) = file {
            values.read_file(path)?;
        }
        values.read_environment(environment)?;
        for setting in schema.settings() {
            if flags.value_source(setting.key) == Some(ValueSource::CommandLine) {
                let given: Vec<String> = flags.get_many(setting.key).unwrap_or_default().cloned().collect();
                let given = match setting.shape {
                    Shape::Many => given.iter().flat_map(|value| split(value)).collect(),
                    _ => given,
                };
                values.put(setting, given, Source::Flag);
            }
        }
        Ok(values)
    }

    fn put(&mut self, setting: &'static Setting, texts: Vec<String>, source: Source) {
        self.by_key.insert(setting.key, SettingValue { texts, source });
    }

    fn unknown(&self, key: &str, source_name: String) -> SettingsError {
        let bare = key.strip_prefix(self.schema.prefix).unwrap_or(key).to_lowercase();
        let keys = || self.schema.settings().map(|setting| setting.key);
        let nearest = keys().map(|key| (edit_distance(&bare, key), key)).min();
        let nearest = match nearest {
            Some((0..=3, key)) => vec![key],
            _ => {
                // Keys with the same beginning: `passive_ports` for `passive_port_min` and
                // `passive_port_max`.
                let longest = keys().map(|key| common_start(&bare, key)).max().unwrap_or(0);
                keys().filter(|key| longest >= 5 && common_start(&bare, key) == longest).take(3).collect()
            }
        };
        SettingsError::Unknown { key: key.to_owned(), source_name, nearest }
    }

    fn read_file(&mut self, path: PathBuf) -> Result<(), SettingsError> {
        let failed = |reason: String| SettingsError::File { path: path.display().to_string(), reason };
        let text = fs::read_to_string(&path).map_err(|error| failed(error.to_string()))?;
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            // `to_string` would quote the line, which may hold a password.
            let line = error.span().map_or(1, |span| line_at(&text, span.start));
            let path = format!("{}:{line}", path.display());
            SettingsError::File { path, reason: format!("not TOML: {}", error.message()) }
        })?;
        for (key, value) in table {
            let line = line_of(&text, &[&key]);
            let source = Source::File(path.clone(), line);
            let Some(setting) = self.schema.setting(&key) else {
                return Err(self.unknown(&key, source.to_string()));
            };
            let kind = value.type_str();
            let values = match value {
                toml::Value::Array(items) if matches!(setting.shape, Shape::Many | Shape::Repeated) => {
                    items.into_iter().map(scalar).collect::<Option<Vec<_>>>()
                }
                value => scalar(value).map(|value| vec![value]),
            };
            // The error does not quote the value, which may be a password.
            let values = values.ok_or_else(|| SettingsError::Invalid {
                key: setting.key,
                value: format!("<{kind}>"),
                source_name: source.to_string(),
                reason: "a value of this kind cannot be used".to_owned(),
                expects: setting.form.expects,
            })?;
            self.put(setting, values, source);
        }
        Ok(())
    }

    fn read_environment(
        &mut self,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<(), SettingsError> {
        let mut direct = Vec::new();
        for (name, value) in environment {
            let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else { continue };
            if let Some(setting) = self.schema.settings().find(|s| s.alias == Some(name)) {
                self.put_variable(setting, name, value);
            } else if let Some(key) = name.strip_prefix(self.schema.prefix).filter(|key| *key != "CONFIG") {
                let Some(setting) = self.schema.setting(&key.to_lowercase()) else {
                    return Err(self.unknown(name, "the environment".to_owned()));
                };
                direct.push((setting, name.to_owned(), value.to_owned()));
            }
        }
        for (setting, name, value) in direct {
            self.put_variable(setting, &name, &value);
        }
        Ok(())
    }

    fn put_variable(&mut self, setting: &'static Setting, name: &str, value: &str) {
        let values = match setting.shape {
            Shape::Many => split(value),
            _ => vec![value.to_owned()],
        };
        self.put(setting, values, Source::Variable(name.to_owned()));
    }

    fn row(&self, key: &str) -> (&'static Setting, &SettingValue) {
        let setting = self.schema.setting(key);
        // Keys are literals in the daemon's code: a key that is not in its table is a bug that shows at each
        // start of the daemon.
        let setting = setting.unwrap_or_else(|| panic!("{key} is not in the table of settings"));
        (setting, &self.by_key[setting.key])
    }

    /// The error for a value of `key` that cannot be used, with the reason.
    pub fn invalid(&self, key: &str, reason: impl fmt::Display) -> SettingsError {
        let (setting, value) = self.row(key);
        let source_name = match &value.source {
            Source::Flag => format!("--{}", setting.flag()),
            source => source.to_string(),
        };
        SettingsError::Invalid {
            key: setting.key,
            value: value.texts.iter().map(|text| without_password(text)).collect::<Vec<_>>().join(","),
            source_name,
            reason: plain_reason(&reason.to_string()),
            expects: setting.form.expects,
        }
    }

    /// The error for a setting that is not set and must be, with the reason.
    pub fn missing(&self, key: &str, reason: impl fmt::Display) -> SettingsError {
        let (setting, _) = self.row(key);
        SettingsError::Missing {
            key: setting.key,
            expects: setting.form.expects,
            reason: reason.to_string(),
            variable: self.schema.variable(setting),
            flag: setting.flag(),
        }
    }

    /// Returns true if a flag, a variable or the file sets the setting, even to its default.
    pub fn is_given(&self, key: &str) -> bool {
        self.row(key).1.source != Source::Default
    }

    /// Returns true if a flag sets the setting. Every user of the host sees flags in `ps`.
    pub fn is_flag(&self, key: &str) -> bool {
        self.row(key).1.source == Source::Flag
    }

    /// The setting's value; `None` if it is not set or is empty.
    ///
    /// # Errors
    /// The value does not parse.
    pub fn optional<T>(&self, key: &str) -> Result<Option<T>, SettingsError>
    where
        T: FromStr<Err: fmt::Display>,
    {
        match self.row(key).1.texts.last() {
            None => Ok(None),
            Some(text) if text.is_empty() => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|error| self.invalid(key, error)),
        }
    }

    /// The content of the file that the setting names.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn secret(&self, key: &str) -> Result<Option<Secret>, SettingsError> {
        let Some(path) = self.optional::<PathBuf>(key)? else { return Ok(None) };
        let secret = Secret::read(&path).map_err(|error| self.invalid(key, error))?;
        self.note_content(key, secret.clone());
        Ok(Some(secret))
    }

    /// Notes the content of the file that the setting names, if only the start of the daemon reads it. Then
    /// another content counts as a changed setting.
    pub fn note_content(&self, key: &str, content: Secret) {
        lock(&self.contents).insert(self.row(key).0.key, content);
    }

    /// The settings that have another value in `other`, or name a file with another content.
    pub(super) fn differing(&self, other: &Self) -> Vec<&'static str> {
        let (contents, others) = (lock(&self.contents), lock(&other.contents));
        let differs = |key: &&'static str| {
            self.by_key[key].texts != other.by_key[key].texts || contents.get(key) != others.get(key)
        };
        self.schema.settings().map(|setting| setting.key).filter(differs).collect()
    }

    /// Takes over one setting.
    pub(super) fn take(&mut self, key: &'static str, from: &Self) {
        self.by_key.insert(key, from.by_key[key].clone());
    }

    /// `log_level`, a setting of both daemons.
    ///
    /// # Errors
    /// The value is not a filter of env_logger.
    pub fn log_level(&self) -> Result<String, SettingsError> {
        let filter: String = self.required("log_level")?;
        logging::check_filter(&filter).map_err(|error| self.invalid("log_level", error))?;
        Ok(filter)
    }

    /// The setting's value.
    ///
    /// # Errors
    /// The setting is not set, or its value does not parse.
    pub fn required<T>(&self, key: &str) -> Result<T, SettingsError>
    where
        T: FromStr<Err: fmt::Display>,
    {
        self.optional(key)?.ok_or_else(|| self.missing(key, "it has no default"))
    }

    /// All values of the setting, in order.
    ///
    /// # Errors
    /// One of them does not parse.
    pub fn list<T>(&self, key: &str) -> Result<Vec<T>, SettingsError>
    where
        T: FromStr<Err: fmt::Display>,
    {
        let parse = |text: &String| {
            text.parse().map_err(|error: T::Err| {
                let (text, reason) = (without_password(text), plain_reason(&error.to_string()));
                self.invalid(key, format_args!("{text:?}: {reason}"))
            })
        };
        self.row(key).1.texts.iter().map(parse).collect()
    }

    /// The setting's value as a duration: `30s`, `5m`, `1h 30m`.
    ///
    /// # Errors
    /// The setting is not set, or its value is not a duration or is zero. These time limits cannot be
    /// switched off.
    pub fn duration(&self, key: &str) -> Result<Duration, SettingsError> {
        let duration = *self.required::<humantime::Duration>(key)?;
        if duration.is_zero() {
            return Err(self.invalid(key, "it cannot be zero"));
        }
        Ok(duration)
    }

    /// The setting's value as a duration; `None` if it is zero, which means "no limit".
    ///
    /// # Errors
    /// The setting is not set, or its value is not a duration.
    pub fn duration_or_off(&self, key: &str) -> Result<Option<Duration>, SettingsError> {
        let duration = *self.required::<humantime::Duration>(key)?;
        Ok(Some(duration).filter(|duration| !duration.is_zero()))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("its default"),
            Self::File(path, Some(line)) => write!(f, "{}:{line}", path.display()),
            Self::File(path, None) => path.display().fmt(f),
            Self::Variable(name) => write!(f, "the environment's {name}"),
            Self::Flag => f.write_str("the command line"),
        }
    }
}

/// A parser's message, in words for operators.
fn plain_reason(reason: &str) -> String {
    match reason {
        "invalid digit found in string" => "not a whole number",
        "cannot parse integer from empty string" => "empty, and not a number",
        "number too large to fit in target type" => "the number is too large",
        "number too small to fit in target type" => "the number is too small",
        "provided string was not `true` or `false`" => "neither true nor false",
        "invalid IP address syntax" => "not an IP address, and names are not resolved",
        "invalid socket address syntax" => "not an IP address with a port, and names are not resolved",
        other => other,
    }
    .to_owned()
}

/// The value with the password of a URL replaced by `…`.
fn without_password(value: &str) -> String {
    match value.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?))) {
        Some((scheme, (_, place))) => format!("{scheme}://…@{place}"),
        None => value.to_owned(),
    }
}

/// Length in bytes of the common beginning of two keys.
fn common_start(a: &str, b: &str) -> usize {
    a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count()
}

fn split(list: &str) -> Vec<String> {
    list.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

fn scalar(value: toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(switch) => Some(switch.to_string()),
        toml::Value::Datetime(_) | toml::Value::Array(_) | toml::Value::Table(_) => None,
    }
}

/// Levenshtein distance in bytes, for "did you mean".
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
