//! `/v1/backup` and `/v1/restore`: users, groups, overrides and blocks in one document.

use std::{collections::BTreeSet, time::SystemTime};

use common::{
    admin_api::{BACKUP_VERSION, BackupDocument, BlockSubject, BlockView, RestoreView},
    clock::{parse_rfc3339, rfc3339, unix_seconds, unix_seconds_at},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::registry;
use crate::{
    accounts::{
        name::{GroupName, UserName},
        overrides::UserOverride,
        policy::AccountPolicy,
        user::User,
    },
    backup::{NAMED_CONFLICTS, RestoreOutcome, StoredFields, StoredState},
    error::ApiError,
    login_blocks::{BlockKey, LoginBlock, MAX_BLOCKS},
    service::Service,
};

/// The query of `POST /v1/restore`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreQuery {
    /// True: objects that are not in the document are removed, and others become as they are in it.
    #[serde(default)]
    replace: bool,
}

/// Everything that administrators made through the API, at one moment.
///
/// # Errors
/// Redis cannot be reached, or a record is no JSON.
pub async fn show(service: &Service) -> Result<BackupDocument, ApiError> {
    let registry = registry(service)?;
    let StoredState { users, groups, overrides, blocks } =
        StoredState::read(registry.link(), registry.keys()).await?;
    let values = |fields: StoredFields| {
        let parse = |(name, json): (String, String)| Some((name, serde_json::from_str(&json).ok()?));
        fields.into_iter().map(parse).collect::<Option<_>>().ok_or(ApiError::UnreadableRecord)
    };
    let now = unix_seconds();
    let block = |(field, json): (String, String)| {
        let (key, block) = (BlockKey::from_field(&field)?, serde_json::from_str::<LoginBlock>(&json).ok()?);
        block.until.is_none_or(|until| until > now).then(|| super::blocks::view(&key, &block))
    };
    Ok(BackupDocument {
        version: BACKUP_VERSION,
        time: rfc3339(now),
        authd: env!("CARGO_PKG_VERSION").to_owned(),
        users: values(users)?,
        groups: values(groups)?,
        overrides: values(overrides)?,
        blocks: blocks.into_iter().filter_map(block).collect(),
    })
}

/// Puts the objects of a document in place, all of them or none. Sessions that the changed accounts do not
/// allow end when their nodes ask.
///
/// # Errors
/// The document is invalid; without `replace`, a user or a group exists with other properties; Redis cannot
/// be reached.
pub async fn restore(
    service: &Service,
    query: RestoreQuery,
    document: Value,
) -> Result<RestoreView, ApiError> {
    let registry = registry(service)?;
    let document = checked(document)?;
    let mut new = to_state(&document)?;
    let before = StoredState::read(registry.link(), registry.keys()).await?;
    keep_equal::<User>(&mut new.users, &before.users, |name, json| User::from_stored(name, json).ok());
    keep_equal::<AccountPolicy>(&mut new.groups, &before.groups, |_, json| serde_json::from_str(json).ok());
    let view = RestoreView {
        users: new.users.len(),
        groups: new.groups.len(),
        overrides: new.overrides.len(),
        blocks: new.blocks.len(),
        removed: 0,
        warnings: warnings(service, &new, &before, query.replace),
    };
    let outcome = new.apply(registry.link(), registry.keys(), rand::random(), query.replace).await?;
    let removed = match outcome {
        RestoreOutcome::Done { removed } => removed,
        RestoreOutcome::Conflicts(mut names) => {
            let number = names.len();
            names.truncate(NAMED_CONFLICTS);
            return Err(ApiError::RestoreConflicts { number, names: names.join(", ") });
        }
        RestoreOutcome::Incomplete => return Err(ApiError::RestoreIncomplete),
    };
    after(service, &new, &before, query.replace).await;
    Ok(RestoreView { removed, ..view })
}

/// Ends what the accounts no longer allow: sessions, when their nodes ask, and the addresses from which users
/// with other credentials are known.
async fn after(service: &Service, new: &StoredState, before: &StoredState, replace: bool) {
    service.revision.advance();
    service.accounts.refresh_overrides().await;
    service.learn_hash_costs().await;
    let credential = |name: &str, json: &str| User::from_stored(name, json).ok().map(|user| user.credential);
    for (name, old) in &before.users {
        let is_other = match new.users.get(name) {
            Some(json) => json != old && credential(name, json) != credential(name, old),
            None => replace,
        };
        let Ok(user) = name.parse::<UserName>() else { continue };
        if is_other && service.throttle.forget_addresses(&user).await.is_err() {
            service.revision.forget_addresses_later(&user);
        }
    }
}

/// Checks the version before the rest, which another version may have changed.
fn checked(document: Value) -> Result<BackupDocument, ApiError> {
    let version = document.get("version").and_then(Value::as_u64);
    match version {
        Some(version) if version == u64::from(BACKUP_VERSION) => {}
        Some(version) => {
            return Err(invalid("version", format!("this authd cannot restore version {version}")));
        }
        None => return Err(invalid("version", "the document is no backup of authd")),
    }
    serde_json::from_value(document).map_err(|error| ApiError::InvalidRequest(error.to_string()))
}

/// The document in the form that Redis holds.
fn to_state(document: &BackupDocument) -> Result<StoredState, ApiError> {
    let mut state = StoredState::default();
    for (name, value) in &document.users {
        let place = || format!("users: {name:?}");
        let known: UserName = name.parse().map_err(|error| invalid(&place(), error))?;
        let user = User::from_stored(known.as_str(), &value.to_string()).map_err(|e| invalid(&place(), e))?;
        state.users.insert(name.clone(), json(&user));
    }
    for (name, value) in &document.groups {
        let place = || format!("groups: {name:?}");
        let _: GroupName = name.parse().map_err(|error| invalid(&place(), error))?;
        let group = AccountPolicy::deserialize(value).map_err(|error| invalid(&place(), error))?;
        state.groups.insert(name.clone(), json(&group));
    }
    for (name, value) in &document.overrides {
        let place = || format!("overrides: {name:?}");
        let _: UserName = name.parse().map_err(|error| invalid(&place(), error))?;
        let found = UserOverride::deserialize(value).map_err(|error| invalid(&place(), error))?;
        state.overrides.insert(name.clone(), json(&UserOverride::disabled(found.since)));
    }
    let now = unix_seconds();
    for view in &document.blocks {
        let (key, block) = block(view)?;
        if block.until.is_none_or(|until| until > now) {
            state.blocks.insert(key.field(), json(&block));
        }
    }
    if state.blocks.len() > MAX_BLOCKS {
        return Err(invalid("blocks", format!("more than {MAX_BLOCKS}")));
    }
    Ok(state)
}

fn block(view: &BlockView) -> Result<(BlockKey, LoginBlock), ApiError> {
    let place = || format!("blocks: {:?}", view.name);
    let key = match view.kind {
        BlockSubject::User => {
            let name: UserName = view.name.parse().map_err(|error| invalid(&place(), error))?;
            BlockKey::user(name.as_str())
        }
        BlockSubject::Address => BlockKey::network(&view.name)
            .ok_or_else(|| invalid(&place(), "neither an address nor a network"))?,
    };
    let seconds = |time: &str| -> Result<u64, ApiError> {
        let time: Option<SystemTime> = parse_rfc3339(time);
        time.map(unix_seconds_at).ok_or_else(|| invalid(&place(), "a time is not RFC 3339"))
    };
    let until = view.until.as_deref().map(seconds).transpose()?;
    let since = seconds(&view.since)?;
    Ok((key, LoginBlock { until, since, reason: view.reason.clone(), by: view.by.clone() }))
}

/// An object that is the same in Redis keeps its JSON, which another version may have written differently.
fn keep_equal<T: PartialEq>(
    new: &mut StoredFields,
    before: &StoredFields,
    parse: impl Fn(&str, &str) -> Option<T>,
) {
    for (name, json) in new {
        if let Some(old) = before.get(name)
            && parse(name, old).is_some_and(|old| parse(name, json) == Some(old))
        {
            json.clone_from(old);
        }
    }
}

/// Objects that will not have their effect.
fn warnings(service: &Service, new: &StoredState, before: &StoredState, replace: bool) -> Vec<String> {
    let declared = service.accounts.declared.current();
    let mut groups: BTreeSet<&str> = declared.groups.keys().map(GroupName::as_str).collect();
    groups.extend(new.groups.keys().map(String::as_str));
    if !replace {
        groups.extend(before.groups.keys().map(String::as_str));
    }
    let mut warnings = Vec::new();
    for (name, json) in &new.users {
        let Ok(parsed) = name.parse::<UserName>() else { continue };
        if declared.users.contains_key(&parsed) || service.accounts.declared.is_anonymous(&parsed) {
            warnings.push(format!("a declared user hides the user {name:?}"));
        } else if let Some(missing) = names_of_groups(json).iter().find(|group| !groups.contains(&***group)) {
            warnings.push(format!("{name:?} cannot log in: the group {missing:?} does not exist"));
        }
    }
    let hidden =
        |name: &&String| name.parse().is_ok_and(|name: GroupName| declared.groups.contains_key(&name));
    let hidden = new.groups.keys().filter(hidden);
    warnings.extend(hidden.map(|name| format!("a declared group hides the group {name:?}")));
    let is_idle =
        |name: &&String| !name.parse().is_ok_and(|name: UserName| declared.users.contains_key(&name));
    let idle = new.overrides.keys().filter(is_idle);
    warnings.extend(
        idle.map(|name| format!("the override of {name:?} has no effect: no declared user has this name")),
    );
    warnings
}

fn names_of_groups(user: &str) -> Vec<String> {
    let fields: Map<String, Value> = serde_json::from_str(user).unwrap_or_default();
    let groups = fields.get("groups").and_then(Value::as_array);
    groups.into_iter().flatten().filter_map(|name| Some(name.as_str()?.to_owned())).collect()
}

/// The JSON form of a record whose parts have one.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn invalid(place: &str, error: impl std::fmt::Display) -> ApiError {
    ApiError::InvalidRequest(format!("{place}: {error}"))
}
