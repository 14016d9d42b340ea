//! Settings of anonymous access.

use common::settings::{BYTES, BYTES_PER_SECOND, Form, Group, NUMBER, Setting};

pub(super) static ANONYMOUS: Group = Group {
    name: "Anonymous",
    about: "Users anonymous and ftp, who log in with any password. They exist only if `anonymous_home` is \
            set.",
    settings: &[
        Setting::one(
            "anonymous_home",
            Form::new("PATH", "path within the storage"),
            "",
            "The directory that anonymous users read. If not set, there are no anonymous users.",
        ),
        Setting::one(
            "anonymous_drop_box",
            Form::new("PATH", "path within anonymous_home"),
            "",
            "A directory in which anonymous users may create new files. They cannot list it or download \
             from it.",
        ),
        Setting::one(
            "anonymous_sessions",
            NUMBER,
            "50",
            "Anonymous sessions at once, on all nodes together.",
        ),
        Setting::one(
            "anonymous_sessions_per_address",
            NUMBER,
            "5",
            "Anonymous sessions at once of one client address, on all nodes together.",
        ),
        Setting::one(
            "anonymous_quota_bytes",
            BYTES,
            "10000000000",
            "The quota of `anonymous_drop_box` in bytes. 0: no limit.",
        ),
        Setting::one(
            "anonymous_quota_files",
            NUMBER,
            "10000",
            "The quota of `anonymous_drop_box` in files and directories. 0: no limit.",
        ),
        Setting::one(
            "anonymous_upload_bandwidth",
            BYTES_PER_SECOND,
            "10000000",
            "Bytes a second of all anonymous uploads together, on all nodes. 0: no limit.",
        ),
        Setting::one(
            "anonymous_download_bandwidth",
            BYTES_PER_SECOND,
            "0",
            "Bytes a second of all anonymous downloads together, on all nodes. 0: no limit.",
        ),
    ],
};
