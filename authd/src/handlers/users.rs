//! `/v1/users`: all users are shown; those in Redis can be made, changed and removed.

use common::{
    auth_api::{UserSource, UserView},
    node::NodeCommand,
};
use serde_json::{Map, Value};

use crate::{
    Service,
    accounts::{
        password::Phc,
        stored::{Read, Stored, Written},
        user::{Change, Credential, User, UserName},
    },
    error::ApiError,
};

/// How often a change is tried again because somebody else changed the user meanwhile.
const ATTEMPTS: usize = 5;

/// All users by name, the declared ones alone where Redis is not set up. A user in Redis with a
/// declared user's name is not shown, since that one is who logs in.
///
/// # Errors
/// Redis is away.
pub async fn list(service: &Service) -> Result<Vec<UserView>, ApiError> {
    let declared = service.accounts.declared();
    let mut views: Vec<UserView> =
        declared.iter().map(|(name, user)| user.view(name, UserSource::Declarative)).collect();
    if let Some(stored) = &service.accounts.stored {
        let users = stored.all().await?;
        let hidden = |name: &UserName| declared.contains_key(name);
        views.extend(
            users
                .iter()
                .filter(|(name, _)| !hidden(name))
                .map(|(name, user)| user.view(name, UserSource::Registry)),
        );
    }
    views.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(views)
}

/// One user.
///
/// # Errors
/// There is none of that name, or Redis is away.
pub async fn show(service: &Service, name: &str) -> Result<UserView, ApiError> {
    let name: UserName = name.parse().map_err(|_| ApiError::NotFound("user"))?;
    let (found, _) = service.accounts.find(&name).await?;
    let found = found.ok_or(ApiError::NotFound("user"))?;
    Ok(found.user().view(&name, found.source()))
}

/// Makes a user in Redis. The body is a `Change` with the user's `name` and a password.
///
/// # Errors
/// The body says no user, there is one of that name, or Redis is away.
pub async fn create(service: &Service, mut body: Map<String, Value>) -> Result<UserView, ApiError> {
    let name = match body.remove("name") {
        Some(Value::String(name)) => name,
        Some(_) => return Err(ApiError::InvalidRequest("name: expected a string".to_owned())),
        None => return Err(ApiError::InvalidRequest("missing field `name`".to_owned())),
    };
    let name: UserName = name.parse().map_err(|error| ApiError::InvalidRequest(format!("name: {error}")))?;
    let change = change(body)?;
    let stored = changeable(service, &name)?;
    let hash = hash(service, &change)
        .await?
        .ok_or_else(|| ApiError::InvalidRequest("neither `password` nor `password_hash`".to_owned()))?;
    let user = change.apply(&User::new(&name, Credential::Hash(hash)));
    match stored.create(&name, &user).await? {
        Written::Done => {
            log::info!(user:% = name; "user created");
            Ok(user.view(&name, UserSource::Registry))
        }
        Written::Differs | Written::Missing => Err(ApiError::AlreadyExists),
    }
}

/// Changes a user in Redis. A user who is disabled or gets another password loses all sessions.
///
/// # Errors
/// The body says no change, the user is none in Redis, or Redis is away.
pub async fn update(service: &Service, name: &str, body: Map<String, Value>) -> Result<UserView, ApiError> {
    let name: UserName = name.parse().map_err(|_| ApiError::NotFound("user"))?;
    let change = change(body)?;
    let stored = changeable(service, &name)?;
    let mut read = read(stored, &name).await?;
    let hash = hash(service, &change).await?;
    for _ in 0..ATTEMPTS {
        let mut user = change.apply(&read.user);
        if let Some(hash) = &hash {
            user.credential = Credential::Hash(hash.clone());
        }
        match stored.replace(&name, &read, &user).await? {
            Written::Done => {
                log::info!(user:% = name; "user changed");
                if !user.enabled || user.credential != read.user.credential {
                    end_sessions(service, &name).await;
                }
                return Ok(user.view(&name, UserSource::Registry));
            }
            Written::Missing => return Err(ApiError::NotFound("user")),
            Written::Differs => read = self::read(stored, &name).await?,
        }
    }
    Err(ApiError::Contended)
}

/// Removes a user from Redis, and ends the user's sessions.
///
/// # Errors
/// The user is none in Redis, or Redis is away.
pub async fn remove(service: &Service, name: &str) -> Result<(), ApiError> {
    let name: UserName = name.parse().map_err(|_| ApiError::NotFound("user"))?;
    let stored = changeable(service, &name)?;
    for _ in 0..ATTEMPTS {
        let read = read(stored, &name).await?;
        match stored.remove(&name, &read).await? {
            Written::Done => {
                log::info!(user:% = name; "user removed");
                end_sessions(service, &name).await;
                return Ok(());
            }
            Written::Missing => return Err(ApiError::NotFound("user")),
            Written::Differs => {}
        }
    }
    Err(ApiError::Contended)
}

/// The users in Redis, if `name` may be changed there.
fn changeable<'a>(service: &'a Service, name: &UserName) -> Result<&'a Stored, ApiError> {
    if service.accounts.declared().contains_key(name) {
        return Err(ApiError::Declarative);
    }
    service.accounts.stored.as_ref().ok_or(ApiError::NoRedis)
}

async fn read(stored: &Stored, name: &UserName) -> Result<Read, ApiError> {
    let (read, _) = stored.find(name).await?;
    read.ok_or(ApiError::NotFound("user"))
}

fn change(body: Map<String, Value>) -> Result<Change, ApiError> {
    serde_json::from_value(Value::Object(body)).map_err(|error| ApiError::InvalidRequest(error.to_string()))
}

/// The new hash, if the change names one or a password.
async fn hash(service: &Service, change: &Change) -> Result<Option<Phc>, ApiError> {
    match (&change.password, &change.password_hash) {
        (Some(_), Some(_)) => Err(ApiError::InvalidRequest("both `password` and `password_hash`".to_owned())),
        (Some(password), None) => Ok(Some(service.passwords.hash(password).await??)),
        (None, hash) => Ok(hash.clone()),
    }
}

/// The change stands already: a node that cannot be told is a matter for the log.
async fn end_sessions(service: &Service, name: &UserName) {
    let Some(registry) = &service.registry else { return };
    let command = NodeCommand::EndUser { user: name.to_string() };
    let nodes = match registry.nodes().await {
        Ok(nodes) => nodes,
        Err(error) => return log::error!(user:% = name, error:% = error; "cannot end the user's sessions"),
    };
    for node in nodes {
        if let Err(error) = registry.send(&node.name, &command).await {
            log::error!(user:% = name, node:% = node.name, error:% = error; "cannot end the user's sessions");
        }
    }
}
