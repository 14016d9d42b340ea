//! The settings of the connection to Redis, which all programs of a cluster have.

use super::{DURATION, FILE, Form, Group, NUMBER, Setting, TEXT};

/// `redis_replicas`, in ftpd and authd.
pub const REDIS_REPLICAS: Setting = Setting::one(
    "redis_replicas",
    NUMBER,
    "0",
    "The number of replicas of Redis that must confirm a write within half of `redis_timeout`: changed users \
     and groups in authd, write leases in ftpd. If fewer do, the API answers 503 although the change is \
     stored, and a lease counts only together with file locks that all nodes see. 0: no confirmation, so a \
     failover may lose the last second.",
);

/// Redis's address.
pub const REDIS_URL: Form = Form::new("HOST:PORT", "HOST:PORT, redis://… or rediss://…");

/// The settings of the connection to Redis, except `redis_url`.
pub static REDIS: Group = Group {
    name: "Redis",
    about: "The connection to Redis: login, TLS, Sentinel, time limit. docs/redis.md explains them.",
    settings: &[
        Setting::one(
            "redis_user",
            TEXT,
            "",
            "The user of Redis's access control list. Without it Redis's default user. docs/redis.md has the \
             permissions that the user needs.",
        ),
        Setting::one("redis_password_file", FILE, "", "A file that holds the password for Redis."),
        Setting::one(
            "redis_ca_file",
            FILE,
            "",
            "The certificates (PEM) of the authorities that sign those of Redis and the sentinels, with \
             rediss://. If not set: the authorities that this system trusts. Each new connection reads the \
             file again.",
        ),
        Setting::one(
            "redis_client_certificate",
            FILE,
            "",
            "The certificate chain (PEM) with which this process proves its identity to Redis. Redis asks \
             for it with `tls-auth-clients yes`, its default. Each new connection reads the file again.",
        ),
        Setting::one("redis_client_key", FILE, "", "The private key (PEM) of `redis_client_certificate`."),
        Setting::many(
            "redis_sentinels",
            Form::new("HOST:PORT", "HOST[:PORT] or rediss://HOST[:PORT] (10.0.0.5,10.0.0.6,10.0.0.7)"),
            "",
            "The sentinels that watch Redis, in place of `redis_url`. They tell which server is the master, \
             also after a failover. With rediss:// before each of them, the connections to the master are \
             encrypted, too. The usual port is 26379.",
        ),
        Setting::one(
            "redis_sentinel_master",
            TEXT,
            "",
            "The name that the sentinels have for the master (`sentinel monitor NAME …`).",
        ),
        Setting::one(
            "redis_sentinel_user",
            TEXT,
            "",
            "The user of the sentinels' access control list. Without it their default user.",
        ),
        Setting::one(
            "redis_sentinel_password_file",
            FILE,
            "",
            "A file that holds the password for the sentinels.",
        ),
        Setting::one(
            "redis_prefix",
            TEXT,
            "ftp",
            "The first part of every key in Redis. The same on all nodes, relays and authd instances; \
             clusters that share a Redis need different ones. A Redis Cluster needs one with a hash tag, \
             such as {ftp}.",
        ),
        Setting::one(
            "redis_timeout",
            DURATION,
            "1s",
            "The time limit of a request to Redis. After it Redis counts as away.",
        ),
    ],
};
