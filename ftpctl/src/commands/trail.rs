//! `audit`: searches and follows the audit trail.

use std::time::Duration;

use common::{
    admin_api::{AuditEntry, AuditPage},
    audit::{AuditEvent, AuditRecord, AuditResult},
};
use tokio::time::sleep;

use crate::{
    api::Query,
    cli::AuditArguments,
    console::{Console, Output},
    error::ConsoleError,
    render::human::{printable, size},
};

/// Time between two questions of `--follow`.
const POLL: Duration = Duration::from_secs(1);

/// Number of records in one answer of authd.
const PAGE: usize = 500;

/// The place of a record: its id in the stream, which is a time in ms and a number.
type Position = (u64, u64);

pub(crate) async fn audit(console: &Console, arguments: &AuditArguments) -> Result<u8, ConsoleError> {
    let query = query(arguments);
    if !arguments.follow {
        let records = search(console, &query, arguments.limit, None).await?;
        console.output.show(&serde_json::json!({ "records": records }), || {
            let lines = records.iter().rev().map(|entry| line(&entry.record, console.output));
            lines.collect()
        })?;
        return Ok(0);
    }
    // Asked first: no record is missed, and none that was there before is searched again.
    let newest = search(console, &vec![], 1, None).await?;
    let mut seen = newest.first().map_or((0, 0), |entry| position(&entry.position));
    let mut records = search(console, &query, arguments.limit, None).await?;
    loop {
        seen = records.first().map_or(seen, |entry| seen.max(position(&entry.position)));
        // authd's answer has the newest record first, and people read on downwards.
        for entry in records.iter().rev() {
            console.output.show(entry, || line(&entry.record, console.output))?;
        }
        sleep(POLL).await;
        records = search(console, &query, usize::MAX, Some(seen)).await?;
    }
}

fn query(arguments: &AuditArguments) -> Query {
    let session = arguments.session.map(|session| session.to_string());
    let address = arguments.address.map(|address| address.to_string());
    let values = [
        ("user", &arguments.user),
        ("path", &arguments.path),
        ("event", &arguments.event),
        ("result", &arguments.result),
        ("node", &arguments.node),
        ("session", &session),
        ("address", &address),
        ("since", &arguments.since),
        ("until", &arguments.until),
    ];
    values.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))).collect()
}

/// At most `limit` records, newest first. With `after`, only those after this position.
async fn search(
    console: &Console,
    query: &Query,
    limit: usize,
    after: Option<Position>,
) -> Result<Vec<AuditEntry>, ConsoleError> {
    let is_old = |place: &str| after.is_some_and(|after| position(place) <= after);
    let mut found: Vec<AuditEntry> = Vec::new();
    let mut cursor: Option<String> = None;
    while found.len() < limit {
        let mut query = query.clone();
        query.push(("limit", (limit - found.len()).min(PAGE).to_string()));
        query.extend(cursor.map(|cursor| ("cursor", cursor)));
        let page: AuditPage = console.api.get(&["audit"], &query).await?;
        let all = page.records.len();
        let new: Vec<AuditEntry> =
            page.records.into_iter().take_while(|entry| !is_old(&entry.position)).collect();
        let is_end = new.len() < all;
        found.extend(new);
        match page.next {
            Some(next) if !is_end && !is_old(&next) => cursor = Some(next),
            _ => break,
        }
    }
    Ok(found)
}

fn position(text: &str) -> Position {
    let (time, number) = text.split_once('-').unwrap_or((text, "0"));
    (time.parse().unwrap_or(0), number.parse().unwrap_or(0))
}

/// `2026-11-27T02:41:07Z ftp1 delete /reports/q3.csv 18.2 kB acme 198.51.100.7 session 5fe8eb37 250`
fn line(record: &AuditRecord, output: Output) -> String {
    let is_failed = record.result == AuditResult::Failed;
    // Whole seconds are enough for people.
    let time = record.time.split_once('.').map_or(record.time.clone(), |(time, _)| format!("{time}Z"));
    let mut words = vec![time];
    words.push(record.node.as_ref().map_or_else(|| "authd".to_owned(), ToString::to_string));
    words.push(match (record.event, &record.command) {
        (AuditEvent::Other, Some(command)) => command.clone(),
        (event, _) => event.name().to_owned(),
    });
    words.extend(record.action.clone());
    words.extend(record.object.clone());
    words.extend(record.by.as_ref().map(|by| format!("by {by}")));
    for (key, value) in &record.after {
        let before = record.before.get(key).map(|before| format!("{before} → ")).unwrap_or_default();
        words.push(format!("{key}={before}{value}"));
    }
    words.extend(record.path.clone());
    words.extend(record.new_path.as_ref().map(|path| format!("→ {path}")));
    words.extend(record.value.clone());
    words.extend(record.bytes.map(|bytes| size(bytes, output.bytes)));
    words.extend(record.user.clone());
    words.extend(record.address.map(|address| address.to_string()));
    words.extend(record.session.map(|session| format!("session {}", &session.to_string()[..8])));
    words.extend(record.code.map(|code| code.to_string()));
    if is_failed {
        words.push(format!("refused: {}", record.reason.as_deref().unwrap_or("?")));
        words.extend(record.detail.as_ref().map(|detail| format!("({detail})")));
    } else {
        words.extend(record.reason.clone());
    }
    let text = printable(&words.join(" "));
    (if is_failed { output.coloured("31", &text) } else { text }) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Output = Output { json: false, bytes: false };

    #[test]
    fn a_line_names_who_did_what_where_and_with_which_result() {
        let mut record = AuditRecord::new(AuditEvent::Delete, AuditResult::Ok);
        record.time = "2026-11-27T02:41:07.123456Z".to_owned();
        record.node = Some("ftp1".parse().unwrap());
        record.path = Some("/reports/q3\u{1b}.csv".to_owned());
        record.user = Some("acme".to_owned());
        record.address = Some([198, 51, 100, 7].into());
        record.session = Some("5fe8eb3700000000".parse().unwrap());
        record.code = Some(250);
        let expected = "2026-11-27T02:41:07Z ftp1 delete /reports/q3\u{fffd}.csv acme 198.51.100.7 session \
                        5fe8eb37 250\n";
        assert_eq!(line(&record, PLAIN), expected);
        record.result = AuditResult::Failed;
        record.code = Some(550);
        record.reason = Some("no_permission".to_owned());
        assert!(line(&record, PLAIN).ends_with("session 5fe8eb37 550 refused: no_permission\n"));
    }

    #[test]
    fn a_line_of_an_administrators_action_shows_what_changed() {
        let mut record = AuditRecord::new(AuditEvent::Admin, AuditResult::Ok);
        record.time = "2026-11-27T02:41:07Z".to_owned();
        record.action = Some("user.update".to_owned());
        record.object = Some("acme".to_owned());
        record.by = Some("kim".to_owned());
        record.before = [("enabled".to_owned(), true.into())].into();
        record.after = [("enabled".to_owned(), false.into())].into();
        let expected = "2026-11-27T02:41:07Z authd admin user.update acme by kim enabled=true → false\n";
        assert_eq!(line(&record, PLAIN), expected);
    }

    #[test]
    fn positions_are_ordered_as_numbers() {
        assert!(position("9-2") < position("10-1") && position("10-2") < position("10-10"));
    }
}
