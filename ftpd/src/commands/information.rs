//! FEAT, OPTS (RFC 2389), HELP, STAT, TYPE, SITE HELP, QUOTA and WHO.

use crate::{
    protocol::{
        Code, Reply,
        command::{Algorithm, Opts, TransferType},
        facts::Facts,
        reply::ReplyText,
        verbs::{self, Features},
    },
    session::{LoggedIn, LoginState, Session},
    work::activity::ActivityHandle,
};

/// TYPE (RFC 959 section 3.1.1).
pub(super) fn transfer_type(session: &mut LoggedIn, transfer_type: TransferType) -> Reply {
    session.representation.select(transfer_type);
    Reply::new(
        Code::OK,
        match transfer_type {
            TransferType::Ascii if session.representation.converts() => "Type is ASCII",
            TransferType::Ascii => "Type is ASCII; line ends are not converted",
            TransferType::Image => "Type is image",
        },
    )
}

/// STRU F.
pub(super) fn structure() -> Reply {
    Reply::new(Code::OK, "Structure is file")
}

/// MODE S.
pub(super) fn mode() -> Reply {
    Reply::new(Code::OK, "Mode is stream")
}

/// SYST.
pub(crate) fn system_type() -> Reply {
    Reply::new(Code::SYSTEM_TYPE, "UNIX Type: L8")
}

/// FEAT (RFC 2389): the extensions of the verb table, with the facts and the algorithm that the session has
/// selected.
pub(super) fn feat(session: &Session) -> Reply {
    let (facts, hash) = match &session.state {
        LoginState::LoggedIn(logged_in) => (logged_in.facts, logged_in.hash),
        LoginState::Greeted | LoginState::Named(_) => (Facts::default(), Algorithm::Sha256),
    };
    verbs::feat(Features { facts, hash, tls: session.node.tls.is_some() })
}

/// HELP.
pub(super) fn help(topic: Option<&[u8]>) -> Reply {
    verbs::help(topic)
}

/// SITE HELP.
pub(super) fn site_help() -> Reply {
    verbs::site_help()
}

/// OPTS (RFC 2389). UTF8 is always on: file names are bytes that the node does not convert.
pub(super) fn opts(session: &mut Session, opts: Opts) -> Reply {
    let logged_in = match (&mut session.state, &opts) {
        (_, Opts::Utf8(true)) => return Reply::new(Code::OK, "UTF8 is always on"),
        (_, Opts::Utf8(false)) => {
            return Reply::new(Code::UNSUPPORTED_PARAMETER, "UTF8 cannot be switched off");
        }
        (LoginState::LoggedIn(logged_in), _) => logged_in,
        (LoginState::Greeted | LoginState::Named(_), _) => return Reply::please_log_in(),
    };
    match opts {
        Opts::Mlst(facts) => {
            logged_in.facts = facts;
            Reply::new(Code::OK, facts.accepted())
        }
        Opts::Hash(selected) => {
            logged_in.hash = selected.unwrap_or(logged_in.hash);
            Reply::new(Code::OK, logged_in.hash.name())
        }
        Opts::Utf8(_) => Reply::new(Code::OK, "UTF8 is always on"),
    }
}

/// STAT without an argument: the status of the session, and of the activity if one runs.
pub(crate) fn session_status(session: &Session, running: Option<&ActivityHandle>) -> Reply {
    let node = &session.node;
    let mut lines: Vec<ReplyText> = Vec::new();
    // Only after login: node names and versions help attackers.
    if session.is_logged_in() {
        lines.push(format!("Node {}, version {}", node.name, env!("CARGO_PKG_VERSION")).into());
        lines.push(format!("Session {}", session.handle.id).into());
    }
    lines.push(format!("Connected from {}", session.addresses.client.ip()).into());
    lines.push(match &session.security.handshake {
        Some(tls) if session.security.is_private => {
            format!("{} {}, data connections encrypted", tls.version, tls.cipher).into()
        }
        Some(tls) => format!("{} {}, data connections not encrypted", tls.version, tls.cipher).into(),
        None => "Not encrypted".into(),
    });
    match &session.state {
        LoginState::LoggedIn(logged_in) => {
            lines.push(format!("Logged in as {}", logged_in.account.user).into());
            let name = logged_in.representation.description();
            lines.push(format!("TYPE: {name}, STRUcture: file, MODE: stream").into());
        }
        LoginState::Greeted | LoginState::Named(_) => lines.push("Not logged in".into()),
    }
    lines.push(match running {
        Some(handle) => {
            let (bytes, seconds) = (handle.progress.transferred(), handle.started.elapsed().as_secs());
            format!("{}: {bytes} bytes in {seconds} seconds", handle.verb).into()
        }
        None => "No transfer in progress".into(),
    });
    Reply::lines(Code::SYSTEM_STATUS, "Server status:", lines, "End of status")
}

/// SITE WHO: all sessions of the cluster for administrators, the user's own sessions for other users.
pub(super) async fn who(session: &LoggedIn) -> Reply {
    let registry = &session.node.registry;
    let mut sessions = if session.account.admin {
        registry.sessions().await
    } else {
        registry.sessions_of(&session.account.user).await
    };
    sessions.sort_by_key(|record| record.since);
    let lines = sessions.iter().map(|record| {
        let address = if session.account.admin { record.address.to_string() } else { String::new() };
        format!("{} {} {} {address}", record.id, record.user, record.node).into()
    });
    Reply::lines(Code::SYSTEM_STATUS, "Sessions:", lines.collect(), format!("{} in total", sessions.len()))
}

/// SITE QUOTA: usage and limit, one line for bytes and one for files. Directories count as files.
pub(super) async fn quota(session: &LoggedIn) -> Result<Reply, Reply> {
    let Some(quota) = &session.quota else {
        return Ok(Reply::new(Code::SYSTEM_STATUS, "No quota"));
    };
    let (held, limit) = (quota.held().await?, quota.limit());
    let line = |unit: &str, used: u64, limit: Option<u64>| match limit {
        Some(limit) => ReplyText::from(format!(
            "{unit}: {used} used, {limit} limit, {} left",
            limit.saturating_sub(used)
        )),
        None => ReplyText::from(format!("{unit}: {used} used, no limit")),
    };
    let lines = vec![line("Bytes", held.bytes, limit.bytes), line("Files", held.files, limit.files)];
    let title = match quota.directory() {
        home if home.is_root() => ReplyText::from("Quota of the home directory:"),
        directory => ReplyText::from(format!("Quota of {}:", directory.as_bytes().escape_ascii())),
    };
    Ok(Reply::lines(Code::SYSTEM_STATUS, title, lines, "End"))
}
