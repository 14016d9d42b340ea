//! The users that there are: the declared ones first, then those made through the API.

pub mod cache;
pub mod file;
pub mod password;
pub mod stored;
pub mod user;

use std::{
    collections::BTreeMap,
    error::Error,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use common::auth_api::UserSource;

use self::{
    file::{Fingerprint, UsersFile, UsersFileError},
    stored::{Read, Stored, StoredError},
    user::{Credential, User, UserName},
};
use crate::{config::Declared, metrics};

/// Names of the demo users, as in the reference system. `admin` is an administrator.
pub const DEMO_USERS: [&str; 3] = ["demo", "admin", "test"];

type Users = BTreeMap<UserName, User>;

/// All users, wherever they are kept.
pub struct Accounts {
    declared: RwLock<Arc<Users>>,
    file: Option<WatchedFile>,
    /// `None`: there is no Redis.
    pub stored: Option<Stored>,
}

struct WatchedFile {
    path: PathBuf,
    /// What was read last, well or not.
    seen: Mutex<Fingerprint>,
}

/// A user that was found.
pub enum Found {
    Declared(User),
    Stored(Read),
}

impl Found {
    pub fn user(&self) -> &User {
        match self {
            Self::Declared(user) => user,
            Self::Stored(read) => &read.user,
        }
    }

    pub fn source(&self) -> UserSource {
        match self {
            Self::Declared(_) => UserSource::Declarative,
            Self::Stored(_) => UserSource::Registry,
        }
    }
}

impl Accounts {
    /// Reads the declared users. Blocks.
    ///
    /// # Errors
    /// The users file cannot be used.
    pub fn new(declared: &Declared, stored: Option<Stored>) -> Result<Self, UsersFileError> {
        let (users, file) = match declared {
            Declared::Nowhere => (Users::new(), None),
            Declared::Demo => (demo_users(), None),
            Declared::File(path) => {
                let loaded = UsersFile::load(path).map_err(|(error, _)| error)?;
                let file = WatchedFile { path: path.clone(), seen: Mutex::new(loaded.fingerprint) };
                (loaded.users, Some(file))
            }
        };
        let accounts = Self { declared: RwLock::new(Arc::default()), file, stored };
        accounts.declare(users);
        Ok(accounts)
    }

    /// The declared users at this time.
    pub fn declared(&self) -> Arc<Users> {
        Arc::clone(&self.declared.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where the declared users stand, if in a file.
    pub fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(|file| &*file.path)
    }

    /// Whether the users file, or a hash file that it names, is another than when it was last
    /// read. Blocks.
    pub fn has_changed(&self) -> bool {
        self.file.as_ref().is_some_and(|file| {
            let seen = file.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
            seen.now() != seen
        })
    }

    /// Reads the users file again; how many users it declares. Blocks.
    ///
    /// # Errors
    /// The file cannot be used: the users stay as they were.
    pub fn reload(&self) -> Result<usize, UsersFileError> {
        let Some(file) = &self.file else { return Ok(self.declared().len()) };
        // Held to the end, so that of two reloads at once the later one stands.
        let mut seen = file.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (result, fingerprint) = match UsersFile::load(&file.path) {
            Ok(loaded) => (Ok(loaded.users), loaded.fingerprint),
            Err((error, fingerprint)) => (Err(error), fingerprint),
        };
        *seen = fingerprint;
        match result {
            Ok(users) => {
                let count = users.len();
                self.declare(users);
                Ok(count)
            }
            Err(error) => {
                metrics::users_file_is_broken();
                Err(error)
            }
        }
    }

    /// A user, and the number of changes to users in Redis where it had to be asked.
    ///
    /// # Errors
    /// The user is not declared, and Redis is away or holds something that is no user.
    pub async fn find(&self, name: &UserName) -> Result<(Option<Found>, Option<u64>), StoredError> {
        if let Some(user) = self.declared().get(name) {
            return Ok((Some(Found::Declared(user.clone())), None));
        }
        let Some(stored) = &self.stored else { return Ok((None, None)) };
        let (read, generation) = stored.find(name).await?;
        Ok((read.map(Found::Stored), Some(generation)))
    }

    fn declare(&self, users: Users) {
        metrics::users_declared(users.len(), self.file.is_some());
        *self.declared.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(users);
    }
}

/// Says in the log why something in Redis could not be read or written.
pub fn log_unreadable(error: &StoredError) {
    let reason = error.source().map(ToString::to_string).unwrap_or_default();
    log::error!(error:% = error, reason; "users in Redis");
}

fn demo_users() -> Users {
    let user = |text: &str| {
        // The three literals are names.
        let name: UserName = text.parse().expect("a user's name");
        let user = User { admin: text == "admin", ..User::new(&name, Credential::AnyPassword) };
        (name, user)
    };
    DEMO_USERS.into_iter().map(user).collect()
}
