//! The table of authd's metrics: type, unit, labels and meaning.

use common::metric::{Metric, REDIS_SECONDS, REGISTRY_CONNECTED, REGISTRY_WRITABLE};

use super::{
    AUDIT_LOST, BANS, BANS_LIFTED, CACHE_HITS, CONNECTIONS, DEPENDENCY_UP, DISPLACED, FILE_CURRENT,
    FILE_LOADED, LIVE_LISTENERS, LOGINS, REQUEST_SECONDS, REQUESTS, REVOKED, THROTTLED, USERS, VERIFICATION,
};

/// Every metric of `authd`.
pub(crate) const METRICS: &[Metric] = &[
    Metric::counter(LOGINS, "logins", "Decided logins.").labels(&[(
        "result",
        "accepted, unknown_user, wrong_password, disabled, address_not_allowed, time_not_allowed, \
         blocked, throttled, busy, unavailable",
    )]),
    Metric::histogram(
        VERIFICATION,
        "seconds",
        "Duration of the argon2 computations that verified passwords.",
    ),
    Metric::counter(
        CACHE_HITS,
        "logins",
        "Logins whose password was known to be correct from the last `cache_ttl`.",
    ),
    Metric::counter(THROTTLED, "logins", "Logins that were refused because of a ban.")
        .labels(&[("by", "user, address: the kind of the ban")]),
    Metric::counter(BANS, "failures", "Failed logins with which the ban of a user name or an address began.")
        .labels(&[("by", "user, address")]),
    Metric::counter(BANS_LIFTED, "bans", "Bans that an administrator lifted.")
        .labels(&[("by", "user, address")]),
    Metric::counter(
        REVOKED,
        "logins",
        "Past logins that a node asked about and whose sessions may not stay.",
    )
    .labels(&[(
        "reason",
        "removed, disabled, credential_changed, address_not_allowed, time_not_allowed, blocked, unknown",
    )]),
    Metric::gauge(CONNECTIONS, "connections", "Open HTTP connections."),
    Metric::counter(
        DISPLACED,
        "connections",
        "HTTP connections without a token that were closed because of `max_connections`.",
    ),
    Metric::counter(REQUESTS, "requests", "Answered HTTP requests.")
        .labels(&[("route", "a path of the API, names left out"), ("status", "200, 401 and so on")]),
    Metric::coarse_histogram(
        REQUEST_SECONDS,
        "Time from a complete request of the API to the begin of its answer.",
    )
    .labels(&[("route", "a path of the API, names left out")]),
    Metric::gauge(LIVE_LISTENERS, "connections", "Listeners of `GET /v1/live`."),
    Metric::gauge(DEPENDENCY_UP, "1 or 0", "1 if the dependency works, 0 if not.")
        .labels(&[("dependency", "registry, registry_writes, audit, as in /readyz")]),
    Metric::counter(
        AUDIT_LOST,
        "records",
        "Records of the audit trail that could not be written. /readyz shows the loss as `audit` for five \
         minutes.",
    )
    .labels(&[("sink", "file, stderr, journald, redis")]),
    Metric::gauge(USERS, "users", "Declared users."),
    Metric::gauge(
        FILE_LOADED,
        "Unix time in seconds",
        "The last time that the users file was read without an error.",
    ),
    Metric::gauge(
        FILE_CURRENT,
        "1 or 0",
        "1 if the users file is in use as it is now; 0 if it has an error and the users before it stay.",
    ),
    REGISTRY_CONNECTED,
    REGISTRY_WRITABLE,
    REDIS_SECONDS,
];
