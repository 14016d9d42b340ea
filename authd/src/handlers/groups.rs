//! `/v1/groups`: lists all groups; creates, changes and removes groups in Redis.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{WRITE_ATTEMPTS, existing, invalid, require, stored, take_name};
use crate::{
    accounts::{
        FoundUser,
        name::{GroupName, UserName},
        policy::AccountPolicy,
        stored::{StoredAccounts, StoredRecord, WriteOutcome},
        user::{AccountSource, from_fields, with_changes},
    },
    error::ApiError,
    service::Service,
};

/// A group in the response to `GET /v1/groups`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupView {
    pub name: String,
    pub source: AccountSource,
    /// Names of the users in the group.
    pub members: Vec<String>,
    #[serde(flatten)]
    pub policy: AccountPolicy,
}

impl GroupView {
    fn new(
        name: &GroupName,
        source: AccountSource,
        policy: AccountPolicy,
        users: &BTreeMap<UserName, FoundUser>,
    ) -> Self {
        let is_member = |(_, found): &(&UserName, &FoundUser)| found.user.groups.contains(name);
        let members = users.iter().filter(is_member).map(|(name, _)| name.to_string()).collect();
        Self { name: name.to_string(), source, members, policy }
    }
}

/// All groups by name. Without Redis, only the declared ones.
///
/// # Errors
/// Redis cannot be reached.
pub async fn list(service: &Service) -> Result<Vec<GroupView>, ApiError> {
    let users = service.accounts.users().await?;
    let groups = service.accounts.groups().await?;
    let view = |(name, (source, policy))| GroupView::new(&name, source, policy, &users);
    Ok(groups.into_iter().map(view).collect())
}

/// One group.
///
/// # Errors
/// No group has this name, or Redis cannot be reached.
pub async fn show(service: &Service, name: &str) -> Result<GroupView, ApiError> {
    let name: GroupName = existing(name, "group")?;
    let declared = service.accounts.declared.current().groups.get(&name).cloned();
    let (source, policy) = match (declared, &service.accounts.stored) {
        (Some(policy), _) => (AccountSource::Declarative, policy),
        (None, Some(stored)) => (AccountSource::Registry, read(stored, &name).await?.0.value),
        (None, None) => return Err(ApiError::NotFound("group")),
    };
    Ok(GroupView::new(&name, source, policy, &service.accounts.users().await?))
}

/// Creates a group in Redis. The body contains the group's `name` and its properties.
///
/// # Errors
/// The body is invalid, the group exists already, or Redis cannot be reached.
pub async fn create(service: &Service, mut body: Map<String, Value>) -> Result<GroupView, ApiError> {
    let name: GroupName = take_name(&mut body)?;
    let stored = changeable(service, &name)?;
    let group = parse_group(body)?;
    match stored.write_group(&name, None, &group).await? {
        WriteOutcome::Done(confirmation) => {
            require(confirmation)?;
            let users = service.accounts.users().await?;
            Ok(GroupView::new(&name, AccountSource::Registry, group, &users))
        }
        _ => Err(ApiError::AlreadyExists("group")),
    }
}

/// Changes a group in Redis. The change applies to the next login of each member.
///
/// # Errors
/// The body is invalid, the group is not in Redis, or Redis cannot be reached.
pub async fn update(service: &Service, name: &str, body: Map<String, Value>) -> Result<GroupView, ApiError> {
    let name: GroupName = existing(name, "group")?;
    let stored = changeable(service, &name)?;
    for _ in 0..WRITE_ATTEMPTS {
        let (read, _) = read(stored, &name).await?;
        let group = parse_group(with_changes(&read.value, body.clone()).map_err(invalid)?)?;
        match stored.write_group(&name, Some(&read), &group).await? {
            WriteOutcome::Done(confirmation) => {
                // The new login conditions may forbid the members' addresses or the current time.
                service.revision.advance();
                require(confirmation)?;
                let users = service.accounts.users().await?;
                return Ok(GroupView::new(&name, AccountSource::Registry, group, &users));
            }
            WriteOutcome::Missing => return Err(ApiError::NotFound("group")),
            WriteOutcome::Differs | WriteOutcome::NoGroup(_) => {}
        }
    }
    Err(ApiError::Contended)
}

/// Removes a group without members from Redis.
///
/// # Errors
/// The group has members or is not in Redis, or Redis cannot be reached.
pub async fn remove(service: &Service, name: &str) -> Result<(), ApiError> {
    let name: GroupName = existing(name, "group")?;
    let stored = changeable(service, &name)?;
    for _ in 0..WRITE_ATTEMPTS {
        // The generation is read first: if a user joins the group after that, the removal fails and is
        // repeated.
        let (read, generation) = read(stored, &name).await?;
        // Includes users in Redis that are hidden by a declared user of the same name.
        let users = stored.all_users().await?;
        let mut members = users.iter().filter(|(_, user)| user.groups.contains(&name)).map(|(user, _)| user);
        if let Some(first) = members.next() {
            return Err(ApiError::InUse(members.count() + 1, first.to_string()));
        }
        match stored.remove_group(&name, &read, generation).await? {
            WriteOutcome::Done(confirmation) => return require(confirmation),
            WriteOutcome::Missing => return Err(ApiError::NotFound("group")),
            WriteOutcome::Differs | WriteOutcome::NoGroup(_) => {}
        }
    }
    Err(ApiError::Contended)
}

/// The groups in Redis, unless `name` is a declared group.
fn changeable<'a>(service: &'a Service, name: &GroupName) -> Result<&'a StoredAccounts, ApiError> {
    if service.accounts.declared.current().groups.contains_key(name) {
        return Err(ApiError::Declarative("group"));
    }
    stored(service)
}

async fn read(
    stored: &StoredAccounts,
    name: &GroupName,
) -> Result<(StoredRecord<AccountPolicy>, u64), ApiError> {
    let (read, generation) = stored.group(name).await?;
    Ok((read.ok_or(ApiError::NotFound("group"))?, generation))
}

/// Parses the properties of a group; `null` means not set.
fn parse_group(mut body: Map<String, Value>) -> Result<AccountPolicy, ApiError> {
    body.retain(|_, value| !value.is_null());
    from_fields(body).map_err(invalid)
}
