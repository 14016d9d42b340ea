//! The queue of records, and the thread that writes them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout_at},
};

use super::{
    AuditLogError, AuditOptions, AuditRecord,
    losses::LossLog,
    sink::{OpenSink, WriteError},
    stream::{self, REDIS, StreamBuffer},
};
use crate::{
    clock::{rfc3339_micros, since_epoch},
    health::Dependency,
    process::logging,
    registry::RegistryView,
};

/// Maximum number of records that wait for a slow sink. Further ones are lost.
const QUEUED_RECORDS: usize = 8192;

/// Maximum number of lines in one call of the sink.
const LINES_AT_ONCE: usize = 256;

/// The thread pauses for this time after it has emptied the queue. To wake it for each record would cost a
/// busy node more than the record itself.
const PAUSE: Duration = Duration::from_millis(20);

/// The audit trail of a daemon, or its absence. Cheap to clone.
#[derive(Clone, Default)]
pub struct AuditTrail(Option<Arc<TrailInner>>);

struct TrailInner {
    queue: SyncSender<TrailMessage>,
    /// Number of the next record.
    number: AtomicU64,
    shared: Arc<TrailShared>,
}

/// The part that the thread uses too.
struct TrailShared {
    /// `NODE-INCARNATION`.
    source: String,
    /// SIGHUP has asked to open the file again.
    reopen: AtomicBool,
    losses: Arc<LossLog>,
    /// `None`: no record goes to Redis.
    stream: Option<Arc<StreamBuffer>>,
    sink_name: Option<&'static str>,
}

enum TrailMessage {
    Record {
        number: u64,
        time: Duration,
        record: Box<AuditRecord>,
    },
    /// Wakes the thread, which then looks at `reopen`.
    Wake,
    /// Answered when everything before it is written.
    Flush(oneshot::Sender<()>),
}

impl AuditTrail {
    /// Opens the sink and starts the thread. `program` is `ftpd` or `authd`; `name` is the first part of all
    /// ids. With `has_redis`, records also wait for [`share`](Self::share). `lost` counts lost records in the
    /// daemon's metrics. The result is off if no record would go anywhere.
    ///
    /// # Errors
    /// The sink of `audit_log` cannot be opened, or the thread cannot be started.
    pub fn open(
        options: &AuditOptions,
        program: &str,
        name: &str,
        has_redis: bool,
        lost: fn(sink: &'static str, count: u64),
    ) -> Result<Self, AuditLogError> {
        let sink = OpenSink::open(options.sink.as_ref(), program)?;
        let losses = Arc::new(LossLog::new(lost));
        let keeps_stream = has_redis && options.records > 0;
        let stream = keeps_stream.then(|| Arc::new(StreamBuffer::new(options.records, Arc::clone(&losses))));
        if sink.name().is_none() && stream.is_none() {
            return Ok(Self::default());
        }
        let shared = Arc::new(TrailShared {
            source: format!("{name}-{:016x}", rand::random::<u64>()),
            reopen: AtomicBool::new(false),
            losses,
            stream,
            sink_name: sink.name(),
        });
        for sink in shared.sink_name.into_iter().chain(shared.stream.as_ref().map(|_| REDIS)) {
            // Prometheus sees an increase only of a series that exists.
            lost(sink, 0);
        }
        let (queue, messages) = sync_channel(QUEUED_RECORDS);
        let of_thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || write(sink, &messages, &of_thread))
            .map_err(|error| AuditLogError::new(options.sink.as_ref(), error))?;
        Ok(Self(Some(Arc::new(TrailInner { queue, number: AtomicU64::new(1), shared }))))
    }

    /// Starts the task that appends the records to the stream in Redis. Must be called within the runtime,
    /// at most once.
    pub fn share(&self, view: RegistryView) {
        if let Some(inner) = &self.0
            && let Some(buffer) = &inner.shared.stream
        {
            tokio::spawn(stream::send(view, Arc::downgrade(buffer)));
        }
    }

    /// Returns true if records go anywhere. Callers may save the work to make a record otherwise.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Queues a record. Sets its id and its time. Does not wait.
    pub fn record(&self, record: AuditRecord) {
        let Some(inner) = &self.0 else { return };
        let number = inner.number.fetch_add(1, Ordering::Relaxed);
        let message = TrailMessage::Record { number, time: since_epoch(), record: Box::new(record) };
        let cause = match inner.queue.try_send(message) {
            Ok(()) => return,
            Err(TrySendError::Full(_)) => "it is too slow",
            Err(TrySendError::Disconnected(_)) => "the thread that writes has ended",
        };
        let shared = &inner.shared;
        for sink in shared.sink_name.into_iter().chain(shared.stream.as_ref().map(|_| REDIS)) {
            shared.losses.note(sink, 1, cause);
        }
    }

    /// Opens the file again, after log rotation has renamed it.
    pub fn reopen(&self) {
        let Some(inner) = &self.0 else { return };
        inner.shared.reopen.store(true, Ordering::Release);
        // If the queue is full, the thread is awake.
        let _ = inner.queue.try_send(TrailMessage::Wake);
    }

    /// The dependency `audit`: it fails for five minutes after a record was lost. `None`: the trail is off.
    pub fn dependency(&self) -> Option<Dependency> {
        self.0.as_ref().map(|inner| inner.shared.losses.dependency())
    }

    /// Waits until all records are written and sent, at most for `limit`. For the end of the process.
    pub async fn finish(&self, limit: Duration) {
        let Some(inner) = &self.0 else { return };
        let deadline = Instant::now() + limit;
        let written = async {
            loop {
                let (done, is_done) = oneshot::channel();
                match inner.queue.try_send(TrailMessage::Flush(done)) {
                    Ok(()) => return drop(is_done.await),
                    Err(TrySendError::Disconnected(_)) => return,
                    Err(TrySendError::Full(_)) => sleep(Duration::from_millis(10)).await,
                }
            }
        };
        let sent = async {
            written.await;
            let Some(buffer) = &inner.shared.stream else { return };
            while !buffer.is_empty() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        if timeout_at(deadline, sent).await.is_err() {
            log::error!("the end of the audit trail could not be written in time");
        }
    }
}

/// The thread: writes until the last [`AuditTrail`] is dropped.
fn write(mut sink: OpenSink, messages: &Receiver<TrailMessage>, shared: &TrailShared) {
    let mut lines = Vec::with_capacity(LINES_AT_ONCE);
    let mut flushes = Vec::new();
    while let Ok(first) = messages.recv() {
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                TrailMessage::Record { number, time, record } => {
                    lines.push(line(&shared.source, number, time, *record));
                }
                TrailMessage::Wake => {}
                TrailMessage::Flush(done) => flushes.push(done),
            }
            next = if lines.len() < LINES_AT_ONCE { messages.try_recv().ok() } else { None };
        }
        if shared.reopen.swap(false, Ordering::AcqRel) {
            sink.reopen();
        }
        if let Err(WriteError { lost, error }) = sink.write(&lines) {
            let name = shared.sink_name.unwrap_or_default();
            shared.losses.note(name, lost as u64, &error.to_string());
        }
        let count = lines.len();
        match &shared.stream {
            Some(stream) => stream.push(lines.drain(..)),
            None => lines.clear(),
        }
        let is_flushed = !flushes.is_empty();
        for done in flushes.drain(..) {
            // Fails if the caller has stopped waiting.
            let _ = done.send(());
        }
        if count < LINES_AT_ONCE && !is_flushed {
            std::thread::sleep(PAUSE);
        }
    }
}

/// The record as a line of JSON.
fn line(source: &str, number: u64, time: Duration, mut record: AuditRecord) -> Vec<u8> {
    record.id = format!("{source}-{number}");
    record.time = rfc3339_micros(time);
    // `to_string` fails only for maps with keys that are not text and for a `Serialize` that fails. A record
    // has neither.
    let json = serde_json::to_string(&record).expect("a record is plain data");
    let mut line = if json.bytes().all(|byte| (b' '..0x7f).contains(&byte)) {
        json
    } else {
        let mut escaped = String::with_capacity(json.len() + 16);
        logging::escape_json(&mut escaped, &json);
        escaped
    };
    line.push('\n');
    line.into_bytes()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use serde_json::Value;

    use super::*;
    use crate::{
        audit::{AuditEvent, AuditResult, AuditSink},
        health::Condition,
    };

    static LOST: AtomicU64 = AtomicU64::new(0);

    fn open(sink: AuditSink) -> AuditTrail {
        let options = AuditOptions { sink: Some(sink), records: 0 };
        AuditTrail::open(&options, "ftpd", "ftp1", false, |_, count| {
            LOST.fetch_add(count, Ordering::Relaxed);
        })
        .unwrap()
    }

    fn upload(path: &[u8]) -> AuditRecord {
        let mut record = AuditRecord::new(AuditEvent::Upload, AuditResult::Ok);
        record.set_path(path);
        record
    }

    #[tokio::test]
    async fn a_trail_without_a_sink_and_without_redis_is_off() {
        let options = AuditOptions { sink: None, records: 20_000 };
        let trail = AuditTrail::open(&options, "ftpd", "ftp1", false, |_, _| {}).unwrap();
        assert!(!trail.is_on() && trail.dependency().is_none());
        trail.record(upload(b"/a"));
        trail.finish(Duration::from_secs(30)).await;
    }

    #[tokio::test]
    async fn records_are_lines_in_order_with_ids_that_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let trail = open(AuditSink::File(path.clone()));
        for number in 0..1000 {
            trail.record(upload(format!("/{number}\u{202e}\u{7f}").as_bytes()));
        }
        trail.finish(Duration::from_secs(30)).await;
        let text = std::fs::read_to_string(&path).unwrap();
        let records: Vec<AuditRecord> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(records.len(), 1000);
        let source = records[0].id.strip_suffix("-1").unwrap().to_owned();
        for (at, record) in records.iter().enumerate() {
            assert_eq!(record.id, format!("{source}-{}", at + 1));
            assert_eq!(record.path.as_deref(), Some(&*format!("/{at}\u{202e}\u{7f}")));
        }
        assert!(!text.contains(['\u{202e}', '\u{7f}']), "a terminal must not interpret a name");
        assert!(records.is_sorted_by(|a, b| a.time <= b.time));
        assert_eq!(trail.dependency().unwrap().condition, Condition::Ok);
    }

    #[tokio::test]
    async fn a_lost_record_shows_in_the_metric_and_the_dependency() {
        let trail = open(AuditSink::File("/dev/full".into()));
        let before = LOST.load(Ordering::Relaxed);
        trail.record(upload(b"/a"));
        trail.record(upload(b"/b"));
        trail.finish(Duration::from_secs(30)).await;
        assert_eq!(LOST.load(Ordering::Relaxed) - before, 2);
        let dependency = trail.dependency().unwrap();
        assert_eq!(dependency.condition, Condition::Failed);
        assert_eq!(dependency.setting, "audit_log");
        let text = dependency.last_error.unwrap().message;
        assert!(text.contains("No space left on device"), "{text}");
    }

    #[test]
    fn empty_fields_are_left_out() {
        let line = line("ftp1-00", 7, Duration::from_micros(1_795_748_531_000_250), upload(b"/a"));
        let record: Value = serde_json::from_slice(&line).unwrap();
        let expected = serde_json::json!({
            "v": 1, "id": "ftp1-00-7", "time": "2026-11-27T03:02:11.000250Z", "event": "upload",
            "result": "ok", "path": "/a",
        });
        assert_eq!(record, expected);
    }
}
