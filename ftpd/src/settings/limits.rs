//! Settings of numbers that one client, user or node may not exceed.

use common::settings::{BYTES, BYTES_PER_SECOND, DURATION, Form, Group, NUMBER, Setting};

pub(super) static LIMITS: Group = Group {
    name: "Limits",
    about: "Shares of the node. docs/limits.md explains how they work together; `ftp_limit_reached_total` \
            counts how often each was reached.",
    settings: &[
        Setting::one(
            "max_sessions",
            NUMBER,
            "10000",
            "Control connections at once. A further one gets 421. The last tenth is reserved for networks \
             that logged in within a day. When none is free, the node ends a connection that has been \
             without a login for 10 s. ftpd lowers the number at its start if the limit of open files is \
             too low for it.",
        ),
        Setting::one(
            "max_sessions_per_address",
            NUMBER,
            "200",
            "Sessions of one client address (IPv6: one /64 network) at once, on all nodes together. A \
             further one gets 421. Raise it where many clients share an address.",
        ),
        Setting::one(
            "max_transfers",
            NUMBER,
            "1000",
            "Transfers at once, each on a thread. A further one waits for at most `data_connect_timeout`, \
             then gets 450. Downloads of up to 16 KiB need no thread and do not count. The last quarter is \
             reserved for users without a transfer.",
        ),
        Setting::one(
            "max_transfers_per_user",
            NUMBER,
            "",
            "Transfers of one user at once on this node. `limits.transfers` of the account takes \
             precedence. If not set, a quarter of `max_transfers`, and at least 10.",
        ),
        Setting::one(
            "max_relayed",
            NUMBER,
            "2000",
            "Data connections at once that this node carries to other nodes, because a balancer sent them to \
             this one. A further one is closed. The transfer that waits for it gets 425. ftpd lowers the \
             number at its start if the limit of open files is too low for it.",
        ),
        Setting::one(
            "dialogue_size",
            BYTES,
            "32768",
            "The memory in bytes for the last commands and replies of each session, which administrators can \
             read while the session lasts. The arguments of PASS, ACCT and AUTH are not kept. The memory \
             grows with the dialogue. 0: no dialogue is kept.",
        ),
        Setting::one(
            "dialogue_memory",
            BYTES,
            "67108864",
            "The memory in bytes for the dialogues of all sessions of the node together. Beyond it, new \
             lines of a session replace its oldest ones, and a session without lines keeps none.",
        ),
        Setting::one(
            "minimum_rate",
            BYTES_PER_SECOND,
            "0",
            "The slowest rate of a transfer, in bytes a second. A transfer that stays below it for \
             `minimum_rate_time` gets 426. Time in which a transfer waits for its user's bandwidth does \
             not count. Set it if slow clients occupy too many transfers. 0: no minimum.",
        ),
        Setting::one("minimum_rate_time", DURATION, "60s", "The time over which `minimum_rate` is measured."),
        Setting::one(
            "max_file_operations",
            NUMBER,
            "128",
            "Short file operations of commands at once. A further one waits. The last quarter is reserved \
             for users without an operation. Raise it if the storage is fast and `ftp_limit_reached_total` \
             grows.",
        ),
        Setting::one(
            "max_file_operations_per_user",
            NUMBER,
            "",
            "Short file operations of one user at once, including those of ended sessions. If not set, a \
             quarter of `max_file_operations`.",
        ),
        Setting::one(
            "max_file_operations_per_filesystem",
            NUMBER,
            "",
            "Short file operations in one file system at once, while sessions use several file systems. \
             So a file system that hangs leaves room for the others. If not set, half of \
             `max_file_operations`.",
        ),
        Setting::one(
            "max_login_operations",
            NUMBER,
            "32",
            "Logins at once that open their home. They have slots of their own, so that logins work while \
             other file operations hang. One user may have a quarter of them.",
        ),
        Setting::one(
            "file_operation_wait",
            DURATION,
            "2s",
            "The time without progress after which waiting file operations get 450. A file operation waits \
             for a slot as long as other operations of its share begin or end. If none has for this time, \
             the storage hangs.",
        ),
        Setting::one(
            "file_operation_alarm",
            DURATION,
            "10s",
            "The running time at which a file operation is logged as hanging. If all `max_file_operations` \
             slots are in use and no operation has ended for this time, the node is not ready.",
        ),
        Setting::one(
            "max_long_operations",
            NUMBER,
            "64",
            "Long commands (checksums, COMB, RMDA, STAT with a path) at once, each on a thread. A further \
             one waits.",
        ),
        Setting::one("max_long_operations_per_user", NUMBER, "8", "Long commands of one user at once."),
        Setting::one(
            "long_operation_wait",
            DURATION,
            "30s",
            "The time that a long command waits for a slot. After it the command gets 450.",
        ),
        Setting::one(
            "max_checksums_per_user",
            NUMBER,
            "1",
            "Checksums (HASH, XMD5 and so on) of one user at once on this node. A further one waits. A \
             checksum keeps a processor busy and reads a whole file.",
        ),
        Setting::one(
            "max_home_counts",
            NUMBER,
            "32",
            "Counts of homes with a quota at once, each on a thread. A further one waits. Four of them \
             read the storage at a time.",
        ),
        Setting::one(
            "home_count_turn",
            DURATION,
            "1s",
            "The time that a count of a home reads while others wait. Then the count that has read least \
             goes on, so that small homes do not wait for large ones or for storage that hangs.",
        ),
        Setting::one(
            "serving_threads",
            Form::new("NUMBER", "number"),
            "",
            "Threads that serve connections. They never wait for files. If not set, one for two \
             processors: more threads cost more wake-ups than they save.",
        ),
        Setting::one(
            "max_login_failures",
            NUMBER,
            "3",
            "Failed logins on one connection. After that many the client gets 421.",
        ),
        Setting::one(
            "max_unauthenticated_commands",
            NUMBER,
            "32",
            "Commands before a login. After that many the client gets 421.",
        ),
        Setting::one(
            "max_errors",
            NUMBER,
            "64",
            "Rejected commands in a row. After that many the client gets 421.",
        ),
    ],
};
