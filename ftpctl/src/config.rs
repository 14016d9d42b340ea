//! Where authd is, and the administrator's token: from flags, environment, the user's file or the host's.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use clap::Args;
use serde::Deserialize;

use crate::error::ConsoleError;

const HOST_FILE: &str = "/etc/distributed-ftp/ftpctl.toml";
const USER_FILE: &str = "distributed-ftp/ftpctl.toml";
const DEFAULT_URL: &str = "http://127.0.0.1:5160";
const DEFAULT_TOKEN_FILE: &str = "/etc/distributed-ftp/admin-token";

/// The flags that say which authd is asked. Each also has an environment variable.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Connection")]
pub(crate) struct ConnectionArguments {
    /// URL of authd: http:// or https://.
    #[arg(long, global = true, value_name = "URL", env = "FTPCTL_URL")]
    pub(crate) url: Option<String>,
    /// The file with the administrator's token.
    #[arg(long, global = true, value_name = "FILE", env = "FTPCTL_TOKEN_FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// For https://: trust the authorities of this file (PEM) and no others.
    #[arg(long, global = true, value_name = "FILE", env = "FTPCTL_CA_FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// A profile of the configuration file.
    #[arg(long, global = true, value_name = "NAME", env = "FTPCTL_PROFILE")]
    pub(crate) profile: Option<String>,
}

/// A configuration file: the values of the default profile, and further profiles.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigurationFile {
    url: Option<String>,
    token_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    #[serde(default)]
    profiles: std::collections::BTreeMap<String, Profile>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Profile {
    url: Option<String>,
    token_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
}

/// Which authd is asked, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Connection {
    pub(crate) url: String,
    pub(crate) token_file: PathBuf,
    pub(crate) ca_file: Option<PathBuf>,
    /// True if a flag, the environment or a file names the URL.
    pub(crate) is_configured: bool,
}

impl Connection {
    /// # Errors
    /// A configuration file is malformed, or lacks the profile.
    pub(crate) fn new(arguments: &ConnectionArguments) -> Result<Self, ConsoleError> {
        let files = [user_file(), Some(PathBuf::from(HOST_FILE))];
        let profile = profile(files.into_iter().flatten(), arguments.profile.as_deref())?;
        let url = arguments.url.clone().or(profile.url);
        Ok(Self {
            is_configured: url.is_some(),
            url: url.unwrap_or_else(|| DEFAULT_URL.to_owned()),
            token_file: (arguments.token_file.clone().or(profile.token_file))
                .unwrap_or_else(|| PathBuf::from(DEFAULT_TOKEN_FILE)),
            ca_file: arguments.ca_file.clone().or(profile.ca_file),
        })
    }

    /// # Errors
    /// The file cannot be read, or is empty.
    pub(crate) fn token(&self) -> Result<String, ConsoleError> {
        let path = self.token_file.clone();
        let text = fs::read_to_string(&path).map_err(|error| ConsoleError::File { path, error })?;
        let token = text.trim();
        if token.is_empty() || !token.chars().all(|c| c.is_ascii_graphic()) {
            let text = "expected one token of printable ASCII characters";
            return Err(ConsoleError::Usage(format!("{}: {text}", self.token_file.display())));
        }
        Ok(token.to_owned())
    }
}

fn user_file() -> Option<PathBuf> {
    let folder = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let config = folder("XDG_CONFIG_HOME").or_else(|| folder("HOME").map(|home| home.join(".config")));
    config.map(|config| config.join(USER_FILE))
}

/// The profile of the first file that exists. Files are not mixed: a token of one file is never sent to the
/// URL of another.
fn profile(files: impl Iterator<Item = PathBuf>, name: Option<&str>) -> Result<Profile, ConsoleError> {
    for path in files {
        match fs::read_to_string(&path) {
            Ok(text) => return select(&path, &text, name),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => return Err(ConsoleError::File { path, error }),
        }
    }
    match name {
        None => Ok(Profile::default()),
        Some(name) => Err(ConsoleError::Usage(format!(
            "no profile {name:?}: neither ~/.config/{USER_FILE} nor {HOST_FILE} exists"
        ))),
    }
}

fn select(path: &Path, text: &str, name: Option<&str>) -> Result<Profile, ConsoleError> {
    let wrong = |text: String| ConsoleError::Usage(format!("{}: {text}", path.display()));
    let file: ConfigurationFile = toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
    let profile = match name {
        None => Profile { url: file.url, token_file: file.token_file, ca_file: file.ca_file },
        Some(name) => match file.profiles.get(name) {
            Some(profile) => profile.clone(),
            None => {
                let known: Vec<_> = file.profiles.keys().map(String::as_str).collect();
                return Err(wrong(format!("no profile {name:?}; profiles: {}", known.join(", "))));
            }
        },
    };
    // Relative paths start at the file's directory.
    let folder = path.parent().unwrap_or(Path::new("/"));
    let resolved = |file: PathBuf| folder.join(file);
    Ok(Profile {
        token_file: profile.token_file.map(resolved),
        ca_file: profile.ca_file.map(resolved),
        ..profile
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "url = 'http://a'\ntoken_file = 'token'\n[profiles.b]\nurl = 'https://b'\n";

    #[test]
    fn a_profile_does_not_inherit_the_token_of_the_default() {
        let path = Path::new("/x/ftpctl.toml");
        let default = select(path, FILE, None).unwrap();
        assert_eq!(default.url.as_deref(), Some("http://a"));
        assert_eq!(default.token_file.as_deref(), Some(Path::new("/x/token")));
        let other = select(path, FILE, Some("b")).unwrap();
        assert_eq!((other.url.as_deref(), other.token_file), (Some("https://b"), None));
    }

    #[test]
    fn unknown_profiles_and_keys_are_errors_that_name_them() {
        let path = Path::new("/x/ftpctl.toml");
        let error = select(path, FILE, Some("c")).unwrap_err().to_string();
        assert!(error.contains("\"c\"") && error.ends_with("profiles: b"), "{error}");
        let error = select(path, "urls = 'x'", None).unwrap_err().to_string();
        assert!(error.contains("urls"), "{error}");
    }
}
