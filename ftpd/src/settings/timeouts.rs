//! Settings of time limits of sessions and transfers.

use common::settings::{DURATION, DURATION_OR_OFF, Group, Setting};

pub(super) static TIMEOUTS: Group = Group {
    name: "Timeouts",
    about: "Time limits of sessions, transfers and the end of the node.",
    settings: &[
        Setting::one(
            "login_timeout",
            DURATION,
            "60s",
            "The time from the connection to the login. After it the client gets 421.",
        ),
        Setting::one(
            "idle_timeout",
            DURATION,
            "5m",
            "The time without a command or a transfer after which a session gets 421. The balancer's limit \
             must be longer, so that the client gets the reply.",
        ),
        Setting::one(
            "session_max_age",
            DURATION_OR_OFF,
            "0s",
            "The age, since its login, at which a session gets 421, after its transfer if one runs. 0s: no \
             limit.",
        ),
        Setting::one(
            "reply_timeout",
            DURATION,
            "30s",
            "The time in which a client must accept a reply. After it the connection is closed.",
        ),
        Setting::one(
            "data_connect_timeout",
            DURATION,
            "30s",
            "The time in which the data connection of a transfer must come. After it the client gets 425.",
        ),
        Setting::one(
            "stall_timeout",
            DURATION,
            "5m",
            "The time without a byte after which a transfer gets 426. The balancer's limit for silent data \
             connections must be longer: it ends them with an ordinary end of file, which looks like the \
             end of an upload.",
        ),
        Setting::one(
            "checksum_timeout",
            DURATION,
            "1h",
            "The time limit of one checksum (HASH, XMD5 and so on). After it the client gets 552. A \
             gigabyte takes a few seconds.",
        ),
        Setting::one(
            "client_left_timeout",
            DURATION,
            "3s",
            "The time without a byte after which an upload ends, if its client has closed the control \
             connection. Bytes on their way are stored: for at most ten times this time, and at most 128 \
             MiB.",
        ),
        Setting::one(
            "passive_wait",
            DURATION,
            "5s",
            "The time that PASV waits for a free port. After it the client gets 425. A port that a session \
             gave up unused is free for its address when its connection has come, or after 2 seconds.",
        ),
        Setting::one(
            "quota_wait",
            DURATION,
            "5s",
            "The time that an upload to a home with a quota waits for the home's first count. After it the \
             upload gets 450.",
        ),
        Setting::one(
            "proxy_header_timeout",
            DURATION,
            "5s",
            "The time in which a balancer must send the PROXY header. After it the connection is closed.",
        ),
        Setting::one(
            "relay_connect_timeout",
            DURATION,
            "2s",
            "The time in which the node must reach another node to carry a data connection there. After it \
             the connection is closed.",
        ),
        Setting::one(
            "drain_timeout",
            DURATION,
            "5m",
            "The time that transfers may go on after SIGTERM or an administrator's drain. After it they \
             are cut. The service manager's stop limit must be longer.",
        ),
    ],
};
