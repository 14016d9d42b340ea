//! The users and groups made through the API, in Redis: two hashes of names to JSON. Each change is
//! one atomic step that also counts the generation up, which every authd instance sees at its next
//! look-up.

use common::{
    keys::Keys,
    process::logging::chain,
    registry::{LinkError, RedisLink},
};
use std::collections::BTreeMap;

use redis::{Script, cmd, pipe};
use serde::Serialize;

use super::{
    name::{GroupName, UserName},
    overrides::UserOverride,
    policy::AccountPolicy,
    user::User,
};

/// The users and groups in Redis. Cheap to clone.
#[derive(Clone)]
pub struct StoredAccounts {
    link: RedisLink,
    keys: Keys,
}

/// Why a user or a group in Redis cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Somebody or something else wrote it.
    #[error("the {what} {name:?} in Redis is not one that this version can read")]
    Unreadable {
        what: &'static str,
        name: String,
        #[source]
        source: serde_json::Error,
    },
    /// A user names a group that does not exist.
    #[error("the group {:?} does not exist", .0.as_str())]
    NoGroup(GroupName),
}

impl StoredError {
    /// Whether Redis cannot be asked, which its link has told the log.
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::Link(LinkError::Away | LinkError::Denied))
    }
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    Done,
    /// What is to be made exists, or what is to be changed is not as it was when it was read.
    Differs,
    /// There is none.
    Missing,
    /// The group with this number of those that must exist does not.
    NoGroup(usize),
}

/// A user or a group as read, to be changed only if nobody else does so meanwhile.
#[derive(Debug)]
pub struct StoredRecord<T> {
    pub value: T,
    json: String,
}

impl StoredAccounts {
    pub fn new(link: RedisLink, keys: Keys) -> Self {
        Self { link, keys }
    }

    /// Whether Redis answered when it was last asked.
    pub fn is_connected(&self) -> bool {
        self.link.is_connected()
    }

    /// A user, and the generation: how many changes there have been.
    ///
    /// # Errors
    /// Redis is away, or what it holds is no user.
    pub async fn user(&self, name: &UserName) -> Result<(Option<StoredRecord<User>>, u64), StoredError> {
        let (json, generation) = self.find(self.keys.users(), name.as_str()).await?;
        let read =
            |json: String| Ok::<_, StoredError>(StoredRecord { value: user(name.as_str(), &json)?, json });
        Ok((json.map(read).transpose()?, generation))
    }

    /// Some users in one request, in this order. `None`: there is no such user.
    ///
    /// # Errors
    /// Redis is away. Of each user: what it holds is no user.
    pub async fn some_users(
        &self,
        names: &[UserName],
    ) -> Result<Vec<Result<Option<User>, StoredError>>, StoredError> {
        let found = self.some(self.keys.users(), names.iter().map(UserName::as_str)).await?;
        let read = |(name, json): (&UserName, Option<String>)| {
            json.map(|json| user(name.as_str(), &json)).transpose()
        };
        Ok(names.iter().zip(found).map(read).collect())
    }

    /// Those of the groups that exist, in one request. One that cannot be read is left out, and the log says so.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn some_groups(
        &self,
        names: &[GroupName],
    ) -> Result<BTreeMap<GroupName, AccountPolicy>, StoredError> {
        let found = self.some(self.keys.groups(), names.iter().map(GroupName::as_str)).await?;
        let read = |(name, json): (&GroupName, Option<String>)| {
            let skipped = |error: &StoredError| log::error!(error = chain(error); "skipped");
            Some((name.clone(), group(name.as_str(), &json?).inspect_err(skipped).ok()?))
        };
        Ok(names.iter().zip(found).filter_map(read).collect())
    }

    async fn some(
        &self,
        hash: String,
        names: impl ExactSizeIterator<Item = &str>,
    ) -> Result<Vec<Option<String>>, LinkError> {
        if names.len() == 0 {
            return Ok(Vec::new()); // Redis refuses a request for nothing.
        }
        let mut command = cmd("HMGET");
        command.arg(hash);
        for name in names {
            command.arg(name);
        }
        self.link.query(&command).await
    }

    /// A group, and the generation.
    ///
    /// # Errors
    /// Redis is away, or what it holds is no group.
    pub async fn group(
        &self,
        name: &GroupName,
    ) -> Result<(Option<StoredRecord<AccountPolicy>>, u64), StoredError> {
        let (json, generation) = self.find(self.keys.groups(), name.as_str()).await?;
        let read =
            |json: String| Ok::<_, StoredError>(StoredRecord { value: group(name.as_str(), &json)?, json });
        Ok((json.map(read).transpose()?, generation))
    }

    /// Some groups, in this order.
    ///
    /// # Errors
    /// One of them does not exist or cannot be read, or Redis is away.
    pub async fn groups(&self, names: &[GroupName]) -> Result<Vec<AccountPolicy>, StoredError> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let mut command = cmd("HMGET");
        command.arg(self.keys.groups());
        for name in names {
            command.arg(name.as_str());
        }
        let found: Vec<Option<String>> = self.link.query(&command).await?;
        let mut found = found.into_iter();
        let read = |name: &GroupName| match found.next().flatten() {
            Some(json) => group(name.as_str(), &json),
            None => Err(StoredError::NoGroup(name.clone())),
        };
        names.iter().map(read).collect()
    }

    /// All users. One that cannot be read is left out, and the log says so.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn all_users(&self) -> Result<Vec<(UserName, User)>, StoredError> {
        self.all(self.keys.users(), user).await
    }

    /// All groups. One that cannot be read is left out, and the log says so.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn all_groups(&self) -> Result<Vec<(GroupName, AccountPolicy)>, StoredError> {
        self.all(self.keys.groups(), group).await
    }

    /// Makes a user, or puts it in the place of what was read. The `groups` must exist in Redis.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn write_user(
        &self,
        name: &UserName,
        read: Option<&StoredRecord<User>>,
        user: &User,
        groups: &[GroupName],
    ) -> Result<WriteOutcome, StoredError> {
        let new = json("user", name.as_str(), user)?;
        let old = read.map_or("", |read| &read.json);
        self.write(self.keys.users(), name.as_str(), old, &new, None, groups).await
    }

    /// Removes the user that was read.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn remove_user(
        &self,
        name: &UserName,
        read: &StoredRecord<User>,
    ) -> Result<WriteOutcome, StoredError> {
        self.write(self.keys.users(), name.as_str(), &read.json, "", None, &[]).await
    }

    /// Makes a group, or puts it in the place of what was read.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn write_group(
        &self,
        name: &GroupName,
        read: Option<&StoredRecord<AccountPolicy>>,
        group: &AccountPolicy,
    ) -> Result<WriteOutcome, StoredError> {
        let new = json("group", name.as_str(), group)?;
        let old = read.map_or("", |read| &read.json);
        self.write(self.keys.groups(), name.as_str(), old, &new, None, &[]).await
    }

    /// Removes the group that was read, if no user and no group has changed since `generation`.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn remove_group(
        &self,
        name: &GroupName,
        read: &StoredRecord<AccountPolicy>,
        generation: u64,
    ) -> Result<WriteOutcome, StoredError> {
        self.write(self.keys.groups(), name.as_str(), &read.json, "", Some(generation), &[]).await
    }

    /// What overrides a declared user.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn override_of(&self, name: &UserName) -> Result<Option<UserOverride>, StoredError> {
        let command = cmd("HGET").arg(self.keys.overrides()).arg(name.as_str()).to_owned();
        let json: Option<String> = self.link.query(&command).await?;
        Ok(json.map(|json| UserOverride::from_stored(name.as_str(), &json)))
    }

    /// What overrides declared users.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn overrides(&self) -> Result<BTreeMap<UserName, UserOverride>, StoredError> {
        let all: Vec<(String, String)> = self.link.query(cmd("HGETALL").arg(self.keys.overrides())).await?;
        let read = |(name, json): &(String, String)| {
            Some((name.parse::<UserName>().ok()?, UserOverride::from_stored(name, json)))
        };
        Ok(all.iter().filter_map(read).collect())
    }

    /// OverrideCache a declared user, unless it is overridden already.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn set_override(&self, name: &UserName, new: UserOverride) -> Result<(), StoredError> {
        let json = json("override", name.as_str(), &new)?;
        let command = cmd("HSETNX").arg(self.keys.overrides()).arg(name.as_str()).arg(json).to_owned();
        Ok(self.link.query(&command).await?)
    }

    /// Takes the override of a user back; `false` if there was none.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn remove_override(&self, name: &UserName) -> Result<bool, StoredError> {
        let command = cmd("HDEL").arg(self.keys.overrides()).arg(name.as_str()).to_owned();
        Ok(self.link.query(&command).await?)
    }

    async fn find(&self, hash: String, name: &str) -> Result<(Option<String>, u64), LinkError> {
        let mut commands = pipe();
        commands.hget(hash, name).get(self.keys.users_generation());
        let (json, generation): (Option<String>, Option<u64>) = self.link.pipe(&commands).await?;
        Ok((json, generation.unwrap_or(0)))
    }

    async fn all<N: std::str::FromStr, T>(
        &self,
        hash: String,
        parse: fn(&str, &str) -> Result<T, StoredError>,
    ) -> Result<Vec<(N, T)>, StoredError> {
        let entries: Vec<(String, String)> = self.link.query(cmd("HGETALL").arg(hash)).await?;
        let read = |(text, json): &(String, String)| {
            let name: N = text.parse().ok()?;
            let skipped = |error: &StoredError| log::error!(error = chain(error); "skipped");
            parse(text, json).inspect_err(skipped).ok().map(|value| (name, value))
        };
        Ok(entries.iter().filter_map(read).collect())
    }

    async fn write(
        &self,
        hash: String,
        name: &str,
        old: &str,
        new: &str,
        generation: Option<u64>,
        groups: &[GroupName],
    ) -> Result<WriteOutcome, StoredError> {
        let script = Script::new(include_str!("stored.lua"));
        let mut call = script.key(hash);
        call.key(self.keys.users_generation()).key(self.keys.groups());
        call.arg(name)
            .arg(old)
            .arg(new)
            .arg(generation.map_or_else(String::new, |number| number.to_string()));
        for group in groups {
            call.arg(group.as_str());
        }
        Ok(match self.link.script::<i64>(&call).await? {
            1 => WriteOutcome::Done,
            0 => WriteOutcome::Differs,
            -1 => WriteOutcome::Missing,
            // As many as there are groups.
            number => WriteOutcome::NoGroup(usize::try_from(-2 - number).unwrap_or(0)),
        })
    }
}

fn user(name: &str, json: &str) -> Result<User, StoredError> {
    User::from_stored(name, json).map_err(|source| unreadable("user", name, source))
}

fn group(name: &str, json: &str) -> Result<AccountPolicy, StoredError> {
    serde_json::from_str(json).map_err(|source| unreadable("group", name, source))
}

fn json(what: &'static str, name: &str, value: &impl Serialize) -> Result<String, StoredError> {
    serde_json::to_string(value).map_err(|source| unreadable(what, name, source))
}

fn unreadable(what: &'static str, name: &str, source: serde_json::Error) -> StoredError {
    StoredError::Unreadable { what, name: name.to_owned(), source }
}
