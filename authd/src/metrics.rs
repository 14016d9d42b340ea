//! Every metric of authd, one function an event.

use std::time::Duration;

use common::clock::since_epoch;
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::throttle::BanKind;

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

/// Says what each metric is. Call once, when the recorder is there.
pub fn describe() {
    describe_counter!(LOGINS, "Login attempts by their result");
    describe_histogram!(VERIFICATION, Unit::Seconds, "Argon2 computations that verified a password");
    describe_counter!(CACHE_HITS, "Logins whose password was known to be right from a moment before");
    describe_counter!(THROTTLED, "Logins that had to wait, by whose failures");
    describe_counter!(BANS, "Failed logins after which a user name or an address has to wait");
    describe_counter!(BANS_LIFTED, "Such waits that an administrator has ended");
    describe_counter!(
        REVOKED,
        "Past logins of which a node asked, and whose sessions may not stay, by reason"
    );
    describe_gauge!(CONNECTIONS, "HTTP connections that are open");
    describe_counter!(
        DISPLACED,
        "HTTP connections without a token that were closed because max_connections left them no more places"
    );
    describe_counter!(REQUESTS, "HTTP requests by route and status");
    describe_gauge!(
        DEPENDENCY_UP,
        "1 if authd's dependency is as it should be, 0 if not, by its name in /readyz"
    );
    describe_gauge!(USERS, "Users that are declared");
    describe_gauge!(FILE_LOADED, Unit::Seconds, "When the users file was last read well, since the epoch");
    describe_gauge!(FILE_CURRENT, "1 if the users file as it is now is in use, 0 if it is broken");
}

/// A login was decided.
pub fn login(result: &'static str) {
    counter!(LOGINS, "result" => result).increment(1);
}

/// A password was verified by computing argon2.
pub fn verified(took: Duration) {
    histogram!(VERIFICATION).record(took.as_secs_f64());
}

/// A password was verified without.
pub fn cache_hit() {
    counter!(CACHE_HITS).increment(1);
}

/// A login had to wait.
pub fn throttled(by: BanKind) {
    counter!(THROTTLED, "by" => by.as_str()).increment(1);
}

/// Logins of a user name or from an address have to wait from now on.
pub fn ban_began(by: BanKind) {
    counter!(BANS, "by" => by.as_str()).increment(1);
}

/// They need not wait any more, because an administrator says so.
pub fn ban_lifted(by: BanKind) {
    counter!(BANS_LIFTED, "by" => by.as_str()).increment(1);
}

/// The sessions of a past login may not stay.
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

/// How a dependency is.
pub fn dependency(name: &'static str, is_up: bool) {
    gauge!(DEPENDENCY_UP, "dependency" => name).set(u8::from(is_up));
}

/// The declared users are these now.
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
