//! USER, PASS, REIN (RFC 959 section 4.1.1), HOST (RFC 7151), CLNT.

use std::sync::Arc;

use common::{
    auth_api::{Account, PastLogin, Rejection, Verdict},
    clock::unix_seconds,
    password::{MAX_PASSWORD, MAX_USER_NAME},
    policy::Quota,
    process::logging::chain,
    registry::{Revision, SessionRefused},
    secret::Secret,
    session::{SessionLimits, SessionRecord},
};

use super::security;
use crate::{
    access::AccessRules,
    auth::{Attempt, LoginError},
    connection,
    data::Resumes,
    failure_log::FailureLog,
    identity::SessionIdentity,
    jail::{FileError, Jail},
    limits::{pace::SessionBandwidth, quota::HomeQuota},
    metrics,
    node::Node,
    protocol::{
        Code, Reply,
        command::{Algorithm, Password},
        reply::ReplyText,
    },
    representation::Representation,
    revocation,
    session::{LoggedIn, Outcome, Session, SessionCount, State},
    virtual_path::VirtualPath,
    work::Task,
};

/// USER. The answer does not tell whether there is such a user.
pub fn user(session: &mut Session, name: Vec<u8>) -> Reply {
    if session.is_logged_in() {
        return Reply::new(Code::BAD_SEQUENCE, "Already logged in; REIN logs out");
    }
    if security::needs_encryption(session) {
        return Reply::new(Code::NOT_LOGGED_IN, "Encryption is required: AUTH TLS comes first");
    }
    session.state = State::Named(name);
    Reply::new(Code::NEED_PASSWORD, "Password required")
}

/// ACCT: no user has an account in the sense of RFC 959.
pub fn acct() -> Reply {
    Reply::new(Code::SUPERFLUOUS, "No account is needed")
}

/// REIN: back to the state after the greeting.
pub fn rein(session: &mut Session) -> Reply {
    session.state = State::Greeted;
    session.handle.set_user(None);
    Reply::new(Code::READY, "Ready for a new user")
}

/// HOST: accepted for every name unless the operator lists them (RFC 7151 section 3.2).
pub fn host(session: &mut Session, name: &str) -> Reply {
    match session.state {
        State::Greeted => {}
        State::Named(_) => return Reply::new(Code::BAD_SEQUENCE, "Send HOST before USER"),
        State::LoggedIn(_) => return Reply::new(Code::BAD_SEQUENCE, "HOST is not allowed after login"),
    }
    let names = &session.node.network.host_names;
    if names.is_empty() || names.iter().any(|known| known.eq_ignore_ascii_case(name)) {
        Reply::new(Code::READY, "Host accepted")
    } else {
        Reply::new(Code::UNSUPPORTED_PARAMETER, "Unknown host")
    }
}

/// CLNT: remembered by the log alone.
pub fn client(session: &mut Session, name: &[u8]) -> Reply {
    log::debug!(
        session:% = session.handle.id, address:% = session.ends.client.ip();
        "the client is {:?}", String::from_utf8_lossy(&name[..name.len().min(100)])
    );
    Reply::new(Code::OK, "Noted")
}

/// PASS: asks who may log in, registers the session, opens the home.
pub async fn pass(session: &mut Session, password: Password) -> Outcome {
    let name = match std::mem::replace(&mut session.state, State::Greeted) {
        State::Named(name) => name,
        state => {
            session.state = state;
            return Reply::new(Code::BAD_SEQUENCE, "USER comes before PASS").into();
        }
    };
    let attempt = Attempt {
        // No user has a name that is not UTF-8; U+FFFD in it is as wrong as any other name.
        user: String::from_utf8_lossy(&name).into_owned(),
        password: text(password.expose()),
        address: session.ends.client.ip(),
        session: session.handle.id,
        tls: session.security.is_encrypted(),
        certificate: session.security.handshake.as_ref().and_then(|tls| tls.certificate.clone()),
    };
    let subject = SessionIdentity::new(session.handle.id, shown_name(&attempt.user), attempt.address);
    if let Some(rejection) = impossible(&attempt) {
        return refuse(session, &subject, &LoginError::Rejected(rejection));
    }
    let node = Arc::clone(&session.node);
    // Before authd is asked: what the user loses from now on, the login loses too.
    session.handle.set_user(Some(&attempt.user));
    let revision = *node.registry.revision().borrow();
    let outcome = match node.authenticator.authenticate(attempt).await {
        Ok(account) if account.tls.control && !session.security.is_encrypted() => {
            log::warn!(
                session:% = subject.session, user = subject.user.as_str(), address:% = subject.address;
                "login refused: this user must use TLS"
            );
            metrics::login("not_encrypted");
            Reply::new(Code::NOT_LOGGED_IN, "Encryption is required: AUTH TLS comes first").into()
        }
        Ok(account) => match log_in(session, subject, account, revision).await {
            Ok(reply) => Outcome::Reply(reply),
            Err(reply) => Outcome::Close(reply),
        },
        Err(error) => refuse(session, &subject, &error),
    };
    if !session.is_logged_in() {
        session.handle.set_user(None);
    }
    outcome
}

/// Longest user name in the log, in characters. No user has a longer one, and a line of 8 KiB for each wrong
/// login would displace others.
const SHOWN_NAME: usize = 64;

/// The name as the log shows it: cut at [`SHOWN_NAME`] characters.
fn shown_name(name: &str) -> String {
    match name.char_indices().nth(SHOWN_NAME) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

/// Names and passwords that are too long for any user. Written as JSON they may be longer than authd's requests, and
/// would count as an authd that does not answer.
fn impossible(attempt: &Attempt) -> Option<Rejection> {
    if attempt.user.len() > MAX_USER_NAME {
        return Some(Rejection::UnknownUser);
    }
    (attempt.password.expose().len() > MAX_PASSWORD).then_some(Rejection::WrongPassword)
}

/// Passwords are UTF-8 where they can be; older clients send Latin-1.
fn text(password: &[u8]) -> Secret {
    match str::from_utf8(password) {
        Ok(text) => Secret::new(text),
        Err(_) => Secret::new(password.iter().map(|byte| char::from(*byte)).collect::<String>()),
    }
}

fn refuse(session: &mut Session, subject: &SessionIdentity, error: &LoginError) -> Outcome {
    let reason = match error {
        LoginError::Rejected(rejection) => rejection.as_str(),
        LoginError::Throttled(_) => "throttled",
        LoginError::Unavailable(_) => "unavailable",
    };
    log::warn!(
        session:% = subject.session, user = subject.user.as_str(), address:% = subject.address, reason;
        "login failed: {error}"
    );
    match error {
        LoginError::Rejected(rejection) => {
            metrics::login("rejected");
            metrics::login_rejected(rejection.as_str());
            session.failures += 1;
            if session.failures >= session.node.limits.login_failures {
                metrics::limit_reached("max_login_failures");
                return Outcome::Close(unavailable("Too many failed logins"));
            }
            Reply::new(Code::NOT_LOGGED_IN, "Login incorrect").into()
        }
        LoginError::Throttled(seconds) => {
            metrics::login("throttled");
            Outcome::Close(unavailable(format!("Too many failed logins; try again in {seconds} s")))
        }
        LoginError::Unavailable(_) => {
            metrics::login("unavailable");
            Outcome::Close(unavailable("Logins are not possible at this time; try again later"))
        }
    }
}

fn unavailable(text: impl Into<ReplyText>) -> Reply {
    Reply::new(Code::SERVICE_UNAVAILABLE, text)
}

/// `revision`: of the accounts, before authd was asked.
async fn log_in(
    session: &mut Session,
    subject: SessionIdentity,
    account: Account,
    revision: Revision,
) -> Result<Reply, Reply> {
    let node = Arc::clone(&session.node);
    let subject = Arc::new(subject);
    let record = SessionRecord {
        id: subject.session,
        node: node.name.clone(),
        user: account.user.clone(),
        address: subject.address,
        since: unix_seconds(),
    };
    let limits = SessionLimits {
        per_user: account.limits.sessions,
        per_address: Some(node.limits.sessions_per_address),
        per_user_and_address: account.limits.sessions_per_address,
    };
    let entry = node.registry.open_session(record, limits).await.map_err(|refusal| {
        metrics::login("limited");
        log::warn!(
            session:% = subject.session, user = subject.user.as_str(), address:% = subject.address;
            "login refused: {refusal}"
        );
        match refusal {
            SessionRefused::UserLimit(_) => unavailable("Too many sessions of this user"),
            SessionRefused::AddressLimit(_) | SessionRefused::UserAddressLimit(_) => {
                unavailable("Too many sessions from your address")
            }
            SessionRefused::RegistryAway => {
                unavailable("Logins are not possible at this time; try again later")
            }
        }
    })?;
    let access = Arc::new(AccessRules::new(&account));
    let home = open_home(&node, &subject, &account, access.has_rules()).await;
    let (jail, counted) = home.map_err(|reason| {
        metrics::login("no_home");
        log::error!(
            session:% = subject.session, user = subject.user.as_str(), address:% = subject.address,
            home = account.home.as_str();
            "login refused: the home cannot be used: {reason}"
        );
        unavailable("Your home directory is not available")
    })?;
    let jail = Arc::new(jail);
    let quota = match counted {
        Some((path, directory)) => {
            Some(HomeQuota::open(&node.registry, &node.home_counts, &account, &jail, &path, directory).await)
        }
        None => None,
    };
    let login =
        PastLogin { user: account.user.clone(), version: account.version.clone(), address: subject.address };
    let must_confirm = session.handle.log_in(login.clone());
    // After that: either the check of all sessions finds this one, or the revision has changed here.
    if must_confirm || *node.registry.revision().borrow() != revision {
        confirm(session, &login, must_confirm).await?;
    }
    if let Some(reply) = connection::last_reply(&session.handle) {
        metrics::login("revoked");
        log::warn!(
            session:% = subject.session, user = subject.user.as_str(), address:% = subject.address;
            "login refused: the session was to end before the login was complete"
        );
        return Err(reply);
    }
    node.connections.logged_in(&session.handle);
    metrics::login("accepted");
    log::info!(
        session:% = subject.session, user = subject.user.as_str(), address:% = subject.address;
        "logged in"
    );
    let representation = Representation::new(node.ascii_conversion);
    let owner = account.user.as_str().into();
    let keeps_ticket = session.security.handshake.as_ref().is_some_and(|tls| tls.version == "TLSv1.2");
    session.state = State::LoggedIn(Box::new(LoggedIn {
        failures: Arc::new(FailureLog::new(&node, &subject, &jail)),
        task: Arc::new(Task { identity: Arc::clone(&subject), verb: "PASS", path: None }),
        owner,
        node,
        identity: subject,
        ends: session.ends,
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
        resumes: Arc::new(Resumes::new(keeps_ticket)),
        hash: Algorithm::Sha256,
        _entry: entry,
        _count: SessionCount::start(),
    }));
    Ok(Reply::new(Code::LOGGED_IN, "Login successful"))
}

/// Asks authd again about a login during which accounts have changed. One that is not accepted any more is
/// revoked. `must_end`: the user's sessions were to end meanwhile, so that this one needs an answer.
async fn confirm(session: &Session, login: &PastLogin, must_end: bool) -> Result<(), Reply> {
    let verdict = revocation::still_authorized(&session.node, login).await;
    let error = match verdict {
        Ok(Some(Verdict::Stay)) => return Ok(()),
        // An authd of an earlier version has accepted the login, and says no more.
        Ok(None) if !must_end => return Ok(()),
        Ok(None) => "authd is of an earlier version, which cannot tell".to_owned(),
        Ok(Some(Verdict::End { reason })) => {
            if session.handle.revoke(login, reason) {
                revocation::tell(&session.handle, login, reason);
            }
            return Ok(());
        }
        Ok(Some(Verdict::Undecided)) => "authd cannot decide now".to_owned(),
        Err(error) => error,
    };
    metrics::login("unavailable");
    log::warn!(
        session:% = session.handle.id, user = login.user.as_str(), address:% = login.address;
        "login failed: accounts have changed meanwhile, and whether it is still right is not known: {error}"
    );
    Err(unavailable("Logins are not possible at this time; try again later"))
}

/// The user's tree, and, if there is a quota, the directory that it is of: its canonical path, and its path
/// in the tree. Without symbolic links where `has_rules` says that permissions depend on the path. A folder
/// that cannot be opened is left out, and the log says why.
async fn open_home(
    node: &Arc<Node>,
    subject: &Arc<SessionIdentity>,
    account: &Account,
    has_rules: bool,
) -> Result<(Jail, Option<(Vec<u8>, VirtualPath)>), String> {
    let place = |path: &str| VirtualPath::root().join(path.as_bytes()).map_err(|error| error.to_string());
    let home = place(&account.home)?;
    let folders = account.folders.iter();
    let folders: Vec<_> = folders
        .map(|folder| Ok((place(folder.path.as_str())?, place(folder.target.as_str())?)))
        .collect::<Result<_, String>>()?;
    let counted = match &account.quota_directory {
        _ if account.quota == Quota::default() => None,
        Some(directory) => Some(place(directory.as_str())?),
        None => Some(VirtualPath::root()),
    };
    let shared = Arc::clone(node);
    // All at once: every way to a thread and back costs as much as what is done there.
    let task = Task { identity: Arc::clone(subject), verb: "PASS", path: Some(home.clone()) };
    let opened = node
        .workers
        .login(Arc::new(task), move || {
            let storage = &shared.storage;
            let mut jail = Jail::open(&storage.root, &home, storage.create_homes, storage.modes)?;
            jail.set_locks(storage.locks);
            if has_rules {
                jail.refuse_links();
            }
            if storage.resolve_links {
                jail.resolve_links();
            }
            let mut absent = Vec::new();
            for (path, target) in folders {
                if let Err(error) = jail.add_folder(&storage.root, path.clone(), target, storage.create_homes)
                {
                    absent.push((path, error));
                }
            }
            jail.share(&shared.directories)?;
            let counted = match counted {
                Some(directory) => Some((jail.quota_key(&directory)?, directory)),
                None => None,
            };
            Ok((jail, absent, counted))
        })
        .await
        .map_err(|stuck| stuck.to_string())?;
    let (jail, absent, counted) = opened.map_err(|error: FileError| chain(&error))?;
    for filesystem in jail.filesystems() {
        node.workers.note_filesystem(*filesystem);
    }
    for (path, error) in absent {
        log::warn!(
            session:% = subject.session, user = subject.user.as_str(), address:% = subject.address,
            path:%;
            "a folder is left out: {}", chain(&error)
        );
    }
    Ok((jail, counted))
}
