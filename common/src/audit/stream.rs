//! The newest records in Redis: the task that appends them to a stream, and the reader of that stream.

use std::{
    collections::VecDeque,
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::{Duration, SystemTime},
};

use redis::{Pipeline, cmd};
use tokio::{sync::Notify, time::sleep};

use super::{AuditRecord, losses::LossLog};
use crate::{
    registry::{LinkError, RegistryView},
    sync::lock,
};

/// The label `sink` of the metric for records that Redis does not get.
pub(super) const REDIS: &str = "redis";

/// The field of an entry that holds the record.
const FIELD: &str = "record";

/// Minimum interval between two requests to Redis.
const INTERVAL: Duration = Duration::from_millis(200);

/// Interval between attempts while Redis is away.
const RETRY: Duration = Duration::from_secs(1);

/// Maximum number of records in one request, so that Redis serves other clients in between.
const BATCH: usize = 500;

/// Maximum bytes of records that wait for Redis. The oldest beyond it are lost.
const BUFFERED: usize = 8 * 1024 * 1024;

/// Records that wait for Redis.
pub(super) struct StreamBuffer {
    /// The number of records that Redis keeps.
    records: u32,
    losses: Arc<LossLog>,
    waiting: Mutex<WaitingLines>,
    arrived: Notify,
}

#[derive(Default)]
struct WaitingLines {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Lines that the task has taken and not yet sent.
    in_flight: usize,
}

impl StreamBuffer {
    pub(super) fn new(records: u32, losses: Arc<LossLog>) -> Self {
        Self { records, losses, waiting: Mutex::default(), arrived: Notify::new() }
    }

    fn waiting(&self) -> MutexGuard<'_, WaitingLines> {
        lock(&self.waiting)
    }

    pub(super) fn push(&self, lines: impl Iterator<Item = Vec<u8>>) {
        let lost = {
            let mut waiting = self.waiting();
            for line in lines {
                waiting.bytes += line.len();
                waiting.lines.push_back(line);
            }
            waiting.shrink()
        };
        self.arrived.notify_one();
        self.losses.note(REDIS, lost, "Redis is away for too long");
    }

    pub(super) fn is_empty(&self) -> bool {
        let waiting = self.waiting();
        waiting.lines.is_empty() && waiting.in_flight == 0
    }

    fn take(&self) -> Vec<Vec<u8>> {
        let mut waiting = self.waiting();
        let count = waiting.lines.len().min(BATCH);
        let batch: Vec<_> = waiting.lines.drain(..count).collect();
        waiting.bytes -= batch.iter().map(Vec::len).sum::<usize>();
        waiting.in_flight = batch.len();
        batch
    }

    /// Puts a batch back that was not sent.
    fn put_back(&self, batch: Vec<Vec<u8>>) {
        let lost = {
            let mut waiting = self.waiting();
            waiting.in_flight = 0;
            for line in batch.into_iter().rev() {
                waiting.bytes += line.len();
                waiting.lines.push_front(line);
            }
            waiting.shrink()
        };
        self.losses.note(REDIS, lost, "Redis is away for too long");
    }

    fn note_sent(&self) {
        self.waiting().in_flight = 0;
    }
}

impl WaitingLines {
    /// Removes the oldest lines beyond [`BUFFERED`]. Returns their number.
    fn shrink(&mut self) -> u64 {
        let mut lost = 0;
        while self.bytes > BUFFERED {
            let Some(line) = self.lines.pop_front() else { break };
            self.bytes -= line.len();
            lost += 1;
        }
        lost
    }
}

/// Sends what arrives in the buffer. Returns when the trail is dropped.
pub(super) async fn send(view: RegistryView, buffer: Weak<StreamBuffer>) {
    loop {
        let Some(strong) = buffer.upgrade() else { return };
        let batch = strong.take();
        if batch.is_empty() {
            // The wait ends at intervals, to notice the end of the trail.
            let _ = tokio::time::timeout(RETRY, strong.arrived.notified()).await;
            continue;
        }
        let mut pipe = Pipeline::new();
        let key = view.keys().audit();
        for line in &batch {
            let json = line.strip_suffix(b"\n").unwrap_or(line);
            let entry = pipe.cmd("XADD").arg(&key).arg("MAXLEN").arg("~").arg(strong.records).arg("*");
            entry.arg(FIELD).arg(json).ignore();
        }
        let is_full = batch.len() == BATCH;
        let pause = match view.link().pipe::<()>(&pipe).await {
            Ok(()) => {
                strong.note_sent();
                if is_full { Duration::ZERO } else { INTERVAL }
            }
            Err(LinkError::Reply(error)) => {
                strong.note_sent();
                strong.losses.note(REDIS, batch.len() as u64, &error.to_string());
                INTERVAL
            }
            // The link logs the reason.
            Err(LinkError::Away | LinkError::Denied | LinkError::Unwritable(_)) => {
                strong.put_back(batch);
                RETRY
            }
        };
        drop(strong);
        sleep(pause).await;
    }
}

/// The id of an entry of the stream: its time (Unix ms) and a number within that millisecond. Ids sort by the
/// order in which Redis got the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamId {
    millis: u64,
    number: u64,
}

impl StreamId {
    /// The first id of a time.
    pub fn at(time: SystemTime) -> Self {
        let millis = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        Self { millis: u64::try_from(millis).unwrap_or(u64::MAX), number: 0 }
    }

    /// The time at which Redis got the entry.
    pub fn time(self) -> SystemTime {
        let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(self.millis));
        time.unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// `None`: there is no earlier id.
    fn previous(self) -> Option<Self> {
        match (self.millis, self.number) {
            (0, 0) => None,
            (millis, 0) => Some(Self { millis: millis - 1, number: u64::MAX }),
            (millis, number) => Some(Self { millis, number: number - 1 }),
        }
    }

    /// `None`: there is no later id.
    fn next(self) -> Option<Self> {
        match (self.millis, self.number) {
            (u64::MAX, u64::MAX) => None,
            (millis, u64::MAX) => Some(Self { millis: millis + 1, number: 0 }),
            (millis, number) => Some(Self { millis, number: number + 1 }),
        }
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.millis, self.number)
    }
}

/// The text is not a [`StreamId`].
#[derive(Debug, thiserror::Error)]
#[error("an id of the audit stream is MILLISECONDS-NUMBER")]
pub struct InvalidStreamId;

impl FromStr for StreamId {
    type Err = InvalidStreamId;

    fn from_str(text: &str) -> Result<Self, InvalidStreamId> {
        let (millis, number) = text.split_once('-').ok_or(InvalidStreamId)?;
        let parse = |text: &str| text.parse::<u64>().map_err(|_| InvalidStreamId);
        Ok(Self { millis: parse(millis)?, number: parse(number)? })
    }
}

/// A part of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditRange {
    /// The newest records, newest first.
    Newest,
    /// The records before this one, newest first.
    Before(StreamId),
    /// The records after this one, oldest first.
    After(StreamId),
}

impl RegistryView {
    /// At most `count` records of the audit trail. An entry that is no record is left out and logged. After a
    /// connection to Redis broke, the stream may contain a record twice; both have the same
    /// [`AuditRecord::id`].
    ///
    /// # Errors
    /// Redis is away, or refuses the request.
    pub async fn audit(
        &self,
        range: AuditRange,
        count: usize,
    ) -> Result<Vec<(StreamId, AuditRecord)>, LinkError> {
        type Entry = (String, Vec<Vec<u8>>);
        let key = self.keys().audit();
        let (name, from, to) = match range {
            AuditRange::Newest => ("XREVRANGE", "+".to_owned(), "-"),
            AuditRange::Before(id) => match id.previous() {
                Some(previous) => ("XREVRANGE", previous.to_string(), "-"),
                None => return Ok(Vec::new()),
            },
            AuditRange::After(id) => match id.next() {
                Some(next) => ("XRANGE", next.to_string(), "+"),
                None => return Ok(Vec::new()),
            },
        };
        let mut command = cmd(name);
        command.arg(&key).arg(from).arg(to).arg("COUNT").arg(count);
        let entries: Vec<Entry> = self.link().query(&command).await?;
        Ok(entries.into_iter().filter_map(|(id, fields)| entry(&id, &fields)).collect())
    }
}

fn entry(id: &str, fields: &[Vec<u8>]) -> Option<(StreamId, AuditRecord)> {
    let json = fields.chunks_exact(2).find(|pair| pair[0] == FIELD.as_bytes()).map(|pair| &pair[1]);
    let record = json.map(|json| serde_json::from_slice(json));
    match (id.parse(), record) {
        (Ok(id), Some(Ok(record))) => Some((id, record)),
        _ => {
            log::warn!(id; "skipped an entry of the audit stream in Redis that is no record");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_their_text_form_and_have_neighbours() {
        let id: StreamId = "1795748531025-7".parse().unwrap();
        assert_eq!(id.to_string(), "1795748531025-7");
        assert_eq!(id.next().unwrap().previous(), Some(id));
        let first: StreamId = "5-0".parse().unwrap();
        assert_eq!(first.previous().unwrap().to_string(), format!("4-{}", u64::MAX));
        assert_eq!(first.previous().unwrap().next(), Some(first));
        assert_eq!("0-0".parse::<StreamId>().unwrap().previous(), None);
        assert_eq!(StreamId::at(id.time()).to_string(), "1795748531025-0");
        for text in ["", "5", "5-", "-5", "a-b"] {
            assert!(text.parse::<StreamId>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_oldest_records_are_lost_while_redis_is_away_for_too_long() {
        let buffer = StreamBuffer::new(10, Arc::new(LossLog::new(|_, _| {})));
        let line = |byte: u8| vec![byte; BUFFERED / 4];
        buffer.push((1..=4).map(line));
        let batch = buffer.take();
        assert_eq!(batch.len(), 4);
        assert!(!buffer.is_empty(), "the batch is in flight");
        buffer.push((5..=6).map(line));
        buffer.put_back(batch);
        let left: Vec<_> = buffer.take().iter().map(|line| line[0]).collect();
        assert_eq!(left, [3, 4, 5, 6]);
        buffer.note_sent();
        assert!(buffer.is_empty());
    }
}
