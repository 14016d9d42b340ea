//! Settings of the delays after failed logins.

use common::settings::{DURATION, Group, NETWORKS, NUMBER, Setting};

pub(super) static THROTTLE: Group = Group {
    name: "Throttle",
    about: "Delays after failed logins, by user name and by client address. They slow down guessing of \
            passwords.",
    settings: &[
        Setting::one(
            "throttle_free_failures",
            NUMBER,
            "5",
            "Failed logins of one user name without a delay. After them a login must wait, and gets 429 \
             until then.",
        ),
        Setting::one(
            "throttle_free_failures_per_address",
            NUMBER,
            "20",
            "Failed logins from one client address (IPv6: one /64 network) without a delay. The number is \
             higher than for a name, because many clients may share an address.",
        ),
        Setting::one(
            "throttle_delay",
            DURATION,
            "1s",
            "The delay after the first failure beyond the free ones. Each further failure doubles it.",
        ),
        Setting::one("throttle_max_delay", DURATION, "15m", "The longest delay."),
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
            "Client addresses that are remembered for each user after a login. The delay of the user's \
             name does not hold for them, so that an attacker cannot lock the user out. A further address \
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
            "Networks whose logins are never delayed and whose failures are not counted.",
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
