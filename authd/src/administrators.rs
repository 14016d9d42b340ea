//! Named administrators: `administrators_file`, roles, and the administrator of a request.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use common::{admin_api::AdminRole, sync::lock};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// The name of the administrator whose token is in `admin_token_file`.
pub const TOKEN_FILE_ADMINISTRATOR: &str = "admin";

/// An administrator who sends a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Administrator {
    pub name: String,
    pub role: AdminRole,
}

/// The origin of an administrator's request, for the log.
#[derive(Clone, Debug)]
pub struct Actor {
    pub administrator: Administrator,
    pub address: Option<IpAddr>,
}

impl Actor {
    /// The address as text; empty if it is unknown.
    pub(crate) fn address(&self) -> String {
        self.address.map(|address| address.to_string()).unwrap_or_default()
    }
}

/// The administrators that the settings name.
pub struct Administrators {
    path: Option<PathBuf>,
    /// SHA-256 of the token in `admin_token_file`.
    token: Option<[u8; 32]>,
    entries: Mutex<Arc<BTreeMap<String, AdminEntry>>>,
}

/// An administrator in the file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AdminEntry {
    token_sha256: TokenDigest,
    role: AdminRole,
}

/// SHA-256 of a token, as 64 hexadecimal digits in the file.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "String")]
struct TokenDigest([u8; 32]);

impl TryFrom<String> for TokenDigest {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes)
            .map_err(|_| "expected 64 hexadecimal digits, as `authd hash-token` prints them")?;
        Ok(Self(bytes))
    }
}

/// `administrators_file` cannot be used. The message contains no token and no hash.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", .path.display())]
pub struct AdministratorsError {
    path: PathBuf,
    reason: String,
}

impl Administrators {
    /// Reads the file, if there is one. `token` is the content of `admin_token_file`. Blocks.
    ///
    /// # Errors
    /// The file cannot be read or has invalid contents.
    pub fn new(path: Option<PathBuf>, token: Option<&[u8]>) -> Result<Self, AdministratorsError> {
        let entries = path.as_deref().map(read).transpose()?.unwrap_or_default();
        Ok(Self { path, token: token.map(digest), entries: Mutex::new(Arc::new(entries)) })
    }

    /// Reads the file again. Returns the number of administrators in it; `None`: there is no file. After an
    /// error the previous administrators stay. Blocks.
    ///
    /// # Errors
    /// The file cannot be read or has invalid contents.
    pub fn reload(&self) -> Result<Option<usize>, AdministratorsError> {
        let Some(path) = &self.path else { return Ok(None) };
        let entries = read(path)?;
        let number = entries.len();
        *lock(&self.entries) = Arc::new(entries);
        Ok(Some(number))
    }

    /// Returns true if no administrator can have a token.
    pub(crate) fn is_empty(&self) -> bool {
        self.token.is_none() && lock(&self.entries).is_empty()
    }

    /// The administrator with this token. Compares with all digests, so that the duration does not depend on
    /// which one matches.
    pub(crate) fn with_token(&self, token: &[u8]) -> Option<Administrator> {
        self.with_digest(&digest(token))
    }

    /// The administrator whose token has this SHA-256.
    pub(crate) fn with_digest(&self, shown: &[u8; 32]) -> Option<Administrator> {
        let matches = |expected: &[u8; 32]| bool::from(shown.ct_eq(expected));
        let mut found = None;
        if self.token.as_ref().is_some_and(matches) {
            let name = TOKEN_FILE_ADMINISTRATOR.to_owned();
            found = Some(Administrator { name, role: AdminRole::Administrator });
        }
        for (name, entry) in &*self.current() {
            if matches(&entry.token_sha256.0) {
                found = found.or(Some(Administrator { name: name.clone(), role: entry.role }));
            }
        }
        found
    }

    fn current(&self) -> Arc<BTreeMap<String, AdminEntry>> {
        Arc::clone(&lock(&self.entries))
    }
}

/// The line of `administrators_file` for a token, for `authd hash-token`.
pub fn token_line(token: &[u8]) -> String {
    format!("token_sha256 = \"{}\"", hex::encode(digest(token)))
}

/// SHA-256 of a token.
pub(crate) fn digest(token: &[u8]) -> [u8; 32] {
    Sha256::digest(token).into()
}

fn read(path: &Path) -> Result<BTreeMap<String, AdminEntry>, AdministratorsError> {
    let failed = |reason: String| AdministratorsError { path: path.to_owned(), reason };
    let text = fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    // The parser's own error text quotes the line, which may contain a hash.
    let entries: BTreeMap<String, AdminEntry> =
        toml::from_str(&text).map_err(|error| failed(error.message().to_owned()))?;
    for name in entries.keys() {
        if name == TOKEN_FILE_ADMINISTRATOR {
            return Err(failed(format!("the name {name:?} belongs to admin_token_file")));
        }
        if name.is_empty() || name.len() > 64 || name.contains(char::is_control) {
            return Err(failed("a name has 1 to 64 bytes and no control characters".to_owned()));
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn administrators(text: &str) -> Result<Administrators, AdministratorsError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("administrators.toml");
        fs::write(&path, text).unwrap();
        Administrators::new(Some(path), Some(b"sesame"))
    }

    #[test]
    fn each_token_names_its_administrator_and_role() {
        let text = format!("[ann]\n{}\nrole = \"viewer\"\n", token_line(b"ann's token"));
        let known = administrators(&text).unwrap();
        let role = |token: &[u8]| known.with_token(token).map(|found| (found.name, found.role));
        assert_eq!(role(b"sesame"), Some(("admin".to_owned(), AdminRole::Administrator)));
        assert_eq!(role(b"ann's token"), Some(("ann".to_owned(), AdminRole::Viewer)));
        assert_eq!(role(b""), None);
        assert_eq!(role(b"Sesame"), None);
    }

    #[test]
    fn an_invalid_file_is_refused_and_its_hashes_are_not_shown() {
        for text in [
            "[ann]\nrole = \"viewer\"",
            "[ann]\ntoken_sha256 = \"abcd\"\nrole = \"viewer\"",
            &format!("[admin]\n{}\nrole = \"viewer\"", token_line(b"x")),
            "[ann]\ntoken_sha256 = \"abcd\"",
            "[ann]\nrole = \"owner\"",
            "[ann]\ncolour = 1",
        ] {
            let error = administrators(text).map(|_| ()).unwrap_err().to_string();
            assert!(!error.contains("abcd"), "{error}");
        }
    }
}
