//! Settings of the page for operators.

use common::settings::{DURATION, Group, Setting};

pub(super) static PAGE: Group = Group {
    name: "Page",
    about: "The page for operators, at `/` of `listen`. docs/console.md shows it.",
    settings: &[
        Setting::switch(
            "console",
            "true",
            "Serve the page. Administrators log in with their name and token.",
        ),
        Setting::one(
            "console_session",
            DURATION,
            "12h",
            "The time after which a login to the page ends. Logins are in authd's memory: a restart ends \
             them, too.",
        ),
    ],
};
