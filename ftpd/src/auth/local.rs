//! The users of a standalone node: from `user` and `user_file`.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use common::{password::Phc, secret::Secret, settings::SettingsError, settings::Values};
use subtle::ConstantTimeEq;
use tokio::{sync::Semaphore, task::spawn_blocking};

/// Hashes verified at once: each takes half a core for a tenth of a second and, as authd makes them,
/// 19 MiB.
const VERIFIED_AT_ONCE: usize = 2;

/// The users that a standalone node has in its settings.
#[derive(Debug, Default)]
pub struct LocalUsers {
    users: Vec<(String, Credential)>,
    /// What the operator should change about where the passwords are.
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
    /// An entry cannot be used, two have the same name, or the file cannot be read.
    pub fn read(values: &Values) -> Result<Self, SettingsError> {
        let mut users = Self::default();
        let plain: Vec<String> = values.list("user")?;
        for (number, user) in plain.iter().enumerate() {
            // The text holds a password: the message must not repeat it.
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
                "every user of this host sees the passwords of --user in `ps`; \
                 --user-file, or the variable FTPD_USER for one user, keeps them"
                    .to_owned(),
            );
        }
        if let Some(path) = values.optional::<PathBuf>("user_file")? {
            users.read_file(&path).map_err(|reason| values.invalid("user_file", reason))?;
        }
        Ok(users)
    }

    fn read_file(&mut self, path: &Path) -> Result<(), String> {
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
            // Not the text itself, which may be a password.
            let hash: Phc = hash.trim().parse().map_err(|error| format!("line {}: {error}", number + 1))?;
            self.add(name, Credential::Hash(hash))
                .map_err(|error| format!("line {}: {error}", number + 1))?;
        }
        if self.users.len() == before {
            return Err("it names no user".to_owned());
        }
        Ok(())
    }

    fn add(&mut self, name: &str, credential: Credential) -> Result<(), String> {
        if self.users.iter().any(|(known, _)| known == name) {
            return Err(format!("the user {name:?} is there twice"));
        }
        self.users.push((name.to_owned(), credential));
        Ok(())
    }

    /// How many users there are.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether there are no users.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }
}

/// Verifies passwords of [`LocalUsers`].
pub struct Verifier {
    users: Vec<(String, Credential)>,
    /// What the password of an unknown user is compared with, where known users have hashes: the answer
    /// takes as long.
    dummy: Option<Phc>,
    running: Arc<Semaphore>,
}

impl Verifier {
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

    /// Whether there is a user of this name.
    pub fn knows(&self, user: &str) -> bool {
        self.users.iter().any(|(name, _)| name == user)
    }

    /// Whether `password` is the user's. Hashes are computed on threads that serve no connections.
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
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&self.running).acquire_owned().await else { return false };
        let password = password.clone();
        let matches = spawn_blocking(move || {
            // Held by the thread, not by the session, which may end before.
            let _permit = permit;
            hash.matches(password.expose().as_bytes())
        });
        known && matches.await.unwrap_or(false)
    }
}
