//! Settings of the throttle: bans after failed logins.

use common::settings::{DURATION, Group, NETWORKS, NUMBER, Setting};

pub(super) static THROTTLE: Group = Group {
    name: "Throttle",
    about: "Bans of user names and client addresses after failed logins. They slow down guessing of \
            passwords.",
    settings: &[
        Setting::one(
            "throttle_free_failures",
            NUMBER,
            "5",
            "Failed logins of one user name without a ban. Each further one begins a ban, during which \
             logins get 429.",
        ),
        Setting::one(
            "throttle_free_failures_per_address",
            NUMBER,
            "20",
            "Failed logins from one client address (IPv6: one /64 network) without a ban. The number is \
             higher than for a name, because many clients may share an address.",
        ),
        Setting::one(
            "throttle_delay",
            DURATION,
            "1s",
            "The duration of the ban after the first failure beyond the free ones. Each further failure \
             doubles it.",
        ),
        Setting::one("throttle_max_delay", DURATION, "15m", "The longest ban."),
        Setting::one(
            "throttle_window",
            DURATION,
            "1h",
            "The time since the last failure after which all failures are forgotten. Not shorter than \
             `throttle_max_delay`.",
        ),
        Setting::one(
            "throttle_known_addresses",
            NUMBER,
            "100",
            "Client addresses that are remembered for each user after a login. A ban of the user's \
             name does not apply to them, so that an attacker cannot lock the user out. A further address \
             displaces the oldest. 0: none is remembered.",
        ),
        Setting::one(
            "throttle_known_time",
            DURATION,
            "30d",
            "The time since its last login for which an address is remembered.",
        ),
        Setting::many(
            "trusted_networks",
            NETWORKS,
            "",
            "Networks whose logins are never banned and whose failures are not counted.",
        ),
        Setting::one(
            "throttle_memory",
            NUMBER,
            "10000",
            "User names and addresses that authd counts in its memory while Redis is away. A further one \
             displaces the oldest.",
        ),
    ],
};
