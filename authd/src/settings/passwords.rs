//! Settings of passwords and the computation of their hashes.

use common::settings::{DURATION, Form, Group, NUMBER, Setting};

pub(super) static PASSWORDS: Group = Group {
    name: "Passwords",
    about: "New passwords, and the cost of verifying passwords with argon2.",
    settings: &[
        Setting::one(
            "min_password_length",
            Form::new("NUMBER", "number of characters"),
            "12",
            "The length in characters of the shortest new password, for the API and `authd hash-password`. \
             FTP has no second factor, and mostly programs type its passwords. Existing passwords stay \
             valid.",
        ),
        Setting::one(
            "cache_ttl",
            DURATION,
            "60s",
            "The time for which a correct password is remembered and not computed again. Clients with many \
             connections log in again and again.",
        ),
        Setting::one(
            "cache_size",
            NUMBER,
            "10000",
            "Correct passwords that are remembered. A further one displaces the oldest.",
        ),
        Setting::one(
            "max_verifications",
            NUMBER,
            "",
            "Argon2 computations at once, each with its own memory. A further one waits. If not set, one \
             for each CPU.",
        ),
        Setting::one(
            "max_waiting_verifications",
            NUMBER,
            "256",
            "Logins that wait for a computation. A further one gets 503.",
        ),
        Setting::one(
            "verification_wait",
            DURATION,
            "3s",
            "The time that a login waits for a computation. After it the login gets 503. Keep it shorter \
             than the nodes' `authd_timeout`.",
        ),
        Setting::one(
            "argon2_memory_kib",
            Form::new("KIB", "KiB"),
            "19456",
            "The memory in KiB of one computation for new hashes. The default is OWASP's minimum for 2 \
             iterations.",
        ),
        Setting::one(
            "argon2_iterations",
            NUMBER,
            "2",
            "The passes over that memory for new hashes. More passes make guessing, and each login, slower.",
        ),
    ],
};
