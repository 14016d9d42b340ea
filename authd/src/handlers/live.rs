//! What sessions do at the moment: details, dialogue, and why the last command failed.

use std::{collections::HashSet, time::Duration};

use common::{
    admin_api::{DialogueView, SessionExplanation, SessionView},
    live::DialogueLine,
    node::NodeName,
    registry::RegistryView,
    session::{SessionId, SessionRecord},
    sync::lock,
};
use tokio::time::{Instant, sleep};

use super::{existing, registry};
use crate::{error::ApiError, service::Service};

/// For how long nodes publish details after a request, in seconds.
const WATCH: u32 = 15;

/// Requests within this time after a command to watch send no further one.
const WATCH_AGAIN: Duration = Duration::from_secs(5);

/// Maximum time to wait for the first details of a node. Nodes publish once a second.
const DETAILS_WAIT: Duration = Duration::from_millis(1200);

/// Maximum time to wait for a node's report of a dialogue.
const DIALOGUE_WAIT: Duration = Duration::from_secs(2);

const POLL: Duration = Duration::from_millis(50);

/// Adds the details to sessions. Nodes of older versions publish none.
pub(super) async fn add_details(service: &Service, sessions: &mut [SessionView]) -> Result<(), ApiError> {
    let registry = registry(service)?;
    let is_new = {
        let mut watched = lock(&service.watched);
        let is_new = watched.is_none_or(|at| at.elapsed() >= WATCH_AGAIN);
        if is_new {
            *watched = Some(std::time::Instant::now());
        }
        is_new
    };
    if is_new {
        registry.watch(WATCH).await?;
    }
    let nodes: HashSet<NodeName> = sessions.iter().map(|session| session.node.clone()).collect();
    let deadline = Instant::now() + DETAILS_WAIT;
    for node in nodes {
        let live = loop {
            match registry.live(&node).await? {
                None if Instant::now() < deadline => sleep(POLL).await,
                live => break live,
            }
        };
        let Some(mut live) = live else { continue };
        for session in sessions.iter_mut().filter(|session| session.node == node) {
            session.details = live.remove(&session.id);
        }
    }
    Ok(())
}

/// The last commands and replies of a session.
///
/// # Errors
/// No session has this id, its node does not report, or Redis cannot be reached.
pub async fn dialogue(service: &Service, id: &str) -> Result<DialogueView, ApiError> {
    let registry = registry(service)?;
    let session = find(registry, id).await?;
    Ok(DialogueView { id: session.id, lines: report(registry, &session).await? })
}

/// Why the session's last failed command failed.
///
/// # Errors
/// No session has this id, its node does not report, or Redis cannot be reached.
pub async fn explain(service: &Service, id: &str) -> Result<SessionExplanation, ApiError> {
    let registry = registry(service)?;
    let session = find(registry, id).await?;
    let dialogue = report(registry, &session).await?;
    let (command, reply) = match last_failure(&dialogue) {
        Some((command, reply)) => (Some(command), Some(reply)),
        None => (None, None),
    };
    let text = match &reply {
        Some(reply) => sentence(reply).to_owned(),
        None => "None of the remembered commands failed.".to_owned(),
    };
    let SessionRecord { id, user, node, .. } = session;
    Ok(SessionExplanation { id, user, node, command, reply, text, dialogue })
}

async fn find(registry: &RegistryView, id: &str) -> Result<SessionRecord, ApiError> {
    let id: SessionId = existing(id, "session")?;
    registry.find_session(id).await?.ok_or(ApiError::NotFound("session"))
}

async fn report(registry: &RegistryView, session: &SessionRecord) -> Result<Vec<DialogueLine>, ApiError> {
    registry.dialogue(session.id, DIALOGUE_WAIT).await?.ok_or(ApiError::NotFound("dialogue"))
}

/// The last reply of class 4 or 5, with the command before it.
fn last_failure(dialogue: &[DialogueLine]) -> Option<(String, String)> {
    let is_failure = |line: &DialogueLine| !line.is_command && line.text.starts_with(['4', '5']);
    let at = dialogue.iter().rposition(is_failure)?;
    let command = dialogue[..at].iter().rev().find(|line| line.is_command);
    let command = command.map(|line| line.text.clone()).unwrap_or_default();
    Some((command, dialogue[at].text.clone()))
}

/// The cause of a reply in a sentence, by its code (RFC 959 section 4.2).
fn sentence(reply: &str) -> &'static str {
    match reply.get(..3).unwrap_or_default() {
        "421" => "The node ended the session: a drain, a timeout, or an administrator.",
        "425" => "The data connection could not be opened. Check that the client reaches the passive ports.",
        "426" => "The data connection ended before the transfer was complete.",
        "450" => "Another session writes this path, or the registry cannot be reached. The client can retry.",
        "451" => "The node or its storage failed during the command. The node's log has the error.",
        "452" | "552" => "The quota or the storage has no room left.",
        "500" | "501" | "502" | "504" => "The node does not support this command or its arguments.",
        "503" => "The commands came in the wrong order.",
        "521" | "522" | "534" | "536" => "The protection of the connection is not the required one.",
        "530" => "The login was refused, or the command needs one first.",
        "550" => "The path does not exist, or the user's permissions or the storage forbid the command.",
        "553" => "The name is not allowed.",
        "554" => "The offset of REST is not possible for this file.",
        _ => "The reply of the node gives the reason.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_failure_is_found_with_its_command() {
        let line =
            |is_command, text: &str| DialogueLine { time: String::new(), is_command, text: text.into() };
        let dialogue = [
            line(true, "STOR /a"),
            line(false, "550 Permission denied"),
            line(true, "NOOP"),
            line(false, "200 Ok"),
        ];
        let expected = ("STOR /a".to_owned(), "550 Permission denied".to_owned());
        assert_eq!(last_failure(&dialogue), Some(expected));
        assert_eq!(last_failure(&dialogue[2..]), None);
        assert!(sentence("550 Permission denied").contains("permissions"));
    }
}
