//! `POST /v1/authenticate`: whether a login is right, and what its user may do.

use std::time::SystemTime;

use common::{
    access::Forbidden,
    auth_api::{Account, AuthenticateRequest, Rejection},
    registry::LinkError,
    secret::Secret,
};

use crate::{
    Service,
    accounts::{
        name::UserName,
        password::Busy,
        stored::StoredError,
        user::{Credential, User, version},
    },
    error::{ApiError, with_causes},
    metrics,
    throttle::{Attempt, Throttled},
};

/// Why a login is refused, as the log and the metrics tell it.
enum Refusal {
    Rejected(Rejection),
    Throttled(Throttled),
    Busy,
    /// Whether the name is a user's, or what holds for the user, cannot be known now.
    Unavailable(StoredError),
}

impl Refusal {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Rejected(rejection) => rejection.as_str(),
            Self::Throttled(_) => "throttled",
            Self::Busy => "busy",
            Self::Unavailable(_) => "unavailable",
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Rejected(rejection) => Self::InvalidCredentials(rejection),
            Refusal::Throttled(Throttled { wait, .. }) => Self::Throttled { wait },
            Refusal::Busy => Self::Busy,
            Refusal::Unavailable(StoredError::Link(error @ (LinkError::Away | LinkError::Denied))) => {
                Self::Undecided(error)
            }
            // The log has it, beside the login.
            Refusal::Unavailable(_) => Self::Unusable,
        }
    }
}

impl From<Throttled> for Refusal {
    fn from(throttled: Throttled) -> Self {
        metrics::throttled(throttled.by);
        Self::Throttled(throttled)
    }
}

impl From<Busy> for Refusal {
    fn from(_: Busy) -> Self {
        Self::Busy
    }
}

/// Decides one login, and says so in the log.
///
/// # Errors
/// The login is refused.
pub async fn authenticate(service: &Service, request: AuthenticateRequest) -> Result<Account, ApiError> {
    let decision = decide(service, &request).await;
    let result = decision.as_ref().map_or_else(Refusal::as_str, |_| "accepted");
    metrics::login(result);
    // A name that is none may be long; the log shows its beginning.
    let user: String = request.user.chars().take(64).collect();
    let AuthenticateRequest { address, node, session, tls, .. } = &request;
    match &decision {
        // The node may still refuse the login, for a limit or for its storage.
        Ok(_) => log::info!(user, address:%, node:%, session:%, tls, result; "credentials accepted"),
        Err(Refusal::Throttled(throttled)) => {
            let (by, wait) = (throttled.by.as_str(), throttled.wait.as_secs_f64());
            log::warn!(user, address:%, node:%, session:%, tls, result, by, wait; "login refused");
        }
        Err(refusal) => {
            match refusal {
                // The link's log says that Redis is away; what else it is must be put right.
                Refusal::Unavailable(error) if !matches!(error, StoredError::Link(_)) => {
                    let error = with_causes(error);
                    log::error!(user, address:%, node:%, session:%, tls, result, error; "login refused");
                }
                _ => log::warn!(user, address:%, node:%, session:%, tls, result; "login refused"),
            }
        }
    }
    Ok(decision?)
}

async fn decide(service: &Service, request: &AuthenticateRequest) -> Result<Account, Refusal> {
    let name: Option<UserName> = request.user.parse().ok();
    let name = name.map(|name| service.accounts.canonical(name));
    // Any password is right for the anonymous user: there is nothing to guess.
    let guessed = name.as_ref().filter(|name| !service.accounts.is_anonymous(name));
    let attempt = Attempt { user: guessed, address: request.address };
    service.throttle.check(attempt).await?;
    let found = match &name {
        None => None,
        Some(name) => {
            let (found, generation) = service.accounts.find(name).await.map_err(Refusal::Unavailable)?;
            if let Some(generation) = generation {
                service.cache.observe(generation);
            }
            found.map(|found| (name, found.user))
        }
    };
    let verdict = match &found {
        Some((name, user)) => {
            let certificate = shown_certificate(user, request);
            if certificate.is_none() && !is_right(service, name, user, &request.password).await? {
                Err(Rejection::WrongPassword)
            } else if !user.enabled {
                Err(Rejection::Disabled)
            } else {
                // Without one of the groups nobody knows what it would have forbidden.
                let effective = service.accounts.effective(user).await.map_err(Refusal::Unavailable)?;
                match effective.access.check(request.address, SystemTime::now()) {
                    Ok(()) => {
                        let home = user.home.as_str().to_owned();
                        let account = effective.account(name.to_string(), home, user.admin);
                        Ok(Account {
                            version: Some(version(user, certificate)),
                            quota_directory: service.accounts.quota_directory(name),
                            ..account
                        })
                    }
                    Err(Forbidden::Address) => Err(Rejection::AddressNotAllowed),
                    Err(Forbidden::Time) => Err(Rejection::TimeNotAllowed),
                }
            }
        }
        None => {
            // The computation takes as long as for a user, so that its time does not tell.
            service.passwords.verify(&request.password, None).await?;
            Err(Rejection::UnknownUser)
        }
    };
    match verdict {
        Ok(account) => {
            service.throttle.succeeded(attempt).await?;
            Ok(account)
        }
        Err(rejection) => {
            service.throttle.failed(attempt).await?;
            Err(Refusal::Rejected(rejection))
        }
    }
}

/// That of the user's certificates which the node has verified: it stands in for the password.
fn shown_certificate<'a>(user: &'a User, request: &AuthenticateRequest) -> Option<&'a String> {
    let shown = request.certificate.as_ref()?;
    user.certificates.iter().find(|certificate| *certificate == shown)
}

async fn is_right(service: &Service, name: &UserName, user: &User, password: &Secret) -> Result<bool, Busy> {
    let hash = match &user.credential {
        Credential::AnyPassword => return Ok(true),
        Credential::Hash(hash) => hash,
    };
    // Keyed by the hash as it is in this look-up, an entry cannot say more than a computation.
    let digest = service.cache.digest(name, hash, password);
    if service.cache.contains(&digest) {
        metrics::cache_hit();
        return Ok(true);
    }
    let right = service.passwords.verify(password, Some(hash)).await?;
    if right {
        service.cache.insert(digest);
    }
    Ok(right)
}
