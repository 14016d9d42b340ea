//! `/v1/users`: lists all users; creates, changes and removes users in Redis; disables declared users.

use common::{clock::unix_seconds, process::http::Peer, secret::Secret};
use serde_json::{Map, Value};

use super::{WRITE_ATTEMPTS, address, invalid, require, stored, take_name};
use crate::{
    accounts::{
        FoundUser,
        name::{GroupName, UserName},
        overrides::UserOverride,
        password::Phc,
        policy::EffectivePolicy,
        stored::{StoredAccounts, StoredRecord, WriteOutcome},
        user::{AccountSource, User, UserView},
    },
    error::ApiError,
    revocation::revoke_logins,
    service::Service,
};

/// All users by name. Without Redis, only the declared ones.
///
/// # Errors
/// Redis cannot be reached.
pub async fn list(service: &Service) -> Result<Vec<UserView>, ApiError> {
    let groups = service.accounts.groups().await?;
    let users = service.accounts.users().await?;
    let group = |name: &GroupName| groups.get(name).map(|(_, policy)| policy.clone());
    let views = users.iter().map(|(name, found)| view(name, found, found.user.effective(group).ok()));
    Ok(views.collect())
}

/// One user.
///
/// # Errors
/// No user has this name, or Redis cannot be reached.
pub async fn show(service: &Service, name: &str) -> Result<UserView, ApiError> {
    let name = existing(service, name)?;
    let (found, _) = service.accounts.find(&name).await?;
    let found = found.ok_or(ApiError::NotFound("user"))?;
    Ok(view(&name, &found, effective(service, &found.user).await))
}

fn view(name: &UserName, found: &FoundUser, effective: Option<EffectivePolicy>) -> UserView {
    UserView { overridden: found.overridden, ..found.user.view(name, found.source, effective) }
}

/// Creates a user in Redis. The body contains the user's `name`, a password or a hash, and the properties
/// that differ from the defaults.
///
/// # Errors
/// The body is invalid, the user exists already, or Redis cannot be reached.
pub async fn create(service: &Service, mut body: Map<String, Value>) -> Result<UserView, ApiError> {
    let name: UserName = service.accounts.declared.canonical_name(take_name(&mut body)?);
    let stored = changeable(service, &name)?;
    if !hash_password(service, &mut body).await? {
        return Err(ApiError::InvalidRequest("`password` or `password_hash` is required".to_owned()));
    }
    let user = User::from_fields(&name, body).map_err(invalid)?;
    let groups = service.accounts.undeclared_groups(&user.groups);
    match stored.write_user(&name, None, &user, &groups).await? {
        WriteOutcome::Done(confirmation) => {
            require(confirmation)?;
            Ok(user.view(&name, AccountSource::Registry, effective(service, &user).await))
        }
        WriteOutcome::NoGroup(index) => Err(no_group(&groups, index)),
        WriteOutcome::Differs | WriteOutcome::Missing => Err(ApiError::AlreadyExists("user")),
    }
}

/// Changes a user in Redis. If the user is disabled or gets another password, all of the user's sessions
/// end at once. Sessions that began with a removed certificate end when their nodes ask (see
/// [`super::authorized`]). Of a declared user, only `enabled` can be overridden. `peer` is for the log.
///
/// # Errors
/// The body is invalid, the user is declared and the body contains more than `enabled`, no user has this
/// name, or Redis cannot be reached.
pub async fn update(
    service: &Service,
    name: &str,
    mut body: Map<String, Value>,
    peer: Option<Peer>,
) -> Result<UserView, ApiError> {
    let name = existing(service, name)?;
    let declared = service.accounts.declared.current();
    if let Some(user) = declared.users.get(&name) {
        return override_declared(service, &name, user, &body, peer).await;
    }
    let stored = changeable(service, &name)?;
    let mut read = read(stored, &name).await?;
    hash_password(service, &mut body).await?;
    for _ in 0..WRITE_ATTEMPTS {
        let user = read.value.with_fields(&name, body.clone()).map_err(invalid)?;
        // Groups are checked only if the body names them: a user whose group is missing can still be
        // disabled.
        let names_groups = body.contains_key("groups");
        let groups = if names_groups { service.accounts.undeclared_groups(&user.groups) } else { Vec::new() };
        match stored.write_user(&name, Some(&read), &user, &groups).await? {
            WriteOutcome::Done(confirmation) => {
                service.revision.advance();
                if !user.enabled || user.credential != read.value.credential {
                    revoke_logins(service, &name).await;
                }
                require(confirmation)?;
                return Ok(user.view(&name, AccountSource::Registry, effective(service, &user).await));
            }
            WriteOutcome::NoGroup(index) => return Err(no_group(&groups, index)),
            WriteOutcome::Missing => return Err(ApiError::NotFound("user")),
            WriteOutcome::Differs => read = self::read(stored, &name).await?,
        }
    }
    Err(ApiError::Contended)
}

/// Disables a declared user on all authd instances at once, or removes that override.
async fn override_declared(
    service: &Service,
    name: &UserName,
    declared: &User,
    body: &Map<String, Value>,
    peer: Option<Peer>,
) -> Result<UserView, ApiError> {
    let declared_in = || match service.accounts.declared.path() {
        Some(path) => path.display().to_string(),
        None => "the settings".to_owned(),
    };
    let enabled = match (body.len(), body.get("enabled")) {
        (1, Some(Value::Bool(enabled))) => *enabled,
        (1, Some(Value::Null)) => true,
        (1, Some(_)) => return Err(ApiError::InvalidRequest("enabled: expected a boolean".to_owned())),
        _ => return Err(ApiError::OnlyEnabled(declared_in())),
    };
    let stored = stored(service)?;
    let address = address(peer);
    if enabled {
        if stored.remove_override(name).await? {
            log::info!(user:% = name, address = address.as_str(); "override of a declared user removed");
        }
        if !declared.enabled {
            return Err(ApiError::DisabledInFile(declared_in()));
        }
    } else {
        stored.set_override(name, UserOverride::disabled(unix_seconds())).await?;
        log::info!(user:% = name, address = address.as_str(); "declared user disabled by an override");
        revoke_logins(service, name).await;
    }
    show(service, name.as_str()).await
}

/// Removes a user from Redis, and ends the user's sessions.
///
/// # Errors
/// The user is not in Redis, or Redis cannot be reached.
pub async fn remove(service: &Service, name: &str) -> Result<(), ApiError> {
    let name = existing(service, name)?;
    let stored = changeable(service, &name)?;
    for _ in 0..WRITE_ATTEMPTS {
        let read = read(stored, &name).await?;
        match stored.remove_user(&name, &read).await? {
            WriteOutcome::Done(confirmation) => {
                revoke_logins(service, &name).await;
                return require(confirmation);
            }
            WriteOutcome::Missing => return Err(ApiError::NotFound("user")),
            WriteOutcome::Differs | WriteOutcome::NoGroup(_) => {}
        }
    }
    Err(ApiError::Contended)
}

/// The canonical name of a user in a path. A malformed name does not exist.
fn existing(service: &Service, name: &str) -> Result<UserName, ApiError> {
    Ok(service.accounts.declared.canonical_name(super::existing(name, "user")?))
}

/// The users in Redis, unless `name` is a declared user.
fn changeable<'a>(service: &'a Service, name: &UserName) -> Result<&'a StoredAccounts, ApiError> {
    if service.accounts.declared.current().users.contains_key(name) {
        return Err(ApiError::Declarative("user"));
    }
    stored(service)
}

async fn read(stored: &StoredAccounts, name: &UserName) -> Result<StoredRecord<User>, ApiError> {
    let (read, _) = stored.user(name).await?;
    read.ok_or(ApiError::NotFound("user"))
}

async fn effective(service: &Service, user: &User) -> Option<EffectivePolicy> {
    service.accounts.effective(user).await.ok()
}

fn no_group(groups: &[GroupName], index: usize) -> ApiError {
    let name = groups.get(index).map_or("", GroupName::as_str);
    ApiError::InvalidRequest(format!("groups: the group {name:?} does not exist"))
}

/// Replaces the body's password with its hash. Returns true if the body has a hash now.
async fn hash_password(service: &Service, body: &mut Map<String, Value>) -> Result<bool, ApiError> {
    let password = match body.remove("password") {
        None | Some(Value::Null) => None,
        Some(Value::String(password)) => Some(Secret::new(password)),
        Some(_) => return Err(ApiError::InvalidRequest("password: expected a string".to_owned())),
    };
    body.retain(|key, value| key != "password_hash" || !value.is_null());
    match password {
        Some(_) if body.contains_key("password_hash") => Err(ApiError::InvalidRequest(
            "both `password` and `password_hash` are given; give one of them".to_owned(),
        )),
        Some(password) => {
            let hash: Phc = service.passwords.hash(&password).await??;
            body.insert("password_hash".to_owned(), hash.as_str().into());
            Ok(true)
        }
        None => Ok(body.contains_key("password_hash")),
    }
}
