//! Computes the events of the [`feed`](crate::feed): each once for all listeners, and only while there are
//! listeners.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use common::{
    admin_api::{LiveSessionsView, LiveUnavailable, SessionView},
    audit::{AuditRange, StreamId},
    clock::{rfc3339, unix_seconds},
};
use tokio::{
    join,
    time::{Instant, sleep},
};

use crate::{
    error::ApiError,
    feed::{Topic, json},
    handlers::{
        sessions::{self, SessionFilter},
        status::{self, ProblemQuery},
    },
    service::Service,
};

/// Time between two events of the status and of the sessions.
const INTERVAL: Duration = Duration::from_secs(1);

/// Time between two events of the problems.
const PROBLEMS_INTERVAL: Duration = Duration::from_secs(5);

/// Time between two looks at the audit trail.
const RECORDS_INTERVAL: Duration = Duration::from_millis(500);

/// Maximum number of records in one request.
const RECORDS: usize = 500;

/// The first listener of the audit trail also gets the records of this time.
const RECENT: Duration = Duration::from_secs(10);

/// After an event that took long to compute, this many times that duration passes before the next one.
const REST: u32 = 3;

/// Maximum number of sessions in an event.
const MAX_SESSIONS: usize = 1000;

/// Serves the feed. Never returns.
pub(crate) async fn run(service: Arc<Service>) {
    join!(
        publish(&service, Topic::Status, INTERVAL),
        publish(&service, Topic::Sessions, INTERVAL),
        publish(&service, Topic::Problems, PROBLEMS_INTERVAL),
        publish_records(&service),
    );
}

async fn publish(service: &Service, topic: Topic, interval: Duration) {
    loop {
        service.feed.wanted(topic).await;
        let began = Instant::now();
        match compute(service, topic).await {
            Ok(view) => service.feed.publish(topic, topic.as_str(), &view),
            Err(error) => {
                let (time, event) = (rfc3339(unix_seconds()), topic.as_str().to_owned());
                let view = LiveUnavailable { time, event, message: error.to_string() };
                service.feed.publish(topic, "unavailable", &json(&view));
            }
        }
        let took = began.elapsed();
        sleep(interval.saturating_sub(took).max(took * REST)).await;
    }
}

/// Publishes the records of the audit trail as they come.
async fn publish_records(service: &Service) {
    let Some(registry) = &service.registry else { return };
    let mut last = None;
    loop {
        if service.feed.wanted(Topic::Audit).await {
            last = None;
        }
        let recent = || StreamId::at(SystemTime::now().checked_sub(RECENT).unwrap_or(SystemTime::UNIX_EPOCH));
        let from = *last.get_or_insert_with(recent);
        // The link logs that Redis is away. The records come later.
        let records = registry.audit(AuditRange::After(from), RECORDS).await.unwrap_or_default();
        let is_all = records.len() < RECORDS;
        for (position, record) in records {
            last = Some(position);
            service.feed.publish_record(position, record);
        }
        if is_all {
            sleep(RECORDS_INTERVAL).await;
        }
    }
}

/// The data of the topic's event.
async fn compute(service: &Service, topic: Topic) -> Result<String, ApiError> {
    Ok(match topic {
        Topic::Status => json(&status::status(service).await?),
        Topic::Sessions => json(&live_sessions(service).await?),
        Topic::Problems => json(&status::problems(service, ProblemQuery::default()).await?),
        // Its events are records: see `publish_records`.
        Topic::Audit => String::new(),
    })
}

/// The sessions with their details, the fastest transfers first.
async fn live_sessions(service: &Service) -> Result<LiveSessionsView, ApiError> {
    let (mut sessions, _) = sessions::list(service, SessionFilter::with_details()).await?;
    let total = sessions.len();
    let rate = |session: &SessionView| {
        let transfer = session.details.as_ref().and_then(|details| details.transfer.as_ref());
        transfer.map_or(-1.0, |transfer| transfer.rate)
    };
    // Stable, so that sessions without a transfer remain in the order of their logins.
    sessions.sort_by(|a, b| rate(b).total_cmp(&rate(a)));
    sessions.truncate(MAX_SESSIONS);
    Ok(LiveSessionsView { time: rfc3339(unix_seconds()), total, sessions })
}
