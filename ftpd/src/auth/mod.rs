//! Login decisions: by authd, or from the users of a standalone node.

mod authorized;
pub mod http;
pub mod local;
pub mod probe;

use std::{
    fmt,
    net::IpAddr,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use common::{
    auth_api::{Account, AuthenticateRequest, ErrorBody, ErrorCode, PastLogin, Rejection, Verdict},
    certificate::{ClientCertificate, DistinguishedName},
    node::NodeName,
    process::logging::chain,
    secret::Secret,
    session::SessionId,
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use hyper::{
    StatusCode,
    header::{HeaderValue, RETRY_AFTER},
};
use tokio::time::{Instant, timeout_at};

use self::{
    http::{AuthdInstance, AuthdUrl},
    local::{LocalUsers, PasswordVerifier},
};
use crate::metrics;

/// Time limit for connecting to an authd instance.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The user names of [`Authentication::Demo`], as in the reference system.
pub const DEMO_USERS: [&str; 3] = ["demo", "admin", "test"];

/// The source of users and passwords.
#[derive(Debug)]
pub enum Authentication {
    /// Users of a standalone node (`user`, `user_file`).
    Users(LocalUsers),
    /// [`DEMO_USERS`] with any password. Allowed on loopback only.
    Demo,
    Authd {
        urls: Vec<AuthdUrl>,
        /// The header with the node's token (`authd_token_file`).
        authorization: Option<HeaderValue>,
        /// Time limit of a login, over all instances (`authd_timeout`).
        timeout: Duration,
    },
}

/// One login attempt.
pub struct Attempt {
    pub user: String,
    pub password: Secret,
    pub address: IpAddr,
    pub session: SessionId,
    pub tls: bool,
    /// The verified client certificate.
    pub certificate: Option<ClientCertificate>,
}

/// Reason why a login attempt failed.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The login was rejected. The reason is for the log and the metrics; the client gets the same reply for
    /// every reason.
    #[error("{0}")]
    Rejected(Rejection),
    /// Seconds after which the client may try again.
    #[error("too many failed logins; retry after {0} seconds")]
    Throttled(u64),
    /// No authd instance decided in time. The text lists the failure of each, for the log.
    #[error("no authd decided the login: {0}")]
    Unavailable(String),
}

/// Source of login decisions.
pub enum Authenticator {
    Users(PasswordVerifier),
    Demo,
    Authd(Authd),
}

/// The authd instances of a cluster.
pub struct Authd {
    instances: Vec<AuthdInstance>,
    timeout: Duration,
    node: NodeName,
    /// Index of the instance that answered last. It is asked first.
    preferred: AtomicUsize,
}

impl Authenticator {
    pub fn new(settings: Authentication, node: NodeName) -> Self {
        match settings {
            Authentication::Users(users) => Self::Users(PasswordVerifier::new(users)),
            Authentication::Demo => Self::Demo,
            Authentication::Authd { urls, authorization, timeout } => {
                let connect_timeout = timeout.min(CONNECT_TIMEOUT);
                let instance = |url| AuthdInstance::new(url, authorization.clone(), connect_timeout);
                Self::Authd(Authd {
                    instances: urls.into_iter().map(instance).collect(),
                    timeout,
                    node,
                    preferred: AtomicUsize::new(0),
                })
            }
        }
    }

    /// Returns the user's account if the login is accepted.
    ///
    /// # Errors
    /// See [`LoginError`].
    pub async fn authenticate(&self, attempt: Attempt) -> Result<Account, LoginError> {
        match self {
            Self::Users(users) if users.is_right(&attempt.user, &attempt.password).await => {
                Ok(local_account(&attempt.user, "/"))
            }
            Self::Users(users) => Err(LoginError::Rejected(match users.knows(&attempt.user) {
                true => Rejection::WrongPassword,
                false => Rejection::UnknownUser,
            })),
            Self::Demo => {
                let name = DEMO_USERS.iter().find(|name| **name == attempt.user);
                let account = name.map(|name| local_account(name, "/"));
                account.ok_or(LoginError::Rejected(Rejection::UnknownUser))
            }
            Self::Authd(authd) => authd.authenticate(attempt).await,
        }
    }

    /// Returns true if authd decides the logins. Its decision may change later; a standalone node reads its
    /// users only once.
    pub fn asks_authd(&self) -> bool {
        matches!(self, Self::Authd(_))
    }

    /// Asks authd which of these logins it would still accept, without their passwords. Returns one verdict
    /// for each, in the same order. `None`: the node does not use authd, or every authd is an older version
    /// without this request.
    ///
    /// # Errors
    /// No authd instance gave verdicts in time. The text lists the failure of each, for the log.
    pub async fn authorized(&self, logins: &[PastLogin]) -> Result<Option<Vec<Verdict>>, String> {
        match self {
            Self::Authd(authd) => authd.authorized(logins).await,
            Self::Users(_) | Self::Demo => Ok(None),
        }
    }
}

fn local_account(name: &str, home: &str) -> Account {
    Account { user: name.to_owned(), home: home.to_owned(), ..Account::default() }
}

impl Authd {
    async fn authenticate(&self, attempt: Attempt) -> Result<Account, LoginError> {
        let request = AuthenticateRequest {
            user: attempt.user,
            password: attempt.password,
            address: attempt.address,
            node: self.node.clone(),
            session: attempt.session,
            tls: attempt.tls,
            certificate: None,
            client_certificate: attempt.certificate,
        };
        let started = Instant::now();
        match self.first_answer(|instance| ask(instance, &request)).await {
            Ok((number, answer)) => {
                self.preferred.store(number, Ordering::Relaxed);
                metrics::authd_answered("answered", started.elapsed());
                answer
            }
            Err(failures) => {
                metrics::authd_answered("unavailable", started.elapsed());
                Err(LoginError::Unavailable(texts(&failures)))
            }
        }
    }

    /// The first answer of an instance, with its index. Asks the preferred instance first, and the next one
    /// when one has failed, or has not answered within its share of `timeout`. An instance that is slow is
    /// not given up: its answer may still be the first.
    ///
    /// # Errors
    /// No instance has answered within `timeout`: the failure of each.
    async fn first_answer<'a, T, E, F: Future<Output = Result<T, E>>>(
        &'a self,
        ask: impl Fn(&'a AuthdInstance) -> F,
    ) -> Result<(usize, T), Vec<InstanceFailure<'a, E>>> {
        let end = Instant::now() + self.timeout;
        let (first, count) = (self.preferred.load(Ordering::Relaxed), self.instances.len());
        let mut failed = Vec::new();
        let mut running = FuturesUnordered::new();
        for asked in 1..=count {
            let number = (first + asked - 1) % count;
            let answer = ask(&self.instances[number]);
            running.push(async move { (number, answer.await) });
            let now = Instant::now();
            let others = (count - asked) as u32;
            let share = end.saturating_duration_since(now) / (others + 1);
            let until = if others == 0 { end } else { now + share };
            // `None`: each that was asked has failed.
            while let Ok(Some((number, result))) = timeout_at(until, running.next()).await {
                match result {
                    Ok(answer) => return Ok((number, answer)),
                    Err(reason) => failed.push((number, reason)),
                }
            }
        }
        let failures = self.instances.iter().enumerate().map(|(number, instance)| {
            let position = failed.iter().position(|(failed, _)| *failed == number);
            InstanceFailure { instance, reason: position.map(|at| failed.swap_remove(at).1) }
        });
        Err(failures.collect())
    }
}

/// An instance of authd that has not answered.
struct InstanceFailure<'a, E> {
    instance: &'a AuthdInstance,
    /// `None`: the time was over.
    reason: Option<E>,
}

impl<E: fmt::Display> fmt::Display for InstanceFailure<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Some(reason) => write!(f, "{}: {reason}", self.instance.url),
            None => write!(f, "{}: no answer in time", self.instance.url),
        }
    }
}

/// The failures as one text, for the log.
fn texts<E: fmt::Display>(failures: &[InstanceFailure<'_, E>]) -> String {
    failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Asks one instance. The outer error is the reason why the instance did not decide.
async fn ask(
    instance: &AuthdInstance,
    request: &AuthenticateRequest,
) -> Result<Result<Account, LoginError>, String> {
    let answer = post(instance, request).await?;
    if answer.status == StatusCode::OK {
        return serde_json::from_slice(&answer.body)
            .map(Ok)
            .map_err(|error| format!("its response is not an account: {error}"));
    }
    let Ok(ErrorBody { error, message, reason }) = serde_json::from_slice(&answer.body) else {
        return Err(format!("answered {}", answer.status));
    };
    match error {
        ErrorCode::InvalidCredentials => Ok(Err(LoginError::Rejected(reason.unwrap_or_default()))),
        ErrorCode::Throttled => {
            let seconds = answer.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            Ok(Err(LoginError::Throttled(seconds.unwrap_or(1))))
        }
        ErrorCode::Unauthorized => Err(refused_token()),
        ErrorCode::InvalidRequest if message.contains(NEW_FIELD) && request.client_certificate.is_some() => {
            Box::pin(ask(instance, &for_older_authd(request))).await
        }
        _ => Err(format!("answered {}: {message}", answer.status)),
    }
}

async fn post(instance: &AuthdInstance, request: &AuthenticateRequest) -> Result<http::HttpResponse, String> {
    // `to_string` fails only for maps with keys that are not strings and for failing `Serialize`
    // implementations; the request has neither.
    let body = || serde_json::to_string(request).expect("a request is plain data");
    instance.post_authenticate(body).await.map_err(|error| chain(&error))
}

/// A field that older versions of authd do not know.
const NEW_FIELD: &str = "client_certificate";

/// The request in the form of older versions of authd. They expect the certificate's subject as text,
/// in which two different subjects with special characters can look the same, so only a subject without
/// special characters is sent.
fn for_older_authd(request: &AuthenticateRequest) -> AuthenticateRequest {
    let subject = request.client_certificate.as_ref().and_then(|certificate| certificate.subject.as_ref());
    let plain = subject.filter(|subject| DistinguishedName::is_plain(subject));
    AuthenticateRequest {
        certificate: plain.map(ToString::to_string),
        client_certificate: None,
        ..request.clone()
    }
}

/// The error text for an authd response 401.
fn refused_token() -> String {
    "it refuses this node's token (401): authd_token_file differs from authd's node_token_file".to_owned()
}
