//! The table of settings: every key of `ftpd` with its form, default and meaning.

mod cluster;
mod files;
mod limits;
mod manual;
mod network;
mod timeouts;
mod tls;

use common::audit::{AUDIT_LOG, AUDIT_RECORDS};
use common::settings::{
    FILE, Form, Group, LOG_FORMAT, LOG_LEVEL, NUMBER, REDIS, REDIS_URL, Schema, Setting, Shape,
};

use crate::metrics;

/// Every setting of `ftpd`.
pub static SCHEMA: Schema = Schema {
    program: "ftpd",
    about: "one node of a distributed FTP cluster, or one FTP server by itself",
    version: env!("CARGO_PKG_VERSION"),
    prefix: "FTPD_",
    groups: &[
        &ESSENTIAL,
        &network::NETWORK,
        &tls::TLS,
        &cluster::CLUSTER,
        &REDIS,
        &files::FILES,
        &limits::LIMITS,
        &timeouts::TIMEOUTS,
        &LOGGING,
    ],
    subcommands: &[manual::HEALTH],
    metrics: metrics::METRICS,
    manual: manual::MANUAL,
    example_file: manual::EXAMPLE_FILE,
};

const PORT: Form = Form::new("PORT", "port from 1 to 65535");
const IP_ADDRESS: Form = Form::new("ADDRESS", "IP address (203.0.113.10)");
const PEM_FILE: Form = Form::new("FILE", "PEM file");
const PEM_FILES: Form = Form::new("FILE", "PEM files");
const MODE: Form = Form::new("MODE", "octal mode from 0 to 0777 (0640)");

static ESSENTIAL: Group = Group {
    name: "Essential",
    about: "The settings to begin with. A standalone server needs `standalone`, `root` and `user_file`; a \
            node of a cluster needs `root` and the settings from `node_name` on.",
    settings: &[
        Setting::one(
            "root",
            Form::new("DIR", "directory"),
            "/srv/ftp",
            "The shared storage, which holds the users' homes. On every node of a cluster it is a mount of \
             the same file system. A missing directory is created only with `standalone`, because in a \
             cluster it means that the mount is missing.",
        ),
        Setting::one(
            "port",
            Form::new("PORT", "port from 1 to 65535 (0 takes a free one)"),
            "21",
            "The control port. The default is FTP's own, which needs CAP_NET_BIND_SERVICE; ports above \
             1023 do not.",
        )
        .alias("port"),
        Setting::switch(
            "standalone",
            "false",
            "Serve as one server, without authd and without a cluster. Users come from `user` and \
             `user_file`. Redis is used only if `redis_url` is set.",
        ),
        Setting::one(
            "user_file",
            FILE,
            "",
            "Users of a standalone node, one `NAME:HASH` a line. `authd hash-password` prints the hash. \
             Empty lines and lines that begin with # are ignored. Let only ftpd's own user read the file.",
        ),
        Setting {
            shape: Shape::Repeated,
            ..Setting::one(
                "user",
                Form::new("NAME:PASSWORD", "NAME:PASSWORD"),
                "",
                "A user of a standalone node, with `root` as home. Use it for trials: every user of the \
                 host sees the flag's password in `ps`, so prefer `user_file` or the variable. Without any \
                 user, demo, admin and test log in with any password, and the node listens on loopback \
                 only.",
            )
        },
        Setting::many(
            "tls_certificates",
            PEM_FILES,
            "",
            "Certificate chains for FTPS. The client's SNI name selects the chain. Without a certificate \
             the node offers no TLS.",
        ),
        Setting::one(
            "node_name",
            Form::new("NAME", "name of A-Z, a-z, 0-9, dot, hyphen and underscore (ftp1)"),
            "",
            "This node's name in the cluster. If not set, the host name.",
        ),
        Setting::one(
            "passive_port_min",
            PORT,
            "50000",
            "The first port of the passive range. In a cluster it is the range of the cluster, the same on \
             all nodes: every node listens on the whole range.",
        )
        .alias("FtpPasvMinPort"),
        Setting::one(
            "passive_port_max",
            PORT,
            "50099",
            "The last port of the passive range. Clients behind one address share the ports of a node: widen \
             the range where many clients have one address.",
        )
        .alias("FtpPasvMaxPort"),
        Setting::one(
            "external_address",
            IP_ADDRESS,
            "",
            "The address that PASV announces. Set it where clients reach the cluster through NAT. If not \
             set, PASV announces the address on which the client reached the balancer or the node.",
        )
        .alias("FtpExternalIP"),
        Setting::one(
            "redis_url",
            REDIS_URL,
            "",
            "The Redis that holds the registry: sessions, nodes and leases; rediss:// for TLS. Required in a \
             cluster, unless `redis_sentinels` is set.",
        )
        .alias("RedisConnectionString"),
        Setting::many(
            "authd_urls",
            Form::new("URL", "http://HOST:PORT (http://10.0.0.5:5160)"),
            "",
            "The authd instances, which verify logins. Required in a cluster. If one does not answer, the \
             node asks the next.",
        )
        .alias("authservice"),
    ],
};

static LOGGING: Group = Group {
    name: "Logging",
    about: "The log goes to standard error; docs/logs.md explains its fields.",
    settings: &[
        Setting::one(
            "log_level",
            LOG_LEVEL,
            "info",
            "The least severe level that is logged, or a filter of env_logger (`info,ftpd::tls=debug`). At \
             info the log has one line for each login and transfer. rustls stays at error unless the \
             filter names it (`info,rustls=warn`), because its messages name no session. SIGHUP applies a \
             change.",
        ),
        LOG_FORMAT,
        Setting::one(
            "failure_log_limit",
            NUMBER,
            "60",
            "Log lines a minute for failures with the same verb and reason in one session. The same limit \
             holds for each kind of connection that fails before its login (refused, failed handshake and \
             so on) from one network; for all networks together it is ten times as high. One more line \
             sums up what was left out. 0: no limit.",
        ),
        Setting::one(
            "transfer_log",
            FILE,
            "",
            "A file in xferlog's format with one line for each upload and download, beside the log. SIGHUP \
             opens it again, for logrotate. If not set, no transfer log is written.",
        ),
        AUDIT_LOG,
        AUDIT_RECORDS,
    ],
};
