//! `POST /v1/authenticate`: decides a login and returns the user's account.

use std::time::SystemTime;

use common::{
    auth_api::{Account, AuthenticateRequest, Rejection},
    certificate::{CertificateRule, ClientCertificate, DistinguishedName},
    login_conditions::UnmetCondition,
    process::logging::chain,
    registry::LinkError,
};

use super::shortened;
use crate::{
    accounts::{
        cache::VerificationDigest,
        name::UserName,
        password::QueueFull,
        stored::StoredError,
        user::{Credential, User, version},
    },
    error::ApiError,
    metrics,
    service::Service,
    throttle::{LoginAttempt, Throttled},
};

/// The reason why a login is refused, for the log and the metrics.
enum LoginRefusal {
    Rejected(Rejection),
    Throttled(Throttled),
    Busy,
    /// The user or the user's groups cannot be read now.
    Unavailable(StoredError),
}

impl LoginRefusal {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Rejected(rejection) => rejection.as_str(),
            Self::Throttled(_) => "throttled",
            Self::Busy => "busy",
            Self::Unavailable(_) => "unavailable",
        }
    }
}

impl From<LoginRefusal> for ApiError {
    fn from(refusal: LoginRefusal) -> Self {
        match refusal {
            LoginRefusal::Rejected(rejection) => Self::InvalidCredentials(rejection),
            LoginRefusal::Throttled(Throttled { wait, .. }) => Self::Throttled { wait },
            LoginRefusal::Busy => Self::Busy,
            LoginRefusal::Unavailable(StoredError::Link(error @ (LinkError::Away | LinkError::Denied))) => {
                Self::Undecided(error)
            }
            // The line about the login in the log contains the error.
            LoginRefusal::Unavailable(_) => Self::UnreadableAccount,
        }
    }
}

impl From<Throttled> for LoginRefusal {
    fn from(throttled: Throttled) -> Self {
        metrics::throttled(throttled.kind.as_str());
        Self::Throttled(throttled)
    }
}

impl From<QueueFull> for LoginRefusal {
    fn from(_: QueueFull) -> Self {
        Self::Busy
    }
}

/// An accepted login.
struct AcceptedLogin {
    account: Account,
    /// The entry of the user's `certificates` that matched. `None`: the password was right.
    rule: Option<String>,
}

/// Proof that the client is the user.
enum LoginProof<'a> {
    /// This entry of the user's `certificates` matches.
    Certificate(&'a CertificateRule),
    /// The password is right. The digest is for the cache, if argon2 was computed.
    Password(Option<VerificationDigest>),
}

/// Returns whether authd can decide logins at this time, for a node's readiness.
///
/// # Errors
/// Redis cannot be reached and no user is declared.
pub fn probe(service: &Service) -> Result<(), ApiError> {
    if service.accounts.can_decide_logins() { Ok(()) } else { Err(ApiError::NoLogins) }
}

/// Decides a login, counts it and logs it.
///
/// # Errors
/// The login is refused.
pub async fn authenticate(service: &Service, request: AuthenticateRequest) -> Result<Account, ApiError> {
    let decision = decide(service, &request).await;
    let result = decision.as_ref().map_or_else(LoginRefusal::as_str, |_| "accepted");
    metrics::login(result);
    log_decision(&request, result, &decision);
    Ok(decision?.account)
}

fn log_decision(request: &AuthenticateRequest, result: &str, decision: &Result<AcceptedLogin, LoginRefusal>) {
    let user = shortened(&request.user);
    let AuthenticateRequest { address, node, session, tls, .. } = request;
    match decision {
        // "accepted" is not "logged in": the node may still refuse, for a limit or because of its storage.
        Ok(AcceptedLogin { rule: Some(rule), .. }) => {
            let key = request.client_certificate.as_ref().map(|shown| shown.key.to_string());
            let subject = certificate_subject(request);
            log::info!(
                user, address:%, node:%, session:%, tls, result, subject = subject.as_deref(),
                key = key.as_deref(), rule = rule.as_str();
                "client certificate accepted"
            );
        }
        Ok(_) => log::info!(user, address:%, node:%, session:%, tls, result; "credentials accepted"),
        Err(LoginRefusal::Throttled(throttled)) => {
            let (by, wait) = (throttled.kind.as_str(), throttled.wait.as_secs_f64());
            log::warn!(user, address:%, node:%, session:%, tls, result, by, wait; "login refused");
        }
        // The Redis link logs its own errors. All others need the operator.
        Err(LoginRefusal::Unavailable(error)) if !matches!(error, StoredError::Link(_)) => {
            let error = chain(error);
            log::error!(user, address:%, node:%, session:%, tls, result, error; "login refused");
        }
        Err(_) => log::warn!(user, address:%, node:%, session:%, tls, result; "login refused"),
    }
}

/// The subject of the verified client certificate, as text.
fn certificate_subject(request: &AuthenticateRequest) -> Option<String> {
    let shown = request.client_certificate.as_ref();
    let subject = shown.and_then(|shown: &ClientCertificate| shown.subject.as_ref());
    subject.map(ToString::to_string).or_else(|| request.certificate.clone())
}

async fn decide(service: &Service, request: &AuthenticateRequest) -> Result<AcceptedLogin, LoginRefusal> {
    let declared = &service.accounts.declared;
    let name: Option<UserName> = request.user.parse().ok();
    let name = name.map(|name| declared.canonical_name(name));
    // The anonymous user may give any password, so failures of that name are not guesses and do not count.
    let counted = name.as_ref().filter(|name| !declared.is_anonymous(name));
    let attempt = LoginAttempt { user: counted, address: request.address };
    service.throttle.check(attempt).await?;
    let blocks = service.blocks.current().await;
    if blocks.forbids(name.as_ref().map(UserName::as_str), request.address) {
        // It is no failed guess, so the throttle does not count it.
        return Err(LoginRefusal::Rejected(Rejection::Blocked));
    }
    let user = match &name {
        None => None,
        Some(name) => find_user(service, name).await?.map(|user| (name, user)),
    };
    let verdict = match &user {
        Some((name, user)) => verify(service, name, user, request).await?,
        None => {
            // Takes as long as for an existing user, so that the duration does not reveal which names exist.
            let user = name.as_ref().map_or(request.user.as_str(), UserName::as_str);
            service.passwords.verify_unknown(&request.password, user).await?;
            Err(Rejection::UnknownUser)
        }
    };
    match verdict {
        Ok((account, proof)) => {
            service.throttle.succeeded(attempt).await?;
            let rule = match proof {
                LoginProof::Certificate(rule) => Some(rule.to_string()),
                LoginProof::Password(digest) => {
                    // The digest is cached only for accepted logins. Otherwise the short duration of the
                    // next response would reveal that the password is right although the login is refused
                    // for another reason.
                    if let Some(digest) = digest {
                        service.cache.insert(digest);
                    }
                    None
                }
            };
            Ok(AcceptedLogin { account, rule })
        }
        Err(rejection) => {
            service.throttle.failed(attempt).await?;
            Err(LoginRefusal::Rejected(rejection))
        }
    }
}

/// Finds the user, and clears the password cache if accounts in Redis have changed.
async fn find_user(service: &Service, name: &UserName) -> Result<Option<User>, LoginRefusal> {
    let (found, generation) = service.accounts.find(name).await.map_err(LoginRefusal::Unavailable)?;
    if let Some(generation) = generation {
        service.cache.observe(generation);
    }
    Ok(found.map(|found| found.user))
}

/// Verifies the proof of an existing user, then the user's login conditions.
async fn verify<'a>(
    service: &Service,
    name: &UserName,
    user: &'a User,
    request: &AuthenticateRequest,
) -> Result<Result<(Account, LoginProof<'a>), Rejection>, LoginRefusal> {
    let Some(proof) = prove(service, name, user, request).await? else {
        return Ok(Err(Rejection::WrongPassword));
    };
    if !user.enabled {
        return Ok(Err(Rejection::Disabled));
    }
    // If a group is missing, its restrictions are unknown, and the login must be refused.
    let effective = service.accounts.effective(user).await.map_err(LoginRefusal::Unavailable)?;
    match effective.access.check(request.address, SystemTime::now()) {
        Ok(()) => {}
        Err(UnmetCondition::Address) => return Ok(Err(Rejection::AddressNotAllowed)),
        Err(UnmetCondition::Time) => return Ok(Err(Rejection::TimeNotAllowed)),
    }
    let rule = match &proof {
        LoginProof::Certificate(rule) => Some(*rule),
        LoginProof::Password(_) => None,
    };
    let account = Account {
        groups: user.groups.iter().map(ToString::to_string).collect(),
        version: Some(version(user, rule)),
        quota_directory: service.accounts.declared.quota_directory(name),
        ..effective.account(name.to_string(), user.home.as_str().to_owned(), user.admin)
    };
    Ok(Ok((account, proof)))
}

/// Checks the client certificate, then the password. `None`: neither is right.
async fn prove<'a>(
    service: &Service,
    name: &UserName,
    user: &'a User,
    request: &AuthenticateRequest,
) -> Result<Option<LoginProof<'a>>, QueueFull> {
    if let Some(rule) = matching_rule(user, request) {
        return Ok(Some(LoginProof::Certificate(rule)));
    }
    let hash = match &user.credential {
        Credential::AnyPassword => return Ok(Some(LoginProof::Password(None))),
        Credential::Hash(hash) => hash,
    };
    // The digest includes the hash that was just read, so a cached entry is as good as a computation.
    let digest = service.cache.digest(name, hash, &request.password);
    if service.cache.contains(&digest) {
        metrics::cache_hit();
        return Ok(Some(LoginProof::Password(None)));
    }
    let right = service.passwords.verify(&request.password, hash).await?;
    Ok(right.then_some(LoginProof::Password(Some(digest))))
}

/// The first entry of the user's `certificates` that matches the certificate. The node has verified the
/// certificate.
fn matching_rule<'a>(user: &'a User, request: &AuthenticateRequest) -> Option<&'a CertificateRule> {
    let mut rules = user.certificates.iter();
    match (&request.client_certificate, &request.certificate) {
        (Some(certificate), _) => rules.find(|rule| rule.matches(certificate)),
        // An older node sends the subject as plain text. Only a text that stands for exactly one subject
        // is accepted.
        (None, Some(text)) => {
            let subject = text.parse::<DistinguishedName>().ok().filter(DistinguishedName::is_plain)?;
            rules.find(|rule| rule.matches_subject(&subject))
        }
        (None, None) => None,
    }
}
