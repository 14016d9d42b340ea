//! `/v1/events`: the delivery of events and their dead letters; the problems that they show.

use std::collections::BTreeSet;

use common::{
    admin_api::{EventReceiverView, EventsView, ProblemSeverity, ProblemView, ReplayRequest, ReplayView},
    node::NodeCommand,
};

use super::registry;
use crate::{error::ApiError, service::Service};

/// An event that waits longer than this for its receiver is a problem, in seconds.
const LONG_WAIT: u64 = 300;

const LIST: &str = "ftpctl events list";
const REPLAY: &str = "ftpctl events replay";

/// The state of the events. Empty if no node delivers events.
///
/// # Errors
/// Redis cannot be reached.
pub async fn show(service: &Service) -> Result<EventsView, ApiError> {
    Ok(registry(service)?.events().await?.unwrap_or_default())
}

/// Asks the delivering node to deliver dead letters again.
///
/// # Errors
/// No node delivers events, or Redis cannot be reached.
pub async fn replay(service: &Service, request: ReplayRequest) -> Result<ReplayView, ApiError> {
    let registry = registry(service)?;
    let node = registry.events().await?.and_then(|events| events.node).ok_or(ApiError::NoDeliverer)?;
    let ReplayRequest { receiver, id } = request;
    if registry.send(&node, &NodeCommand::ReplayEvents { receiver, id }).await? {
        Ok(ReplayView { node })
    } else {
        Err(ApiError::NoDeliverer)
    }
}

/// Receivers for which events wait long, and dead letters.
pub(super) fn problems(state: &EventsView) -> Vec<ProblemView> {
    state.receivers.iter().filter_map(long_wait).chain(dead_letters(state)).collect()
}

fn long_wait(receiver: &EventReceiverView) -> Option<ProblemView> {
    let seconds = receiver.oldest_seconds.filter(|seconds| *seconds > LONG_WAIT)?;
    let error = receiver.error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
    let (name, minutes) = (&receiver.name, seconds / 60);
    let text = match receiver.pending {
        1 => format!("1 event waits for the receiver {name} for {minutes} minutes{error}"),
        number => format!("{number} events wait for the receiver {name}, one for {minutes} minutes{error}"),
    };
    Some(ProblemView {
        text,
        remedy: "repair the receiver or the network to it before retry_for is over".to_owned(),
        ..problem("events_wait", LIST)
    })
}

fn dead_letters(state: &EventsView) -> Option<ProblemView> {
    let receivers: BTreeSet<&str> =
        state.dead_letters.iter().map(|letter| letter.receiver.as_str()).collect();
    let receivers: Vec<&str> = receivers.into_iter().collect();
    let what = match state.dead {
        0 => return None,
        1 => "1 event was not accepted for retry_for and is a dead letter".to_owned(),
        dead => format!("{dead} events were not accepted for retry_for and are dead letters"),
    };
    // The list may have the newest letters only.
    let is_all = state.dead_letters.len() as u64 == state.dead;
    let first = state.dead_letters.iter().map(|letter| &letter.since).min().filter(|_| is_all);
    Some(ProblemView {
        since: first.cloned(),
        text: format!("{what} (receivers: {})", receivers.join(", ")),
        remedy: format!("repair the receiver ({LIST} shows its last answer), then deliver them again"),
        ..problem("events_dead", REPLAY)
    })
}

fn problem(kind: &str, command: &str) -> ProblemView {
    ProblemView {
        kind: kind.to_owned(),
        severity: ProblemSeverity::Warning,
        node: None,
        since: None,
        count: 1,
        text: String::new(),
        remedy: String::new(),
        command: Some(command.to_owned()),
        reason: None,
        parts: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use common::admin_api::DeadLetterView;

    use super::*;

    fn receiver(pending: u64, oldest_seconds: Option<u64>) -> EventReceiverView {
        let error = Some("HTTP status 503 Service Unavailable".to_owned());
        EventReceiverView { name: "imports".to_owned(), pending, oldest_seconds, dead: 0, error }
    }

    fn letter(receiver: &str, since: &str) -> DeadLetterView {
        DeadLetterView {
            id: "ftp1-1-1".to_owned(),
            receiver: receiver.to_owned(),
            event: "upload".to_owned(),
            time: since.to_owned(),
            user: "acme".to_owned(),
            path: "/a".to_owned(),
            size: Some(1),
            since: since.to_owned(),
            attempts: 1,
            error: String::new(),
        }
    }

    #[test]
    fn events_that_wait_long_and_dead_letters_are_problems() {
        let waiting = |receiver| problems(&EventsView { receivers: vec![receiver], ..EventsView::default() });
        assert_eq!(waiting(receiver(0, None)), []);
        assert_eq!(waiting(receiver(3, Some(LONG_WAIT))), []);
        let found = &waiting(receiver(3, Some(725)))[0];
        assert_eq!(
            found.text,
            "3 events wait for the receiver imports, one for 12 minutes: HTTP status 503 Service Unavailable"
        );
        assert_eq!((found.kind.as_str(), found.command.as_deref()), ("events_wait", Some(LIST)));
        assert!(
            waiting(receiver(1, Some(725)))[0].text.starts_with("1 event waits for the receiver imports for")
        );

        let letters =
            vec![letter("scans", "2026-11-28T05:00:00Z"), letter("imports", "2026-11-28T04:00:00Z")];
        let dead =
            |dead| problems(&EventsView { dead, dead_letters: letters.clone(), ..EventsView::default() });
        let found = &dead(2)[0];
        let text =
            "2 events were not accepted for retry_for and are dead letters (receivers: imports, scans)";
        assert_eq!((found.kind.as_str(), found.text.as_str()), ("events_dead", text));
        assert_eq!(found.command.as_deref(), Some(REPLAY));
        assert_eq!(found.since.as_deref(), Some("2026-11-28T04:00:00Z"));
        assert_eq!(dead(700)[0].since, None, "the first ones are not in the list");
    }
}
