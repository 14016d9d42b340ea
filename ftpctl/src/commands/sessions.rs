//! `who`, `kick`.

use std::time::Duration;

use common::{
    admin_api::{KickView, NEXT_CURSOR, SessionView},
    live::{Direction, TransferDetails},
};
use reqwest::Method;
use tokio::time::sleep;

use crate::{
    api::Query,
    cli::{KickArguments, WhoArguments, WhoOrder},
    console::Console,
    error::ConsoleError,
    render::{
        human::{counted, printable, rate, seconds_since, size, span},
        table::Table,
    },
};

const REFRESH: Duration = Duration::from_secs(1);

/// Digits of an id that are shown, where they are unique.
const SHORT_ID: usize = 8;

/// Minimum number of digits with which an id can be named.
const SHORTEST_PREFIX: usize = 4;

pub(crate) async fn who(console: &Console, arguments: &WhoArguments) -> Result<u8, ConsoleError> {
    let mut query: Query = vec![];
    query.extend(arguments.user.clone().map(|user| ("user", user)));
    query.extend(arguments.node.clone().map(|node| ("node", node)));
    query.extend(arguments.address.map(|address| ("address", address.to_string())));
    loop {
        let mut sessions = list(console, &query, true).await?;
        sort(&mut sessions, arguments.sort);
        if arguments.watch {
            console.output.clear()?;
        }
        console.output.show(&serde_json::json!({ "sessions": sessions }), || {
            sessions_text(&sessions, console.output.bytes)
        })?;
        if !arguments.watch {
            return Ok(0);
        }
        sleep(REFRESH).await;
    }
}

/// All pages of the list. An authd of the previous version knows no details and refuses to be asked for them.
pub(crate) async fn list(
    console: &Console,
    query: &Query,
    details: bool,
) -> Result<Vec<SessionView>, ConsoleError> {
    let mut sessions = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let mut query = query.clone();
        if details {
            query.push(("details", "true".to_owned()));
        }
        query.extend(cursor.map(|cursor| ("cursor", cursor)));
        let (page, headers): (Vec<SessionView>, _) =
            match console.api.get_with_headers(&["sessions"], &query).await {
                Err(ConsoleError::Refused { status: 400, .. }) if details => {
                    query.retain(|(name, _)| *name != "details");
                    console.api.get_with_headers(&["sessions"], &query).await?
                }
                answer => answer?,
            };
        sessions.extend(page);
        cursor = headers.get(NEXT_CURSOR).and_then(|value| value.to_str().ok()).map(str::to_owned);
        if cursor.as_deref().is_none_or(str::is_empty) {
            return Ok(sessions);
        }
    }
}

fn transfer(session: &SessionView) -> Option<&TransferDetails> {
    session.details.as_ref()?.transfer.as_ref()
}

fn sort(sessions: &mut [SessionView], order: WhoOrder) {
    let speed = |session: &SessionView| transfer(session).map_or(-1.0, |transfer| transfer.rate);
    let idle = |session: &SessionView| session.details.as_ref().map_or(-1.0, |details| details.idle);
    sessions.sort_by(|a, b| a.since.cmp(&b.since).then(a.id.cmp(&b.id)));
    match order {
        WhoOrder::Since => {}
        WhoOrder::User => sessions.sort_by(|a, b| a.user.cmp(&b.user)),
        WhoOrder::Node => sessions.sort_by(|a, b| a.node.cmp(&b.node)),
        WhoOrder::Rate => sessions.sort_by(|a, b| speed(b).total_cmp(&speed(a))),
        WhoOrder::Idle => sessions.sort_by(|a, b| idle(b).total_cmp(&idle(a))),
    }
}

/// The first digits of the ids, as many as are unique.
fn short_ids(sessions: &[SessionView]) -> Vec<String> {
    let ids: Vec<String> = sessions.iter().map(|session| session.id.to_string()).collect();
    let short = |id: &String| id.get(..SHORT_ID).unwrap_or(id).to_owned();
    let unique: std::collections::HashSet<String> = ids.iter().map(short).collect();
    if unique.len() == ids.len() { ids.iter().map(short).collect() } else { ids }
}

#[allow(clippy::cast_precision_loss)] // Percent without digits after the point.
fn sessions_text(sessions: &[SessionView], bytes: bool) -> String {
    let mut table = Table::new(&[
        "ID", "USER", "NODE", "FROM", "CLIENT", "TLS", "WHAT", ">DONE", ">RATE", ">FOR", ">IDLE",
    ]);
    let dash = || "–".to_owned();
    let (mut transfers, mut up, mut down) = (0, 0.0, 0.0);
    for (session, id) in sessions.iter().zip(short_ids(sessions)) {
        let details = session.details.as_ref();
        let path = details.and_then(|details| details.path.clone()).unwrap_or_default();
        let command = details.and_then(|details| details.command.clone());
        let (what, done, speed, duration, idle) = match transfer(session) {
            Some(transfer) => {
                transfers += 1;
                let arrow = if transfer.direction == Direction::Upload { "↑" } else { "↓" };
                let sum = if transfer.direction == Direction::Upload { &mut up } else { &mut down };
                *sum += transfer.rate;
                let moved = size(transfer.bytes, bytes);
                let done = match transfer.size.filter(|size| *size > 0) {
                    Some(total) => {
                        let percent = transfer.bytes as f64 / total as f64 * 100.0;
                        format!("{:.0} % of {}", percent.floor().min(100.0), size(total, bytes))
                    }
                    None => moved,
                };
                (format!("{arrow} {path}"), done, rate(transfer.rate, bytes), span(transfer.seconds), dash())
            }
            None => {
                let last = match command {
                    Some(command) => format!("idle, last {command} {path}").trim_end().to_owned(),
                    None => dash(),
                };
                let age = seconds_since(&session.since).map_or_else(dash, span);
                let idle = details.map_or_else(dash, |details| span(details.idle));
                (last, dash(), dash(), age, idle)
            }
        };
        table.row([
            id,
            session.user.clone(),
            session.node.to_string(),
            session.address.to_string(),
            details.and_then(|details| details.client.clone()).unwrap_or_else(dash),
            details.and_then(|details| details.tls.clone()).map_or_else(dash, |tls| tls.replace("TLSv", "")),
            if session.ending { format!("ENDING: {what}") } else { what },
            done,
            speed,
            duration,
            idle,
        ]);
    }
    let sums = format!("{}, {}", counted(sessions.len() as u64, "session"), counted(transfers, "transfer"));
    format!("{}{sums}, ↑ {} ↓ {}\n", table.render(), rate(up, bytes), rate(down, bytes))
}

/// The session whose id begins with this text.
pub(crate) async fn find(console: &Console, prefix: &str) -> Result<Option<SessionView>, ConsoleError> {
    let prefix = prefix.to_ascii_lowercase();
    let mut found: Vec<SessionView> = list(console, &vec![], false).await?;
    found.retain(|session| session.id.to_string().starts_with(&prefix));
    if found.len() > 1 {
        return Err(ConsoleError::Usage(format!("{} sessions begin with {prefix}", found.len())));
    }
    Ok(found.pop())
}

pub(crate) async fn kick(console: &Console, arguments: KickArguments) -> Result<u8, ConsoleError> {
    let mut query: Query = vec![];
    query.extend(arguments.reason.map(|reason| ("reason", reason)));
    if let Some(user) = arguments.user {
        query.push(("user", user.clone()));
        query.extend(arguments.block.map(|time| ("block", time.as_secs().max(1).to_string())));
        let answer = console.api.change(Method::DELETE, &["sessions"], &query, None).await?;
        let kicked: KickView = serde_json::from_value(answer.clone())
            .map_err(|error| ConsoleError::Failed(format!("authd's answer: {error}")))?;
        console.output.show(&answer, || {
            let until = kicked.blocked_until.map(|until| format!("; blocked until {}", printable(&until)));
            let (count, user) = (kicked.sessions.len(), printable(&user));
            format!(
                "{} of {user} end{}{}\n",
                counted(count as u64, "session"),
                if count == 1 { "s" } else { "" },
                until.unwrap_or_default()
            )
        })?;
        return Ok(0);
    }
    let id = arguments.session.unwrap_or_default();
    if id.len() < SHORTEST_PREFIX || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let text = "expected the id of a session, or 4 or more of its first digits; see ftpctl who";
        return Err(ConsoleError::Usage(text.to_owned()));
    }
    let session = find(console, &id).await?;
    let session = session.ok_or_else(|| ConsoleError::Failed(format!("there is no session {id}")))?;
    let full = session.id.to_string();
    console.api.change(Method::DELETE, &["sessions", &full], &query, None).await?;
    console.output.show(&session, || {
        let (user, node) = (printable(&session.user), &session.node);
        format!("session {full} of {user} on {node} ends\n")
    })?;
    Ok(0)
}
