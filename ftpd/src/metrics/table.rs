//! The table of the node's metrics: type, unit, labels and meaning.

use common::metric::{
    BLOCK_HANDOVERS, Metric, REDIS_SECONDS, REGISTRY_CONNECTED, REGISTRY_DEGRADED, REGISTRY_WRITABLE,
};

const DIRECTIONS: (&str, &str) = ("direction", "download, upload, listing");

/// Every metric of `ftpd`.
pub(crate) const METRICS: &[Metric] = &[
    Metric::gauge("ftp_connections", "connections", "Open control connections."),
    Metric::counter(
        "ftp_connections_total",
        "connections",
        "Control connections of clients. Health checks of the balancer are not counted.",
    ),
    Metric::counter(
        "ftp_connections_refused_total",
        "connections",
        "Control connections that were closed before a login was possible.",
    )
    .labels(&[("reason", "too_many, too_many_from_address, draining, proxy_header, no_client_address")]),
    Metric::counter("ftp_logins_total", "logins", "Decided logins.").labels(&[(
        "result",
        "accepted, rejected, throttled, unavailable (authd does not answer), not_encrypted, limited, \
         no_home, revoked",
    )]),
    Metric::counter("ftp_logins_rejected_total", "logins", "Logins with the result rejected.").labels(&[(
        "reason",
        "unknown_user, wrong_password, disabled, address_not_allowed, time_not_allowed, blocked, unknown",
    )]),
    Metric::gauge("ftp_dependency_up", "1 or 0", "1 if the dependency works, 0 if not.").labels(&[(
        "dependency",
        "storage, listeners, file_operations, passive_ports, registry, registry_writes, authd, audit, as in \
         /readyz",
    )]),
    Metric::gauge("ftp_sessions", "sessions", "Logged-in sessions."),
    Metric::counter("ftp_sessions_ended_total", "connections", "Control connections that the node ended.")
        .labels(&[(
            "reason",
            "idle_timeout, login_timeout, max_age, errors, unauthenticated_commands, foreign_protocol, \
         made_room, drain, stop, ended (by an administrator), revoked",
        )]),
    Metric::counter(
        "ftp_sessions_revoked_total",
        "sessions",
        "Sessions that ended because authd would no longer accept their login.",
    )
    .labels(&[(
        "reason",
        "removed, disabled, credential_changed, address_not_allowed, time_not_allowed, blocked, unknown",
    )]),
    Metric::counter("ftp_reauthorizations_total", "checks", "Checks of all sessions with authd.")
        .labels(&[("result", "answered, failed, unsupported (by an older authd)")]),
    Metric::counter("ftp_commands_total", "commands", "Executed commands.")
        .labels(&[("verb", "RETR, STOR and so on"), ("class", "1 to 5, the first digit of the reply")]),
    Metric::coarse_histogram(
        "ftp_command_seconds",
        "Time from a command to its first reply. The data of a transfer is not part of it: \
         `ftp_transfer_seconds` has that.",
    )
    .labels(&[(
        "group",
        "login (PASS), data_port (PASV and so on), download, upload, listing, change (DELE, MKD, RNTO and so \
         on), query (CWD, SIZE and so on), checksum, other (waits for no other part)",
    )]),
    Metric::coarse_histogram("ftp_login_seconds", "Time that the steps of logins took.").labels(&[(
        "step",
        "password (authd's decision), registry (the session's entry and its limits), home (opening it), \
         total (of accepted logins)",
    )]),
    Metric::gauge("ftp_transfers", "transfers", "Transfers in progress, listings included."),
    Metric::counter("ftp_transfers_total", "transfers", "Ended transfers, listings included.").labels(&[
        DIRECTIONS,
        (
            "result",
            "complete, aborted, client_gone, stalled, connection_lost, no_connection, no_slot, too_slow, \
             not_resumed, tls_failed, no_close_notify, short, shrunk, storage, quota, quota_unknown, \
             lease_lost",
        ),
    ]),
    Metric::counter("ftp_operations_failed_total", "operations", "Failed file operations and transfers.")
        .labels(&[("verb", "RETR, STOR and so on"), ("reason", "see [logs](logs.md#failed-operations)")]),
    Metric::counter(
        "ftp_audit_records_lost_total",
        "records",
        "Records of the audit trail that could not be written. /readyz shows the loss as `audit` for five \
         minutes.",
    )
    .labels(&[("sink", "file, stderr, journald, redis")]),
    Metric::counter("ftp_uploads_refused_total", "commands", "Refused uploads and renames.")
        .labels(&[("reason", "denied_name")]),
    Metric::counter("ftp_transfer_bytes_total", "bytes", "Bytes over data connections.")
        .labels(&[DIRECTIONS]),
    Metric::histogram("ftp_transfer_seconds", "seconds", "Duration of transfers, listings included.")
        .labels(&[DIRECTIONS]),
    Metric::histogram(
        "ftp_paced_seconds",
        "seconds",
        "Time that a transfer with a bandwidth limit waited for its bandwidth.",
    )
    .labels(&[("direction", "download, upload")]),
    Metric::gauge(
        "ftp_passive_ports_reserved",
        "reservations",
        "Passive ports that are reserved for a client address.",
    ),
    Metric::counter(
        "ftp_passive_ports_exhausted_total",
        "commands",
        "PASV and EPSV that found no free port within `passive_wait`.",
    ),
    Metric::counter(
        "ftp_passive_ports_given_up_total",
        "reservations",
        "Reservations that ended because another session of the address waited for a port, or another node \
         gets the port.",
    )
    .labels(&[(
        "reason",
        "unused (no transfer command within `data_connect_timeout`), share (the user had more than half of \
         the ports), handed_over (the port's block goes to another node)",
    )]),
    Metric::gauge(
        "ftp_blocks",
        "blocks",
        "Blocks of passive ports that this node owns. A fixed slice is one.",
    )
    .labels(&[("state", "leased, given_up (another node gets it when no reservation is outstanding)")]),
    Metric::counter(
        "ftp_data_connections_refused_total",
        "connections",
        "Data connections that were refused.",
    )
    .labels(&[(
        "reason",
        "unexpected (no session waits for it), proxy_header, not_resumed, bounce, own_address",
    )]),
    Metric::counter(
        "ftp_relayed_total",
        "connections",
        "Data connections that were carried to the owner of their port.",
    )
    .labels(&[("to", "name of the node that owns the port")]),
    Metric::gauge("ftp_relayed", "connections", "Data connections that are being carried to other nodes."),
    Metric::counter("ftp_relay_bytes_total", "bytes", "Bytes of relayed data connections.")
        .labels(&[("direction", "to_node, to_client")]),
    Metric::histogram(
        "ftp_relay_seconds",
        "seconds",
        "Time to connect to the owner of the port of a relayed data connection.",
    ),
    Metric::counter("ftp_relay_ended_total", "connections", "Ended relayed data connections.").labels(&[(
        "end",
        "orderly, reset_after_end (one side ended its stream, then reset: usual with TLS), client_reset, \
         node_reset, stalled, cancelled, unusable (a socket refuses its options)",
    )]),
    Metric::counter(
        "ftp_relay_refused_total",
        "connections",
        "Data connections that were not relayed, and relayed connections that the owner refused.",
    )
    .labels(&[(
        "reason",
        "limit, no_owner, unreachable, no_key, client (its socket is unusable); at the owner: twice (the \
         port is not its own), wrong_mac, expired, unknown_key, malformed",
    )]),
    Metric::histogram("ftp_authd_seconds", "seconds", "Time that authd took to decide a login.")
        .labels(&[("result", "answered, unavailable")]),
    Metric::counter("ftp_tls_handshakes_total", "handshakes", "TLS handshakes.").labels(&[
        ("kind", "control, data"),
        ("version", "TLSv1.2, TLSv1.3, none (failed or late), unknown"),
        ("result", "full, resumed, failed, late"),
    ]),
    Metric::counter("ftp_data_tls_sessions_total", "connections", "Encrypted data connections.").labels(&[(
        "resumed",
        "yes or no: whether they resumed the TLS session of their control connection",
    )]),
    Metric::counter("ftp_tls_downloads_total", "transfers", "Encrypted downloads in TYPE I.")
        .labels(&[("path", "kernel (kTLS), records (ftpd encrypts)")]),
    Metric::gauge(
        "ftp_tls_crl_expiry_timestamp_seconds",
        "Unix time in seconds",
        "Expiry of the `tls_client_crls` list that expires first. From then on its authority's client \
         certificates are refused. Missing without lists.",
    ),
    Metric::counter("ftp_tls_reloads_total", "reloads", "Reloads of the certificates.")
        .labels(&[("result", "loaded, failed")]),
    Metric::counter(
        "ftp_partials_removed_total",
        "files",
        "Hidden files of unfinished atomic uploads that were removed at the age of `partial_lifetime`.",
    ),
    Metric::counter("ftp_partial_bytes_removed_total", "bytes", "Size of those files."),
    Metric::counter(
        "ftp_events_recorded_total",
        "events",
        "Events that this node wrote to its journal, those of uploads that failed at the last step included.",
    ),
    Metric::counter(
        "ftp_event_attempts_total",
        "attempts",
        "Attempts to deliver an event. Only the node that delivers the events of the cluster makes them.",
    )
    .labels(&[("receiver", "its name in `events_file`"), ("result", "delivered, refused, unavailable")]),
    Metric::histogram("ftp_event_attempt_seconds", "seconds", "Duration of these attempts.")
        .labels(&[("receiver", "its name in `events_file`")]),
    Metric::histogram(
        "ftp_event_delivery_seconds",
        "seconds",
        "Time from what an event tells until a receiver had it.",
    ),
    Metric::gauge(
        "ftp_events_pending",
        "events",
        "Events that wait for a receiver, on the node that delivers them; each receiver counts.",
    ),
    Metric::gauge("ftp_events_oldest_seconds", "seconds", "Age of the oldest of these events."),
    Metric::gauge(
        "ftp_events_dead",
        "events",
        "Dead letters: events that a receiver did not accept for `retry_for`.",
    ),
    Metric::gauge(
        "ftp_oldest_file_operation_seconds",
        "seconds",
        "Running time of the oldest file operation of commands and logins, and of the calls that \
         `ftp_storage_seconds` measures. 0 if none runs.",
    ),
    Metric::histogram(
        "ftp_storage_seconds",
        "seconds",
        "Duration of the system calls that wait for the storage while an upload is completed.",
    )
    .labels(&[(
        "operation",
        "fsync, fsync_directory, close (of a written file), rename (publishes an upload)",
    )]),
    Metric::counter(
        "ftp_storage_errors_total",
        "errors",
        "Errors of the kernel with which file operations and transfers failed.",
    )
    .labels(&[("errno", "ENOSPC, EIO and so on")]),
    Metric::gauge("ftp_build_info", "1", "Always 1. Its label names the version.")
        .labels(&[("version", "version of the program")]),
    Metric::gauge(
        "ftp_tls_certificate_expiry_timestamp_seconds",
        "Unix time in seconds",
        "Expiry of the node's certificate that expires first. Missing without TLS.",
    ),
    Metric::gauge("ftp_slots_used", "slots", "Slots for work on files in use.").labels(&[(
        "kind",
        "file_operations, login_operations, long_operations, transfers: see [limits](limits.md#shares)",
    )]),
    Metric::gauge(
        "ftp_load",
        "share",
        "The largest share of a limit in use, from 0 to 1: sessions of `max_sessions`, transfers of \
         `max_transfers`. Measured every 2 s.",
    ),
    Metric::gauge("ftp_draining", "1 or 0", "1 while the node drains. Missing before."),
    Metric::gauge("ftp_limit", "as the setting", "Configured limits.").labels(&[(
        "limit",
        "max_sessions and other settings; passive_ports is the number of ports that the node may reserve",
    )]),
    Metric::counter(
        "ftp_limit_reached_total",
        "times",
        "Times that a limit refused something or made it wait.",
    )
    .labels(&[("limit", "the setting that was reached; also quota_bytes, quota_files, comb_sources")]),
    REGISTRY_CONNECTED,
    REGISTRY_WRITABLE,
    REDIS_SECONDS,
    REGISTRY_DEGRADED,
    BLOCK_HANDOVERS,
];

/// The row of a metric that `ftp-relay` has, too. Evaluated by the compiler: a wrong name does not compile.
pub(crate) const fn row(name: &str) -> Metric {
    let mut at = 0;
    while at < METRICS.len() {
        if is_same(METRICS[at].name.as_bytes(), name.as_bytes()) {
            return METRICS[at];
        }
        at += 1;
    }
    panic!("the table has no metric of this name")
}

const fn is_same(a: &[u8], b: &[u8]) -> bool {
    let mut at = 0;
    while at < a.len() && at < b.len() && a[at] == b[at] {
        at += 1;
    }
    at == a.len() && at == b.len()
}
