//! `/v1/sessions`: lists the sessions of the cluster, ends a session.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use common::{
    clock::rfc3339,
    node::{NodeCommand, NodeName},
    process::http::Peer,
    registry::NodeOrders,
    session::{SessionId, SessionRecord},
};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::{address, existing, registry};
use crate::{error::ApiError, service::Service};

/// Maximum time that a request to end a session waits for the node.
const END_WAIT: Duration = Duration::from_secs(2);

/// Interval between two looks at the registry during that time.
const END_POLL: Duration = Duration::from_millis(50);

/// The query of `GET /v1/sessions`. A session is shown if all given conditions hold.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionFilter {
    user: Option<String>,
    node: Option<NodeName>,
    address: Option<IpAddr>,
}

impl SessionFilter {
    fn matches(&self, session: &SessionRecord) -> bool {
        self.user.as_ref().is_none_or(|user| *user == session.user)
            && self.node.as_ref().is_none_or(|node| *node == session.node)
            && self.address.is_none_or(|address| address.to_canonical() == session.address.to_canonical())
    }
}

/// A session in the response to `GET /v1/sessions`.
#[derive(Debug, Serialize)]
pub struct SessionView {
    id: SessionId,
    node: NodeName,
    user: String,
    address: IpAddr,
    /// Time of the login; RFC 3339.
    since: String,
    /// True if an administrator has ordered the session's end.
    ending: bool,
    /// Time of that order; RFC 3339.
    ending_since: Option<String>,
}

impl From<SessionRecord> for SessionView {
    fn from(record: SessionRecord) -> Self {
        let SessionRecord { id, node, user, address, since } = record;
        Self { id, node, user, address, since: rfc3339(since), ending: false, ending_since: None }
    }
}

impl SessionView {
    fn with(self, orders: &NodeOrders) -> Self {
        let asked = orders.ends.get(&self.id);
        Self { ending: asked.is_some(), ending_since: asked.copied().map(rfc3339), ..self }
    }
}

/// Result of a request to end a session.
#[derive(Debug)]
pub enum SessionEnd {
    Gone,
    /// The node has the order and has not carried it out yet.
    Asked(SessionView),
}

/// The sessions of the cluster, oldest first.
///
/// # Errors
/// Redis cannot be reached.
pub async fn list(service: &Service, filter: SessionFilter) -> Result<Vec<SessionView>, ApiError> {
    let registry = registry(service)?;
    let mut sessions = registry.sessions().await?;
    sessions.retain(|session| filter.matches(session));
    sessions.sort_by_key(|session| (session.since, session.id));
    let mut orders = HashMap::new();
    for session in &sessions {
        if !orders.contains_key(&session.node) {
            orders.insert(session.node.clone(), registry.orders(&session.node).await?);
        }
    }
    let no_orders = NodeOrders::default();
    let view = |session: SessionRecord| {
        let orders = orders.get(&session.node).unwrap_or(&no_orders);
        SessionView::from(session).with(orders)
    };
    Ok(sessions.into_iter().map(view).collect())
}

/// One session.
///
/// # Errors
/// No session has this id, or Redis cannot be reached.
pub async fn show(service: &Service, id: &str) -> Result<SessionView, ApiError> {
    let id: SessionId = existing(id, "session")?;
    let registry = registry(service)?;
    let session = registry.find_session(id).await?.ok_or(ApiError::NotFound("session"))?;
    let orders = registry.orders(&session.node).await?;
    Ok(SessionView::from(session).with(&orders))
}

/// Orders the session's node to end it, and waits for up to 2 seconds. `peer` is for the log.
///
/// # Errors
/// No session has this id, or Redis cannot be reached.
pub async fn end(service: &Service, id: &str, peer: Option<Peer>) -> Result<SessionEnd, ApiError> {
    let id: SessionId = existing(id, "session")?;
    let registry = registry(service)?;
    let session = registry.find_session(id).await?.ok_or(ApiError::NotFound("session"))?;
    if !registry.send(&session.node, &NodeCommand::EndSession { session: id }).await? {
        // The node is not live any more, so its sessions have ended, too.
        return Ok(SessionEnd::Gone);
    }
    let by = address(peer);
    log::info!(
        session:% = id, user = session.user, node:% = session.node, by;
        "an administrator ordered a session's end"
    );
    let deadline = Instant::now() + END_WAIT;
    loop {
        let Some(session) = registry.find_session(id).await? else { return Ok(SessionEnd::Gone) };
        if Instant::now() >= deadline {
            let orders = registry.orders(&session.node).await?;
            return Ok(SessionEnd::Asked(SessionView::from(session).with(&orders)));
        }
        sleep(END_POLL).await;
    }
}
