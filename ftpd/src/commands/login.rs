//! USER, PASS, ACCT, REIN (RFC 959 section 4.1.1), HOST (RFC 7151), CLNT.

use std::{sync::Arc, time::Instant};

use common::{
    auth_api::{Account, PastLogin, Rejection, Verdict},
    clock::unix_seconds,
    password::{MAX_PASSWORD, MAX_USER_NAME},
    policy::Quota,
    process::logging::chain,
    registry::{Revision, SessionEntry, SessionRefused},
    secret::Secret,
    session::{SessionLimits, SessionRecord},
};

use super::security;
use crate::{
    access::AccessRules,
    audit::{AuditedCommand, SessionAudit, SessionEnd},
    auth::{Attempt, LoginError},
    data::Resumption,
    events::EventActor,
    failure_log::FailureLog,
    identity::{SessionIdentity, log_session},
    jail::{FileError, Jail},
    limits::{pace::SessionBandwidth, quota::HomeQuota},
    metrics,
    node::Node,
    protocol::{
        Code, LoggedInCommand, Reply,
        command::{Algorithm, Password},
        reply::ReplyText,
    },
    representation::Representation,
    revocation,
    session::{EndedByNode, LoggedIn, LoginState, Outcome, Session, SessionCount},
    virtual_path::VirtualPath,
    work::Task,
};

/// USER. The reply is the same whether the user exists or not.
pub(super) fn user(session: &mut Session, name: Vec<u8>) -> Reply {
    if session.is_logged_in() {
        return Reply::new(Code::BAD_SEQUENCE, "Already logged in; send REIN to log out");
    }
    if security::needs_encryption(session) {
        return encryption_required();
    }
    session.state = LoginState::Named(name);
    Reply::new(Code::NEED_PASSWORD, "Password required")
}

fn encryption_required() -> Reply {
    Reply::new(Code::NOT_LOGGED_IN, "TLS is required; send AUTH TLS first")
}

/// ACCT: users have no account in the sense of RFC 959.
pub(super) fn acct() -> Reply {
    Reply::new(Code::SUPERFLUOUS, "No account is needed")
}

/// REIN: returns to the state after the greeting.
pub(super) fn rein(session: &mut Session) -> Reply {
    session.note_end("rein");
    session.state = LoginState::Greeted;
    session.handle.set_user(None);
    Reply::new(Code::READY, "Ready for a new user")
}

/// HOST: accepts every name, or only those in `host_names` (RFC 7151 section 3.2).
pub(super) fn host(session: &mut Session, name: &str) -> Reply {
    match session.state {
        LoginState::Greeted => {}
        LoginState::Named(_) => return Reply::new(Code::BAD_SEQUENCE, "Send HOST before USER"),
        LoginState::LoggedIn(_) => return Reply::new(Code::BAD_SEQUENCE, "HOST is not allowed after login"),
    }
    let names = &session.node.network.host_names;
    if names.is_empty() || names.iter().any(|known| known.eq_ignore_ascii_case(name)) {
        Reply::new(Code::READY, "Host accepted")
    } else {
        Reply::new(Code::UNSUPPORTED_PARAMETER, "Unknown host")
    }
}

/// CLNT: only logs the name of the client program.
pub(super) fn client(session: &mut Session, name: &[u8]) -> Reply {
    log::debug!(
        session:% = session.handle.id, address:% = session.addresses.client.ip();
        "client program: {:?}", String::from_utf8_lossy(&name[..name.len().min(100)])
    );
    session.handle.activity.note_client(name);
    Reply::new(Code::OK, "Noted")
}

/// PASS: authenticates the user, registers the session, opens the home.
pub(super) async fn pass(session: &mut Session, password: Password) -> Outcome {
    let name = match std::mem::replace(&mut session.state, LoginState::Greeted) {
        LoginState::Named(name) => name,
        state => {
            session.state = state;
            return Reply::new(Code::BAD_SEQUENCE, "Send USER before PASS").into();
        }
    };
    let attempt = Attempt {
        // Names of users are UTF-8. Any other name gets U+FFFD here, and is rejected as unknown.
        user: String::from_utf8_lossy(&name).into_owned(),
        password: password_text(password.expose()),
        address: session.addresses.client.ip(),
        session: session.handle.id,
        tls: session.security.is_encrypted(),
        certificate: session.security.handshake.as_ref().and_then(|tls| tls.certificate.clone()),
    };
    let identity = SessionIdentity::new(session.handle.id, logged_name(&attempt.user), attempt.address);
    let identity = Arc::new(identity);
    match decide(session, &identity, attempt).await {
        Ok(reply) => Outcome::Reply(reply),
        Err(LoginRefusal { reply, closes, reason, detail }) => {
            session.handle.set_user(None);
            let tls = session.security.handshake.as_deref();
            let audit = SessionAudit::new(&session.node.audit, &session.node.name, &identity, &[], tls);
            audit.login(reply.code(), Some((reason, detail)));
            if closes { Outcome::Close(reply) } else { Outcome::Reply(reply) }
        }
    }
}

/// A login that was refused.
struct LoginRefusal {
    reply: Reply,
    /// The connection ends.
    closes: bool,
    /// The reason in the audit trail, and a text for people.
    reason: &'static str,
    detail: String,
}

impl LoginRefusal {
    /// A refusal after which the connection ends.
    fn closing(reply: Reply, reason: &'static str, detail: impl Into<String>) -> Self {
        Self { reply, closes: true, reason, detail: detail.into() }
    }
}

/// Decides the login, and logs the user in.
async fn decide(
    session: &mut Session,
    identity: &Arc<SessionIdentity>,
    attempt: Attempt,
) -> Result<Reply, LoginRefusal> {
    if let Some(rejection) = reject_too_long(&attempt) {
        return Err(reject(session, identity, &LoginError::Rejected(rejection)));
    }
    let node = Arc::clone(&session.node);
    // Before authd is asked, so that orders to end the user's sessions reach this login from now on.
    session.handle.set_user(Some(&attempt.user));
    let revision = *node.registry.revision().borrow();
    let began = Instant::now();
    let decision = node.authenticator.authenticate(attempt).await;
    metrics::login_step("password", began.elapsed());
    match decision {
        Ok(account) if account.tls.control && !session.security.is_encrypted() => {
            let detail = "the account requires TLS";
            log_session!(log::Level::Warn, identity; "login refused: {detail}");
            metrics::login("not_encrypted");
            let (reply, detail) = (encryption_required(), detail.to_owned());
            Err(LoginRefusal { reply, closes: false, reason: "not_encrypted", detail })
        }
        Ok(account) => {
            let accepted = log_in(session, identity, account, revision).await?;
            metrics::login_step("total", began.elapsed());
            Ok(accepted)
        }
        Err(error) => Err(reject(session, identity, &error)),
    }
}

/// Maximum length of a user name in the log, in characters. No user has a longer name. Without a limit,
/// failed logins could fill the log with lines of 8 KiB.
const LOGGED_NAME: usize = 64;

/// The name in the log: at most [`LOGGED_NAME`] characters.
fn logged_name(name: &str) -> String {
    match name.char_indices().nth(LOGGED_NAME) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

/// Rejects names and passwords that are too long for any user. As JSON they might exceed the limit of authd's
/// requests, and would count as an outage of authd.
fn reject_too_long(attempt: &Attempt) -> Option<Rejection> {
    if attempt.user.len() > MAX_USER_NAME {
        return Some(Rejection::UnknownUser);
    }
    (attempt.password.expose().len() > MAX_PASSWORD).then_some(Rejection::WrongPassword)
}

/// Decodes a password as UTF-8, or else as Latin-1, which older clients send.
fn password_text(password: &[u8]) -> Secret {
    match str::from_utf8(password) {
        Ok(text) => Secret::new(text),
        Err(_) => Secret::new(password.iter().map(|byte| char::from(*byte)).collect::<String>()),
    }
}

/// Logs and counts a failed login, and replies to it.
fn reject(session: &mut Session, identity: &SessionIdentity, error: &LoginError) -> LoginRefusal {
    let reason = match error {
        LoginError::Rejected(rejection) => rejection.as_str(),
        LoginError::Throttled(_) => "throttled",
        LoginError::Unavailable(_) => "unavailable",
    };
    log_session!(log::Level::Warn, identity, reason;
        "login failed: {error}"
    );
    let (reply, closes) = match error {
        LoginError::Rejected(rejection) => {
            metrics::login("rejected");
            metrics::login_rejected(rejection.as_str());
            session.failed_logins += 1;
            if session.failed_logins >= session.node.limits.login_failures {
                metrics::limit_reached("max_login_failures");
                (unavailable("Too many failed logins"), true)
            } else {
                (Reply::new(Code::NOT_LOGGED_IN, "Login incorrect"), false)
            }
        }
        LoginError::Throttled(seconds) => {
            metrics::login("throttled");
            (unavailable(format!("Too many failed logins; try again in {seconds} s")), true)
        }
        LoginError::Unavailable(_) => {
            metrics::login("unavailable");
            (login_unavailable(), true)
        }
    };
    LoginRefusal { reply, closes, reason, detail: error.to_string() }
}

fn unavailable(text: impl Into<ReplyText>) -> Reply {
    Reply::new(Code::SERVICE_UNAVAILABLE, text)
}

fn login_unavailable() -> Reply {
    unavailable("Login service temporarily unavailable; try again later")
}

/// Logs in a user whose password was accepted. `revision` is the accounts' revision from before authd was
/// asked.
///
/// # Errors
/// The refusal; the connection ends after it.
async fn log_in(
    session: &mut Session,
    identity: &Arc<SessionIdentity>,
    account: Account,
    revision: Revision,
) -> Result<Reply, LoginRefusal> {
    let node = Arc::clone(&session.node);
    let identity = Arc::clone(identity);
    let began = Instant::now();
    let entry = register(&node, &identity, &account).await?;
    let registered = Instant::now();
    metrics::login_step("registry", registered - began);
    let access = Arc::new(AccessRules::new(&account));
    let home = open_home(&node, &identity, &account, access.has_rules()).await;
    let OpenedHome { jail, quota_directory } = home.map_err(|reason| {
        metrics::login("no_home");
        log_session!(
            log::Level::Error, identity, home = account.home.as_str();
            "login refused: the home cannot be used: {reason}"
        );
        LoginRefusal::closing(unavailable("Home directory is not available"), "no_home", reason)
    })?;
    let jail = Arc::new(jail);
    let quota = match quota_directory {
        Some((path, directory)) => {
            Some(HomeQuota::open(&node.registry, &node.home_counts, &account, &jail, &path, directory).await)
        }
        None => None,
    };
    metrics::login_step("home", registered.elapsed());
    confirm_if_changed(session, &identity, &account, revision).await?;
    note_event(&node, &identity, &account, &jail).await?;
    let handshake = session.security.handshake.as_deref();
    let audit = SessionAudit::new(&node.audit, &node.name, &identity, &account.groups, handshake);
    let audit = Arc::new(audit);
    audit.login(Code::LOGGED_IN, None);
    node.connections.note_login(&session.handle);
    metrics::login("accepted");
    log_session!(log::Level::Info, identity; "logged in");
    let representation = Representation::new(node.ascii_conversion);
    let keeps_ticket = session.security.handshake.as_ref().is_some_and(|tls| tls.version == "TLSv1.2");
    session.state = LoginState::LoggedIn(Box::new(LoggedIn {
        failures: Arc::new(FailureLog::new(&node, &identity, &audit, &jail)),
        end: SessionEnd::new(&audit, &session.handle),
        audited: AuditedCommand::new("PASS", &LoggedInCommand::Pwd),
        task: Arc::new(Task { identity: Arc::clone(&identity), verb: "PASS", path: None }),
        owner: account.user.as_str().into(),
        node,
        identity,
        addresses: session.addresses,
        bandwidth: SessionBandwidth::new(&account.bandwidth),
        account,
        access,
        jail,
        quota,
        cwd: VirtualPath::root(),
        representation,
        data_port: None,
        is_private: session.security.is_private,
        epsv_only: false,
        rename_from: None,
        offset: 0,
        range: None,
        announced_size: None,
        facts: Default::default(),
        resumption: Arc::new(Resumption::new(keeps_ticket)),
        hash: Algorithm::Sha256,
        _entry: entry,
        _count: SessionCount::start(),
    }));
    Ok(Reply::new(Code::LOGGED_IN, "Login successful"))
}

/// Notes the event of a login, if a receiver wants it, before the client is told.
async fn note_event(
    node: &Arc<Node>,
    identity: &Arc<SessionIdentity>,
    account: &Account,
    jail: &Jail,
) -> Result<(), LoginRefusal> {
    let events = node.events.of_session(|| EventActor {
        session: identity.session,
        user: account.user.clone(),
        groups: account.groups.clone(),
        address: identity.address,
    });
    if !events.want_login() {
        return Ok(());
    }
    let home = jail.path_in_storage(&VirtualPath::root());
    let task = Task { identity: Arc::clone(identity), verb: "PASS", path: None };
    let noted = node.workers.login(Arc::new(task), move || events.note_login(&home)).await;
    let noted =
        noted.map_err(|stuck| stuck.to_string()).and_then(|noted| noted.map_err(|error| chain(&error)));
    noted.map_err(|reason| {
        metrics::login("unavailable");
        log_session!(
            log::Level::Error, identity, setting = "events_file";
            "login refused: its event cannot be noted on the storage: {reason}"
        );
        LoginRefusal::closing(login_unavailable(), "unavailable", reason)
    })
}

/// Registers the session in the registry, which enforces the limits on sessions.
async fn register(
    node: &Node,
    identity: &SessionIdentity,
    account: &Account,
) -> Result<SessionEntry, LoginRefusal> {
    let record = SessionRecord {
        id: identity.session,
        node: node.name.clone(),
        user: account.user.clone(),
        address: identity.address,
        since: unix_seconds(),
    };
    let limits = SessionLimits {
        per_user: account.limits.sessions,
        per_address: Some(node.limits.sessions_per_address),
        per_user_and_address: account.limits.sessions_per_address,
    };
    node.registry.open_session(record, limits).await.map_err(|refusal| {
        metrics::login("limited");
        log_session!(log::Level::Warn, identity; "login refused: {refusal}");
        let reply = match refusal {
            SessionRefused::UserLimit(_) => unavailable("Too many sessions of this user"),
            SessionRefused::AddressLimit(_) | SessionRefused::UserAddressLimit(_) => {
                unavailable("Too many sessions from your address")
            }
            SessionRefused::RegistryAway => login_unavailable(),
        };
        LoginRefusal::closing(reply, "limited", refusal.to_string())
    })
}

/// Asks authd again if the accounts have changed during the login, and ends the session if it was requested
/// meanwhile.
async fn confirm_if_changed(
    session: &Session,
    identity: &SessionIdentity,
    account: &Account,
    revision: Revision,
) -> Result<(), LoginRefusal> {
    let login =
        PastLogin { user: account.user.clone(), version: account.version.clone(), address: identity.address };
    let must_confirm = session.handle.log_in(login.clone());
    // After `log_in`: either the check of all sessions includes this one, or the revision differs here.
    if must_confirm || *session.node.registry.revision().borrow() != revision {
        confirm(session, &login, must_confirm).await?;
    }
    match EndedByNode::at_once(&session.handle) {
        None => Ok(()),
        Some(EndedByNode { reply, reason }) => {
            metrics::session_ended(reason);
            metrics::login("revoked");
            let detail = "the end of the session was requested before the login was complete";
            log_session!(log::Level::Warn, identity; "login refused: {detail}");
            Err(LoginRefusal::closing(reply, "revoked", detail))
        }
    }
}

/// Asks authd again about a login, and revokes it if authd no longer accepts it. With `needs_answer` a login
/// without authd's answer is refused: all sessions of the user were ended meanwhile.
async fn confirm(session: &Session, login: &PastLogin, needs_answer: bool) -> Result<(), LoginRefusal> {
    let verdict = revocation::still_authorized(&session.node, login).await;
    let error = match verdict {
        Ok(Some(Verdict::Stay)) => return Ok(()),
        // authd of an earlier version has accepted the login, and does not support the question.
        Ok(None) if !needs_answer => return Ok(()),
        Ok(None) => "authd is of an earlier version, which does not support the question".to_owned(),
        Ok(Some(Verdict::End { reason })) => {
            if session.handle.revoke(login, reason) {
                revocation::log_revocation(&session.handle, login, reason);
            }
            return Ok(());
        }
        Ok(Some(Verdict::Undecided)) => "authd cannot decide at this time".to_owned(),
        Err(error) => error,
    };
    metrics::login("unavailable");
    log::warn!(
        session:% = session.handle.id, user = login.user.as_str(), address:% = login.address;
        "login failed: accounts have changed meanwhile, and authd did not confirm the login: {error}"
    );
    Err(LoginRefusal::closing(login_unavailable(), "unavailable", error))
}

/// A user's home, opened for a session.
struct OpenedHome {
    jail: Jail,
    /// The directory of the quota, if there is a quota: its canonical path, and its virtual path.
    quota_directory: Option<(Vec<u8>, VirtualPath)>,
}

/// Opens the user's home and shared folders. With `has_rules`, permissions depend on the path, so that
/// symbolic links are refused. A folder that cannot be opened is left out and logged.
async fn open_home(
    node: &Arc<Node>,
    identity: &Arc<SessionIdentity>,
    account: &Account,
    has_rules: bool,
) -> Result<OpenedHome, String> {
    let virtual_path =
        |path: &str| VirtualPath::root().join(path.as_bytes()).map_err(|error| error.to_string());
    let home = virtual_path(&account.home)?;
    let folders = account.folders.iter();
    let folders: Vec<_> = folders
        .map(|folder| Ok((virtual_path(folder.path.as_str())?, virtual_path(folder.target.as_str())?)))
        .collect::<Result<_, String>>()?;
    let quota_directory = match &account.quota_directory {
        _ if account.quota == Quota::default() => None,
        Some(directory) => Some(virtual_path(directory.as_str())?),
        None => Some(VirtualPath::root()),
    };
    let shared = Arc::clone(node);
    // In one operation: a thread hop costs as much as the work.
    let task = Task { identity: Arc::clone(identity), verb: "PASS", path: Some(home.clone()) };
    let opened = node
        .workers
        .login(Arc::new(task), move || {
            let storage = &shared.storage;
            let mut jail = Jail::open(&storage.root, &home, storage.create_homes, storage.modes)?;
            jail.set_locks(storage.locks);
            if storage.sync_uploads {
                jail.sync_names();
            }
            if has_rules {
                jail.refuse_links();
            }
            if storage.resolve_links {
                jail.resolve_links();
            }
            let mut left_out = Vec::new();
            for (path, target) in folders {
                if let Err(error) = jail.add_folder(&storage.root, path.clone(), target, storage.create_homes)
                {
                    left_out.push((path, error));
                }
            }
            jail.share(&shared.directories)?;
            let quota_directory = match quota_directory {
                Some(directory) => Some((jail.quota_key(&directory)?, directory)),
                None => None,
            };
            Ok((OpenedHome { jail, quota_directory }, left_out))
        })
        .await
        .map_err(|stuck| stuck.to_string())?;
    let (home, left_out) = opened.map_err(|error: FileError| chain(&error))?;
    for filesystem in home.jail.filesystems() {
        node.workers.note_filesystem(*filesystem);
    }
    for (path, error) in left_out {
        log_session!(log::Level::Warn, identity,
            path:%;
            "shared folder left out: {}", chain(&error)
        );
    }
    Ok(home)
}
