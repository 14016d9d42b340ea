//! All metrics of authd, one function per event. Depends on no other module.

use std::time::Duration;

use common::clock::since_epoch;
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

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
const DEPENDENCY_UP: &str = "authd_dependency_up";
const USERS: &str = "authd_users_declared";
const FILE_LOADED: &str = "authd_users_file_loaded_timestamp_seconds";
const FILE_CURRENT: &str = "authd_users_file_current";

/// Describes each metric. Call it once, after the recorder is installed.
pub fn describe() {
    describe_counter!(LOGINS, "Login attempts by result");
    describe_histogram!(
        VERIFICATION,
        Unit::Seconds,
        "Duration of argon2 computations that checked a password"
    );
    describe_counter!(CACHE_HITS, "Logins whose password was found in the cache of recently verified ones");
    describe_counter!(THROTTLED, "Logins refused because of a ban, by kind of ban: address or user");
    describe_counter!(BANS, "Bans that began after failed logins, by kind: address or user");
    describe_counter!(BANS_LIFTED, "Bans that an administrator lifted, by kind: address or user");
    describe_counter!(REVOKED, "Past logins that a node asked about and whose sessions must end, by reason");
    describe_gauge!(CONNECTIONS, "Open HTTP connections");
    describe_counter!(
        DISPLACED,
        "HTTP connections without a token that were closed for newer ones because of max_connections"
    );
    describe_counter!(REQUESTS, "HTTP requests by route and status");
    describe_gauge!(
        DEPENDENCY_UP,
        "1 if a dependency of authd works, 0 if it does not, by its name in /readyz"
    );
    describe_gauge!(USERS, "Declared users");
    describe_gauge!(
        FILE_LOADED,
        Unit::Seconds,
        "Time of the last successful read of the users file (Unix time)"
    );
    describe_gauge!(FILE_CURRENT, "1 if the current users file is in use, 0 if it is invalid");
}

/// A login was decided.
pub fn login(result: &'static str) {
    counter!(LOGINS, "result" => result).increment(1);
}

/// An argon2 computation checked a password.
pub fn verified(took: Duration) {
    histogram!(VERIFICATION).record(took.as_secs_f64());
}

/// The cache knew that a password is right.
pub fn cache_hit() {
    counter!(CACHE_HITS).increment(1);
}

/// A login was refused because of a ban. `kind` is `address` or `user`, here and below.
pub fn throttled(kind: &'static str) {
    counter!(THROTTLED, "by" => kind).increment(1);
}

/// A ban began.
pub fn ban_began(kind: &'static str) {
    counter!(BANS, "by" => kind).increment(1);
}

/// An administrator lifted a ban.
pub fn ban_lifted(kind: &'static str) {
    counter!(BANS_LIFTED, "by" => kind).increment(1);
}

/// A node was told to end the sessions of a past login.
pub fn session_revoked(reason: &'static str) {
    counter!(REVOKED, "reason" => reason).increment(1);
}

/// An HTTP connection was accepted.
pub fn connected() {
    gauge!(CONNECTIONS).increment(1.0);
}

/// An HTTP connection ended.
pub fn disconnected() {
    gauge!(CONNECTIONS).decrement(1.0);
}

/// An HTTP connection without a token was closed for a newer one.
pub fn displaced() {
    counter!(DISPLACED).increment(1);
}

/// An HTTP request was answered.
pub fn answered(route: &'static str, status: u16) {
    counter!(REQUESTS, "route" => route, "status" => status.to_string()).increment(1);
}

/// The state of a dependency is known.
pub fn dependency(name: &'static str, is_up: bool) {
    gauge!(DEPENDENCY_UP, "dependency" => name).set(u8::from(is_up));
}

/// The declared users were replaced.
pub fn users_declared(count: usize, from_file: bool) {
    gauge!(USERS).set(count as f64);
    if from_file {
        gauge!(FILE_LOADED).set(since_epoch().as_secs_f64());
        gauge!(FILE_CURRENT).set(1.0);
    }
}

/// The users file cannot be used.
pub fn users_file_is_broken() {
    gauge!(FILE_CURRENT).set(0.0);
}
