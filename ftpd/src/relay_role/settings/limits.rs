//! Settings of limits and time limits.

use common::settings::{DURATION, Form, Group, NUMBER, Setting};

pub(super) static LIMITS: Group = Group {
    name: "Limits",
    about: "Connections at once. Each costs two sockets.",
    settings: &[
        Setting::one("max_relayed", NUMBER, "10000", "Data connections at once. A further one is reset."),
        Setting::one(
            "max_control_connections",
            NUMBER,
            "10000",
            "Control connections at once. A further one gets 421; with implicit FTPS it is reset.",
        ),
        Setting::one(
            "serving_threads",
            Form::new("NUMBER", "number"),
            "",
            "Threads that move the bytes. If not set, one for each processor.",
        ),
    ],
};

pub(super) static TIMEOUTS: Group = Group {
    name: "Timeouts",
    about: "Time limits of connections and of the end of the relay.",
    settings: &[
        Setting::one(
            "relay_connect_timeout",
            DURATION,
            "2s",
            "The time in which a node must accept a connection. After it a data connection is reset, and a \
             control connection goes to another node.",
        ),
        Setting::one(
            "greeting_timeout",
            DURATION,
            "3s",
            "The time in which a node must send the first byte of its greeting. After it the control \
             connection goes to another node, and new ones avoid the silent node for 5 seconds.",
        ),
        Setting::one(
            "stall_timeout",
            DURATION,
            "6m",
            "The time without a byte after which a data connection is reset. It must be longer than the \
             nodes' `stall_timeout`, so that the node ends the transfer and tells the client why.",
        ),
        Setting::one(
            "control_timeout",
            DURATION,
            "4h",
            "The time without a byte after which a control connection is reset. It must be longer than the \
             nodes' `idle_timeout`, and than the longest transfer, during which the control connection is \
             silent.",
        ),
        Setting::one(
            "proxy_header_timeout",
            DURATION,
            "5s",
            "The time in which a balancer of `trusted_balancers` must send the PROXY header. After it the \
             connection is reset.",
        ),
        Setting::one(
            "drain_timeout",
            DURATION,
            "5m",
            "The time that relayed connections may go on after SIGTERM. After it they are reset. The service \
             manager's stop limit must be longer.",
        ),
    ],
};
