//! `/v1/sessions`: lists the sessions of the cluster, ends sessions.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use common::{
    admin_api::{BlockRequest, BlockSubject, KickView, SessionView},
    clock::rfc3339,
    node::{NodeCommand, NodeName},
    registry::{NodeOrders, RegistryView},
    session::{SessionId, SessionRecord},
};
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::{blocks, existing, live, registry};
use crate::{accounts::name::UserName, administrators::Actor, error::ApiError, service::Service};

/// Maximum time that a request to end a session waits for the node.
const END_WAIT: Duration = Duration::from_secs(2);

/// Interval between two looks at the registry during that time.
const END_POLL: Duration = Duration::from_millis(50);

/// Maximum number of sessions in a page.
const MAX_PAGE: usize = 10_000;

/// The query of `GET /v1/sessions`. A session is shown if all given conditions hold.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionFilter {
    user: Option<String>,
    node: Option<NodeName>,
    address: Option<IpAddr>,
    /// True: also shows what each session does.
    #[serde(default)]
    details: bool,
    /// Maximum number of sessions.
    limit: Option<usize>,
    /// `SECONDS-ID` of the last session of the previous page.
    cursor: Option<String>,
}

/// The query of `DELETE /v1/sessions`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserEndQuery {
    user: String,
    /// Seconds for which the user is blocked, too.
    block: Option<u64>,
    #[serde(default)]
    reason: String,
}

/// The query of `DELETE /v1/sessions/{id}`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndQuery {
    #[serde(default)]
    reason: String,
}

/// Maximum length of a reason, in characters.
const MAX_REASON: usize = 200;

/// Checks the reason of a session's end. `None`: no reason was given.
pub(super) fn reason(text: &str) -> Result<Option<String>, ApiError> {
    if text.chars().count() > MAX_REASON || text.contains(char::is_control) {
        let message = format!("reason: at most {MAX_REASON} characters, no control characters");
        return Err(ApiError::InvalidRequest(message));
    }
    Ok(Some(text.to_owned()).filter(|text| !text.is_empty()))
}

impl SessionFilter {
    /// All sessions, with what they do.
    pub(crate) fn with_details() -> Self {
        Self { details: true, ..Self::default() }
    }

    fn matches(&self, session: &SessionRecord) -> bool {
        self.user.as_ref().is_none_or(|user| *user == session.user)
            && self.node.as_ref().is_none_or(|node| *node == session.node)
            && self.address.is_none_or(|address| address.to_canonical() == session.address.to_canonical())
    }

    /// The place after which the page begins.
    fn start(&self) -> Result<Option<(u64, SessionId)>, ApiError> {
        let Some(cursor) = &self.cursor else { return Ok(None) };
        let place =
            cursor.split_once('-').and_then(|(since, id)| Some((since.parse().ok()?, id.parse().ok()?)));
        place.map(Some).ok_or_else(|| ApiError::InvalidRequest("cursor: not from a previous page".to_owned()))
    }
}

fn view(record: SessionRecord, orders: &NodeOrders) -> SessionView {
    let SessionRecord { id, node, user, address, since } = record;
    let asked = orders.ends.get(&id).copied();
    SessionView {
        id,
        node,
        user,
        address,
        since: rfc3339(since),
        ending: asked.is_some(),
        ending_since: asked.map(rfc3339),
        details: None,
    }
}

/// Result of a request to end a session.
#[derive(Debug)]
pub enum SessionEnd {
    Gone,
    /// The node has the order and has not carried it out yet.
    Asked(Box<SessionView>),
}

/// The sessions of the cluster, oldest first, and the cursor of the next page if there is one.
///
/// # Errors
/// The cursor is malformed, or Redis cannot be reached.
pub async fn list(
    service: &Service,
    filter: SessionFilter,
) -> Result<(Vec<SessionView>, Option<String>), ApiError> {
    let start = filter.start()?;
    let registry = registry(service)?;
    let mut sessions = match &filter.user {
        Some(user) => registry.sessions_of(user).await?,
        None => registry.sessions().await?,
    };
    sessions.retain(|session| {
        filter.matches(session) && start.is_none_or(|start| (session.since, session.id) > start)
    });
    sessions.sort_by_key(|session| (session.since, session.id));
    let limit = filter.limit.unwrap_or(usize::MAX).clamp(1, MAX_PAGE);
    let limit = if filter.limit.is_some() { limit } else { usize::MAX };
    let is_last = sessions.len() <= limit;
    sessions.truncate(limit);
    let next = sessions.last().filter(|_| !is_last).map(|last| format!("{}-{}", last.since, last.id));
    let mut views = with_orders(registry, sessions).await?;
    if filter.details {
        live::add_details(service, &mut views).await?;
    }
    Ok((views, next))
}

/// Adds the orders to end sessions.
async fn with_orders(
    registry: &RegistryView,
    sessions: Vec<SessionRecord>,
) -> Result<Vec<SessionView>, ApiError> {
    let mut orders = HashMap::new();
    for session in &sessions {
        if !orders.contains_key(&session.node) {
            orders.insert(session.node.clone(), registry.orders(&session.node).await?);
        }
    }
    let no_orders = NodeOrders::default();
    let view = |session: SessionRecord| {
        let orders = orders.get(&session.node).unwrap_or(&no_orders);
        view(session, orders)
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
    Ok(view(session, &orders))
}

/// Orders the session's node to end it, and waits for up to 2 seconds.
///
/// # Errors
/// No session has this id, or Redis cannot be reached.
pub async fn end(service: &Service, id: &str, query: EndQuery) -> Result<SessionEnd, ApiError> {
    let id: SessionId = existing(id, "session")?;
    let registry = registry(service)?;
    let session = registry.find_session(id).await?.ok_or(ApiError::NotFound("session"))?;
    if !registry
        .send(&session.node, &NodeCommand::EndSession { session: id, reason: reason(&query.reason)? })
        .await?
    {
        // The node is not live any more, so its sessions have ended, too.
        return Ok(SessionEnd::Gone);
    }
    let deadline = Instant::now() + END_WAIT;
    loop {
        let Some(session) = registry.find_session(id).await? else { return Ok(SessionEnd::Gone) };
        if Instant::now() >= deadline {
            let orders = registry.orders(&session.node).await?;
            return Ok(SessionEnd::Asked(Box::new(view(session, &orders))));
        }
        sleep(END_POLL).await;
    }
}

/// Orders the end of all sessions of a user. With `block` the user is blocked first, so that the client
/// cannot log in again at once.
///
/// # Errors
/// Redis cannot be reached, or there are too many blocks.
pub async fn end_user(service: &Service, query: UserEndQuery, by: &Actor) -> Result<KickView, ApiError> {
    let UserEndQuery { user, block, reason } = query;
    let user: UserName = service.accounts.declared.canonical_name(existing(&user, "user")?);
    let told = self::reason(&reason)?;
    let registry = registry(service)?;
    // The block ends the sessions, too, so they are listed before.
    let mut sessions = registry.sessions_of(user.as_str()).await?;
    let blocked_until = match block {
        Some(seconds) => {
            let request = BlockRequest {
                kind: BlockSubject::User,
                name: user.to_string(),
                seconds: Some(seconds),
                reason,
            };
            blocks::create(service, request, by).await?.until
        }
        None => None,
    };
    let newer = registry.sessions_of(user.as_str()).await?;
    sessions.extend(
        newer
            .into_iter()
            .filter(|newer| sessions.iter().all(|known| known.id != newer.id))
            .collect::<Vec<_>>(),
    );
    for session in &sessions {
        let command = NodeCommand::EndSession { session: session.id, reason: told.clone() };
        registry.send(&session.node, &command).await?;
    }
    Ok(KickView { sessions: with_orders(registry, sessions).await?, blocked_until })
}
