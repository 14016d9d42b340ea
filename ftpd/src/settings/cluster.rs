//! Settings of the registry, authd and readiness.

use common::settings::{
    DURATION, FILE, Form, Group, REDIS_PASSWORD_FILE, REDIS_PREFIX, REDIS_TIMEOUT, Setting, TEXT,
};

pub(super) static CLUSTER: Group = Group {
    name: "Cluster",
    about: "The registry in Redis, authd, and the readiness that a balancer checks.",
    settings: &[
        REDIS_PASSWORD_FILE,
        REDIS_PREFIX,
        REDIS_TIMEOUT,
        Setting::one(
            "authd_token_file",
            FILE,
            "",
            "A file that holds the bearer token of the nodes for authd.",
        ),
        Setting::one(
            "authd_timeout",
            DURATION,
            "5s",
            "The time in which one of the authd instances must answer a login. After it the client gets 421.",
        ),
        Setting::one(
            "reauthorize_interval",
            DURATION,
            "5m",
            "The interval at which the node asks authd which sessions may stay. It ends the sessions of \
             users who were removed or disabled, got a new password, or may not log in from their address \
             or at this time. The node also asks at once when accounts change; the interval covers allowed \
             hours, and changes that it missed while Redis was away.",
        ),
        Setting::one(
            "registry_away",
            Form::new("admit|refuse", "admit or refuse"),
            "admit",
            "New logins and uploads while Redis is away. admit: they go on, and limits and leases hold on \
             this node only. refuse: logins get 421, uploads 450; choose it where limits for the whole \
             cluster matter more than availability.",
        ),
        Setting::one(
            "node_lease",
            DURATION,
            "15s",
            "The time without a sign of life after which the registry drops a node and its sessions, and \
             frees its name. A node that finds its name held by another process waits this long, and ends \
             if that process renews its lease. A shorter lease finds dead nodes sooner; a longer one \
             tolerates longer outages of Redis.",
        ),
        Setting::one(
            "boot_id",
            TEXT,
            "",
            "The host's boot ID (systemd's `%b`), for services that cannot read \
             /proc/sys/kernel/random/boot_id. With it a node that crashed takes its name back at once; \
             without it after `node_lease`.",
        ),
        Setting::many(
            "readiness_requires",
            Form::new("NAMES", "names of storage, registry, authd, credentials"),
            "storage,authd,credentials",
            "The dependencies without which /readyz answers 503. `credentials` fails if Redis or authd \
             refuses this node's password or token, which waiting does not repair. With `registry_away = \
             \"refuse\"` the default also includes `registry`.",
        ),
        Setting::one(
            "readiness_interval",
            DURATION,
            "5s",
            "The interval at which the node tests its storage and authd.",
        ),
        Setting::one(
            "readiness_timeout",
            DURATION,
            "5s",
            "The time limit of such a test. After it the dependency counts as failed.",
        ),
    ],
};
