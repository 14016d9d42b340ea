//! Every metric of the node: one function an event, and what each means.

use std::time::Duration;

use ::metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::protocol::reply::Code;

/// Tells Prometheus what the metrics mean. Call once, after the recorder is installed.
pub fn describe() {
    describe_gauge!("ftp_connections", "Control connections at this time");
    describe_counter!("ftp_connections_total", "Control connections of clients, health checks left out");
    describe_counter!(
        "ftp_connections_refused_total",
        "Control connections closed before they could log in, by reason"
    );
    describe_counter!("ftp_logins_total", "Logins by result");
    describe_counter!("ftp_logins_rejected_total", "Logins with the result rejected, by reason");
    describe_gauge!(
        "ftp_dependency_up",
        "1 if the node's dependency is as it should be, 0 if not, by its name in /readyz"
    );
    describe_gauge!("ftp_sessions", "Logged-in sessions at this time");
    describe_counter!("ftp_sessions_ended_total", "Control connections that the node ended, by reason");
    describe_counter!(
        "ftp_sessions_revoked_total",
        "Sessions that ended because authd would not accept their login any more, by reason"
    );
    describe_counter!("ftp_reauthorizations_total", "Checks of all sessions with authd, by result");
    describe_counter!("ftp_commands_total", "Commands by verb and first digit of the reply");
    describe_gauge!("ftp_transfers", "Transfers and listings in progress");
    describe_counter!("ftp_transfers_total", "Transfers and listings by direction and result");
    describe_counter!(
        "ftp_operations_failed_total",
        "Operations on files and transfers that failed, by verb and reason"
    );
    describe_counter!("ftp_uploads_refused_total", "Uploads and renames that were refused, by reason");
    describe_counter!("ftp_transfer_bytes_total", "Bytes over data connections by direction");
    describe_histogram!("ftp_transfer_seconds", "How long transfers and listings took");
    describe_histogram!(
        "ftp_paced_seconds",
        "How long transfers with a limit of bandwidth waited for it, by direction"
    );
    describe_gauge!("ftp_passive_ports_reserved", "Reservations of (port, client address) at this time");
    describe_counter!("ftp_passive_ports_exhausted_total", "PASV and EPSV that found no free port in time");
    describe_counter!(
        "ftp_passive_ports_given_up_total",
        "Reservations that ended because another session of the address waited: unused for data_connect_timeout, or beyond half of the ports"
    );
    describe_counter!("ftp_data_connections_refused_total", "Data connections that were closed, by reason");
    describe_histogram!("ftp_authd_seconds", "How long authd took to answer a login");
    describe_counter!("ftp_tls_handshakes_total", "TLS handshakes by connection, version and result");
    describe_counter!(
        "ftp_data_tls_sessions_total",
        "Encrypted data connections by whether they resumed their session's TLS session"
    );
    describe_counter!(
        "ftp_tls_downloads_total",
        "Encrypted downloads in TYPE I by who makes their TLS records: the kernel, or the node itself"
    );
    describe_gauge!(
        "ftp_tls_crl_expiry_timestamp_seconds",
        "When the first of tls_client_crls expires; from then on its authority's client certificates are refused"
    );
    describe_counter!("ftp_tls_reloads_total", "Certificates read again, by result");
    describe_counter!(
        "ftp_partials_removed_total",
        "Hidden files of broken atomic uploads removed because they were older than partial_lifetime"
    );
    describe_counter!("ftp_partial_bytes_removed_total", "Bytes of those files");
    describe_gauge!(
        "ftp_oldest_file_operation_seconds",
        "How long the file operation runs that began first, of commands and logins; 0 if none runs"
    );
    describe_gauge!("ftp_slots_used", "Slots of workers in use, by kind");
    describe_gauge!("ftp_draining", "1 while the node drains");
    describe_gauge!("ftp_limit", "The configured limits by name");
    describe_counter!("ftp_limit_reached_total", "How often a limit refused something, by name");
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

/// `kind`: one of [`crate::work::KINDS`].
pub fn slots_used(kind: &'static str, count: u32) {
    gauge!("ftp_slots_used", "kind" => kind).set(count);
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

/// Both labels come from fixed sets: the verb table and [`crate::protocol::failure`].
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

pub fn draining(yes: bool) {
    gauge!("ftp_draining").set(u8::from(yes));
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

/// `until`: when the first revocation list expires, in seconds since 1970; `None`: there are no lists.
pub fn tls_revocation_lists(until: Option<i64>) {
    if let Some(until) = until {
        gauge!("ftp_tls_crl_expiry_timestamp_seconds").set(until as f64);
    }
}

pub fn tls_reloaded(well: bool) {
    counter!("ftp_tls_reloads_total", "result" => if well { "loaded" } else { "failed" }).increment(1);
}
