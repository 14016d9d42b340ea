//! `GET /v1/live`: server-sent events of the cluster.

use common::audit::{AuditRange, StreamId};
use serde::Deserialize;
use warp::{
    Reply,
    http::{HeaderMap, HeaderValue, header},
    reply::{self, Response},
};

use super::registry;
use crate::{error::ApiError, feed::Topic, service::Service};

/// The query of `GET /v1/live`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeedQuery {
    /// Names of events, separated by commas; missing: all.
    events: Option<String>,
}

/// The header with which a browser that connects again tells the last record that it got.
const LAST_EVENT_ID: &str = "last-event-id";

/// Maximum number of records that a client gets which it missed between two connections.
const MISSED: usize = 1000;

/// A stream of events that ends when the client goes away, or after some minutes. It begins with the records
/// after the one that `headers` names.
///
/// # Errors
/// There is no such event, there are too many listeners, or Redis cannot be reached.
pub async fn listen(service: &Service, query: FeedQuery, headers: &HeaderMap) -> Result<Response, ApiError> {
    let registry = registry(service)?;
    let topics = match &query.events {
        None => Topic::ALL.to_vec(),
        Some(names) => names.split(',').map(topic).collect::<Result<_, _>>()?,
    };
    let mut listener = service.feed.listen(&topics).map_err(|full| ApiError::TooManyListeners(full.0))?;
    let last = headers.get(LAST_EVENT_ID).and_then(|last| last.to_str().ok()?.parse::<StreamId>().ok());
    if let Some(last) = last.filter(|_| topics.contains(&Topic::Audit)) {
        let missed = registry.audit(AuditRange::After(last), MISSED).await?;
        let is_full = missed.len() == MISSED;
        listener.begin_with(missed);
        if is_full {
            listener.begin_with_loss("more records came since the last connection; see /v1/audit");
        }
    }
    let mut response = reply::stream(listener.stream()).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // nginx otherwise keeps events back until its buffer is full.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

fn topic(name: &str) -> Result<Topic, ApiError> {
    Topic::named(name).ok_or_else(|| {
        let names = Topic::ALL.map(Topic::as_str).join(", ");
        ApiError::InvalidRequest(format!("events: expected some of {names}, separated by commas"))
    })
}
