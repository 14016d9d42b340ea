//! `/v1/users`: all users are shown; those in Redis can be made, changed and removed.

use common::{clock::unix_seconds, node::NodeCommand, secret::Secret};
use serde_json::{Map, Value};

use crate::{
    Service,
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
    server::Peer,
};

/// How often a change is tried again because somebody else changed the same meanwhile.
pub const ATTEMPTS: usize = 5;

/// All users by name, the declared ones alone where Redis is not set up.
///
/// # Errors
/// Redis is away.
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
/// There is none of that name, or Redis is away.
pub async fn show(service: &Service, name: &str) -> Result<UserView, ApiError> {
    let name = existing(service, name)?;
    let (found, _) = service.accounts.find(&name).await?;
    let found = found.ok_or(ApiError::NotFound("user"))?;
    Ok(view(&name, &found, effective(service, &found.user).await))
}

fn view(name: &UserName, found: &FoundUser, effective: Option<EffectivePolicy>) -> UserView {
    UserView { overridden: found.overridden, ..found.user.view(name, found.source, effective) }
}

/// Makes a user in Redis. The body has the user's `name`, a password, and what else is to differ from
/// the defaults.
///
/// # Errors
/// The body says no user, there is one of that name, or Redis is away.
pub async fn create(service: &Service, mut body: Map<String, Value>) -> Result<UserView, ApiError> {
    let name: UserName = service.accounts.canonical(take_name(&mut body)?);
    let stored = changeable(service, &name)?;
    if !hash_password(service, &mut body).await? {
        return Err(ApiError::InvalidRequest("neither `password` nor `password_hash`".to_owned()));
    }
    let user = User::from_fields(&name, body).map_err(invalid)?;
    let groups = service.accounts.not_declared(&user.groups);
    match stored.write_user(&name, None, &user, &groups).await? {
        WriteOutcome::Done => {
            log::info!(user:% = name; "user created");
            Ok(user.view(&name, AccountSource::Registry, effective(service, &user).await))
        }
        WriteOutcome::NoGroup(number) => Err(no_group(&groups, number)),
        WriteOutcome::Differs | WriteOutcome::Missing => Err(ApiError::AlreadyExists("user")),
    }
}

/// Changes a user in Redis. A user who is disabled or gets another password loses all sessions; those that began
/// by a certificate which is taken out end when their nodes ask (see [`super::authorized`]). Of a declared user, `enabled` alone can be overridden. `peer` is for the log.
///
/// # Errors
/// The body says no change, the user is declared and the body says more than `enabled`, there is no such
/// user, or Redis is away.
pub async fn update(
    service: &Service,
    name: &str,
    mut body: Map<String, Value>,
    peer: Option<Peer>,
) -> Result<UserView, ApiError> {
    let name = existing(service, name)?;
    let declared = service.accounts.declared();
    if let Some(user) = declared.users.get(&name) {
        return override_declared(service, &name, user, &body, peer).await;
    }
    let stored = changeable(service, &name)?;
    let mut read = read(stored, &name).await?;
    hash_password(service, &mut body).await?;
    for _ in 0..ATTEMPTS {
        let user = read.value.with_fields(&name, body.clone()).map_err(invalid)?;
        // Whoever has lost a group can still be disabled.
        let is_named = body.contains_key("groups");
        let groups = if is_named { service.accounts.not_declared(&user.groups) } else { Vec::new() };
        match stored.write_user(&name, Some(&read), &user, &groups).await? {
            WriteOutcome::Done => {
                log::info!(user:% = name; "user changed");
                service.revision.advance();
                if !user.enabled || user.credential != read.value.credential {
                    shut_out(service, &name).await;
                }
                return Ok(user.view(&name, AccountSource::Registry, effective(service, &user).await));
            }
            WriteOutcome::NoGroup(number) => return Err(no_group(&groups, number)),
            WriteOutcome::Missing => return Err(ApiError::NotFound("user")),
            WriteOutcome::Differs => read = self::read(stored, &name).await?,
        }
    }
    Err(ApiError::Contended)
}

/// Disables a declared user, for all authds at once, or takes that back.
async fn override_declared(
    service: &Service,
    name: &UserName,
    declared: &User,
    body: &Map<String, Value>,
    peer: Option<Peer>,
) -> Result<UserView, ApiError> {
    let place = || match service.accounts.path() {
        Some(path) => path.display().to_string(),
        None => "the settings".to_owned(),
    };
    let enabled = match (body.len(), body.get("enabled")) {
        (1, Some(Value::Bool(enabled))) => *enabled,
        (1, Some(Value::Null)) => true,
        (1, Some(_)) => return Err(ApiError::InvalidRequest("enabled: expected a boolean".to_owned())),
        _ => return Err(ApiError::OnlyEnabled(place())),
    };
    let stored = service.accounts.stored.as_ref().ok_or(ApiError::NoRedis)?;
    let address = peer.map(|Peer(peer)| peer.ip().to_string()).unwrap_or_default();
    if enabled {
        if stored.remove_override(name).await? {
            log::info!(user:% = name, address = address.as_str(); "override of a declared user taken back");
        }
        if !declared.enabled {
            return Err(ApiError::DisabledInFile(place()));
        }
    } else {
        stored.set_override(name, UserOverride::disabled(unix_seconds())).await?;
        log::info!(user:% = name, address = address.as_str(); "declared user disabled by an override");
        shut_out(service, name).await;
    }
    show(service, name.as_str()).await
}

/// Removes a user from Redis, and ends the user's sessions.
///
/// # Errors
/// The user is none in Redis, or Redis is away.
pub async fn remove(service: &Service, name: &str) -> Result<(), ApiError> {
    let name = existing(service, name)?;
    let stored = changeable(service, &name)?;
    for _ in 0..ATTEMPTS {
        let read = read(stored, &name).await?;
        match stored.remove_user(&name, &read).await? {
            WriteOutcome::Done => {
                log::info!(user:% = name; "user removed");
                shut_out(service, &name).await;
                return Ok(());
            }
            WriteOutcome::Missing => return Err(ApiError::NotFound("user")),
            WriteOutcome::Differs | WriteOutcome::NoGroup(_) => {}
        }
    }
    Err(ApiError::Contended)
}

/// Takes from whoever has been this user what a login gave: the sessions, and that their addresses are
/// known. The change stands already: what cannot be told is a matter for the log.
pub async fn shut_out(service: &Service, name: &UserName) {
    service.revision.advance();
    if let Err(error) = service.throttle.forget_addresses(name).await {
        log::warn!(
            user:% = name, error:%;
            "the user's known addresses cannot be forgotten now; authd does it when Redis can be reached"
        );
        service.revision.forget_addresses_later(name);
    }
    end_sessions(service, name).await;
}

/// Ends the user's sessions at once where that is possible. Where it is not, because a node or Redis is away,
/// the node ends them when it sees the next revision of the accounts.
async fn end_sessions(service: &Service, name: &UserName) {
    const LATER: &str =
        "the user's sessions cannot be ended now; the nodes end them when Redis can be reached";
    let Some(registry) = &service.registry else { return };
    let command = NodeCommand::EndUser { user: name.to_string() };
    let nodes = match registry.nodes().await {
        Ok(nodes) => nodes,
        Err(error) => return log::warn!(user:% = name, error:%; "{LATER}"),
    };
    for node in nodes {
        if let Err(error) = registry.send(&node.name, &command).await {
            log::warn!(user:% = name, node:% = node.name, error:%; "{LATER}");
        }
    }
}

/// Takes the name of what is to be made out of a body.
///
/// # Errors
/// There is none.
pub fn take_name<N>(body: &mut Map<String, Value>) -> Result<N, ApiError>
where
    N: std::str::FromStr<Err: std::fmt::Display>,
{
    let name = match body.remove("name") {
        Some(Value::String(name)) => name,
        Some(_) => return Err(ApiError::InvalidRequest("name: expected a string".to_owned())),
        None => return Err(ApiError::InvalidRequest("missing field `name`".to_owned())),
    };
    name.parse().map_err(|error| ApiError::InvalidRequest(format!("name: {error}")))
}

/// serde's messages name fields, and quote values only of the wrong type.
pub fn invalid(error: serde_json::Error) -> ApiError {
    ApiError::InvalidRequest(error.to_string())
}

/// The name of a user that there may be.
fn existing(service: &Service, name: &str) -> Result<UserName, ApiError> {
    let name = name.parse().map_err(|_| ApiError::NotFound("user"))?;
    Ok(service.accounts.canonical(name))
}

/// The users in Redis, if `name` may be changed there.
fn changeable<'a>(service: &'a Service, name: &UserName) -> Result<&'a StoredAccounts, ApiError> {
    if service.accounts.declared().users.contains_key(name) {
        return Err(ApiError::Declarative("user"));
    }
    service.accounts.stored.as_ref().ok_or(ApiError::NoRedis)
}

async fn read(stored: &StoredAccounts, name: &UserName) -> Result<StoredRecord<User>, ApiError> {
    let (read, _) = stored.user(name).await?;
    read.ok_or(ApiError::NotFound("user"))
}

async fn effective(service: &Service, user: &User) -> Option<EffectivePolicy> {
    service.accounts.effective(user).await.ok()
}

fn no_group(groups: &[GroupName], number: usize) -> ApiError {
    let name = groups.get(number).map_or("", GroupName::as_str);
    ApiError::InvalidRequest(format!("groups: there is no group {name:?}"))
}

/// Puts a hash in the place of a body's password; whether the body has one now.
async fn hash_password(service: &Service, body: &mut Map<String, Value>) -> Result<bool, ApiError> {
    let password = match body.remove("password") {
        None | Some(Value::Null) => None,
        Some(Value::String(password)) => Some(Secret::new(password)),
        Some(_) => return Err(ApiError::InvalidRequest("password: expected a string".to_owned())),
    };
    body.retain(|key, value| key != "password_hash" || !value.is_null());
    match password {
        Some(_) if body.contains_key("password_hash") => {
            Err(ApiError::InvalidRequest("both `password` and `password_hash`".to_owned()))
        }
        Some(password) => {
            let hash: Phc = service.passwords.hash(&password).await??;
            body.insert("password_hash".to_owned(), hash.as_str().into());
            Ok(true)
        }
        None => Ok(body.contains_key("password_hash")),
    }
}
