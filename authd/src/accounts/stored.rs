//! Users and groups that were created through the API, in Redis.
//!
//! Users and groups are two Redis hashes of names to JSON. Each change is one atomic script that also
//! increments the generation. Every authd instance sees the new generation at its next look-up.

use std::{collections::BTreeMap, str::FromStr};

use common::{
    keys::Keys,
    process::logging::chain,
    registry::{Confirmation, ConfirmedLink, LinkError, RedisLink, RegistryView},
};
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
    confirmed: ConfirmedLink,
    keys: Keys,
}

/// The reason why a user or a group in Redis cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A newer authd or another program wrote the record.
    #[error("this version of authd cannot read the {kind} {name:?} in Redis")]
    Unreadable {
        kind: &'static str,
        name: String,
        #[source]
        source: serde_json::Error,
    },
    /// A user names a group that does not exist.
    #[error("the group {:?} does not exist", .0.as_str())]
    NoGroup(GroupName),
}

impl StoredError {
    /// Returns true if Redis cannot be reached or refuses authd's password. The Redis link logs that itself.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Link(LinkError::Away | LinkError::Denied))
    }
}

/// Result of an attempt to change a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// Done, and confirmed by some replicas of Redis.
    Done(Confirmation),
    /// The record to create exists, or the record to change has changed since it was read.
    Differs,
    /// The record to change does not exist.
    Missing,
    /// A group that must exist does not. The number is its index in the list of required groups.
    NoGroup(usize),
}

/// A user or a group as read from Redis. A change succeeds only if the record is still the same.
#[derive(Debug)]
pub struct StoredRecord<T> {
    pub value: T,
    json: String,
}

/// A change of one record, as `stored.lua` takes it.
struct RecordChange<'a> {
    /// Redis key of the hash: the users or the groups.
    hash: String,
    name: &'a str,
    /// The JSON that must be there; empty if the record must not exist.
    old: &'a str,
    /// The new JSON; empty to remove the record.
    new: &'a str,
    /// The generation that must still be current.
    generation: Option<u64>,
    /// Groups that must exist in Redis.
    groups: &'a [GroupName],
}

impl StoredAccounts {
    /// Accounts in the Redis behind `registry`.
    pub fn new(registry: &RegistryView) -> Self {
        Self {
            link: registry.link().clone(),
            confirmed: registry.confirmed().clone(),
            keys: registry.keys().clone(),
        }
    }

    /// Returns true if Redis answered the last request.
    pub fn is_connected(&self) -> bool {
        self.link.is_connected()
    }

    /// A user, and the generation: the number of changes so far.
    ///
    /// # Errors
    /// Redis cannot be reached, or its record cannot be read.
    pub async fn user(&self, name: &UserName) -> Result<(Option<StoredRecord<User>>, u64), StoredError> {
        self.record(self.keys.users(), name.as_str(), parse_user).await
    }

    /// Some users in one request, in the order of `names`. `None` means that there is no such user.
    ///
    /// # Errors
    /// Redis cannot be reached. For each user: its record cannot be read.
    pub async fn some_users(
        &self,
        names: &[UserName],
    ) -> Result<Vec<Result<Option<User>, StoredError>>, StoredError> {
        let found = self.values(self.keys.users(), names.iter().map(UserName::as_str)).await?;
        let read = |(name, json): (&UserName, Option<String>)| {
            json.map(|json| parse_user(name.as_str(), &json)).transpose()
        };
        Ok(names.iter().zip(found).map(read).collect())
    }

    /// The groups among `names` that exist, in one request. A group that cannot be read is logged and
    /// skipped.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub async fn some_groups(
        &self,
        names: &[GroupName],
    ) -> Result<BTreeMap<GroupName, AccountPolicy>, StoredError> {
        let found = self.values(self.keys.groups(), names.iter().map(GroupName::as_str)).await?;
        let read = |(name, json): (&GroupName, Option<String>)| {
            Some((name.clone(), parse_or_skip(parse_group, name.as_str(), &json?)?))
        };
        Ok(names.iter().zip(found).filter_map(read).collect())
    }

    /// A group, and the generation.
    ///
    /// # Errors
    /// Redis cannot be reached, or its record cannot be read.
    pub async fn group(
        &self,
        name: &GroupName,
    ) -> Result<(Option<StoredRecord<AccountPolicy>>, u64), StoredError> {
        self.record(self.keys.groups(), name.as_str(), parse_group).await
    }

    /// Some groups, in the order of `names`.
    ///
    /// # Errors
    /// One of the groups does not exist or cannot be read, or Redis cannot be reached.
    pub async fn groups(&self, names: &[GroupName]) -> Result<Vec<AccountPolicy>, StoredError> {
        let found = self.values(self.keys.groups(), names.iter().map(GroupName::as_str)).await?;
        let read = |(name, json): (&GroupName, Option<String>)| match json {
            Some(json) => parse_group(name.as_str(), &json),
            None => Err(StoredError::NoGroup(name.clone())),
        };
        names.iter().zip(found).map(read).collect()
    }

    /// All users. A user who cannot be read is logged and skipped.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub async fn all_users(&self) -> Result<Vec<(UserName, User)>, StoredError> {
        self.all(self.keys.users(), parse_user).await
    }

    /// All groups. A group that cannot be read is logged and skipped.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub async fn all_groups(&self) -> Result<Vec<(GroupName, AccountPolicy)>, StoredError> {
        self.all(self.keys.groups(), parse_group).await
    }

    /// Creates a user, or replaces the `read` one. The `groups` must exist in Redis.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub async fn write_user(
        &self,
        name: &UserName,
        read: Option<&StoredRecord<User>>,
        user: &User,
        groups: &[GroupName],
    ) -> Result<WriteOutcome, StoredError> {
        let new = to_json("user", name.as_str(), user)?;
        let (hash, old) = (self.keys.users(), read.map_or("", |read| &read.json));
        let change = RecordChange { hash, name: name.as_str(), old, new: &new, generation: None, groups };
        self.write(change).await
    }

    /// Removes the user that was `read`.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub async fn remove_user(
        &self,
        name: &UserName,
        read: &StoredRecord<User>,
    ) -> Result<WriteOutcome, StoredError> {
        let (hash, old) = (self.keys.users(), read.json.as_str());
        self.write(RecordChange { hash, name: name.as_str(), old, new: "", generation: None, groups: &[] })
            .await
    }

    /// Creates a group, or replaces the `read` one.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub async fn write_group(
        &self,
        name: &GroupName,
        read: Option<&StoredRecord<AccountPolicy>>,
        group: &AccountPolicy,
    ) -> Result<WriteOutcome, StoredError> {
        let new = to_json("group", name.as_str(), group)?;
        let (hash, old) = (self.keys.groups(), read.map_or("", |read| &read.json));
        self.write(RecordChange { hash, name: name.as_str(), old, new: &new, generation: None, groups: &[] })
            .await
    }

    /// Removes the group that was `read`, if no user and no group has changed since `generation`.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub async fn remove_group(
        &self,
        name: &GroupName,
        read: &StoredRecord<AccountPolicy>,
        generation: u64,
    ) -> Result<WriteOutcome, StoredError> {
        let (hash, old, generation) = (self.keys.groups(), read.json.as_str(), Some(generation));
        self.write(RecordChange { hash, name: name.as_str(), old, new: "", generation, groups: &[] }).await
    }

    /// The override of a declared user, if there is one.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub async fn override_of(&self, name: &UserName) -> Result<Option<UserOverride>, StoredError> {
        let command = cmd("HGET").arg(self.keys.overrides()).arg(name.as_str()).to_owned();
        let json: Option<String> = self.link.query(&command).await?;
        Ok(json.map(|json| UserOverride::from_stored(name.as_str(), &json)))
    }

    /// The overrides of all declared users.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub async fn overrides(&self) -> Result<BTreeMap<UserName, UserOverride>, StoredError> {
        let all: Vec<(String, String)> = self.link.query(cmd("HGETALL").arg(self.keys.overrides())).await?;
        let read = |(name, json): &(String, String)| {
            Some((name.parse::<UserName>().ok()?, UserOverride::from_stored(name, json)))
        };
        Ok(all.iter().filter_map(read).collect())
    }

    /// Overrides a declared user. An existing override stays as it is.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub async fn set_override(&self, name: &UserName, new: UserOverride) -> Result<(), StoredError> {
        let json = to_json("override", name.as_str(), &new)?;
        let command = cmd("HSETNX").arg(self.keys.overrides()).arg(name.as_str()).arg(json).to_owned();
        Ok(self.link.query(&command).await?)
    }

    /// Removes the override of a user. Returns false if there was none.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub async fn remove_override(&self, name: &UserName) -> Result<bool, StoredError> {
        let command = cmd("HDEL").arg(self.keys.overrides()).arg(name.as_str()).to_owned();
        Ok(self.link.query(&command).await?)
    }

    /// Reads one record of a hash, and the generation.
    async fn record<T>(
        &self,
        hash: String,
        name: &str,
        parse: fn(&str, &str) -> Result<T, StoredError>,
    ) -> Result<(Option<StoredRecord<T>>, u64), StoredError> {
        let mut commands = pipe();
        commands.hget(hash, name).get(self.keys.users_generation());
        let (json, generation): (Option<String>, Option<u64>) = self.link.pipe(&commands).await?;
        let read = |json: String| Ok::<_, StoredError>(StoredRecord { value: parse(name, &json)?, json });
        Ok((json.map(read).transpose()?, generation.unwrap_or(0)))
    }

    /// Reads some values of a hash, in the order of `names`.
    async fn values(
        &self,
        hash: String,
        names: impl ExactSizeIterator<Item = &str>,
    ) -> Result<Vec<Option<String>>, LinkError> {
        if names.len() == 0 {
            return Ok(Vec::new()); // Redis rejects HMGET without fields.
        }
        let mut command = cmd("HMGET");
        command.arg(hash);
        for name in names {
            command.arg(name);
        }
        self.link.query(&command).await
    }

    /// Reads all records of a hash.
    async fn all<N: FromStr, T>(
        &self,
        hash: String,
        parse: fn(&str, &str) -> Result<T, StoredError>,
    ) -> Result<Vec<(N, T)>, StoredError> {
        let entries: Vec<(String, String)> = self.link.query(cmd("HGETALL").arg(hash)).await?;
        let read = |(text, json): &(String, String)| {
            let name: N = text.parse().ok()?;
            parse_or_skip(parse, text, json).map(|value| (name, value))
        };
        Ok(entries.iter().filter_map(read).collect())
    }

    async fn write(&self, change: RecordChange<'_>) -> Result<WriteOutcome, StoredError> {
        let RecordChange { hash, name, old, new, generation, groups } = change;
        let script = Script::new(include_str!("stored.lua"));
        let mut call = script.key(hash);
        call.key(self.keys.users_generation()).key(self.keys.groups());
        let generation = generation.map_or_else(String::new, |number| number.to_string());
        call.arg(name).arg(old).arg(new).arg(generation);
        for group in groups {
            call.arg(group.as_str());
        }
        let (outcome, confirmation) = self.confirmed.script::<i64>(&call).await?;
        Ok(match outcome {
            1 => WriteOutcome::Done(confirmation),
            0 => WriteOutcome::Differs,
            -1 => WriteOutcome::Missing,
            // -2 stands for the first group, -3 for the second, and so on.
            number => WriteOutcome::NoGroup(usize::try_from(-2 - number).unwrap_or(0)),
        })
    }
}

fn parse_user(name: &str, json: &str) -> Result<User, StoredError> {
    User::from_stored(name, json).map_err(|source| unreadable("user", name, source))
}

fn parse_group(name: &str, json: &str) -> Result<AccountPolicy, StoredError> {
    serde_json::from_str(json).map_err(|source| unreadable("group", name, source))
}

/// Parses a record of a list. A record that cannot be read is logged, and the result is `None`.
fn parse_or_skip<T>(parse: fn(&str, &str) -> Result<T, StoredError>, name: &str, json: &str) -> Option<T> {
    let log = |error: &StoredError| log::error!(error = chain(error); "skipped a record in Redis");
    parse(name, json).inspect_err(log).ok()
}

fn to_json(kind: &'static str, name: &str, value: &impl Serialize) -> Result<String, StoredError> {
    serde_json::to_string(value).map_err(|source| unreadable(kind, name, source))
}

fn unreadable(kind: &'static str, name: &str, source: serde_json::Error) -> StoredError {
    StoredError::Unreadable { kind, name: name.to_owned(), source }
}
