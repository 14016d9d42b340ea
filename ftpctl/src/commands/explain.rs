//! `explain`: why a user cannot log in, or why a session's last command failed.

use common::admin_api::{GateVerdict, LoginAttemptView, SessionExplanation, UserExplanation};

use super::sessions;
use crate::{
    api::Query,
    cli::ExplainArguments,
    console::{Console, Output},
    error::{ConsoleError, FOUND},
    render::human::printable,
};

/// A name of this many hexadecimal digits may be the id of a session.
const ID_DIGITS: std::ops::RangeInclusive<usize> = 8..=16;

/// Number of a user's last logins that are shown.
const ATTEMPTS: usize = 3;

pub(crate) async fn explain(console: &Console, arguments: ExplainArguments) -> Result<u8, ConsoleError> {
    let subject = &arguments.subject;
    let may_be_id = !arguments.user
        && arguments.from.is_none()
        && arguments.at.is_none()
        && ID_DIGITS.contains(&subject.len())
        && subject.bytes().all(|byte| byte.is_ascii_hexdigit());
    if may_be_id && let Some(session) = sessions::find(console, subject).await? {
        let path = ["sessions", &session.id.to_string(), "explain"];
        let answer: SessionExplanation = console.api.get(&path, &vec![]).await?;
        console.output.show(&answer, || session_text(&answer))?;
        return Ok(0);
    }
    let mut query: Query = vec![];
    query.extend(arguments.from.map(|address| ("address", address.to_string())));
    query.extend(arguments.at.map(|time| ("at", time)));
    let answer: UserExplanation = console.api.get(&["users", subject, "explain"], &query).await?;
    console.output.show(&answer, || user_text(&answer, console.output))?;
    Ok(if answer.may_log_in { 0 } else { FOUND })
}

fn session_text(answer: &SessionExplanation) -> String {
    let mut text = String::new();
    for line in &answer.dialogue {
        let direction = if line.is_command { '>' } else { '<' };
        // The day is known; the milliseconds matter.
        let time = line.time.split_once('T').map_or(line.time.as_str(), |(_, time)| time);
        text.push_str(&format!("{} {direction} {}\n", printable(time), printable(&line.text)));
    }
    let (user, node) = (printable(&answer.user), &answer.node);
    text.push_str(&format!("session {} of {user} on {node}: {}\n", answer.id, printable(&answer.text)));
    text
}

/// `21:13:58Z wrong_password ftp2 from 198.51.100.7`
fn attempt(attempt: &LoginAttemptView) -> String {
    let time = attempt.time.split_once('.').map_or(attempt.time.clone(), |(time, _)| format!("{time}Z"));
    let mut words = vec![time];
    words.push(match (&attempt.reason, attempt.accepted) {
        (_, true) => "accepted".to_owned(),
        (reason, false) => reason.clone().unwrap_or_else(|| "refused".to_owned()),
    });
    words.extend(attempt.node.as_ref().map(ToString::to_string));
    words.extend(attempt.address.map(|address| format!("from {address}")));
    printable(&words.join(" "))
}

fn user_text(answer: &UserExplanation, output: Output) -> String {
    let mut text = String::new();
    for gate in &answer.gates {
        let (sign, colour) = match gate.verdict {
            GateVerdict::Ok => ("✓", "32"),
            GateVerdict::Refused => ("✗", "31"),
            GateVerdict::Unknown => ("?", "33"),
        };
        text.push_str(&format!("{} {}: ", output.coloured(colour, sign), printable(&gate.gate)));
        text.push_str(&printable(&gate.text));
        text.push('\n');
    }
    if !answer.attempts.is_empty() {
        let attempts: Vec<String> = answer.attempts.iter().take(ATTEMPTS).map(attempt).collect();
        text.push_str(&format!("Last attempts: {}\n", attempts.join(" · ")));
    }
    match &answer.remedy {
        Some(remedy) => text.push_str(&format!("Remedy: {}\n", printable(remedy))),
        None if answer.may_log_in => text.push_str("Nothing but a wrong password refuses the login.\n"),
        None => {}
    }
    text
}
