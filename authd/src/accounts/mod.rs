//! All users and groups: the declared ones first, then those that were created through the API.

pub mod anonymous;
pub mod cache;
pub mod declared;
mod decoys;
pub mod file;
pub mod name;
mod override_cache;
pub mod overrides;
pub mod password;
pub mod policy;
pub mod stored;
pub mod user;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use common::login_conditions::LoginConditions;

use self::{
    declared::DeclaredAccounts,
    file::Declarations,
    name::{GroupName, UserName},
    override_cache::OverrideCache,
    overrides::UserOverride,
    policy::{AccountPolicy, EffectivePolicy},
    stored::{StoredAccounts, StoredError},
    user::{AccountSource, User},
};

/// All users and groups, declared or in Redis.
pub struct Accounts {
    /// Users and groups from the users file, the demo or the settings.
    pub declared: DeclaredAccounts,
    /// Users and groups in Redis. `None`: no Redis is configured.
    pub stored: Option<StoredAccounts>,
    overrides: OverrideCache,
}

/// A user who was found.
pub struct FoundUser {
    /// The user's properties. `enabled` takes an override into account.
    pub user: User,
    /// The place where the user is kept.
    pub source: AccountSource,
    /// The override of a declared user, if there is one.
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

/// The result of looking up one of many users. The error is shared: one failed request to Redis fails
/// many users.
type LookedUp<T> = Result<Option<T>, Arc<StoredError>>;

impl Accounts {
    /// Combines the declared accounts with those in Redis.
    pub fn new(declared: DeclaredAccounts, stored: Option<StoredAccounts>) -> Self {
        Self { declared, stored, overrides: OverrideCache::default() }
    }

    /// Returns true if a login can be decided. Without Redis, only declared users can log in.
    pub fn can_decide_logins(&self) -> bool {
        let is_unreachable = self.stored.as_ref().is_some_and(|stored| !stored.is_connected());
        !is_unreachable || !self.declared.current().users.is_empty()
    }

    /// Finds a user by the canonical name. The number is the accounts' generation in Redis, if Redis was
    /// asked.
    ///
    /// # Errors
    /// The user is not declared, and Redis cannot be reached or its record of the user cannot be read.
    pub async fn find(&self, name: &UserName) -> Result<(Option<FoundUser>, Option<u64>), StoredError> {
        if let Some(user) = self.declared.current().users.get(name) {
            let overridden = self.overrides.fetch(name, self.stored.as_ref()).await;
            return Ok((Some(FoundUser::declared(user, overridden)), None));
        }
        let Some(stored) = &self.stored else { return Ok((None, None)) };
        let (record, generation) = stored.user(name).await?;
        Ok((record.map(|record| FoundUser::stored(record.value)), Some(generation)))
    }

    /// Asks Redis which declared users are overridden, so that it is known when Redis cannot be reached.
    pub async fn refresh_overrides(&self) {
        if let Some(stored) = &self.stored {
            self.overrides.refresh(stored).await;
        }
    }

    /// Finds many users by canonical names, each with its login conditions, with a few requests to Redis. The
    /// result has the order of `names`; `None` means that there is no such user.
    ///
    /// # Errors
    /// For each user: Redis cannot be reached, its record of the user cannot be read, or one of the
    /// user's groups does not exist.
    pub async fn find_many(&self, names: &[UserName]) -> Vec<LookedUp<(User, LoginConditions)>> {
        let declared = self.declared.current();
        let users = self.users_named(names, &declared).await;
        let enabled = users.iter().flatten().flatten().filter(|user| user.enabled);
        let groups: BTreeSet<GroupName> =
            enabled.flat_map(|user| self.undeclared_groups(&user.groups)).collect();
        let groups = match &self.stored {
            None => Ok(BTreeMap::new()),
            Some(stored) => stored.some_groups(&Vec::from_iter(groups)).await.map_err(Arc::new),
        };
        let with_conditions = |user: User| {
            // A disabled user's conditions do not matter, and one of the groups may not exist any more.
            if !user.enabled {
                return Ok((user, LoginConditions::default()));
            }
            let in_redis = |name: &GroupName| groups.as_ref().ok().and_then(|groups| groups.get(name));
            let group = |name: &GroupName| declared.groups.get(name).or_else(|| in_redis(name)).cloned();
            match (user.effective(group), &groups) {
                (Ok(effective), _) => Ok((user, effective.access)),
                (Err(_), Err(error)) => Err(Arc::clone(error)),
                (Err(name), Ok(_)) => Err(Arc::new(StoredError::NoGroup(name))),
            }
        };
        users.into_iter().map(|user| user?.map(with_conditions).transpose()).collect()
    }

    /// The users with these names, in the same order. Overrides are applied.
    async fn users_named(&self, names: &[UserName], declared: &Declarations) -> Vec<LookedUp<User>> {
        self.refresh_overrides().await;
        let is_undeclared = |name: &&UserName| !declared.users.contains_key(*name);
        let undeclared: Vec<UserName> = names.iter().filter(is_undeclared).cloned().collect();
        let mut stored = self.stored_users(&undeclared).await.into_iter();
        let find = |name: &UserName| match declared.users.get(name) {
            Some(user) => Ok(Some(FoundUser::declared(user, self.overrides.last_known(name)).user)),
            // `stored` has one element for each undeclared name.
            None => stored.next().unwrap_or(Ok(None)),
        };
        names.iter().map(find).collect()
    }

    /// The users with these names in Redis, in the same order.
    async fn stored_users(&self, names: &[UserName]) -> Vec<LookedUp<User>> {
        let Some(stored) = &self.stored else { return names.iter().map(|_| Ok(None)).collect() };
        match stored.some_users(names).await {
            Ok(users) => users.into_iter().map(|user| user.map_err(Arc::new)).collect(),
            Err(error) => {
                let error = Arc::new(error);
                names.iter().map(|_| Err(Arc::clone(&error))).collect()
            }
        }
    }

    /// The user's effective policy. Groups are read each time, so a changed group applies to the next login.
    ///
    /// # Errors
    /// One of the user's groups does not exist or cannot be read, or Redis cannot be reached.
    pub async fn effective(&self, user: &User) -> Result<EffectivePolicy, StoredError> {
        let declared = self.declared.current();
        let undeclared: Vec<GroupName> = self.undeclared_groups(&user.groups);
        let stored = match &self.stored {
            Some(stored) => stored.groups(&undeclared).await?,
            None => Vec::new(),
        };
        let group = |name: &GroupName| {
            let stored = || undeclared.iter().position(|other| other == name).and_then(|at| stored.get(at));
            declared.groups.get(name).or_else(stored).cloned()
        };
        user.effective(group).map_err(StoredError::NoGroup)
    }

    /// The groups that are not declared.
    pub fn undeclared_groups(&self, groups: &[GroupName]) -> Vec<GroupName> {
        let declared = self.declared.current();
        groups.iter().filter(|group| !declared.groups.contains_key(group)).cloned().collect()
    }

    /// All groups by name. A declared group hides a group in Redis with the same name.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub async fn groups(&self) -> Result<BTreeMap<GroupName, (AccountSource, AccountPolicy)>, StoredError> {
        let mut groups = BTreeMap::new();
        if let Some(stored) = &self.stored {
            let stored = stored.all_groups().await?.into_iter();
            groups.extend(stored.map(|(name, policy)| (name, (AccountSource::Registry, policy))));
        }
        for (name, policy) in &self.declared.current().groups {
            groups.insert(name.clone(), (AccountSource::Declarative, policy.clone()));
        }
        Ok(groups)
    }

    /// All users by name. A declared user hides a user in Redis with the same name, as in a login.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub async fn users(&self) -> Result<BTreeMap<UserName, FoundUser>, StoredError> {
        let (mut users, mut overrides) = (BTreeMap::new(), BTreeMap::new());
        if let Some(stored) = &self.stored {
            overrides = stored.overrides().await?;
            let stored = stored.all_users().await?.into_iter();
            users.extend(stored.map(|(name, user)| (name, FoundUser::stored(user))));
            users.retain(|name, _| !self.declared.is_anonymous(name));
        }
        for (name, user) in &self.declared.current().users {
            users.insert(name.clone(), FoundUser::declared(user, overrides.get(name).copied()));
        }
        Ok(users)
    }
}
