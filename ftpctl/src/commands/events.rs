//! `events`: the delivery of events, and their dead letters.

use common::admin_api::{DeadLetterView, EventsView, ReplayRequest, ReplayView};
use reqwest::Method;

use crate::{
    cli::EventsCommand,
    console::{Console, Output},
    error::{ConsoleError, FOUND},
    render::{
        human::{count, counted, printable, seconds_since, size, span},
        table::Table,
    },
};

/// Why there is no state of the events.
const OFF: &str =
    "no node delivers events: events_file is not set on the nodes, or the storage does not answer";

pub(crate) async fn events(console: &Console, command: EventsCommand) -> Result<u8, ConsoleError> {
    match command {
        EventsCommand::List => list(console).await,
        EventsCommand::Replay { receiver, id } => replay(console, ReplayRequest { receiver, id }).await,
    }
}

async fn state(console: &Console) -> Result<EventsView, ConsoleError> {
    console.api.get(&["events"], &vec![]).await
}

async fn list(console: &Console) -> Result<u8, ConsoleError> {
    let view = state(console).await?;
    console.output.show(&view, || text(&view, console.output))?;
    let is_failing = view.dead > 0 || view.receivers.iter().any(|receiver| receiver.error.is_some());
    Ok(if is_failing { FOUND } else { 0 })
}

#[allow(clippy::cast_precision_loss)] // Whole seconds of an event's age.
fn text(view: &EventsView, output: Output) -> String {
    let none = || "–".to_owned();
    let Some(node) = &view.node else { return format!("{OFF}\n") };
    let published = view.published.as_deref().and_then(seconds_since).map(span);
    let age = published.map(|age| format!(" (published {age} ago)")).unwrap_or_default();
    let mut text = format!("{node} delivers the events of the cluster{age}\n");
    let mut receivers = Table::new(&["RECEIVER", ">WAITING", ">OLDEST", ">DEAD", "LAST ERROR"]);
    for receiver in &view.receivers {
        receivers.row([
            receiver.name.clone(),
            count(receiver.pending),
            receiver.oldest_seconds.map_or_else(none, |seconds| span(seconds as f64)),
            count(receiver.dead),
            receiver.error.clone().unwrap_or_else(none),
        ]);
    }
    text.push_str(&receivers.render());
    if view.dead == 0 {
        text.push_str("no dead letters\n");
        return text;
    }
    let shown = view.dead_letters.len() as u64;
    let all = if shown < view.dead { format!(", the newest {}", count(shown)) } else { String::new() };
    text.push_str(&format!("\n{}{all}:\n", counted(view.dead, "dead letter")));
    let headings = ["TIME", "RECEIVER", "EVENT", "USER", "PATH", ">SIZE", ">TRIES", "LAST ERROR", "ID"];
    let mut letters = Table::new(&headings);
    // authd's answer has the newest letter first, and people read on downwards.
    for letter in view.dead_letters.iter().rev() {
        // Whole seconds are enough for people.
        let time = letter.time.split_once('.').map_or(letter.time.clone(), |(time, _)| format!("{time}Z"));
        letters.row([
            time,
            letter.receiver.clone(),
            letter.event.clone(),
            letter.user.clone(),
            letter.path.clone(),
            letter.size.map_or_else(|| "–".to_owned(), |bytes| size(bytes, output.bytes)),
            count(letter.attempts.into()),
            letter.error.clone(),
            letter.id.clone(),
        ]);
    }
    text.push_str(&letters.render());
    text.push_str("To deliver them again: ftpctl events replay [--receiver NAME] [--id ID]\n");
    text
}

async fn replay(console: &Console, request: ReplayRequest) -> Result<u8, ConsoleError> {
    let view = state(console).await?;
    let number = wanted(&view, &request).map_err(ConsoleError::Failed)?;
    let failed = |error: serde_json::Error| ConsoleError::Failed(error.to_string());
    let body = serde_json::to_value(&request).map_err(failed)?;
    let answer = console.api.change(Method::POST, &["events", "replay"], &vec![], Some(&body)).await?;
    let asked: ReplayView = serde_json::from_value(answer).map_err(failed)?;
    console.output.show(&asked, || {
        let letters =
            number.map_or_else(|| "dead letters".to_owned(), |number| counted(number, "dead letter"));
        format!("{} is asked to deliver {letters} again; what is left: ftpctl events list\n", asked.node)
    })?;
    Ok(0)
}

/// The number of dead letters that will be delivered again; `None` if authd does not show all of them.
///
/// # Errors
/// The request concerns no dead letter, for this reason.
fn wanted(view: &EventsView, request: &ReplayRequest) -> Result<Option<u64>, String> {
    if view.node.is_none() {
        return Err(OFF.to_owned());
    }
    if view.dead == 0 {
        return Err("there are no dead letters".to_owned());
    }
    let is_known = |name: &String| view.receivers.iter().any(|receiver| receiver.name == *name);
    if let Some(name) = request.receiver.as_ref().filter(|name| !is_known(name)) {
        let known: Vec<String> = view.receivers.iter().map(|receiver| printable(&receiver.name)).collect();
        return Err(format!("there is no receiver {name} in events_file; receivers: {}", known.join(", ")));
    }
    let is_wanted = |letter: &&DeadLetterView| {
        request.receiver.as_ref().is_none_or(|name| *name == letter.receiver)
            && request.id.as_ref().is_none_or(|id| *id == letter.id)
    };
    let letters: Vec<&DeadLetterView> = view.dead_letters.iter().filter(is_wanted).collect();
    let number = letters.iter().filter(|letter| is_known(&letter.receiver)).count() as u64;
    if (view.dead_letters.len() as u64) < view.dead {
        return Ok(None);
    }
    match (number, letters.first()) {
        (0, Some(letter)) => Err(format!(
            "the receiver {} is not in events_file any more, so its dead letters cannot be delivered",
            letter.receiver
        )),
        (0, None) => Err("there is no such dead letter: ftpctl events list shows them".to_owned()),
        _ => Ok(Some(number)),
    }
}

#[cfg(test)]
mod tests {
    use common::admin_api::EventReceiverView;

    use super::*;

    fn letter(receiver: &str, id: &str) -> DeadLetterView {
        DeadLetterView {
            id: id.to_owned(),
            receiver: receiver.to_owned(),
            event: "upload".to_owned(),
            time: "2026-11-28T05:03:27.250Z".to_owned(),
            user: "acme".to_owned(),
            path: "/in/a\u{1b}.csv".to_owned(),
            size: Some(48_213),
            since: "2026-11-29T05:03:27.250Z".to_owned(),
            attempts: 291,
            error: "status 422".to_owned(),
        }
    }

    fn view(dead: u64) -> EventsView {
        let receiver = EventReceiverView {
            name: "imports".to_owned(),
            pending: 2,
            oldest_seconds: Some(75),
            dead: 1,
            error: None,
        };
        EventsView {
            node: "ftp1".parse().ok(),
            published: None,
            receivers: vec![receiver],
            dead,
            dead_letters: vec![letter("old", "ftp1-2-2"), letter("imports", "ftp1-2-1")],
        }
    }

    fn request(receiver: Option<&str>, id: Option<&str>) -> ReplayRequest {
        ReplayRequest { receiver: receiver.map(str::to_owned), id: id.map(str::to_owned) }
    }

    #[test]
    fn the_list_shows_receivers_and_the_newest_dead_letter_last() {
        let expected = "\
ftp1 delivers the events of the cluster
RECEIVER  WAITING  OLDEST  DEAD  LAST ERROR
imports         2    1m15     1  –

700 dead letters, the newest 2:
TIME                  RECEIVER  EVENT   USER  PATH           SIZE  TRIES  LAST ERROR  ID
2026-11-28T05:03:27Z  imports   upload  acme  /in/a\u{fffd}.csv  48.2 kB    291  status 422  ftp1-2-1
2026-11-28T05:03:27Z  old       upload  acme  /in/a\u{fffd}.csv  48.2 kB    291  status 422  ftp1-2-2
To deliver them again: ftpctl events replay [--receiver NAME] [--id ID]
";
        assert_eq!(text(&view(700), Output { json: false, bytes: false }), expected);
    }

    #[test]
    fn a_replay_that_concerns_no_dead_letter_is_an_error_that_says_why() {
        assert_eq!(wanted(&view(2), &request(None, None)), Ok(Some(1)));
        assert_eq!(wanted(&view(2), &request(Some("imports"), Some("ftp1-2-1"))), Ok(Some(1)));
        assert_eq!(wanted(&view(700), &request(None, Some("ftp1-1-1"))), Ok(None));
        let error = |receiver, id| wanted(&view(2), &request(receiver, id)).unwrap_err();
        assert!(error(None, Some("ftp1-2-2")).contains("old is not in events_file any more"));
        assert!(error(None, Some("ftp1-1-1")).contains("there is no such dead letter"));
        assert!(error(Some("imprts"), None).ends_with("receivers: imports"));
        assert_eq!(wanted(&EventsView::default(), &request(None, None)).unwrap_err(), OFF);
    }
}
