//! Every metric of the node: one function an event. [`METRICS`] describes them.

mod table;

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ::metrics::{Histogram, counter, gauge, histogram};
use common::node::NodeName;

pub(crate) use self::table::{METRICS, row};
use crate::protocol::{VerbGroup, reply::Code};

pub(crate) fn limit(name: &'static str, value: impl Into<u64>) {
    gauge!("ftp_limit", "limit" => name).set(value.into() as f64);
}

pub(crate) fn limit_reached(name: &'static str) {
    counter!("ftp_limit_reached_total", "limit" => name).increment(1);
}

pub(crate) fn oldest_file_operation(age: Duration) {
    gauge!("ftp_oldest_file_operation_seconds").set(age.as_secs_f64());
}

/// `operation` is a name of [`crate::work::StorageCall`].
pub(crate) fn storage_call(operation: &'static str, took: Duration) {
    histogram!("ftp_storage_seconds", "operation" => operation).record(took);
}

/// `errno` is a symbol of the kernel's table: `ENOSPC`.
pub(crate) fn storage_error(errno: String) {
    counter!("ftp_storage_errors_total", "errno" => errno).increment(1);
}

pub(crate) fn build_info() {
    gauge!("ftp_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1);
}

/// `expiry` is the Unix time in seconds at which the first of the node's certificates expires.
pub(crate) fn tls_certificates(expiry: Option<i64>) {
    if let Some(expiry) = expiry {
        gauge!("ftp_tls_certificate_expiry_timestamp_seconds").set(expiry as f64);
    }
}

/// `kind` is one of [`crate::work::KINDS`].
pub(crate) fn slots_used(kind: &'static str, count: u32) {
    gauge!("ftp_slots_used", "kind" => kind).set(count);
}

pub(crate) fn connection_opened() {
    counter!("ftp_connections_total").increment(1);
    gauge!("ftp_connections").increment(1);
}

pub(crate) fn connection_closed() {
    gauge!("ftp_connections").decrement(1);
}

pub(crate) fn connection_refused(reason: &'static str) {
    counter!("ftp_connections_refused_total", "reason" => reason).increment(1);
}

/// Accepted and refused logins since the start.
static LOGINS: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

/// The numbers of accepted and refused logins since the start.
pub(crate) fn login_counts() -> (u64, u64) {
    let [accepted, refused] = &LOGINS;
    (accepted.load(Ordering::Relaxed), refused.load(Ordering::Relaxed))
}

/// The largest share of a limit in use, from 0 to 1.
pub(crate) fn load(load: f64) {
    gauge!("ftp_load").set(load);
}

pub(crate) fn login(result: &'static str) {
    LOGINS[usize::from(result != "accepted")].fetch_add(1, Ordering::Relaxed);
    counter!("ftp_logins_total", "result" => result).increment(1);
}

pub(crate) fn login_rejected(reason: &'static str) {
    counter!("ftp_logins_rejected_total", "reason" => reason).increment(1);
}

pub(crate) fn dependency(name: &'static str, is_up: bool) {
    gauge!("ftp_dependency_up", "dependency" => name).set(u8::from(is_up));
}

pub(crate) fn session_opened() {
    gauge!("ftp_sessions").increment(1);
}

pub(crate) fn session_closed() {
    gauge!("ftp_sessions").decrement(1);
}

pub(crate) fn session_ended(reason: &'static str) {
    counter!("ftp_sessions_ended_total", "reason" => reason).increment(1);
}

pub(crate) fn session_revoked(reason: &'static str) {
    counter!("ftp_sessions_revoked_total", "reason" => reason).increment(1);
}

/// `result` is `answered`, `failed` or `unsupported`.
pub(crate) fn reauthorization(result: &'static str) {
    counter!("ftp_reauthorizations_total", "result" => result).increment(1);
}

pub(crate) fn command(verb: &'static str, code: Code) {
    let class = ["1", "2", "3", "4", "5"].get(usize::from(code.value() / 100 % 10).wrapping_sub(1));
    counter!("ftp_commands_total", "verb" => verb, "class" => *class.unwrap_or(&"other")).increment(1);
}

/// A command of this verb was answered, or its transfer began, after this time.
pub(crate) fn command_took(verb: &'static str, took: Duration) {
    // Looked up once: a look-up by name and labels costs more than the rest.
    static GROUPS: LazyLock<[Histogram; VerbGroup::ALL.len()]> = LazyLock::new(|| {
        VerbGroup::ALL.map(|group| histogram!("ftp_command_seconds", "group" => group.as_str()))
    });
    GROUPS[VerbGroup::of(verb) as usize].record(took);
}

/// `step` is `password`, `registry`, `home` or `total`.
pub(crate) fn login_step(step: &'static str, took: Duration) {
    histogram!("ftp_login_seconds", "step" => step).record(took);
}

pub(crate) fn transfers(count: u32) {
    gauge!("ftp_transfers").set(count);
}

pub(crate) fn transfer_ended(direction: &'static str, result: &'static str, bytes: u64, took: Duration) {
    counter!("ftp_transfers_total", "direction" => direction, "result" => result).increment(1);
    counter!("ftp_transfer_bytes_total", "direction" => direction).increment(bytes);
    histogram!("ftp_transfer_seconds", "direction" => direction).record(took);
}

pub(crate) fn upload_refused(reason: &'static str) {
    counter!("ftp_uploads_refused_total", "reason" => reason).increment(1);
}

/// Both labels come from fixed sets: the table of verbs and [`crate::protocol::failure`].
pub(crate) fn operation_failed(verb: &'static str, reason: &'static str) {
    counter!("ftp_operations_failed_total", "verb" => verb, "reason" => reason).increment(1);
}

/// `sink` is `file`, `stderr`, `journald` or `redis`.
pub(crate) fn audit_records_lost(sink: &'static str, count: u64) {
    counter!("ftp_audit_records_lost_total", "sink" => sink).increment(count);
}

pub(crate) fn paced(direction: &'static str, waited: Duration) {
    histogram!("ftp_paced_seconds", "direction" => direction).record(waited);
}

pub(crate) fn passive_ports_reserved(count: usize) {
    gauge!("ftp_passive_ports_reserved").set(count as f64);
}

pub(crate) fn passive_ports_exhausted() {
    counter!("ftp_passive_ports_exhausted_total").increment(1);
}

/// `reason` is `unused`, `share` or `handed_over`.
pub(crate) fn passive_port_given_up(reason: &'static str) {
    counter!("ftp_passive_ports_given_up_total", "reason" => reason).increment(1);
}

/// `state` is `leased` or `given_up`.
pub(crate) fn blocks(state: &'static str, count: usize) {
    gauge!("ftp_blocks", "state" => state).set(count as f64);
}

pub(crate) fn data_connection_refused(reason: &'static str) {
    counter!("ftp_data_connections_refused_total", "reason" => reason).increment(1);
}

/// A data connection is carried to the owner of its port.
pub(crate) fn relayed(owner: &NodeName) {
    counter!("ftp_relayed_total", "to" => owner.as_str().to_owned()).increment(1);
}

pub(crate) fn relayed_now(change: i8) {
    gauge!("ftp_relayed").increment(change);
}

/// `direction` is `to_node` or `to_client`.
pub(crate) fn relay_bytes(direction: &'static str, bytes: u64) {
    counter!("ftp_relay_bytes_total", "direction" => direction).increment(bytes);
}

pub(crate) fn relay_connected(took: Duration) {
    histogram!("ftp_relay_seconds").record(took);
}

pub(crate) fn relay_ended(end: &'static str) {
    counter!("ftp_relay_ended_total", "end" => end).increment(1);
}

pub(crate) fn relay_refused(reason: &'static str) {
    counter!("ftp_relay_refused_total", "reason" => reason).increment(1);
}

pub(crate) fn event_recorded() {
    counter!("ftp_events_recorded_total").increment(1);
}

/// `result` is `delivered`, `refused` or `unavailable`.
pub(crate) fn event_attempt(receiver: &str, result: &'static str, took: Duration) {
    let receiver = receiver.to_owned();
    counter!("ftp_event_attempts_total", "receiver" => receiver.clone(), "result" => result).increment(1);
    histogram!("ftp_event_attempt_seconds", "receiver" => receiver).record(took);
}

/// `age` is the time since the event, in ms.
pub(crate) fn event_delivered(age: u64) {
    histogram!("ftp_event_delivery_seconds").record(Duration::from_millis(age));
}

/// The events that wait, the age of the oldest, and the number of dead letters.
pub(crate) fn events(pending: usize, oldest: Duration, dead: usize) {
    gauge!("ftp_events_pending").set(pending as f64);
    gauge!("ftp_events_oldest_seconds").set(oldest);
    gauge!("ftp_events_dead").set(dead as f64);
}

/// Another node delivers the events, and shows their numbers.
pub(crate) fn events_not_here() {
    events(0, Duration::ZERO, 0);
}

pub(crate) fn partial_removed(bytes: u64) {
    counter!("ftp_partials_removed_total").increment(1);
    counter!("ftp_partial_bytes_removed_total").increment(bytes);
}

/// The time of authd's last answer, in µs. `u64::MAX`: none yet.
static LAST_AUTHD_ANSWER: AtomicU64 = AtomicU64::new(u64::MAX);

/// The time that authd took for its last answer. `None`: it was not asked yet.
pub(crate) fn last_authd_answer() -> Option<Duration> {
    let micros = LAST_AUTHD_ANSWER.load(Ordering::Relaxed);
    (micros != u64::MAX).then(|| Duration::from_micros(micros))
}

pub(crate) fn authd_answered(result: &'static str, took: Duration) {
    LAST_AUTHD_ANSWER.store(took.as_micros().try_into().unwrap_or(u64::MAX - 1), Ordering::Relaxed);
    histogram!("ftp_authd_seconds", "result" => result).record(took);
}

pub(crate) fn draining(is_draining: bool) {
    gauge!("ftp_draining").set(u8::from(is_draining));
}

/// `kind` is `control` or `data`; `result` is `full`, `resumed`, `failed` or `late`.
pub(crate) fn tls_handshake(kind: &'static str, version: &'static str, result: &'static str) {
    counter!("ftp_tls_handshakes_total", "kind" => kind, "version" => version, "result" => result)
        .increment(1);
}

pub(crate) fn data_tls_session(is_proved: bool) {
    let resumed = if is_proved { "yes" } else { "no" };
    counter!("ftp_data_tls_sessions_total", "resumed" => resumed).increment(1);
}

/// `path` is `kernel` or `records`.
pub(crate) fn tls_download(path: &'static str) {
    counter!("ftp_tls_downloads_total", "path" => path).increment(1);
}

/// `expiry` is the Unix time in seconds at which the first revocation list expires; `None` without lists.
pub(crate) fn tls_revocation_lists(expiry: Option<i64>) {
    if let Some(expiry) = expiry {
        gauge!("ftp_tls_crl_expiry_timestamp_seconds").set(expiry as f64);
    }
}

pub(crate) fn tls_reloaded(is_loaded: bool) {
    counter!("ftp_tls_reloads_total", "result" => if is_loaded { "loaded" } else { "failed" }).increment(1);
}

#[cfg(test)]
mod tests {
    use super::METRICS;

    #[test]
    fn the_table_holds_every_metric_of_this_file_once() {
        let (source, _) = include_str!("metrics.rs").split_once("#[cfg(test)]").unwrap();
        let of_file = source.split('"').filter(|text| text.starts_with("ftp_")).collect::<Vec<_>>();
        let names: Vec<_> = METRICS.iter().map(|metric| metric.name).collect();
        for name in &of_file {
            assert_eq!(names.iter().filter(|known| known == &name).count(), 1, "{name}");
        }
        let is_of_common = |name: &str| {
            name.starts_with("ftp_registry_")
                || name == "ftp_redis_seconds"
                || name == "ftp_block_handovers_total"
        };
        for name in names {
            assert!(of_file.contains(&name) || is_of_common(name), "{name} is never set");
        }
    }
}
