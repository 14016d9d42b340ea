//! `/v1/groups`: all groups are shown; those in Redis can be made, changed and removed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::users::{ATTEMPTS, invalid, take_name};
use crate::{
    Service,
    accounts::{
        FoundUser,
        name::{GroupName, UserName},
        policy::AccountPolicy,
        stored::{StoredAccounts, StoredRecord, WriteOutcome},
        user::{AccountSource, from_fields, with_changes},
    },
    error::ApiError,
};

/// A group as `GET /v1/groups` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupView {
    pub name: String,
    pub source: AccountSource,
    /// The names of its users.
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

/// All groups by name, the declared ones alone where Redis is not set up.
///
/// # Errors
/// Redis is away.
pub async fn list(service: &Service) -> Result<Vec<GroupView>, ApiError> {
    let users = service.accounts.users().await?;
    let groups = service.accounts.groups().await?;
    let view = |(name, (source, policy))| GroupView::new(&name, source, policy, &users);
    Ok(groups.into_iter().map(view).collect())
}

/// One group.
///
/// # Errors
/// There is none of that name, or Redis is away.
pub async fn show(service: &Service, name: &str) -> Result<GroupView, ApiError> {
    let name: GroupName = name.parse().map_err(|_| ApiError::NotFound("group"))?;
    let declared = service.accounts.declared().groups.get(&name).cloned();
    let (source, policy) = match (declared, &service.accounts.stored) {
        (Some(policy), _) => (AccountSource::Declarative, policy),
        (None, Some(stored)) => (AccountSource::Registry, read(stored, &name).await?.0.value),
        (None, None) => return Err(ApiError::NotFound("group")),
    };
    Ok(GroupView::new(&name, source, policy, &service.accounts.users().await?))
}

/// Makes a group in Redis. The body has the group's `name`, and what it sets.
///
/// # Errors
/// The body says no group, there is one of that name, or Redis is away.
pub async fn create(service: &Service, mut body: Map<String, Value>) -> Result<GroupView, ApiError> {
    let name: GroupName = take_name(&mut body)?;
    let stored = changeable(service, &name)?;
    let group = group(body)?;
    match stored.write_group(&name, None, &group).await? {
        WriteOutcome::Done => {
            log::info!(group:% = name; "group created");
            Ok(GroupView::new(&name, AccountSource::Registry, group, &service.accounts.users().await?))
        }
        _ => Err(ApiError::AlreadyExists("group")),
    }
}

/// Changes a group in Redis, for the next login of each of its users.
///
/// # Errors
/// The body says no change, the group is none in Redis, or Redis is away.
pub async fn update(service: &Service, name: &str, body: Map<String, Value>) -> Result<GroupView, ApiError> {
    let name: GroupName = name.parse().map_err(|_| ApiError::NotFound("group"))?;
    let stored = changeable(service, &name)?;
    for _ in 0..ATTEMPTS {
        let (read, _) = read(stored, &name).await?;
        let group = group(with_changes(&read.value, body.clone()).map_err(invalid)?)?;
        match stored.write_group(&name, Some(&read), &group).await? {
            WriteOutcome::Done => {
                log::info!(group:% = name; "group changed");
                // Its members may not come from where they are any more, or not at this time.
                service.revision.advance();
                return Ok(GroupView::new(
                    &name,
                    AccountSource::Registry,
                    group,
                    &service.accounts.users().await?,
                ));
            }
            WriteOutcome::Missing => return Err(ApiError::NotFound("group")),
            WriteOutcome::Differs | WriteOutcome::NoGroup(_) => {}
        }
    }
    Err(ApiError::Contended)
}

/// Removes a group from Redis that no user is in.
///
/// # Errors
/// Somebody is in it, the group is none in Redis, or Redis is away.
pub async fn remove(service: &Service, name: &str) -> Result<(), ApiError> {
    let name: GroupName = name.parse().map_err(|_| ApiError::NotFound("group"))?;
    let stored = changeable(service, &name)?;
    for _ in 0..ATTEMPTS {
        // The generation first: whoever joins the group after that puts off its removal.
        let (read, generation) = read(stored, &name).await?;
        // Also those that a declared user of the same name hides.
        let users = stored.all_users().await?;
        let mut members = users.iter().filter(|(_, user)| user.groups.contains(&name)).map(|(user, _)| user);
        if let Some(first) = members.next() {
            return Err(ApiError::InUse(members.count() + 1, first.to_string()));
        }
        match stored.remove_group(&name, &read, generation).await? {
            WriteOutcome::Done => {
                log::info!(group:% = name; "group removed");
                return Ok(());
            }
            WriteOutcome::Missing => return Err(ApiError::NotFound("group")),
            WriteOutcome::Differs | WriteOutcome::NoGroup(_) => {}
        }
    }
    Err(ApiError::Contended)
}

/// The groups in Redis, if `name` may be changed there.
fn changeable<'a>(service: &'a Service, name: &GroupName) -> Result<&'a StoredAccounts, ApiError> {
    if service.accounts.declared().groups.contains_key(name) {
        return Err(ApiError::Declarative("group"));
    }
    service.accounts.stored.as_ref().ok_or(ApiError::NoRedis)
}

async fn read(
    stored: &StoredAccounts,
    name: &GroupName,
) -> Result<(StoredRecord<AccountPolicy>, u64), ApiError> {
    let (read, generation) = stored.group(name).await?;
    Ok((read.ok_or(ApiError::NotFound("group"))?, generation))
}

/// A group as a body says it; `null` is what is not set.
fn group(mut body: Map<String, Value>) -> Result<AccountPolicy, ApiError> {
    body.retain(|_, value| !value.is_null());
    from_fields(body).map_err(invalid)
}
