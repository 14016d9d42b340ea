//! `GET /v1/audit`: searches the audit trail in Redis.

use std::{
    collections::HashSet,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use common::{
    admin_api::{AuditEntry, AuditPage},
    audit::{AuditEvent, AuditRange, AuditRecord, AuditResult, StreamId},
    clock::parse_rfc3339,
    node::NodeName,
    registry::RegistryView,
    session::SessionId,
};
use serde::Deserialize;

use super::registry;
use crate::{error::ApiError, path_glob::PathGlob, service::Service};

/// Number of records in a page, unless the query says otherwise.
const USUAL_PAGE: usize = 100;

/// Maximum number of records in a page.
const MAX_PAGE: usize = 1000;

/// Number of records in a request to Redis, so that it serves other clients in between.
const BATCH: usize = 1000;

/// Maximum number of records that one request looks at. The next page goes on from there.
const MAX_SEEN: usize = 20_000;

/// Clocks of nodes and of Redis may differ by this. A record that is much older than the wanted ones ends the
/// search, because a record is in the stream after it happened.
const CLOCK_DIFFERENCE: Duration = Duration::from_secs(600);

/// The query of `GET /v1/audit`. A record is shown if all given conditions hold.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditQuery {
    user: Option<String>,
    /// A pattern: see [`PathGlob`].
    path: Option<String>,
    /// Kinds of records, separated by commas.
    event: Option<String>,
    result: Option<AuditResult>,
    node: Option<NodeName>,
    session: Option<SessionId>,
    address: Option<IpAddr>,
    /// RFC 3339, or the time before now: `2h`.
    since: Option<String>,
    until: Option<String>,
    limit: Option<usize>,
    /// `next` of the previous page.
    cursor: Option<String>,
}

/// The checked conditions.
#[derive(Debug, Default)]
pub(crate) struct AuditFilter {
    user: Option<String>,
    path: Option<PathGlob>,
    /// Empty: every kind.
    events: Vec<AuditEvent>,
    result: Option<AuditResult>,
    node: Option<NodeName>,
    session: Option<SessionId>,
    address: Option<IpAddr>,
    since: Option<SystemTime>,
    until: Option<SystemTime>,
}

impl AuditFilter {
    /// The logins of a user, and those that were refused.
    pub(super) fn logins_of(user: &str) -> Self {
        let (user, events) = (Some(user.to_owned()), vec![AuditEvent::Login]);
        Self { user, events, ..Self::default() }
    }

    fn new(query: &AuditQuery) -> Result<Self, ApiError> {
        let event = |name: &str| {
            let unknown = |_| ApiError::InvalidRequest(format!("event: {name:?} is no kind of record"));
            name.parse().map_err(unknown)
        };
        let events = query.event.as_deref().map(|names| names.split(',').map(event).collect());
        Ok(Self {
            user: query.user.clone(),
            path: query.path.as_deref().map(PathGlob::new),
            events: events.transpose()?.unwrap_or_default(),
            result: query.result,
            node: query.node.clone(),
            session: query.session,
            address: query.address.map(|address| address.to_canonical()),
            since: query.since.as_deref().map(|text| time("since", text)).transpose()?,
            until: query.until.as_deref().map(|text| time("until", text)).transpose()?,
        })
    }

    fn matches(&self, record: &AuditRecord) -> bool {
        fn holds<T: PartialEq>(wanted: Option<&T>, found: Option<&T>) -> bool {
            wanted.is_none_or(|wanted| found == Some(wanted))
        }
        holds(self.user.as_ref(), record.user.as_ref())
            && holds(self.node.as_ref(), record.node.as_ref())
            && holds(self.session.as_ref(), record.session.as_ref())
            && holds(self.address.as_ref(), record.address.map(|address| address.to_canonical()).as_ref())
            && holds(self.result.as_ref(), Some(&record.result))
            && (self.events.is_empty() || self.events.contains(&record.event))
            && self.path.as_ref().is_none_or(|glob| {
                let of_sources = record.sources.iter().map(|source| &source.path);
                record.path.iter().chain(&record.new_path).chain(of_sources).any(|path| glob.matches(path))
            })
            && self.is_in_time(record)
    }

    fn is_in_time(&self, record: &AuditRecord) -> bool {
        if self.since.is_none() && self.until.is_none() {
            return true;
        }
        let Some(time) = parse_rfc3339(&record.time) else { return false };
        self.since.is_none_or(|since| time >= since) && self.until.is_none_or(|until| time <= until)
    }

    /// Returns true if neither this record of the stream nor an older one can be in time.
    fn is_over(&self, position: StreamId) -> bool {
        let earliest = self.since.and_then(|since| since.checked_sub(CLOCK_DIFFERENCE));
        earliest.is_some_and(|earliest| position.time() < earliest)
    }
}

/// A time in RFC 3339, or one before now.
fn time(key: &str, text: &str) -> Result<SystemTime, ApiError> {
    let ago = |duration| SystemTime::now().checked_sub(duration);
    parse_rfc3339(text).or_else(|| humantime::parse_duration(text).ok().and_then(ago)).ok_or_else(|| {
        let message = format!("{key}: expected a time such as 2026-11-27T21:14:00Z, or 2h for 2 hours ago");
        ApiError::InvalidRequest(message)
    })
}

/// A page of the records that match the query, newest first.
///
/// # Errors
/// The query is invalid, or Redis cannot be reached.
pub async fn page(service: &Service, query: AuditQuery) -> Result<AuditPage, ApiError> {
    let registry = registry(service)?;
    let invalid = |_| ApiError::InvalidRequest("cursor: not from a previous page".to_owned());
    let start = query.cursor.as_deref().map(|cursor| cursor.parse().map_err(invalid)).transpose()?;
    let limit = query.limit.unwrap_or(USUAL_PAGE).clamp(1, MAX_PAGE);
    search(registry, &AuditFilter::new(&query)?, limit, start).await
}

/// The newest matching records before `start`.
///
/// # Errors
/// Redis cannot be reached.
pub(super) async fn search(
    registry: &RegistryView,
    filter: &AuditFilter,
    limit: usize,
    start: Option<StreamId>,
) -> Result<AuditPage, ApiError> {
    let mut range = start.map_or(AuditRange::Newest, AuditRange::Before);
    let (mut records, mut ids, mut seen) = (Vec::new(), HashSet::new(), 0);
    loop {
        let batch = registry.audit(range, BATCH).await?;
        let Some((last, _)) = batch.last() else { return Ok(AuditPage { records, next: None }) };
        let last = *last;
        for (position, record) in batch {
            seen += 1;
            if filter.is_over(position) {
                return Ok(AuditPage { records, next: None });
            }
            // A record that was sent twice is shown once.
            if filter.matches(&record) && ids.insert(record.id.clone()) {
                records.push(AuditEntry { position: position.to_string(), record });
            }
            if records.len() == limit {
                return Ok(AuditPage { records, next: Some(position.to_string()) });
            }
        }
        if seen >= MAX_SEEN {
            return Ok(AuditPage { records, next: Some(last.to_string()) });
        }
        range = AuditRange::Before(last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_absolute_or_before_now() {
        assert_eq!(
            time("since", "1970-01-01T00:00:01Z").unwrap(),
            SystemTime::UNIX_EPOCH + Duration::from_secs(1)
        );
        let since = time("since", "2h").unwrap();
        let ago = SystemTime::now().duration_since(since).unwrap();
        assert!((7200..7260).contains(&ago.as_secs()), "{ago:?}");
        assert!(time("since", "yesterday").is_err());
    }
}
