//! Declared users and groups: from the users file, the demo or the settings. Reads the file again on request.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, RwLock},
};

use common::{
    policy::TreePath,
    sync::{lock, read, write},
};

use super::{
    anonymous::{self, Anonymous},
    file::{Declarations, Fingerprint, UsersFile, UsersFileError},
    name::UserName,
    user::{Credential, User},
};
use crate::metrics;

/// Names of the demo users, as in the reference system. `admin` is an administrator.
pub const DEMO_USERS: [&str; 3] = ["demo", "admin", "test"];

/// The place where users are declared, other than in Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeclaredUsers {
    /// There is no users file: all users are in Redis.
    None,
    /// A users file.
    File(PathBuf),
    /// The users demo, admin and test, who log in with any password. Only for a loopback address.
    Demo,
}

/// The declared users and groups of this process.
pub struct DeclaredAccounts {
    current: RwLock<Arc<Declarations>>,
    anonymous: Option<Anonymous>,
    file: Option<WatchedFile>,
}

struct WatchedFile {
    path: PathBuf,
    /// State of the files at the last attempt to read them, successful or not.
    last_read: Mutex<Fingerprint>,
}

/// Result of reading the users file again.
pub struct ReloadedUsers {
    /// Number of users that the file declares.
    pub users: usize,
    /// Users who were enabled before and who are now removed or disabled, or have another password or other
    /// certificates.
    pub revoked: Vec<UserName>,
}

impl DeclaredAccounts {
    /// Reads the declared users. Blocks.
    ///
    /// # Errors
    /// The users file cannot be used.
    pub fn new(declared: &DeclaredUsers, anonymous: Option<Anonymous>) -> Result<Self, UsersFileError> {
        let (declarations, file) = match declared {
            DeclaredUsers::None => (Declarations::default(), None),
            DeclaredUsers::Demo => (demo_users(), None),
            DeclaredUsers::File(path) => {
                let loaded = UsersFile::load(path, reserved_names(&anonymous)).map_err(|(error, _)| error)?;
                let file = WatchedFile { path: path.clone(), last_read: Mutex::new(loaded.fingerprint) };
                (loaded.declared, Some(file))
            }
        };
        let accounts = Self { current: RwLock::new(Arc::default()), anonymous, file };
        accounts.replace(declarations);
        Ok(accounts)
    }

    /// The current declarations.
    pub fn current(&self) -> Arc<Declarations> {
        Arc::clone(&read(&self.current))
    }

    /// Returns true if `name` is one of the anonymous user's names and anonymous access is on.
    pub fn is_anonymous(&self, name: &UserName) -> bool {
        self.anonymous.is_some() && anonymous::NAMES.contains(&name.as_str())
    }

    /// The directory that the user's quota applies to. `None`: the quota applies to the whole home.
    pub fn quota_directory(&self, name: &UserName) -> Option<TreePath> {
        self.anonymous.as_ref().filter(|_| self.is_anonymous(name))?.quota_directory()
    }

    /// The name under which a user's account is kept. The anonymous user has two login names and one account.
    pub fn canonical_name(&self, name: UserName) -> UserName {
        if self.is_anonymous(&name) { Anonymous::name() } else { name }
    }

    /// Path of the users file, if there is one.
    pub fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(|file| &*file.path)
    }

    /// The state of the users file and of the hash files that it names, if it differs from the state that was
    /// last read. Blocks.
    pub fn changed(&self) -> Option<Fingerprint> {
        let file = self.file.as_ref()?;
        let last_read = lock(&file.last_read).clone();
        Some(last_read.now()).filter(|now| *now != last_read)
    }

    /// Reads the users file again. Blocks.
    ///
    /// # Errors
    /// The file cannot be used. The declarations stay as they were.
    pub fn reload(&self) -> Result<ReloadedUsers, UsersFileError> {
        let Some(file) = &self.file else {
            return Ok(ReloadedUsers { users: self.current().users.len(), revoked: Vec::new() });
        };
        // Locked until the declarations are replaced: of two concurrent reloads, the later one must win.
        let mut last_read = lock(&file.last_read);
        match UsersFile::load(&file.path, reserved_names(&self.anonymous)) {
            Ok(loaded) => {
                *last_read = loaded.fingerprint;
                let (users, before) = (loaded.declared.users.len(), self.current());
                self.replace(loaded.declared);
                Ok(ReloadedUsers { users, revoked: revoked_users(&before, &self.current()) })
            }
            Err((error, fingerprint)) => {
                *last_read = fingerprint;
                metrics::users_file_is_broken();
                Err(error)
            }
        }
    }

    fn replace(&self, mut declarations: Declarations) {
        metrics::users_declared(declarations.users.len(), self.file.is_some());
        if let Some(anonymous) = &self.anonymous {
            declarations.users.insert(Anonymous::name(), anonymous.user());
        }
        *write(&self.current) = Arc::new(declarations);
    }
}

/// Users whose sessions must end after a reload. A user who was disabled before has no sessions.
fn revoked_users(before: &Declarations, now: &Declarations) -> Vec<UserName> {
    let keeps_sessions = |name: &UserName, user: &User| {
        now.users.get(name).is_some_and(|now| now.enabled && now.credential == user.credential)
    };
    let revoked = before.users.iter().filter(|(name, user)| user.enabled && !keeps_sessions(name, user));
    revoked.map(|(name, _)| name.clone()).collect()
}

/// Names that a user in the users file must not have.
pub fn reserved_names(anonymous: &Option<Anonymous>) -> &'static [&'static str] {
    if anonymous.is_some() { &anonymous::NAMES } else { &[] }
}

fn demo_users() -> Declarations {
    let user = |text: &str| {
        let name: UserName = text.parse().expect("the names of the demo users are valid");
        let user = User { admin: text == "admin", ..User::new(&name, Credential::AnyPassword) };
        (name, user)
    };
    Declarations { users: DEMO_USERS.into_iter().map(user).collect(), groups: BTreeMap::new() }
}
