//! `POST /v1/authenticate`: whether a login is right, and what its user may do.

use std::time::SystemTime;

use common::{
    auth_api::{Account, AuthenticateRequest, Rejection},
    certificate::{CertificateRule, ClientCertificate, DistinguishedName},
    login_conditions::UnmetCondition,
    process::logging::chain,
    registry::LinkError,
};

use crate::{
    Service,
    accounts::{
        cache::VerificationDigest,
        name::UserName,
        password::QueueFull,
        stored::StoredError,
        user::{Credential, User, version},
    },
    error::ApiError,
    metrics,
    throttle::{LoginAttempt, Throttled},
};

/// Why a login is refused, as the log and the metrics tell it.
enum LoginRefusal {
    Rejected(Rejection),
    Throttled(Throttled),
    Busy,
    /// Whether the name is a user's, or what holds for the user, cannot be known now.
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
            // The log has it, beside the login.
            LoginRefusal::Unavailable(_) => Self::UnreadableAccount,
        }
    }
}

impl From<Throttled> for LoginRefusal {
    fn from(throttled: Throttled) -> Self {
        metrics::throttled(throttled.by);
        Self::Throttled(throttled)
    }
}

impl From<QueueFull> for LoginRefusal {
    fn from(_: QueueFull) -> Self {
        Self::Busy
    }
}

/// Decides one login, and says so in the log.
///
/// # Errors
/// The login is refused.
pub async fn authenticate(service: &Service, request: AuthenticateRequest) -> Result<Account, ApiError> {
    let decision = decide(service, &request).await;
    let result = decision.as_ref().map_or_else(LoginRefusal::as_str, |_| "accepted");
    metrics::login(result);
    // A name that is none may be long; the log shows its beginning.
    let user: String = request.user.chars().take(64).collect();
    let AuthenticateRequest { address, node, session, tls, .. } = &request;
    match &decision {
        // The node may still refuse the login, for a limit or for its storage.
        Ok(AcceptedLogin { rule: Some(rule), .. }) => {
            let key = request.client_certificate.as_ref().map(|shown| shown.key.to_string());
            let subject = subject(&request);
            log::info!(
                user, address:%, node:%, session:%, tls, result, subject = subject.as_deref(), key = key.as_deref(), rule = rule.as_str();
                "client certificate accepted"
            );
        }
        Ok(_) => log::info!(user, address:%, node:%, session:%, tls, result; "credentials accepted"),
        Err(LoginRefusal::Throttled(throttled)) => {
            let (by, wait) = (throttled.by.as_str(), throttled.wait.as_secs_f64());
            log::warn!(user, address:%, node:%, session:%, tls, result, by, wait; "login refused");
        }
        Err(refusal) => {
            match refusal {
                // The link's log says that Redis is away; what else it is must be put right.
                LoginRefusal::Unavailable(error) if !matches!(error, StoredError::Link(_)) => {
                    let error = chain(error);
                    log::error!(user, address:%, node:%, session:%, tls, result, error; "login refused");
                }
                _ => log::warn!(user, address:%, node:%, session:%, tls, result; "login refused"),
            }
        }
    }
    Ok(decision?.account)
}

/// The subject of the certificate that the node has verified, as text.
fn subject(request: &AuthenticateRequest) -> Option<String> {
    let shown = request.client_certificate.as_ref();
    let subject = shown.and_then(|shown: &ClientCertificate| shown.subject.as_ref());
    subject.map(ToString::to_string).or_else(|| request.certificate.clone())
}

/// A login that is right.
struct AcceptedLogin {
    account: Account,
    /// The entry of `certificates` by which it is, if not by the password.
    rule: Option<String>,
}

/// What shows that the client is the user.
enum LoginProof<'a> {
    /// This entry of the user's `certificates` matches.
    Certificate(&'a CertificateRule),
    /// The password, and how to remember it if it had to be computed.
    Password(Option<VerificationDigest>),
}

async fn decide(service: &Service, request: &AuthenticateRequest) -> Result<AcceptedLogin, LoginRefusal> {
    let name: Option<UserName> = request.user.parse().ok();
    let name = name.map(|name| service.accounts.canonical(name));
    // Any password is right for the anonymous user: there is nothing to guess.
    let guessed = name.as_ref().filter(|name| !service.accounts.is_anonymous(name));
    let attempt = LoginAttempt { user: guessed, address: request.address };
    service.throttle.check(attempt).await?;
    let found = match &name {
        None => None,
        Some(name) => {
            let (found, generation) = service.accounts.find(name).await.map_err(LoginRefusal::Unavailable)?;
            if let Some(generation) = generation {
                service.cache.observe(generation);
            }
            found.map(|found| (name, found.user))
        }
    };
    let verdict = match &found {
        Some((name, user)) => match prove(service, name, user, request).await? {
            None => Err(Rejection::WrongPassword),
            Some(_) if !user.enabled => Err(Rejection::Disabled),
            Some(proof) => {
                // Without one of the groups nobody knows what it would have forbidden.
                let effective = service.accounts.effective(user).await.map_err(LoginRefusal::Unavailable)?;
                match effective.access.check(request.address, SystemTime::now()) {
                    Ok(()) => {
                        let home = user.home.as_str().to_owned();
                        let rule = match &proof {
                            LoginProof::Certificate(rule) => Some(*rule),
                            LoginProof::Password(_) => None,
                        };
                        let version = Some(version(user, rule));
                        let account = effective.account(name.to_string(), home, user.admin);
                        let quota_directory = service.accounts.quota_directory(name);
                        Ok((Account { version, quota_directory, ..account }, proof))
                    }
                    Err(UnmetCondition::Address) => Err(Rejection::AddressNotAllowed),
                    Err(UnmetCondition::Time) => Err(Rejection::TimeNotAllowed),
                }
            }
        },
        None => {
            // The computation takes as long as for a user, so that its time does not tell.
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
                    // Only now: the time of the next answer would tell that the password of a login that was
                    // refused for another reason is right.
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

/// The entry of the user's `certificates` that matches the certificate which the node has verified.
fn matching_rule<'a>(user: &'a User, request: &AuthenticateRequest) -> Option<&'a CertificateRule> {
    let mut rules = user.certificates.iter();
    match (&request.client_certificate, &request.certificate) {
        (Some(certificate), _) => rules.find(|rule| rule.matches(certificate)),
        // The text of an older node: any other one may belong to several subjects.
        (None, Some(text)) => {
            let subject = text.parse::<DistinguishedName>().ok().filter(DistinguishedName::is_plain)?;
            rules.find(|rule| rule.matches_subject(&subject))
        }
        (None, None) => None,
    }
}

/// `None`: neither a certificate nor the password is the user's.
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
    // Keyed by the hash as it is in this look-up, an entry cannot say more than a computation.
    let digest = service.cache.digest(name, hash, &request.password);
    if service.cache.contains(&digest) {
        metrics::cache_hit();
        return Ok(Some(LoginProof::Password(None)));
    }
    let right = service.passwords.verify(&request.password, hash).await?;
    Ok(right.then_some(LoginProof::Password(Some(digest))))
}
