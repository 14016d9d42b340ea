//! Users of a standalone node, from the settings `user` and `user_file`.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use common::{password::Phc, secret::Secret, settings::SettingsError, settings::Values};
use subtle::ConstantTimeEq;
use tokio::{sync::Semaphore, task::spawn_blocking};

/// Password hashes verified concurrently. Each takes half a core for 0.1 s and, with the parameters of authd,
/// 19 MiB.
const VERIFIED_AT_ONCE: usize = 2;

/// The users in the settings of a standalone node.
#[derive(Debug, Default)]
pub struct LocalUsers {
    users: Vec<(String, Credential)>,
    /// Warnings for the operator about passwords that others can read.
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug)]
enum Credential {
    Plain(Secret),
    Hash(Phc),
}

impl LocalUsers {
    /// Reads both settings.
    ///
    /// # Errors
    /// An entry is malformed, two entries have the same name, or the file cannot be read.
    pub fn read(values: &Values) -> Result<Self, SettingsError> {
        let mut users = Self::default();
        let plain: Vec<String> = values.list("user")?;
        for (number, user) in plain.iter().enumerate() {
            // The message must not contain the text, which includes a password.
            let wrong =
                || SettingsError::Conflict(format!("user: entry {} is not NAME:PASSWORD", number + 1));
            let (name, password) = user.split_once(':').ok_or_else(wrong)?;
            if name.is_empty() || password.is_empty() {
                return Err(wrong());
            }
            users.add(name, Credential::Plain(Secret::new(password))).map_err(SettingsError::Conflict)?;
        }
        if !plain.is_empty() && values.is_flag("user") {
            users.warnings.push(
                "every user of this host can see the passwords of --user in `ps`; \
                 use --user-file instead, or the variable FTPD_USER for a single user"
                    .to_owned(),
            );
        }
        if let Some(path) = values.optional::<PathBuf>("user_file")? {
            let text = users.read_file(&path).map_err(|reason| values.invalid("user_file", reason))?;
            values.note_content("user_file", text);
        }
        Ok(users)
    }

    /// Adds the users of a file, and returns its text.
    fn read_file(&mut self, path: &Path) -> Result<Secret, String> {
        let failed = |error: io::Error| error.to_string();
        let mode = fs::metadata(path).map_err(failed)?.permissions().mode() & 0o777;
        if mode & 0o007 != 0 {
            self.warnings.push(format!(
                "every user of this host can read user_file {path} (mode {mode:04o}): chmod 600 {path}",
                path = path.display()
            ));
        }
        let text = fs::read_to_string(path).map_err(failed)?;
        let before = self.users.len();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let entry = line.split_once(':').filter(|(name, _)| !name.is_empty());
            let (name, hash) = entry.ok_or_else(|| format!("line {} is not NAME:HASH", number + 1))?;
            // The message must not contain the text, which may be a password.
            let hash: Phc = hash.trim().parse().map_err(|error| format!("line {}: {error}", number + 1))?;
            self.add(name, Credential::Hash(hash))
                .map_err(|error| format!("line {}: {error}", number + 1))?;
        }
        if self.users.len() == before {
            return Err("the file contains no user".to_owned());
        }
        Ok(Secret::new(text))
    }

    fn add(&mut self, name: &str, credential: Credential) -> Result<(), String> {
        if self.users.iter().any(|(known, _)| known == name) {
            return Err(format!("the user {name:?} occurs twice"));
        }
        self.users.push((name.to_owned(), credential));
        Ok(())
    }

    /// Number of users.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Returns true if there are no users.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }
}

/// Verifies passwords of [`LocalUsers`].
pub struct PasswordVerifier {
    users: Vec<(String, Credential)>,
    /// A hash to verify the password of an unknown user against, so that the reply takes as long as for
    /// a known user. `None` if no user has a hash.
    dummy: Option<Phc>,
    running: Arc<Semaphore>,
}

impl PasswordVerifier {
    pub fn new(users: LocalUsers) -> Self {
        for warning in &users.warnings {
            log::warn!("{warning}");
        }
        let hashed = users.users.iter().find_map(|(_, credential)| match credential {
            Credential::Hash(hash) => Some(hash.clone()),
            Credential::Plain(_) => None,
        });
        Self { users: users.users, dummy: hashed, running: Arc::new(Semaphore::new(VERIFIED_AT_ONCE)) }
    }

    /// Returns true if a user of this name exists.
    pub fn knows(&self, user: &str) -> bool {
        self.users.iter().any(|(name, _)| name == user)
    }

    /// Returns true if `password` is the user's password. Hashes are computed on threads that may block.
    pub async fn is_right(&self, user: &str, password: &Secret) -> bool {
        let found = self.users.iter().find(|(name, _)| name == user).map(|(_, credential)| credential);
        let (hash, known) = match found {
            Some(Credential::Plain(right)) => {
                return right.expose().as_bytes().ct_eq(password.expose().as_bytes()).into();
            }
            Some(Credential::Hash(hash)) => (hash.clone(), true),
            None => match &self.dummy {
                Some(dummy) => (dummy.clone(), false),
                None => return false,
            },
        };
        // Never fails: the semaphore is never closed.
        let Ok(permit) = Arc::clone(&self.running).acquire_owned().await else { return false };
        let password = password.clone();
        let matches = spawn_blocking(move || {
            // Held until the computation ends, even if the session ends before.
            let _permit = permit;
            hash.matches(password.expose().as_bytes())
        });
        known && matches.await.unwrap_or(false)
    }
}
