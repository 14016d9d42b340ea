//! Every metric of the node: one function an event. [`METRICS`] describes them.

mod table;

use std::time::Duration;

use ::metrics::{counter, gauge, histogram};
use common::node::NodeName;

pub(crate) use self::table::{METRICS, row};
use crate::protocol::reply::Code;

/// Tells the recorder what the metrics mean. Call it once, after the recorder is installed.
pub(crate) fn describe() {
    common::metric::describe(METRICS);
}

pub(crate) fn limit(name: &'static str, value: impl Into<u64>) {
    gauge!("ftp_limit", "limit" => name).set(value.into() as f64);
}

pub(crate) fn limit_reached(name: &'static str) {
    counter!("ftp_limit_reached_total", "limit" => name).increment(1);
}

pub(crate) fn oldest_file_operation(age: Duration) {
    gauge!("ftp_oldest_file_operation_seconds").set(age.as_secs_f64());
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

pub(crate) fn login(result: &'static str) {
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

pub(crate) fn partial_removed(bytes: u64) {
    counter!("ftp_partials_removed_total").increment(1);
    counter!("ftp_partial_bytes_removed_total").increment(bytes);
}

pub(crate) fn authd_answered(result: &'static str, took: Duration) {
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
        let is_of_common =
            |name: &str| name.starts_with("ftp_registry_") || name == "ftp_block_handovers_total";
        for name in names {
            assert!(of_file.contains(&name) || is_of_common(name), "{name} is never set");
        }
    }
}
