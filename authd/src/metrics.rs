//! All metrics of authd, one function per event; [`METRICS`] describes them. Depends on no other module.

mod table;

use std::time::Duration;

use common::clock::since_epoch;
use metrics::{counter, gauge, histogram};

pub(crate) use self::table::METRICS;

const LOGINS: &str = "authd_logins_total";
const VERIFICATION: &str = "authd_verification_seconds";
const CACHE_HITS: &str = "authd_cache_hits_total";
const THROTTLED: &str = "authd_throttled_total";
const BANS: &str = "authd_bans_total";
const BANS_LIFTED: &str = "authd_bans_lifted_total";
const REVOKED: &str = "authd_sessions_revoked_total";
const CONNECTIONS: &str = "authd_http_connections";
const DISPLACED: &str = "authd_http_connections_displaced_total";
const REQUESTS: &str = "authd_http_requests_total";
const REQUEST_SECONDS: &str = "authd_request_seconds";
const LIVE_LISTENERS: &str = "authd_live_listeners";
const DEPENDENCY_UP: &str = "authd_dependency_up";
const AUDIT_LOST: &str = "authd_audit_records_lost_total";
const USERS: &str = "authd_users_declared";
const FILE_LOADED: &str = "authd_users_file_loaded_timestamp_seconds";
const FILE_CURRENT: &str = "authd_users_file_current";

/// A login was decided.
pub(crate) fn login(result: &'static str) {
    counter!(LOGINS, "result" => result).increment(1);
}

/// An argon2 computation checked a password.
pub(crate) fn verified(took: Duration) {
    histogram!(VERIFICATION).record(took.as_secs_f64());
}

/// The cache knew that a password is right.
pub(crate) fn cache_hit() {
    counter!(CACHE_HITS).increment(1);
}

/// A login was refused because of a ban. `kind` is `address` or `user`, here and below.
pub(crate) fn throttled(kind: &'static str) {
    counter!(THROTTLED, "by" => kind).increment(1);
}

/// A ban began.
pub(crate) fn ban_began(kind: &'static str) {
    counter!(BANS, "by" => kind).increment(1);
}

/// An administrator lifted a ban.
pub(crate) fn ban_lifted(kind: &'static str) {
    counter!(BANS_LIFTED, "by" => kind).increment(1);
}

/// A node was told to end the sessions of a past login.
pub(crate) fn session_revoked(reason: &'static str) {
    counter!(REVOKED, "reason" => reason).increment(1);
}

/// An HTTP connection was accepted.
pub(crate) fn connected() {
    gauge!(CONNECTIONS).increment(1.0);
}

/// An HTTP connection ended.
pub(crate) fn disconnected() {
    gauge!(CONNECTIONS).decrement(1.0);
}

/// An HTTP connection without a token was closed, to accept a newer one.
pub(crate) fn displaced() {
    counter!(DISPLACED).increment(1);
}

/// An HTTP request was answered.
pub(crate) fn answered(route: &'static str, status: u16) {
    counter!(REQUESTS, "route" => route, "status" => status.to_string()).increment(1);
}

/// An operation of the API ended after this time.
pub(crate) fn request_took(route: &'static str, took: Duration) {
    histogram!(REQUEST_SECONDS, "route" => route).record(took);
}

/// A client began to listen to `GET /v1/live`.
pub(crate) fn live_listener_began() {
    gauge!(LIVE_LISTENERS).increment(1.0);
}

/// A client listens no more.
pub(crate) fn live_listener_ended() {
    gauge!(LIVE_LISTENERS).decrement(1.0);
}

/// Records of the audit trail did not reach `sink`: `file`, `stderr`, `journald` or `redis`.
pub(crate) fn audit_records_lost(sink: &'static str, count: u64) {
    counter!(AUDIT_LOST, "sink" => sink).increment(count);
}

/// The state of a dependency is known.
pub(crate) fn dependency(name: &'static str, is_up: bool) {
    gauge!(DEPENDENCY_UP, "dependency" => name).set(u8::from(is_up));
}

/// The declared users were replaced.
pub(crate) fn users_declared(count: usize, from_file: bool) {
    gauge!(USERS).set(count as f64);
    if from_file {
        gauge!(FILE_LOADED).set(since_epoch().as_secs_f64());
        gauge!(FILE_CURRENT).set(1.0);
    }
}

/// The users file has an error. The users that it declared before stay.
pub(crate) fn users_file_is_broken() {
    gauge!(FILE_CURRENT).set(0.0);
}

#[cfg(test)]
mod tests {
    use super::METRICS;

    #[test]
    fn the_table_holds_every_metric_of_this_file_once() {
        let (source, _) = include_str!("metrics.rs").split_once("#[cfg(test)]").unwrap();
        let of_file = source.split('"').filter(|text| text.starts_with("authd_"));
        let mut count = 0;
        for name in of_file {
            count += 1;
            assert_eq!(METRICS.iter().filter(|metric| metric.name == name).count(), 1, "{name}");
        }
        // Those of `common`.
        let of_common = METRICS.iter().filter(|metric| metric.name.starts_with("ftp_")).count();
        assert_eq!(METRICS.len(), count + of_common, "a metric of the table is never set");
    }
}
