//! The table of settings: every key of `authd` with its form, default and meaning.

mod accounts;
mod manual;
mod page;
mod passwords;
mod throttle;

use common::audit::{AUDIT_LOG, AUDIT_RECORDS};
use common::settings::{
    DURATION, FILE, Form, Group, LOG_FORMAT, LOG_LEVEL, NUMBER, REDIS, REDIS_REPLICAS, REDIS_URL, Schema,
    Setting, Subcommand,
};

use crate::metrics;

/// The subcommand that hashes an administrator's token.
pub const HASH_TOKEN: &str = "hash-token";

/// Every setting of `authd`.
pub static SCHEMA: Schema = Schema {
    program: "authd",
    about: "the login service of a distributed FTP cluster, and its API for administrators",
    version: env!("CARGO_PKG_VERSION"),
    prefix: "AUTHD_",
    groups: &[
        &ESSENTIAL,
        &NETWORK,
        &CLUSTER,
        &REDIS,
        &page::PAGE,
        &accounts::ANONYMOUS,
        &throttle::THROTTLE,
        &passwords::PASSWORDS,
        &LOGGING,
    ],
    subcommands: &[
        Subcommand {
            name: "hash-password",
            about: "read a password from the terminal or standard input, and print its argon2id hash",
            manual: manual::HASH_PASSWORD,
        },
        Subcommand {
            name: HASH_TOKEN,
            about: "read a token from the terminal or standard input, and print its line for \
                    administrators_file",
            manual: manual::HASH_TOKEN,
        },
        manual::HEALTH,
    ],
    metrics: metrics::METRICS,
    manual: manual::MANUAL,
    example_file: manual::EXAMPLE_FILE,
};

static ESSENTIAL: Group = Group {
    name: "Essential",
    about: "The settings to begin with. An authd of a cluster needs all of them but `demo`.",
    settings: &[
        Setting::one(
            "listen",
            Form::new("IP:PORT", "IP:PORT (127.0.0.1:5160; port 0 takes a free one)"),
            "127.0.0.1:5160",
            "The address of the HTTP service. It has no TLS, so the default is loopback; nodes on other \
             hosts need an address of the internal network.",
        ),
        Setting::one(
            "users_file",
            Form::new("FILE", "file (.toml or .json)"),
            "",
            "A file that declares users and groups. It is read again when it changes, and on SIGHUP. If \
             not set, all users come from the API.",
        ),
        Setting::one(
            "node_token_file",
            FILE,
            "",
            "A file that holds the bearer token of the nodes (their `authd_token_file`). While the token is \
             replaced, the file has two lines, the old token and the new one, and both are accepted. Without \
             the file every login gets 401.",
        ),
        Setting::one(
            "admin_token_file",
            FILE,
            "",
            "A file that holds the bearer token of administrators. Without it the API for users, sessions \
             and nodes answers 401. It must differ from the nodes' tokens.",
        ),
        Setting::one(
            "administrators_file",
            FILE,
            "",
            "A TOML file with named administrators: `[NAME]`, `role` (`administrator`, or `viewer`, who may \
             only read), and `token_sha256` (`authd hash-token` prints it). It is read again \
             on SIGHUP. The token of `admin_token_file` belongs to the administrator `admin`.",
        ),
        Setting::one(
            "redis_url",
            REDIS_URL,
            "",
            "The Redis that holds sessions, nodes, API users and failed logins. Without it there are no \
             sessions, nodes or API users, and each authd counts failed logins by itself.",
        )
        .alias("RedisConnectionString"),
        Setting::switch(
            "demo",
            "false",
            "Let users demo, admin and test log in with any password, and nodes ask without a token. For \
             trials, on loopback only.",
        ),
    ],
};

static NETWORK: Group = Group {
    name: "Network",
    about: "HTTP connections, and the end of the service.",
    settings: &[
        Setting::one(
            "max_connections",
            NUMBER,
            "4096",
            "HTTP connections at once. A further one waits until another ends. Connections that have shown \
             no token may use three quarters of them; then a further one closes the oldest silent one.",
        ),
        Setting::one(
            "header_timeout",
            DURATION,
            "2m",
            "The time in which a connection must send a complete request header. The default is longer \
             than the 90 s for which nodes keep idle connections.",
        ),
        Setting::one(
            "max_live_listeners",
            NUMBER,
            "64",
            "Listeners of `GET /v1/live` at once, such as open pages. Each is one of `max_connections`; a \
             further one gets 503.",
        ),
        Setting::one(
            "stop_timeout",
            DURATION,
            "10s",
            "The time that running requests may go on after SIGTERM. After it authd exits.",
        ),
    ],
};

static CLUSTER: Group = Group {
    name: "Cluster",
    about: "The readiness for balancers and service managers.",
    settings: &[
        REDIS_REPLICAS,
        Setting::many(
            "readiness_requires",
            Form::new("NAMES", "names of registry, credentials"),
            "credentials",
            "The dependencies without which /readyz answers 503: `registry` is Redis; `credentials` fails \
             if Redis refuses authd's password, which waiting does not repair. If no user is declared, \
             `registry` is always required, because no login can be decided without Redis.",
        ),
        Setting::one(
            "users_file_poll",
            DURATION,
            "1s",
            "The interval at which authd checks for changes of `users_file` and of the hash files that it \
             names. It reads them when two checks in a row find the same change, so that it never reads half \
             a file.",
        ),
    ],
};

static LOGGING: Group = Group {
    name: "Logging",
    about: "The log goes to standard error.",
    settings: &[
        Setting::one(
            "log_level",
            LOG_LEVEL,
            "info",
            "The least severe level that is logged, or a filter of env_logger \
             (`info,authd::throttle=debug`). SIGHUP applies a change.",
        ),
        LOG_FORMAT,
        AUDIT_LOG,
        AUDIT_RECORDS,
    ],
};
