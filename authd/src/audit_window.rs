//! The failures of the last hour in the audit trail, grouped by cause and minute. Each question reads the
//! records that came since the last one.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, SystemTime},
};

use common::{
    audit::{AuditEvent, AuditRange, AuditRecord, AuditResult, StreamId},
    clock::unix_seconds_at,
    node::NodeName,
    registry::{LinkError, RegistryView},
};
use tokio::sync::Mutex;

/// Number of minutes that are kept.
pub(crate) const MINUTES: u64 = 60;

/// Number of records in a request to Redis, so that it serves other clients in between.
const BATCH: usize = 1000;

/// Maximum number of causes of a minute. Clients choose directories and names.
const MAX_CAUSES: usize = 200;

/// Maximum number of users or addresses of a cause.
const MAX_PARTS: usize = 200;

/// Stands for further directories and names beyond the maximum.
const OTHERS: &str = "others";

/// The cause of a failure.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FailureCause {
    /// An upload failed for this reason, which is not the storage.
    Upload { reason: String },
    /// The storage refused an operation.
    Storage { reason: String, errno: String, directory: String },
    /// A login was refused.
    Login { reason: String },
}

/// The failures of one cause.
#[derive(Clone, Debug, Default)]
pub(crate) struct FailureGroup {
    pub count: u64,
    /// Unix time of the first and the last failure, in seconds.
    pub first: u64,
    pub last: u64,
    /// Number of failures of each user; for logins of each address and user.
    pub parts: BTreeMap<String, u64>,
    pub nodes: BTreeSet<NodeName>,
}

type Failures = BTreeMap<FailureCause, FailureGroup>;

/// The failures, read up to some record.
#[derive(Default)]
pub(crate) struct AuditWindow(Mutex<WindowState>);

#[derive(Default)]
struct WindowState {
    last: Option<StreamId>,
    /// Each with its minute since the Unix epoch, oldest first.
    minutes: VecDeque<(u64, Failures)>,
}

impl AuditWindow {
    /// The failures of the last `minutes`.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub(crate) async fn failures(
        &self,
        registry: &RegistryView,
        minutes: u64,
    ) -> Result<Vec<(FailureCause, FailureGroup)>, LinkError> {
        let mut state = self.0.lock().await;
        let now = SystemTime::now();
        let begin = now.checked_sub(Duration::from_secs(MINUTES * 60)).unwrap_or(SystemTime::UNIX_EPOCH);
        loop {
            // Older records are of no use, also after a long time without a question.
            let from = state.last.filter(|last| last.time() >= begin).unwrap_or(StreamId::at(begin));
            let batch = registry.audit(AuditRange::After(from), BATCH).await?;
            let is_last = batch.len() < BATCH;
            for (position, record) in batch {
                state.last = Some(position);
                state.note(position, &record);
            }
            if is_last {
                break;
            }
        }
        let minute = unix_seconds_at(now) / 60;
        state.minutes.retain(|(at, _)| at + MINUTES >= minute);
        Ok(state.sum(minute.saturating_sub(minutes)))
    }
}

impl WindowState {
    fn note(&mut self, position: StreamId, record: &AuditRecord) {
        let Some(cause) = cause(record) else { return };
        let at = unix_seconds_at(position.time());
        // Positions rise, so the minute is the last one or a new one.
        if self.minutes.back().is_none_or(|(minute, _)| *minute != at / 60) {
            self.minutes.push_back((at / 60, Failures::new()));
        }
        let Some((_, failures)) = self.minutes.back_mut() else { return };
        let cause = match cause {
            FailureCause::Storage { reason, errno, .. } if failures.len() >= MAX_CAUSES => {
                FailureCause::Storage { reason, errno, directory: OTHERS.to_owned() }
            }
            cause => cause,
        };
        let mut part = part(record);
        let group = failures.entry(cause).or_insert_with(|| FailureGroup { first: at, ..Default::default() });
        if group.parts.len() >= MAX_PARTS && !group.parts.contains_key(&part) {
            OTHERS.clone_into(&mut part);
        }
        group.count += 1;
        group.last = at;
        *group.parts.entry(part).or_default() += 1;
        group.nodes.extend(record.node.clone());
    }

    /// The failures after the minute `after`, most first.
    fn sum(&self, after: u64) -> Vec<(FailureCause, FailureGroup)> {
        let mut all = Failures::new();
        for (cause, group) in self.minutes.iter().filter(|(at, _)| *at > after).flat_map(|(_, causes)| causes)
        {
            let sum = all
                .entry(cause.clone())
                .or_insert_with(|| FailureGroup { first: group.first, ..FailureGroup::default() });
            sum.count += group.count;
            sum.last = group.last;
            sum.nodes.extend(group.nodes.iter().cloned());
            for (part, count) in &group.parts {
                *sum.parts.entry(part.clone()).or_default() += count;
            }
        }
        let mut all: Vec<_> = all.into_iter().collect();
        all.sort_by_key(|(_, group)| std::cmp::Reverse(group.count));
        all
    }
}

/// The cause of a failure that an operator can do something about.
fn cause(record: &AuditRecord) -> Option<FailureCause> {
    if record.result == AuditResult::Ok {
        return None;
    }
    let reason = record.reason.clone().unwrap_or_else(|| "other".to_owned());
    match (record.event, reason.as_str()) {
        (AuditEvent::Login, _) => Some(FailureCause::Login { reason }),
        (
            _,
            "storage_access" | "storage_read_only" | "storage_io" | "storage_hangs" | "storage_quota"
            | "no_space" | "too_large",
        ) => Some(FailureCause::Storage {
            reason,
            errno: record.errno.clone().unwrap_or_default(),
            directory: directory(record),
        }),
        // The client ended the upload itself.
        (_, "aborted" | "client_gone") => None,
        (AuditEvent::Upload | AuditEvent::Append, _) => Some(FailureCause::Upload { reason }),
        _ => None,
    }
}

/// The directory of the path on the node's host if it is known, or else of the virtual path.
fn directory(record: &AuditRecord) -> String {
    let path = record.stored_at.as_deref().or(record.path.as_deref()).unwrap_or_default();
    match path.rsplit_once('/') {
        Some(("", _)) => "/".to_owned(),
        Some((directory, _)) => directory.to_owned(),
        None => String::new(),
    }
}

fn part(record: &AuditRecord) -> String {
    let user = record.user.as_deref().unwrap_or_default();
    match (record.event, record.address) {
        (AuditEvent::Login, Some(address)) => format!("{address} as {user}"),
        _ => user.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(event: AuditEvent, reason: &str, user: &str) -> AuditRecord {
        let mut record = AuditRecord::new(event, AuditResult::Failed);
        record.reason = Some(reason.to_owned());
        record.user = Some(user.to_owned());
        record.address = Some([192, 0, 2, 1].into());
        record.stored_at = Some("/srv/ftp/scans/a".to_owned());
        record
    }

    fn at(minute: u64) -> StreamId {
        StreamId::at(SystemTime::UNIX_EPOCH + Duration::from_secs(minute * 60 + 5))
    }

    #[test]
    fn failures_are_grouped_by_cause_over_the_minutes() {
        let mut state = WindowState::default();
        for minute in [1, 2, 2, 3] {
            state.note(at(minute), &failure(AuditEvent::Upload, "quota", "acme"));
        }
        state.note(at(3), &failure(AuditEvent::Login, "wrong_password", "admin"));
        state.note(at(3), &failure(AuditEvent::Delete, "storage_access", "acme"));
        for (event, reason) in [(AuditEvent::Delete, "permission"), (AuditEvent::Upload, "aborted")] {
            state.note(at(3), &failure(event, reason, "acme"));
        }
        let sums = state.sum(1);
        assert_eq!(sums.len(), 3, "{sums:?}");
        let (cause, group) = &sums[0];
        assert_eq!(*cause, FailureCause::Upload { reason: "quota".to_owned() });
        assert_eq!((group.count, group.first, group.last, group.parts["acme"]), (3, 125, 185, 3));
        assert!(sums.iter().any(|(_, group)| group.parts.contains_key("192.0.2.1 as admin")));
        let directory = "/srv/ftp/scans".to_owned();
        let reason = "storage_access".to_owned();
        let storage = FailureCause::Storage { reason, errno: String::new(), directory };
        assert!(sums.iter().any(|(cause, _)| *cause == storage));
    }

    #[test]
    fn names_that_clients_choose_take_bounded_memory() {
        let mut state = WindowState::default();
        for number in 0..1000 {
            state.note(at(1), &failure(AuditEvent::Login, "unknown_user", &format!("user-{number}")));
            let mut record = failure(AuditEvent::Upload, "storage_access", "acme");
            record.stored_at = Some(format!("/srv/{number}/a"));
            state.note(at(1), &record);
        }
        let sums = state.sum(0);
        assert!(sums.len() <= MAX_CAUSES + 2, "{}", sums.len());
        assert!(sums.iter().all(|(_, group)| group.parts.len() <= MAX_PARTS + 1));
        assert_eq!(sums.iter().map(|(_, group)| group.count).sum::<u64>(), 2000);
    }
}
