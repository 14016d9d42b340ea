//! The table of authd's metrics: type, unit, labels and meaning.

use common::metric::{Metric, REGISTRY_CONNECTED};

use super::{
    BANS, BANS_LIFTED, CACHE_HITS, CONNECTIONS, DEPENDENCY_UP, DISPLACED, FILE_CURRENT, FILE_LOADED, LOGINS,
    REQUESTS, REVOKED, THROTTLED, USERS, VERIFICATION,
};

/// Every metric of `authd`.
pub(crate) const METRICS: &[Metric] = &[
    Metric::counter(LOGINS, "logins", "Decided logins.").labels(&[(
        "result",
        "accepted, unknown_user, wrong_password, disabled, address_not_allowed, time_not_allowed, \
         throttled, busy, unavailable",
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
        "removed, disabled, credential_changed, address_not_allowed, time_not_allowed, unknown",
    )]),
    Metric::gauge(CONNECTIONS, "connections", "Open HTTP connections."),
    Metric::counter(
        DISPLACED,
        "connections",
        "HTTP connections without a token that were closed because of `max_connections`.",
    ),
    Metric::counter(REQUESTS, "requests", "Answered HTTP requests.")
        .labels(&[("route", "a path of the API, names left out"), ("status", "200, 401 and so on")]),
    Metric::gauge(DEPENDENCY_UP, "1 or 0", "1 if the dependency works, 0 if not.")
        .labels(&[("dependency", "registry, as in /readyz")]),
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
];
