//! The feed of `GET /v1/live`: the newest state of each topic, and each record of the audit trail, for all
//! listeners. [`crate::feed_source`] computes each event once, however many listeners there are, and only
//! for topics that have a listener.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::pending,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use common::{
    admin_api::{AuditEntry, LiveUnavailable},
    audit::{AuditRecord, StreamId},
    clock::{rfc3339, unix_seconds},
};
use serde::Serialize;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, broadcast, mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use warp::{Stream, hyper::body::Bytes};

use crate::metrics;

/// A stream ends after this time. The client connects again, and shows its token again.
const STREAM_LIFE: Duration = Duration::from_secs(300);

/// A stream without an event for this time gets a comment, so that nothing between takes it for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A stream whose client takes no event for this time ends.
const SEND_LIMIT: Duration = Duration::from_secs(30);

/// Number of records that a slow listener may be behind. It misses those before.
const RECORDS: usize = 1024;

/// The first part of a stream: the time after which a browser connects again, in ms.
const FIRST: &[u8] = b"retry: 2000\n\n";

/// A kind of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Topic {
    Status,
    Sessions,
    Problems,
    /// The records of the audit trail.
    Audit,
}

/// Number of topics before `Audit`, of which only the newest event matters.
const STATES: usize = Topic::Audit as usize;

impl Topic {
    pub(crate) const ALL: [Self; 4] = [Self::Status, Self::Sessions, Self::Problems, Self::Audit];

    const STATES: [Self; STATES] = [Self::Status, Self::Sessions, Self::Problems];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Sessions => "sessions",
            Self::Problems => "problems",
            Self::Audit => "audit",
        }
    }

    /// The topic with this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|topic| topic.as_str() == name)
    }
}

/// The newest event in its form on the wire; `None` before the first one.
type Newest = Option<Bytes>;

/// A record and its event.
type FeedRecord = (StreamId, Bytes);

/// The newest events, and their listeners.
pub(crate) struct Feed {
    /// One channel for each topic, in the order of [`Topic::STATES`].
    states: [watch::Sender<Newest>; STATES],
    records: broadcast::Sender<FeedRecord>,
    slots: Arc<Semaphore>,
    max_listeners: usize,
    joined: Notify,
    /// A new value ends all streams.
    end: watch::Sender<()>,
}

/// There are as many listeners as `max_live_listeners` allows, or authd stops.
#[derive(Debug)]
pub(crate) struct FeedFull(pub usize);

/// The events that one listener has still to get.
pub(crate) struct Listener {
    states: [Option<watch::Receiver<Newest>>; STATES],
    records: Option<broadcast::Receiver<FeedRecord>>,
    /// Events that go first.
    first: VecDeque<Bytes>,
    /// The last record in `first`.
    seen: Option<StreamId>,
    end: watch::Receiver<()>,
    _slot: OwnedSemaphorePermit,
}

impl Feed {
    pub(crate) fn new(max_listeners: usize) -> Self {
        let max_listeners = max_listeners.min(Semaphore::MAX_PERMITS);
        Self {
            states: Topic::STATES.map(|_| watch::Sender::new(None)),
            records: broadcast::Sender::new(RECORDS),
            slots: Arc::new(Semaphore::new(max_listeners)),
            max_listeners,
            joined: Notify::new(),
            end: watch::Sender::new(()),
        }
    }

    /// A listener of the topics. It begins with the newest state of each.
    ///
    /// # Errors
    /// There are too many listeners.
    pub(crate) fn listen(&self, topics: &[Topic]) -> Result<Listener, FeedFull> {
        let slot = Arc::clone(&self.slots).try_acquire_owned().map_err(|_| FeedFull(self.max_listeners))?;
        let listener = Listener {
            states: Topic::STATES.map(|topic| {
                let mut receiver =
                    topics.contains(&topic).then(|| self.states[topic as usize].subscribe())?;
                receiver.mark_changed();
                Some(receiver)
            }),
            records: topics.contains(&Topic::Audit).then(|| self.records.subscribe()),
            first: VecDeque::from([Bytes::from_static(FIRST)]),
            seen: None,
            end: self.end.subscribe(),
            _slot: slot,
        };
        self.joined.notify_waiters();
        Ok(listener)
    }

    /// Ends all streams. Their clients connect again, and show their tokens again.
    pub(crate) fn end_streams(&self) {
        self.end.send_replace(());
    }

    /// Ends all streams and accepts no further ones.
    pub(crate) fn close(&self) {
        self.slots.close();
        self.end_streams();
    }

    /// Waits until the topic has a listener. Returns true if it had none.
    pub(crate) async fn wanted(&self, topic: Topic) -> bool {
        let mut has_waited = false;
        loop {
            let mut joined = pin!(self.joined.notified());
            // From here on, a listener who joins is noticed.
            joined.as_mut().enable();
            let state = self.states.get(topic as usize);
            if state.map_or(self.records.receiver_count(), watch::Sender::receiver_count) > 0 {
                return has_waited;
            }
            // A later listener waits for a new event instead of getting an old one.
            state.map(|state| state.send_replace(None));
            joined.await;
            has_waited = true;
        }
    }

    /// Gives the listeners of a state an event. `data` has no line breaks.
    pub(crate) fn publish(&self, topic: Topic, event: &str, data: &str) {
        if let Some(state) = self.states.get(topic as usize) {
            state.send_replace(Some(frame(event, data)));
        }
    }

    /// Gives the listeners of the audit trail a record.
    pub(crate) fn publish_record(&self, position: StreamId, record: AuditRecord) {
        // An error means that there is no listener.
        let _ = self.records.send((position, record_frame(position, record)));
    }
}

impl Listener {
    /// Sends these records first, in their order.
    pub(crate) fn begin_with(&mut self, records: Vec<(StreamId, AuditRecord)>) {
        for (position, record) in records {
            self.first.push_back(record_frame(position, record));
            self.seen = Some(position);
        }
    }

    /// Tells the client that it misses records.
    pub(crate) fn begin_with_loss(&mut self, message: &str) {
        self.first.push_back(loss(message));
    }

    /// The events in the form of server-sent events.
    pub(crate) fn stream(self) -> EventStream {
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            metrics::live_listener_began();
            self.forward(&sender).await;
            metrics::live_listener_ended();
        });
        EventStream(receiver)
    }

    /// Sends the events until the client goes away, or the stream has to end.
    async fn forward(mut self, client: &mpsc::Sender<Bytes>) {
        let end = Instant::now() + STREAM_LIFE;
        let send = async |event| matches!(timeout(SEND_LIMIT, client.send(event)).await, Ok(Ok(())));
        loop {
            let [status, sessions, problems] = &mut self.states;
            let next = match self.first.pop_front() {
                Some(next) => next,
                None => tokio::select! {
                    () = client.closed() => return,
                    _ = self.end.changed() => return,
                    () = sleep_until(end) => return,
                    event = newer(status) => event,
                    event = newer(sessions) => event,
                    event = newer(problems) => event,
                    event = next_record(&mut self.records, self.seen) => event,
                    () = sleep(KEEP_ALIVE) => Bytes::from_static(b":\n\n"),
                },
            };
            if !send(next).await {
                return;
            }
        }
    }
}

/// The next event of a topic. Waits for ever without a topic.
async fn newer(topic: &mut Option<watch::Receiver<Newest>>) -> Bytes {
    let Some(topic) = topic else { return pending().await };
    loop {
        // The feed lives as long as the process.
        if topic.changed().await.is_err() {
            return pending().await;
        }
        if let Some(event) = topic.borrow_and_update().clone() {
            return event;
        }
    }
}

/// The next record after `seen`. Waits for ever without the topic.
async fn next_record(records: &mut Option<broadcast::Receiver<FeedRecord>>, seen: Option<StreamId>) -> Bytes {
    let Some(records) = records else { return pending().await };
    loop {
        match records.recv().await {
            Ok((position, event)) if seen.is_none_or(|seen| position > seen) => return event,
            Ok(_) => {}
            Err(broadcast::error::RecvError::Lagged(number)) => {
                return loss(&format!("{number} records are left out: the connection is too slow"));
            }
            // The feed lives as long as the process.
            Err(broadcast::error::RecvError::Closed) => return pending().await,
        }
    }
}

/// The event of a record. A browser sends `id` when it connects again.
fn record_frame(position: StreamId, record: AuditRecord) -> Bytes {
    let entry = AuditEntry { position: position.to_string(), record };
    Bytes::from(format!("id: {position}\nevent: audit\ndata: {}\n\n", json(&entry)))
}

fn loss(message: &str) -> Bytes {
    let (time, event) = (rfc3339(unix_seconds()), Topic::Audit.as_str().to_owned());
    frame("unavailable", &json(&LiveUnavailable { time, event, message: message.to_owned() }))
}

/// The JSON form of a view, which is plain data.
pub(crate) fn json(view: &impl Serialize) -> String {
    serde_json::to_string(view).unwrap_or_default()
}

/// An event in the form of the HTML standard, section 9.2.
fn frame(event: &str, data: &str) -> Bytes {
    Bytes::from(format!("event: {event}\ndata: {data}\n\n"))
}

/// The body of an answer to `GET /v1/live`.
pub(crate) struct EventStream(mpsc::Receiver<Bytes>);

impl Stream for EventStream {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|event| event.map(Ok))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn next(stream: &mut EventStream) -> Option<String> {
        let event = timeout(Duration::from_secs(30), stream.0.recv()).await.expect("no event in time");
        event.map(|event| String::from_utf8(event.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_listener_gets_the_newest_event_of_its_topics_until_the_streams_end() {
        let feed = Feed::new(2);
        feed.publish(Topic::Problems, "problems", "1");
        feed.publish(Topic::Status, "status", "2");
        let mut stream = feed.listen(&[Topic::Status]).unwrap().stream();
        assert_eq!(next(&mut stream).await.unwrap(), "retry: 2000\n\n");
        assert_eq!(next(&mut stream).await.unwrap(), "event: status\ndata: 2\n\n");
        feed.publish(Topic::Status, "status", "3");
        assert_eq!(next(&mut stream).await.unwrap(), "event: status\ndata: 3\n\n");
        feed.end_streams();
        assert_eq!(next(&mut stream).await, None);
    }

    #[tokio::test]
    async fn the_number_of_listeners_has_a_limit_and_a_closed_feed_takes_none() {
        let feed = Feed::new(1);
        let stream = feed.listen(&[Topic::Status]).unwrap().stream();
        assert!(feed.listen(&[Topic::Status]).is_err());
        drop(stream);
        let released = async {
            while feed.slots.available_permits() == 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(30), released).await.unwrap();
        assert!(feed.listen(&[Topic::Status]).is_ok());
        feed.close();
        assert!(feed.listen(&[Topic::Status]).is_err());
    }

    #[tokio::test]
    async fn a_topic_is_wanted_while_it_has_a_listener_and_forgets_its_event_without() {
        let feed = Feed::new(2);
        let is_wanted = async |topic| timeout(Duration::from_millis(10), feed.wanted(topic)).await.is_ok();
        feed.publish(Topic::Status, "status", "1");
        assert!(!is_wanted(Topic::Status).await);
        let mut stream = feed.listen(&[Topic::Status]).unwrap().stream();
        assert!(is_wanted(Topic::Status).await && !is_wanted(Topic::Problems).await);
        feed.publish(Topic::Status, "status", "2");
        next(&mut stream).await;
        assert_eq!(next(&mut stream).await.unwrap(), "event: status\ndata: 2\n\n");
    }

    #[tokio::test]
    async fn a_listener_gets_the_records_after_those_that_it_has() {
        use common::audit::{AuditEvent, AuditResult};

        let feed = Feed::new(1);
        let record = || AuditRecord::new(AuditEvent::Delete, AuditResult::Ok);
        let at = |number: u32| format!("1-{number}").parse::<StreamId>().unwrap();
        let mut listener = feed.listen(&[Topic::Audit]).unwrap();
        for number in 1..=3 {
            feed.publish_record(at(number), record());
        }
        listener.begin_with(vec![(at(1), record()), (at(2), record())]);
        let mut stream = listener.stream();
        next(&mut stream).await;
        for number in 1..=3 {
            let event = next(&mut stream).await.unwrap();
            assert!(event.starts_with(&format!("id: 1-{number}\nevent: audit\ndata: {{")), "{event}");
        }
        // A listener that does not read misses records, and is told so.
        for number in 4..=RECORDS as u32 + 100 {
            feed.publish_record(at(number), record());
        }
        let lost = async {
            loop {
                let event = next(&mut stream).await.unwrap();
                if event.starts_with("event: unavailable") {
                    return event;
                }
            }
        };
        assert!(lost.await.contains("records are left out"));
    }
}
