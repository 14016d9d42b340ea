//! `drain`, `undrain`.

use std::{io::IsTerminal, time::Duration};

use common::admin_api::{DrainStage, DrainView, SessionView};
use reqwest::Method;
use tokio::time::{Instant, sleep};

use crate::{
    console::Console,
    error::{ConsoleError, FOUND},
    render::human::{clock_time, counted, printable, span},
};

const POLL: Duration = Duration::from_secs(1);

/// A node that serves again says so within this time: it refreshes its entry in Redis every third of
/// `node_lease` (15 s), and at once if the command reaches it.
const UNDRAIN_WAIT: Duration = Duration::from_secs(20);

pub(crate) async fn drain(console: &Console, node: &str, wait: bool) -> Result<u8, ConsoleError> {
    console.api.change(Method::POST, &["nodes", node, "drain"], &vec![], None).await?;
    let mut last = String::new();
    loop {
        let view = state(console, node).await?;
        let line = line(node, &view, longest(console, node, &view).await);
        if console.output.json && (!wait || is_over(&view)) {
            console.output.line(&serde_json::to_string(&view).unwrap_or_default())?;
        } else if line != last {
            // On a terminal, the line replaces the previous one.
            if std::io::stdout().is_terminal() && !last.is_empty() && !console.output.json {
                console.output.note(&format!("\x1b[1A\x1b[2K{line}"))?;
            } else {
                console.output.note(&line)?;
            }
        }
        last = line;
        match view.drain {
            DrainStage::Drained => return Ok(0),
            DrainStage::None => return Ok(FOUND),
            DrainStage::Asked | DrainStage::Draining if !wait => return Ok(0),
            DrainStage::Asked | DrainStage::Draining => sleep(POLL).await,
        }
    }
}

pub(crate) async fn undrain(console: &Console, node: &str) -> Result<u8, ConsoleError> {
    console.api.change(Method::POST, &["nodes", node, "undrain"], &vec![], None).await?;
    let end = Instant::now() + UNDRAIN_WAIT;
    let view = loop {
        let view = state(console, node).await?;
        if is_over(&view) || Instant::now() >= end {
            break view;
        }
        sleep(POLL / 4).await;
    };
    console.output.show(&view, || {
        let node = printable(node);
        match view.drain {
            DrainStage::None => format!("{node} serves: it does not drain\n"),
            DrainStage::Drained => {
                format!("{node} had drained before the order reached it; start it again\n")
            }
            DrainStage::Asked => format!("{node} is asked to drain again\n"),
            DrainStage::Draining => {
                format!(
                    "{node} still drains: it was told to stop on its host, too, or does not get the order\n"
                )
            }
        }
    })?;
    Ok(if view.drain == DrainStage::None { 0 } else { FOUND })
}

async fn state(console: &Console, node: &str) -> Result<DrainView, ConsoleError> {
    console.api.get(&["nodes", node, "drain"], &vec![]).await
}

fn is_over(view: &DrainView) -> bool {
    matches!(view.drain, DrainStage::Drained | DrainStage::None)
}

/// The longest transfer of the node, in words.
async fn longest(console: &Console, node: &str, view: &DrainView) -> Option<String> {
    if console.output.json || view.drain != DrainStage::Draining || view.transfers == 0 {
        return None;
    }
    let query = vec![("node", node.to_owned()), ("details", "true".to_owned())];
    // The progress is shown without this, too.
    let sessions: Vec<SessionView> = console.api.get(&["sessions"], &query).await.ok()?;
    let transfers = sessions.into_iter().filter_map(|session| {
        let details = session.details?;
        let seconds = details.transfer.as_ref()?.seconds;
        Some((seconds, session.user, details.path.unwrap_or_default()))
    });
    let (seconds, user, path) = transfers.max_by(|a, b| a.0.total_cmp(&b.0))?;
    Some(format!("longest {} ({} {})", span(seconds), printable(&user), printable(&path)))
}

fn line(node: &str, view: &DrainView, longest: Option<String>) -> String {
    let node = printable(node);
    match view.drain {
        DrainStage::None => {
            format!("{node} does not drain: it has started again")
        }
        DrainStage::Asked => format!("{node} is asked to drain"),
        DrainStage::Drained => format!("{node} has drained"),
        DrainStage::Draining => {
            let mut parts = vec![format!(
                "draining {node}: {}, {} left",
                counted(view.sessions.into(), "session"),
                counted(view.transfers.into(), "transfer")
            )];
            parts.extend(longest);
            parts.extend(view.until.as_deref().map(|until| format!("ends by {}", clock_time(until))));
            parts.join(", ")
        }
    }
}
