//! The users and groups that there are: the declared ones first, then those made through the API.

pub mod anonymous;
pub mod cache;
mod decoys;
pub mod file;
pub mod name;
pub mod overrides;
pub mod password;
pub mod policy;
pub mod stored;
pub mod user;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, RwLock},
};

use common::{
    login_conditions::LoginConditions,
    policy::TreePath,
    sync::{lock, read, write},
};

use self::{
    anonymous::Anonymous,
    file::{Fingerprint, UsersFile, UsersFileError},
    name::{GroupName, UserName},
    overrides::{OverrideCache, UserOverride},
    policy::{AccountPolicy, EffectivePolicy},
    stored::{StoredAccounts, StoredError, StoredRecord},
    user::{AccountSource, Credential, User},
};
use crate::{config::DeclaredUsers, metrics};

/// Names of the demo users, as in the reference system. `admin` is an administrator.
pub const DEMO_USERS: [&str; 3] = ["demo", "admin", "test"];

/// What is declared: users, and the groups that they may name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declarations {
    pub users: BTreeMap<UserName, User>,
    pub groups: BTreeMap<GroupName, AccountPolicy>,
}

/// All users and groups, wherever they are kept.
pub struct Accounts {
    declared: RwLock<Arc<Declarations>>,
    anonymous: Option<Anonymous>,
    file: Option<WatchedFile>,
    /// `None`: there is no Redis.
    pub stored: Option<StoredAccounts>,
    overrides: OverrideCache,
}

struct WatchedFile {
    path: PathBuf,
    /// What was read last, well or not.
    seen: Mutex<Fingerprint>,
}

/// A user that was found.
pub struct FoundUser {
    /// A declared user as its override makes it.
    pub user: User,
    pub source: AccountSource,
    pub overridden: Option<UserOverride>,
}

impl FoundUser {
    fn declared(user: &User, overridden: Option<UserOverride>) -> Self {
        let enabled = user.enabled && overridden.is_none();
        Self { user: User { enabled, ..user.clone() }, source: AccountSource::Declarative, overridden }
    }

    fn stored(user: User) -> Self {
        Self { user, source: AccountSource::Registry, overridden: None }
    }
}

/// What reading the users file again came to.
pub struct ReloadedUsers {
    /// How many users it declares.
    pub users: usize,
    /// Users that were declared before and are not any more, or are disabled, or have another password or other
    /// certificates.
    pub ended: Vec<UserName>,
}

impl Accounts {
    /// Reads the declared users. Blocks.
    ///
    /// # Errors
    /// The users file cannot be used.
    pub fn new(
        declared: &DeclaredUsers,
        anonymous: Option<Anonymous>,
        stored: Option<StoredAccounts>,
    ) -> Result<Self, UsersFileError> {
        let (declared, file) = match declared {
            DeclaredUsers::None => (Declarations::default(), None),
            DeclaredUsers::Demo => (demo_users(), None),
            DeclaredUsers::File(path) => {
                let loaded = UsersFile::load(path, reserved(&anonymous)).map_err(|(error, _)| error)?;
                let file = WatchedFile { path: path.clone(), seen: Mutex::new(loaded.fingerprint) };
                (loaded.declared, Some(file))
            }
        };
        let accounts = Self {
            declared: RwLock::new(Arc::default()),
            anonymous,
            file,
            stored,
            overrides: OverrideCache::default(),
        };
        accounts.declare(declared);
        Ok(accounts)
    }

    /// What is declared at this time.
    pub fn declared(&self) -> Arc<Declarations> {
        Arc::clone(&read(&self.declared))
    }

    /// Whether the user is the anonymous one.
    pub fn is_anonymous(&self, name: &UserName) -> bool {
        self.anonymous.is_some() && anonymous::NAMES.contains(&name.as_str())
    }

    /// The directory of the user's home that the user's quota is of, if it is not of the whole home.
    pub fn quota_directory(&self, name: &UserName) -> Option<TreePath> {
        self.anonymous.as_ref().filter(|_| self.is_anonymous(name))?.quota_directory()
    }

    /// The name under which a user is kept: the anonymous one has two.
    pub fn canonical(&self, name: UserName) -> UserName {
        if self.is_anonymous(&name) { Anonymous::name() } else { name }
    }

    /// Where the declared users stand, if in a file.
    pub fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(|file| &*file.path)
    }

    /// What the users file and the hash files that it names are now, if that is not what was last
    /// read. Blocks.
    pub fn changed(&self) -> Option<Fingerprint> {
        let file = self.file.as_ref()?;
        let seen = lock(&file.seen).clone();
        Some(seen.now()).filter(|now| *now != seen)
    }

    /// Reads the users file again. Blocks.
    ///
    /// # Errors
    /// The file cannot be used: the users stay as they were.
    pub fn reload(&self) -> Result<ReloadedUsers, UsersFileError> {
        let Some(file) = &self.file else {
            return Ok(ReloadedUsers { users: self.declared().users.len(), ended: Vec::new() });
        };
        // Held to the end, so that of two reloads at once the later one stands.
        let mut seen = lock(&file.seen);
        let (result, fingerprint) = match UsersFile::load(&file.path, reserved(&self.anonymous)) {
            Ok(loaded) => (Ok(loaded.declared), loaded.fingerprint),
            Err((error, fingerprint)) => (Err(error), fingerprint),
        };
        *seen = fingerprint;
        match result {
            Ok(declared) => {
                let (users, before) = (declared.users.len(), self.declared());
                self.declare(declared);
                let now = self.declared();
                let has_ended = |(name, user): &(&UserName, &User)| {
                    // Who was disabled before has no sessions.
                    user.enabled
                        && now
                            .users
                            .get(name)
                            .is_none_or(|now| !now.enabled || now.credential != user.credential)
                };
                let ended = before.users.iter().filter(has_ended).map(|(name, _)| name.clone()).collect();
                Ok(ReloadedUsers { users, ended })
            }
            Err(error) => {
                metrics::users_file_is_broken();
                Err(error)
            }
        }
    }

    /// A user by the canonical name, and the generation of Redis where that had to be asked.
    ///
    /// # Errors
    /// The user is not declared, and Redis is away or holds something that is no user.
    pub async fn find(&self, name: &UserName) -> Result<(Option<FoundUser>, Option<u64>), StoredError> {
        let declared = self.declared();
        if let Some(user) = declared.users.get(name) {
            let overridden = self.overrides.of(name, self.stored.as_ref()).await;
            return Ok((Some(FoundUser::declared(user, overridden)), None));
        }
        let Some(stored) = &self.stored else { return Ok((None, None)) };
        let (read, generation) = stored.user(name).await?;
        let found = |read: StoredRecord<User>| FoundUser::stored(read.value);
        Ok((read.map(found), Some(generation)))
    }

    /// Learns which declared users are overridden, to know it when Redis goes away.
    pub async fn learn_overrides(&self) {
        if let Some(stored) = &self.stored {
            self.overrides.learn(stored).await;
        }
    }

    /// Many users and their conditions of access at once, by canonical names, with a few requests to Redis. In
    /// the order of the names; `None`: there is no such user.
    ///
    /// # Errors
    /// Of each user: Redis is away or holds something that is no user, or one of the user's groups does not exist.
    pub async fn find_many(
        &self,
        names: &[UserName],
    ) -> Vec<Result<Option<(User, LoginConditions)>, Arc<StoredError>>> {
        let declared = self.declared();
        self.learn_overrides().await;
        let others: Vec<UserName> =
            names.iter().filter(|name| !declared.users.contains_key(name)).cloned().collect();
        let mut stored = match &self.stored {
            None => others.iter().map(|_| Ok(None)).collect(),
            Some(stored) => match stored.some_users(&others).await {
                Ok(users) => users.into_iter().map(|user| user.map_err(Arc::new)).collect(),
                Err(error) => {
                    let error = Arc::new(error);
                    others.iter().map(|_| Err(Arc::clone(&error))).collect::<Vec<_>>()
                }
            },
        }
        .into_iter();
        let find = |name: &UserName| match declared.users.get(name) {
            Some(user) => Ok(Some(FoundUser::declared(user, self.overrides.learned(name)).user)),
            // There is one for each name that is not declared.
            None => stored.next().unwrap_or(Ok(None)),
        };
        let users: Vec<Result<Option<User>, Arc<StoredError>>> = names.iter().map(find).collect();
        let enabled = users.iter().flatten().flatten().filter(|user| user.enabled);
        let groups: BTreeSet<GroupName> = enabled.flat_map(|user| self.not_declared(&user.groups)).collect();
        let groups = match &self.stored {
            None => Ok(BTreeMap::new()),
            Some(stored) => {
                stored.some_groups(&groups.into_iter().collect::<Vec<_>>()).await.map_err(Arc::new)
            }
        };
        let join = |user: User| {
            // The conditions of a disabled user do not matter, and may name a group that is gone.
            if !user.enabled {
                return Ok((user, LoginConditions::default()));
            }
            let of_redis = |name: &GroupName| groups.as_ref().ok().and_then(|groups| groups.get(name));
            let group = |name: &GroupName| declared.groups.get(name).or_else(|| of_redis(name)).cloned();
            match (user.effective(group), &groups) {
                (Ok(effective), _) => Ok((user, effective.access)),
                (Err(_), Err(error)) => Err(Arc::clone(error)),
                (Err(name), Ok(_)) => Err(Arc::new(StoredError::NoGroup(name))),
            }
        };
        users.into_iter().map(|user| user?.map(join).transpose()).collect()
    }

    /// What holds for a user now. Groups are read each time, so that a change of one holds for the
    /// next login.
    ///
    /// # Errors
    /// One of the user's groups does not exist or cannot be read, or Redis is away.
    pub async fn effective(&self, user: &User) -> Result<EffectivePolicy, StoredError> {
        let declared = self.declared();
        let others: Vec<GroupName> = self.not_declared(&user.groups);
        let stored = match &self.stored {
            Some(stored) => stored.groups(&others).await?,
            None => Vec::new(),
        };
        let group = |name: &GroupName| {
            let stored = || others.iter().position(|other| other == name).and_then(|at| stored.get(at));
            declared.groups.get(name).or_else(stored).cloned()
        };
        user.effective(group).map_err(StoredError::NoGroup)
    }

    /// Those of the groups that are not declared.
    pub fn not_declared(&self, groups: &[GroupName]) -> Vec<GroupName> {
        let declared = self.declared();
        groups.iter().filter(|group| !declared.groups.contains_key(group)).cloned().collect()
    }

    /// All groups by name. One in Redis with a declared group's name is not shown.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn groups(&self) -> Result<BTreeMap<GroupName, (AccountSource, AccountPolicy)>, StoredError> {
        let mut groups = BTreeMap::new();
        if let Some(stored) = &self.stored {
            let of = |(name, policy)| (name, (AccountSource::Registry, policy));
            groups.extend(stored.all_groups().await?.into_iter().map(of));
        }
        let declared = self.declared();
        let of = |(name, policy): (&GroupName, &AccountPolicy)| {
            (name.clone(), (AccountSource::Declarative, policy.clone()))
        };
        groups.extend(declared.groups.iter().map(of));
        Ok(groups)
    }

    /// All users by name. One in Redis with a declared user's name is not shown, since that one is who
    /// logs in.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn users(&self) -> Result<BTreeMap<UserName, FoundUser>, StoredError> {
        let (mut users, mut overrides) = (BTreeMap::new(), BTreeMap::new());
        if let Some(stored) = &self.stored {
            overrides = stored.overrides().await?;
            let of = |(name, user)| (name, FoundUser::stored(user));
            users.extend(stored.all_users().await?.into_iter().map(of));
            users.retain(|name, _| !self.is_anonymous(name));
        }
        let declared = self.declared();
        let of = |(name, user): (&UserName, &User)| {
            (name.clone(), FoundUser::declared(user, overrides.get(name).copied()))
        };
        users.extend(declared.users.iter().map(of));
        Ok(users)
    }

    fn declare(&self, mut declared: Declarations) {
        metrics::users_declared(declared.users.len(), self.file.is_some());
        if let Some(anonymous) = &self.anonymous {
            declared.users.insert(Anonymous::name(), anonymous.user());
        }
        *write(&self.declared) = Arc::new(declared);
    }
}

/// The names that no user in the users file can have.
pub fn reserved(anonymous: &Option<Anonymous>) -> &'static [&'static str] {
    if anonymous.is_some() { &anonymous::NAMES } else { &[] }
}

fn demo_users() -> Declarations {
    let user = |text: &str| {
        // The three literals are names.
        let name: UserName = text.parse().expect("a user's name");
        let user = User { admin: text == "admin", ..User::new(&name, Credential::AnyPassword) };
        (name, user)
    };
    Declarations { users: DEMO_USERS.into_iter().map(user).collect(), groups: BTreeMap::new() }
}
