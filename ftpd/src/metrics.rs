//! All metrics of the node, with one function for each event, and their descriptions.

use std::time::Duration;

use ::metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::protocol::reply::Code;

/// Registers the descriptions for Prometheus. Call once, after the recorder is installed.
pub fn describe() {
    describe_gauge!("ftp_connections", "Open control connections");
    describe_counter!("ftp_connections_total", "Control connections of clients, without health checks");
    describe_counter!(
        "ftp_connections_refused_total",
        "Control connections that the node refused before a login, by reason"
    );
    describe_counter!("ftp_logins_total", "Logins by result");
    describe_counter!("ftp_logins_rejected_total", "Logins with the result rejected, by reason");
    describe_gauge!("ftp_dependency_up", "1 if the dependency works, 0 if not, by its name in /readyz");
    describe_gauge!("ftp_sessions", "Logged-in sessions");
    describe_counter!("ftp_sessions_ended_total", "Control connections that the node ended, by reason");
    describe_counter!(
        "ftp_sessions_revoked_total",
        "Sessions ended because authd would no longer accept their login, by reason"
    );
    describe_counter!(
        "ftp_reauthorizations_total",
        "Questions to authd about the logins of all sessions, by result"
    );
    describe_counter!("ftp_commands_total", "Commands by verb and first digit of the reply code");
    describe_gauge!("ftp_transfers", "Transfers and listings in progress");
    describe_counter!("ftp_transfers_total", "Transfers and listings by direction and result");
    describe_counter!("ftp_operations_failed_total", "Failed commands and transfers, by verb and reason");
    describe_counter!("ftp_uploads_refused_total", "Refused uploads and renames, by reason");
    describe_counter!("ftp_transfer_bytes_total", "Bytes over data connections by direction");
    describe_histogram!(
        "ftp_transfer_seconds",
        "Duration of transfers and listings in seconds, by direction"
    );
    describe_histogram!(
        "ftp_paced_seconds",
        "Time in seconds that transfers waited because of bandwidth limits, by direction"
    );
    describe_gauge!("ftp_passive_ports_reserved", "Passive ports reserved for sessions");
    describe_counter!(
        "ftp_passive_ports_exhausted_total",
        "PASV and EPSV commands that got no free port in time"
    );
    describe_counter!(
        "ftp_passive_ports_given_up_total",
        "Reservations that ended because another session of the same client address needed the port, by reason: \
         unused for data_connect_timeout, or more than half of the ports"
    );
    describe_counter!(
        "ftp_data_connections_refused_total",
        "Data connections that the node refused, by reason"
    );
    describe_histogram!("ftp_authd_seconds", "Duration of authd's answers to logins in seconds, by result");
    describe_counter!("ftp_tls_handshakes_total", "TLS handshakes by kind of connection, version and result");
    describe_counter!(
        "ftp_data_tls_sessions_total",
        "Encrypted data connections, by whether they resumed the TLS session of their control connection"
    );
    describe_counter!(
        "ftp_tls_downloads_total",
        "Encrypted downloads in TYPE I, by encryption in the kernel or in the node (records)"
    );
    describe_gauge!(
        "ftp_tls_crl_expiry_timestamp_seconds",
        "Unix time at which the first of tls_client_crls expires; then client certificates of its authority are \
         refused"
    );
    describe_counter!("ftp_tls_reloads_total", "Reloads of the certificates, by result");
    describe_counter!(
        "ftp_partials_removed_total",
        "Partial files of unfinished atomic uploads removed because they were older than partial_lifetime"
    );
    describe_counter!("ftp_partial_bytes_removed_total", "Bytes of the removed partial files");
    describe_gauge!(
        "ftp_oldest_file_operation_seconds",
        "Age in seconds of the oldest running file operation of commands and logins; 0 if none runs"
    );
    describe_gauge!("ftp_places_used", "Worker slots in use, by kind");
    describe_gauge!("ftp_draining", "1 while the node drains");
    describe_gauge!("ftp_limit", "The configured limits by name");
    describe_counter!("ftp_limit_reached_total", "Refusals because of a limit, by name");
}

pub fn limit(name: &'static str, value: u32) {
    gauge!("ftp_limit", "limit" => name).set(value);
}

pub fn limit_reached(name: &'static str) {
    counter!("ftp_limit_reached_total", "limit" => name).increment(1);
}

pub fn oldest_file_operation(age: Duration) {
    gauge!("ftp_oldest_file_operation_seconds").set(age.as_secs_f64());
}

/// `kind`: one of [`crate::workers::KINDS`].
pub fn places_used(kind: &'static str, count: u32) {
    gauge!("ftp_places_used", "kind" => kind).set(count);
}

pub fn connection_opened() {
    counter!("ftp_connections_total").increment(1);
    gauge!("ftp_connections").increment(1);
}

pub fn connection_closed() {
    gauge!("ftp_connections").decrement(1);
}

pub fn connection_refused(reason: &'static str) {
    counter!("ftp_connections_refused_total", "reason" => reason).increment(1);
}

pub fn login(result: &'static str) {
    counter!("ftp_logins_total", "result" => result).increment(1);
}

pub fn login_rejected(reason: &'static str) {
    counter!("ftp_logins_rejected_total", "reason" => reason).increment(1);
}

pub fn dependency(name: &'static str, is_up: bool) {
    gauge!("ftp_dependency_up", "dependency" => name).set(u8::from(is_up));
}

pub fn session_opened() {
    gauge!("ftp_sessions").increment(1);
}

pub fn session_closed() {
    gauge!("ftp_sessions").decrement(1);
}

pub fn session_ended(reason: &'static str) {
    counter!("ftp_sessions_ended_total", "reason" => reason).increment(1);
}

pub fn session_revoked(reason: &'static str) {
    counter!("ftp_sessions_revoked_total", "reason" => reason).increment(1);
}

/// `result`: `answered`, `failed` or `unsupported`.
pub fn reauthorization(result: &'static str) {
    counter!("ftp_reauthorizations_total", "result" => result).increment(1);
}

pub fn command(verb: &'static str, code: Code) {
    let class = ["1", "2", "3", "4", "5"].get(usize::from(code.value() / 100 % 10).wrapping_sub(1));
    counter!("ftp_commands_total", "verb" => verb, "class" => *class.unwrap_or(&"other")).increment(1);
}

pub fn transfers(count: u32) {
    gauge!("ftp_transfers").set(count);
}

pub fn transfer_ended(direction: &'static str, result: &'static str, bytes: u64, took: Duration) {
    counter!("ftp_transfers_total", "direction" => direction, "result" => result).increment(1);
    counter!("ftp_transfer_bytes_total", "direction" => direction).increment(bytes);
    histogram!("ftp_transfer_seconds", "direction" => direction).record(took);
}

pub fn upload_refused(reason: &'static str) {
    counter!("ftp_uploads_refused_total", "reason" => reason).increment(1);
}

/// The labels come from fixed sets: the verb table and [`crate::failure`].
pub fn operation_failed(verb: &'static str, reason: &'static str) {
    counter!("ftp_operations_failed_total", "verb" => verb, "reason" => reason).increment(1);
}

pub fn paced(direction: &'static str, waited: Duration) {
    histogram!("ftp_paced_seconds", "direction" => direction).record(waited);
}

pub fn passive_ports_reserved(count: usize) {
    gauge!("ftp_passive_ports_reserved").set(count as f64);
}

pub fn passive_ports_exhausted() {
    counter!("ftp_passive_ports_exhausted_total").increment(1);
}

/// `reason`: `unused` or `share`.
pub fn passive_port_given_up(reason: &'static str) {
    counter!("ftp_passive_ports_given_up_total", "reason" => reason).increment(1);
}

pub fn data_connection_refused(reason: &'static str) {
    counter!("ftp_data_connections_refused_total", "reason" => reason).increment(1);
}

pub fn partial_removed(bytes: u64) {
    counter!("ftp_partials_removed_total").increment(1);
    counter!("ftp_partial_bytes_removed_total").increment(bytes);
}

pub fn authd_answered(result: &'static str, took: Duration) {
    histogram!("ftp_authd_seconds", "result" => result).record(took);
}

pub fn draining(is_draining: bool) {
    gauge!("ftp_draining").set(u8::from(is_draining));
}

/// `kind`: `control` or `data`. `result`: `full`, `resumed`, `failed` or `late`.
pub fn tls_handshake(kind: &'static str, version: &'static str, result: &'static str) {
    counter!("ftp_tls_handshakes_total", "kind" => kind, "version" => version, "result" => result)
        .increment(1);
}

pub fn data_tls_session(is_proved: bool) {
    let resumed = if is_proved { "yes" } else { "no" };
    counter!("ftp_data_tls_sessions_total", "resumed" => resumed).increment(1);
}

/// `path`: `kernel` or `records`.
pub fn tls_download(path: &'static str) {
    counter!("ftp_tls_downloads_total", "path" => path).increment(1);
}

/// `until` is the Unix time at which the first revocation list expires; `None`: there are no lists.
pub fn tls_revocation_lists(until: Option<i64>) {
    if let Some(until) = until {
        gauge!("ftp_tls_crl_expiry_timestamp_seconds").set(until as f64);
    }
}

pub fn tls_reloaded(is_success: bool) {
    counter!("ftp_tls_reloads_total", "result" => if is_success { "loaded" } else { "failed" }).increment(1);
}
